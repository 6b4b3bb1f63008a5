"""Quadratic forms over a box: no point outside the bounds, and the bounds not far from the farthest corner."""

import itertools

import numpy as np
import pytest

from tfprivacy_lab.he.plans import box_bounds
from tfprivacy_lab.he.plans.box_bounds import SquaresOverBox


def random_forms(seed, inputs, hidden, input_range):
    rng = np.random.default_rng(seed)
    kernel, bias = rng.normal(size=(inputs, hidden)), rng.normal(size=hidden)
    change, weights = rng.normal(size=(inputs, hidden)) * 1e-7, rng.normal(size=(hidden, 4))
    return SquaresOverBox(kernel, change, bias, input_range), weights


@pytest.mark.parametrize("input_range", [(0.0, 1.0), (-2.0, 1.0), (-1.0, 1.0), (3.0, 3.5)])
@pytest.mark.parametrize(("inputs", "hidden"), [(1, 1), (3, 7), (10, 2), (10, 30)])
def test_all_corners_and_points_are_within_the_bounds(inputs, hidden, input_range):
    box, weights = random_forms(inputs * hidden, inputs, hidden, input_range)
    corners = np.array(list(itertools.product(input_range, repeat=inputs)))
    points = np.concatenate([corners, np.random.default_rng(0).uniform(*input_range, (500, inputs))])
    values = points @ box.kernel + box.bias
    squares, changes = np.square(values) @ weights, (2 * values * (points @ box.change)) @ weights
    low, high = box.values(weights)
    assert (low <= squares).all()
    assert (squares <= high).all()
    assert (np.abs(changes) <= box.changes(weights)).all()
    reach = np.maximum(np.abs(low), np.abs(high))
    assert (reach <= 6 * np.abs(squares).max(axis=0)).all()
    assert (box.changes(weights) <= 6 * np.abs(changes).max(axis=0)).all()


def test_a_change_is_the_first_order_of_changed_weights():
    box, weights = random_forms(5, 6, 9, (0.0, 1.0))
    points = np.random.default_rng(1).uniform(size=(50, 6))
    moved = np.square(points @ (box.kernel + box.change) + box.bias) - np.square(points @ box.kernel + box.bias)
    assert (np.abs(moved @ weights) <= box.changes(weights) + 1e-11).all()
    assert np.abs(moved @ weights).max() > box.changes(weights).max() / 30


def test_signs_cancel():
    """Many weights of either sign: far below the sum of magnitudes."""
    box, weights = random_forms(2, 64, 32, (-1.0, 1.0))
    magnitudes = np.square(np.abs(box.kernel).sum(axis=0) + np.abs(box.bias)) @ np.abs(weights)
    assert (np.maximum(*map(np.abs, box.values(weights))) < magnitudes / 4).all()


@pytest.mark.parametrize(("inputs", "hidden"), [(1, 1), (10, 2), (10, 30)])
def test_forms_whose_eigenvalues_take_too_long_are_bounded_by_norms(monkeypatch, inputs, hidden):
    box, weights = random_forms(3, inputs, hidden, (-2.0, 1.0))
    exact, exact_changes = box.values(weights), box.changes(weights)
    monkeypatch.setattr(box_bounds, "MAX_COST", 0)
    low, high = box.values(weights)
    assert (low <= exact[0] + 1e-9 * np.abs(low)).all()
    assert (exact[1] <= high + 1e-9 * np.abs(high)).all()
    assert (exact_changes <= box.changes(weights) * (1 + 1e-9)).all()
    assert (box.changes(weights) < 20 * exact_changes).all()
