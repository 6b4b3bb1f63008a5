"""What ``fit`` is given, as tensors with one row per example: arrays, datasets, losses, Poisson batches."""

from __future__ import annotations

from tfprivacy_lab.lazy_exports import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {},
)
