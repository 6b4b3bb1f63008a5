"""Recipes and their runs: what is trained, on what, charged to which ledger, and attacked how."""

from __future__ import annotations

from tfprivacy_lab.lazy_exports import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {},
)
