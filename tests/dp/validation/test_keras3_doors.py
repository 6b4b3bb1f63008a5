"""Doors that Keras 3 opened: each let something past the engine once."""

import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.dp.training.test_planned import CLASSES, WIDTH
from tests.dp.training.test_private_model import B, N, dataset, private
from tfprivacy_lab.checks import InputError
from tfprivacy_lab.dp import DpSgdRun, PrivateModel, TrainingPlan, train
from tfprivacy_lab.dp.clipping.ghost import UnknownLayerError
from tfprivacy_lab.dp.training import planned as training
from tfprivacy_lab.dp.training import private_steps

layers = keras.layers
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def network():
    return keras.Sequential([layers.Input((WIDTH,)), layers.Dense(6, "tanh"), layers.Dense(CLASSES)])


def wrapped(model, **options):
    made = PrivateModel(model, **{"l2_norm_clip": 1.0, "noise_multiplier": 0.0, "seed": 3, **options})
    made.compile(keras.optimizers.SGD(0.1), LOSS)
    return made


def test_a_normalisation_without_the_mean_is_not_clipped_by_the_rule_of_one_with_it():
    def model():
        return keras.Sequential(
            [layers.Input((WIDTH,)), layers.LayerNormalization(rms_scaling=True), layers.Dense(CLASSES)]
        )

    with pytest.raises(UnknownLayerError, match="rms_scaling"):
        wrapped(model())
    wrapped(model(), unknown_layers="slow")


def test_a_global_policy_scales_no_step():
    model = network()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        made = wrapped(model)
    finally:
        keras.config.set_dtype_policy("float32")
    assert type(made.optimizer) is keras.optimizers.SGD
    assert made.compute_dtype == "float32"


@pytest.mark.slow_but("1", "65")
@pytest.mark.parametrize("rows", [1, 40, 60, 64, 65])
def test_an_evaluation_ends_where_its_batches_do(rows):
    x, y = dataset(rows, seed=5)
    figures = []
    for steps in (1, 5):
        made = private(network())
        made.compile(keras.optimizers.SGD(0.0), LOSS, steps_per_execution=steps)
        made.model.set_weights([np.full(weight.shape, 0.01, np.float32) for weight in made.model.weights])
        figures.append(made.evaluate(x, y, batch_size=8, verbose=0))
        history = made.fit(*dataset(N), B, validation_data=(x, y), verbose=0).history
        assert len(history["val_loss"]) == 1
    assert figures[0] == pytest.approx(figures[1], rel=1e-5)


def test_an_option_that_keras_does_not_take_is_named():
    with pytest.raises(InputError, match="'foo'"):
        PrivateModel(network(), l2_norm_clip=1.0, noise_multiplier=0.0).compile("sgd", LOSS, foo=1)


def test_what_is_quantised_after_it_was_wrapped_is_refused():
    made = PrivateModel(network(), l2_norm_clip=1.0, noise_multiplier=0.0, unknown_layers="slow")
    next(layer for layer in made.model.layers if isinstance(layer, layers.Dense)).quantize("int8")
    with pytest.raises(InputError, match="quantised"):
        made.compile("sgd", LOSS)


def test_a_state_tree_from_elsewhere_is_noted():
    made = wrapped(network())
    made.set_state_tree(wrapped(network()).get_state_tree())
    assert any("set_state_tree" in note for note in made.privacy_notes())


def test_callbacks_say_which_way_epsilon_goes():
    made = wrapped(network())
    with pytest.raises(InputError, match="mode='min'"):
        made.fit(*dataset(N), B, callbacks=[keras.callbacks.EarlyStopping(monitor="epsilon")])
    made.fit(*dataset(N), B, callbacks=[keras.callbacks.EarlyStopping(monitor="epsilon", mode="min")], verbose=0)


@pytest.mark.skipif(not hasattr(keras.callbacks, "OrbaxCheckpoint"), reason="this Keras has no OrbaxCheckpoint")
def test_orbax_brings_no_weights_back(tmp_path, monkeypatch):
    monkeypatch.setattr(
        keras.callbacks.OrbaxCheckpoint, "__init__", lambda self: keras.callbacks.Callback.__init__(self)
    )
    with pytest.raises(InputError, match="OrbaxCheckpoint would bring back"):
        wrapped(network()).fit(*dataset(N), B, callbacks=[keras.callbacks.OrbaxCheckpoint()])


class Scaled(layers.Layer):
    """A weight that was made frozen."""

    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), initializer="ones", trainable=False)

    def call(self, inputs):
        return inputs * self.scale


def test_a_weight_that_is_set_free_later_is_trained_or_refused():
    model = keras.Sequential([layers.Input((WIDTH,)), Scaled(), layers.Dense(CLASSES, kernel_initializer="zeros")])
    model.layers[0].scale.trainable = True
    with pytest.raises(UnknownLayerError, match="Scaled"):
        wrapped(model)


class Drawing(layers.Layer):
    """Noise by a generator of TensorFlow's own."""

    def __init__(self):
        super().__init__()
        self.generator = tf.random.Generator.from_seed(1)

    def call(self, inputs, training=False):
        return inputs + 0.1 * self.generator.normal(tf.shape(inputs)) if training else inputs


def states_of_generators():
    """Of fits that differ in what they draw alone."""
    for seed in range(6):
        drawing = Drawing()
        made = wrapped(keras.Sequential([layers.Input((WIDTH,)), drawing, layers.Dense(CLASSES)]), seed=seed)
        made.fit(*dataset(N), B, verbose=0)
        yield tuple(drawing.generator.state.numpy())


