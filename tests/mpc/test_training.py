"""Training and predicting on shares, in a simulation, against plain NumPy and Keras."""

import numpy as np
import pytest
from scipy import stats
from sklearn.datasets import load_breast_cancer

from tfprivacy_lab import mpc
from tfprivacy_lab.checks import InputError
from tfprivacy_lab.cli import mpc as mpc_commands

ABY3 = mpc.World("aby3", ("alice", "bob", "carol"))
SEMI2K = mpc.World("semi2k", ("alice", "bob"), "alice")
WORLDS = {name: mpc.World(name, *mpc_commands._NAMES[name]) for name in mpc.PROTOCOLS}


def breast_cancer(seed):
    """(train, test) of standardised features clipped to 4, and labels."""
    x, y = load_breast_cancer(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(x))
    train, test = order[:455], order[455:]
    x = np.clip((x - x[train].mean(0)) / x[train].std(0), -4, 4)
    return (x[train], y[train]), (x[test], y[test])


def plain_logistic(x, y, kernel, bias, rate, steps):
    """The oracle: gradient descent on the mean logistic loss, in NumPy."""
    for _ in range(steps):
        residual = 1 / (1 + np.exp(-(x @ kernel + bias))) - y[:, None]
        kernel, bias = kernel - rate * x.T @ residual / len(x), bias - rate * residual.mean(0)
    return kernel, bias


@pytest.mark.parametrize("name", list(WORLDS))
def test_listing_under_every_protocol(name):
    job, data = mpc_commands.listing_job(WORLDS[name])
    run = mpc.simulate(job, data)
    for party in ("alice", "bob"):
        kernel, bias = run.outcomes[party].weights
        assert kernel.ravel() == pytest.approx([0.8950, -0.0513], abs=1e-3)
        assert bias == pytest.approx([0.0927], abs=1e-3)
        assert run.outcomes[party].predictions[0, 0] == pytest.approx(0.5 * (0.8950 - 0.0513) + 0.0927, abs=1e-3)
    assert run.bytes_sent > 1000
    assert run.rounds > 20
    if "carol" in run.outcomes:
        assert run.outcomes["carol"].weights is None
        assert run.outcomes["carol"].predictions is None


def test_error_bound_is_reported_and_holds():
    (x, y), _ = breast_cancer(0)
    x = x[:, :4]
    model = mpc.SharedModel([mpc.Layer(1, "sigmoid")], SEMI2K, feature_range=4)
    model.compile("binary_crossentropy", 0.1)
    run = model.fit({"alice": x[:, :2], "bob": x[:, 2:]}, {"bob": y}, steps=10, reveal_weights=("bob",))
    start = [np.array(one) for one in model.job.weights]
    plain = plain_logistic(x, y, *start, 0.1, 10)
    difference = np.concatenate([(a - b).ravel() for a, b in zip(run.outcomes["bob"].weights, plain, strict=True)])
    assert 0 < np.linalg.norm(difference) <= run.plan.weight_error < 0.05
    assert run.outcomes["alice"].weights is None


def test_rows_of_two_parties_train_as_one_set_and_batches_are_taken_in_turn():
    (x, y), _ = breast_cancer(1)
    x, y = x[:400, :5], y[:400]
    model = mpc.SharedModel([mpc.Layer(1, "sigmoid")], ABY3, feature_range=4)
    model.compile("binary_crossentropy", 0.5, batch_size=100)
    parts = {"alice": x[:250], "bob": x[250:]}
    run = model.fit(parts, {"alice": y[:250], "bob": y[250:]}, steps=6, split="rows", reveal_weights=("alice",))
    kernel, bias = (np.array(one) for one in model.job.weights)
    for step in range(6):
        rows = slice(100 * (step % 4), 100 * (step % 4) + 100)
        kernel, bias = plain_logistic(x[rows], y[rows], kernel, bias, 0.5, 1)
    assert run.outcomes["alice"].weights[0] == pytest.approx(kernel, abs=2e-3)
    assert run.outcomes["alice"].weights[1] == pytest.approx(bias, abs=2e-3)


