"""The attacks: known separations, planted leaks, refusals, determinism, and TF Privacy's own beside them."""

import json
import subprocess
import sys

import numpy as np
import pytest
from scipy import special, stats

from tfprivacy_lab import tf_privacy
from tfprivacy_lab.audit import PrivacyViolationWarning, Scores, membership_inference
from tfprivacy_lab.checks import InputError

DELTA = 1e-5


def scores_with_margin(margin):
    """Two classes, true class 0, its logit ahead by ``margin``: the loss falls with the margin."""
    return Scores(np.stack([margin, np.zeros_like(margin)], axis=1), np.zeros(margin.size, int))


def gaussian_pair(shift, size, seed):
    draw = np.random.default_rng(seed)
    return scores_with_margin(draw.normal(shift, 1, size)), scores_with_margin(draw.normal(0, 1, size))


def ten_classes(size, seed):
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, 10, size)
    logits = draw.normal(0, 3, (size, 10))
    logits[np.arange(size), labels] += 4
    return logits, labels


@pytest.fixture(scope="module")
def separated():
    return membership_inference(*gaussian_pair(1.0, 5000, seed=0), DELTA, seed=0)


@pytest.fixture(scope="module")
def alike():
    pair = Scores(*ten_classes(3000, 1)), Scores(*ten_classes(3000, 2))
    return membership_inference(*pair, DELTA, seed=0, accounted_epsilon=1.0)


@pytest.mark.parametrize("attack", ["loss_threshold", "entropy_threshold", "logistic_regression"])
def test_gaussian_shift_has_its_analytic_figures(separated, attack):
    found = separated["attacks"][attack]
    assert found["auc"] == pytest.approx(stats.norm.cdf(1 / 2**0.5), abs=0.02)
    assert found["auc_interval"][0] < stats.norm.cdf(1 / 2**0.5) < found["auc_interval"][1]
    assert found["advantage"] == pytest.approx(2 * stats.norm.cdf(0.5) - 1, abs=0.03)
    for level, tolerance in (("0.001", 0.01), ("0.01", 0.03)):
        analytic = stats.norm.sf(stats.norm.isf(float(level)) - 1)
        assert found["tpr_at_fpr"][level]["tpr"] == pytest.approx(analytic, abs=tolerance)
    assert 0.5 < found["epsilon_lower_bound"] < 4.38  # the exact epsilon of this shift at delta=1e-5


def test_no_separation_is_told_apart_from_a_leak(alike):
    for found in alike["attacks"].values():
        assert found["auc_interval"][0] < 0.5 < found["auc_interval"][1]
        assert found["epsilon_lower_bound"] < 0.1
        assert found["advantage"] < 1.5 * alike["advantage_without_leak"]
    assert alike["best"]["epsilon_lower_bound"] < 0.1
    assert alike["accounted"]["violation"] is False


@pytest.mark.parametrize("sides", [(400, 400), (300, 200), (150, 300)])
def test_they_are_those_of_tf_privacy(sides):
    pair = [Scores(*ten_classes(size, 40 + place)) for place, size in enumerate(sides)]
    marked = Scores(pair[0].logits + 0.2, pair[0].labels), pair[1]
    ours, theirs = (membership_inference(*marked, DELTA, seed=3, by=by) for by in ("tfprivacy_lab", "tf_privacy"))
    for name, found in ours["attacks"].items():
        for figure in ("auc", "advantage", "epsilon_lower_bound"):
            assert found[figure] == pytest.approx(theirs["attacks"][name][figure], abs=1e-9), (name, figure)


def test_what_tf_privacy_reports_is_what_its_report_says():
    """Read from TF Privacy's own result, which is given losses, where ours is given scores."""
    package = "privacy_tests.membership_inference_attack"
    attack = tf_privacy.load(f"{package}.membership_inference_attack", "TF Privacy's attacks")
    kept = tf_privacy.load(f"{package}.data_structures", "TF Privacy's attacks")
    pair = [Scores(*ten_classes(400, 40)), Scores(*ten_classes(300, 41))]
    marked = Scores(pair[0].logits + 3 * np.eye(10)[pair[0].labels], pair[0].labels), pair[1]
    figures = {}
    for side, one in zip(("train", "test"), marked, strict=True):
        figures |= {f"loss_{side}": one.losses(), f"entropy_{side}": one.entropies()}
    kinds = {"loss_threshold": "THRESHOLD_ATTACK", "entropy_threshold": "THRESHOLD_ENTROPY_ATTACK"}
    reports = attack.run_attacks(
        kept.AttackInputData(**figures), attack_types=[kept.AttackType[kind] for kind in kinds.values()]
    )
    stated = {one.attack_type.name: one.epsilon_lower_bound_value for one in reports.single_attack_results}
    found = membership_inference(*marked, DELTA, seed=3)["attacks"]
    for name, kind in kinds.items():
        expected = stated[kind].get_max_epsilon_bounds()[0]
        assert found[name]["epsilon"]["tfp_reported"] == pytest.approx(expected), name
    assert found["loss_threshold"]["epsilon"]["tfp_reported"] > 0.5


