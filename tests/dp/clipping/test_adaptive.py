"""Adaptive clipping: where the norm goes, what one example moves, and what a step costs."""

import dataclasses
import math

import dp_accounting
import numpy as np
import pytest
from scipy import stats

from tfprivacy_lab.checks import InputError
from tfprivacy_lab.dp.clipping.adaptive import QuantileClip, gradient_noise_multiplier, total_noise_multiplier
from tfprivacy_lab.dp.mechanisms.additive import GaussianMechanism


def brute_force_count(norms, weights, clip):
    """One example after the other: half a vote for "below", half a vote against."""
    total = 0.0
    for norm, weight in zip(norms, weights, strict=True):
        total += weight * (0.5 if norm <= clip else -0.5)
    return total


def test_centred_count_equals_a_loop():
    rng = np.random.default_rng(0)
    for m in (0, 1, 7, 300):
        norms, weights = rng.lognormal(size=m), rng.integers(0, 2, m)
        clip = QuantileClip(float(rng.lognormal()), 10, 1.0)
        assert clip.centred_count(norms, weights) == brute_force_count(norms, weights, clip.l2_norm_clip)
        assert clip.centred_count(norms) == brute_force_count(norms, np.ones(m), clip.l2_norm_clip)
    assert QuantileClip(1.0, 10, 1.0).centred_count([1.0, np.inf, np.nan]) == -0.5


def test_one_example_moves_the_count_by_a_half():
    rng = np.random.default_rng(1)
    for _ in range(100):
        norms = rng.lognormal(sigma=3, size=rng.integers(1, 40))
        clip = QuantileClip(float(rng.lognormal()), 10, 1.0)
        assert abs(clip.centred_count(norms) - clip.centred_count(norms[1:])) == 0.5


