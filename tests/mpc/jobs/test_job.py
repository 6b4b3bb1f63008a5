"""What parties agree on: orders that are written down, and noise that is worth what is claimed of it."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest

from tfprivacy_lab import mpc
from tfprivacy_lab.checks import InputError
from tfprivacy_lab.distributed_noise import SharedGaussian, gradient_norm
from tfprivacy_lab.mpc.jobs.job import Job, difference

WORLD = mpc.World("semi2k", ("basel", "chur", "zurich"), "chur")
ABY3 = mpc.World("aby3", ("alice", "bob", "carol"))


def job(**changes):
    given = {
        "world": WORLD,
        "layers": (mpc.Layer(1, "sigmoid"),),
        "features": {"zurich": (5, 2), "basel": (5, 1)},
        "labels": ("basel",),
        "weights": [[[1.0], [2.0], [3.0]], [0.0]],
        "training": mpc.Training("binary_crossentropy", 0.1, 2, row_norm=1.0),
        "query": {"basel": (2, 1), "zurich": (2, 2)},
        **changes,
    }
    return Job(**given)


def test_the_order_of_holders_survives_the_file_and_is_in_the_digest():
    first = job()
    assert first.holders == ("zurich", "basel")
    assert list(first.query) == ["zurich", "basel"]  # It follows by name, whatever order it was given in.
    again = Job.from_dict(json.loads(first.to_json()))
    assert again.holders == first.holders
    assert list(again.features) == list(first.features) == ["zurich", "basel"]
    assert again.digest == first.digest
    other = job(features={"basel": (5, 1), "zurich": (5, 2)})
    assert other.digest != first.digest
    assert "holders" in difference(json.loads(first.to_json()), json.loads(other.to_json()))
    assert job(features={"basel": (5, 1), "zurich": (5, 2)}, holders=("zurich", "basel")) == first


def test_labels_of_rows_follow_the_holders():
    features = {"zurich": (3, 2), "basel": (2, 2)}
    split = {"split": "rows", "weights": [[[1.0], [2.0]], [0.0]], "query": {"chur": (1, 2)}, "features": features}
    assert job(**split, labels=("basel", "zurich")).labels == ("zurich", "basel")
    again = Job.from_dict(json.loads(job(**split, labels=("basel", "zurich")).to_json()))
    assert (again.labels, list(again.features)) == (("zurich", "basel"), ["zurich", "basel"])


def test_a_file_without_an_order_is_refused():
    given = json.loads(job().to_json())
    del given["holders"]
    with pytest.raises(InputError, match="Expected holders, a list"):
        Job.from_dict(given)


@pytest.mark.parametrize(
    ("changes", "naming"),
    [
        ({"holders": ("zurich",)}, "holders to name every party of features once"),
        ({"holders": ("zurich", "basel", "basel")}, "holders to name"),
        ({"holders": ("zurich", "chur")}, "holders to name"),
        ({"query": {"zurich": (2, 1), "basel": (2, 2)}}, "query of the features' columns"),
        ({"query": {"zurich": (2, 3)}}, "query of the features' columns"),
        (
            {"query": {"chur": (2, 2)}},
            "or all 3 columns from one party without features, in the order of zurich, basel",
        ),
        ({"query": {"zurich": (2, 2), "chur": (2, 1)}}, "query of the features' columns"),
        ({"reveal_weights": ("basel", "basel")}, "reveal_weights to name each party once"),
        (
            {"split": "rows", "features": {"zurich": (3, 3), "basel": (2, 3)}, "labels": ("zurich", "basel")},
            "one party",
        ),
    ],
)
def test_orders_that_do_not_fit_are_refused(changes, naming):
    with pytest.raises(InputError, match=naming):
        job(**changes)


def test_shares_name_their_columns_and_fit_no_others():
    fitted = job()
    asks = {"layers": fitted.layers, "initial": "shares", "weight_range": 1.0, "arithmetic": mpc.FixedPoint(64, 20)}
    same = Job(WORLD, query={"zurich": (1, 2), "basel": (1, 1)}, **asks)
    assert same.columns == fitted.columns
    for query in ({"basel": (1, 1), "zurich": (1, 2)}, {"zurich": (1, 1), "basel": (1, 2)}, {"chur": (1, 3)}):
        assert Job(WORLD, query=query, **asks).columns != fitted.columns
    rows = {"split": "rows", "features": {"zurich": (3, 3), "basel": (2, 3)}, "labels": ("zurich", "basel")}
    assert job(**rows, query={}).columns == Job(WORLD, query={"chur": (1, 3)}, **asks).columns


@pytest.mark.parametrize("order", [("zurich", "basel"), ("basel", "zurich")])
def test_training_and_predicting_follow_names_in_any_order(order):
    """The oracle is NumPy on the columns as the first mapping gives them; all others come in the other order."""
    rng = np.random.default_rng(0)
    x = {"zurich": rng.uniform(-1, 1, (8, 2)), "basel": rng.uniform(-1, 1, (8, 1))}
    y = (x["zurich"][:, 0] > 0).astype(float)
    model = mpc.SharedModel([mpc.Layer(1, "sigmoid")], WORLD)
    model.compile("binary_crossentropy", 1.0)
    model.fit({name: x[name] for name in order}, {"basel": y}, steps=2)
    kernel, bias = (np.array(one) for one in model.job.weights)
    joined = np.hstack([x[name] for name in order])
    for _ in range(2):
        residual = 1 / (1 + np.exp(-(joined @ kernel + bias))) - y[:, None]
        kernel, bias = kernel - joined.T @ residual / 8, bias - residual.mean(0)
    found = model.predict({name: x[name] for name in reversed(order)}, reveal=("chur",))
    assert found == pytest.approx(1 / (1 + np.exp(-(joined @ kernel + bias))), abs=4e-3)
    for query in ({"dave": x["basel"]}, {"zurich": x["zurich"]}, {"zurich": x["basel"], "basel": x["zurich"]}):
        with pytest.raises(InputError, match="query"):
            model.predict(query, reveal=("chur",))
    # A party that has no features has all columns of its own rows, in the order of fit.
    asked = model.predict({"chur": joined}, reveal=("chur",))
    assert asked == pytest.approx(1 / (1 + np.exp(-(joined @ kernel + bias))), abs=4e-3)
    # That question has left the shares as they were: the holders may ask again.
    again = model.predict({name: x[name] for name in order}, reveal=("chur",))
    assert again == pytest.approx(found, abs=1e-4)
    # The shares themselves, taken to another job, are of these columns only.
    wrong = Job(
        WORLD,
        layers=model.layers,
        query={order[1]: (1, x[order[1]].shape[1]), order[0]: (1, x[order[0]].shape[1])},
        initial="shares",
        weight_range=8.0,
        arithmetic=model.outcomes.plan.arithmetic,
        reveal_predictions=("chur",),
    )
    data = {name: dict(outcome.shares) for name, outcome in model.outcomes.outcomes.items()}
    for name in order:
        data[name]["query"] = np.zeros((1, x[name].shape[1]))
    with pytest.raises(InputError, match="share of a model of the columns"):
        mpc.simulate(wrong, data)


def claimed(**changes):
    clip = gradient_norm(2**0.5, 1e-3)
    noise = SharedGaussian.calibrated(
        ("alice", "bob"), clip, 4, epsilon=4.0, delta=1e-5, colluding=1, releases=2, roundings=2
    ).noise(1e-5)
    return {
        "world": ABY3,
        "features": {"alice": (5, 2), "bob": (5, 1)},
        "labels": ("bob",),
        "query": {},
        "noise": dataclasses.replace(noise, **changes),
    }


def test_a_claim_is_checked_by_every_party_that_reads_the_job():
    right = job(**claimed())
    assert right.noise.claim.epsilon <= 4.0
    assert Job.from_dict(json.loads(right.to_json())) == right
    weaker = json.loads(right.to_json())
    weaker["noise"]["stddev"] = 1e-5
    with pytest.raises(InputError, match=r"keeps the claimed epsilon=.*stddev=1e-05"):
        Job.from_dict(weaker)


@pytest.mark.parametrize(
    ("changes", "naming"),
    [
        ({"colluding": 0}, None),
        ({"colluding": 2}, "colluding below the 2 contributors"),
        ({"epsilon": 1.0}, "keeps the claimed epsilon=1"),
        ({"delta": 1e-9}, "keeps the claimed"),
        ({"l2_norm_clip": 1.0}, "l2_norm_clip >= "),
        ({"roundings": 1}, "roundings"),
    ],
)
def test_what_a_claim_rests_on_is_bound_to_the_noise(changes, naming):
    claim = dataclasses.replace(claimed()["noise"].claim, **changes)
    if naming is None:
        job(**claimed(claim=claim))
        return
    with pytest.raises(InputError, match=naming):
        job(**claimed(claim=claim))


def test_no_claim_without_a_bound_on_a_rows_gradient():
    unbounded = mpc.Training("binary_crossentropy", 0.1, 2)
    with pytest.raises(InputError, match="no bound on a row's gradient"):
        job(**claimed(), training=unbounded)


def test_no_claim_on_weights_that_were_trained_before():
    """One noised step from shares of an un-noised training would open that training under the claim."""
    for initial in ("shares", "basel"):
        given = {"weights": None, "weight_range": 8.0, "initial": initial, "arithmetic": mpc.FixedPoint(128, 24)}
        given["world"] = ABY3 if initial == "shares" else mpc.World("aby3", ("alice", "bob", "basel"))
        noise = dataclasses.replace(claimed()["noise"], fraction_bits=24)
        with pytest.raises(InputError, match=f"initial=public with a claim of epsilon, got initial='{initial}'"):
            job(**{**claimed(), **given, "noise": noise})
        job(**{**claimed(), **given, "noise": dataclasses.replace(noise, claim=None)})


def test_a_claim_counts_the_gradients_of_all_outputs():
    """Four outputs make a row's gradient twice as long; a claim that counts one of them is false by that factor."""
    several = {"layers": (mpc.Layer(4, "sigmoid"),), "weights": [[[0.0] * 4] * 3, [0.0] * 4]}
    for units in (1, 4):
        clip = gradient_norm(2**0.5, 1e-3, units)
        noise = SharedGaussian.calibrated(
            ("alice", "bob"), clip, 16, epsilon=4.0, delta=1e-5, colluding=1, releases=2, roundings=2
        ).noise(1e-5)
        given = {**claimed(), **several, "noise": noise}
        if units == 4:
            assert job(**given).noise.claim.l2_norm_clip == pytest.approx(2 * gradient_norm(2**0.5, 1e-3))
        else:
            with pytest.raises(InputError, match="l2_norm_clip >= "):
                job(**given)


