r"""Confidence intervals for means and shares of which only noised sums were released.

A mean is S/N: a sum over a count, both unknown, both noised. For the true mean m, the *pivot*
:math:`\tilde S - m \tilde N` is nothing but noise, :math:`z_S - m z_N`, whose distribution is known. All m for which
the pivot is not too large are the interval (Fieller 1954); its coverage is exact, whatever the data.

It covers the mean *of the records that were summed*. Not covered: how those differ from a larger population, and the
bias of clipping values to a range first. No TensorFlow is imported here.
"""

from __future__ import annotations

import math

from scipy import optimize, special

from tfprivacy_lab.checks import InputError, check_finite_number
from tfprivacy_lab.dp.mechanisms.additive import GaussianMechanism, LaplaceMechanism


def noise_quantile(mechanism, confidence: float = 0.95, ratio: float = 0.0) -> float:
    r"""The q with :math:`\Pr[|z_1 - r z_2| \le q]` = confidence, of two independent draws.

    Gauss: :math:`\sigma \sqrt{1 + r^2}\, \Phi^{-1}((1 + c)/2)`. Laplace, with :math:`a = |r|`:
    :math:`\Pr[|z_1 - r z_2| > b t] = (e^{-t} - a^2 e^{-t/a}) / (1 - a^2)`, inverted.

    Args:
        mechanism: Whose noise it is.
        confidence: c in (0, 1).
        ratio: r; 0 for the quantile of a single draw.

    Raises:
        InputError: naming the argument.
    """
    confidence = check_finite_number("confidence", confidence, above=0, below=1)
    a = abs(check_finite_number("ratio", ratio))
    if isinstance(mechanism, GaussianMechanism):
        return mechanism.stddev * math.hypot(1, a) * float(special.ndtri((1 + confidence) / 2))
    if not isinstance(mechanism, LaplaceMechanism):
        raise InputError(f"Expected mechanism to be Laplace or Gaussian, got {type(mechanism).__name__}.")
    largest = 2 * (1 + a) * (1 - math.log1p(-confidence))
    found = optimize.brentq(lambda t: _laplace_tail(t, a) - (1 - confidence), 0.0, largest, xtol=1e-13)
    return mechanism.scale * float(found)


def _laplace_tail(t: float, a: float) -> float:
    """Pr[|z1 - a z2| > t] for unit scales."""
    if a == 0:
        return math.exp(-t)
    if a > 1:
        return _laplace_tail(t / a, 1 / a)
    if 1 - a < 1e-6:  # the limit, where the quotient would cancel
        return math.exp(-t) * (1 + t / 2)
    return (math.exp(-t) - a**2 * math.exp(-t / a)) / (1 - a**2)


def ratio_interval(total: float, count: float, mechanism, confidence: float = 0.95) -> tuple[float, float, float]:
    """Estimate and interval of S/N from what was released of S and N.

    Args:
        total: S under the mechanism's noise.
        count: N under independent noise of the same scale.
        mechanism: The Laplace or Gaussian mechanism that both went through.
        confidence: In (0, 1).

    Returns:
        Estimate, low end, high end. Cutting them to a range that is known beforehand costs no coverage.

    Raises:
        InputError: naming the argument, or if the noise leaves open whether the count is above zero.

    Source: Fieller 1954, with the noise's own distribution in place of Student's.
    """
    total, count = check_finite_number("total", total), check_finite_number("count", count)
    if count <= noise_quantile(mechanism, confidence):
        raise InputError(
            f"Expected a released count well above its noise ({noise_quantile(mechanism, confidence):.3g}), "
            f"got count={count:.6g}; merge small groups, or spend a larger epsilon."
        )
    estimate = total / count

    def outside(m: float) -> float:
        return abs(total - m * count) - noise_quantile(mechanism, confidence, m)

    ends = []
    for sign in (-1, 1):
        reach = noise_quantile(mechanism, confidence, estimate) / count
        while outside(estimate + sign * reach) <= 0:
            reach *= 2
        ends.append(float(optimize.brentq(outside, estimate, estimate + sign * reach, xtol=1e-13)))
    return estimate, ends[0], ends[1]
