"""Plans: what Keras computes, what integers can reach, and parameter sets within the table."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.he.networks import aligned_inputs, dense_network
from tfprivacy_lab.checks import InputError
from tfprivacy_lab.dp.accounting.gaussian import DpSgdRun
from tfprivacy_lab.dp.plan import TrainingPlan
from tfprivacy_lab.dp.training import planned
from tfprivacy_lab.he.plans.layers import Network
from tfprivacy_lab.he.plans.network import BatchedPlan, Bounds, integer_logits
from tfprivacy_lab.he.ring.network_parameters import BATCHED, SINGLE, NetworkParameters
from tfprivacy_lab.he.ring.parameters import MAX_COEFF_MODULUS_BITS
from tfprivacy_lab.models import architectures

_layers = keras.layers


def _close(model, shape, atol=1e-4):
    inputs = np.random.default_rng(0).uniform(-1, 1, size=(7, *shape)).astype(np.float32)
    np.testing.assert_allclose(Network.from_keras(model).evaluate(inputs), model(inputs).numpy(), atol=atol)


@pytest.mark.parametrize("make", [architectures.square_mlp, architectures.cryptonet])
def test_models_of_the_lab_are_read_as_keras_computes_them(make):
    keras.utils.set_random_seed(1)
    _close(make(), (28, 28, 1))


@pytest.mark.parametrize(
    "options",
    [
        {"strides": 1, "padding": "valid"},
        {"strides": (2, 3), "padding": "same"},
        {"strides": 2, "padding": "same", "use_bias": False},
        {"dilation_rate": (2, 1), "padding": "same"},
    ],
)
def test_convolutions_are_read_as_keras_computes_them(options):
    keras.utils.set_random_seed(2)
    convolution = _layers.Conv2D(3, (3, 2), **options, bias_initializer="random_normal")
    stack = [_layers.Input((7, 5, 2)), convolution, architectures.Square(), _layers.Flatten(), _layers.Dense(4)]
    model = keras.Sequential(stack)
    _close(model, (7, 5, 2))
    layer = Network.from_keras(model).layers[0]
    values = np.random.default_rng(0).normal(size=(layer.inputs, 3))
    np.testing.assert_allclose(layer.dense_kernel().T @ values, layer.apply(values), atol=1e-12)


def test_activation_named_square_is_a_square():
    model = keras.Sequential([_layers.Input((4,)), _layers.Dense(3, activation=tf.square), _layers.Dense(2)])
    _close(model, (4,))


@pytest.mark.parametrize(
    ("layers", "reason"),
    [
        ([_layers.Dense(3, activation="relu"), _layers.Dense(2)], "Dense, Conv2D and Square"),
        ([_layers.Dense(3), _layers.Dense(2)], "1 to 2 squares"),
        ([_layers.Dense(3), architectures.Square()], "one square between"),
        ([_layers.Dense(3), architectures.Square(), architectures.Square(), _layers.Dense(3)], "one square between"),
        ([_layers.Dense(3)], "1 to 2 squares"),
        ([_layers.Dense(2049), architectures.Square(), _layers.Dense(2)], "at most 2048"),
    ],
)
def test_networks_that_ciphertexts_cannot_compute_are_refused(layers, reason):
    model = keras.Sequential([_layers.Input((4,)), *layers])
    with pytest.raises(InputError, match=reason):
        Network.from_keras(model)


@pytest.mark.parametrize(
    "make", [lambda: architectures.square_mlp(8), architectures.cryptonet], ids=["dense", "convolutional"]
)
def test_square_networks_save_load_and_train_under_dp(tmp_path, monkeypatch, make):
    # Next to no noise, whose cost no accountant can discretise: the engines draw differently.
    monkeypatch.setattr(planned, "epsilon_after", lambda run, steps, delta: float("inf"))
    model = make()
    model.save(tmp_path / "m.keras")
    images = np.random.default_rng(0).random((2, 28, 28, 1), np.float32)
    loaded = keras.models.load_model(tmp_path / "m.keras", compile=False, safe_mode=True)
    np.testing.assert_array_equal(loaded(images), model(images))
    images, labels = np.random.default_rng(1).random((16, 28, 28, 1), np.float32), np.arange(16) % 10
    plan = TrainingPlan(8, 1, 1.0, 0.1, 0.0)
    run = DpSgdRun(16, 8, 1e-9, 2)
    ends = []
    for engine in ("reference", "fast"):
        trained = keras.models.clone_model(model)
        trained.set_weights(model.get_weights())
        planned.train(trained, images, labels, plan=plan, run=run, delta=1e-3, seed=0, engine=engine)
        ends.append(trained.get_weights())
    for reference, fast, start in zip(*ends, model.get_weights(), strict=True):
        assert np.abs(reference - start).max() > 0
        np.testing.assert_allclose(fast, reference, atol=1e-5)
    # What was trained under DP is what is evaluated under encryption.
    network = Network.from_keras(trained)
    np.testing.assert_allclose(network.evaluate(images[:2]), trained(images[:2]), atol=1e-4)
    assert BatchedPlan.make(network).public.squares == network.squares


@pytest.mark.parametrize("pinned", [*BATCHED.values(), SINGLE])
def test_pinned_sets_are_within_the_table_of_2024(pinned):
    assert pinned.coeff_modulus_bits <= MAX_COEFF_MODULUS_BITS[pinned.poly_modulus_degree]
    assert all(prime % (2 * pinned.poly_modulus_degree) == 1 for prime in pinned.coeff_modulus)


@pytest.mark.parametrize(
    "change",
    [
        {"coeff_modulus": (*BATCHED["ckks", 1].coeff_modulus, 65537)},
        {"coeff_modulus": BATCHED["ckks", 1].coeff_modulus[:1]},
        {"coeff_modulus": (1073692673, 1073692673)},
        {"coeff_modulus": (1073692673, 40963)},
        {"plaintext_modulus": 40961},
        {"scheme": "bfv"},
        {"scheme": "bgv"},
        {"poly_modulus_degree": 4095},
    ],
)
def test_sets_beyond_the_table_or_of_other_moduli_are_refused(change):
    fields = {"scheme": "ckks", "poly_modulus_degree": 4096, "coeff_modulus": BATCHED["ckks", 1].coeff_modulus}
    with pytest.raises(InputError):
        NetworkParameters(**{**fields, **change})


@pytest.mark.parametrize(("scheme", "widths"), [("bfv", (9, 5, 3)), ("ckks", (9, 5, 3)), ("ckks", (9, 6, 5, 3))])
@pytest.mark.parametrize("input_range", [(0.0, 1.0), (-2.0, 0.5)])
def test_no_input_in_range_leaves_the_bounds(scheme, widths, input_range):
    network = dense_network(3, *widths)
    plan = BatchedPlan.make(network, scheme, input_range)
    assert 2**-8 < max(plan.load.values()) <= 1
    bounds = Bounds.of(plan.layers, plan.public.parameters, input_range, plan.public.input_bits)
    inputs = np.concatenate(
        [aligned_inputs(network, *input_range), np.random.default_rng(0).uniform(*input_range, size=(500, 9))]
    )
    values = np.rint(np.ldexp(inputs, plan.public.input_bits)).astype(np.int64).astype(object).T
    for number, layer in enumerate(plan.layers):  # Python's integers: no width at all
        values = values if number == 0 else values * values
        values = layer.kernel.T.astype(object) @ values + layer.bias[:, np.newaxis]
    assert (np.abs(values).max(axis=1) <= bounds.magnitude).all()
    assert 2 * int(np.abs(values).max()) < (plan.public.parameters.plaintext_modulus or plan.public.parameters.modulus)
    logits = values.T.astype(float) / plan.public.output_scale
    assert np.abs(logits - network.evaluate(inputs)).max() <= plan.public.error_bound
    if scheme == "bfv":
        integers = np.rint(np.ldexp(inputs, plan.public.input_bits)).astype(np.int64)
        assert (integer_logits(plan, integers) == values.T).all()


def test_networks_without_room_are_refused():
    network = dense_network(4, 5, 4, 3, 2)
    with pytest.raises(InputError, match="one square for bfv"):
        BatchedPlan.make(network, "bfv")
    for scheme in ("ckks", "bfv"):
        with pytest.raises(InputError, match="could overflow: inputs within -1e\\+20"):
            BatchedPlan.make(dense_network(4, 5, 4, 3), scheme, (-1e20, 1e20))
    for bad in ((1.0, 0.0), (0.0, np.nan), (0.0, np.inf)):
        with pytest.raises(InputError, match="input_range"):
            BatchedPlan.make(network, "ckks", bad)
    with pytest.raises(InputError, match="scheme"):
        BatchedPlan.make(network, "bgv")


def test_plan_says_what_it_needs():
    summary = BatchedPlan.make(dense_network(5, 20, 8, 3)).public.summary(2049)
    assert summary["key_bytes"] == 0
    assert summary["up_bytes"] == 2 * 20 * 2 * 3 * 4096 * 4
    assert summary["down_bytes"] == 2 * 3 * 3 * 3 * 4096 * 4
    assert summary["coeff_modulus_bits"] <= 106
