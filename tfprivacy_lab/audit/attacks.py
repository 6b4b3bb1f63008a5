"""Membership inference: was this example in the training set?

Attacks on a model's outputs (:mod:`.attackers`): two thresholds, on the loss and on the modified
prediction entropy, and a logistic regression on the logits and the loss.

Rules for the numbers to mean anything: members must be examples that the model was really trained on;
non-members come from the same distribution and were never used, not even to choose a model; which is
which was decided at random. A shift between the two sets looks like a leak.

Not covered: stronger attackers (shadow models, planted canaries, white box), and proof. One training is
attacked, its examples share a model and are not independent: the bound on ε is a heuristic audit of the
released model. A weak attack shows little: no leak found is not no leak.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from tfprivacy_lab.audit import attackers, bounds, roc, tfp_attacks
from tfprivacy_lab.checks import (
    InputError,
    check_choice,
    check_finite_number,
    check_matrix,
    check_positive_int,
    settle,
)

FPR_LEVELS = (0.001, 0.01)
# The regression splits in 2 folds, then in 3 to choose the regularisation; below this a fold has hardly anyone.
FEWEST_EXAMPLES = 20
# Whose attacks: ours, or TF Privacy's, where they are installed.
_BY = {"tfprivacy_lab": attackers.scores, "tf_privacy": tfp_attacks.scores}


@dataclasses.dataclass(frozen=True)
class Scores:
    """What the model says about some examples whose classes are known.

    Args:
        logits: (n, c) finite real numbers, c >= 2: the outputs before softmax.
        labels: (n,) whole numbers in [0, c).

    Raises:
        InputError: if the shapes disagree, something is not finite, a label is out of range, or the
            logits are probabilities.
    """

    logits: np.ndarray
    labels: np.ndarray

    def __post_init__(self):
        logits = check_matrix("logits", self.logits)
        labels = np.asarray(self.labels)
        rows, classes = logits.shape
        if (largest := np.abs(logits).max()) > np.finfo(np.float32).max:
            raise InputError(f"Expected logits within float32's range, got one of size {largest:.3g}; scale them down.")
        if classes < 2:
            raise InputError(f"Expected logits to have at least 2 columns, one a class, got shape {logits.shape}.")
        if labels.dtype.kind not in "iu" or labels.shape != (rows,):
            raise InputError(
                f"Expected labels to be whole numbers of shape ({rows},), one for each row of logits, "
                f"got shape {labels.shape}, {labels.dtype}."
            )
        if labels.min() < 0 or labels.max() >= classes:
            wrong = int(np.argmax((labels < 0) | (labels >= classes)))
            raise InputError(f"Expected labels in [0, {classes}), got {labels[wrong]} at index {wrong}.")
        if logits.min() >= 0 and np.abs(logits.sum(axis=1) - 1).max() < 1e-4:
            raise InputError(
                "Expected logits, got rows of probabilities that sum to 1; take the model's output before "
                "softmax, or pass np.log(np.maximum(probabilities, 1e-30))."
            )
        settle(self, logits=logits, labels=labels.astype(np.int64))

    def __len__(self) -> int:
        return len(self.labels)

    def losses(self) -> np.ndarray:
        """Cross-entropy of each example, (n,), exact also where softmax rounds to 0 or 1.

        :math:`\\ln(1 + \\sum_{j \\ne y} e^{z_j - z_y})`. Taking the log of a softmax instead would give
        all confident examples the same loss and blunt the attack.
        """
        own = np.take_along_axis(self.logits, self.labels[:, None], axis=1)[:, 0]
        return np.logaddexp(0, _log_sum_exp_without(self.logits, self.labels) - own)

    def entropies(self) -> np.ndarray:
        """Modified prediction entropy of each example, (n,) (Song & Mittal 2021, eq. 8).

        :math:`-(1-p_y)\\ln p_y - \\sum_{j \\ne y} p_j \\ln(1-p_j)`, from logarithms throughout.
        """
        own = self.labels[:, None]
        top = self.logits.argmax(axis=1)
        highest = np.take_along_axis(self.logits, top[:, None], axis=1)[:, 0]
        others = _log_sum_exp_without(self.logits, top)
        total = np.logaddexp(highest, others)
        log_p = self.logits - total[:, None]
        # Only the most likely class can come near 1, where 1 - p would cancel.
        log_not_p = np.log1p(-np.minimum(np.exp(log_p), 0.5))
        np.put_along_axis(log_not_p, top[:, None], (others - total)[:, None], axis=1)
        terms = np.exp(log_p) * log_not_p
        np.put_along_axis(terms, own, 0.0, axis=1)
        not_own = np.take_along_axis(log_not_p, own, axis=1)[:, 0]
        return np.exp(not_own) * self.losses() - terms.sum(axis=1)


def membership_inference(
    member: Scores,
    nonmember: Scores,
    delta: float,
    seed: int,
    *,
    accounted_epsilon: float | None = None,
    confidence: float = 0.95,
    by: str = "tfprivacy_lab",
) -> dict:
    """Attack one released model and report what leaked, ready for ``metrics.json``.

    Args:
        member: Of examples that the model was trained on, at least 20.
        nonmember: Of examples it never saw, same distribution, at least 20. The trained attack uses as many of
            either side, chosen at random.
        delta: The δ at which ε is bounded, in [0, 1).
        seed: Whole number >= 0. Same seed, same numbers, whatever the order of the examples.
        accounted_epsilon: The ε claimed at ``delta``, to be held against the attack; None if none is.
        confidence: Of every interval and bound, in (0.5, 1).
        by: Whose attacks: "tfprivacy_lab", or "tf_privacy", which give the same where both run.

    Returns:
        ``members``, ``nonmembers``, ``delta``, ``confidence``, ``seed``, ``auc_interval_method``,
        ``advantage_without_leak`` (what the advantage of a useless threshold stays below, at the
        confidence), ``caveat``;
        ``attacks``: by name, each ``auc``, ``auc_interval``, ``advantage`` (largest \\|TPR - FPR\\|),
        ``tpr_at_fpr`` (by level: ``tpr``, ``interval``, ``reason``), ``epsilon_lower_bound``,
        ``epsilon`` (see :func:`.bounds.epsilon_lower_bound`; also ``tfp_reported``, what TFP's report
        prints, see :func:`.bounds.tfp_reported`), ``roc``
        (``fpr``, ``tpr``);
        ``best``: the largest ``auc``, ``advantage`` and ``tpr_at_fpr`` with the ``*_attack`` they are of
        (the largest of several errs towards leakage), and the ``epsilon_lower_bound`` of the attack that
        did best on the choosing half, so that its confidence holds;
        ``accounted``: see :func:`.bounds.compare_with_accounted`.

    Raises:
        InputError: naming the argument, if one is out of range.

    Warns:
        PrivacyViolationWarning: if the lower bound exceeds ``accounted_epsilon``.

    Not covered: see the module. The scores of the logistic regression come from two fits, each on the
    other half of the examples, and are treated as if from one.
    """
    member, nonmember = _check_pair(member, nonmember)
    delta = check_finite_number("delta", delta, at_least=0, below=1)
    seed = check_positive_int("seed", seed, at_least=0, at_most=2**32 - 1)
    confidence = check_finite_number("confidence", confidence, above=0.5, below=1)
    if accounted_epsilon is not None:
        accounted_epsilon = check_finite_number("accounted_epsilon", accounted_epsilon, above=0)

    by = check_choice("by", by, tuple(_BY))
    found = _BY[by](_ordered(member), _ordered(nonmember), seed)
    attacks = {name: _measure(*sides, delta, seed, confidence) for name, sides in found.items()}
    best = _best(attacks)
    accounted = bounds.compare_with_accounted(best["epsilon_lower_bound"], accounted_epsilon, delta, confidence)
    return {
        "members": len(member),
        "nonmembers": len(nonmember),
        "delta": delta,
        "confidence": confidence,
        "seed": seed,
        "auc_interval_method": "DeLong",
        "advantage_without_leak": _kolmogorov_quantile(len(member), len(nonmember), confidence),
        "caveat": "one trained model, dependent examples: a heuristic audit of the released model, not a proof",
        "attacks": attacks,
        "best": best,
        "accounted": accounted,
    }


def _check_pair(member, nonmember):
    """Both sides alike and large enough, or InputError."""
    for name, scores in (("member", member), ("nonmember", nonmember)):
        if not isinstance(scores, Scores):
            raise InputError(f"Expected {name} to be Scores(logits, labels), got {type(scores).__name__}.")
        if len(scores) < FEWEST_EXAMPLES:
            raise InputError(f"Expected {name} to hold at least {FEWEST_EXAMPLES} examples, got {len(scores)}.")
    if member.logits.shape[1] != nonmember.logits.shape[1]:
        raise InputError(
            "Expected member and nonmember to have the same number of classes, "
            f"got {member.logits.shape[1]} and {nonmember.logits.shape[1]}."
        )
    return member, nonmember


def _ordered(scores: Scores) -> Scores:
    """In an order that depends only on the values, so that random folds do too."""
    order = np.lexsort([scores.labels, *scores.logits.T])
    return Scores(scores.logits[order], scores.labels[order])


def _measure(members, nonmembers, delta, seed, confidence) -> dict:
    """All we report of one attack."""
    auc, low, high = roc.auc_interval(members, nonmembers, confidence)
    epsilon = bounds.epsilon_lower_bound(members, nonmembers, delta, seed, confidence)
    epsilon["tfp_reported"] = bounds.tfp_reported(members, nonmembers)
    _, found, accused = roc.counts_by_threshold(members, nonmembers)
    return {
        "auc": auc,
        "auc_interval": [low, high],
        "advantage": float(np.abs(found / len(members) - accused / len(nonmembers)).max()),
        "tpr_at_fpr": {f"{level:g}": roc.tpr_at_fpr(members, nonmembers, level, confidence) for level in FPR_LEVELS},
        "epsilon_lower_bound": epsilon.pop("epsilon_lower_bound"),
        "epsilon": epsilon,
        "roc": roc.roc_points(members, nonmembers),
    }


def _best(attacks: dict) -> dict:
    """The strongest figure of each kind and whose it is."""
    by_auc = max(attacks, key=lambda name: attacks[name]["auc"])
    by_advantage = max(attacks, key=lambda name: attacks[name]["advantage"])
    by_epsilon = max(attacks, key=lambda name: attacks[name]["epsilon"]["selected_on"])
    at_fpr = {}
    for level in attacks[by_auc]["tpr_at_fpr"]:
        found = {name: attack["tpr_at_fpr"][level] for name, attack in attacks.items()}
        strongest = max(found, key=lambda name: -1 if found[name]["tpr"] is None else found[name]["tpr"])
        told = found[strongest]["tpr"] is not None
        at_fpr[level] = {**found[strongest], "attack": strongest if told else None}
    return {
        "auc": attacks[by_auc]["auc"],
        "auc_interval": attacks[by_auc]["auc_interval"],
        "auc_attack": by_auc,
        "advantage": attacks[by_advantage]["advantage"],
        "advantage_attack": by_advantage,
        "tpr_at_fpr": at_fpr,
        "epsilon_lower_bound": attacks[by_epsilon]["epsilon_lower_bound"],
        "epsilon_largest_possible": attacks[by_epsilon]["epsilon"]["largest_possible"],
        "epsilon_attack": by_epsilon,
    }


def _kolmogorov_quantile(m, n, confidence):
    """Quantile of sup |TPR - FPR| when both sides have one distribution (Smirnov 1939, asymptotic)."""
    from scipy import stats

    return float(min(1.0, stats.kstwobign.ppf(confidence) * np.sqrt((m + n) / (m * n))))


def _log_sum_exp_without(logits, column):
    """log Σ exp over each row without one column, (n,)."""
    rest = logits.copy()
    np.put_along_axis(rest, column[:, None], -np.inf, axis=1)
    highest = rest.max(axis=1, keepdims=True)
    return (highest + np.log(np.exp(rest - highest).sum(axis=1, keepdims=True)))[:, 0]
