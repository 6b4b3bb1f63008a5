"""Columns of unlike size: a public range a column, what a step loses, the bounds that are told, and a tabular path."""

import hashlib
import json
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.he.test_properties import client_of
from tfprivacy_lab import he
from tfprivacy_lab.checks import InputError, PrecisionWarning
from tfprivacy_lab.cli import command as cli
from tfprivacy_lab.he.messages import wire
from tfprivacy_lab.he.messages.error_bounds import labels_in_doubt
from tfprivacy_lab.he.quantization.steps import Steps, feature_steps, quantize_features
from tfprivacy_lab.he.ring.parameters import PARAMETERS

BFV, CKKS = PARAMETERS["bfv"], PARAMETERS["ckks"]
SIZES = np.array([[1e6, 1.0], [1e6, 0.0]])
KERNEL, BIAS = np.array([[1e-6], [4.0]]), np.array([-3.0])


def answered(client, features, kernel, bias, feature_range, packing="auto"):
    """Logits, their error, and the two bounds on it."""
    query = client.encrypt(features, feature_range, packing)
    server = he.Server(kernel, bias)
    reply = server.evaluate(query)
    error = np.abs(client.decrypt(reply, query) - features @ kernel - bias).max()
    return error, float(server.head_for(query).error_bound().max()), client.error_bound(reply)


def test_a_step_a_column():
    steps = feature_steps(SIZES, BFV, [1e6, 1.0])
    assert steps == Steps(20 - 12, (0, -20))
    integers, exponents = quantize_features(SIZES, BFV, [1e6, 1.0])
    assert exponents.tolist() == [8, -12]
    np.testing.assert_allclose(np.ldexp(integers, exponents), SIZES, atol=2.0**7)
    # Equal steps are one step, and the message the one it was.
    assert feature_steps(SIZES, BFV, [1e6, 2.0**19 + 1]) == feature_steps(SIZES, BFV, 1e6 + 1) == Steps(8)


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_columns_of_unlike_size_with_a_range_each(name):
    """The same numbers under one range are off by 4 and more."""
    error, told, bound = answered(client_of(name), SIZES, KERNEL, BIAS, [1e6, 1.0])
    assert error <= told <= bound < 0.05


@given(
    st.sampled_from(sorted(PARAMETERS)),
    st.integers(1, 60),
    st.integers(1, 6),
    st.integers(0, 30),
    st.integers(0, 2**32 - 1),
)
def test_random_sizes_of_columns_decrypt_within_both_bounds(name, features, classes, spread, seed):
    """NumPy is the oracle: weights against features in float64, BFV's integers exactly."""
    rng, client = np.random.default_rng(seed), client_of(name)
    bounds = 2.0 ** rng.uniform(-spread, spread, features)
    kernel = rng.standard_t(2, size=(features, classes)) / bounds[:, np.newaxis]
    bias, samples = rng.normal(size=classes), rng.uniform(-1, 1, (3, features)) * bounds
    samples[0] = bounds * np.sign(kernel[:, 0])
    server = he.Server(kernel, bias)
    for packing in client.parameters.packings:
        query = client.encrypt(samples, bounds, packing)
        head, reply = server.head_for(query), server.evaluate(query)
        errors = np.abs(client.decrypt(reply, query) - samples @ kernel - bias)
        assert (errors <= head.error_bound(samples)).all()
        assert (head.error_bound(samples) <= head.error_bound() * (1 + 1e-12)).all()
        assert head.error_bound().max() <= client.error_bound(reply)
        if client.scheme == "bfv":
            integers, _ = quantize_features(samples, client.parameters, bounds)
            np.testing.assert_array_equal(client.decrypt_integers(reply, query)[0], he.integer_logits(head, integers))


@pytest.mark.parametrize("name", sorted(PARAMETERS))
@pytest.mark.parametrize("samples", [1, 500])
def test_features_of_one_size_are_neither_refused_nor_warned_of(name, samples):
    """Dense and sparse activations, and a unit that is almost never on."""
    rng = np.random.default_rng(samples)
    gaussian = rng.normal(size=(samples, 128))
    sparse = np.maximum(gaussian - 1, 0) + (np.arange(128) == 5)
    sparse[:, 7] = 0
    sparse[0, 7] = 3e-3
    for features in (gaussian / np.linalg.norm(gaussian, axis=1, keepdims=True), sparse):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            feature_steps(features, PARAMETERS[name], None, PARAMETERS[name].packings[0])


