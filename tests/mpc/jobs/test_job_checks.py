"""What is no job is refused in words, and what equals a job is the same job, whatever types it was given in."""

import dataclasses
import json

import numpy as np
import pytest

from tfprivacy_lab import mpc
from tfprivacy_lab.checks import InputError
from tfprivacy_lab.distributed_noise import SharedGaussian
from tfprivacy_lab.mpc.jobs.job import Job
from tfprivacy_lab.mpc.transport.certificates import make_certificates

NAMES = ("alice", "bob", "carol")
ABY3 = mpc.World("aby3", NAMES)
GIVEN = {
    "world": ABY3,
    "layers": (mpc.Layer(1),),
    "features": {"alice": (4, 1), "bob": (4, 1)},
    "labels": ("bob",),
    "weights": [[[0.5], [-0.25]], [0.125]],
    "training": mpc.Training("sum_of_squares", 0.125, 2, 2, 1.0),
    "weight_range": 4.0,
}
UNTRAINED = {"features": {}, "labels": (), "training": None, "query": {"alice": (1, 2)}}


def test_a_job_of_numpys_types_is_the_same_job():
    plain = Job(**GIVEN)
    training = mpc.Training("sum_of_squares", np.float32(0.125), np.int64(2), np.int32(2), np.float64(1))
    given = {
        **GIVEN,
        "layers": [mpc.Layer(np.int64(1))],
        "features": {"alice": np.array([4, 1]), "bob": [np.int64(4), 1]},
        "labels": ["bob"],
        "weights": (np.array([[0.5], [-0.25]], np.float32), np.array([0.125])),
        "training": training,
        "weight_range": np.float32(4),
        "feature_range": 1,
    }
    assert Job(**given) == plain
    assert Job(**given).to_json() == plain.to_json()
    assert Job.from_dict(json.loads(plain.to_json())) == plain
    claim = mpc.NoiseClaim(np.float32(8), np.float64(0.125), 1, np.int64(0), np.int64(2))
    noise = mpc.NoiseShares(["alice"], np.float32(64), np.int64(20), claim)
    vectors = Job(ABY3, features={"alice": (1, 3)}, noise=noise)
    assert Job.from_dict(json.loads(vectors.to_json())) == vectors


@pytest.mark.parametrize(
    ("changes", "naming"),
    [
        ({"world": "aby3"}, "world to be a World"),
        ({"world": None}, "world to be a World"),
        ({"training": {"loss": "sum_of_squares"}}, "training to be a Training"),
        ({"noise": {"parties": ["alice"]}}, "noise to be a NoiseShares"),
        ({"arithmetic": (64, 20)}, "arithmetic to be a FixedPoint"),
        ({"layers": (3,)}, "layers to be a list or tuple of Layer"),
        ({"layers": mpc.Layer(1)}, "layers to be"),
        ({"labels": None}, "labels to be a list or tuple of names"),
        ({"labels": [["bob"]]}, "labels to be"),
        ({"labels": {"bob"}}, "labels to be"),
        ({"labels": "bob"}, "labels to be"),
        ({"reveal_weights": {"bob": 1}}, "reveal_weights to be"),
        ({"holders": {"alice", "bob"}}, "holders to be a list or tuple of names, in their order"),
        ({"features": {"alice": 5}}, r"features to hold shapes \(rows, columns\), got 5 for 'alice'"),
        ({"features": {"alice": (4, 1, 1)}}, "features to hold shapes"),
        ({"features": {"alice": (4, 1.5)}}, "features to be a whole number"),
        ({"features": {"alice": "41"}}, "features to hold shapes"),
        ({"features": {"alice": (4, (1, 2))}}, "features to be a whole number"),
        ({"features": {"alice": np.array(4)}}, "features to hold shapes"),
        ({"noise": mpc.NoiseShares(("alice",), 1.0, 20), **UNTRAINED}, "noise beside training, or in a sum"),
        ({**UNTRAINED, "labels": ("alice",)}, "labels beside training"),
        ({"reveal_predictions": ("alice",)}, "a query with reveal_predictions"),
        ({**UNTRAINED, "weight_range": 0.25}, "public weights within weight_range=0.25, got one of magnitude 0.5"),
        ({"features": ["alice"]}, "features to map parties"),
        ({"query": 3}, "query to map parties"),
        ({"initial": ["alice"]}, "initial to be"),
        ({"weights": 5}, "weights to be a list"),
        ({"weights": [[[0.3], [1, 2]], [0.1]]}, r"weights\[0\] to be an array, got rows of different lengths"),
        ({"weights": [[["a"], ["b"]], [0.1]]}, "weights to hold"),
        ({"weights": [[["1"], ["2"]], [0.1]]}, "weights to hold"),
        ({"weights": [[[0.3], [0.3]], [None]]}, r"weights\[1\]"),
        ({"weights": [np.ma.masked_equal([[0.3], [0.4]], 0.4), [0.1]]}, r"weights\[0\] without masked"),
        ({"features": {}, "labels": (), "training": None}, "features, or a query, of at least one party"),
    ],
)
def test_what_is_no_job_is_refused_by_name(changes, naming):
    with pytest.raises(InputError, match=naming):
        Job(**{**GIVEN, **changes})


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"training": GIVEN["training"], "labels": ("bob",)}, "labels"),
        ({"training": GIVEN["training"]}, "training"),
        ({"labels": ("bob",)}, "labels"),
        ({"query": {"alice": (1, 2)}}, "query"),
        ({"weights": [[[0.0], [0.0]], [0.0]]}, "weights"),
        ({"initial": "alice"}, "initial"),
        ({"reveal_weights": ("alice",)}, "reveal_weights"),
        ({"weight_range": 1.0}, "weight_range"),
        ({"split": "rows"}, "split"),
        ({"label_range": 2.0}, "label_range"),
    ],
)
def test_a_sum_refuses_what_only_a_model_has(changes, name):
    given = {"world": ABY3, "features": {"alice": (1, 2), "bob": (1, 2)}, "reveal_predictions": ("alice",)}
    Job(**given)
    with pytest.raises(InputError, match=f"Expected {name} to be left out of a job without layers"):
        Job(**{**given, **changes})


