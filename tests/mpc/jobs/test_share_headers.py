"""Shares are used with the arithmetic, protocol, parties and run that they were made in, or not at all."""

import dataclasses
import itertools

import numpy as np
import pytest

from tests.mpc.transport.test_links import addresses, joined
from tfprivacy_lab import mpc
from tfprivacy_lab.checks import InputError
from tfprivacy_lab.mpc.jobs import row_ids, share_headers
from tfprivacy_lab.mpc.transport.links import Control

NAMES = ("alice", "bob", "carol")
ABY3 = mpc.World("aby3", NAMES)
SEMI2K = mpc.World("semi2k", NAMES, "carol")
RNG = np.random.default_rng(0)
X, Y, Q = RNG.uniform(-1, 1, (8, 2)), RNG.uniform(-1, 1, 8), RNG.uniform(-1, 1, (3, 2))
PARTS, QUERY = {"alice": X[:, :1], "bob": X[:, 1:]}, {"alice": Q[:, :1], "bob": Q[:, 1:]}


def trained(world):
    """(predictions in float, the run) of a training whose weights alice learns."""
    model = mpc.SharedModel([mpc.Layer(1)], world)
    model.compile("mean_squared_error", 0.1)
    run = model.fit(PARTS, {"bob": Y}, steps=2, reveal_weights=("alice",))
    kernel, bias = run.outcomes["alice"].weights[:2]
    return Q @ kernel + bias, run


def asked(world, run, shares=None, **changes):
    """What alice learns of predictions from shares that ``run`` left."""
    given = {
        "layers": (mpc.Layer(1),),
        "query": {"alice": (3, 1), "bob": (3, 1)},
        "weight_range": 8.0,
        "arithmetic": run.plan.arithmetic,
        **changes,
    }
    job = mpc.Job(world=world, initial="shares", reveal_predictions=("alice",), **given)
    shares = shares or {name: outcome.shares for name, outcome in run.outcomes.items()}
    data = {name: dict(of) for name, of in shares.items()}
    for name, query in QUERY.items():
        data[name]["query"] = query
    return mpc.simulate(job, data).outcomes["alice"].predictions


@pytest.mark.parametrize("world", [ABY3, SEMI2K], ids=lambda world: world.protocol)
def test_shares_go_with_their_world_run_and_arithmetic_and_no_other(world):
    wanted, run = trained(world)
    assert asked(world, run) == pytest.approx(wanted, abs=1e-4)
    for order in itertools.permutations(NAMES):
        other = dataclasses.replace(world, parties=order)
        if other.ranks != world.ranks:
            with pytest.raises(InputError, match="engine's order"):
                asked(other, run)
        else:
            assert asked(other, run) == pytest.approx(wanted, abs=1e-4)
    one = {name: outcome.shares for name, outcome in run.outcomes.items()}
    two = {name: outcome.shares for name, outcome in trained(world)[1].outcomes.items()}
    with pytest.raises(InputError, match="of another run"):
        asked(world, run, {**one, "bob": two["bob"]})
    with pytest.raises(InputError, match="kernel_0, bias_0 to be shares that one run left"):
        asked(world, run, {**one, "bob": {**one["bob"], "bias_0": two["bob"]["bias_0"]}})
    with pytest.raises(InputError, match="its party"):
        asked(world, run, {**one, "bob": one["alice"], "alice": one["bob"]})
    with pytest.raises(InputError, match="its weight"):
        asked(world, run, {**one, "bob": {"kernel_0": one["bob"]["bias_0"], "bias_0": one["bob"]["kernel_0"]}})
    with pytest.raises(InputError, match="fraction_bits"):
        asked(world, run, arithmetic=mpc.FixedPoint(64, 18))
    with pytest.raises(InputError, match="layers"):
        asked(world, run, layers=(mpc.Layer(1, "sigmoid"),))
    with pytest.raises(InputError, match="weight_range of at least"):
        asked(world, run, weight_range=0.1)


def test_a_world_with_one_party_less_takes_no_shares():
    _, run = trained(SEMI2K)
    with pytest.raises(InputError, match="its parties"):
        asked(
            mpc.World("semi2k", NAMES[:2], "alice"), run, {name: run.outcomes[name].shares for name in ("alice", "bob")}
        )


def test_a_job_on_shares_says_their_arithmetic():
    _, run = trained(ABY3)
    with pytest.raises(InputError, match="Expected arithmetic"):
        asked(ABY3, run, arithmetic=None)


@pytest.mark.parametrize("damage", [b"", b"\0" * 64, b"shr1\xff\xff\xff\xff", b"shr1\2\0\0\0[]", b"shr1\2\0\0\0{}"])
def test_what_is_no_share_is_refused(damage):
    with pytest.raises(InputError, match="kernel_0 to be a share as training left it"):
        share_headers.parsed("kernel_0", np.frombuffer(damage, np.uint8))


