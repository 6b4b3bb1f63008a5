"""The one module that goes beyond Keras' public interface, tried on Keras 3.10 to 3.15; another version is to be read.

What each function takes of Keras is written here from outside: by what the public interface says beside it.
"""

import ast
import contextlib
import io
import pathlib
import random
import re
import zipfile

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf

from tfprivacy_lab.models import keras_internals

layers = keras.layers
OLDEST, NEWEST = (3, 10), (3, 15)


def network():
    inner = keras.Sequential([layers.Input((4,)), layers.Dense(3), layers.Dropout(0.5)])
    x = layers.Input((4,))
    return keras.Model(x, layers.Dense(2)(inner(x)))


class Subclassed(keras.Model):
    """Layers in a list, in a dictionary, and a weight of its own."""

    def __init__(self):
        super().__init__()
        self.several, self.named = [layers.Dense(3), layers.Dense(3)], {"last": layers.Dense(2)}
        self.scale = self.add_weight(shape=(3,), initializer="ones")

    def call(self, inputs):
        for layer in self.several:
            inputs = layer(inputs)
        return self.named["last"](inputs * self.scale)


class Unshaped(layers.Layer):
    """What it gives is known by calling it alone."""

    def compute_output_spec(self, inputs):
        raise NotImplementedError

    def call(self, inputs):
        return inputs


def test_the_version_is_one_that_this_module_was_read_against():
    version = tuple(map(int, keras.__version__.split(".")[:2]))
    assert OLDEST <= version <= NEWEST, "read keras_internals.py against this Keras, then move the bound"


def test_every_layer_is_found_and_holds_its_own_weights():
    model = Subclassed()
    model(np.ones((1, 4), np.float32))
    found = keras_internals.layers_of(model)
    assert found[0] is model
    assert {id(layer) for layer in found[1:]} == {id(layer) for layer in [*model.several, model.named["last"]]}
    own = [weight for layer in found for weight in keras_internals.own_weights(layer)]
    assert sorted(map(id, own)) == sorted(map(id, model.trainable_variables))
    assert [weight is model.scale for weight in keras_internals.own_weights(model)] == [True]
    model.trainable = False
    assert len(keras_internals.own_weights(model.several[0])) == 2
    assert [type(layer).__name__ for layer in keras_internals.layers_of(network())].count("Dense") == 2


def test_raw_variables_are_tensorflows_and_the_same():
    model = network()
    raw = keras_internals.raw(model.trainable_variables)
    assert all(isinstance(variable, tf.Variable) for variable in raw)
    raw[0].assign(tf.ones_like(raw[0]))
    assert np.all(model.trainable_variables[0].numpy() == 1)
    with tf.GradientTape() as tape:
        value = tf.reduce_sum(model.trainable_variables[0])
    found = tape.gradient(value, raw, unconnected_gradients="zero")
    assert [float(tf.reduce_max(one)) for one in found] == [1.0, 0.0, 0.0, 0.0]


def test_a_variable_that_its_gradient_overwrites_is_told_from_others():
    """Keras' optimizers put the gradient of such a one in its place: so one does here."""
    scale, weight = keras.Variable([1.0]), keras.Variable([1.0])
    scale.overwrite_with_gradient = True
    optimizer = keras.optimizers.SGD(0.5)
    optimizer.apply_gradients([(tf.constant([7.0]), scale), (tf.constant([2.0]), weight)])
    assert [float(variable.numpy()[0]) for variable in (scale, weight)] == [7.0, 0.0]
    assert [keras_internals.is_overwritten(variable) for variable in (scale, weight)] == [True, False]


def test_a_model_is_saved_as_if_it_had_not_been_compiled(tmp_path):
    model = network()
    model.compile("adam", "mse", metrics=["mae"])
    x, y = np.ones((4, 4), np.float32), np.ones((4, 2), np.float32)
    model.fit(x, y, verbose=0)
    with keras_internals.as_before_compile(model):
        model.save(tmp_path / "model.keras")
    with (
        zipfile.ZipFile(tmp_path / "model.keras") as archive,
        h5py.File(io.BytesIO(archive.read("model.weights.h5"))) as held,
    ):
        assert set(held) <= {"layers", "vars"}
    found = keras.models.load_model(tmp_path / "model.keras")
    assert getattr(found, "optimizer", None) is None
    assert not found.compiled
    np.testing.assert_array_equal(found.predict(x, verbose=0), model.predict(x, verbose=0))
    assert model.compiled
    model.fit(x, y, verbose=0)
    assert int(model.optimizer.iterations.numpy()) == 2


def test_models_within_are_as_before_compile_and_all_are_compiled_after_whatever_happens():
    inner = network()
    model = keras.Sequential([layers.Input((4,)), inner, layers.Dense(1)])
    for one in (inner, model):
        one.compile("adam", "mse")
        one.build((None, 4))
    with keras_internals.as_before_compile(model):
        assert not any(one.compiled or hasattr(one, "optimizer") for one in (inner, model))
    with pytest.raises(ZeroDivisionError), keras_internals.as_before_compile(model):
        _ = 1 / 0
    assert all(one.compiled and one.optimizer is not None for one in (inner, model))


