"""TF Privacy's membership attacks (package tensorflow-empirical-privacy), run quietly and from a seed."""

from __future__ import annotations

import contextlib
import logging
import warnings

import numpy as np

from tfprivacy_lab import tf_privacy

ATTACKS = {
    "loss_threshold": "THRESHOLD_ATTACK",
    "entropy_threshold": "THRESHOLD_ENTROPY_ATTACK",
    "logistic_regression": "LOGISTIC_REGRESSION",
}


def run(member, nonmember, seed: int) -> dict:
    """TFP's result object for each of :data:`ATTACKS`, by our name.

    Args:
        member: :class:`tfprivacy_lab.audit.Scores` of members, (m, c).
        nonmember: Of non-members, (n, c).
        seed: Of TFP's folds, and of the choice of examples where m and n differ.
    """
    trained = ("LOGISTIC_REGRESSION",)
    results = _run_tfp(member, nonmember, seed, [kind for kind in ATTACKS.values() if kind not in trained])
    # TFP trains on as many of either side and scores the rest by another model than those: a difference that is no
    # membership, and a bound above zero where nothing leaks. So it is given as many of either.
    size = min(len(member), len(nonmember))
    results |= _run_tfp(_some(member, size, seed), _some(nonmember, size, seed), seed, trained)
    return {name: results[kind] for name, kind in ATTACKS.items()}


def _some(scores, size: int, seed: int):
    """So many of the examples, at random, in their order."""
    if len(scores) == size:
        return scores
    chosen = np.sort(np.random.default_rng(seed).choice(len(scores), size, replace=False))
    return type(scores)(scores.logits[chosen], scores.labels[chosen])


def _run_tfp(member, nonmember, seed: int, kinds) -> dict:
    """TFP's result object for each attack, by TFP's name."""
    with _quiet(), _numpy_seed(seed):
        package = "privacy_tests.membership_inference_attack"
        attack = tf_privacy.load(f"{package}.membership_inference_attack", "TF Privacy's attacks")
        kept = tf_privacy.load(f"{package}.data_structures", "TF Privacy's attacks")

        # Only the trained attack reads the logits, as features: at one scale its solver converges.
        both = np.concatenate([member.logits, nonmember.logits])
        centre, scale = both.mean(axis=0), both.std(axis=0)
        scale[scale == 0] = 1
        # Losses and entropies are handed over because TFP's own clip probabilities at 1e-8 and 1e-30,
        # and take logits whose rows happen to sum to 1 for probabilities.
        data = kept.AttackInputData(
            logits_train=(member.logits - centre) / scale,
            logits_test=(nonmember.logits - centre) / scale,
            labels_train=member.labels,
            labels_test=nonmember.labels,
            loss_train=member.losses(),
            loss_test=nonmember.losses(),
            entropy_train=member.entropies(),
            entropy_test=nonmember.entropies(),
            loss_function_using_logits=True,
        )
        results = attack.run_attacks(data, attack_types=[kept.AttackType[kind] for kind in kinds])
    return {result.attack_type.name: result for result in results.single_attack_results}


@contextlib.contextmanager
def _numpy_seed(seed):
    """Seed NumPy's global generator, which TFP's attacks draw folds from, and give it back as it was."""
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(state)


@contextlib.contextmanager
def _quiet():
    """Keep the libraries' import notices and solver remarks from the user."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