@pytest.mark.parametrize(("stddev", "clip"), [(2.0**100, 1.0), (1e-300, 1e300), (1e-300, 1.0)])
def test_a_claim_far_from_what_noise_keeps_is_an_answer(stddev, clip):
    given = {**claimed(), "noise": mpc.NoiseShares(("alice",), stddev, 20, mpc.NoiseClaim(1.0, 1e-5, clip, 0, 2))}
    given |= {"layers": (), "features": {"alice": (1, 3)}, "labels": (), "weights": None, "training": None}
    if stddev > 1:
        job(**given)
    else:
        with pytest.raises(InputError, match="keeps inf"):
            job(**given)


def test_a_name_twice_in_the_noise_is_refused():
    with pytest.raises(InputError, match=r"noise\.parties to be different names"):
        mpc.NoiseShares(("alice", "alice"), 1.0, 20)


PAGE = pathlib.Path(__file__).parents[3] / "docs" / "parties.md"


def test_the_page_names_every_field_and_its_job_is_one(tmp_path, monkeypatch):
    text = PAGE.read_text()
    table = text.split("## The job")[1].split("## The data file")[0]
    fields = [field.name for kind in (Job, mpc.NoiseShares, mpc.NoiseClaim) for field in dataclasses.fields(kind)]
    fields += [field.name for kind in (mpc.World, mpc.Layer, mpc.Training) for field in dataclasses.fields(kind)]
    assert [name for name in fields if f"`{name}`" not in table and f'"{name}"' not in table] == []
    monkeypatch.chdir(tmp_path)
    written = {}
    exec(text.split("```python\n")[1].split("```")[0].replace("\n   ", "\n").lstrip(), written)
    assert Job.load("job.json") == written["job"]
