"""The attacks themselves: a score for every example, higher for "member".

Two thresholds, on the loss (Yeom et al. 2018) and on the modified prediction entropy (Song & Mittal 2021), and a
logistic regression on the logits and the loss (Shokri et al. 2017, with the target's own outputs in place of shadow
models). They are those of TF Privacy (package tensorflow-empirical-privacy), written here so that they run where that
does not: the same features, folds and regularisation, and under one seed and scikit-learn the same scores.
"""

from __future__ import annotations

import warnings

import numpy as np

ATTACKS = ("loss_threshold", "entropy_threshold", "logistic_regression")
# Of the regression's regularisation, chosen in three folds of each half.
_STRENGTHS = np.logspace(-4, 2, 10)


def scores(member, nonmember, seed: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Each attack's scores of members and of non-members, by the names of :data:`ATTACKS`.

    Args:
        member: :class:`tfprivacy_lab.audit.Scores` of members, (m, c).
        nonmember: Of non-members, (n, c).
        seed: Of the regression's folds, and of the choice of examples where m and n differ.
    """
    return {
        "loss_threshold": (-member.losses(), -nonmember.losses()),
        "entropy_threshold": (-member.entropies(), -nonmember.entropies()),
        "logistic_regression": _trained(*as_many_of_either(member, nonmember, seed), seed),
    }


def as_many_of_either(member, nonmember, seed: int) -> tuple:
    """As many members as non-members, chosen at random, in their order.

    Of unequal sides the rest would be scored by another model than those it was trained beside: a difference that is
    no membership, and a bound above zero where nothing leaks.
    """
    size = min(len(member), len(nonmember))
    return _some(member, size, seed), _some(nonmember, size, seed)


def standardised(member, nonmember) -> tuple[np.ndarray, np.ndarray]:
    """Logits at one scale, at which the regression's solver converges."""
    both = np.concatenate([member.logits, nonmember.logits])
    centre, scale = both.mean(axis=0), both.std(axis=0)
    scale[scale == 0] = 1
    return (member.logits - centre) / scale, (nonmember.logits - centre) / scale


def _trained(member, nonmember, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Each half's scores by a regression on the other half."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedKFold
    from threadpoolctl import threadpool_limits

    sides = standardised(member, nonmember)
    features = np.concatenate(
        [np.column_stack([logits, one.losses()]) for logits, one in zip(sides, (member, nonmember), strict=True)]
    )
    is_member = np.repeat([1, 0], [len(member), len(nonmember)])
    order, found = np.random.RandomState(seed).permutation(len(features)), np.empty(len(features))
    # On so few columns, threads of the linear algebra only wait for each other.
    with warnings.catch_warnings(), np.errstate(all="ignore"), threadpool_limits(1):
        warnings.simplefilter("ignore")  # of a solver that stops early at strengths that are not chosen
        for one, other in StratifiedKFold(2).split(features[order], is_member[order]):
            search = GridSearchCV(LogisticRegression(), {"C": _STRENGTHS}, cv=3)
            search.fit(features[order[one]], is_member[order[one]])
            found[order[other]] = search.predict_proba(features[order[other]])[:, 1]
    return found[: len(member)], found[len(member) :]


def _some(scores, size: int, seed: int):
    if len(scores) == size:
        return scores
    chosen = np.sort(np.random.default_rng(seed).choice(len(scores), size, replace=False))
    return type(scores)(scores.logits[chosen], scores.labels[chosen])
