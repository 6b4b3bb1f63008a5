"""ε from a privacy loss distribution, against dp_accounting's own loop."""

import math

import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution as pld

from tfprivacy_lab.dp.hockey_stick import epsilon_for_delta

DELTAS = (1e-12, 1e-8, 1e-5, 1e-2, 0.5)


def gaussian(sigma, q=1.0, interval=1e-3):
    return pld.from_gaussian_mechanism(sigma, sampling_prob=q, value_discretization_interval=interval)


def assert_same(loss, deltas=DELTAS):
    for delta in deltas:
        expected = loss.get_epsilon_for_delta(delta)
        assert epsilon_for_delta(loss, delta) == pytest.approx(expected, rel=1e-8, abs=1e-11), delta


@pytest.mark.parametrize("sigma", [0.3, 1.0, 4.0, 50.0])
@pytest.mark.parametrize("q", [0.001, 0.1, 1.0])
@pytest.mark.parametrize("steps", [1, 30, 1000])
def test_gaussian_steps(sigma, q, steps):
    if q * steps / sigma**2 > 1000:
        return  # a distribution that no longer fits
    assert_same(gaussian(sigma, q).self_compose(steps))


@pytest.mark.parametrize(("scale", "q", "steps"), [(0.1, 1.0, 1), (2.0, 0.1, 20), (5.0, 1.0, 100)])
def test_laplace_steps(scale, q, steps):
    one = pld.from_laplace_mechanism(scale, sampling_prob=q, value_discretization_interval=1e-3)
    assert_same(one.self_compose(steps))


def test_sparse_distributions():
    response = pld.from_randomized_response(0.2, 4, value_discretization_interval=1e-3)
    assert response._pmf_remove.to_dense_pmf() is not response._pmf_remove
    assert_same(response)
    assert_same(response.self_compose(3))


def one_sided(remove, add):
    """A distribution whose directions are given as {loss: probability}; what is missing of 1 is infinite loss."""
    return pld.PrivacyLossDistribution.create_from_rounded_probability(
        {round(k / 0.5): p for k, p in remove.items()},
        1 - math.fsum(remove.values()),
        0.5,
        pessimistic_estimate=True,
        rounded_probability_mass_function_add={round(k / 0.5): p for k, p in add.items()},
        infinity_mass_add=1 - math.fsum(add.values()),
        symmetric=False,
    )


def test_the_worse_direction_counts_whichever_it_is():
    mild, strong = {-0.5: 0.5, 0.5: 0.5}, {-2.0: 0.5, 2.0: 0.5}
    found = [epsilon_for_delta(one_sided(*pair), 1e-3) for pair in ((mild, strong), (strong, mild))]
    assert found[0] == found[1] > epsilon_for_delta(one_sided(mild, mild), 1e-3) + 1
    for pair in ((mild, strong), (strong, mild), (strong, strong)):
        assert_same(one_sided(*pair))


def test_by_hand():
    """One loss x of mass p: δ(ε) = p (1 - e^{ε - x}), so ε = x + log(1 - δ/p)."""
    loss = one_sided({-1.0: 0.4, 1.0: 0.6}, {-1.0: 0.4, 1.0: 0.6})
    assert epsilon_for_delta(loss, 0.1) == pytest.approx(1 + math.log(1 - 0.1 / 0.6), rel=1e-12)
    # Two losses above ε: both count.
    loss = one_sided({0.0: 0.2, 1.0: 0.5, 2.0: 0.3}, {0.0: 1.0})
    upper, lower = 0.8, 0.5 * math.exp(-1) + 0.3 * math.exp(-2)
    assert epsilon_for_delta(loss, 0.4) == pytest.approx(math.log((upper - 0.4) / lower), rel=1e-12)


def test_infinite_and_zero():
    leaking = one_sided({0.5: 0.9}, {-0.5: 1.0})
    assert epsilon_for_delta(leaking, 0.05) == math.inf == leaking.get_epsilon_for_delta(0.05)
    assert math.isfinite(epsilon_for_delta(leaking, 0.2))
    nothing = one_sided({0.0: 1.0}, {0.0: 1.0})
    assert epsilon_for_delta(nothing, 1e-9) == 0.0 == nothing.get_epsilon_for_delta(1e-9)
    below = one_sided({-2.0: 1.0}, {-1.0: 1.0})
    assert epsilon_for_delta(below, 1e-9) == 0.0
    assert epsilon_for_delta(gaussian(1e3), 0.1) == 0.0


def test_losses_beyond_what_a_float_can_hold():
    """Their mass under the other data set is e^{-1000}: no number, and no error."""
    loss = one_sided({1000.0: 1.0}, {-1000.0: 1.0})
    assert epsilon_for_delta(loss, 1e-5) == pytest.approx(1000.0, abs=1e-3)
    tiny = pld.from_gaussian_mechanism(0.05, value_discretization_interval=1e-2)
    with np.errstate(all="ignore"):
        expected = tiny.get_epsilon_for_delta(1e-5)
    assert epsilon_for_delta(tiny, 1e-5) == pytest.approx(expected, rel=1e-6)


def test_epsilon_keeps_to_delta_and_no_smaller_one_does():
    for loss in (gaussian(1.0, 0.1).self_compose(100), one_sided({-2.0: 0.5, 2.0: 0.5}, {0.5: 1.0})):
        epsilon = epsilon_for_delta(loss, 1e-3)
        assert loss.get_delta_for_epsilon(epsilon) <= 1e-3 * (1 + 1e-9)
        assert loss.get_delta_for_epsilon(epsilon * (1 - 1e-6)) > 1e-3
