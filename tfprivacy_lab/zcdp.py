"""From zero-concentrated differential privacy to (ε, δ): for noise that one program adds, and that several add up."""

from __future__ import annotations

import math

from scipy import optimize

from tfprivacy_lab.checks import check_finite_number


def zcdp_epsilon(rho: float, delta: float) -> float:
    r"""The ε at δ that ρ-zero-concentrated DP implies.

    :math:`\varepsilon = \inf_{\alpha > 1} \alpha\rho + \frac{\ln(1/\alpha\delta)}{\alpha - 1} + \ln(1 - 1/\alpha)`

    Raises:
        InputError: naming the argument.

    Source: Canonne, Kamath and Steinke 2020, Prop. 12.
    """
    rho = check_finite_number("rho", rho, above=0)
    delta = check_finite_number("delta", delta, at_least=1e-300, below=1)

    def epsilon(log_excess: float) -> float:
        excess = math.exp(log_excess)  # α - 1
        return (1 + excess) * rho - (math.log(delta) + math.log1p(excess)) / excess - math.log1p(1 / excess)

    # Any α gives a valid ε; the best one balances the first two terms.
    middle = 0.5 * math.log(max(-math.log(delta), 1e-9) / rho)
    found = optimize.minimize_scalar(epsilon, bounds=(middle - 10, middle + 10), method="bounded")
    return max(0.0, float(found.fun))