def test_predictions_from_shares_go_to_one_party_only():
    (x, y), (queries, _) = breast_cancer(2)
    model = mpc.SharedModel([mpc.Layer(1, "sigmoid")], SEMI2K, feature_range=4)
    model.compile("binary_crossentropy", 0.5)
    run = model.fit({"alice": x[:, :10], "bob": x[:, 10:]}, {"bob": y}, steps=3)
    assert all(outcome.weights is None for outcome in run.outcomes.values())
    found = model.predict({"alice": queries[:7, :10], "bob": queries[:7, 10:]}, reveal=("alice",))
    plain = plain_logistic(x, y, *[np.array(one) for one in run_start(model, x, y)], 0.5, 3)
    expected = 1 / (1 + np.exp(-(queries[:7] @ plain[0] + plain[1])))
    assert found == pytest.approx(expected, abs=3e-3)
    assert model.outcomes.outcomes["bob"].predictions is None


def run_start(model, x, y):
    """The public start of a model: what a fresh one writes into its job."""
    fresh = mpc.SharedModel(list(model.layers), model.world, feature_range=4)
    fresh.compile("binary_crossentropy", 0.5)
    fresh.fit({"alice": x[:, :10], "bob": x[:, 10:]}, {"bob": y}, steps=1)
    return fresh.job.weights


@pytest.mark.slow_but("sigmoid")
@pytest.mark.parametrize("activation", ["relu", "sigmoid"])
def test_network_matches_keras_gradient_tape(activation):
    """Weights and training loss of a Keras model trained in float, full batches, plain gradient descent."""
    import keras

    keras.utils.set_random_seed(3)
    (x, y), _ = breast_cancer(3)
    plain = keras.Sequential(
        [keras.layers.Input((30,)), keras.layers.Dense(16, activation), keras.layers.Dense(1, "sigmoid")]
    )
    model = mpc.SharedModel(plain, SEMI2K, feature_range=4, weight_range=4)
    model.compile("binary_crossentropy", 0.3)
    run = model.fit({"alice": x[:, :15], "bob": x[:, 15:]}, {"bob": y}, steps=8, reveal_weights=("alice",))
    plain.compile(keras.optimizers.SGD(0.3), "binary_crossentropy")
    before = plain.evaluate(x, y, verbose=0)
    plain.fit(x, y, batch_size=len(x), epochs=8, shuffle=False, verbose=0)
    expected = plain.evaluate(x, y, verbose=0)
    plain.set_weights(run.outcomes["alice"].weights)
    loss = plain.evaluate(x, y, verbose=0)
    assert expected < 0.9 * before
    assert loss == pytest.approx(expected, rel=0.01)


def test_linear_regression_with_clipped_weights():
    rng = np.random.default_rng(5)
    x = rng.uniform(-1, 1, (60, 3))
    y = x @ [0.5, -0.25, 3.0] + 0.125
    model = mpc.SharedModel([mpc.Layer(1)], SEMI2K, label_range=5, weight_range=1)
    model.compile("mean_squared_error", 0.3)
    run = model.fit({"alice": x[:, :1], "bob": x[:, 1:]}, {"alice": y}, steps=25, reveal_weights=("alice",))
    kernel, bias = (np.array(one) for one in model.job.weights)
    for _ in range(25):
        residual = 2 * (x @ kernel + bias - y[:, None])
        kernel = np.clip(kernel - 0.3 * x.T @ residual / 60, -1, 1)
        bias = np.clip(bias - 0.3 * residual.mean(0), -1, 1)
    assert kernel.max() == 1  # The clip binds: it is part of what was agreed.
    assert run.outcomes["alice"].weights[0] == pytest.approx(kernel, abs=1e-3)


def test_head_on_shares_answers_as_in_float_and_only_to_the_features_owner():
    rng = np.random.default_rng(6)
    kernel, bias = rng.normal(size=(128, 10)) * 0.2, rng.normal(size=10) * 0.1
    features = np.maximum(rng.normal(size=(100, 128)), 0)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    from tfprivacy_lab.mpc.computations import shared_head

    run = shared_head(kernel, bias, ABY3, owner="bob", features_of="alice", features=features, feature_range=1.0)
    expected = features @ kernel + bias
    logits = run.outcomes["alice"].predictions
    assert np.abs(logits - expected).max() <= run.plan.prediction_error < 1e-2
    assert (logits.argmax(1) == expected.argmax(1)).mean() >= 0.99
    assert run.outcomes["bob"].predictions is None
    assert run.outcomes["carol"].predictions is None


