"""Differential privacy: what a run does (sampling, training) and what it costs (accounting).

Names load on first use; ``accounting``, ``mechanisms`` and ``sampling`` need no TensorFlow.
"""

from __future__ import annotations

from tfprivacy_lab.lazy_exports import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "accounting.composition": ("compose", "compose_parallel", "epsilon_shuffled"),
        "accounting.budget": ("steps_within",),
        "accounting.group": ("group_epsilon", "group_epsilon_gaussian", "group_epsilon_sampled"),
        "accounting.tradeoff": ("largest_belief", "largest_tpr", "probability_beyond"),
        "accounting.selection": ("Repetitions", "epsilon_tuned", "pure_epsilon_tuned"),
        "ledger.ledger": ("Ledger",),
        "accounting.gaussian": ("DpSgdRun", "account", "calibrate_noise_multiplier", "steps_for"),
        "sampling": ("PoissonBatches",),
        "plan": ("EpochRecord", "TrainingPlan"),
        "training.planned": ("train",),
        "training.private_model": ("PrivateModel",),
        "training.callbacks": ("StopBeforeBudget",),
        "ledger.callback": ("ChargedTo",),
        "training.checkpoint": ("SaveCheckpoint",),
        "accounting.statement": ("privacy_statement",),
        "mechanisms.additive": ("GaussianMechanism", "LaplaceMechanism"),
        "mechanisms.discrete": ("GridGaussian",),
        "mechanisms.empirical_check": ("check_neighbours",),
        "mechanisms.private_scale": ("PrivateScale",),
        "mechanisms.intervals": ("noise_quantile", "ratio_interval"),
        "clipping.adaptive": ("QuantileClip",),
        "accounting.laplace": ("LaplacePlan", "LaplaceRun", "account_laplace"),
        "training.laplace_sgd": ("train_laplace",),
    },
    {
        "composition": "accounting.composition",
        "events": "accounting.events",
        "adjacency": "accounting.adjacency",
        "group": "accounting.group",
        "tradeoff": "accounting.tradeoff",
        "spending": "accounting.phases",
        "allowance": "accounting.budget",
        "tuning": "accounting.selection",
        "statement": "accounting.statement",
        "laplace_accounting": "accounting.laplace",
        "laplace_statement": "accounting.laplace_statement",
        "discrete": "mechanisms.discrete",
        "noise": "mechanisms.secure_noise",
        "intervals": "mechanisms.intervals",
        "neighbours": "mechanisms.empirical_check",
        "private_scale": "mechanisms.private_scale",
        "layers": "clipping.rules",
        "quantile": "clipping.adaptive",
        "monitors": "validation.monitors",
        "ledger_file": "ledger.file",
        "charged": "ledger.callback",
        "private_model": "training.private_model",
        "lineage": "training.lineage",
        "gaussian_noise": "training.noise",
        "callbacks": "training.callbacks",
        "laplace": "training.laplace_sgd",
        "checkpoint": "training.checkpoint",
        "saving": "training.saving",
    },
)
