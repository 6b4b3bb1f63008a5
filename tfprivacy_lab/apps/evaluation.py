r"""How good and how even-handed a classifier of two classes is, from its probabilities, and intervals over seeds."""

from __future__ import annotations

import math

import numpy as np

from tfprivacy_lab.checks import InputError, check_finite_number, check_positive_int


def quality(probabilities, labels) -> dict:
    """Accuracy, AUC, Brier score and calibration error.

    Args:
        probabilities: Of label 1, (n,), in [0, 1].
        labels: 0 and 1, (n,), both present.

    Returns:
        ``accuracy``, of the decision at one half; ``auc``; ``brier``, the mean squared error of the probability;
        ``calibration_error``, see :func:`calibration_error`.

    Raises:
        InputError: if shapes or values do not fit.
    """
    probabilities, labels = _checked(probabilities, labels)
    from tfprivacy_lab.audit.roc import auc_interval

    return {
        "accuracy": float(((probabilities > 0.5) == labels).mean()),
        "auc": float(auc_interval(probabilities[labels == 1], probabilities[labels == 0])[0]),
        "brier": float(np.square(probabilities - labels).mean()),
        "calibration_error": calibration_error(probabilities, labels),
    }


def calibration_error(probabilities, labels, bins: int = 10) -> float:
    r"""Expected calibration error over bins of equally many rows.

    :math:`\sum_b \tfrac{n_b}{n} |\bar p_b - \bar y_b|` (Naeini et al. 2015; equal mass, Nixon et al. 2019). It is
    above 0 for a calibrated model too, by about :math:`\sqrt{\text{bins} \cdot \bar y (1 - \bar y) / n}` and less.

    Raises:
        InputError: if shapes or values do not fit.
    """
    probabilities, labels = _checked(probabilities, labels)
    bins = check_positive_int("bins", bins, at_most=len(labels))
    order = np.argsort(probabilities, kind="stable")
    parts = np.array_split(order, bins)
    return float(sum(len(p) * abs(probabilities[p].mean() - labels[p].mean()) for p in parts) / len(order))


def group_gaps(probabilities, labels, member) -> dict:
    """How much a group of people differs from all others, as the group's figure less the others'.

    Args:
        probabilities: Of label 1, (n,).
        labels: 0 and 1, (n,).
        member: Whether the row is of the group, (n,).

    Returns:
        ``rows`` of the group; gaps of ``accuracy``, of ``positive_rate`` (demographic parity), of
        ``true_positive_rate`` (equal opportunity, Hardt et al. 2016), and of ``calibration`` (mean probability less
        share of label 1).

    Raises:
        InputError: if either side has no row of label 1, or shapes do not fit.
    """
    probabilities, labels = _checked(probabilities, labels)
    member = np.asarray(member, bool)
    if member.shape != labels.shape:
        raise InputError(f"Expected member of shape {labels.shape}, got {member.shape}.")
    inside, outside = (_rates(probabilities[side], labels[side]) for side in (member, ~member))
    return {"rows": int(member.sum()), **{name: inside[name] - outside[name] for name in inside}}


def _rates(probabilities, labels) -> dict:
    if not (labels == 1).any():
        raise InputError("Expected rows of label 1 inside and outside the group, got a side without any.")
    decided = probabilities > 0.5
    return {
        "accuracy": float((decided == labels).mean()),
        "positive_rate": float(decided.mean()),
        "true_positive_rate": float(decided[labels == 1].mean()),
        "calibration": float((probabilities - labels).mean()),
    }


def mean_interval(values, confidence: float = 0.95) -> dict:
    r"""Mean of independent runs and Student's interval, :math:`\bar x \pm t_{k-1} s / \sqrt{k}`.

    Args:
        values: One figure a run, at least two.
        confidence: In (0.5, 1).

    Returns:
        ``mean``, ``low``, ``high``, ``runs``. Runs that share rows are not independent: the interval then says how
        figures vary over seeds, not over other people's data.

    Raises:
        InputError: naming the argument.
    """
    from scipy import stats

    values = np.asarray(values, np.float64)
    if values.ndim != 1 or len(values) < 2 or not np.isfinite(values).all():
        raise InputError(f"Expected values to be at least two finite numbers, got shape {values.shape}.")
    confidence = check_finite_number("confidence", confidence, above=0.5, below=1)
    half = stats.t.ppf((1 + confidence) / 2, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    mean = float(values.mean())
    return {"mean": mean, "low": float(mean - half), "high": float(mean + half), "runs": len(values)}


def _checked(probabilities, labels):
    probabilities, labels = np.asarray(probabilities, np.float64), np.asarray(labels)
    if probabilities.ndim != 1 or probabilities.shape != labels.shape or not len(labels):
        raise InputError(
            f"Expected probabilities and labels of one shape (n,), got {probabilities.shape} and {labels.shape}."
        )
    if not ((probabilities >= 0) & (probabilities <= 1)).all() or not np.isin(labels, (0, 1)).all():
        raise InputError("Expected probabilities in [0, 1] and labels 0 and 1.")
    return probabilities, labels.astype(np.int64)
