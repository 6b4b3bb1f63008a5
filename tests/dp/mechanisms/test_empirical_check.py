"""The empirical check: it passes what is private, and catches half the noise of either mechanism."""

import itertools

import numpy as np
import pytest
from scipy import stats

from tfprivacy_lab.checks import InputError
from tfprivacy_lab.dp.mechanisms import empirical_check
from tfprivacy_lab.dp.mechanisms.additive import GaussianMechanism, LaplaceMechanism
from tfprivacy_lab.dp.mechanisms.empirical_check import OutputSet, check_neighbours

RUNS = 100_000


def outputs(mechanism, shift=1.0, runs=RUNS, seed=0):
    """Outputs on D1, whose answer is ``shift``, and on D2, whose answer is 0."""
    return mechanism.release(np.full(runs, shift), seed=2 * seed), mechanism.release(np.zeros(runs), seed=2 * seed + 1)


MECHANISMS = {
    "Laplace 0.5": (LaplaceMechanism.calibrated(1.0, 0.5), 0.5, 0.0),
    "Laplace 3": (LaplaceMechanism.calibrated(1.0, 3.0), 3.0, 0.0),
    "Gaussian 1": (GaussianMechanism.calibrated(1.0, 1.0, 1e-2), 1.0, 1e-2),
    "Gaussian 2": (GaussianMechanism.calibrated(1.0, 2.0, 1e-5), 2.0, 1e-5),
    "Gaussian 0.5": (GaussianMechanism.calibrated(1.0, 0.5, 1e-3), 0.5, 1e-3),
}


@pytest.mark.parametrize(("mechanism", "epsilon", "delta"), MECHANISMS.values(), ids=MECHANISMS.keys())
@pytest.mark.parametrize("swapped", [False, True])
def test_passes_the_noise_that_is_right_and_catches_half_of_it(mechanism, epsilon, delta, swapped):
    arguments = {"epsilon": epsilon, "delta": delta}
    pair = outputs(mechanism)[:: -1 if swapped else 1]
    right = check_neighbours(*pair, **arguments)
    assert right.verdict == "consistent"
    assert right.epsilon_interval[0] <= epsilon
    scale = {field: getattr(mechanism, field) / 2 for field in ("scale", "stddev") if hasattr(mechanism, field)}
    half = check_neighbours(*outputs(type(mechanism)(1.0, **scale))[:: -1 if swapped else 1], **arguments)
    assert half.verdict == "violated"
    assert half.epsilon_interval[0] > epsilon


def test_no_noise_is_caught_with_an_infinite_estimate():
    found = check_neighbours(np.ones(500), np.zeros(500), epsilon=3.0)
    assert found.verdict == "violated"
    assert found.epsilon_estimate == np.inf
    assert 3.0 < found.epsilon_interval[0] == found.detectable < np.inf


def test_estimate_comes_near_the_laplace_mechanism_and_lies_in_its_interval():
    mechanism = LaplaceMechanism.calibrated(1.0, 2.0)
    found = check_neighbours(*outputs(mechanism, runs=200_000), epsilon=1.5)
    low, high = found.epsilon_interval
    assert low < found.epsilon_estimate < high
    assert found.verdict == "violated"
    assert found.epsilon_estimate == pytest.approx(2.0, abs=0.1)
    (first, second), (k, n) = found.probabilities, found.outputs
    assert (k, n) == (100_000, 100_000)
    assert low == pytest.approx(np.log(first[0] / second[1]))
    assert high == pytest.approx(np.log(first[1] / second[0]))


def test_a_true_claim_is_rarely_called_violated_and_a_false_one_nearly_always():
    """At the edge of the claim; without the halves, the search alone would break the stated level."""
    mechanism, false_alarms = LaplaceMechanism.calibrated(1.0, 1.0), 0
    for seed in range(300):
        pair = outputs(mechanism, runs=400, seed=seed)
        false_alarms += check_neighbours(*pair, epsilon=1.0, confidence=0.9, seed=seed).verdict == "violated"
    assert stats.binomtest(false_alarms, 300, 0.1, "greater").pvalue > 1e-3
    found = [check_neighbours(*outputs(mechanism, runs=4_000, seed=s), epsilon=0.5).verdict for s in range(20)]
    assert found == ["violated"] * 20


@pytest.mark.parametrize("direction", ["first", "second"])
@pytest.mark.parametrize("side", [">=", "<="])
def test_finds_the_set_on_either_side_and_in_either_direction(direction, side):
    """Outputs that agree but for a rare event, which is on one side and under one dataset only."""
    rng = np.random.default_rng(0)
    usual, rare = rng.normal(size=4_000), rng.normal(size=4_000)
    rare[rng.random(4_000) < 0.05] = 9.0 if side == ">=" else -9.0
    pair = (rare, usual) if direction == "first" else (usual, rare)
    found = check_neighbours(*pair, epsilon=1.0, delta=1e-3)
    assert (found.verdict, found.tested.side, found.tested.likelier) == ("violated", side, direction)
    assert check_neighbours(*pair, epsilon=1.0, delta=0.2).verdict == "consistent"


