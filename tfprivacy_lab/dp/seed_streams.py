"""The streams of random numbers that follow from a run's one seed, each by a key of its own.

The keys are part of every seeded result: a number that changed would change what a seed gives.
"""

from __future__ import annotations

import enum

import numpy as np


@enum.unique
class SeedStream(enum.IntEnum):
    """What a run draws, by the first word of its spawn key.

    By spawn key, not as a list with the seed: such lists run into each other ([3, 1] and [3, 1, 0] are one), and
    a list with a seed of 128 bits runs into the spawn keys of one word, which are those of noise and dropout.
    """

    NOISE = 0  # Gaussian, of either engine
    LAYERS = 1  # dropout and whatever else Keras draws
    SAMPLING = 2  # who takes part in a batch; its place is (worker, step)
    LAPLACE_NOISE = 3

    def sequence(self, seed: int, *place: int) -> np.random.SeedSequence:
        """The words of this stream under ``seed``; ``place`` is what the stream counts by, if it counts."""
        return np.random.SeedSequence(seed, spawn_key=(int(self), *place))
