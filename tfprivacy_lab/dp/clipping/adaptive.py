"""Adaptive quantile clipping: a clipping norm that follows the gradients' norms.

Adaptive clipping moves C towards a quantile of the gradients' norms, estimated under DP at every step. The
estimate spends part of the budget: both releases of a step together are one Gaussian mechanism of a given
noise multiplier, and the gradient's share of the noise grows accordingly.

NumPy only; a training engine calls :meth:`QuantileClip.centred_count` on the norms of a logical batch, adds
Gaussian noise of standard deviation ``count_stddev``, and goes on with :meth:`QuantileClip.updated`.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from tfprivacy_lab.checks import InputError, check_finite_number, check_positive_int, settle

# Counting b - 1/2 instead of b in {0, 1}: an example moves the count by a half, whichever side it is on.
_COUNT_SENSITIVITY = 0.5


@dataclasses.dataclass(frozen=True)
class QuantileClip:
    r"""The state of adaptive clipping: a clipping norm, and how it moves.

    :math:`C \leftarrow C \cdot \exp(-\eta (\tilde b - \gamma))`, with :math:`\tilde b` the noisy fraction of
    examples whose norm is at most C.

    Attributes:
        l2_norm_clip: Clipping norm C of the next step, in gradient units, > 0.
        batch_size: Expected batch size B, the denominator of the fraction.
        count_stddev: Standard deviation σ_b of the noise on the count, in examples, > 0; the authors
            recommend B / 20.
        target_quantile: γ in [0, 1].
        learning_rate: η > 0.
        smallest: C never falls below it, > 0.
        largest: C never grows above it.

    Raises:
        InputError: naming the argument.

    Guarantee: C of every step follows from noisy counts alone, so it is post-processing of what
    :func:`gradient_noise_multiplier` accounts. Source: Andrew et al. 2021, Alg. 1. Under Poisson sampling
    the number of examples is itself private: the fraction is taken over B.
    """

    l2_norm_clip: float
    batch_size: int
    count_stddev: float
    target_quantile: float = 0.5
    learning_rate: float = 0.2
    smallest: float = 1e-6
    largest: float = 1e6

    def __post_init__(self):
        settle(self, batch_size=check_positive_int("batch_size", self.batch_size))
        for name in ("count_stddev", "learning_rate", "smallest", "largest"):
            settle(self, **{name: check_finite_number(name, getattr(self, name), above=0)})
        settle(
            self, target_quantile=check_finite_number("target_quantile", self.target_quantile, at_least=0, at_most=1)
        )
        settle(
            self,
            l2_norm_clip=check_finite_number(
                "l2_norm_clip", self.l2_norm_clip, at_least=self.smallest, at_most=self.largest
            ),
        )

    def centred_count(self, norms, weights=None) -> float:
        r""":math:`\sum_i w_i (1[\|g_i\| \le C] - \tfrac12)`: the noiseless count, to be released under noise only.

        Args:
            norms: Norms of the per-example gradients before clipping, shape (m,), >= 0; m may be zero. A norm
                that is not finite counts as above C.
            weights: 1 for an example and 0 for padding, shape (m,); None for ones.

        Returns:
            A number in [-m/2, m/2].

        Raises:
            InputError: if shapes do not fit or a weight is neither 0 nor 1.

        Guarantee: one example added or removed moves it by exactly 1/2.
        """
        norms = np.asarray(norms, np.float64)
        weights = np.ones(norms.shape) if weights is None else np.asarray(weights, np.float64)
        if norms.ndim != 1 or weights.shape != norms.shape:
            raise InputError(f"Expected norms and weights of one shape (m,), got {norms.shape} and {weights.shape}.")
        if not np.isin(weights, (0.0, 1.0)).all():
            raise InputError("Expected weights to be 0 or 1: a larger one would pass the stated sensitivity.")
        # A comparison with NaN is false: such an example counts as above.
        return float(np.sum(weights * ((norms <= self.l2_norm_clip) - _COUNT_SENSITIVITY)))

    def updated(self, noisy_count: float) -> QuantileClip:
        """The state after a step whose :meth:`centred_count` came out, under noise, as ``noisy_count``.

        Raises:
            InputError: if ``noisy_count`` is not finite.
        """
        noisy_count = check_finite_number("noisy_count", noisy_count)
        fraction = noisy_count / self.batch_size + _COUNT_SENSITIVITY
        # Far outside [0, 1] only by noise; without the limit one bad draw could move C by any factor.
        move = self.learning_rate * (min(max(fraction, -1.0), 2.0) - self.target_quantile)
        clip = min(max(self.l2_norm_clip * math.exp(-move), self.smallest), self.largest)
        return dataclasses.replace(self, l2_norm_clip=clip)


def gradient_noise_multiplier(noise_multiplier: float, count_stddev: float) -> float:
    r"""Noise multiplier left for the gradients when the count spends its part.

    :math:`z_\Delta = (z^{-2} - (2\sigma_b)^{-2})^{-1/2}`: gradients under noise :math:`z_\Delta C` and the count
    under :math:`\sigma_b` are together one Gaussian mechanism of noise multiplier z.

    Args:
        noise_multiplier: z of a whole step, the one that is accounted, > 0.
        count_stddev: σ_b, in examples, > z/2.

    Returns:
        z_Δ > z; the gradients' noise has standard deviation z_Δ · C.

    Raises:
        InputError: if the count alone would spend more than z allows.

    Source: Andrew et al. 2021, Thm 1.
    """
    noise_multiplier = check_finite_number("noise_multiplier", noise_multiplier, above=0)
    count_stddev = check_finite_number("count_stddev", count_stddev, above=0)
    left = noise_multiplier**-2 - (_COUNT_SENSITIVITY / count_stddev) ** 2
    if left <= 0:
        raise InputError(
            f"Expected count_stddev > noise_multiplier / 2 = {noise_multiplier / 2:g}, got count_stddev="
            f"{count_stddev:g}: the count alone would spend the step's budget; put more noise on it."
        )
    return left**-0.5


def total_noise_multiplier(gradient_multiplier: float, count_stddev: float) -> float:
    r"""What a step costs as one Gaussian mechanism: :math:`z = (z_\Delta^{-2} + (2\sigma_b)^{-2})^{-1/2}`.

    The inverse of :func:`gradient_noise_multiplier`; account a run with the z that it returns.

    Raises:
        InputError: naming the argument.
    """
    gradient_multiplier = check_finite_number("gradient_multiplier", gradient_multiplier, above=0)
    count_stddev = check_finite_number("count_stddev", count_stddev, above=0)
    return (gradient_multiplier**-2 + (_COUNT_SENSITIVITY / count_stddev) ** 2) ** -0.5
