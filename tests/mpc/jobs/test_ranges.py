"""Protocols, arithmetic, approximations and bounds: what is decided before anything is shared."""

import dataclasses
import json

import numpy as np
import pytest

from tfprivacy_lab import mpc
from tfprivacy_lab.checks import InputError
from tfprivacy_lab.cli import mpc as mpc_commands
from tfprivacy_lab.mpc.jobs.fixed_point import FixedPoint, choose_fixed_point
from tfprivacy_lab.mpc.jobs.job import Job, difference
from tfprivacy_lab.mpc.jobs.sigmoid import choose_sigmoid

ABY3 = mpc.World("aby3", ("alice", "bob", "carol"))


def job(**changes):
    return dataclasses.replace(mpc_commands.listing_job(ABY3)[0], **changes)


@pytest.mark.parametrize("bound", [0.5, 3.0, 8.0, 100.0, 1e9])
@pytest.mark.parametrize("error", [1e-2, 1e-3, 1e-4])
def test_sigmoid_keeps_its_error_over_its_range_and_beyond_the_clip(bound, error):
    sigmoid = choose_sigmoid(bound, error)
    z = np.concatenate([np.linspace(-min(bound, 60), min(bound, 60), 50_001), [bound, -bound]])
    worst = np.abs(sigmoid(z) - 0.5 * (1 + np.tanh(z / 2))).max()
    assert worst <= sigmoid.error <= error
    if len(sigmoid.coefficients) == 1:
        return
    fewer = dataclasses.replace(sigmoid, coefficients=sigmoid.coefficients[:-1])
    assert np.abs(fewer(z) - 0.5 * (1 + np.tanh(z / 2))).max() > error / 2  # It is not more than is needed.


def test_sigmoid_matches_a_plain_chebyshev_series():
    sigmoid = choose_sigmoid(4.0, 1e-3)
    z = np.linspace(-4, 4, 101)
    series = np.zeros(2 * len(sigmoid.coefficients))
    series[1::2] = sigmoid.coefficients
    assert sigmoid(z) == pytest.approx(0.5 + np.polynomial.chebyshev.chebval(z / 4, series), abs=1e-13)


def test_arithmetic_is_the_finest_that_holds():
    assert choose_fixed_point(100.0) == FixedPoint(64, 20)
    assert choose_fixed_point(2.0**22) == FixedPoint(64, 18)
    assert choose_fixed_point(2.0**31).field_bits == 128
    with pytest.raises(InputError, match="weight_range"):
        choose_fixed_point(2.0**90)
    with pytest.raises(InputError, match="Overflow"):
        choose_fixed_point(float("inf"))


def test_interval_bounds_hold_on_the_worst_case_data():
    """Every feature at its bound: what training meets stays under the bound, within a factor of 20."""
    training = mpc.Training("sum_of_squares", 0.1, 4)
    features = {"alice": (4, 1), "bob": (4, 1)}
    planned = mpc.plan(job(training=training, features=features, query={}, reveal_predictions=()))
    weights, bias, met = np.array([0.3, -0.2]), 0.1, 0.0
    x, y = np.array([[1.0, -1.0]] * 4), np.full(4, -1.0)
    for _ in range(4):
        residual = 2 * (x @ weights + bias - y)
        met = max(met, np.abs(x.T @ residual).max(), np.abs(residual).max())
        weights, bias = weights - 0.1 * x.T @ residual, bias - 0.1 * residual.sum()
    assert met <= planned.largest <= 20 * met


def test_overflow_is_refused_and_weight_range_is_the_remedy():
    wild = mpc.Training("sum_of_squares", 10.0, 50)
    with pytest.raises(InputError, match=r"Overflow risk.*weight_range"):
        mpc.plan(job(training=wild))
    assert mpc.plan(job(training=wild, weight_range=8.0)).arithmetic.field_bits == 64


@pytest.mark.parametrize(
    ("arguments", "naming"),
    [
        (("semi2k", ("alice", "bob")), "dealer"),
        (("semi2k", ("alice", "bob"), "carol"), "dealer"),
        (("aby3", ("alice", "bob")), "3 parties"),
        (("aby3", ("alice", "bob", "carol"), "carol"), "no dealer"),
        (("cheetah", ("alice", "bob", "carol")), "2 parties"),
        (("spdz", ("alice", "bob")), "protocol"),
        (("cheetah", ("alice", "alice")), "different names"),
        (("cheetah", ("alice", "b b")), "different names"),
        (("cheetah", ("alice", "public")), "not to be named public or shares"),
        (("cheetah", ("shares", "bob")), "not to be named public or shares"),
    ],
)
def test_worlds_that_do_not_fit_are_refused(arguments, naming):
    with pytest.raises(InputError, match=naming):
        mpc.World(*arguments)


def test_trust_names_the_dealer_and_says_whether_it_holds_data():
    world = mpc.World("semi2k", ("alice", "bob"), "bob")
    assert world.ranks == ("bob", "alice")
    assert "bob can recover" in world.trust(("alice", "bob"))
    outsider = mpc.World("semi2k", ("alice", "bob", "carol"), "carol")
    assert "carol does not look" in outsider.trust(("alice", "bob"))
    assert "any two" in ABY3.trust(("alice", "bob"))
    assert {row["name"] for row in mpc.protocol_table()} == {"semi2k", "aby3", "cheetah"}
    assert all(row["trust"] and row["cost"] and row["use"] and row["source"] for row in mpc.protocol_table())


def test_a_job_survives_json_and_says_where_another_differs():
    first = job(noise=mpc.NoiseShares(("alice",), 1.0, 20))
    again = Job.from_dict(json.loads(first.to_json()))
    assert again == first
    assert again.digest == first.digest
    other = job(training=mpc.Training("sum_of_squares", 0.2, 10))
    assert other.digest != first.digest
    found = difference(json.loads(job().to_json()), json.loads(other.to_json()))
    assert found == "training.learning_rate is 0.2 there and 0.1 here"


@pytest.mark.parametrize(
    ("changes", "naming"),
    [
        ({"features": {"alice": (4, 1), "bob": (3, 1)}}, "as many rows"),
        ({"features": {"alice": (4, 1), "dave": (4, 1)}}, "dave"),
        ({"labels": ("alice", "bob")}, "labels"),
        ({"weights": [[[0.3]], [0.1]]}, "shapes"),
        ({"weights": [[[0.3], [float("nan")]], [0.1]]}, "finite"),
        ({"training": mpc.Training("binary_crossentropy", 0.1, 10)}, "sigmoid"),
        ({"training": mpc.Training("sum_of_squares", 0.1, 10, batch_size=3)}, "divide"),
        ({"reveal_weights": ("eve",)}, "eve"),
        ({"initial": "alice"}, "weight_range"),
        ({"feature_range": 0}, "feature_range"),
        ({"query": {"alice": (1, 3)}}, "columns"),
    ],
)
def test_jobs_that_do_not_fit_are_refused(changes, naming):
    with pytest.raises(InputError, match=naming):
        job(**changes)


@pytest.mark.parametrize("value", [{}, {"world": 3}, {"world": {"protocol": "aby3"}}, {"nothing": 1}])
def test_a_damaged_job_is_refused(value):
    with pytest.raises(InputError, match=r"job|parties"):
        Job.from_dict(value)
