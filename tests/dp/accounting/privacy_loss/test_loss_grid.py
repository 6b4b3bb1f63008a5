"""Losses on a grid: between two divergences that are known, never below them, and as exact where they are tiny."""

import math

import numpy as np
import pytest
from scipy import special

from tfprivacy_lab.dp.accounting.privacy_loss import loss_grid
from tfprivacy_lab.dp.accounting.privacy_loss.loss_grid import losses_of
from tfprivacy_lab.dp.accounting.privacy_loss.mechanisms import (
    PoissonSampledGaussian,
    PoissonSampledGaussianGroup,
    PoissonSampledLaplace,
)

# Mechanisms, and a grid that is coarse for each.
MECHANISMS = {
    PoissonSampledGaussian(0.01, 1.1): 1e-3,
    PoissonSampledGaussian(0.4, 0.6): 1e-3,
    PoissonSampledGaussian(1e-5, 3.0): 1e-6,
    PoissonSampledGaussian(1.0, 2.0): 1e-3,
    PoissonSampledGaussianGroup(0.1, 3, 2.0): 1e-3,
    PoissonSampledLaplace(0.1, 2.0): 1e-3,
    PoissonSampledLaplace(1.0, 0.7): 1e-3,
}


def laplace_tail(z):
    return 0.5 * math.exp(-z) if z > 0 else 1 - 0.5 * math.exp(z)


def exact_deltas(mechanism, epsilon):
    """δ(ε) of both directions: masses on either side of the point where the loss passes ε."""
    laplace, noise = isinstance(mechanism, PoissonSampledLaplace), mechanism.noise_multiplier
    size = mechanism.group_size if isinstance(mechanism, PoissonSampledGaussianGroup) else 1
    q = mechanism.sampling_probability
    chances = [math.comb(size, j) * q**j * (1 - q) ** (size - j) for j in range(size + 1)]

    def loss(x):
        ratios = [
            math.expm1((abs(x) - abs(x - j)) / noise if laplace else j * (2 * x - j) / (2 * noise**2))
            for j in range(size + 1)
        ]
        return math.log1p(math.fsum(c * ratio for c, ratio in zip(chances, ratios, strict=True)))

    def crossing(aim):
        low, high = (0.0, 1.0) if laplace else (-14 * noise, 14 * noise)
        for _ in range(70):
            middle = (low + high) / 2
            low, high = (low, middle) if loss(middle) > aim else (middle, high)
        return high

    def masses(sign, at):
        """Above ``at``, or below; with the record, and of noise alone."""
        tail = laplace_tail if laplace else lambda z: special.ndtr(-z)
        tails = [tail(sign * (at - j) / noise) for j in range(size + 1)]
        return math.fsum(c * one for c, one in zip(chances, tails, strict=True)), tails[0]

    with_record, without = masses(1, crossing(epsilon))
    removed = with_record - math.exp(epsilon) * without
    with_record, without = masses(-1, crossing(-epsilon))
    return removed, without - math.exp(epsilon) * with_record


def delta_of(loss, epsilon):
    return float(loss.masses @ np.maximum(-np.expm1(epsilon - loss.losses), 0)) + loss.infinity_mass


@pytest.mark.parametrize("mechanism", MECHANISMS, ids=str)
def test_divergences_are_those_of_the_mechanism_at_the_grid_and_above_them_between(mechanism):
    interval, looked_at = MECHANISMS[mechanism], 0
    for loss, way in zip(losses_of(mechanism, interval), (0, 1), strict=False):
        for number in (1, 30, 200, 1000, 4000):
            at, between = number * interval, (number + 0.5) * interval
            true = exact_deltas(mechanism, at)[way], exact_deltas(mechanism, between)[way]
            if true[0] < 1e-22 or between > loss.losses[-1]:
                continue
            looked_at += 1
            assert delta_of(loss, at) == pytest.approx(true[0], rel=1e-7)
            assert delta_of(loss, between) > true[1] * (1 - 1e-9)
    assert looked_at >= 2


@pytest.mark.parametrize("mechanism", MECHANISMS, ids=str)
@pytest.mark.parametrize("interval", [1e-2, 1e-4])
def test_both_data_sets_keep_their_probabilities(mechanism, interval):
    for loss in losses_of(mechanism, interval):
        assert loss.masses.sum() == pytest.approx(1, abs=1e-14)
        assert loss.masses @ np.exp(-loss.losses) == pytest.approx(1, abs=1e-13)
        assert (loss.masses >= 0).all()


def test_the_smallest_masses_are_as_exact_as_the_largest():
    """Against the density, far out where differences of distribution functions are none."""
    (loss,) = losses_of(PoissonSampledGaussian(1.0, 4.0), 1e-5)
    place = np.searchsorted(loss.losses, 10.5 / 4)
    x = loss.losses[place] * 4 + 0.5 / 4  # in standard deviations, of loss / (1/σ) + 1/2σ
    expected = math.exp(-((x - 1 / 4) ** 2) / 2) / math.sqrt(2 * math.pi) * 4 * 1e-5
    assert expected < 1e-28
    assert loss.masses[place] == pytest.approx(expected, rel=1e-6)


def test_directions_that_are_the_same_are_one():
    assert len(losses_of(PoissonSampledGaussian(1.0, 3.0), 1e-3)) == 1
    assert len(losses_of(PoissonSampledGaussian(0.5, 3.0), 1e-3)) == 2


def test_what_lies_beyond_is_infinite_or_above():
    (loss,) = losses_of(PoissonSampledGaussian(1.0, 3.0), 1e-3)
    assert loss.infinity_mass == pytest.approx(special.ndtr(-12.0))
    assert losses_of(PoissonSampledLaplace(0.5, 3.0), 1e-3)[0].infinity_mass == 0


def test_moments_are_those_of_the_masses():
    for mechanism in MECHANISMS:
        mean, square = loss_grid.moments(mechanism)
        both = losses_of(mechanism, MECHANISMS[mechanism] / 10)
        assert mean == pytest.approx(max(loss.masses @ loss.losses for loss in both), rel=0.05)
        assert square == pytest.approx(max(loss.masses @ loss.losses**2 for loss in both), rel=0.05)
