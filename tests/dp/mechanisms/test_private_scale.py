"""Mean and variance under noise: against plain ones, on neighbouring sets, and against what they cost."""

import itertools

import numpy as np
import pytest

from tfprivacy_lab.checks import InputError
from tfprivacy_lab.dp import PrivateScale
from tfprivacy_lab.dp.accounting.adjacency import ADD_OR_REMOVE_ONE, ZERO_OUT
from tfprivacy_lab.dp.accounting.gaussian import gaussian_epsilon
from tfprivacy_lab.dp.ledger.ledger import Ledger

LOW, HIGH = np.array([-2.0, 0.0, 100.0]), np.array([3.0, 1e-3, 250.0])


def table(n, seed=0):
    """Columns of three scales, some values beyond their bounds."""
    rng = np.random.default_rng(seed)
    spread = (HIGH - LOW) / 5
    return (LOW + HIGH) / 2 + spread * rng.normal(size=(n, 3))


@pytest.mark.parametrize("count", [None, 4000])
def test_with_little_noise_they_are_those_of_the_cut_values(count):
    x = table(4000)
    cut = np.clip(x, LOW, HIGH)
    mean, variance = PrivateScale(LOW, HIGH, 1e-3, count).release(x, seed=1)
    np.testing.assert_allclose((mean - cut.mean(0)) / (HIGH - LOW), 0, atol=1e-5)
    np.testing.assert_allclose(variance / cut.var(0), 1, atol=1e-4)


@pytest.mark.parametrize("count", [None, 50])
@pytest.mark.parametrize("adjacency", [ADD_OR_REMOVE_ONE, ZERO_OUT])
def test_one_row_moves_the_sums_by_no_more_than_stated_and_by_nearly_as_much(count, adjacency):
    scale, x = PrivateScale(LOW, HIGH, 1.0, count), table(50)
    farthest = 0.0
    corners = itertools.product(*zip(LOW - 1e9, (LOW + HIGH) / 2, HIGH + 1e9, strict=True))
    for row in (*x, *np.array(list(corners))):
        moved = np.linalg.norm(scale.sums(np.vstack([x, row])) - scale.sums(x))
        farthest = max(farthest, moved)
        assert moved <= scale.sensitivity(adjacency) * (1 + 1e-12)
    assert farthest >= 0.999 * scale.sensitivity(adjacency)


def test_noise_has_the_scale_that_the_event_says():
    """Two sides: the right one is accepted, two thirds of it are not."""
    scale, x = PrivateScale(LOW, HIGH, 2.0, 1000), table(1000)
    exact = scale.sums(x)[:3] / 1000
    draws = np.array([(scale.release(x, seed)[0] - LOW) / (HIGH - LOW) * 2 - 1 - exact for seed in range(600)])
    ratio = draws.std() / (2.0 * scale.sensitivity() / 1000)
    assert 0.95 < ratio < 1.05
    assert scale.event().noise_multiplier == 2.0
    assert not np.array_equal(scale.release(x)[0], scale.release(x)[0])


@pytest.mark.parametrize("count", [None, 10])
def test_a_constant_column_and_few_rows_are_scaled_by_something(count):
    x = np.tile((LOW + HIGH) / 2, (10, 1))
    for seed in range(30):
        mean, variance = PrivateScale(LOW, HIGH, 5.0, count).release(x, seed)
        assert np.all((mean >= LOW) & (mean <= HIGH))
        assert np.all((variance > 0) & (variance <= ((HIGH - LOW) / 2) ** 2))


def test_it_costs_what_a_gaussian_mechanism_costs_and_is_charged_before(tmp_path):
    scale = PrivateScale.calibrated(LOW, HIGH, epsilon=0.5, delta=1e-6)
    assert scale.epsilon(1e-6) == pytest.approx(0.5, abs=1e-6)
    assert gaussian_epsilon(scale.noise_multiplier, 1e-6) == pytest.approx(0.5, abs=1e-6)
    ledger = Ledger.create(tmp_path / "ledger", "table", epsilon=0.51, delta=1e-6)
    assert ledger.register("scale", scale.event()).charged
    with pytest.raises(InputError, match="refuses run 'again'"):
        ledger.register("again", scale.event())


WRONG = {
    "low": ((np.array([1.0]), np.array([1.0]), 1.0), "low < high"),
    "shapes": ((LOW, HIGH[:2], 1.0), "low < high"),
    "a number": ((0.0, 1.0, 1.0), "low to be one number per column"),
    "no noise": ((LOW, HIGH, 0.0), "noise_multiplier"),
    "count": ((LOW, HIGH, 1.0, 0), "count"),
    "infinite": ((LOW - np.inf, HIGH, 1.0), "low to be finite"),
}


@pytest.mark.parametrize(("arguments", "message"), WRONG.values(), ids=WRONG.keys())
def test_arguments_are_refused_by_name(arguments, message):
    with pytest.raises(InputError, match=message):
        PrivateScale(*arguments)


def test_values_that_no_bound_holds_are_refused():
    with pytest.raises(InputError, match="examples"):
        PrivateScale(LOW, HIGH, 1.0).release(np.full((3, 3), np.nan))
    with pytest.raises(InputError, match="examples"):
        PrivateScale(LOW, HIGH, 1.0).release(np.ones((3, 2)))
