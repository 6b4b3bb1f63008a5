"""The ε lower bound against independent computations, on both sides of the truth."""

import itertools
import math

import numpy as np
import pytest
from scipy import optimize, stats

from tfprivacy_lab.audit import bounds
from tfprivacy_lab.checks import InputError

DELTA = 1e-5


def gaussian_epsilon(shift, delta):
    """Exact ε of one release of N(0, 1) against N(shift, 1) (Balle & Wang 2018, Theorem 8)."""

    def gap(epsilon):
        near, far = shift / 2 - epsilon / shift, -shift / 2 - epsilon / shift
        return stats.norm.cdf(near) - math.exp(epsilon) * stats.norm.cdf(far) - delta

    return optimize.brentq(gap, 0, 50)


def shifted(shift, size, seed):
    draw = np.random.default_rng(seed)
    return draw.normal(shift, 1, size), draw.normal(0, 1, size)


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (1, 10), (7, 10), (10, 10), (3, 5000)])
def test_clopper_pearson_inverts_the_binomial_tails(successes, trials):
    low, high = bounds.clopper_pearson(successes, trials, 0.95)
    if successes:
        assert stats.binom.sf(successes - 1, trials, low) == pytest.approx(0.025, rel=1e-6)
    else:
        assert low == 0
    if successes < trials:
        assert stats.binom.cdf(successes, trials, high) == pytest.approx(0.025, rel=1e-6)
    else:
        assert high == 1


def test_without_delta_and_over_all_thresholds_it_is_tfps_number():
    members, nonmembers = shifted(1.5, 300, seed=0)
    thresholds = np.unique(np.r_[members, nonmembers])
    tests = bounds._tests(members, nonmembers, thresholds)
    ours = max(bounds.ratio_epsilon(*test, 0.0, 0.95).max() for test in tests.values())
    assert ours == pytest.approx(bounds.tfp_epsilon_lower_bound(members, nonmembers), abs=1e-9)
    assert ours > 1


def test_tfps_number_recomputed_from_scipys_exact_interval():
    members, nonmembers = shifted(1.0, 25, seed=1)
    best = 0.0
    for threshold in np.r_[members, nonmembers]:
        tp, fp = int((members >= threshold).sum()), int((nonmembers >= threshold).sum())
        hits = {(tp, fp), (fp, tp), (25 - tp, 25 - fp), (25 - fp, 25 - tp)}
        for over, under in hits:
            p1 = stats.binomtest(over, 25).proportion_ci(0.95, "exact").low
            p0 = stats.binomtest(under, 25).proportion_ci(0.95, "exact").high
            best = max(best, math.log(p1 / p0) if p1 > 0 else 0)
    assert best == pytest.approx(bounds.tfp_epsilon_lower_bound(members, nonmembers), abs=1e-6)


def test_held_out_bound_follows_from_its_own_counts():
    found = bounds.epsilon_lower_bound(*shifted(2.0, 1000, seed=2), DELTA, seed=0)
    over, over_trials, under, under_trials = found["counts"]
    p1 = stats.binomtest(over, over_trials).proportion_ci(0.95, "exact").low
    p0 = stats.binomtest(under, under_trials).proportion_ci(0.95, "exact").high
    assert found["epsilon_lower_bound"] == pytest.approx(math.log((p1 - DELTA) / p0), abs=1e-6)
    assert over_trials == under_trials == 500


@pytest.mark.parametrize("shift", [0.5, 1.0, 2.0])
def test_bound_stays_below_the_exact_epsilon_of_the_gaussian_and_says_something(shift):
    exact = gaussian_epsilon(shift, DELTA)
    found = [
        bounds.epsilon_lower_bound(*shifted(shift, 4000, seed), DELTA, seed)["epsilon_lower_bound"]
        for seed in range(20)
    ]
    assert max(found) <= exact
    assert np.mean(found) > 0.25 * shift


def test_no_separation_gives_no_bound_at_the_stated_confidence():
    found = [
        bounds.epsilon_lower_bound(*shifted(0.0, 1000, seed), DELTA, seed)["epsilon_lower_bound"] for seed in range(60)
    ]
    assert sum(value > 0 for value in found) <= 6  # 5 % of 60 is 3; more than 6 has probability 0.03
    assert max(found) < 0.3


