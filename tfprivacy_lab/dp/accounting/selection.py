"""What it costs to choose the best of several runs, when only the best is released.

Running K times and keeping the best costs as much as K runs if K is fixed. If K is random, and secret, it costs
little more than one run (Liu and Talwar 2019; Papernot and Steinke 2022).

No TensorFlow is imported here.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import secrets

from dp_accounting import dp_event, rdp
from scipy import optimize

from tfprivacy_lab.checks import InputError, check_choice, check_finite_number, settle
from tfprivacy_lab.dp.accounting import adjacency, composition, gaussian

_LARGEST_MEAN = 1e6


@dataclasses.dataclass(frozen=True)
class Repetitions:
    r"""The distribution of the number K of runs that a search makes.

    ``negative_binomial`` (truncated: K >= 1), with shape :math:`\eta` and :math:`\gamma` fixed by the mean:
    :math:`\Pr[K = k] \propto (1 - \gamma)^k \prod_{l<k} (l + \eta) / (l + 1)`. Shape 1 is the geometric
    distribution, shape 0 the logarithmic. ``poisson``: K may be 0, and then nothing of the data may be released.

    Attributes:
        distribution: ``negative_binomial`` or ``poisson``.
        mean: E[K], at least 1 (above 1 for negative_binomial).
        shape: η in [0, 100]; of no meaning for poisson.

    Source: Papernot and Steinke 2022, Def. 1, Thms 2 and 6.
    """

    distribution: str
    mean: float
    shape: float = 1.0

    def __post_init__(self):
        check_choice("distribution", self.distribution, ("negative_binomial", "poisson"))
        settle(self, shape=check_finite_number("shape", self.shape, at_least=0, at_most=100))
        if self.distribution == "poisson":
            settle(self, mean=check_finite_number("mean", self.mean, at_least=1, at_most=_LARGEST_MEAN))
        else:
            settle(self, mean=check_finite_number("mean", self.mean, above=1, at_most=_LARGEST_MEAN))

    @functools.cached_property
    def gamma(self) -> float:
        """γ of the truncated negative binomial, so that its mean is ``mean``.

        Raises:
            InputError: for the Poisson distribution, which has none.
        """
        if self.distribution == "poisson":
            raise InputError("Expected distribution='negative_binomial' for gamma, got distribution='poisson'.")
        if self.shape == 1:
            return 1 / self.mean
        return float(optimize.brentq(lambda gamma: self._mean_of(gamma) - self.mean, 1e-12, 1 - 1e-12, xtol=1e-15))

    def probability(self, runs: int) -> float:
        """Pr[K = runs]."""
        if self.distribution == "poisson":
            return math.exp(runs * math.log(self.mean) - self.mean - math.lgamma(runs + 1)) if runs >= 0 else 0.0
        if runs < 1:
            return 0.0
        gamma, shape = self.gamma, self.shape
        log_power = runs * math.log1p(-gamma)
        if shape == 0:
            return math.exp(log_power) / (runs * -math.log(gamma))
        log_product = math.lgamma(runs + shape) - math.lgamma(shape) - math.lgamma(runs + 1)
        return math.exp(log_power + log_product - math.log(math.expm1(-shape * math.log(gamma))))

    def draw(self) -> int:
        """How many runs to make, from the operating system's randomness.

        Guarantee: whoever learns K, or sees any run but the best, is not covered: keep it secret, and make all K
        runs. Drawing again because K is too large or too small voids the guarantee.
        """
        uniform, runs, cumulated = secrets.SystemRandom().random(), -1, 0.0
        while cumulated <= uniform:
            runs += 1
            chance = self.probability(runs)
            cumulated += chance
            if runs > self.mean and chance < 1e-18:
                break  # rounding: what is left of the tail is below the last digit of ``uniform``
        return runs

    def _mean_of(self, gamma: float) -> float:
        """E[K] of the truncated negative binomial."""
        if self.shape == 0:
            return (1 / gamma - 1) / -math.log(gamma)
        return self.shape * (1 - gamma) / (gamma * -math.expm1(self.shape * math.log(gamma)))


def epsilon_tuned(part, repetitions: Repetitions, delta: float) -> dict:
    """ε of releasing the best of K runs, K random and secret, and of each run alone.

    Args:
        part: What one run does, the same for each candidate: a :class:`.DpSgdRun` or an
            event. Candidates of different cost: give the dearest.
        repetitions: How K is drawn.
        delta: Target δ in (0, 1).

    Returns:
        ``epsilon`` (RDP; the analysis is in Rényi divergences), ``epsilon_one_run`` (PLD), ``epsilon_one_run_rdp``,
        ``epsilon_fixed_runs`` (PLD, of ceil(mean) runs all released: what the same search costs without this
        analysis), ``accountant``, ``adjacency``, ``delta``.

    Raises:
        InputError: naming the argument, or for events that RDP cannot bound.

    Guarantee: each run draws its candidate at random, independently of the data and the other runs, and its score,
    too, is covered (computed within the run's event or from public data only); the best by score is released, with
    its hyperparameters. Not covered: choosing by accuracy on private examples that the event does not count.

    Source: Papernot and Steinke 2022, Thms 2 and 6, by dp_accounting's RepeatAndSelectDpEvent.
    """
    gaussian.check_delta(delta)
    one = composition.compose(part, delta=delta)
    event = adjacency.plain(composition.event_of(part))
    shape = math.inf if repetitions.distribution == "poisson" else repetitions.shape
    selected = dp_event.RepeatAndSelectDpEvent(event, repetitions.mean, shape)
    accountant = rdp.RdpAccountant()
    if one["epsilon_rdp"] is None or not accountant.supports(selected):
        raise InputError("The cost of tuning is known for events that RDP can bound; use Gaussian noise.")
    runs = math.ceil(repetitions.mean)
    return {
        "epsilon": float(accountant.compose(selected).get_epsilon(delta)),
        "epsilon_one_run": one["epsilon"],
        "epsilon_one_run_rdp": one["epsilon_rdp"],
        "epsilon_fixed_runs": composition.epsilon_of(dp_event.SelfComposedDpEvent(event, runs), delta),
        "accountant": f"RDP ({gaussian.accountant_name().split('(')[1]}",
        "adjacency": one["adjacency"],
        "delta": float(delta),
    }


def pure_epsilon_tuned(epsilon: float, repetitions: Repetitions) -> float:
    r"""ε of the best of K runs, each ε-DP with δ = 0: :math:`(2 + \eta) \epsilon`.

    Args:
        epsilon: Pure ε of one run, > 0.
        repetitions: Truncated negative binomial; shape 1 gives the 3ε of Liu and Talwar 2019.

    Raises:
        InputError: for the Poisson distribution, which gives no pure guarantee.

    Source: Papernot and Steinke 2022, Thm 2 in the limit of infinite order.
    """
    check_finite_number("epsilon", epsilon, above=0)
    if repetitions.distribution == "poisson":
        raise InputError("Expected distribution='negative_binomial' for a pure guarantee, got distribution='poisson'.")
    return (2 + repetitions.shape) * epsilon