@pytest.mark.parametrize("name", sorted(PARAMETERS))
@pytest.mark.parametrize("where", ["row", "column"])
def test_an_outlier_does_not_spoil_the_others_in_silence(name, where):
    features = np.random.default_rng(0).uniform(1, 2, (20, 3))
    features[7, 1 if where == "column" else slice(None)] = -1e9
    pinned = PARAMETERS[name]
    with pytest.raises(InputError, match=r"a few steps or none, by the magnitude 1e\+09 in row 7.*clip or drop"):
        feature_steps(features, pinned, None, pinned.packings[0])
    with pytest.warns(PrecisionWarning, match="by the stated feature_range"):
        feature_steps(features, pinned, 1e9, pinned.packings[0])
    with pytest.raises(InputError, match=r"within feature_range=2, got a magnitude of 1e\+09 in row 7, column"):
        feature_steps(features, pinned, [2, 2, 2], pinned.packings[0])


def test_rows_of_the_kernel_that_round_away_are_told_of_each_time(bfv_client):
    with pytest.warns(PrecisionWarning, match="features would be rounded"):
        query = bfv_client.encrypt(SIZES, 1e6)
    server = he.Server(KERNEL, BIAS)
    for _ in range(2):
        with pytest.warns(PrecisionWarning, match="1 of 2 rows of the kernel round to nothing beside the others"):
            reply = server.evaluate(query)
    assert server.head_for(query).error_bound().max() > 1
    for refuse in (
        lambda: server.evaluate(query, max_error=0.1),
        lambda: bfv_client.decrypt(reply, query, max_error=0.1),
    ):
        with pytest.raises(InputError, match=r"max_error=0\.1, but a logit may be off by .* as narrow as each column"):
            refuse()
    assert bfv_client.decrypt(reply, query, max_error=1e5).shape == (2, 1)


def test_a_server_is_frozen_whatever_its_arrays_become(bfv_client):
    kernel, bias = np.ones((3, 2)), np.zeros(2)
    server = he.Server(kernel, bias)
    kernel += 5
    bias += 5
    for feature_range in (1.0, 4.0):
        query = bfv_client.encrypt(np.ones((1, 3)), feature_range)
        assert bfv_client.decrypt(server.evaluate(query), query) == pytest.approx(np.full((1, 2), 3.0), abs=0.01)


def test_a_range_that_the_server_does_not_take_is_refused_by_all_it_has(bfv_client):
    server = he.Server(np.ones((3, 2)), feature_range=1.0000001)
    query = bfv_client.encrypt(np.ones((1, 3)), 1.0)
    size = wire.HEADER_BYTES
    for refuse in (
        lambda: server.evaluate(query),
        lambda: server.head_for(query),
        lambda: server.key(query),
        lambda: server.cost(query[:size], len(query)),
    ):
        with pytest.raises(InputError, match=r"encrypt with its feature_range=1\.0000001"):
            refuse()
    right = bfv_client.encrypt(np.ones((1, 3)), 1.0000001)
    assert server.cost(right[:size], len(right)).samples == 1
    assert server.head_for(right).error_bound().max() < 0.01
    several = he.Server(np.ones((3, 2)), feature_range=[1, 1, 0.1])
    right = bfv_client.encrypt(np.full((1, 3), 0.1), [1, 1, 0.1])
    assert several.cost(right[:size], len(right)).samples == 1
    with pytest.raises(InputError, match="one bound a column"):
        several.cost(query[:size], len(query))
    with pytest.raises(InputError, match="feature_range=1"):
        server.cost(right[:size], len(right))


def test_automatic_packing_of_ckks_weighs_errors(ckks_client, bfv_client):
    features = np.random.default_rng(0).uniform(-1, 1, (100, 30))
    packings = [
        wire.parse(client.encrypt(features, 1.0), wire.QUERY, "query")[0].packing
        for client in (ckks_client, bfv_client)
    ]
    assert packings == ["coefficient", "batched"]
    kernel, bias = np.random.default_rng(1).normal(size=(30, 2)), np.zeros(2)
    errors = [answered(ckks_client, features, kernel, bias, 1.0, packing)[1] for packing in ("auto", "batched")]
    assert errors[0] < errors[1] / 4


@pytest.mark.parametrize(
    ("feature_range", "reason"),
    [
        ([1.0], r"one for each of 2 columns, got shape \(1,\)"),
        ([1.0, 0.0], r"feature_range\[1\]"),
        ([1.0, np.nan], r"feature_range\[1\]"),
        ([[1.0, 1.0]], "got shape"),
        ([1.0, 2.0**300], "rescale"),
    ],
)
def test_ranges_that_are_none_are_refused(bfv_client, feature_range, reason):
    with pytest.raises(InputError, match=reason):
        bfv_client.encrypt(np.zeros((1, 2)), feature_range)