@pytest.mark.parametrize("quantile", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("start", [1e-3, 1.0, 1e3])
def test_norm_goes_to_the_target_quantile_whatever_its_start(quantile, start):
    """Poisson batches of log-normal norms under noise; the limit is the quantile, by the law's own inverse."""
    rng = np.random.default_rng(2)
    state, batch, history = QuantileClip(start, 2_000, 20.0, quantile, 0.3), 2_000, []
    for step in range(400):
        norms = rng.lognormal(1.0, 0.7, rng.poisson(batch))
        state = state.updated(state.centred_count(norms) + rng.normal(0, state.count_stddev))
        if step >= 300:
            history.append(state.l2_norm_clip)
    exact = stats.lognorm(0.7, scale=math.exp(1.0)).ppf(quantile)
    assert np.mean(np.log(history)) == pytest.approx(np.log(exact), abs=0.05)


def test_update_is_the_geometric_rule():
    state = QuantileClip(2.0, 100, 5.0, target_quantile=0.3, learning_rate=0.4)
    assert state.updated(20.0).l2_norm_clip == pytest.approx(2.0 * math.exp(-0.4 * (0.7 - 0.3)))
    assert state.updated(-50.0).l2_norm_clip == pytest.approx(2.0 * math.exp(0.4 * 0.3))
    assert dataclasses.replace(state.updated(-20.0), l2_norm_clip=2.0) == state
    assert state.updated(-20.0).l2_norm_clip == pytest.approx(2.0)
    assert state.l2_norm_clip == 2.0


def test_norm_stays_within_its_limits():
    state = QuantileClip(1.0, 1, 1.0, learning_rate=5.0, smallest=0.5, largest=3.0)
    assert state.updated(1e300).l2_norm_clip == 0.5
    assert state.updated(-1e300).l2_norm_clip == 3.0


def test_an_empty_batch_counts_as_half_below():
    """Under Poisson sampling nobody may be drawn, and that must not look like everybody above C."""
    state = QuantileClip(1.0, 10, 1.0, target_quantile=0.5)
    assert state.updated(state.centred_count([])).l2_norm_clip == 1.0


@pytest.mark.parametrize(("z", "count_stddev"), [(1.0, 10.0), (0.6, 0.4), (5.0, 3.0), (1.1, 12.8)])
def test_both_releases_are_one_gaussian_of_the_total_multiplier(z, count_stddev):
    gradient = gradient_noise_multiplier(z, count_stddev)
    assert gradient > z
    assert total_noise_multiplier(gradient, count_stddev) == pytest.approx(z, rel=1e-12)
    # The worst move of both, whitened: C of the gradients' noise, and 1/2 of the count's.
    distance = math.hypot(1 / gradient, 0.5 / count_stddev)
    assert distance == pytest.approx(1 / z)
    # Independently: dp_accounting composes the two as separate mechanisms.
    accountant = dp_accounting.pld.PLDAccountant()
    accountant.compose(dp_accounting.GaussianDpEvent(gradient))
    accountant.compose(dp_accounting.GaussianDpEvent(count_stddev / 0.5))
    assert accountant.get_epsilon(1e-5) == pytest.approx(GaussianMechanism(1.0, z).epsilon(1e-5), rel=1e-3)


def test_hockey_stick_of_both_releases_by_sampling_is_that_of_the_total():
    """Draw both noisy releases, and average max(0, 1 - e^(ε - loss)) over them."""
    z, count_stddev, epsilon = 1.0, 0.8, 1.0
    gradient, rng = gradient_noise_multiplier(z, count_stddev), np.random.default_rng(3)
    a = 1 + rng.normal(0, gradient, 400_000)
    b = 0.5 + rng.normal(0, count_stddev, 400_000)
    loss = stats.norm.logpdf(a, 1, gradient) - stats.norm.logpdf(a, 0, gradient)
    loss += stats.norm.logpdf(b, 0.5, count_stddev) - stats.norm.logpdf(b, 0, count_stddev)
    drawn = np.maximum(0, -np.expm1(epsilon - loss))
    for multiplier, right in ((z, True), (0.9, False), (1.1, False), (gradient, False)):
        exact = GaussianMechanism(1.0, multiplier).delta(epsilon)
        assert (abs(drawn.mean() - exact) < 5 * drawn.std() / np.sqrt(drawn.size)) == right


def test_golden_value_of_the_authors():
    """Andrew et al. 2021: σ_b = m/20 costs next to nothing; z = 1, m = 100 leaves 1.005 for the gradients."""
    assert gradient_noise_multiplier(1.0, 5.0) == pytest.approx(1 / math.sqrt(0.99))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: gradient_noise_multiplier(1.0, 0.5),
            "count_stddev > noise_multiplier / 2 = 0.5, got",
        ),
        (lambda: gradient_noise_multiplier(0, 1), "noise_multiplier=0"),
        (lambda: total_noise_multiplier(1, float("nan")), "count_stddev=nan"),
        (lambda: QuantileClip(1, 0, 1), "batch_size=0"),
        (lambda: QuantileClip(1, 10, 0), "count_stddev=0"),
        (lambda: QuantileClip(1, 10, 1, target_quantile=1.5), "target_quantile=1.5"),
        (lambda: QuantileClip(1, 10, 1, learning_rate=-1), "learning_rate=-1"),
        (lambda: QuantileClip(1e-9, 10, 1), "l2_norm_clip=1e-09"),
        (lambda: QuantileClip(1, 10, 1).updated(float("inf")), "noisy_count=inf"),
        (lambda: QuantileClip(1, 10, 1).centred_count([[1.0]]), r"one shape \(m,\), got \(1, 1\)"),
        (lambda: QuantileClip(1, 10, 1).centred_count([1.0], [1, 1]), "one shape"),
        (lambda: QuantileClip(1, 10, 1).centred_count([1.0], [2]), "weights to be 0 or 1"),
    ],
)
def test_arguments_are_checked(call, message):
    with pytest.raises(InputError, match=message):
        call()
