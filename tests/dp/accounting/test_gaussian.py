"""Golden numbers, independent oracles and refusals of the accountant."""

import dataclasses
import math
import re
import subprocess
import sys
import warnings

import dp_accounting
import numpy as np
import pytest
from dp_accounting import pld, rdp
from mpmath import mp, mpf, npdf, quad
from scipy import integrate, stats

from tfprivacy_lab.checks import InputError, LargeDeltaWarning
from tfprivacy_lab.dp.accounting import budget, comparison, gaussian
from tfprivacy_lab.dp.accounting.budget import calibrate_noise_multiplier
from tfprivacy_lab.dp.accounting.gaussian import DpSgdRun, account, epsilon_after, steps_for
from tfprivacy_lab.dp.accounting.laplace import LaplaceRun, account_laplace
from tfprivacy_lab.dp.plan import TrainingPlan

TUTORIAL = DpSgdRun(examples=60_000, batch_size=256, noise_multiplier=1.1, steps=steps_for(60_000, 256, 60))


def test_tutorial_run_golden():
    """TF Privacy's MNIST tutorial, under three accountants."""
    figures = account(TUTORIAL, 1e-5)
    assert figures["steps"] == 14_063
    assert figures["epsilon"] == pytest.approx(2.382, abs=5e-4)
    assert figures["epsilon_rdp"] == pytest.approx(2.597, abs=5e-4)
    assert figures["epsilon_no_amplification"] == pytest.approx(56.950, abs=5e-4)
    plain = pld.PLDAccountant().compose(TUTORIAL.event_without_amplification()).get_epsilon(1e-5)
    assert figures["epsilon_no_amplification_exact"] == pytest.approx(plain, rel=1e-4)
    assert figures["epsilon_no_amplification_exact"] <= plain < figures["epsilon_no_amplification"]
    assert (figures["sampling"], figures["adjacency"]) == ("poisson", "add_or_remove_one")
    assert figures["accountant"].startswith("PLD (dp-accounting 0.6")


def test_large_sampling_golden():
    run = DpSgdRun(examples=1000, batch_size=100, noise_multiplier=3.0, steps=512)
    assert account(run, 1e-6)["epsilon"] == pytest.approx(3.77, abs=5e-3)


def test_rdp_orders_against_integral():
    """Rényi divergence of the sampled Gaussian (Mironov et al. 2019, section 3) by quadrature."""
    run = DpSgdRun(examples=100, batch_size=1, noise_multiplier=2.5, steps=50)
    orders = [1.5, 2.5, 5.0, 50.0, 100.0]
    accountant = rdp.RdpAccountant(orders).compose(run.event())
    delta = 1e-5
    assert accountant.get_epsilon(delta) == pytest.approx(min_epsilon(orders, run, delta), rel=1e-6)
    golden = {5.0: 2.18075656e-03, 50.0: 2.38460375e-02, 100.0: 167.416308}
    for order, value in golden.items():
        assert float(renyi(order, run)) == pytest.approx(value, rel=1e-7)
    # Fractional orders: the integral decides (the library's series agrees to nine digits).
    assert float(renyi(1.5, run)) == pytest.approx(6.50070897e-04, rel=1e-8)
    assert float(renyi(2.5, run)) == pytest.approx(1.08541806e-03, rel=1e-8)


def renyi(order, run):
    """T times the Rényi divergence of one sampled Gaussian step, 40 digits."""
    with mp.workdps(40):
        q, sigma, order = mpf(run.batch_size) / run.examples, mpf(run.noise_multiplier), mpf(order)

        def integrand(x):
            return npdf(x, 0, sigma) * ((1 - q) + q * npdf(x, 1, sigma) / npdf(x, 0, sigma)) ** order

        peaks = [-80, -20, 0, 1, 20, order / 2, order, order + 20, order + 80]
        moment = quad(integrand, sorted(set(map(float, peaks))))
        return run.steps * mp.log(moment) / (order - 1)


def min_epsilon(orders, run, delta):
    """Canonne, Kamath and Steinke 2020, Prop. 12."""
    return min(float(renyi(a, run)) + math.log1p(-1 / a) - math.log(delta * a) / (a - 1) for a in orders)


def test_pld_against_integral_for_one_step():
    """δ(ε) of one sampled Gaussian step, add direction, by quadrature."""
    run = DpSgdRun(examples=50, batch_size=5, noise_multiplier=0.8, steps=1)
    epsilon = epsilon_after(run, 1, 1e-4)
    q, sigma = run.sampling_probability, run.noise_multiplier

    def excess(x, sign):
        with_one = (1 - q) * stats.norm.pdf(x, 0, sigma) + q * stats.norm.pdf(x, 1, sigma)
        without = stats.norm.pdf(x, 0, sigma)
        one, other = (with_one, without) if sign > 0 else (without, with_one)
        return max(0.0, one - math.exp(epsilon) * other)

    delta = max(integrate.quad(excess, -10, 12, args=(sign,), limit=400, epsabs=1e-12)[0] for sign in (1, -1))
    assert delta == pytest.approx(1e-4, rel=2e-3)
    assert delta <= 1e-4 * (1 + 1e-6)


