r"""DP noise made by several parties together inside the protocol: who knows how much of it, and what that costs in ε.

Each of n parties draws its own discrete Gaussian noise from the operating system's generator, in steps of the
arithmetic's grid :math:`\gamma = 2^{-f}`, and puts it on shares; the protocol adds it up with what is noised before
anything is opened. Nobody sees the total. A party knows its own contribution and can subtract it: against t colluding
parties only n - t contributions count, so the noise is scaled such that *these* meet the claim.

The accountant is given what the protocol really adds. A sum of n discrete Gaussians of variance σ² is not a discrete
Gaussian, but within a factor :math:`e^{\tau}` of one of variance nσ², pointwise,
:math:`\tau = 10 \sum_{k=1}^{n-1} e^{-2\pi^2 \sigma^2 k/(k+1)}` (Kairouz, Liu and Steinke 2021, Thm 5), a coordinate.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from tfprivacy_lab.checks import InputError, check_finite_number, check_positive_int, settle
from tfprivacy_lab.dp.mechanisms.discrete import discrete_gaussian
from tfprivacy_lab.mpc.jobs import noise_shares
from tfprivacy_lab.mpc.jobs.noise_shares import NoiseClaim, NoiseShares
from tfprivacy_lab.mpc.jobs.protocols import listed

ADJACENCY = "add or remove one record of a sum; in training, whose number of rows is public, zero out one record"


@dataclasses.dataclass(frozen=True)
class SharedGaussian:
    r"""Gaussian noise from shares, for a sum of records released ``releases`` times.

    Attributes:
        parties: Who contributes.
        l2_norm_clip: Bound C on what one record adds to the sum, in its unit.
        dimension: Coordinates of the sum.
        noise_multiplier: The wanted ratio σ/Δ of what remains when ``colluding`` parties subtract theirs.
        colluding: t < n, how many contributions an adversary may know.
        fraction_bits: f; the grid's step is :math:`\gamma = 2^{-f}`.
        releases: How many noised sums come out, or steer what comes out: the steps of a training.
        roundings: How often a coordinate of the sum is rounded or truncated, by at most γ each, on its way.

    Raises:
        InputError: naming the argument.

    Guarantee: :meth:`epsilon` of everything computed from the noised sums, against whoever sees them and knows up to
    ``colluding`` contributions. Adjacency: a sum with one record more or less. Where a public number of rows divides
    the sum, as in training on shares, that number does not change with the record: it is *zero-out* adjacency, one
    record's terms become zero. Δ = C + 2 ``roundings`` γ √d: neighbouring sums are rounded apart. Not covered: a party
    that contributes no noise, or not enough; more colluders than stated; the protocol's own trust (``World.trust``).
    """

    parties: tuple[str, ...]
    l2_norm_clip: float
    dimension: int
    noise_multiplier: float
    colluding: int = 0
    fraction_bits: int = 20
    releases: int = 1
    roundings: int = 1

    def __post_init__(self):
        settle(self, parties=listed("parties", self.parties, str))
        if not self.parties or len(set(self.parties)) != len(self.parties):
            raise InputError(f"Expected parties to be different names, got {self.parties!r}.")
        for name, at_most in {"l2_norm_clip": 1e100, "noise_multiplier": 1e5}.items():
            settle(self, **{name: check_finite_number(name, getattr(self, name), above=0, at_most=at_most)})
        whole = {"dimension": (1, 2**40), "colluding": (0, len(self.parties) - 1), "fraction_bits": (8, 40)}
        for name, (at_least, at_most) in (whole | {"releases": (1, None), "roundings": (1, None)}).items():
            number = check_positive_int(name, getattr(self, name), at_least=at_least, at_most=at_most)
            settle(self, **{name: number})
        if self.sigma < 2:
            raise InputError(f"Expected noise of at least two grid steps, got {self.sigma}; raise fraction_bits.")
        if self.sigma > 2**40:
            raise InputError("Expected noise of at most 2^40 grid steps; lower fraction_bits.")

    @classmethod
    def calibrated(cls, parties, l2_norm_clip: float, dimension: int, *, epsilon: float, delta: float, **options):
        """The noise whose claim is (ε, δ), with the least noise multiplier to a part in a thousand.

        Raises:
            InputError: naming the argument, or if no noise within the arithmetic meets the claim.
        """
        check_finite_number("epsilon", epsilon, above=0)
        low, high = 0.0, 1.0
        while cls(parties, l2_norm_clip, dimension, high, **options).epsilon(delta) > epsilon:
            low, high = high, 2 * high
        while high - low > 1e-3 * high:
            middle = (low + high) / 2
            enough = cls(parties, l2_norm_clip, dimension, middle, **options).epsilon(delta) <= epsilon
            low, high = (low, middle) if enough else (middle, high)
        return cls(parties, l2_norm_clip, dimension, high, **options)

    @property
    def sensitivity(self) -> float:
        """L2 sensitivity Δ of the sum on the grid, in its unit."""
        return noise_shares.sensitivity(self.l2_norm_clip, self.roundings, self.fraction_bits, self.dimension)

    @property
    def sigma(self) -> int:
        """One contribution's σ in grid steps, a whole number, rounded up."""
        honest = len(self.parties) - self.colluding
        return math.ceil(self.noise_multiplier * self.sensitivity * 2.0**self.fraction_bits / math.sqrt(honest))

    def stddev(self, known: int = 0) -> float:
        """σ of what remains when ``known`` contributions are known, in the sum's unit."""
        known = check_positive_int("known", known, at_least=0, at_most=len(self.parties) - 1)
        return self.sigma * 2.0**-self.fraction_bits * math.sqrt(len(self.parties) - known)

    def epsilon(self, delta: float, known: int | None = None) -> float:
        """ε at δ of all releases, when ``known`` contributions (default: ``colluding``) are known.

        Raises:
            InputError: naming the argument.

        Source: :func:`tfprivacy_lab.mpc.jobs.noise_shares.summed_epsilon`.
        """
        known = self.colluding if known is None else known
        remaining = len(self.parties) - check_positive_int("known", known, at_least=0, at_most=len(self.parties) - 1)
        ratio = self.sensitivity / (self.sigma * 2.0**-self.fraction_bits)
        return noise_shares.summed_epsilon(self.sigma, remaining, ratio, self.dimension, self.releases, delta)

    def noise(self, delta: float | None = None) -> NoiseShares:
        """What the job says about the noise; with ``delta``, also what it is worth, which every party checks."""
        claim = None
        if delta is not None:
            claim = NoiseClaim(self.epsilon(delta), delta, self.l2_norm_clip, self.colluding, self.roundings)
        return NoiseShares(self.parties, self.sigma * 2.0**-self.fraction_bits, self.fraction_bits, claim)

    def draw(self, seed: int | None = None) -> np.ndarray:
        """One party's contribution, in grid steps: int64, (releases, dimension), from the operating system.

        A seed is for tests and teaching: whoever knows it can subtract the noise.
        """
        drawn = discrete_gaussian(self.releases * self.dimension, self.sigma**2, seed)
        return drawn.reshape(self.releases, self.dimension)

    def statement(self, delta: float) -> dict:
        """ε with nobody's, one's, … contributions known, and under which assumptions."""
        known = range(len(self.parties))
        return {
            "accountant": "zCDP of the discrete Gaussian (Canonne, Kamath and Steinke 2020; Kairouz et al. 2021)",
            "adjacency": ADJACENCY,
            "sampling": "none claimed",
            "delta": delta,
            "releases": self.releases,
            "sensitivity": self.sensitivity,
            "stddev_by_known": [self.stddev(count) for count in known],
            "epsilon_by_known": [self.epsilon(delta, count) for count in known],
            "claimed_against": f"{self.colluding} of {len(self.parties)} contributions known",
            "epsilon": self.epsilon(delta),
        }


