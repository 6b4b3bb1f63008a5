r"""ε and δ of one Gaussian mechanism of sensitivity 1, in closed form.

.. math:: \delta(\epsilon) = \Phi(1/2\sigma - \epsilon\sigma) - e^\epsilon \Phi(-1/2\sigma - \epsilon\sigma)

T of them on the same record are one of σ / √T; of different noise, 1/σ² adds up.

Source: Balle and Wang 2018, Thm 8. No TensorFlow is imported here.
"""

from __future__ import annotations

import math

from scipy import optimize, special

# Relative, of a logarithm and of a term's value; what a term's argument is wrong by comes on top.
_ROUNDING = 2.0**-49


def log_delta(noise_multiplier: float, epsilon: float) -> float:
    """log δ at ε, rounded upwards.

    With a = εs - 1/(2s) and b = εs + 1/(2s), both terms of the profile carry exp(-a²/2), because
    ε - b²/2 = -a²/2: taken out, nothing underflows and little cancels.
    """
    s = noise_multiplier
    a, b = epsilon * s - 0.5 / s, epsilon * s + 0.5 / s
    if epsilon == 0:
        found = math.log(special.erf(0.5 / (s * math.sqrt(2))))
    elif a < -5:
        # erfcx of a would overflow; here δ is close to one, and Φ(-a) as good as exact.
        found = math.log(special.ndtr(-a) - math.exp(-(a * a) / 2) * special.erfcx(b / math.sqrt(2)) / 2)
    elif a > 1e150:
        return -math.inf  # a² would overflow
    else:
        first, second = special.erfcx(a / math.sqrt(2)), special.erfcx(b / math.sqrt(2))
        # A term moves by at most (1 + |a|) times what a and b are wrong by, which is a part of b.
        wrong = min(1.0, _ROUNDING * (1 + abs(a)) * (1 + b))
        found = -(a * a) / 2 + math.log((first - second + wrong * first) / 2)
    return min(0.0, found + _ROUNDING * (1 + abs(found)))


def gaussian_epsilon(noise_multiplier: float, delta: float) -> float:
    """Exact ε of one Gaussian mechanism of sensitivity 1: the smallest ε >= 0 for δ, rounded upwards."""
    aim = math.log(delta)
    if log_delta(noise_multiplier, 0.0) <= aim:
        return 0.0
    high = 1.0
    while log_delta(noise_multiplier, high) > aim:
        high *= 2
    # Under very much noise ε is so small that its exponent alone takes hundreds of halvings.
    found = optimize.brentq(
        lambda at: log_delta(noise_multiplier, at) - aim, 0.0, high, xtol=1e-300, rtol=1e-14, maxiter=10_000
    )
    while log_delta(noise_multiplier, found) > aim:
        found *= 1 + 1e-14
    return float(found)
