"""The cost of choosing the best of K runs, against the theorems' formulas and a brute-force mechanism."""

import math

import dp_accounting
import numpy as np
import pytest
from scipy import stats

from tfprivacy_lab.checks import InputError
from tfprivacy_lab.dp.accounting.gaussian import DpSgdRun, epsilon_after
from tfprivacy_lab.dp.accounting.selection import Repetitions, epsilon_tuned, pure_epsilon_tuned

ORDERS = [1 + x / 10 for x in range(1, 100)] + list(range(11, 64)) + [128, 256, 512, 1024]
SIGMA, DELTA = 4.0, 1e-6
SHAPES = [0.0, 0.5, 1.0, 3.0]


@pytest.mark.parametrize("shape", SHAPES)
def test_negative_binomial_sums_to_one_with_its_mean(shape):
    repetitions = Repetitions("negative_binomial", 7.5, shape)
    chances = np.array([repetitions.probability(k) for k in range(4000)])
    assert chances[0] == 0.0
    assert chances.sum() == pytest.approx(1, abs=1e-9)
    assert chances @ np.arange(4000) == pytest.approx(7.5, rel=1e-7)


def test_distributions_of_scipy():
    geometric, poisson = Repetitions("negative_binomial", 5.0, 1.0), Repetitions("poisson", 5.0)
    for k in range(30):
        assert geometric.probability(k) == pytest.approx(stats.geom.pmf(k, 0.2), rel=1e-9)
        assert poisson.probability(k) == pytest.approx(stats.poisson.pmf(k, 5.0), rel=1e-9)
    # Truncated: conditioned on at least one.
    some = Repetitions("negative_binomial", 5.0, 2.5)
    at_least_one = 1 - stats.nbinom.pmf(0, 2.5, some.gamma)
    for k in range(1, 30):
        assert some.probability(k) == pytest.approx(stats.nbinom.pmf(k, 2.5, some.gamma) / at_least_one, rel=1e-8)
    logarithmic = Repetitions("negative_binomial", 5.0, 0.0)
    for k in range(1, 30):
        assert logarithmic.probability(k) == pytest.approx(stats.logser.pmf(k, 1 - logarithmic.gamma), rel=1e-8)


@pytest.mark.parametrize(
    "repetitions", [Repetitions("negative_binomial", 4.0, s) for s in SHAPES] + [Repetitions("poisson", 4.0)]
)
def test_draws_follow_the_distribution(monkeypatch, repetitions):
    """Inverse of the cumulated chances: exact on a grid of uniforms, in place of the system's randomness."""
    uniforms = iter((np.arange(5000) + 0.5) / 5000)
    monkeypatch.setattr("secrets.SystemRandom.random", lambda self: next(uniforms))
    drawn = np.bincount([repetitions.draw() for _ in range(5000)], minlength=30)
    for k in range(30):
        assert drawn[k] / 5000 == pytest.approx(repetitions.probability(k), abs=2.01 / 5000)


def test_draws_come_from_the_operating_system():
    repetitions = Repetitions("negative_binomial", 50.0, 1.0)
    # Two lists of 40 draws agree with probability below 1e-60.
    assert [repetitions.draw() for _ in range(40)] != [repetitions.draw() for _ in range(40)]


@pytest.mark.parametrize("shape", SHAPES)
def test_theorem_2_by_hand(shape):
    """Papernot and Steinke 2022, Thm 2, for the Gaussian mechanism: RDP of order a is a/(2σ²)."""
    repetitions = Repetitions("negative_binomial", 10.0, shape)

    def one(order):
        return order / (2 * SIGMA**2)

    extra = min((1 - 1 / b) * one(b) + math.log(1 / repetitions.gamma) / b for b in ORDERS)
    tuned = [one(a) + (1 + shape) * extra + math.log(10.0) / (a - 1) for a in ORDERS]
    by_hand = min(to_epsilon(a, r) for a, r in zip(ORDERS, tuned, strict=True))
    figures = epsilon_tuned(dp_accounting.GaussianDpEvent(SIGMA), repetitions, DELTA)
    assert figures["epsilon"] == pytest.approx(by_hand, rel=2e-3)


def test_theorem_6_by_hand():
    """Papernot and Steinke 2022, Thm 6 (Poisson), with δ at ε = log(1 + 1/(a-1))."""
    tuned = []
    for a in ORDERS:
        epsilon = math.log1p(1 / (a - 1))
        delta = min(to_delta(b, b / (2 * SIGMA**2), epsilon) for b in ORDERS)
        tuned.append(a / (2 * SIGMA**2) + 10.0 * delta + math.log(10.0) / (a - 1))
    by_hand = min(to_epsilon(a, r) for a, r in zip(ORDERS, tuned, strict=True))
    figures = epsilon_tuned(dp_accounting.GaussianDpEvent(SIGMA), Repetitions("poisson", 10.0), DELTA)
    assert figures["epsilon"] == pytest.approx(by_hand, rel=2e-3)


