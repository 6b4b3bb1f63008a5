"""ROC, AUC and TPR at low FPR against analytic values and direct counting."""

import json

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from tfprivacy_lab.audit import roc
from tfprivacy_lab.checks import InputError


def shifted(shift, size, seed):
    draw = np.random.default_rng(seed)
    return draw.normal(shift, 1, size), draw.normal(0, 1, size)


def test_auc_is_the_share_of_ordered_pairs_ties_counted_half():
    members, nonmembers = np.array([1, 2, 2, 5]), np.array([0, 2, 3])
    pairs = (members[:, None] > nonmembers) + 0.5 * (members[:, None] == nonmembers)
    assert roc.auc_interval(members, nonmembers)[0] == pytest.approx(pairs.mean())


def test_delong_variance_matches_the_definition():
    members, nonmembers = (np.round(x, 1) for x in shifted(0.8, 40, seed=0))
    pairs = (members[:, None] > nonmembers) + 0.5 * (members[:, None] == nonmembers)
    variance = pairs.mean(axis=1).var(ddof=1) / 40 + pairs.mean(axis=0).var(ddof=1) / 40
    auc, low, high = roc.auc_interval(members, nonmembers)
    assert high - low == pytest.approx(2 * 1.959964 * variance**0.5, rel=1e-6)
    assert auc == pytest.approx((low + high) / 2)


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_interval_covers_the_analytic_auc_as_often_as_it_says(shift):
    truth = stats.norm.cdf(shift / 2**0.5)
    covered = 0
    for seed in range(400):
        _, low, high = roc.auc_interval(*shifted(shift, 200, seed))
        covered += low <= truth <= high
    assert 0.92 <= covered / 400 <= 0.98


def test_interval_is_no_point_where_the_variance_vanishes():
    apart = roc.auc_interval(np.ones(50), np.zeros(50))
    assert apart[0] == apart[2] == 1
    assert apart[1] == pytest.approx(1 - (np.log(40) / 100) ** 0.5)
    tied = roc.auc_interval(np.zeros(50), np.zeros(50))
    assert tied[0] == 0.5
    assert tied[1] < 0.4
    assert tied[2] > 0.6


def test_tpr_at_fpr_by_direct_counting():
    members, nonmembers = shifted(1.0, 2000, seed=1)
    second = np.sort(nonmembers)[-3]  # with 2,000 non-members, 0.1 % allows two accusations
    found = roc.tpr_at_fpr(members, nonmembers, 0.001)
    assert found["tpr"] == (members > second).mean()
    exact = stats.binomtest(int((members > second).sum()), 2000).proportion_ci(0.95, "exact")
    assert found["interval"] == pytest.approx([exact.low, exact.high])
    assert found["reason"] is None


def test_tpr_at_fpr_is_the_gaussian_one():
    for level in (0.001, 0.01, 0.1):
        found = roc.tpr_at_fpr(*shifted(2.0, 100_000, seed=2), level)["tpr"]
        assert found == pytest.approx(stats.norm.sf(stats.norm.isf(level) - 2), abs=0.03)


def test_ties_are_accused_together():
    assert roc.tpr_at_fpr(np.ones(100), np.ones(100), 0.5)["tpr"] == 0
    assert roc.tpr_at_fpr(np.ones(100), np.r_[np.ones(50), np.zeros(50)], 0.5)["tpr"] == 1


@pytest.mark.parametrize(("size", "level"), [(999, 0.001), (99, 0.01)])
def test_too_few_nonmembers_give_a_reason_instead_of_a_number(size, level):
    found = roc.tpr_at_fpr(np.ones(5000), np.zeros(size), level)
    assert found["tpr"] is None
    assert found["interval"] is None
    assert f"needs at least {size + 1}" in found["reason"]
    assert roc.tpr_at_fpr(np.ones(5000), np.zeros(size + 1), level)["tpr"] == 1


@pytest.mark.parametrize("decimals", [1, 12])
def test_thinned_curve_is_on_the_curve_and_keeps_the_low_end(decimals):
    members, nonmembers = (np.round(x, decimals) for x in shifted(1.0, 20_000, seed=3))
    points = roc.roc_points(members, nonmembers)
    fpr, tpr = np.array(points["fpr"]), np.array(points["tpr"])
    assert 2 <= fpr.size <= 500
    assert (fpr[0], tpr[0], fpr[-1], tpr[-1]) == (0, 0, 1, 1)
    assert (np.diff(fpr) >= 0).all()
    assert (np.diff(tpr) >= 0).all()
    _, tp, fp = roc.counts_by_threshold(members, nonmembers)
    whole = set(zip((fp / 20_000).tolist(), (tp / 20_000).tolist(), strict=True))
    assert set(zip(points["fpr"], points["tpr"], strict=True)) <= whole
    low = np.unique(fp[fp <= 10]) / 20_000
    assert set(low) <= set(fpr)
    assert np.trapz(tpr, fpr) == pytest.approx(roc.auc_interval(members, nonmembers)[0], abs=0.002)
    for level in (0.0001, 0.0002, 0.0005):
        assert tpr[fpr <= level].max() == roc.tpr_at_fpr(members, nonmembers, level)["tpr"]
    json.dumps(points, allow_nan=False)


def test_a_short_curve_is_whole():
    members, nonmembers = shifted(0.5, 30, seed=4)
    points = roc.roc_points(members, nonmembers)
    whole = metrics.roc_auc_score(np.r_[np.ones(30), np.zeros(30)], np.r_[members, nonmembers])
    assert metrics.auc(points["fpr"], points["tpr"]) == pytest.approx(whole, abs=1e-12)


def test_refuses_and_names_the_argument():
    good = np.arange(5.0)
    for call, name in [
        (lambda: roc.auc_interval([], good), "member_scores"),
        (lambda: roc.auc_interval(good, [np.nan, 1.0]), "nonmember_scores"),
        (lambda: roc.tpr_at_fpr(good, good, 0.0), "fpr"),
        (lambda: roc.tpr_at_fpr(good, good, 1.0), "fpr"),
        (lambda: roc.roc_points(good, good, 5), "max_points"),
    ]:
        with pytest.raises(InputError, match=rf"\b{name}\b"):
            call()
