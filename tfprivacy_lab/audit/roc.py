"""The attacker's trade-off: ROC curve, AUC with its interval, true positives at few false alarms.

Everywhere a score is higher for "member", and the attacker says "member" when score >= threshold.
"""

from __future__ import annotations

import math

import numpy as np

from tfprivacy_lab.audit.bounds import check_scores, clopper_pearson
from tfprivacy_lab.checks import check_finite_number, check_positive_int


def counts_by_threshold(member_scores, nonmember_scores) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Thresholds in falling order, with the members and non-members at or above each.

    The first threshold is infinity (nobody is called a member); tied scores share one threshold, so
    the answer does not depend on the order of the examples.
    """
    members, nonmembers = np.sort(member_scores), np.sort(nonmember_scores)
    thresholds = np.unique(np.concatenate([members, nonmembers]))[::-1]
    true_positives = members.size - np.searchsorted(members, thresholds, side="left")
    false_positives = nonmembers.size - np.searchsorted(nonmembers, thresholds, side="left")
    return np.r_[np.inf, thresholds], np.r_[0, true_positives], np.r_[0, false_positives]


def roc_points(member_scores, nonmember_scores, max_points: int = 500) -> dict:
    """The ROC curve as lists to plot, thinned where the eye cannot see it.

    Half of the kept false-positive counts are spaced evenly, half geometrically, so every one of the
    lowest counts stays: the end that matters on log axes. At each kept count both ends of the vertical
    step stay, so the highest TPR at a kept FPR is exact.

    Args:
        member_scores: (m,) finite, higher for "member".
        nonmember_scores: (n,) finite.
        max_points: At most this many points, >= 20.

    Returns:
        ``{"fpr": [...], "tpr": [...]}``, both rising from 0 to 1.

    Raises:
        InputError: naming the argument, if one is out of range.
    """
    members, nonmembers = check_scores(member_scores, nonmember_scores)
    max_points = check_positive_int("max_points", max_points, at_least=20)
    _, tp, fp = counts_by_threshold(members, nonmembers)
    n = nonmembers.size
    each = max_points // 4 - 1
    wanted = np.unique(np.r_[0, np.geomspace(1, n, each).round(), np.linspace(0, n, each).round()])
    present, first = np.unique(fp, return_index=True)
    last = np.r_[first[1:], fp.size] - 1
    kept = np.unique(np.minimum(np.searchsorted(present, wanted), present.size - 1))
    where = np.unique(np.r_[first[kept], last[kept]])
    return {"fpr": (fp[where] / n).tolist(), "tpr": (tp[where] / members.size).tolist()}


def tpr_at_fpr(member_scores, nonmember_scores, fpr: float, confidence: float = 0.95) -> dict:
    """The share of members found while at most a share ``fpr`` of non-members is accused.

    :math:`\\max_t \\{ TPR(t) : FPR(t) \\le fpr \\}`, no interpolation (Carlini et al. 2022, section III).

    Args:
        member_scores: (m,) finite, higher for "member".
        nonmember_scores: (n,) finite.
        fpr: Allowed false-positive rate, in (0, 1).
        confidence: Of the interval, in (0.5, 1).

    Returns:
        ``tpr``, ``interval`` [low, high] and ``reason``. With fewer than 1/fpr non-members not one
        false accusation is allowed for, and the rate cannot be told: ``tpr`` and ``interval`` are None
        and ``reason`` says so. The Clopper–Pearson interval treats the threshold as fixed.

    Raises:
        InputError: naming the argument, if one is out of range.
    """
    members, nonmembers = check_scores(member_scores, nonmember_scores)
    fpr = check_finite_number("fpr", fpr, above=0, below=1)
    # The tolerance keeps 0.01 * 100 from becoming no accusation at all.
    allowed = math.floor(fpr * nonmembers.size + 1e-9)
    if allowed < 1:
        needed = math.ceil(1 / fpr - 1e-9)
        reason = f"{nonmembers.size} non-members are too few for an FPR of {fpr:g}: it needs at least {needed}"
        return {"tpr": None, "interval": None, "reason": reason}
    _, tp, fp = counts_by_threshold(members, nonmembers)
    found = int(tp[fp <= allowed].max())
    low, high = clopper_pearson(found, members.size, confidence)
    return {"tpr": found / members.size, "interval": [float(low), float(high)], "reason": None}


def auc_interval(member_scores, nonmember_scores, confidence: float = 0.95) -> tuple[float, float, float]:
    """AUC and its DeLong interval.

    :math:`AUC = P(s_{in} > s_{out}) + \\tfrac12 P(s_{in} = s_{out})`; its variance from the two sets of
    placement values (DeLong, DeLong & Clarke-Pearson 1988), a normal interval cut to [0, 1]. Where the
    estimated variance is 0 (perfect separation, or nothing but ties) that interval would be a point;
    Hoeffding's bound for a U-statistic, :math:`\\sqrt{\\ln(2/\\alpha) / (2 \\min(m, n))}` (Hoeffding
    1963, section 5), takes its place.

    Args:
        member_scores: (m,) finite, m >= 2.
        nonmember_scores: (n,) finite, n >= 2.
        confidence: In (0.5, 1).

    Returns:
        The AUC, and the interval's low and high end.

    Raises:
        InputError: naming the argument, if one is out of range.
    """
    from scipy import stats

    members, nonmembers = check_scores(member_scores, nonmember_scores)
    confidence = check_finite_number("confidence", confidence, above=0.5, below=1)
    member_places = _placement(members, nonmembers)
    nonmember_places = 1 - _placement(nonmembers, members)
    auc = float(member_places.mean())
    variance = member_places.var(ddof=1) / members.size + nonmember_places.var(ddof=1) / nonmembers.size
    if variance > 0:
        reach = stats.norm.ppf((1 + confidence) / 2) * math.sqrt(variance)
    else:
        reach = math.sqrt(math.log(2 / (1 - confidence)) / (2 * min(members.size, nonmembers.size)))
    return auc, max(0.0, auc - reach), min(1.0, auc + reach)


def _placement(scores, others):
    """For each score the share of ``others`` below it, ties counted half."""
    others = np.sort(others)
    below = np.searchsorted(others, scores, side="left") + np.searchsorted(others, scores, side="right")
    return below / (2 * others.size)