def test_largest_logits_that_are_taken_have_finite_figures():
    scores = Scores(np.array([[3.4e38, -3.4e38], [-3.4e38, 3.4e38]]), np.array([1, 1]))
    for figures in (scores.losses(), scores.entropies()):
        assert np.isfinite(figures).all()


@pytest.mark.slow_but("sides0")
@pytest.mark.parametrize("sides", [(3000, 1000), (1000, 3000)])
def test_unequal_sides_bound_nothing_where_nothing_leaks(sides):
    """TFP scores what it did not train on by another model: of unequal sides that alone gave bounds above zero."""
    found = []
    for seed in range(6):
        pair = [Scores(*ten_classes(size, 10 * seed + place)) for place, size in enumerate(sides)]
        attacks = membership_inference(*pair, DELTA, seed=seed)["attacks"]
        found.append(attacks["logistic_regression"]["epsilon_lower_bound"])
    assert sum(bound > 0 for bound in found) <= 1
    assert max(found) < 0.1


def test_few_memorised_examples_show_at_the_low_end_and_break_the_claim():
    logits, labels = ten_classes(3000, 3)
    logits[:300, :] = 0
    logits[np.arange(300), labels[:300]] = 40  # one member in ten is known by heart
    with pytest.warns(PrivacyViolationWarning, match="VIOLATION"):
        found = membership_inference(
            Scores(logits, labels), Scores(*ten_classes(3000, 4)), DELTA, seed=0, accounted_epsilon=1.0
        )
    assert found["best"]["tpr_at_fpr"]["0.001"]["tpr"] >= 0.1
    assert found["best"]["auc"] < 0.65
    assert 2 < found["best"]["epsilon_lower_bound"] <= found["best"]["epsilon_largest_possible"]
    assert found["accounted"]["violation"] is True


def test_regression_finds_what_no_loss_shows():
    members, nonmembers = Scores(*ten_classes(1000, 5)), Scores(*ten_classes(1000, 6))
    marked = Scores(members.logits + 3, members.labels)  # softmax, and so the loss, is blind to this
    found = membership_inference(marked, nonmembers, DELTA, seed=0)
    assert found["attacks"]["loss_threshold"]["auc_interval"][0] < 0.5
    assert found["best"]["auc_attack"] == "logistic_regression"
    assert found["best"]["auc"] > 0.9


def test_result_is_complete_json(separated):
    assert json.loads(json.dumps(separated, allow_nan=False)) == separated
    assert separated["members"] == separated["nonmembers"] == 5000
    assert separated["auc_interval_method"] == "DeLong"
    assert separated["accounted"]["accounted_epsilon"] is None
    for found in separated["attacks"].values():
        assert len(found["roc"]["fpr"]) == len(found["roc"]["tpr"]) <= 500
        assert found["roc"]["fpr"][-1] == found["roc"]["tpr"][-1] == 1


def test_best_is_the_largest_and_says_whose(separated):
    best, attacks = separated["best"], separated["attacks"]
    assert best["auc"] == max(found["auc"] for found in attacks.values())
    assert best["auc"] == attacks[best["auc_attack"]]["auc"]
    assert best["advantage"] == attacks[best["advantage_attack"]]["advantage"]
    assert best["epsilon_lower_bound"] == attacks[best["epsilon_attack"]]["epsilon_lower_bound"]
    at_low = best["tpr_at_fpr"]["0.001"]
    assert at_low["tpr"] == attacks[at_low["attack"]]["tpr_at_fpr"]["0.001"]["tpr"]


def test_few_nonmembers_leave_the_low_end_open():
    members, nonmembers = gaussian_pair(1.0, 400, seed=7)
    found = membership_inference(members, nonmembers, DELTA, seed=0)["best"]["tpr_at_fpr"]
    assert found["0.001"]["tpr"] is None
    assert "400 non-members are too few" in found["0.001"]["reason"]
    assert found["0.001"]["attack"] is None
    assert found["0.01"]["tpr"] is not None


