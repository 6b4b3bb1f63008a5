"""A head in integers: weights on a grid, features in public steps, and the limits that keep results right."""

from __future__ import annotations

from tfprivacy_lab.lazy_exports import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "heads": ("QuantizedHead", "integer_logits"),
        "steps": ("quantize_features",),
    },
)
