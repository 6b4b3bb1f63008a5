"""ε of many uses: never below the truth, and near it, at every δ, against what is known without transforms."""

import math

import dp_accounting
import numpy as np
import pytest
from dp_accounting import pld
from scipy import optimize, special

from tfprivacy_lab.checks import InputError
from tfprivacy_lab.dp.accounting import composition, phases
from tfprivacy_lab.dp.accounting import gaussian as accounting
from tfprivacy_lab.dp.accounting.budget import calibrate_noise_multiplier, steps_within
from tfprivacy_lab.dp.accounting.gaussian import DpSgdRun, epsilon_after
from tfprivacy_lab.dp.accounting.group import group_epsilon
from tfprivacy_lab.dp.accounting.privacy_loss import analytic_gaussian, loss_grid
from tfprivacy_lab.dp.accounting.privacy_loss import pld as fourier_accountant
from tfprivacy_lab.dp.accounting.privacy_loss.loss_grid import losses_of
from tfprivacy_lab.dp.accounting.privacy_loss.mechanisms import (
    PoissonSampledGaussian,
    PoissonSampledLaplace,
    canonical,
)
from tfprivacy_lab.dp.accounting.privacy_loss.pld import deltas_of_counts, epsilon_of_counts
from tfprivacy_lab.dp.accounting.selection import Repetitions, epsilon_tuned
from tfprivacy_lab.dp.ledger.ledger import Ledger

DELTAS = (1e-2, 1e-5, 1e-8, 1e-10, 1e-12, 1e-13, 1e-14)
TUTORIAL = DpSgdRun(60_000, 256, 1.1, 14_063)


def epsilon(delta, *uses):
    return epsilon_of_counts(canonical(dict(uses)), delta)


def transformed(sigma, count, delta):
    """ε of Gaussians without sampling, by transforms as if no closed form were known."""
    interval = fourier_accountant.interval_for(((PoissonSampledGaussian(1.0, sigma), count),))
    (loss,) = losses_of(PoissonSampledGaussian(1.0, sigma), interval)
    return fourier_accountant._epsilon_of_direction(((loss, count),), delta)


@pytest.mark.parametrize(
    ("sigma", "count"), [(2.0, 1), (0.5, 2), (4.0, 9), (30.0, 1000), (50.0, 30_000), (400.0, 10**6), (5000.0, 10**7)]
)
def test_gaussians_in_closed_form(sigma, count):
    """T uses of noise σ are one of σ/√T, however small δ is."""
    for delta in (*DELTAS, 1e-25):
        exact = analytic_gaussian.gaussian_epsilon(sigma / math.sqrt(count), delta)
        assert exact <= transformed(sigma, count, delta) <= exact * 1.004, delta


def test_gaussians_in_two_kinds():
    """1/σ² adds up, here through the product of two transforms of different losses, in each order."""
    kinds = [(60.0, 2000), (15.0, 100)]
    sigma = sum(count / sigma**2 for sigma, count in kinds) ** -0.5
    interval = 1e-4
    uses = tuple((losses_of(PoissonSampledGaussian(1.0, sigma), interval)[0], count) for sigma, count in kinds)
    for delta in DELTAS:
        exact = analytic_gaussian.gaussian_epsilon(sigma, delta)
        for order in (uses, uses[::-1]):
            assert exact <= fourier_accountant._epsilon_of_direction(order, delta) <= exact * 1.002


@pytest.mark.parametrize("delta", DELTAS)
def test_composed_gaussians_are_exact(delta):
    events = [*map(dp_accounting.GaussianDpEvent, (2.0, 3.0)), DpSgdRun(100, 100, 7.0, 3)]
    exact = analytic_gaussian.gaussian_epsilon((1 / 4 + 1 / 9 + 3 / 49) ** -0.5, delta)
    assert exact <= composition.compose(*events, delta=delta)["epsilon"] <= exact * (1 + 1e-9)