def test_vectors_go_through_a_statistic():
    """A move spread over 50 coordinates, invisible in any one of them; the likelihood ratio sees it all."""
    d, mechanism = 50, GaussianMechanism.calibrated(1.0, 1.0, 1e-3)
    move = np.full(d, 1 / np.sqrt(d))
    first, second = (mechanism.release(np.tile(m, (RUNS, 1)), seed=s) for s, m in enumerate((move, 0 * move)))
    arguments = {"epsilon": 0.4, "delta": 1e-3}
    assert check_neighbours(first, second, **arguments, statistic=lambda x: x @ move).verdict == "violated"
    assert check_neighbours(first, second, **arguments, statistic=lambda x: x[:, 0]).verdict == "consistent"
    right = {"epsilon": 1.0, "delta": 1e-3}
    assert check_neighbours(first, second, **right, statistic=lambda x: x @ move).verdict == "consistent"


def test_randomised_response():
    rng = np.random.default_rng(1)

    def respond(bit, p):
        return np.where(rng.random(RUNS) < p, bit, 1 - bit)

    p = np.exp(1.0) / (1 + np.exp(1.0))
    assert check_neighbours(respond(1, p), respond(0, p), epsilon=1.0).verdict == "consistent"
    assert check_neighbours(respond(1, p), respond(0, p), epsilon=0.5).verdict == "violated"


def test_choice_and_test_use_different_outputs():
    """Every chosen set is counted on outputs that did not choose it: changing those leaves the choice alone."""
    rng = np.random.default_rng(3)
    first, second = rng.normal(size=200), rng.normal(size=200)
    base = check_neighbours(first, second, epsilon=0.1, seed=5)
    halves = np.random.default_rng(5)
    order_first, order_second = halves.permutation(200), halves.permutation(200)
    for order, part in ((order_first, first), (order_second, second)):
        part[order[100:]] = 100.0
    changed = check_neighbours(first, second, epsilon=0.1, seed=5)
    assert changed.tested == base.tested
    assert changed.probabilities != base.probabilities


@pytest.mark.parametrize("k", [0, 1, 37, 999, 1_000])
def test_intervals_are_clopper_pearson(k):
    exact = stats.binomtest(k, 1_000).proportion_ci(0.95, "exact")
    assert empirical_check._interval(k, 1_000, 0.95) == pytest.approx((exact.low, exact.high))


def test_chosen_set_is_the_worst_of_all_half_lines():
    """Brute force over every threshold, side and direction of a small sample."""
    rng = np.random.default_rng(4)
    first, second = np.round(rng.normal(0.6, 1, 80), 1), np.round(rng.normal(0, 1, 60), 1)
    scores = {}
    for threshold, side, likelier in itertools.product(np.union1d(first, second), (">=", "<="), ("first", "second")):
        chosen = OutputSet(float(threshold), side, likelier)
        a, b = (first, second) if likelier == "first" else (second, first)
        p, q = ((chosen.count(part) + 1) / (len(part) + 2) for part in (a, b))
        spread = p * (1 - p) / len(a) + np.exp(0.6) * q * (1 - q) / len(b)
        scores[chosen] = (p - np.exp(0.3) * q - 0.01) / np.sqrt(spread)
    assert empirical_check._choose(first, second, 0.3, 0.01) == max(scores, key=scores.get)


SAMPLE = np.zeros(50)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"first": np.zeros(8), "second": np.zeros(8)}, "enough outputs to refute epsilon=1, got 8 and 8"),
        ({"epsilon": 9}, "run the mechanism more often"),
        ({"delta": 0.999}, "enough outputs"),
        ({"first": [0.0]}, "first to hold at least 2 outputs"),
        ({"second": []}, "second to hold at least 2 outputs"),
        ({"first": np.array(["a"] * 50)}, "real numbers, got <U1"),
        ({"first": np.r_[SAMPLE, np.nan]}, "first without NaN"),
        ({"first": np.zeros((50, 2))}, r"got float64 \(50, 2\); give a statistic"),
        ({"statistic": lambda x: x[:3]}, "one real number for each of the 50 outputs"),
        ({"statistic": lambda x: x * np.nan}, "statistic of first without NaN"),
        ({"epsilon": -1}, "epsilon=-1"),
        ({"delta": 1}, "delta=1"),
        ({"confidence": 0.5}, "confidence=0.5"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_arguments_are_checked(changes, message):
    with pytest.raises(InputError, match=message) as refusal:
        check_neighbours(**({"first": SAMPLE, "second": SAMPLE, "epsilon": 1} | changes))
    assert len(str(refusal.value).splitlines()) == 1


def test_infinite_outputs_are_outputs():
    diverged = np.r_[np.full(1_000, np.inf), np.zeros(1_000)]
    assert check_neighbours(diverged, np.zeros(2_000), epsilon=1).verdict == "violated"
