"""A finished run as a page, a model card and plots."""

from __future__ import annotations

from tfprivacy_lab.lazy_exports import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "page": ("MISSING", "MODELS", "SCHEMES", "build", "draw"),
    },
)
