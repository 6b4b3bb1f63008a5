"""An empirical check of differential privacy on two neighbouring datasets.

Differential privacy promises :math:`\\Pr[M(D_1) \\in S] \\le e^\\varepsilon \\Pr[M(D_2) \\in S] + \\delta` for
all neighbours and all S. Running M many times on one pair and counting one S can refute the promise, with
stated confidence; it can never prove it. It finds what a proof on paper cannot: noise that is not drawn,
or drawn too small, by the code that runs.

NumPy and SciPy only: the check takes outputs, whatever made them.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from scipy import stats

from tfprivacy_lab.checks import InputError, check_finite_number, check_positive_int

_MOST_THRESHOLDS = 2_000


@dataclasses.dataclass(frozen=True)
class OutputSet:
    """A set S of outputs: those whose statistic is at least (or at most) a threshold.

    Attributes:
        threshold: In the unit of the statistic.
        side: ">=" or "<=".
        likelier: "first" or "second": the dataset under which S has more probability than allowed.
    """

    threshold: float
    side: str
    likelier: str

    def __str__(self) -> str:
        return f"statistic {self.side} {self.threshold:g}, likelier under the {self.likelier} dataset"

    def count(self, statistics: np.ndarray) -> int:
        """How many of ``statistics`` lie in S."""
        inside = statistics >= self.threshold if self.side == ">=" else statistics <= self.threshold
        return int(np.count_nonzero(inside))


@dataclasses.dataclass(frozen=True)
class NeighbourCheck:
    """What the outputs on two neighbouring datasets say of a claimed (ε, δ).

    Attributes:
        verdict: "violated" if ``epsilon_interval`` lies above ``epsilon``, else "consistent".
        epsilon: The claimed ε.
        delta: The claimed δ.
        epsilon_estimate: :math:`\\ln((\\hat p_1 - \\delta) / \\hat p_2)`, of the one set tested; -inf or inf at
            the ends.
        epsilon_interval: The same from the ends of the confidence intervals. Its low end bounds the
            mechanism's ε from below; its high end bounds this set's alone.
        detectable: The largest ε that so many outputs could have refuted.
        confidence: With which the low end holds.
        tested: The set S, chosen on outputs that were not used to test it.
        probabilities: Intervals of Pr[M ∈ S] under the likelier and under the other dataset.
        outputs: Number of outputs counted, (likelier, other).
    """

    verdict: str
    epsilon: float
    delta: float
    epsilon_estimate: float
    epsilon_interval: tuple[float, float]
    detectable: float
    confidence: float
    tested: OutputSet
    probabilities: tuple[tuple[float, float], tuple[float, float]]
    outputs: tuple[int, int]


def check_neighbours(
    first, second, *, epsilon: float, delta: float = 0.0, statistic=None, confidence: float = 0.99, seed: int = 0
) -> NeighbourCheck:
    """Hold (ε, δ) against outputs of a mechanism on two neighbouring datasets.

    A random half of the outputs chooses S among half-lines of the statistic, both sides and both
    directions, by the normal score of :math:`p_1 - e^\\varepsilon p_2 - \\delta`; the other half tests that one
    S. So nothing is paid for the search.

    Args:
        first: Outputs of M(D1), independent runs along axis 0; numbers, or arrays of any shape.
        second: Outputs of M(D2), of the same shape but for axis 0.
        epsilon: Claimed ε >= 0.
        delta: Claimed δ in [0, 1).
        statistic: Takes an array of outputs, gives one number each. The best is any increasing function of
            the likelihood ratio. None if an output is one number.
        confidence: In (0.5, 1). A true claim is called violated with probability at most 1 - confidence.
        seed: Decides the halves, not the outputs.

    Returns:
        The verdict, with what it rests on.

    Raises:
        InputError: if an output or statistic is NaN, shapes do not fit, or there are too few outputs for the
            claim to be refuted whatever they are.

    Source: Clopper and Pearson 1934 for the intervals; sets and directions as in Gilbert and McMillan 2018
    and Ding et al. 2018, with the halves of the latter.
    """
    epsilon = check_finite_number("epsilon", epsilon, at_least=0, at_most=700)
    delta = check_finite_number("delta", delta, at_least=0, below=1)
    confidence = check_finite_number("confidence", confidence, above=0.5, below=1)
    rng = np.random.default_rng(check_positive_int("seed", seed, at_least=0))
    first, second = (
        rng.permutation(_statistics(name, outputs, statistic))
        for name, outputs in (("first", first), ("second", second))
    )
    halves = len(first) // 2, len(second) // 2
    trials = {"first": len(first) - halves[0], "second": len(second) - halves[1]}
    fewest, most = sorted(trials.values())
    detectable = _epsilons((fewest, 0), (fewest, most), delta, confidence)[1]
    if detectable <= epsilon:
        raise InputError(
            f"Expected enough outputs to refute epsilon={epsilon:g}, got {len(first)} and {len(second)}: they can "
            f"show at most {detectable:.3g}; run the mechanism more often."
        )
    chosen = _choose(first[: halves[0]], second[: halves[1]], epsilon, delta)
    tested = {"first": first[halves[0] :], "second": second[halves[1] :]}
    other = "second" if chosen.likelier == "first" else "first"
    counts = chosen.count(tested[chosen.likelier]), chosen.count(tested[other])
    outputs = trials[chosen.likelier], trials[other]
    estimate, low, high, probabilities = _epsilons(counts, outputs, delta, confidence)
    return NeighbourCheck(
        "violated" if low > epsilon else "consistent",
        epsilon, delta, estimate, (low, high), detectable, confidence, chosen, probabilities, outputs,
    )  # fmt: skip


def _choose(first, second, epsilon, delta) -> OutputSet:
    """The half-line on which the claim looks worst."""
    thresholds = np.unique(np.concatenate([first, second]))
    if len(thresholds) > _MOST_THRESHOLDS:
        thresholds = thresholds[np.linspace(0, len(thresholds) - 1, _MOST_THRESHOLDS).astype(int)]
    below = [np.searchsorted(np.sort(part), thresholds, "left") for part in (first, second)]
    up_to = [np.searchsorted(np.sort(part), thresholds, "right") for part in (first, second)]
    counts = {
        ">=": (len(first) - below[0], len(second) - below[1]),
        "<=": (up_to[0], up_to[1]),
    }
    best, chosen = -math.inf, None
    for side, (in_first, in_second) in counts.items():
        for likelier in ("first", "second"):
            k, n, m, trials = in_first, len(first), in_second, len(second)
            if likelier == "second":
                k, n, m, trials = m, trials, k, n
            # One success and one failure more than seen, so that no variance is zero.
            p1, p2 = (k + 1) / (n + 2), (m + 1) / (trials + 2)
            ratio = math.exp(epsilon)
            score = (p1 - ratio * p2 - delta) / np.sqrt(p1 * (1 - p1) / n + ratio**2 * p2 * (1 - p2) / trials)
            if score.max() > best:
                best, chosen = score.max(), OutputSet(float(thresholds[score.argmax()]), side, likelier)
    return chosen


def _epsilons(counts, outputs, delta, confidence):
    """ε of one set: estimate, low and high end, and the intervals of both probabilities."""
    intervals = tuple(_interval(k, n, confidence) for k, n in zip(counts, outputs, strict=True))
    (low1, high1), (low2, high2) = intervals
    estimate = _log_ratio(counts[0] / outputs[0] - delta, counts[1] / outputs[1])
    return estimate, _log_ratio(low1 - delta, high2), _log_ratio(high1 - delta, low2), intervals


def _interval(k: int, n: int, confidence: float) -> tuple[float, float]:
    """Clopper-Pearson; each end fails with half of 1 - confidence, so the two that make an ε hold together."""
    tail = (1 - confidence) / 2
    low = stats.beta.ppf(tail, k, n - k + 1) if k > 0 else 0.0
    high = stats.beta.ppf(1 - tail, k + 1, n - k) if k < n else 1.0
    return float(low), float(high)


def _log_ratio(numerator: float, denominator: float) -> float:
    if numerator <= 0:
        return -math.inf
    return math.log(numerator / denominator) if denominator > 0 else math.inf


def _statistics(name: str, outputs, statistic) -> np.ndarray:
    """One number an output, shape (m,)."""
    array = np.asarray(outputs)
    if array.dtype.kind not in "fiub" or array.ndim == 0 or len(array) < 2:
        raise InputError(f"Expected {name} to hold at least 2 outputs, real numbers, got {array.dtype} {array.shape}.")
    if np.isnan(array).any():
        raise InputError(f"Expected {name} without NaN: an output that is not a number is a set of its own to look at.")
    values = array if statistic is None else np.asarray(statistic(array))
    if values.shape != (len(array),) or values.dtype.kind not in "fiub":
        raise InputError(
            f"Expected one real number for each of the {len(array)} outputs in {name}, got {values.dtype} "
            f"{values.shape}; give a statistic that maps (m, ...) to (m,)."
        )
    if np.isnan(values).any():
        raise InputError(f"Expected the statistic of {name} without NaN.")
    return values.astype(np.float64)
