"""What stands in the way of DP: models, arguments and callbacks that are refused, each with its remedy."""

from __future__ import annotations

from tfprivacy_lab.lazy_exports import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {},
)