def delta_of_two(one, other, at):
    """δ(ε) of two sampled Gaussian steps: the integral over the first of the second's, in closed form."""

    def loss(x, q, sigma):
        return np.log1p(q * np.expm1((2 * x - 1) / (2 * sigma**2)))

    def second(epsilon, q, sigma, added):
        sign = -1 if added else 1
        with np.errstate(divide="ignore", invalid="ignore"):
            x = sigma**2 * np.log1p(np.expm1(sign * epsilon) / q) + 0.5
        x = np.where(np.isnan(x), -np.inf, x)
        zero, moved = special.ndtr(-sign * x / sigma), special.ndtr(-sign * (x - 1) / sigma)
        mixed = (1 - q) * zero + q * moved
        return zero - np.exp(epsilon) * mixed if added else mixed - np.exp(epsilon) * zero

    q, sigma = one
    x, weights = np.polynomial.legendre.leggauss(8)
    starts = np.linspace(-14 * sigma, 1 + 14 * sigma, 6001)
    width = starts[1] - starts[0]
    x, weights = (starts[:-1, None] + width * (x + 1) / 2).ravel(), np.tile(weights * width / 2, 6000)
    zero = np.exp(-((x / sigma) ** 2) / 2) / (sigma * math.sqrt(2 * math.pi)) * weights
    removed = zero * np.exp(loss(x, q, sigma)) @ second(at - loss(x, q, sigma), *other, False)
    return max(float(removed), float(zero @ second(at + loss(x, q, sigma), *other, True)))


@pytest.mark.slow_but("one0-other0", "one3-other3")
@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((0.01, 1.1), (0.01, 1.1)),
        ((0.01, 1.1), (0.3, 2.0)),
        ((0.5, 5.0), (0.02, 0.8)),
        ((0.001, 2.0), (1.0, 3.0)),
        ((1e-4, 0.7), (0.9, 20.0)),
        ((0.002, 30.0), (0.001, 40.0)),
    ],
)
def test_two_sampled_steps_against_an_integral(one, other):
    steps = [dp_accounting.PoissonSampledDpEvent(q, dp_accounting.GaussianDpEvent(sigma)) for q, sigma in (one, other)]
    for delta in DELTAS:
        found = composition.compose(*steps, delta=delta)["epsilon"]
        assert delta_of_two(one, other, found) <= delta * (1 + 1e-7), delta
        if found:
            assert delta_of_two(one, other, found / 1.01 - 1e-9) > delta, delta


@pytest.mark.parametrize(
    ("q", "sigma", "count"),
    [
        (1e-3, 20.0, 10**6),  # 0.412 on a grid of 1e-4, where 0.317 is right
        (0.01, 20.0, 10**7),
        (1e-3, 5.0, 100),
        (1e-4, 2.0, 1000),
        (0.01, 300.0, 10),
        (0.01, 1.1, 3000),
    ],
)
def test_finer_grids_say_the_same(q, sigma, count, monkeypatch):
    """A quarter of the grid; each is above the truth, so that what lies between them is all that can be lost."""
    wanted, interval = {}, fourier_accountant.interval_for(((PoissonSampledGaussian(q, sigma), count),))
    for delta in (1e-5, 1e-12, 1e-14):
        wanted[delta] = epsilon(delta, (PoissonSampledGaussian(q, sigma), count))
    monkeypatch.setattr(fourier_accountant, "interval_for", lambda counts: interval / 4)
    epsilon_of_counts.cache_clear()
    for delta, found in wanted.items():
        finer = epsilon(delta, (PoissonSampledGaussian(q, sigma), count))
        assert finer * (1 - 1e-9) <= found <= finer * 1.01, delta
    epsilon_of_counts.cache_clear()


def test_small_losses_get_a_finer_grid():
    """Figures that a grid of 1e-4 puts at 0.412 and at thrice what they are."""
    run = DpSgdRun(10**6, 1000, 20.0, 10**6)
    assert epsilon_after(run, run.steps, 1e-12) == pytest.approx(0.317, abs=1e-3)
    # So many narrow steps are nearly one Gaussian of σ / (q √T).
    for run in (DpSgdRun(10**6, 1000, 50.0, 10**4), DpSgdRun(10**6, 100, 20.0, 10**6)):
        sigma = run.noise_multiplier / (run.sampling_probability * run.steps**0.5)
        near = analytic_gaussian.gaussian_epsilon(sigma, 1e-5)
        assert 0.001 < near < 0.02
        assert epsilon_after(run, run.steps, 1e-5) == pytest.approx(near, rel=0.02)


def least_epsilon(parts, delta):
    """What telling by the largest single loss reaches, in closed form: no accountant may say less."""
    aims = np.linspace(0, 12, 4001)

    def reached(epsilon):
        log_with = log_without = 0
        for q, sigma, count in parts:
            x = sigma**2 * np.log1p(np.expm1(aims) / q) + 0.5
            zero = special.ndtr(-x / sigma)
            log_with = log_with + count * np.log1p(-((1 - q) * zero + q * special.ndtr((1 - x) / sigma)))
            log_without = log_without + count * np.log1p(-zero)
        return (-np.expm1(log_with) + math.exp(epsilon) * np.expm1(log_without)).max()

    return optimize.brentq(lambda epsilon: reached(epsilon) - delta, 0, 30)


