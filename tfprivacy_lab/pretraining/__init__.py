"""Features from public data: pretraining on rendered digits, scattering, and a probe that judges them."""

from __future__ import annotations

from tfprivacy_lab.lazy_exports import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "tasks": ("CONTRAST_WEIGHT", "DEFAULT_TASK", "LOGIT_SCALE", "Pretrained", "TASKS", "TEMPERATURE", "pretrain"),
    },
)
