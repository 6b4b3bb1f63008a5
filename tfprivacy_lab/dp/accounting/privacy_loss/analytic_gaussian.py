r"""ε and δ of one Gaussian mechanism of sensitivity 1, in closed form.

.. math:: \delta(\epsilon) = \Phi(1/2\sigma - \epsilon\sigma) - e^\epsilon \Phi(-1/2\sigma - \epsilon\sigma)

T of them on the same record are one of σ / √T; of different noise, 1/σ² adds up.

Source: Balle and Wang 2018, Thm 8. No TensorFlow is imported here.
"""

from __future__ import annotations

import math

from scipy import optimize, special

# Relative to the logarithms below, which are of normal distribution functions to some 15 digits.
_ROUNDING = 2.0**-50


def log_delta(noise_multiplier: float, epsilon: float) -> float:
    """log δ at ε, rounded upwards."""
    s = noise_multiplier
    first, second = special.log_ndtr(0.5 / s - epsilon * s), epsilon + special.log_ndtr(-0.5 / s - epsilon * s)
    kept = -math.expm1(min(second - first, -1e-300))
    # Where the two all but cancel, as under much noise, what they are wrong by is a larger part of what is left.
    return first + math.log(kept) + _ROUNDING * (1 + abs(first) + abs(second) + epsilon) / kept


def epsilon(noise_multiplier: float, delta: float) -> float:
    """Smallest ε >= 0 for δ, rounded upwards."""
    aim = math.log(delta)
    if log_delta(noise_multiplier, 0.0) <= aim:
        return 0.0
    high = 1.0
    while log_delta(noise_multiplier, high) > aim:
        high *= 2
    found = optimize.brentq(lambda at: log_delta(noise_multiplier, at) - aim, 0.0, high, xtol=1e-300, rtol=1e-14)
    while log_delta(noise_multiplier, found) > aim:
        found *= 1 + 1e-14
    return float(found)
