"""Differential privacy: what a run does (sampling, training) and what it costs (accounting).

Names load on first use; ``accounting`` and ``sampling`` need no TensorFlow.
"""

from __future__ import annotations

from tfprivacy_lab.lazy_exports import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "composition": ("compose", "compose_parallel", "epsilon_shuffled"),
        "allowance": ("steps_within",),
        "group": ("group_epsilon", "group_epsilon_gaussian", "group_epsilon_sampled"),
        "tradeoff": ("largest_belief", "largest_tpr", "probability_beyond"),
        "tuning": ("Repetitions", "epsilon_tuned", "pure_epsilon_tuned"),
        "ledger": ("Ledger",),
        "accounting": ("DpSgdRun", "account", "calibrate_noise_multiplier", "steps_for"),
        "sampling": ("PoissonBatches",),
        "plan": ("EpochRecord", "TrainingPlan"),
        "training": ("train",),
        "private_model": ("PrivateModel",),
        "callbacks": ("StopBeforeBudget",),
        "charged": ("ChargedTo",),
        "checkpoint": ("SaveCheckpoint",),
        "statement": ("privacy_statement",),
        "mechanisms": ("GaussianMechanism", "LaplaceMechanism"),
        "discrete": ("GridGaussian",),
        "neighbours": ("check_neighbours",),
        "private_scale": ("PrivateScale",),
        "intervals": ("noise_quantile", "ratio_interval"),
        "quantile": ("QuantileClip",),
        "laplace_accounting": ("LaplacePlan", "LaplaceRun", "account_laplace"),
        "laplace": ("train_laplace",),
    },
)