def test_masked_features_are_refused(bfv_client):
    with pytest.raises(InputError, match="without masked values, got a masked array with 1"):
        bfv_client.encrypt(np.ma.array([[1.0, 2.0]], mask=[[True, False]]), 2.0)


@pytest.mark.parametrize("steps", [(0, 0), (-1, -2), (1, 0), (-2000, 0)])
def test_forged_steps_are_refused(bfv_client, steps):
    query = bytearray(bfv_client.encrypt(SIZES, [1e6, 1.0]))
    header, body = wire.parse(bytes(query), wire.QUERY, "query")
    assert header.column_steps == (0, -20)
    query[-36:-32] = np.array(steps, "<i2").tobytes()
    signed = bytes(query[:-32]) + hashlib.sha256(query[:-32]).digest()
    with pytest.raises(InputError, match="steps within float64"):
        he.Server(KERNEL, BIAS).evaluate(signed)
    plain = wire.pack(wire.dataclasses.replace(header, column_steps=()), body)
    assert len(plain) == len(query) - 4


def exported_logistic_regression():
    """Kernel and bias for raw features, raw test rows, and public bounds: twice the largest in training."""
    from sklearn.datasets import load_breast_cancer
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    features, labels = load_breast_cancer(return_X_y=True)
    scaler = StandardScaler().fit(features[:400])
    model = LogisticRegression().fit(scaler.transform(features[:400]), labels[:400])
    kernel = (model.coef_ / scaler.scale_).T
    return kernel, model.intercept_ - scaler.mean_ @ kernel, features[400:460], 2 * features[:400].max(axis=0)


@pytest.mark.slow_but("list-*")
@pytest.mark.parametrize("scheme", sorted(PARAMETERS))
@pytest.mark.parametrize("given_as", ["list", "file"])
def test_tabular_users_get_right_labels_or_a_line_that_says_what_to_do(tmp_path, capsys, monkeypatch, scheme, given_as):
    kernel, bias, rows, bounds = exported_logistic_regression()
    monkeypatch.chdir(tmp_path)
    np.savez("head.npz", kernel=kernel, bias=bias)
    np.save("rows.npy", rows)
    np.save("outlier.npy", np.concatenate([rows, np.full((1, 30), -999999.0)]))
    np.save("bounds.npy", bounds)
    stated = "bounds.npy" if given_as == "file" else ",".join(map(str, bounds))

    def run(command, *arguments):
        code = cli.main(["he", *command.split(), *arguments, "--json"])
        told = capsys.readouterr()
        return code, json.loads(told.out) if code == 0 else told.err

    run(f"keygen --scheme {scheme} --out keys")
    encrypt = "encrypt --keys keys --out query --features"
    expected = rows @ kernel + bias

    def labels_of_the_query(asked):
        """All right, or a line says that they may not be."""
        assert run("evaluate --head head.npz --query query --out reply")[0] == 0
        assert (
            cli.main(
                ["he", *["decrypt", "--keys", "keys", "--reply", "reply", "--query", "query", "--out", "logits.npy"]]
            )
            == 0
        )
        told = capsys.readouterr().err
        wrong = int(((np.load("logits.npy") > 0) != (asked @ kernel + bias > 0)).sum())
        assert wrong == 0 or "labels may be wrong" in told
        return told

    def logits_of_the_query():
        code, evaluated = run("evaluate --head head.npz --query query --out reply --max-error 50")
        assert code == 0
        code, decrypted = run("decrypt --keys keys --reply reply --query query --out logits.npy")
        assert code == 0
        logits = np.load("logits.npy")
        assert ((logits > 0) == (expected > 0)).all()
        assert np.abs(logits - expected).max() <= evaluated["error_bound"] <= decrypted["error_bound"]
        return decrypted["error_bound"]

    for count in (1, 3, 7, 60):
        np.save("some.npy", rows[:count])
        code, line = run(f"{encrypt} some.npy")
        assert code == 2 or scheme.startswith("ckks")
        if code == 0:
            labels_of_the_query(rows[:count])
        else:
            assert "give feature_range as one bound a column" in line
    assert code == 2  # of many rows, whatever the scheme
    code, line = run(f"{encrypt} outlier.npy")
    assert code == 2
    assert "by the magnitude 999999 in row 60, column 0: give feature_range as one bound a column, and clip" in line
    code, line = run(f"{encrypt} outlier.npy", "--feature-range", stated)
    assert code == 2
    assert "in row 60, column 0; clip or drop that row" in line
    assert run(f"{encrypt} rows.npy", "--feature-range", stated)[0] == 0
    assert logits_of_the_query() < 1
    assert labels_of_the_query(rows) == ""
    assert run(f"{encrypt} rows.npy", "--feature-range", str(bounds.max()))[0] == 0  # of one bound for all, a warning
    assert scheme == "ckks" or "labels may be wrong" in labels_of_the_query(rows)
    assert run(f"{encrypt} rows.npy", "--feature-range", stated)[0] == 0
    logits_of_the_query()
    code, line = run("decrypt --keys keys --reply reply --query query --out other.npy --max-error 1e-9")
    assert code == 2
    assert "a logit may be off by" in line
    assert run("evaluate --head head.npz --query query --out none --max-error 1e-9")[0] == 2
    assert sorted(path.name for path in tmp_path.iterdir() if path.name in ("other.npy", "none")) == []
    code, told = run("explain --head head.npz", "--feature-range", stated, "--scheme", scheme.split("-")[0])
    assert code == 0
    assert told["error_bound"] < 1


