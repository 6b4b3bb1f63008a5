"""A job on the engine (SPU): compiled, run on shares and opened. Only here is the engine loaded."""

from __future__ import annotations

from tfprivacy_lab.lazy_exports import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "engine": ("Engine",),
        "execution": ("Outcome",),
    },
)