@pytest.mark.slow_but("3e-14-*")
@pytest.mark.parametrize(
    "parts",
    [
        [(1e-4, 0.5, 20_000), (1e-3, 1.1, 3000)],
        [(1e-4, 0.5, 20_000), (1e-4, 0.6, 20_000)],
        [(1e-5, 0.4, 20_000), (1e-5, 0.5, 20_000)],
    ],
)
@pytest.mark.parametrize("delta", [1e-12, 3e-14])
def test_where_one_rare_loss_decides_it_is_that_loss_s(parts, delta):
    """Thousands of steps of two kinds, and a δ below what a transform of doubles leaves."""
    least = least_epsilon(parts, delta)
    found = composition.compose(*[DpSgdRun(100_000, round(1e5 * q), s, t) for q, s, t in parts], delta=delta)
    assert least < found["epsilon"] < least * 1.02


@pytest.mark.parametrize("delta", [1e-12, 1e-13, 3e-14])
def test_a_composition_costs_no_less_than_a_part_of_it(delta):
    part, more = DpSgdRun(60_000, 60, 0.7, 20_000), DpSgdRun(60_000, 256, 1.1, 3000)
    alone, both = (composition.compose(*parts, delta=delta)["epsilon"] for parts in ([part], [part, more]))
    assert alone < both


@pytest.mark.slow_but("*-1e-07")
@pytest.mark.parametrize("delta", [1e-3, 1e-7])
@pytest.mark.parametrize(
    ("q", "sigma", "count"), [(0.03, 1.1, 300), (0.004, 0.7, 2000), (0.2, 3.0, 60), (0.5, 30.0, 999)]
)
def test_it_is_dp_accountings_figure_where_rounding_is_out_of_sight(q, sigma, count, delta):
    step = dp_accounting.PoissonSampledDpEvent(q, dp_accounting.GaussianDpEvent(sigma))
    theirs = pld.PLDAccountant().compose(step, count).get_epsilon(delta)
    assert epsilon(delta, (PoissonSampledGaussian(q, sigma), count)) == pytest.approx(theirs, rel=2e-6)


@pytest.mark.parametrize(("scale", "count"), [(2.0, 3), (20.0, 100)])
def test_laplace_noise_against_direct_convolution(scale, count):
    """Of the masses themselves, one at a time: sums of products without a subtraction, as exact at 1e-14."""
    counts = canonical({PoissonSampledLaplace(0.3, scale): count})
    found = []
    for loss in losses_of(PoissonSampledLaplace(0.3, scale), fourier_accountant.interval_for(counts)):
        sums = np.ones(1)
        for _ in range(count):
            sums = np.convolve(sums, loss.masses)
        losses = (loss.lowest * count + np.arange(len(sums))) * loss.interval
        found.append((sums, losses))
    for delta in DELTAS:
        at = epsilon_of_counts(counts, delta)
        for ratio, holds in ((1 + 1e-7, True), (0.998, False)):
            deltas = [float(s @ np.maximum(-np.expm1(at * ratio - x), 0)) for s, x in found]
            assert (max(deltas) <= delta * (1 + 1e-9)) == holds, (delta, ratio)


def test_every_path_says_the_same(tmp_path):
    """A run, its events, its phases, a ledger, a group of one, a search and a plan: one function."""
    for delta in (1e-5, 1e-13):
        spent = epsilon_after(TUTORIAL, TUTORIAL.steps, delta)
        phase = phases.Phase(60_000, 256, 1.1, "poisson", TUTORIAL.steps)
        ledger = Ledger.create(tmp_path / f"{delta}", "data", 100.0, delta)
        ledger.register("run", TUTORIAL)
        one_run = epsilon_tuned(TUTORIAL, Repetitions("negative_binomial", 2.0), delta)["epsilon_one_run"]
        assert {
            accounting.account(TUTORIAL, delta)["epsilon"],
            composition.compose(TUTORIAL, delta=delta)["epsilon"],
            composition.compose_parallel(TUTORIAL, delta=delta)["epsilon"],
            phases.epsilon_of([phase], delta),
            ledger.spent(),
            group_epsilon(TUTORIAL, 1, delta),
            one_run,
        } == {spent}
        assert steps_within(TUTORIAL, spent, delta) == TUTORIAL.steps
        assert phases.further_steps_within([phase], spent, delta, 1000) == 0
        sigma = calibrate_noise_multiplier(60_000, 256, TUTORIAL.steps, spent, delta)
        assert sigma == pytest.approx(1.1, abs=1e-4)
        # δ at that ε is the δ asked for.
        assert composition.delta_of(TUTORIAL, spent) == pytest.approx(delta, rel=1e-6)
        both = [phase, phases.Phase(60_000, 256, 2.0, "poisson", 100)]
        asked = [one.event() for one in both]
        ledger.register("other", asked[1])
        assert phases.epsilon_of(both, delta) == composition.compose(*asked, delta=delta)["epsilon"] == ledger.spent()


