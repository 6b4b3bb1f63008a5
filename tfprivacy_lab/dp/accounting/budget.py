"""What a budget allows: the noise that a run needs, or the steps that fit, never one more.

No TensorFlow is imported here.
"""

from __future__ import annotations

import functools
import itertools
import math

from dp_accounting import rdp
from scipy import optimize

from tfprivacy_lab.checks import InputError, check_finite_number, check_positive_int
from tfprivacy_lab.dp.accounting import composition, gaussian
from tfprivacy_lab.dp.accounting.comparison import errors_only
from tfprivacy_lab.dp.accounting.gaussian import LARGEST_NOISE, SMALLEST_NOISE, DpSgdRun, epsilon_after
from tfprivacy_lab.dp.accounting.privacy_loss.mechanisms import Mechanism

# Whole orders of RDP take a hundredth of the others' time.
_QUICK_ORDERS = (2, 3, 4, 5, 6, 8, 11, 16, 23, 32, 45, 64, 128, 256, 512, 1024)
_LARGEST_EPSILON = 100.0


def calibrate_noise_multiplier(examples: int, batch_size: int, steps: int, epsilon: float, delta: float) -> float:
    """Smallest noise multiplier, to four decimals, with which a run stays within (ε, δ) by PLD.

    Args:
        examples: Number of private examples.
        batch_size: Expected Poisson batch size.
        steps: Number of steps.
        epsilon: Budget ε > 0.
        delta: Budget δ in (0, 1).

    Returns:
        The noise multiplier, rounded up so that the run's ε is at most ``epsilon``, never above it.

    Raises:
        InputError: naming the argument, or if no noise in [0.1, 1e5] meets the budget.

    Warns:
        LargeDeltaWarning: if δ is not below 1 / examples.
    """
    epsilon = check_finite_number("epsilon", epsilon, above=0, at_most=_LARGEST_EPSILON)
    delta = gaussian.check_delta(delta)
    run = DpSgdRun(examples, batch_size, LARGEST_NOISE, steps)
    gaussian.warn_of_large_delta(delta, run.examples)
    return _calibrated(run.examples, run.batch_size, run.steps, epsilon, delta)


@functools.lru_cache(256)
def _calibrated(examples, batch_size, steps, epsilon, delta) -> float:
    def excess_by_rdp(noise_multiplier: float) -> float:
        run = DpSgdRun(examples, batch_size, noise_multiplier, steps)
        with errors_only():  # of divergences that rounding leaves below zero, under much noise
            return float(rdp.RdpAccountant(_QUICK_ORDERS).compose(run.event()).get_epsilon(delta)) - epsilon

    def excess(noise_multiplier: float) -> float:
        return epsilon_after(DpSgdRun(examples, batch_size, noise_multiplier, steps), steps, delta) - epsilon

    by_rdp = excess_by_rdp(LARGEST_NOISE) <= 0
    if not by_rdp and excess(LARGEST_NOISE) > 0:
        raise InputError(
            f"No noise multiplier up to {LARGEST_NOISE:g} meets epsilon={epsilon:g} at delta={delta:g} in "
            f"{steps} steps; ask for a larger epsilon or fewer epochs."
        )
    if excess_by_rdp(SMALLEST_NOISE) <= 0:
        return SMALLEST_NOISE
    # RDP, of however few orders, allows hardly more than PLD: its answer is where to look from.
    high = LARGEST_NOISE
    if by_rdp:
        logs = math.log(SMALLEST_NOISE), math.log(LARGEST_NOISE)
        root = optimize.brentq(lambda log: excess_by_rdp(min(math.exp(log), LARGEST_NOISE)), *logs, xtol=0.01)
        high = min(math.exp(root + 0.01), LARGEST_NOISE)
    low = 0.9 * high
    while low > SMALLEST_NOISE and excess(low) <= 0:
        low, high = 0.9 * low, low
    low = max(low, SMALLEST_NOISE)
    if excess(low) <= 0:
        return low
    # At very small budgets the discretisation costs more than RDP loses.
    while excess(high) > 0:
        if high >= LARGEST_NOISE:
            raise InputError(f"No noise multiplier meets epsilon={epsilon:g} by PLD; ask for a larger epsilon.")
        high = min(1.1 * high, LARGEST_NOISE)
    root = optimize.brentq(excess, low, high, xtol=1e-6)
    noise_multiplier = math.ceil(root * 1e4) / 1e4
    while excess(noise_multiplier) > 0:
        noise_multiplier = round(noise_multiplier + 1e-4, 4)
    return noise_multiplier


def steps_within(run: gaussian.DpSgdRun, epsilon: float, delta: float, *, at_most: int | None = None) -> int:
    """Largest number of steps of ``run`` whose ε stays within the budget: never one above.

    Args:
        run: The run; its own ``steps`` is ignored.
        epsilon: Budget ε > 0.
        delta: Budget δ in (0, 1).
        at_most: Do not look further than this many steps; None looks up to a million.

    Returns:
        T >= 0 with ε(T) <= ``epsilon`` by PLD; ε(T + 1) is above it, or T is ``at_most``. 0: not even one step fits.

    Raises:
        InputError: naming the argument that is out of range.
    """
    check_finite_number("epsilon", epsilon, above=0)
    most = check_positive_int("at_most", 10**6 if at_most is None else at_most, at_least=0, at_most=10**8)
    gaussian.check_delta(delta)

    def spent_after(steps):
        if is_hopeless({run.step: steps}, epsilon):
            return math.inf
        return gaussian.epsilon_after(run, steps, delta)

    return largest_count(spent_after, epsilon, most)


def is_hopeless(mechanisms: dict[Mechanism, int], epsilon: float) -> bool:
    """Whether the mean privacy loss lies so far above ε that no δ in use makes up for it.

    Such a distribution is as costly to compute as its loss is large, and is not looked at: a search that meets one
    turns back, which at worst allows too little.
    """
    return composition.expected_loss(mechanisms) > min(2 * epsilon + 50, composition.LARGEST_LOSS)


def largest_count(spent_after, epsilon: float, at_most: int) -> int:
    """Largest count up to ``at_most`` with ``spent_after(count)`` <= ε, by few calls.

    Args:
        spent_after: From a count >= 1 to ε, infinite where it is too large to compute; it never falls.
        epsilon: Budget ε > 0.
        at_most: Look no further.

    Returns:
        0 if not even one fits.
    """
    first = spent_after(1) if at_most else math.inf
    if first > epsilon:
        return 0
    # A step that is free at this δ still gets a place on the logarithmic scale.
    low, spent_low = 1, max(first, 1e-9)
    high, spent_high = at_most + 1, math.inf
    for trial in itertools.count():
        if high - low <= 1:
            return low
        # ε grows like a power of the steps: a half at first, then what the ends of the bracket say. Every third
        # trial halves instead, which bounds the number of trials where the power is a bad guess.
        power = 2.0
        if math.isfinite(spent_high):
            power = math.log(high / low) / math.log(spent_high / spent_low)
        middle = low * (epsilon / spent_low) ** power
        if middle >= high or (trial % 3 == 2 and math.isfinite(spent_high)):
            middle = math.sqrt(low * high)
        middle = min(max(int(middle), low + 1), high - 1)
        spent = spent_after(middle)
        if spent <= epsilon:
            low, spent_low = middle, max(spent, spent_low)
        else:
            high, spent_high = middle, spent