def to_epsilon(order, divergence):
    """Canonne, Kamath and Steinke 2020, Prop. 12."""
    return divergence + math.log1p(-1 / order) - math.log(DELTA * order) / (order - 1)


def to_delta(order, divergence, epsilon):
    """The same, solved for δ."""
    return math.exp(min(0.0, (order - 1) * (divergence - epsilon + math.log1p(-1 / order)) - math.log(order)))


@pytest.mark.parametrize("shape", SHAPES)
def test_pure_guarantee_holds_for_every_answer_and_is_nearly_reached(shape):
    """A mechanism of three answers, by enumeration: Pr[best = y] = Σ_k Pr[K=k] (F(y)^k - F(y-)^k)."""
    epsilon, repetitions = 0.5, Repetitions("negative_binomial", 200.0, shape)
    bound = pure_epsilon_tuned(epsilon, repetitions)
    chances = np.array([repetitions.probability(k) for k in range(20_000)])
    worst = 0.0
    for rare in (1e-1, 1e-2, 1e-3, 1e-4):
        # Three answers, the last the best; neighbours' chances within e^{±ε}.
        middle = rare * math.exp(epsilon)
        one = np.array([1 - rare - middle, middle, rare])
        other = np.array([0.0, rare, rare * math.exp(epsilon)])
        other[0] = 1 - other.sum()
        ratios = np.log(best_of(one, chances)) - np.log(best_of(other, chances))
        worst = max(worst, np.abs(ratios).max())
        single = np.abs(np.log(one) - np.log(other)).max()
        assert single <= epsilon + 1e-12
    assert worst <= bound
    assert worst > epsilon * 1.02, "choosing the best must be seen to cost something"


def best_of(answer_chances, run_chances):
    """Chances of the best answer; powers of the distribution function averaged over K."""
    below = np.concatenate([[0.0], np.cumsum(answer_chances)])
    generating = np.array([(run_chances * value ** np.arange(len(run_chances))).sum() for value in below])
    return np.diff(generating)


def test_three_epsilon_of_liu_and_talwar():
    assert pure_epsilon_tuned(0.5, Repetitions("negative_binomial", 20.0, 1.0)) == pytest.approx(1.5)
    assert pure_epsilon_tuned(0.5, Repetitions("negative_binomial", 20.0, 0.0)) == pytest.approx(1.0)


def test_tuning_costs_more_than_one_run_and_less_than_all():
    run = DpSgdRun(60_000, 256, 1.1, 14_063)
    figures = epsilon_tuned(run, Repetitions("negative_binomial", 10.0, 1.0), 1e-5)
    assert figures["epsilon_one_run"] == epsilon_after(run, run.steps, 1e-5)
    assert figures["epsilon_one_run_rdp"] < figures["epsilon"] < figures["epsilon_fixed_runs"]
    ten = DpSgdRun(60_000, 256, 1.1, 140_630)
    assert figures["epsilon_fixed_runs"] == pytest.approx(epsilon_after(ten, ten.steps, 1e-5), rel=1e-6)
    assert figures["accountant"].startswith("RDP (dp-accounting 0.")
    more = epsilon_tuned(run, Repetitions("negative_binomial", 100.0, 1.0), 1e-5)
    assert more["epsilon"] > figures["epsilon"]


def test_a_search_of_thousands_of_runs_is_priced():
    figures = epsilon_tuned(DpSgdRun(60_000, 600, 20.0, 100), Repetitions("negative_binomial", 4000.0), 1e-5)
    thousands = epsilon_after(DpSgdRun(60_000, 600, 20.0, 400_000), 400_000, 1e-5)
    assert figures["epsilon_fixed_runs"] == pytest.approx(thousands, rel=1e-6)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("uniform", 10.0), "distribution"),
        (("negative_binomial", 1.0), "mean"),
        (("poisson", 0.5), "mean"),
        (("poisson", math.nan), "mean"),
        (("negative_binomial", 10.0, -0.5), "shape"),
        (("negative_binomial", 10.0, math.inf), "shape"),
    ],
)
def test_bad_distributions_are_refused(arguments, named):
    with pytest.raises(InputError, match=named):
        Repetitions(*arguments)


def test_what_the_theorems_do_not_cover_is_refused():
    sampled = dp_accounting.PoissonSampledDpEvent(0.1, dp_accounting.LaplaceDpEvent(1.0))
    with pytest.raises(InputError, match="Gaussian"):
        epsilon_tuned(sampled, Repetitions("poisson", 3.0), 1e-5)
    with pytest.raises(InputError, match="poisson"):
        pure_epsilon_tuned(1.0, Repetitions("poisson", 3.0))
    with pytest.raises(InputError, match="delta"):
        epsilon_tuned(dp_accounting.GaussianDpEvent(1.0), Repetitions("poisson", 3.0), 0.0)
