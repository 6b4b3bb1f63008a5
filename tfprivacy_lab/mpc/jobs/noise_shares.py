r"""Noise that parties contribute inside a protocol, as the job agrees on it, and what it is claimed to be worth.

A job that claims (ε, δ) carries what the claim rests on: the bound on one record's share of a sum, and how many of the
contributions an adversary may know. From these, and from the standard deviation, ε follows; a job whose noise is worth
less than it claims is refused by every party.
"""

from __future__ import annotations

import dataclasses
import math

from tfprivacy_lab.checks import InputError, check_finite_number, check_positive_int, settle
from tfprivacy_lab.mpc.jobs.protocols import listed
from tfprivacy_lab.zcdp import zcdp_epsilon


@dataclasses.dataclass(frozen=True)
class NoiseClaim:
    """(ε, δ) of the noised sums, or of the training set, in everything a job reveals, and what it rests on.

    Not covered: the rows of a ``query``, whose predictions are opened without noise.

    Adjacency: of a sum of vectors, one record added or removed. Of training, whose number of rows is public and divides
    the gradients, one record zeroed out: its terms become zero, the number of rows stays.

    Attributes:
        epsilon: The claimed ε, against whoever knows ``colluding`` contributions.
        delta: The claimed δ.
        l2_norm_clip: Bound C on what one record adds to a sum, in its unit. In training it is checked against the job's
            ``row_norm``; in a sum nobody checks it, and it holds if whoever makes the vectors keeps to it.
        colluding: How many contributions an adversary may know, below the number of contributors.
        roundings: How often a coordinate of the sum is rounded or truncated, by at most a grid step each.

    Raises:
        InputError: naming the argument.
    """

    epsilon: float
    delta: float
    l2_norm_clip: float
    colluding: int
    roundings: int

    def __post_init__(self):
        numbers = {"epsilon": {"above": 0}, "delta": {"at_least": 1e-300, "below": 1}, "l2_norm_clip": {"above": 0}}
        for name, limits in numbers.items():
            value = check_finite_number(f"noise.claim.{name}", getattr(self, name), **limits)
            settle(self, **{name: value})
        for name, least in {"colluding": 0, "roundings": 1}.items():
            value = check_positive_int(f"noise.claim.{name}", getattr(self, name), at_least=least, at_most=10**9)
            settle(self, **{name: value})


@dataclasses.dataclass(frozen=True)
class NoiseShares:
    """Noise that parties contribute inside the protocol, added to every gradient sum, or to the sum of a statistic.

    Attributes:
        parties: Who contributes, each once; each draws its own, and nobody sees the total.
        stddev: Standard deviation of one party's contribution, in the unit of what is noised.
        fraction_bits: The noise is a multiple of :math:`2^{-f}`, and so is the arithmetic.
        claim: What all of it is worth, or None where no ε is claimed.

    Raises:
        InputError: naming the argument.
    """

    parties: tuple[str, ...]
    stddev: float
    fraction_bits: int
    claim: NoiseClaim | None = None

    def __post_init__(self):
        settle(self, parties=listed("noise.parties", self.parties, str))
        if not self.parties or len(set(self.parties)) != len(self.parties):
            raise InputError(
                f"Expected noise.parties to be different names, got {self.parties!r}: a name that counts twice "
                "would contribute once."
            )
        stddev = check_finite_number("stddev", self.stddev, above=0, at_most=2.0**110)
        settle(self, stddev=stddev)
        bits = check_positive_int("fraction_bits", self.fraction_bits, at_least=8, at_most=40)
        settle(self, fraction_bits=bits)
        if self.claim is not None and not isinstance(self.claim, NoiseClaim):
            raise InputError(f"Expected noise.claim to be a NoiseClaim or None, got {self.claim!r:.80}.")
        if self.claim is not None and self.claim.colluding >= len(self.parties):
            raise InputError(
                f"Expected noise.claim.colluding below the {len(self.parties)} contributors, "
                f"got {self.claim.colluding}."
            )

    @property
    def largest(self) -> float:
        """No contribution may pass 16 standard deviations; one in 10^57 would."""
        return 16 * self.stddev

    def check_worth(self, dimension: int, releases: int) -> None:
        """Refuse a claim that the standard deviation does not keep.

        Raises:
            InputError: with the ε that it does keep.
        """
        claim, remaining = self.claim, len(self.parties) - self.claim.colluding
        moved = sensitivity(claim.l2_norm_clip, claim.roundings, self.fraction_bits, dimension)
        steps = self.stddev * 2.0**self.fraction_bits
        kept = summed_epsilon(steps, remaining, moved / self.stddev, dimension, releases, claim.delta)
        if not kept <= claim.epsilon * (1 + 1e-9):
            raise InputError(
                f"Expected noise that keeps the claimed epsilon={claim.epsilon:g} at delta={claim.delta:g}, but "
                f"stddev={self.stddev:g} of {remaining} contributions, over {releases} releases, keeps "
                f"{kept:.4g}; raise stddev, or claim no more than it is worth."
            )


def sensitivity(l2_norm_clip: float, roundings: int, fraction_bits: int, dimension: int) -> float:
    r"""By how much one record moves a sum on the grid: :math:`C + 2 r \gamma \sqrt d`, in the sum's unit."""
    return l2_norm_clip + 2 * roundings * 2.0**-fraction_bits * math.sqrt(dimension)


def summed_epsilon(sigma: float, count: int, ratio: float, dimension: int, releases: int, delta: float) -> float:
    r"""ε at δ of sums noised by ``count`` discrete Gaussians each.

    :math:`\rho = r \left(\tfrac12 \left(\tfrac{\Delta}{\sqrt n \sigma} + d\tau\right)^2 \right)`, then
    :func:`tfprivacy_lab.zcdp.zcdp_epsilon`.

    Args:
        sigma: One contribution's σ in grid steps.
        count: n, contributions that nobody hostile knows.
        ratio: Sensitivity over *one* contribution's σ.
        dimension: d, coordinates of the sum.
        releases: r, how many noised sums.
        delta: δ.

    Source: Kairouz, Liu and Steinke 2021, Prop. 14, whose first bound, :math:`\sqrt{\Delta^2/\sigma^2 + \tau d/2}`,
    this exceeds or equals whenever it is used: the larger of both is taken.
    """
    ratio /= math.sqrt(count)
    # A larger σ makes no smaller term: it is zero already. A ratio as large keeps nothing.
    sigma = min(sigma, 1e6)
    if ratio > 1e100:
        return math.inf
    tau = 10 * sum(math.exp(-2 * math.pi**2 * sigma**2 * k / (k + 1)) for k in range(1, count))
    root = max(math.sqrt(ratio**2 + tau * dimension / 2), ratio + tau * dimension)
    return zcdp_epsilon(releases * root**2 / 2, delta)


def logistic_gradient_norm(row_norm: float, sigmoid_error: float, units: int = 1) -> float:
    r"""Bound on one row's gradient of the logistic loss on shares: :math:`\sqrt{k} (1 + e)\sqrt{\|x\|^2 + 1}`.

    Each of k outputs has a residual of its own, of at most 1 + e, in its own column of the kernel.
    """
    return math.sqrt(units) * (1 + sigmoid_error) * math.hypot(row_norm, 1)
