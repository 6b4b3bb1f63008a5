"""TF Privacy's membership attacks (package tensorflow-empirical-privacy), run quietly and from a seed."""

from __future__ import annotations

import contextlib
import logging
import warnings

import numpy as np

from tfprivacy_lab import tf_privacy
from tfprivacy_lab.audit import attackers

_KINDS = {
    "loss_threshold": "THRESHOLD_ATTACK",
    "entropy_threshold": "THRESHOLD_ENTROPY_ATTACK",
    "logistic_regression": "LOGISTIC_REGRESSION",
}


def scores(member, nonmember, seed: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """As :func:`.attackers.scores`, by TF Privacy.

    Raises:
        InputError: if TF Privacy's attacks are not installed.
    """
    trained = _KINDS["logistic_regression"]
    results = _run_tfp(member, nonmember, seed, [kind for kind in _KINDS.values() if kind != trained])
    results |= _run_tfp(*attackers.as_many_of_either(member, nonmember, seed), seed, [trained])
    found = {name: results[kind] for name, kind in _KINDS.items()}
    return {name: (one.membership_scores_train, one.membership_scores_test) for name, one in found.items()}


def _run_tfp(member, nonmember, seed: int, kinds) -> dict:
    """TFP's result object for each attack, by TFP's name."""
    with _quiet(), _numpy_seed(seed):
        package = "privacy_tests.membership_inference_attack"
        attack = tf_privacy.load(f"{package}.membership_inference_attack", "TF Privacy's attacks")
        kept = tf_privacy.load(f"{package}.data_structures", "TF Privacy's attacks")

        # Only the trained attack reads the logits, as features.
        logits_train, logits_test = attackers.standardised(member, nonmember)
        # Losses and entropies are handed over because TFP's own clip probabilities at 1e-8 and 1e-30,
        # and take logits whose rows happen to sum to 1 for probabilities.
        data = kept.AttackInputData(
            logits_train=logits_train,
            logits_test=logits_test,
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