def gradient_norm(row_norm: float, sigmoid_error: float, units: int = 1) -> float:
    r"""Bound on one row's gradient of the logistic loss, bias included: :math:`\sqrt{k} (1 + e)\sqrt{\|x\|^2 + 1}`.

    The residual σ(z) - y of each of the k outputs lies in [-1, 1], and e is the largest error of σ on shares: no
    gradient needs clipping.

    Fixed-point rounding is within this margin, and within Δ's. Of the residual: a job's sigmoid is chosen such that the
    polynomial's error *and* the roundings of its evaluation stay below e together
    (:func:`tfprivacy_lab.mpc.jobs.sigmoid.choose_sigmoid`), so a residual on shares never passes 1 + e. Of the
    features: each is rounded to the grid, by γ/2, which moves a row's gradient by at most (1 + e) γ √d / 2, where d
    counts the weights of all outputs. Of the product: γ a coordinate, in either of two neighbouring sums. The last two
    are the two ``roundings`` that a training's claim must count at least; their 4 γ √d in Δ are more than
    (1 + e) γ √d / 2 + 2 γ √d.

    Args:
        row_norm: Bound on the norm of a *whole* row. Where columns are split, every holder bounds its own part: of h
            holders whose parts have norm at most r, a row has √h · r.
        sigmoid_error: e, the job's.
        units: k, outputs of the layer.

    Raises:
        InputError: naming the argument.
    """
    row_norm = check_finite_number("row_norm", row_norm, above=0)
    sigmoid_error = check_finite_number("sigmoid_error", sigmoid_error, at_least=0)
    return noise_shares.logistic_gradient_norm(row_norm, sigmoid_error, check_positive_int("units", units))
