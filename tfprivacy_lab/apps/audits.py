"""What every trained model is asked: how good it is, for whom, and whether an attack tells its training rows."""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np
from scipy.special import softmax

from tfprivacy_lab import audit
from tfprivacy_lab.apps import evaluation
from tfprivacy_lab.apps.cases import Split


def attack(logits_of, parts: Split, *, delta: float, seed: int, epsilon: float | None = None) -> dict:
    """Membership inference on a model: as many training rows as test rows, both in random order.

    The trained attack takes equal numbers in any case, for its bound on ε to hold; here all attacks see the same rows.

    Args:
        logits_of: Inputs to logits (n, 2).
        parts: Whose train and test rows are attacked.
        delta: δ of the bound on ε.
        seed: Of the attack's folds.
        epsilon: The accountant's ε, if any.

    Returns:
        ``auc`` with ``auc_interval``, ``advantage``, ``advantage_without_leak``, ``epsilon_lower_bound``, and
        ``contradicts_claim``: whether that bound exceeds ``epsilon``.
    """
    rows = min(len(parts.train.y), len(parts.test.y))
    equal = [part.take(slice(0, rows)) for part in (parts.train, parts.test)]
    member, nonmember = (audit.Scores(logits_of(part.x), part.y) for part in equal)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", audit.PrivacyViolationWarning)
        found = audit.membership_inference(member, nonmember, delta, seed, accounted_epsilon=epsilon)
    best = {name: found["best"][name] for name in ("auc", "auc_interval", "advantage", "epsilon_lower_bound")}
    best["advantage_without_leak"] = found["advantage_without_leak"]
    return best | {"contradicts_claim": epsilon is not None and best["epsilon_lower_bound"] > epsilon}


def described(logits_of, parts: Split, delta: float, epsilon, spent, accountant: str, seed: int) -> dict:
    """A run as :func:`tfprivacy_lab.apps.tables.rows` takes it: quality, gaps between groups, and the attack.

    Args:
        logits_of: The model, inputs to logits (n, 2).
        parts: What it was trained on and not.
        delta: δ.
        epsilon: The target ε, or None without DP.
        spent: The accountant's ε, or None.
        accountant: Whose figure that is.
        seed: Of the run.
    """
    probabilities = softmax(np.asarray(logits_of(parts.test.x), np.float64), axis=1)[:, 1]
    y, groups = parts.test.y, parts.test.groups
    return {
        "epsilon": epsilon,
        "epsilon_spent": spent,
        "delta": delta if epsilon else None,
        "accountant": accountant if epsilon else None,
        "seed": seed,
        "quality": evaluation.quality(probabilities, y),
        "attack": attack(logits_of, parts, delta=delta, seed=seed, epsilon=spent),
        "gaps": {name: evaluation.group_gaps(probabilities, y, member) for name, member in groups.items()},
    }


def control(parts: Split, *, delta: float, seed: int = 0, rows: int = 200) -> dict:
    """Attack a network made to memorise a few rows with drawn labels: a leak that is there and must be found."""
    import keras

    from tfprivacy_lab.experiments.audits import train_without_dp
    from tfprivacy_lab.models.architectures import outputs

    rng = np.random.default_rng(seed)
    drawn = [dataclasses.replace(part, y=rng.integers(0, 2, len(part.y))) for part in (parts.train, parts.test)]
    few = Split(parts.pilot, drawn[0].take(slice(0, rows)), drawn[1])
    hidden = [keras.layers.Dense(256, "relu") for _ in range(2)]
    width = keras.layers.Input((few.train.x.shape[1],))
    network = keras.Sequential([width, *hidden, keras.layers.Dense(2)])
    train_without_dp(network, few.train.x.astype(np.float32), few.train.y, epochs=300, seed=seed, learning_rate=3e-3)
    return attack(lambda x: outputs(network, x), few, delta=delta, seed=seed)
