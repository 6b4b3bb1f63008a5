"""Differential privacy: what a run does (sampling, training) and what it costs (accounting).

Names load on first use; ``accounting`` and ``sampling`` need no TensorFlow.
"""

from __future__ import annotations

import importlib

_EXPORTS = {
    "compose": "composition",
    "compose_parallel": "composition",
    "epsilon_shuffled": "composition",
    "steps_within": "allowance",
    "group_epsilon": "group",
    "group_epsilon_gaussian": "group",
    "group_epsilon_sampled": "group",
    "largest_belief": "tradeoff",
    "largest_tpr": "tradeoff",
    "probability_beyond": "tradeoff",
    "Repetitions": "tuning",
    "epsilon_tuned": "tuning",
    "pure_epsilon_tuned": "tuning",
    "Ledger": "ledger",
    "DpSgdRun": "accounting",
    "account": "accounting",
    "calibrate_noise_multiplier": "accounting",
    "steps_for": "accounting",
    "PoissonBatches": "sampling",
    "TrainingPlan": "plan",
    "train": "training",
    "PrivateModel": "private_model",
    "StopBeforeBudget": "callbacks",
    "ChargedTo": "charged",
    "SaveCheckpoint": "checkpoint",
    "EpochRecord": "plan",
    "privacy_statement": "statement",
    "LaplaceMechanism": "mechanisms",
    "GaussianMechanism": "mechanisms",
    "GridGaussian": "discrete",
    "check_neighbours": "neighbours",
    "PrivateScale": "private_scale",
    "noise_quantile": "intervals",
    "ratio_interval": "intervals",
    "QuantileClip": "quantile",
    "LaplacePlan": "laplace_accounting",
    "LaplaceRun": "laplace_accounting",
    "account_laplace": "laplace_accounting",
    "train_laplace": "laplace",
}
_MODULES = {
    *("adjacency", "allowance", "events", "composition", "group", "tradeoff", "tuning", "ledger", "ledger_file"),
    *("callbacks", "charged", "checkpoint", "clipping", "gaussian_noise", "layers", "monitors", "private_model"),
    *("lineage", "saving", "spending"),
    *("accounting", "plan", "sampling", "training", "statement"),
    *("mechanisms", "noise", "discrete", "intervals", "neighbours", "quantile", "private_scale"),
    *("laplace", "laplace_accounting", "laplace_statement"),
}


def __getattr__(name: str):
    if name in _EXPORTS:
        return getattr(importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
