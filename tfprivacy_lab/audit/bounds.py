"""What an attack's success proves about ε, at a stated confidence.

(ε, δ)-DP bounds every attacker: for any set of outcomes, :math:`TPR \\le e^\\varepsilon FPR + \\delta`,
and the same with members and non-members exchanged (Kairouz et al. 2015, Theorem 2.1). An attacker who
does better than ε allows shows that the model is not (ε, δ)-DP.

Not covered: that theorem speaks of one example across many trainings. Here one training is attacked
through many examples, which share a model and are therefore not independent, so the bound is a
*heuristic* audit of the released model, not a proof. It never shows that a guarantee holds.
"""

from __future__ import annotations

import warnings

import numpy as np

from tfprivacy_lab import tf_privacy
from tfprivacy_lab.checks import InputError, check_all_finite, check_finite_number, check_positive_int


class PrivacyViolationWarning(UserWarning):
    """An attack did better than the claimed ε allows."""


def clopper_pearson(successes, trials: int, confidence: float = 0.95):
    """Exact two-sided interval of a binomial proportion (Clopper & Pearson 1934), elementwise.

    Args:
        successes: Whole number(s) in [0, trials].
        trials: Number of trials, >= 1.
        confidence: In (0, 1).

    Returns:
        The low and the high end, arrays of the shape of ``successes``.

    Raises:
        InputError: if ``trials`` or ``confidence`` is out of range.
    """
    from scipy import stats

    trials = check_positive_int("trials", trials)
    confidence = check_finite_number("confidence", confidence, above=0, below=1)
    k = np.asarray(successes, dtype=np.float64)
    tail = (1 - confidence) / 2
    # beta.ppf is undefined at a zero shape, where the interval's end is known.
    low = np.where(k > 0, stats.beta.ppf(tail, np.maximum(k, 1), trials - k + 1), 0.0)
    high = np.where(k < trials, stats.beta.ppf(1 - tail, k + 1, np.maximum(trials - k, 1)), 1.0)
    return low, high


def ratio_epsilon(numerator, numerator_trials, denominator, denominator_trials, delta, confidence):
    """ε that :math:`p_1 \\le e^\\varepsilon p_0 + \\delta` forces, elementwise; -inf where it forces none.

    :math:`\\ln((\\underline{p_1} - \\delta) / \\overline{p_0})`, both ends from two-sided Clopper–Pearson
    intervals: each fails with probability α/2, so both hold with the stated confidence.
    """
    p1, _ = clopper_pearson(numerator, numerator_trials, confidence)
    _, p0 = clopper_pearson(denominator, denominator_trials, confidence)
    forced = np.maximum(p1 - delta, 0)
    with np.errstate(divide="ignore"):
        return np.log(forced) - np.log(p0)


def epsilon_lower_bound(member_scores, nonmember_scores, delta: float, seed: int, confidence: float = 0.95) -> dict:
    """Lower bound on ε from attack scores, its threshold chosen on other examples than it is tested on.

    A random half of the scores picks the threshold and which of the four tests of the theorem to make
    (members above, non-members below, and both the other way round); the other half makes that single
    test, so the stated confidence is not spent on the search.

    Args:
        member_scores: (m,) finite, higher for "member", m >= 2.
        nonmember_scores: (n,) finite, n >= 2.
        delta: The δ of the claim, in [0, 1).
        seed: Whole number >= 0, decides the halves.
        confidence: In (0.5, 1).

    Returns:
        ``epsilon_lower_bound`` (>= 0), ``selected_on`` (the bound on the choosing half, optimistic, for
        comparing attacks only), ``largest_possible`` (what these numbers of examples could show at
        most), ``test`` (which of the four), ``threshold`` (None: never a member), ``counts`` (hits and
        trials of the numerator, then of the denominator).

    Raises:
        InputError: naming the argument, if one is out of range.

    Not covered: dependence between examples of one training (see the module).
    """
    members, nonmembers = check_scores(member_scores, nonmember_scores)
    delta = check_finite_number("delta", delta, at_least=0, below=1)
    confidence = check_finite_number("confidence", confidence, above=0.5, below=1)
    draw = np.random.default_rng(check_positive_int("seed", seed, at_least=0))
    # Sorting first makes the halves independent of the order in which the examples came.
    choosing_members, testing_members = _halves(np.sort(members), draw)
    choosing_nonmembers, testing_nonmembers = _halves(np.sort(nonmembers), draw)

    thresholds = np.unique(np.r_[choosing_members, choosing_nonmembers, np.inf])
    tests = _tests(choosing_members, choosing_nonmembers, thresholds)
    searched = {name: ratio_epsilon(*test, delta, confidence) for name, test in tests.items()}
    name = max(searched, key=lambda key: searched[key].max())
    best = int(searched[name].argmax())

    test = _tests(testing_members, testing_nonmembers, thresholds[best : best + 1])[name]
    proved = float(ratio_epsilon(*test, delta, confidence)[0])
    ceiling = largest_provable_epsilon(testing_members.size, testing_nonmembers.size, delta, confidence)
    return {
        "epsilon_lower_bound": max(0.0, proved),
        "selected_on": max(0.0, float(searched[name][best])),
        "largest_possible": ceiling,
        "test": name,
        "threshold": float(thresholds[best]) if np.isfinite(thresholds[best]) else None,
        "counts": [int(test[0][0]), test[1], int(test[2][0]), test[3]],
    }


def largest_provable_epsilon(members: int, nonmembers: int, delta: float, confidence: float = 0.95) -> float:
    """The bound a flawless attack would reach on so many test examples: what the audit cannot see beyond."""
    members, nonmembers = check_positive_int("members", members), check_positive_int("nonmembers", nonmembers)
    ways = [(members, members, 0, nonmembers), (nonmembers, nonmembers, 0, members)]
    return max(0.0, *(float(ratio_epsilon(*way, delta, confidence)) for way in ways))


