"""Poisson batches: the sampling that the accountant assumes, cut into shapes that Keras can compile.

A logical batch is what is accounted: every example joins it independently with probability
batch_size / examples. Its size varies, and an accelerator wants fixed shapes, so each logical batch is
laid out as ``accumulation_steps`` physical batches of ``physical_batch_size`` rows. Rows that hold no
example have weight zero: their loss, and so their gradient, is exactly zero.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import secrets

import numpy as np

from tfprivacy_lab.checks import InputError, check_positive_int, settle
from tfprivacy_lab.dp.seed_streams import SeedStream


@dataclasses.dataclass(frozen=True)
class PoissonSample:
    """Logical batches alone: each example joins each step independently with one probability.

    Attributes:
        examples: Number of examples to draw from, >= 1.
        probability: q in (0, 1].
        seed: Whole number >= 0; anyone who knows it knows who took part in which step.
        worker: Number of the worker whose examples these are; workers with one seed draw apart.
    """

    examples: int
    probability: float
    seed: int = 0
    worker: int = 0

    def indices(self, step: int) -> np.ndarray:
        """Positions of the examples in logical batch ``step``, (m,), int64, ascending; m varies.

        A binomial size and then a uniform subset of that size: the same distribution as n coins, with m draws
        instead of n.
        """
        generator = _generator(self.seed, step, self.worker)
        size = generator.binomial(self.examples, self.probability)
        return np.sort(generator.choice(self.examples, size, replace=False, shuffle=False))


@dataclasses.dataclass(frozen=True)
class ShuffledBatches:
    """Batches cut from a new order each pass, as Keras' ``fit`` does; no accountant amplifies by these.

    Attributes:
        examples: Number n of examples.
        batch_size: Size of every batch but, where it does not divide n, a pass's last.
        seed: Whole number >= 0.
        first_step: Step at which the first pass begins.

    Guarantee: an example takes part at most once a pass.
    """

    examples: int
    batch_size: int
    seed: int = 0
    first_step: int = 0

    def indices(self, step: int) -> np.ndarray:
        """Positions of the examples in batch ``step``, (m,), int64; m <= batch_size."""
        whole = math.ceil(self.examples / self.batch_size)
        epoch, place = divmod(step - self.first_step, whole)
        order = _generator(self.seed, self.first_step + epoch * whole).permutation(self.examples)
        return np.sort(order[place * self.batch_size : (place + 1) * self.batch_size])


def _generator(seed: int, step: int, worker: int = 0) -> np.random.Generator:
    """A generator of its own for each step of each worker."""
    return np.random.Generator(np.random.Philox(SeedStream.SAMPLING.sequence(seed, worker, step)))


@dataclasses.dataclass(frozen=True)
class PoissonBatches:
    r"""The batches of a run, each drawn on demand from (seed, step).

    Attributes:
        examples: Number n of private examples.
        batch_size: Expected logical batch size B <= n; :math:`q = B / n`.
        steps: Number of logical batches.
        physical_batch_size: Largest number of rows in a physical batch.
        seed: Whole number >= 0; anyone who knows it knows who took part in which step.

    Guarantee: :meth:`indices` holds each example independently with probability q, the sampling of Abadi et al. 2016
    and of every Poisson accountant, as exactly as NumPy draws a binomial: its inversion cuts the size's upper tail
    ten standard deviations above the mean, and the rest is in double precision. The draw depends on no data, so laying
    out shapes by the largest reveals nothing. Not covered: with a published seed the amplification by sampling holds
    only against those who do not use it, see :func:`fresh_seed`; and the number n of examples, which is treated as
    public.
    """

    examples: int
    batch_size: int
    steps: int
    physical_batch_size: int = 128
    seed: int = 0

    def __post_init__(self):
        for name in ("examples", "batch_size", "steps", "physical_batch_size"):
            settle(self, **{name: check_positive_int(name, getattr(self, name))})
        settle(self, seed=check_positive_int("seed", self.seed, at_least=0))
        if self.batch_size > self.examples:
            raise InputError(
                f"Expected batch_size <= examples, got batch_size={self.batch_size} for "
                f"examples={self.examples}; use a smaller batch."
            )

    def indices(self, step: int) -> np.ndarray:
        """Positions of the examples in logical batch ``step``, shape (m,), int64, ascending; m varies."""
        check_positive_int("step", step, at_least=0, at_most=self.steps - 1)
        return PoissonSample(self.examples, self.batch_size / self.examples, self.seed).indices(step)

    @functools.cached_property
    def largest(self) -> int:
        """Size of the largest logical batch of the run, at least 1."""
        return max(1, *(self.indices(step).size for step in range(self.steps)))

    @property
    def accumulation_steps(self) -> int:
        """Physical batches a logical batch."""
        return math.ceil(self.largest / self.physical_batch_size)

    @property
    def rows(self) -> int:
        """Rows of one physical batch; accumulation_steps · rows holds every logical batch."""
        return math.ceil(self.largest / self.accumulation_steps)

    def layout(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Logical batch ``step`` in fixed shapes.

        Returns:
            Indices (accumulation_steps, rows), int64, padded with 0, and weights of the same shape,
            float32: 1 for a drawn example, 0 for padding.
        """
        drawn = self.indices(step)
        shape = (self.accumulation_steps, self.rows)
        padded = np.zeros(shape[0] * shape[1], np.int64)
        weights = np.zeros(padded.size, np.float32)
        padded[: drawn.size], weights[: drawn.size] = drawn, 1.0
        return padded.reshape(shape), weights.reshape(shape)


def fresh_seed() -> int:
    """A seed of 128 bits from the operating system, for runs whose guarantee is meant."""
    return secrets.randbits(128)