@pytest.mark.slow
def test_same_seed_any_order_same_numbers_and_the_global_generator_untouched():
    logits, labels = ten_classes(400, 8)
    nonmembers = Scores(*ten_classes(300, 9))
    np.random.seed(123)
    expected = np.random.RandomState(123).random_sample(3)
    first = membership_inference(Scores(logits, labels), nonmembers, DELTA, seed=3)
    np.testing.assert_array_equal(np.random.random_sample(3), expected)

    order = np.random.default_rng(0).permutation(400)
    again = membership_inference(Scores(logits[order], labels[order]), nonmembers, DELTA, seed=3)
    assert again == first
    other = membership_inference(Scores(logits, labels), nonmembers, DELTA, seed=4)
    assert other["attacks"]["logistic_regression"]["auc"] != first["attacks"]["logistic_regression"]["auc"]
    assert other["attacks"]["loss_threshold"]["auc"] == first["attacks"]["loss_threshold"]["auc"]


def test_constant_scores_leak_nothing():
    flat = Scores(np.zeros((50, 3)), np.zeros(50, int))
    found = membership_inference(flat, flat, DELTA, seed=0)
    assert found["best"]["auc"] == 0.5
    assert found["best"]["epsilon_lower_bound"] == 0


def test_losses_and_entropies_match_the_plain_formulas():
    logits, labels = ten_classes(500, 10)
    scores, rows = Scores(logits, labels), np.arange(500)
    p = special.softmax(logits, axis=1)
    np.testing.assert_allclose(scores.losses(), -special.log_softmax(logits, axis=1)[rows, labels], rtol=1e-9)
    others = p * np.log(1 - p)
    others[rows, labels] = 0
    modified = -(1 - p[rows, labels]) * np.log(p[rows, labels]) - others.sum(axis=1)
    np.testing.assert_allclose(scores.entropies(), modified, rtol=1e-6)


def test_losses_and_entropies_keep_confident_examples_apart():
    scores = Scores(np.array([[50.0, 0, 0], [60.0, 0, 0], [700.0, 0, 0], [0, 900.0, 0]]), np.zeros(4, int))
    losses, entropies = scores.losses(), scores.entropies()
    np.testing.assert_allclose(losses, [2 * np.exp(-50), 2 * np.exp(-60), 2 * np.exp(-700), 900], rtol=1e-9)
    assert entropies[0] > entropies[1] > entropies[2] >= 0
    assert np.isfinite(entropies).all()
    assert entropies[3] > 900


@pytest.mark.parametrize(
    ("logits", "labels", "name"),
    [
        (np.zeros((0, 3)), np.zeros(0, int), "logits"),
        (np.zeros(3), np.zeros(3, int), "logits"),
        (np.zeros((3, 1)), np.zeros(3, int), "logits"),
        (np.array([[0.0, np.nan]]), np.zeros(1, int), "logits"),
        (np.array([[0.0, np.inf]]), np.zeros(1, int), "logits"),
        (np.array([["a", "b"]]), np.zeros(1, int), "logits"),
        (np.array([[0.0, -1e200]]), np.zeros(1, int), r"float32's range, got one of size 1e\+200"),
        (np.full((4, 4), 0.25), np.zeros(4, int), "probabilities"),
        (np.zeros((3, 2)), np.zeros(2, int), "labels"),
        (np.zeros((3, 2)), np.zeros((3, 1), int), "labels"),
        (np.zeros((3, 2)), np.zeros(3), "labels"),
        (np.zeros((3, 2)), np.array([0, 1, 2]), "2 at index 2"),
        (np.zeros((3, 2)), np.array([0, -1, 1]), "-1 at index 1"),
    ],
)
def test_scores_refuse(logits, labels, name):
    with pytest.raises(InputError, match=name):
        Scores(logits, labels)


def test_audit_refuses():
    good, few = scores_with_margin(np.linspace(0, 1, 30)), scores_with_margin(np.linspace(0, 1, 19))
    other = Scores(np.zeros((30, 3)), np.zeros(30, int))
    for arguments, name in [
        ((few, good, DELTA, 0), "member"),
        ((good, few, DELTA, 0), "nonmember"),
        ((good, other, DELTA, 0), "classes"),
        ((np.zeros((30, 2)), good, DELTA, 0), "member"),
        ((good, good, 1.0, 0), "delta"),
        ((good, good, DELTA, -1), "seed"),
    ]:
        with pytest.raises(InputError, match=name):
            membership_inference(*arguments)
    with pytest.raises(InputError, match="accounted_epsilon"):
        membership_inference(good, good, DELTA, 0, accounted_epsilon=0)
    with pytest.raises(InputError, match="confidence"):
        membership_inference(good, good, DELTA, 0, confidence=95)


@pytest.mark.processes
def test_import_is_light_and_a_run_prints_nothing():
    program = """
import sys
from tfprivacy_lab import audit
audit.Scores
assert not {"tensorflow", "sklearn", "tensorflow_privacy"} & set(sys.modules)
import numpy as np
draw = np.random.default_rng(0)
make = lambda: audit.Scores(draw.normal(size=(200, 10)) * 1000, draw.integers(0, 10, 200))
audit.membership_inference(make(), make(), 1e-5, 0)
"""
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
