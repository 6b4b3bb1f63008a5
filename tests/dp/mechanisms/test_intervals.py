"""Intervals for noised means: quantiles against simulation, and coverage two-sided for both mechanisms."""

import numpy as np
import pytest

from tfprivacy_lab.checks import InputError
from tfprivacy_lab.dp.mechanisms.additive import GaussianMechanism, LaplaceMechanism
from tfprivacy_lab.dp.mechanisms.intervals import noise_quantile, ratio_interval

LAPLACE, GAUSS = LaplaceMechanism(1.0, 3.0), GaussianMechanism(1.0, 4.0)


def draws(mechanism, rng, size):
    if isinstance(mechanism, LaplaceMechanism):
        return rng.laplace(scale=mechanism.scale, size=size)
    return rng.normal(scale=mechanism.stddev, size=size)


@pytest.mark.parametrize("mechanism", [LAPLACE, GAUSS])
@pytest.mark.parametrize("ratio", [0.0, 0.3, -1.0, 1.0 + 1e-7, 4.0])
@pytest.mark.parametrize("confidence", [0.5, 0.95])
def test_quantile_is_that_of_simulated_noise(mechanism, ratio, confidence):
    first, second = draws(mechanism, np.random.default_rng(0), (2, 400_000))
    share = np.mean(np.abs(first - ratio * second) <= noise_quantile(mechanism, confidence, ratio))
    assert abs(share - confidence) < 4.5 * np.sqrt(0.25 / 400_000)


@pytest.mark.parametrize("mechanism", [LAPLACE, GAUSS])
@pytest.mark.parametrize(("total", "count"), [(-300.0, 450), (40.0, 60), (0.0, 100)])
def test_interval_covers_the_truth_as_often_as_it_says(mechanism, total, count):
    rng, runs, covered, halved = np.random.default_rng(1), 1500, 0, 0
    half = type(mechanism)(1.0, noise_quantile(mechanism, 0.95) / noise_quantile(type(mechanism)(1.0, 1.0), 0.95) / 2)
    for noise in draws(mechanism, rng, (runs, 2)):
        released = total + noise[0], count + noise[1]
        _, low, high = ratio_interval(*released, mechanism, 0.9)
        covered += low <= total / count <= high
        _, low, high = ratio_interval(*released, half, 0.9)
        halved += low <= total / count <= high
    margin = 4 * np.sqrt(0.09 / runs)
    assert abs(covered / runs - 0.9) < margin
    assert halved / runs < 0.9 - margin  # an interval for half the noise is found out


def test_exact_sums_give_an_interval_around_the_mean_that_shrinks_with_the_count():
    estimate, low, high = ratio_interval(50.0, 100.0, GAUSS)
    assert estimate == 0.5
    assert low < 0.5 < high
    _, nearer, further = ratio_interval(5000.0, 10_000.0, GAUSS)
    assert (further - nearer) == pytest.approx((high - low) / 100, rel=0.02)


@pytest.mark.parametrize(
    ("call", "naming"),
    [
        (lambda: ratio_interval(1.0, 5.0, GAUSS), "count"),
        (lambda: ratio_interval(float("nan"), 50.0, GAUSS), "total"),
        (lambda: noise_quantile(GAUSS, 1.0), "confidence"),
        (lambda: noise_quantile("gauss"), "mechanism"),
    ],
)
def test_what_does_not_fit_is_named(call, naming):
    with pytest.raises(InputError, match=naming):
        call()
