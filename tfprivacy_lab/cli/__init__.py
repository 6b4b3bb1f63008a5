"""The command line: a module a group of commands. Only here is anything printed."""

from __future__ import annotations

from tfprivacy_lab.lazy_exports import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "command": ("main",),
    },
)