@pytest.mark.slow
def test_a_generator_of_tensorflow_does_not_count_the_rows_that_were_drawn(monkeypatch):
    assert len(set(states_of_generators())) == 1
    monkeypatch.setattr(private_steps, "generators_of", lambda model: [])
    assert len(set(states_of_generators())) > 1


REPLICAS = """
import sys, tfprivacy_lab
import keras, numpy as np, tensorflow as tf
from tfprivacy_lab.dp.training.replicas import Replicas

(cpu,) = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"][: int(sys.argv[1])])
for option in ("clipnorm", "global_clipnorm", "clipvalue"):
    with strategy.scope():
        replicas, variable = Replicas(), keras.Variable(np.zeros(3, np.float32))
        optimizer = keras.optimizers.SGD(1.0, **{option: 0.25})
        optimizer.build([variable])
    strategy.run(tf.function(lambda: replicas.apply(optimizer, [tf.constant([1.0, 2.0, 0.0])], [variable])))
    print(replicas.count, option, *variable.numpy())
"""


@pytest.mark.slow
@pytest.mark.processes
def test_clipping_of_an_optimizer_is_the_same_on_two_replicas():
    moved = {}
    for count in ("1", "2"):
        command = [sys.executable, "-c", REPLICAS, count]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, done.stderr
        for line in done.stdout.splitlines():
            found, option, *weights = line.split()
            assert found == count
            moved.setdefault(option, []).append([float(weight) for weight in weights])
    assert set(moved) == {"clipnorm", "global_clipnorm", "clipvalue"}
    for one, two in moved.values():
        assert one == pytest.approx(two, rel=1e-6)
        assert 0 < np.max(np.abs(one)) <= 0.25


class Seen(keras.Model):
    """Keeps the mean of what it sees in a metric of its own."""

    def __init__(self):
        super().__init__()
        self.seen, self.dense = keras.metrics.Mean("seen"), layers.Dense(4)

    def call(self, inputs):
        self.seen.update_state(inputs)
        return self.dense(inputs)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("engine", ["fast", "reference"])
def test_metrics_of_models_within_are_reset_by_training(engine):
    assert seen_by(engine) == [0.0, 0.0]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("engine", ["fast", "reference"])
def test_metrics_of_models_within_are_moved_by_training(engine, monkeypatch):
    """Or the test before would say nothing."""
    monkeypatch.setattr(training, "without_figures", lambda model: model)
    assert seen_by(engine)[1] > 0


def seen_by(engine):
    """What a metric within a model holds after training, and what is held out was looked at."""
    inner = Seen()
    model = keras.Sequential([layers.Input((WIDTH,)), inner, layers.Dense(CLASSES)])
    run = DpSgdRun(N, B, 1.0, N // B)
    plan, held_out = TrainingPlan(B, 1, 1.0, 0.1), dataset(20)
    train(model, *dataset(N), plan=plan, run=run, delta=1e-5, seed=1, engine=engine, validation=held_out)
    return [float(variable.numpy()) for variable in inner.seen.variables]


def test_steps_that_came_from_elsewhere_are_noticed_while_gradients_accumulate():
    made = wrapped(network())
    made.compile(keras.optimizers.SGD(0.1, gradient_accumulation_steps=100), LOSS)
    made.fit(*dataset(N), B, verbose=0)
    assert int(made.optimizer.iterations.numpy()) == 0
    made.optimizer.variables[0].assign(1)
    with pytest.raises(InputError, match="restored or used elsewhere"):
        made.fit(*dataset(N), B, verbose=0)


def normalised():
    layer = layers.Normalization()
    layer.adapt(np.random.default_rng(0).normal(3, 2, (50, WIDTH)).astype(np.float32))
    return keras.Sequential([layers.Input((WIDTH,)), layer, layers.Dense(CLASSES)])


def looked_up():
    layer = layers.IntegerLookup(output_mode="one_hot")
    layer.adapt(np.array([3, 5, 5, 7]))
    return keras.Sequential([layers.Input((1,), dtype="int64"), layer, layers.Dense(CLASSES)])


@keras.saving.register_keras_serializable("tests")
class Doubled(keras.Model):
    """Functional, with a call of its own."""

    def call(self, inputs, training=None):
        return 2 * super().call(inputs, training=training)


def doubled():
    x = layers.Input((WIDTH,))
    return Doubled(x, layers.Dense(CLASSES)(x))


@pytest.mark.filterwarnings("ignore:Layer:UserWarning")
@pytest.mark.parametrize("build", [normalised, looked_up, doubled])
def test_a_model_that_was_compiled_before_leaves_as_it_computes(build, tmp_path):
    model = build()
    model.compile("adam", LOSS)
    optimizer = model.optimizer
    made = wrapped(model)
    x = np.array([[3], [7], [9]]) if build is looked_up else np.random.default_rng(1).normal(size=(3, WIDTH))
    x = x.astype(model.inputs[0].dtype)
    expected = np.asarray(model(x))
    made.save(tmp_path / "model.keras")
    np.testing.assert_allclose(keras.models.load_model(tmp_path / "model.keras")(x), expected, rtol=1e-6)
    made.export(str(tmp_path / "served"), verbose=False)
    served = tf.saved_model.load(str(tmp_path / "served"))
    np.testing.assert_allclose(served.serve(x), expected, rtol=1e-6)
    assert model.compiled
    assert model.optimizer is optimizer