def tfp_epsilon_lower_bound(member_scores, nonmember_scores, confidence: float = 0.95, method="clopper-pearson"):
    """TensorFlow Privacy's own ``EpsilonLowerBound``, best of all thresholds.

    For comparison only: it takes δ = 0, and the largest of four bounds at each threshold without paying
    for the choice. On 100 pairs of samples of 5,000 from one distribution, at "95 %", it was above 0 in
    16 with ``clopper-pearson`` (up to 0.40) and in 96 with ``bailey`` (up to 1.27), the method that TFP's
    attack reports use; :func:`epsilon_lower_bound` in none.
    """
    tfp = tf_privacy.load("privacy_tests.epsilon_lower_bound", "EpsilonLowerBound")

    members, nonmembers = check_scores(member_scores, nonmember_scores)
    bound = tfp.EpsilonLowerBound(members, nonmembers, alpha=1 - confidence)
    with np.errstate(all="ignore"):
        top = bound.compute_epsilon_lower_bound(tfp.BoundMethod(method), k=1)
    return max(0.0, float(top[0])) if top.size else 0.0


def tfp_reported(member_scores, nonmember_scores) -> float | None:
    """The largest bound on ε of TF Privacy's report, of any of its methods; None where that is not installed.

    For comparison only: it is above 0 nearly always, see :func:`tfp_epsilon_lower_bound`.
    """
    package = "privacy_tests.membership_inference_attack.membership_inference_attack"
    try:
        attack = tf_privacy.load(package, "TF Privacy's report")
        tfp = tf_privacy.load("privacy_tests.epsilon_lower_bound", "TF Privacy's report")
    except InputError:
        return None
    bound = tfp.EpsilonLowerBound(member_scores, nonmember_scores, alpha=attack.EPSILON_ALPHA, two_sided_threshold=True)
    with np.errstate(all="ignore"):
        found = bound.compute_epsilon_lower_bounds(methods=attack.EPSILON_METHODS, k=attack.EPSILON_K)
    return max(filter(np.isfinite, (float(top[0]) for top in found.values() if top.size)), default=None)


def compare_with_accounted(
    lower_bound: float, accounted_epsilon: float | None, delta: float, confidence: float = 0.95
) -> dict:
    """Hold an attack's lower bound on ε against the ε that was accounted for.

    Args:
        lower_bound: From :func:`epsilon_lower_bound`, >= 0.
        accounted_epsilon: The claim at the same δ, > 0; None if nothing is claimed (a non-private model).
        delta: The δ of the claim.
        confidence: Of the lower bound.

    Returns:
        ``accounted_epsilon``, ``violation`` and ``verdict``, a sentence.

    Raises:
        InputError: naming the argument, if one is out of range.

    Warns:
        PrivacyViolationWarning: if the lower bound exceeds the claim.
    """
    lower_bound = check_finite_number("lower_bound", lower_bound, at_least=0)
    if accounted_epsilon is None:
        verdict = f"No epsilon is claimed; the attack shows epsilon >= {lower_bound:.3f} at delta={delta:g}."
        return {"accounted_epsilon": None, "violation": False, "verdict": verdict}
    accounted_epsilon = check_finite_number("accounted_epsilon", accounted_epsilon, above=0)
    violation = lower_bound > accounted_epsilon
    if violation:
        verdict = (
            f"VIOLATION: the attack shows epsilon >= {lower_bound:.3f} at delta={delta:g} with {confidence:.0%} "
            f"confidence, above the accounted {accounted_epsilon:.3f}. Do not release this model: look for an "
            "error in clipping, noise, sampling or accounting, or for members that were used elsewhere."
        )
        warnings.warn(verdict, PrivacyViolationWarning, stacklevel=2)
    else:
        verdict = (
            f"The attack shows epsilon >= {lower_bound:.3f}, the accountant states <= {accounted_epsilon:.3f} at "
            f"delta={delta:g}: no contradiction, which is not a proof that the claim holds."
        )
    return {"accounted_epsilon": accounted_epsilon, "violation": violation, "verdict": verdict}


def check_scores(member_scores, nonmember_scores) -> tuple[np.ndarray, np.ndarray]:
    """Both as float64 vectors of at least two finite numbers.

    Raises:
        InputError: naming the argument.
    """
    checked = []
    for name, value in (("member_scores", member_scores), ("nonmember_scores", nonmember_scores)):
        array = np.asarray(value)
        if array.dtype.kind not in "fiu" or array.ndim != 1 or array.size < 2:
            raise InputError(
                f"Expected {name} to be a vector of at least 2 real numbers, got shape {array.shape}, {array.dtype}."
            )
        check_all_finite(name, array)
        checked.append(array.astype(np.float64))
    return checked[0], checked[1]


def _halves(scores, draw):
    order = draw.permutation(scores.size)
    return scores[order[: scores.size // 2]], scores[order[scores.size // 2 :]]


def _tests(members, nonmembers, thresholds):
    """The four tests of the theorem, by name: (hits, trials) of numerator and denominator a threshold."""
    m, n = members.size, nonmembers.size
    tp = m - np.searchsorted(np.sort(members), thresholds, side="left")
    fp = n - np.searchsorted(np.sort(nonmembers), thresholds, side="left")
    return {
        "members above": (tp, m, fp, n),
        "non-members below": (n - fp, n, m - tp, m),
        "non-members above": (fp, n, tp, m),
        "members below": (m - tp, m, n - fp, n),
    }