def test_pld_without_sampling_is_the_analytic_gaussian():
    """q = 1: T Gaussian steps are one with σ/√T (Balle and Wang 2018, Thm 8)."""
    run = DpSgdRun(examples=64, batch_size=64, noise_multiplier=4.0, steps=9)
    epsilon, sigma = epsilon_after(run, 9, 1e-5), 4.0 / 3
    exact = stats.norm.cdf(0.5 / sigma - epsilon * sigma) - math.exp(epsilon) * stats.norm.cdf(
        -0.5 / sigma - epsilon * sigma
    )
    assert exact == pytest.approx(1e-5, rel=1e-2)
    assert exact <= 1e-5


def test_matches_the_accountant_object():
    run = DpSgdRun(examples=55_000, batch_size=1024, noise_multiplier=1.7, steps=700)
    accountant = pld.PLDAccountant().compose(run.event())
    assert epsilon_after(run, 700, 1e-5) == pytest.approx(accountant.get_epsilon(1e-5), rel=1e-9)


def test_epsilon_grows_with_steps_and_is_free_before_the_first():
    curve = [epsilon_after(TUTORIAL, steps, 1e-5) for steps in (0, 1, 10, 1000, 14_063)]
    assert curve[0] == 0.0
    assert np.all(np.diff(curve) > 0)


@pytest.mark.slow_but("0.3", "3.0")
@pytest.mark.parametrize("epsilon", [0.3, 1.0, 3.0, 8.0, 40.0])
def test_calibration_is_tight_and_never_over(epsilon):
    steps = steps_for(55_000, 2048, 20)
    sigma = calibrate_noise_multiplier(55_000, 2048, steps, epsilon, 1e-5)
    run = DpSgdRun(55_000, 2048, sigma, steps)
    less_noise = DpSgdRun(55_000, 2048, sigma - 1e-4, steps)
    assert epsilon_after(run, steps, 1e-5) <= epsilon
    assert epsilon_after(less_noise, steps, 1e-5) > epsilon


@pytest.mark.parametrize(
    "given", [(60_000, 60_000, 5, 1e-4, 1e-6), (10**6, 10**6, 1, 8e-5, 1e-9), (60_000, 30_000, 4, 1e-3, 1e-7)]
)
def test_calibration_meets_small_budgets_tightly(given):
    """RDP of few orders has no say in which budgets noise of up to 1e5 meets."""
    examples, batch_size, steps, epsilon, delta = given
    sigma = calibrate_noise_multiplier(*given)
    assert 1e3 < sigma < 1e5
    enough, less = (DpSgdRun(examples, batch_size, factor * sigma, steps) for factor in (1, 0.99))
    assert epsilon_after(enough, steps, delta) <= epsilon < epsilon_after(less, steps, delta)


def test_calibration_says_which_budgets_nothing_meets():
    assert epsilon_after(DpSgdRun(60_000, 60_000, 1e5, 5), 5, 1e-6) > 2e-5
    with pytest.raises(InputError, match="No noise multiplier up to 100000 meets epsilon=2e-05"):
        calibrate_noise_multiplier(60_000, 60_000, 5, 2e-5, 1e-6)


def test_calibration_is_remembered_and_warns_each_time(monkeypatch):
    given = (1010, 101, 10, 3.0, 1e-3)
    with pytest.warns(LargeDeltaWarning):
        first = calibrate_noise_multiplier(*given)
    monkeypatch.setattr(budget, "epsilon_after", None)
    with pytest.warns(LargeDeltaWarning):
        assert calibrate_noise_multiplier(*(np.array(value) for value in given)) == first


def test_calibration_inverts_the_tutorial():
    sigma = calibrate_noise_multiplier(60_000, 256, 14_063, account(TUTORIAL, 1e-5)["epsilon"], 1e-5)
    assert sigma == pytest.approx(1.1, abs=1e-4)


def test_event_says_what_the_run_does():
    event = TUTORIAL.event()
    assert event.count == 14_063
    assert event.event.sampling_probability == 256 / 60_000
    assert event.event.event == dp_accounting.GaussianDpEvent(1.1)


def test_tensorflow_privacy_figures_beside_ours():
    """The microbatching default of the statement halves the noise multiplier."""
    figures = comparison.tensorflow_privacy_figures(TUTORIAL, 1e-5)
    assert figures["compute_dp_sgd_privacy"] == pytest.approx(2.597, abs=1e-3)
    assert poisson_line(figures["statement"]) == pytest.approx(2.597, abs=1e-3)
    # dp-accounting 0.6 adds the series of fractional orders by magnitude, an upper bound; 0.4 gave 16.384.
    assert poisson_line(figures["statement_default"]) == pytest.approx(16.420, abs=1e-3)


