"""A dense Keras head for an application: trained by DP-SGD with settings from the pilot, or without DP."""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy.special import softmax

from tfprivacy_lab.apps import cases

BATCH = 128


@dataclasses.dataclass(frozen=True)
class Settings:
    """DP-SGD on a dense head, chosen on the pilot."""

    learning_rate: float
    epochs: int


CANDIDATES = tuple(Settings(rate, epochs) for epochs in (5, 10) for rate in (0.25, 1.0))


def dp_run(settings: Settings, examples: int, epsilon: float, delta: float):
    """What DP-SGD does to spend ε on so many rows."""
    from tfprivacy_lab.dp import TrainingPlan

    return TrainingPlan(BATCH, settings.epochs, 1.0, settings.learning_rate).calibrated(examples, epsilon, delta)


def train_head(part: cases.Part, settings: Settings, run, delta: float, seed: int):
    """A Keras head under DP-SGD, as the private model that keeps its record."""
    import keras

    from tfprivacy_lab.dp import PrivateModel
    from tfprivacy_lab.models.architectures import dense_head

    head, noise = dense_head(part.x.shape[1], 2), run.noise_multiplier
    model = PrivateModel(head, l2_norm_clip=1.0, noise_multiplier=noise, seed=seed, delta=delta)
    optimizer = keras.optimizers.SGD(settings.learning_rate, 0.9)
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(part.x.astype(np.float32), part.y, batch_size=BATCH, steps_per_epoch=run.steps, verbose=0)
    return model


def settings_for(parts: cases.Split, epsilon: float, delta: float) -> Settings:
    """Chosen on the pilot, under as many steps of as much noise as the train set will get."""

    def probability(candidate, half, x, seed):
        run = dp_run(candidate, len(parts.train.y), epsilon, delta)
        return positive(train_head(half, candidate, run, delta, seed).model, x)

    return cases.choose(CANDIDATES, parts.pilot, probability, halves=2)


def train(parts: cases.Split, epsilon: float | None, delta: float, seed: int, settings: Settings | None = None):
    """(head, ε spent): by DP-SGD, or the same head by Adam and None.

    Args:
        parts: Its train rows are private, its pilot chooses.
        epsilon: The target, or None for no DP.
        delta: δ.
        seed: Of sampling and noise; whoever knows it can subtract the noise.
        settings: Chosen before; else chosen now.
    """
    if epsilon is None:
        from tfprivacy_lab.experiments.audits import train_without_dp
        from tfprivacy_lab.models.architectures import dense_head

        head, x = dense_head(parts.train.x.shape[1], 2), parts.train.x.astype(np.float32)
        return train_without_dp(head, x, parts.train.y, epochs=60, seed=seed, learning_rate=0.02), None
    settings = settings or settings_for(parts, epsilon, delta)
    model = train_head(parts.train, settings, dp_run(settings, len(parts.train.y), epsilon, delta), delta, seed)
    return model.model, model.epsilon()


def positive(head, x) -> np.ndarray:
    """The head's probabilities of label 1, (n,)."""
    from tfprivacy_lab.models.architectures import outputs

    return softmax(outputs(head, x).astype(np.float64), axis=1)[:, 1]