def test_public_weights_that_training_clips_may_pass_the_range():
    Job(**{**GIVEN, "weight_range": 0.25})
    Job(**{**GIVEN, **UNTRAINED, "weight_range": 0.5})


def test_a_set_of_parties_has_no_order():
    for make in (
        lambda: mpc.World("aby3", set(NAMES)),
        lambda: mpc.NoiseShares({"alice", "bob"}, 1.0, 20),
        lambda: SharedGaussian(frozenset(NAMES), 1.0, 3, 2.0),
        lambda: mpc.World("aby3", dict.fromkeys(NAMES)),
    ):
        with pytest.raises(InputError, match="parties to be a list or tuple of names, in their order"):
            make()


@pytest.mark.parametrize("name", ["zürich", "a" * 64, "b b", "1a", ""])
def test_names_of_parties_fit_certificates_and_addresses(name, tmp_path):
    with pytest.raises(InputError, match="ASCII letters, digits and _"):
        mpc.World("cheetah", ("alice", name))
    with pytest.raises(InputError, match="ASCII letters, digits and _"):
        make_certificates(("alice", name), tmp_path / "certificates")


def test_the_longest_name_has_a_certificate(tmp_path):
    make_certificates(("a" * 63,), tmp_path / "certificates")


def test_a_file_without_layers_is_a_sum():
    given = {
        "world": dataclasses.asdict(ABY3),
        "features": {"alice": [1, 2], "bob": [1, 2]},
        "holders": ["alice", "bob"],
    }
    assert Job.from_dict(given).layers == ()
    assert Job.from_dict({**given, "layers": None}) == Job.from_dict({**given, "layers": []}) == Job.from_dict(given)


def test_a_step_too_small_for_the_arithmetic_is_refused_however_small():
    for rate in (1e-320, 5e-324, 1e-12):
        job = Job(**{**GIVEN, "training": mpc.Training("mean_squared_error", rate, 2)})
        with pytest.raises(InputError, match="raise learning_rate"):
            mpc.plan(job)


@pytest.mark.parametrize("stddev", [1e200, float("inf"), 0, True, "1"])
def test_noise_no_arithmetic_holds_is_refused(stddev):
    with pytest.raises(InputError, match="stddev"):
        mpc.NoiseShares(("alice",), stddev, 20, mpc.NoiseClaim(1.0, 1e-5, 1.0, 0, 1))
    with pytest.raises(InputError, match=r"noise\.claim to be a NoiseClaim"):
        mpc.NoiseShares(("alice",), 1.0, 20, {"epsilon": 1.0})


def model(**options):
    made = mpc.SharedModel([mpc.Layer(1)], ABY3, **options)
    made.compile("mean_squared_error", 0.1)
    return made


X, Y = np.linspace(-1, 1, 12).reshape(4, 3), np.array([0.0, 1.0, 0.0, 1.0])
SPLIT = {"alice": X[:, :1], "bob": X[:, 1:]}
MASKED = np.ma.masked_equal([0.0, 1.0, 0.5, 1.0], 0.5)