def test_best_of_all_thresholds_overshoots_where_nothing_leaks():
    samples = [shifted(0.0, 300, seed) for seed in range(20)]
    searched = [bounds.tfp_epsilon_lower_bound(*pair, method="bailey") for pair in samples]
    assert sum(value > 0 for value in searched) > 10


@pytest.mark.parametrize("sign", [1, -1])
def test_flawless_attack_reaches_the_ceiling_whichever_way_it_points(sign):
    members, nonmembers = sign * np.linspace(1, 2, 400), sign * np.linspace(-2, -1, 400)
    found = bounds.epsilon_lower_bound(members, nonmembers, DELTA, seed=0)
    assert found["largest_possible"] == pytest.approx(bounds.largest_provable_epsilon(200, 200, DELTA))
    # The threshold lies where the choosing half separates, so a testing example or two may fall short.
    assert found["largest_possible"] - 0.7 < found["epsilon_lower_bound"] <= found["largest_possible"]
    assert found["largest_possible"] == pytest.approx(math.log((0.025 ** (1 / 200) - DELTA) / (1 - 0.025 ** (1 / 200))))


def test_delta_lowers_the_bound():
    scores = shifted(2.0, 2000, seed=3)
    by_delta = [bounds.epsilon_lower_bound(*scores, delta, seed=0)["epsilon_lower_bound"] for delta in (0, 0.01, 0.5)]
    assert by_delta[0] > by_delta[1] > by_delta[2]


def test_seed_decides_and_order_does_not():
    members, nonmembers = shifted(1.0, 501, seed=4)
    first = bounds.epsilon_lower_bound(members, nonmembers, DELTA, seed=5)
    assert bounds.epsilon_lower_bound(members[::-1], np.roll(nonmembers, 7), DELTA, seed=5) == first
    others = [bounds.epsilon_lower_bound(members, nonmembers, DELTA, seed) for seed in range(4)]
    assert len({found["epsilon_lower_bound"] for found in others}) > 1


def test_a_bound_above_the_claim_is_a_violation():
    with pytest.warns(bounds.PrivacyViolationWarning, match="VIOLATION"):
        compared = bounds.compare_with_accounted(1.2, 1.0, DELTA)
    assert compared["violation"] is True
    assert compared["verdict"].startswith("VIOLATION: the attack shows epsilon >= 1.200")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("claim", [1.2, 3.0, None])
def test_a_bound_within_the_claim_is_not(claim):
    compared = bounds.compare_with_accounted(1.2, claim, DELTA)
    assert compared["violation"] is False
    assert compared["accounted_epsilon"] == claim
    assert "VIOLATION" not in compared["verdict"]


REFUSED = [
    ({"member_scores": []}, "member_scores"),
    ({"member_scores": [1.0, float("nan")]}, "member_scores"),
    ({"nonmember_scores": [[1.0, 2.0]]}, "nonmember_scores"),
    ({"nonmember_scores": ["a", "b"]}, "nonmember_scores"),
    ({"delta": -1e-5}, "delta"),
    ({"delta": 1.0}, "delta"),
    ({"confidence": 0.4}, "confidence"),
    ({"seed": -1}, "seed"),
    ({"seed": 0.5}, "seed"),
]


@pytest.mark.parametrize(("wrong", "name"), REFUSED, ids=itertools.count())
def test_refuses_and_names_the_argument(wrong, name):
    arguments = {"member_scores": [0.0, 1.0], "nonmember_scores": [0.0, 1.0], "delta": DELTA, "seed": 0} | wrong
    with pytest.raises(InputError, match=rf"\b{name}\b"):
        bounds.epsilon_lower_bound(**arguments)


@pytest.mark.parametrize("claim", [0, -1.0, float("nan"), float("inf")])
def test_refuses_a_claim_that_is_none(claim):
    with pytest.raises(InputError, match="accounted_epsilon"):
        bounds.compare_with_accounted(0.0, claim, DELTA)