@pytest.mark.parametrize("rows", [1, 3, 7, 60])
@pytest.mark.parametrize("scheme", sorted(PARAMETERS))
def test_no_batch_of_columns_of_unlike_size_is_wrong_in_silence(scheme, rows):
    """Eight columns of a million beside one of hundreds that decides: no step tells, and the bound does."""
    features = np.column_stack([np.full((rows, 8), 1e6), 100.0 + np.arange(rows)])
    kernel, bias = np.concatenate([np.full((8, 1), 1.2e-4), [[1.0]]]), np.array([-1100.0])
    client, told = client_of(scheme), []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            query = client.encrypt(features)
        except InputError as error:
            told.append(str(error))
        else:
            reply = he.Server(kernel, bias).evaluate(query)
            logits, bound = client.decrypt(reply, query), client.error_bound(reply)
            assert np.abs(logits - features @ kernel - bias).max() <= bound
            doubtful = labels_in_doubt(logits, bound)
            wrong = (logits > 0) != (features @ kernel + bias > 0)
            assert wrong.sum() <= doubtful
        told += [str(one.message) for one in caught]
    assert told or scheme.startswith("ckks")


@pytest.mark.parametrize(("logits", "doubtful"), [([[1.0], [-3.0], [0.5]], 2), ([[1, 4, 3.0], [9, 1, 1]], 1)])
def test_labels_in_doubt_are_those_within_twice_the_bound(logits, doubtful):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PrecisionWarning)
        assert labels_in_doubt(np.array(logits, float), 1.0) == doubtful
    if doubtful * 2 > len(logits):
        with pytest.warns(PrecisionWarning, match="2 of 3 labels may be wrong, as a logit may be off by 1"):
            labels_in_doubt(np.array(logits, float), 1.0)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ([np.ma.array([1.0, 2.0], mask=[False, True])], "masked"),
        (([np.ma.masked, 1.0],), "masked"),
        (np.ma.array([[1.0, 2.0]], mask=[[False, True]]), "masked"),
        ([[1.0], [1.0, 2.0]], "different lengths"),
    ],
)
def test_what_is_masked_or_ragged_is_refused_however_it_is_wrapped(bfv_client, given, reason):
    with pytest.raises(InputError, match=reason):
        bfv_client.encrypt(given, 2.0)
    with pytest.raises(InputError, match=reason):
        he.Server(given)
    for one in (given, given[0]):
        with pytest.raises(InputError, match=r"bias|masked|different lengths"):
            he.Server(np.ones((2, 2)), one)
        with pytest.raises(InputError, match=r"feature_range|masked|different lengths"):
            bfv_client.encrypt(np.ones((1, 2)), one)


def test_a_reply_that_bounds_nothing_is_no_logits(tmp_path, bfv_client, capsys, monkeypatch):
    """A server that names the smallest scale: the bound is infinite, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    bfv_client.save("keys")
    query = bfv_client.encrypt(np.ones((1, 2)), 1.0)
    header, body = wire.parse(he.Server(KERNEL, BIAS).evaluate(query), wire.REPLY, "reply")
    forged = wire.dataclasses.replace(header, weight_scale=5e-324)
    for name, content in (("query", query), ("reply", wire.pack(forged, body))):
        (tmp_path / name).write_bytes(content)
    for more in ([], ["--json"]):
        arguments = ["he", "decrypt", "--keys", "keys", "--query", "query", "--reply", "reply", "--out", "logits.npy"]
        assert cli.main([*arguments, *more]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (tmp_path / "logits.npy").exists()