@pytest.mark.parametrize("bias", [np.zeros((2, 10)), np.zeros((1, 10)), np.zeros(9), 0.0])
def test_a_heads_bias_of_another_shape_is_refused(bias):
    from tfprivacy_lab.mpc.computations import shared_head

    given = {"owner": "bob", "features_of": "alice", "features": np.zeros((1, 4)), "feature_range": 1.0}
    with pytest.raises(InputError, match=r"Expected bias of shape \(10,\) beside kernel \(4, 10\), got "):
        shared_head(np.zeros((4, 10)), bias, ABY3, **given)


@pytest.mark.long
def test_vertical_logistic_regression_over_five_seeds():
    differences = []
    for seed in range(5):
        (x, y), (queries, labels) = breast_cancer(seed)
        model = mpc.SharedModel([mpc.Layer(1, "sigmoid")], SEMI2K, feature_range=4, seed=seed)
        model.compile("binary_crossentropy", 0.5)
        parts = {"alice": x[:, :15], "bob": x[:, 15:]}
        run = model.fit(parts, {"bob": y}, steps=20, reveal_weights=("alice", "bob"), run=mpc.launch)
        shared = run.outcomes["alice"].weights
        plain = plain_logistic(x, y, *[np.array(one) for one in model.job.weights], 0.5, 20)
        assert all(np.abs(a - b).max() < 5e-3 for a, b in zip(shared, plain, strict=True))
        accuracy = [(((queries @ k + b)[:, 0] > 0) == labels).mean() for k, b in (shared, plain)]
        assert accuracy[1] > 0.9
        differences.append(abs(accuracy[0] - accuracy[1]))
    assert max(differences) <= 0.002


@pytest.mark.parametrize(
    ("change", "naming"),
    [
        ({"x": np.full((4, 1), 1.5)}, "alice: .*range of 1"),
        ({"x": np.zeros((3, 1))}, r"alice: .*\(4, 1\).*\(3, 1\)"),
        ({"x": np.full((4, 1), np.nan)}, "alice: .*finite"),
        ({"x": None}, "alice: "),
    ],
)
@pytest.mark.usefixtures("engine")
def test_a_partys_own_data_is_checked_and_never_echoed(change, naming):
    job, data = mpc_commands.listing_job(ABY3)
    data["alice"] = {**data["alice"], **change}
    with pytest.raises(InputError, match=naming):
        mpc.simulate(job, data)


def test_fit_before_compile_and_predict_before_fit_are_refused():
    model = mpc.SharedModel([mpc.Layer(1)], SEMI2K)
    with pytest.raises(InputError, match="compile"):
        model.fit({}, {}, steps=1)
    with pytest.raises(InputError, match="fit"):
        model.predict({}, reveal=("alice",))


def test_keras_layers_without_a_rule_are_refused():
    import keras

    with pytest.raises(InputError, match="Dropout"):
        mpc.SharedModel(keras.Sequential([keras.layers.Input((3,)), keras.layers.Dropout(0.5)]), SEMI2K)
    tanh = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(1, "tanh")])
    with pytest.raises(InputError, match="activation"):
        mpc.SharedModel(tanh, SEMI2K)


KERAS_KINDS = ["twice", "outputs", "parallel", "own", "unbuilt", "activation", "normalised", "a call", "relu", "ReLU"]


