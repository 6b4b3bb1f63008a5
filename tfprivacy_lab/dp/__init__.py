"""Differential privacy: what a run does (sampling, training) and what it costs (accounting).

Names load on first use; ``accounting`` and ``sampling`` need no TensorFlow.
"""

from __future__ import annotations

import importlib

_EXPORTS = {
    "DpSgdRun": "accounting",
    "account": "accounting",
    "calibrate_noise_multiplier": "accounting",
    "PoissonBatches": "sampling",
    "TrainingPlan": "plan",
    "train": "training",
    "EpochRecord": "plan",
    "privacy_statement": "statement",
}


def __getattr__(name: str):
    if name in _EXPORTS:
        return getattr(importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    if name in {"accounting", "plan", "sampling", "training", "statement"}:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
