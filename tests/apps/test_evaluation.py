"""Quality, calibration, gaps and intervals against scikit-learn and counting by hand."""

import numpy as np
import pytest
from sklearn import metrics

from tfprivacy_lab.apps import evaluation
from tfprivacy_lab.checks import InputError


def sample(seed, rows=400):
    rng = np.random.default_rng(seed)
    probabilities = rng.random(rows)
    return probabilities, (rng.random(rows) < probabilities).astype(int), rng.random(rows) < 0.3


def test_quality_is_scikit_learns():
    p, y, _ = sample(0)
    found = evaluation.quality(p, y)
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(y, p > 0.5))
    assert found["auc"] == pytest.approx(metrics.roc_auc_score(y, p))
    assert found["brier"] == pytest.approx(metrics.brier_score_loss(y, p))


def test_calibration_error_is_small_for_the_truth_and_the_shift_for_a_shifted_one():
    p, y, _ = sample(1, rows=100_000)
    assert evaluation.calibration_error(p, y) < 0.01
    squeezed = 0.1 + 0.8 * p  # off by 0.2 |p - 1/2|, 0.05 in the mean
    assert evaluation.calibration_error(squeezed, y) == pytest.approx(0.05, abs=0.005)
    assert evaluation.calibration_error(np.full(4, 0.5), np.array([0, 0, 0, 1]), bins=1) == pytest.approx(0.25)


def test_gaps_by_hand():
    p = np.array([0.9, 0.8, 0.4, 0.2, 0.9, 0.4, 0.6, 0.1])
    y = np.array([1, 0, 1, 0, 1, 1, 1, 0])
    found = evaluation.group_gaps(p, y, np.arange(8) < 4)
    assert found["rows"] == 4
    assert found["accuracy"] == pytest.approx(2 / 4 - 3 / 4)
    assert found["positive_rate"] == pytest.approx(2 / 4 - 2 / 4)
    assert found["true_positive_rate"] == pytest.approx(1 / 2 - 2 / 3)
    assert found["calibration"] == pytest.approx((2.3 - 2) / 4 - (2.0 - 3) / 4)


def test_gaps_are_confusion_matrices_differences():
    p, y, member = sample(2)
    rates = []
    for side in (member, ~member):
        _, fp, fn, tp = metrics.confusion_matrix(y[side], p[side] > 0.5).ravel()
        rates.append((tp / (tp + fn), (tp + fp) / side.sum()))
    found = evaluation.group_gaps(p, y, member)
    assert found["true_positive_rate"] == pytest.approx(rates[0][0] - rates[1][0])
    assert found["positive_rate"] == pytest.approx(rates[0][1] - rates[1][1])
    assert evaluation.group_gaps(p, y, ~member)["accuracy"] == pytest.approx(-found["accuracy"])


@pytest.mark.parametrize("runs", [3, 5])
def test_interval_over_runs_covers_as_often_as_it_says(runs):
    rng, covered = np.random.default_rng(runs), 0
    for values in rng.normal(0.9, 0.02, size=(2000, runs)):
        found = evaluation.mean_interval(values, 0.9)
        covered += found["low"] <= 0.9 <= found["high"]
    # Two-sided, four standard errors of a share of 0.9 of 2,000.
    assert abs(covered / 2000 - 0.9) < 4 * np.sqrt(0.09 / 2000)


@pytest.mark.parametrize(
    ("call", "naming"),
    [
        (lambda: evaluation.quality([0.5, 1.5], [0, 1]), "probabilities"),
        (lambda: evaluation.quality([0.5], [0, 1]), "shape"),
        (lambda: evaluation.quality([0.5, 0.5], [0, 2]), "labels"),
        (lambda: evaluation.calibration_error(np.array([0.5]), np.array([1]), bins=2), "bins"),
        (lambda: evaluation.group_gaps([0.5, 0.5], [0, 1], [True, False]), "label 1"),
        (lambda: evaluation.group_gaps([0.5, 0.5], [0, 1], [True]), "member"),
        (lambda: evaluation.mean_interval([0.5]), "two"),
        (lambda: evaluation.mean_interval([0.5, 0.6], 0.4), "confidence"),
    ],
)
def test_what_does_not_fit_is_named(call, naming):
    with pytest.raises(InputError, match=naming):
        call()