@pytest.mark.parametrize(
    ("call", "naming"),
    [
        (lambda: mpc.SharedModel([mpc.Layer(1)], "aby3"), "world to be a World"),
        (lambda: mpc.SharedModel([3], ABY3), "layers to be"),
        (lambda: mpc.SharedModel([], ABY3), "at least one layer"),
        (lambda: model().fit([X], {"alice": Y}, steps=1), "x to map parties to what they have, got a list"),
        (lambda: model().fit({"dave": X}, {"alice": Y}, steps=1), "x of parties .*'dave'"),
        (lambda: model().fit({"alice": None}, {"alice": Y}, steps=1), "x to map alice"),
        (lambda: model().fit({"alice": X}, [Y], steps=1), "y to map"),
        (lambda: model().fit({"alice": X}, {"alice": [[1], [2, 3]]}, steps=1), "y to be an array"),
        (lambda: model().fit({"alice": X}, {"alice": MASKED}, steps=1), "y without masked"),
        (lambda: model().fit({"alice": [[1.0], [1.0, 2.0]]}, {"alice": Y}, steps=1), "x to be an array"),
        (lambda: model().fit(SPLIT, {"bob": Y}, steps=1, noise_steps={"bob": [[1], [1, 2]]}), "noise_steps"),
        (lambda: model().fit(SPLIT, {"bob": Y}, steps=1, ids={"dave": range(4)}), "ids of parties .*'dave'"),
        (lambda: model().fit(SPLIT, {"bob": Y}, steps=1, ids={"carol": range(4)}), "ids of parties .*'carol'"),
        (lambda: model().fit(SPLIT, {"bob": Y}, steps=1, ids=[range(4)]), "ids to map"),
        (lambda: mpc.shared_sum([X], ABY3, reveal=("alice",), value_range=1), "vectors to map"),
        (lambda: mpc.shared_sum({"alice": [[1], [1, 2]]}, ABY3, reveal=("alice",), value_range=1), "vectors to be"),
        (lambda: mpc.shared_sum({"alice": [1.0]}, "aby3", reveal=("alice",), value_range=1), "world to be"),
        (lambda: mpc.shared_sum({"alice": [1.0]}, ABY3, reveal="alice", value_range=1), "reveal_predictions"),
        (lambda: mpc.simulate(Job(**GIVEN), {"dave": {}}), "data of parties .*'dave'"),
        (lambda: mpc.simulate(Job(**GIVEN), {"alice": X}), "data of alice to map names to arrays"),
        (lambda: mpc.launch(Job(**GIVEN), {"dave": {}}), "data of parties .*'dave'"),
        (lambda: mpc.launch(Job(**GIVEN), {"alice": None}), "data to map alice"),
    ],
)
@pytest.mark.usefixtures("engine")
def test_what_is_no_data_of_parties_is_refused_by_name(call, naming):
    with pytest.raises(InputError, match=naming):
        call()


def test_what_is_no_question_is_refused_by_name():
    asked = model()
    asked.fit(SPLIT, {"bob": Y}, steps=1)
    for query, naming in (([X], "query to map"), ({}, "at least one party"), ({"dave": X}, "query of parties .*dave")):
        with pytest.raises(InputError, match=naming):
            asked.predict(query, reveal=("alice",))
    with pytest.raises(InputError, match="reveal_predictions to be"):
        asked.predict(SPLIT, reveal={"alice"})
    with pytest.raises(InputError, match=r"ids of parties \(alice, bob\), got 'carol'"):
        asked.predict(SPLIT, reveal=("alice",), ids={"carol": range(4)})
    with pytest.raises(InputError, match=r"ids of parties \(none\)"):
        asked.predict({"carol": X}, reveal=("alice",), ids={"carol": range(4)})


@pytest.mark.parametrize(
    ("addresses", "naming"),
    [
        ({"alice": "h:1", "bob": "h:2", "carol": "h:3"}, r"\(host, port\) as the address of alice, got 'h:1'"),
        (dict.fromkeys(NAMES, ("127.0.0.1", "1")), "the port of alice"),
        (dict.fromkeys(NAMES, (1, 1)), "as the address of alice"),
        ([("127.0.0.1", 1)], "addresses to map parties"),
    ],
)
def test_what_is_no_address_is_refused_by_name(addresses, naming):
    with pytest.raises(InputError, match=naming):
        mpc.run_party(Job(**GIVEN), "alice", {"x": X[:, :1]}, addresses)


@pytest.mark.parametrize(
    "option",
    ["kernel_constraint", "bias_constraint", "kernel_regularizer", "bias_regularizer", "activity_regularizer"],
)
def test_what_keras_would_train_otherwise_is_refused(option):
    import keras

    value = "non_neg" if option.endswith("constraint") else "l2"
    model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(1, **{option: value})])
    with pytest.raises(InputError, match=f"Dense layers without {option}"):
        mpc.SharedModel(model, ABY3)