@pytest.mark.parametrize("kind", [*KERAS_KINDS, "renamed", "of rows of rows", "with a dict"])
def test_keras_models_that_are_no_chain_of_layers_used_once_are_refused(kind):
    import keras

    layers = keras.layers
    x, dense = layers.Input((3,)), layers.Dense(3)

    class Dense(layers.Dense):
        def call(self, inputs):
            return -super().call(inputs)

    class Renamed(Dense):
        """Of the module of Keras' name, but not of Keras."""

    class Called(keras.Sequential):
        def call(self, inputs):
            return -super().call(inputs)

    def relu(value):
        return -value

    # Modules of users, whose names begin as Keras'.
    Renamed.__name__, Renamed.__module__ = "Dense", "keras_of_mine"
    Called.__module__, relu.__module__ = "keras_models", "keras_utils"
    made = {
        "twice": lambda: keras.Model(x, dense(dense(x))),
        "outputs": lambda: keras.Model(x, [dense(x), layers.Dense(1)(dense.output)]),
        "parallel": lambda: keras.Model(x, layers.Add()([dense(x), layers.Dense(3)(x)])),
        "own": lambda: keras.Sequential([x, Dense(1)]),
        "renamed": lambda: keras.Sequential([x, Renamed(1)]),
        "of rows of rows": lambda: keras.Sequential([layers.Input((5, 3)), layers.Dense(2)]),
        "with a dict": lambda: keras.Model(x, {"a": dense(x)}),
        "unbuilt": lambda: keras.Sequential([layers.Dense(1)]),
        "activation": lambda: keras.Sequential([x, layers.Dense(1, activation=lambda value: value)]),
        "a call": lambda: Called([x, dense]),
        "relu": lambda: keras.Sequential([x, layers.Dense(1, activation=relu)]),
        "ReLU": lambda: keras.Sequential([x, layers.Dense(1, activation=layers.ReLU())]),
        "normalised": lambda: keras.Sequential([x, layers.BatchNormalization(), dense]),
    }
    reasons = {
        "twice": "used more than once",
        "outputs": "one input and one output",
        "parallel": "takes 2 tensors",
        "own": "Expected Dense layers",
        "renamed": "Expected Dense layers",
        "of rows of rows": "of rows of numbers, got .* of shape .5, 3.",
        "with a dict": "whose output is a tensor",
        "unbuilt": "a built model",
        "activation": "activations of Keras",
        "a call": "with a call of its own",
        "relu": "activations of Keras, got a function of yours",
        "ReLU": "by name, .* got a ReLU in layer",
        "normalised": "scale the features before",
    }
    with pytest.raises(InputError, match=reasons[kind]):
        mpc.SharedModel(made[kind](), SEMI2K)


# Every message of the engine, as its own trace writes it, in a process that does nothing else.
TRACED = """
import re, sys
import numpy as np
from spu import libspu
from tfprivacy_lab import mpc
from tfprivacy_lab.mpc.runtime import engine

trace, value, leak = sys.argv[1], float(sys.argv[2]), sys.argv[3] == "leak"
def setup(self):
    path = trace + ".log"
    options = libspu.logging.LogOptions()
    options.enable_console_logger, options.system_log_path = False, path
    options.trace_log_path, options.trace_content_length = trace, 1 << 20
    options.log_level = libspu.logging.LogLevel.DEBUG
    libspu.logging.setup_logging(options)
    self._stream = open(path, "rb")
engine.ProfileLog.__init__ = setup
if leak:  # The control: shares that are the secret itself, and zeros.
    make = engine.spu.Io.make_shares
    def leaky(self, x, *rest):
        shares = make(self, np.zeros_like(x), *rest)
        plain = make(self, x, engine._PUBLIC, *rest[1:])
        for share in shares:
            share.share_chunks = plain[0].share_chunks
        return shares
    engine.spu.Io.make_shares = leaky
world = mpc.World(sys.argv[4], ("alice", "bob"), "alice" if sys.argv[4] == "semi2k" else None)
x = np.full((40, 12), value)
model = mpc.SharedModel([mpc.Layer(1, "sigmoid")], world, feature_range=4)
model.compile("binary_crossentropy", 0.5)
model.fit({"alice": x[:, :6], "bob": x[:, 6:]}, {"alice": np.arange(40) % 2}, steps=3)
"""


def received_bytes(tmp_path, name, value, mode="shares", protocol="semi2k"):
    """Histogram of the bytes that bob received from alice."""
    import re
    import subprocess
    import sys

    trace = tmp_path / name
    command = [sys.executable, "-c", TRACED, str(trace), str(value), mode, protocol]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    text = trace.read_text(errors="replace")
    messages = re.findall(r"key=\S*0->1, tag=.*?, value=([0-9a-f]+)", text)
    data = bytes.fromhex("".join(message[: len(message) // 2 * 2] for message in messages))
    return np.bincount(np.frombuffer(data, np.uint8), minlength=256)


@pytest.mark.processes
@pytest.mark.slow
@pytest.mark.usefixtures("engine")
def test_what_a_party_receives_does_not_depend_on_inputs(tmp_path):
    """Two-sample test on the engine's own messages over a training; shares that leak fail it."""
    small, large = received_bytes(tmp_path, "small", 0.0), received_bytes(tmp_path, "large", 3.3)
    assert small.sum() > 5_000
    assert stats.chi2_contingency([small + 1, large + 1]).pvalue > 1e-6
    leaking = [received_bytes(tmp_path, f"leak{value}", value, "leak") for value in (0.0, 3.3)]
    assert stats.chi2_contingency([leaking[0] + 1, leaking[1] + 1]).pvalue < 1e-6
