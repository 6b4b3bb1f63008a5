"""How many steps a budget allows: the last that fits, never one more.

No TensorFlow is imported here.
"""

from __future__ import annotations

import itertools
import math

from tfprivacy_lab.checks import check_finite_number, check_positive_int
from tfprivacy_lab.dp.accounting import composition, gaussian


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
    step = ("gaussian", run.sampling_probability, run.noise_multiplier)

    def spent_after(steps):
        if is_hopeless({step: steps}, epsilon):
            return math.inf
        return gaussian.epsilon_after(run, steps, delta)

    return largest_count(spent_after, epsilon, most)


def is_hopeless(mechanisms: dict[tuple, int], epsilon: float) -> bool:
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