def test_masks_are_found_on_what_layers_give():
    tokens = layers.Embedding(5, 3, mask_zero=True)(np.array([[1, 2, 0]]))
    assert keras_internals.mask_of(tokens).numpy().tolist() == [[True, True, False]]
    assert keras_internals.mask_of(tf.ones(3)) is None


def test_inputs_are_known_of_every_kind_of_model():
    called = Subclassed()
    called(np.ones((2, 4), np.float32))
    later = keras.Sequential([layers.Dense(3)])
    later.build((None, 4))
    unshaped = keras.Sequential([Unshaped()])
    unshaped(np.ones((1, 4), np.float32))
    for model in (network(), called, later, unshaped):
        assert tuple(keras_internals.inputs_of(model).shape[1:]) == (4,)
    taken = {"a": layers.Input((2,), name="a"), "b": layers.Input((3, 1), name="b")}
    several = keras.Model(taken, layers.Concatenate()([taken["a"], layers.Flatten()(taken["b"])]))
    assert {name: part.shape for name, part in keras_internals.inputs_of(several).items()} == {
        "a": (None, 2),
        "b": (None, 3, 1),
    }


def test_a_tensor_knows_its_layer_and_what_that_took():
    x, dense = layers.Input((3,)), layers.Dense(3)
    once = dense(x)
    twice = dense(once)
    layer, taken, options = keras_internals.maker_of(twice)
    assert layer is dense
    assert [one is once for one in taken] == [True]
    assert not options.get("training")
    assert keras_internals.maker_of(layers.Dropout(0.5)(x, training=True))[2]["training"] is True
    assert keras_internals.maker_of(x)[1] is None


def test_states_of_seeds_move_with_every_draw():
    model = network()
    (state,) = keras_internals.seed_states(model)
    before = state.numpy().copy()
    model(np.ones((1, 4), np.float32), training=True)
    assert (state.numpy() - before).tolist() == [0, 1]
    model(np.ones((1, 4), np.float32), training=False)
    assert (state.numpy() - before).tolist() == [0, 1]


@pytest.mark.parametrize("drawn_before", [False, True])
def test_the_global_generator_is_afterwards_what_it_was(drawn_before):
    def later(between):
        keras.utils.clear_session()
        keras.utils.set_random_seed(3)
        if drawn_before:
            keras.random.normal((2,))
        with between:
            pass
        return keras.random.normal((2,)).numpy().tolist()

    @contextlib.contextmanager
    def looked_at():
        state = random.getstate()
        with keras_internals.global_seed_state() as found:
            assert found.shape == (2,)
            random.setstate(state)
            yield

    assert later(looked_at()) == later(contextlib.nullcontext())


def test_metrics_are_built_without_a_batch():
    model = network()
    model.compile("sgd", "mse", metrics=["mae"])
    assert keras_internals.loss_tracker(model).name == "loss"
    keras_internals.build_metrics(model, tf.ones((1, 2)), tf.ones((1, 2)))
    assert set(model.get_metrics_result()) == {"loss", "mae"}
    assert all(float(value) == 0 for value in model.get_metrics_result().values())


def test_profiling_is_told_from_none():
    callback = keras.callbacks.TensorBoard("nowhere", profile_batch=0)
    assert not keras_internals.profiles(callback)
    callback._init_profile_batch(2)
    assert keras_internals.profiles(callback)


PRIVATE = re.compile(
    "|".join(
        rf"\b{name}\b"
        for name in (
            *(
                "_flatten_layers",
                "_trainable_variables",
                "_non_trainable_variables",
                "_functional",
                "_keras_mask",
                "_keras_history",
                "_inbound_nodes",
            ),
            *(
                "_build_shapes_dict",
                "_seed_generators",
                "_loss_tracker",
                "_compile_metrics",
                "_compile_loss",
                "_should_trace",
            ),
            *("_maybe_symbolic_build", "_make_function", "_callable_losses", "_is_graph_network"),
        )
    )
)


def test_nothing_else_goes_beyond_the_public_interface():
    root = pathlib.Path(__file__).parents[2]
    for path in [*(root / "tfprivacy_lab").rglob("*.py"), *(root / "benchmarks").rglob("*.py")]:
        text = path.read_text()
        assert "tf.compat" not in text, path
        assert "tf.keras" not in text, path
        if path.name == "keras_internals.py":
            continue
        tree = ast.parse(text)
        names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        names |= {
            node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        imported = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        imported |= {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
        found = {name for name in names if PRIVATE.fullmatch(name)}
        assert not found, f"{path}: {found}"
        assert not any(name.startswith("keras.src") for name in imported), path