def test_the_curve_is_that_of_epsilon_at_every_delta():
    counts = canonical({PoissonSampledGaussian(0.01, 1.1): 700, PoissonSampledLaplace(0.1, 5.0): 20})
    deltas = np.array([1e-2, 1e-6, 1e-12, 1e-20])
    epsilons = np.array([epsilon_of_counts(counts, float(delta)) for delta in deltas])
    assert deltas_of_counts(counts, epsilons) == pytest.approx(deltas, rel=1e-6)
    # Without sampling, down to where no double is.
    gaussian = composition.privacy_loss(dp_accounting.GaussianDpEvent(1.0))
    expected = [math.exp(analytic_gaussian.log_delta(1.0, at)) for at in (0.0, 3.0, 30.0)]
    assert gaussian.get_delta_for_epsilon([0.0, 3.0, 30.0]) == pytest.approx(expected, rel=1e-9)
    assert composition.privacy_loss(TUTORIAL).get_delta_for_epsilon(2.0) == pytest.approx(
        float(pld.PLDAccountant().compose(TUTORIAL.event()).get_delta(2.0)), rel=1e-4
    )


def test_more_uses_and_less_delta_never_cost_less():
    step = PoissonSampledGaussian(0.02, 1.3)
    by_count = [epsilon(1e-9, (step, count)) for count in (1, 2, 3, 10, 200, 201, 5000, 100_000, 100_001)]
    by_delta = [epsilon(delta, (step, 500)) for delta in DELTAS]
    assert (np.diff(by_count) > 0).all()
    assert (np.diff(by_delta) > 0).all()


def test_delta_so_small_that_rare_losses_count_is_refused():
    with pytest.raises(InputError, match=r"delta=1e-40; use a larger delta"):
        epsilon_after(TUTORIAL, 1000, 1e-40)
    assert epsilon(1e-40, (PoissonSampledGaussian(0.01, 1.1), 1000)) == math.inf


def test_nothing_to_lose():
    assert epsilon(0.1, (PoissonSampledGaussian(0.001, 90.0), 100)) == 0.0
    assert epsilon(0.5, (PoissonSampledGaussian(0.1, 2.0), 1)) == 0.0


def test_the_bound_on_rounding_is_added(monkeypatch):
    """Transforms that are wrong by as much as is allowed for say less; the bound makes good for it."""
    counts = canonical({PoissonSampledGaussian(0.01, 1.1): 1000})
    right = epsilon_of_counts(counts, 1e-10)
    transform = fourier_accountant._transformed

    def wrong(loss, tilt, length):
        found, log_sizes, log_bounds = transform(loss, tilt, length)
        return found, log_sizes - (log_bounds - log_sizes), log_bounds

    monkeypatch.setattr(fourier_accountant, "_transform", wrong)
    for cached in (epsilon_of_counts, fourier_accountant._curve):
        cached.cache_clear()
    assert right <= epsilon_of_counts(counts, 1e-10) * (1 + 1e-12)
    for cached in (epsilon_of_counts, fourier_accountant._curve):
        cached.cache_clear()


@pytest.mark.parametrize(("sigma", "dearer"), [(0.3, 1.02), (0.1, 1.01)])
def test_little_noise_without_sampling_beside_other_mechanisms(sigma, dearer):
    """Its losses reach far below zero, where 1 + (e^x - 1) has lost all digits."""
    alone = analytic_gaussian.gaussian_epsilon(sigma, 1e-5)
    events = dp_accounting.GaussianDpEvent(sigma), DpSgdRun(10_000, 100, 2.0, 100)
    assert alone < composition.compose(*events, delta=1e-5)["epsilon"] < alone * dearer


def test_losses_far_below_zero_are_the_exponents_themselves():
    x = np.array([-40.0, -3.0, 0.4, 0.5, 30.0])
    found = loss_grid._mixture_loss(x, 0.2, np.array([1.0]), np.array([1.0]))
    np.testing.assert_allclose(found, (2 * x - 1) / 0.08, rtol=1e-14, atol=1e-14)
