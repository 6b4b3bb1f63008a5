"""What an attacker can reach, against runs whose best test is known exactly."""

import dp_accounting
import numpy as np
import pytest
from scipy import stats

from tfprivacy_lab.checks import InputError
from tfprivacy_lab.dp.accounting import composition, gaussian
from tfprivacy_lab.dp.accounting.tradeoff import largest_belief, largest_tpr, probability_beyond
from tfprivacy_lab.report import figures

RATES = np.array([1e-4, 1e-3, 1e-2, 0.1, 0.5, 0.9])
# The walkthrough's run.
WALKTHROUGH = gaussian.DpSgdRun(examples=55_000, batch_size=2_048, noise_multiplier=1.4424, steps=538)


@pytest.mark.parametrize(("sigma", "steps"), [(1.0, 1), (3.0, 16), (0.7, 1)])
def test_without_sampling_it_is_the_test_of_neyman_and_pearson(sigma, steps):
    """Two Gaussians, μ = sqrt(T) / σ apart: the best test has power Φ(Φ⁻¹(FPR) + μ) (Dong, Roth and Su 2022)."""
    run = gaussian.DpSgdRun(examples=100, batch_size=100, noise_multiplier=sigma, steps=steps)
    exact = stats.norm.cdf(stats.norm.ppf(RATES) + np.sqrt(steps) / sigma)
    found = largest_tpr(run, RATES)
    assert np.all(found >= exact - 1e-9)
    assert found == pytest.approx(exact, rel=2e-3)


def test_one_sampled_step_has_the_power_of_its_likelihood_ratio():
    """A threshold on the output is the best test of N(0, σ²) against (1 - q) N(0, σ²) + q N(1, σ²), both ways round."""
    sigma, q = 0.5, 0.3
    run = gaussian.DpSgdRun(examples=10, batch_size=3, noise_multiplier=sigma, steps=1)

    def mixed(x):
        return (1 - q) * stats.norm.sf(x / sigma) + q * stats.norm.sf((x - 1) / sigma)

    x = np.linspace(-8, 9, 400_001)
    present = np.interp(RATES, stats.norm.sf(x / sigma)[::-1], mixed(x)[::-1])
    absent = np.interp(RATES, 1 - mixed(x), stats.norm.cdf(x / sigma))
    found = largest_tpr(run, RATES)
    assert np.all(found >= np.maximum(present, absent) - 1e-6)
    # At the ends of the curve one direction is the worse one, and the bound is its test.
    assert found[:3] == pytest.approx(present[:3], rel=2e-3)


def test_the_curve_says_more_than_its_headline():
    epsilon = gaussian.epsilon_after(WALKTHROUGH, WALKTHROUGH.steps, 1e-5)
    single = figures.tpr_bound(epsilon, 1e-5, RATES)
    curve = largest_tpr(WALKTHROUGH, RATES)
    assert np.all(curve <= single + 1e-4)
    # e^3 times 1 % is a fifth; the curve allows a quarter of that.
    assert single[2] == pytest.approx(0.2, abs=2e-3)
    assert curve[2] == pytest.approx(0.0509, abs=1e-4)


def test_curve_is_a_tradeoff():
    rates = np.linspace(0, 1, 201)
    power = largest_tpr(WALKTHROUGH, rates)
    assert power[0] == pytest.approx(0, abs=1e-9)
    assert power[-1] == 1
    assert np.all(power >= rates - 1e-12)
    assert np.all(np.diff(power, 2) <= 1e-9)
    # Symmetric: exchanging members and non-members maps its border to itself.
    assert largest_tpr(WALKTHROUGH, 1 - power[1:-1]) == pytest.approx(1 - rates[1:-1], abs=2e-4)
    assert largest_tpr(WALKTHROUGH, 0.01).shape == ()
    assert largest_tpr(WALKTHROUGH, [[0.1], [0.2]]).shape == (2, 1)


@pytest.mark.parametrize(("sigma", "epsilon"), [(0.8, 0.5), (0.8, 3.0), (3.7306, 0.5), (3.7306, 1.0)])
def test_a_loss_beyond_epsilon_is_bounded_by_what_it_truly_is_and_more_likely_than_delta(sigma, epsilon):
    """The loss of a Gaussian is N(μ²/2, μ²)."""
    mu, event = 1 / sigma, dp_accounting.GaussianDpEvent(sigma)
    exact = stats.norm.sf((epsilon - mu**2 / 2) / mu)
    delta = composition.delta_of(event, epsilon)
    bound = probability_beyond(event, epsilon)
    assert delta < exact <= bound + 1e-12
    assert bound <= 4 * exact + 1e-9
    assert probability_beyond(event, 0.0) == 1.0


def test_beliefs():
    assert largest_belief(0.5, 3.0) == pytest.approx(0.9526, abs=1e-4)
    assert largest_belief(0.01, 0.0) == pytest.approx(0.01)
    assert largest_belief(0.5, 1e6) == 1.0


@pytest.mark.parametrize(
    ("call", "naming"),
    [
        (lambda: largest_tpr(WALKTHROUGH, 1.5), "fpr"),
        (lambda: largest_tpr(WALKTHROUGH, np.nan), "fpr"),
        (lambda: probability_beyond(WALKTHROUGH, -1.0), "epsilon"),
        (lambda: largest_belief(1.0, 1.0), "prior"),
        (lambda: largest_belief(0.5, -1.0), "epsilon"),
        (lambda: largest_tpr(gaussian.DpSgdRun(10, 1, 0.05, 1), 0.1), "noise_multiplier"),
    ],
)
def test_what_is_out_of_range_is_named(call, naming):
    with pytest.raises(InputError, match=naming):
        call()
