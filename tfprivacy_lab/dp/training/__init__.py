"""Keras models trained with DP-SGD: ``PrivateModel``, its steps, what they are charged, and the reference engine."""

from __future__ import annotations

from tfprivacy_lab.lazy_exports import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "planned": (
            "ENGINES",
            "checked_arguments",
            "evaluate_accuracy",
            "losses_of",
            "physical_batches",
            "run_epochs",
            "seed_layers",
            "train",
        ),
        "private_model": ("PrivateModel",),
        "callbacks": ("StopBeforeBudget",),
        "checkpoint": ("SaveCheckpoint",),
        "laplace_sgd": ("train_laplace",),
    },
)