@pytest.mark.parametrize("bits", [None, 16, 12])
def test_predictions_are_in_the_arithmetic_of_the_training(bits):
    """Many rows, or noise on a coarse grid, train in other arithmetic than a prediction alone would be planned in."""
    rows = 4000 if bits is None else 8
    rng = np.random.default_rng(1)
    x, y = rng.uniform(-1, 1, (rows, 2)), rng.uniform(-1, 1, rows)
    model = mpc.SharedModel([mpc.Layer(1)], ABY3, feature_range=16.0, label_range=16.0, weight_range=1.0)
    model.compile("sum_of_squares", 7.0 if bits is None else 0.01)
    noise = {}
    if bits is not None:
        zeros = {"alice": np.zeros((1, 3), int)}
        noise = {"noise": mpc.NoiseShares(("alice",), 2.0**-bits, bits), "noise_steps": zeros}
    run = model.fit({"alice": x[:, :1], "bob": x[:, 1:]}, {"bob": y}, steps=1, reveal_weights=("alice",), **noise)
    assert run.plan.arithmetic.fraction_bits == (bits or 18)
    kernel, bias = run.outcomes["alice"].weights
    found = model.predict(QUERY, reveal=("alice",))
    assert model.outcomes.plan.arithmetic == run.plan.arithmetic
    assert found == pytest.approx(Q @ kernel + bias, abs=model.outcomes.plan.prediction_error)


def test_questions_and_a_refused_training_leave_the_shares_as_they_are():
    model = mpc.SharedModel([mpc.Layer(1)], ABY3)
    model.compile("mean_squared_error", 0.1)
    model.fit(PARTS, {"bob": Y}, steps=2)
    first = model.predict(QUERY, reveal=("alice",))
    assert model.predict({"carol": Q}, reveal=("alice",)) == pytest.approx(first, abs=1e-4)
    carried = model.outcomes.outcomes["alice"].shares["kernel_0"]
    assert share_headers.parsed("kernel_0", carried)[0].columns == [["alice", 1], ["bob", 1]]
    planned = model.outcomes.plan
    with pytest.raises(InputError, match="range"):
        model.fit(PARTS, {"bob": 50 * Y}, steps=3)
    assert model.predict(QUERY, reveal=("alice",)) == pytest.approx(first, abs=1e-4)
    assert model.outcomes.plan.largest == planned.largest


def test_training_goes_on_from_shares():
    """Two steps and two more are four."""
    wanted = trained(ABY3)[1]
    given = {"world": ABY3, "layers": (mpc.Layer(1),), "features": {"alice": (8, 1), "bob": (8, 1)}, "labels": ("bob",)}
    given |= {"training": mpc.Training("mean_squared_error", 0.1, 2), "reveal_weights": ("alice",), "weight_range": 8.0}
    given |= {"initial": "shares", "arithmetic": wanted.plan.arithmetic}
    data = {name: dict(outcome.shares) for name, outcome in wanted.outcomes.items()}
    for name, x in PARTS.items():
        data[name]["x"] = x
    data["bob"]["y"] = Y[:, None]
    run = mpc.simulate(mpc.Job(**given), data)
    kernel, bias = wanted.outcomes["alice"].weights
    for _ in range(2):
        residual = X @ kernel + bias - Y[:, None]
        kernel, bias = kernel - 0.2 / 8 * X.T @ residual, bias - 0.2 * residual.mean(0)
    assert run.outcomes["alice"].weights[0] == pytest.approx(kernel, abs=1e-4)
    runs = [share_headers.parsed("bias_0", one.outcomes["bob"].shares["bias_0"])[0].run for one in (wanted, run)]
    assert runs[0] != runs[1]
    assert asked(ABY3, run) == pytest.approx(Q @ kernel + bias, abs=1e-4)


def test_parties_agree_on_a_runs_name_and_notice_shares_of_another():
    names, runs = [], []
    for _ in range(2):
        where = addresses(NAMES)
        ends = [Control(name, NAMES, where, None) for name in NAMES]
        assert set(joined(ends).values()) == {None}
        runs.append({end.run_id for end in ends})
        names += list(runs[-1])
        for end in ends:
            end.close()
    assert [len(one) for one in runs] == [1, 1]
    assert names[0] != names[1]
    trainings = [trained(ABY3)[1] for _ in range(2)]
    job = mpc.Job(
        world=ABY3,
        layers=(mpc.Layer(1),),
        query={"alice": (3, 1), "bob": (3, 1)},
        initial="shares",
        weight_range=8.0,
        arithmetic=mpc.FixedPoint(64, 20),
    )
    mixed = {"alice": trainings[0], "bob": trainings[1], "carol": trainings[0]}
    rows = {name: {"rows": row_ids.of_party(job, name, run.outcomes[name].shares)} for name, run in mixed.items()}
    where = addresses(NAMES)
    errors = joined([Control(name, NAMES, where, None) for name in NAMES], **rows)
    assert "holds shares of the weights of another run" in errors["alice"]