def poisson_line(statement):
    return float(re.search(r"Poisson sampling \(\*\):\s+([\d.]+)", statement).group(1))


@pytest.mark.parametrize(
    "change",
    [
        {"examples": 0},
        {"examples": 2.5},
        {"batch_size": 0},
        {"batch_size": 60_001},
        {"noise_multiplier": 0.0},
        {"noise_multiplier": math.nan},
        {"noise_multiplier": math.inf},
        {"steps": 0},
        {"steps": True},
    ],
)
def test_bad_runs_are_refused_by_name(change):
    good = {"examples": 60_000, "batch_size": 256, "noise_multiplier": 1.1, "steps": 10}
    with pytest.raises(InputError, match=next(iter(change))):
        DpSgdRun(**(good | change))


@pytest.mark.parametrize("delta", [0, 1, -1e-5, math.nan, "x", None])
def test_bad_delta_is_refused(delta):
    with pytest.raises(InputError, match="delta"):
        account(TUTORIAL, delta)


@pytest.mark.parametrize("epsilon", [0, -1, math.nan, math.inf])
def test_bad_epsilon_is_refused(epsilon):
    with pytest.raises(InputError, match="epsilon"):
        calibrate_noise_multiplier(60_000, 256, 100, epsilon, 1e-5)


def test_delta_warning_at_one_over_n():
    assert gaussian.delta_warning(1e-5, 60_000) is None
    assert "1/examples" in gaussian.delta_warning(1 / 60_000, 60_000)


@pytest.mark.parametrize(
    "call",
    [
        lambda delta: account(DpSgdRun(1000, 100, 2.0, 10), delta),
        lambda delta: calibrate_noise_multiplier(1000, 100, 10, 3.0, delta),
        lambda delta: TrainingPlan(100, 1, 1.0, 1.0).calibrated(1000, 3.0, delta),
        lambda delta: gaussian.warn_of_large_delta(delta, 1000),
    ],
    ids=["account", "calibrate_noise_multiplier", "TrainingPlan.calibrated", "warn_of_large_delta"],
)
def test_a_delta_of_one_over_n_is_warned_of_once(call):
    with pytest.warns(LargeDeltaWarning, match=r"delta=0\.001 is not below 1/examples = 0\.001") as warned:
        call(1e-3)
    assert len(warned) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        call(9e-4)


def test_no_amplification_says_for_which_neighbours_it_holds():
    figures = account(TUTORIAL, 1e-5)
    assert (figures["adjacency"], figures["epsilon_no_amplification_adjacency"]) == ("add_or_remove_one", "zero_out")
    laplace = account_laplace(LaplaceRun(100, 10, 2.0, 20), 1e-5)
    assert (laplace["adjacency"], laplace["epsilon_no_amplification_adjacency"]) == ("add_or_remove_one", "zero_out")


def test_arrays_of_one_number_are_numbers():
    run = DpSgdRun(np.array(600), np.array(100), np.array(1.5), np.array(12))
    plain = DpSgdRun(600, 100, 1.5, 12)
    assert run == plain
    assert [type(value) for value in dataclasses.astuple(run)] == [int, int, float, int]
    assert epsilon_after(run, np.array(12), np.array(1e-4)) == epsilon_after(plain, 12, 1e-4)
    assert account(run, np.array(1e-4)) == account(plain, 1e-4)
    assert comparison.tensorflow_privacy_figures(run, np.array(1e-4)) == comparison.tensorflow_privacy_figures(
        plain, 1e-4
    )


def test_the_largest_noise_is_tried_before_a_budget_is_refused():
    given = 10**7, 100, 10**8
    epsilon = epsilon_after(DpSgdRun(10**7, 100, 97_000.0, 10**8), 10**8, 1e-12)
    sigma = calibrate_noise_multiplier(*given, epsilon, 1e-12)
    assert 90_000 < sigma <= 1e5


@pytest.mark.processes
def test_accounting_at_a_large_sampling_rate_is_quiet():
    """RDP drops orders there, and said so on stderr at every step of a search, and in TF Privacy's figures."""
    code = """
from tfprivacy_lab.dp import accounting
multiplier = accounting.calibrate_noise_multiplier(1170, 128, 46, 3.0, 1e-4)
accounting.tensorflow_privacy_figures(accounting.DpSgdRun(600, 100, 1.1274, 12), 1e-4)
print(multiplier)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200)
    assert (found.returncode, found.stderr) == (0, "")
    assert 0.5 < float(found.stdout) < 3
