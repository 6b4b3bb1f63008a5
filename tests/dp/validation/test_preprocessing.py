"""Adapted layers are told from given ones, warned of by name, and trained with."""

import warnings

import keras
import numpy as np
import pytest

from tests.dp.training.test_planned import CLASSES, WIDTH
from tests.dp.training.test_private_model import B, N, dataset, private, weights_of
from tfprivacy_lab.dp import DpSgdRun, TrainingPlan, train
from tfprivacy_lab.dp.mechanisms.private_scale import PrivateScale
from tfprivacy_lab.dp.validation.models import check_model
from tfprivacy_lab.dp.validation.preprocessing import not_covered_statistics, statistics_layers

layers = keras.layers
TABLE = np.random.default_rng(0).normal(size=(N, WIDTH)).astype(np.float32)
WORDS = np.array([["a b"], ["b c"], ["c"]])
NUMBERS = np.array([[3], [5], [5], [7]])


def adapted(layer, data):
    layer.adapt(data)
    return layer


ADAPTED = {
    "Normalization": (lambda: adapted(layers.Normalization(), TABLE), (WIDTH,), "float32", "mean= and variance="),
    "Discretization": (
        lambda: adapted(layers.Discretization(num_bins=3), TABLE),
        (WIDTH,),
        "float32",
        "bin_boundaries=",
    ),
    "IntegerLookup": (lambda: adapted(layers.IntegerLookup(), NUMBERS), (1,), "int64", "vocabulary="),
    "StringLookup": (lambda: adapted(layers.StringLookup(), WORDS), (1,), "string", "vocabulary="),
    "TextVectorization": (lambda: adapted(layers.TextVectorization(), WORDS), (1,), "string", "vocabulary="),
}
GIVEN = {
    "Normalization": (lambda: layers.Normalization(mean=0.0, variance=2.0), (WIDTH,), "float32"),
    "not adapted": (layers.Normalization, (WIDTH,), "float32"),
    "Discretization": (lambda: layers.Discretization([0.0, 1.0]), (WIDTH,), "float32"),
    "IntegerLookup": (lambda: layers.IntegerLookup(vocabulary=[3, 5, 7]), (1,), "int64"),
    "StringLookup": (lambda: layers.StringLookup(vocabulary=["a", "b"]), (1,), "string"),
    "TextVectorization": (lambda: layers.TextVectorization(vocabulary=["a", "b"]), (1,), "string"),
    "CategoryEncoding": (lambda: layers.CategoryEncoding(4, output_mode="multi_hot"), (1,), "int64"),
    "Hashing": (lambda: layers.Hashing(5), (1,), "int64"),
    "Rescaling": (lambda: layers.Rescaling(1 / 255), (WIDTH,), "float32"),
}


def behind(layer, shape, dtype):
    given = layers.Input(shape, dtype=dtype)
    found = layer(given)
    if not found.dtype.startswith("float"):
        found = layers.GlobalAveragePooling1D()(layers.Embedding(20, 4)(found))
    return keras.Model(given, layers.Dense(CLASSES)(found))


@pytest.mark.parametrize(("build", "shape", "dtype", "instead"), ADAPTED.values(), ids=ADAPTED.keys())
def test_adapted_layers_are_warned_of_once_each_by_name_with_the_way_on(build, shape, dtype, instead):
    layer = build()
    model = behind(layer, shape, dtype)
    nested = keras.Sequential([layers.Input(shape, dtype=dtype), model, layers.Dense(CLASSES)])
    for one in (model, nested):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            check_model(one)
        (message,) = [str(warning.message) for warning in said if "outside of epsilon" in str(warning.message)]
        assert f"Layer {layer.name!r} ({type(layer).__name__})" in message
        assert instead in message
        assert statistics_layers(one) == [layer.name]
        assert layer.name in not_covered_statistics(one)[0]


@pytest.mark.parametrize(("build", "shape", "dtype"), GIVEN.values(), ids=GIVEN.keys())
def test_what_is_given_as_an_argument_or_learns_nothing_is_not_warned_of(build, shape, dtype):
    model = behind(build(), shape, dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        check_model(model)
    assert statistics_layers(model) == not_covered_statistics(model) == []


def test_adapted_layers_are_found_again_in_a_loaded_model(tmp_path):
    model = behind(adapted(layers.IntegerLookup(), NUMBERS), (1,), "int64")
    model.save(tmp_path / "model.keras")
    assert statistics_layers(keras.models.load_model(tmp_path / "model.keras")) == statistics_layers(model) != []


@pytest.mark.parametrize("engine", ["fast", "reference"])
@pytest.mark.parametrize("vocabulary", [None, [3, 5, 7]])
def test_models_with_a_lookup_are_fitted(vocabulary, engine):
    layer = layers.IntegerLookup(vocabulary=vocabulary)
    if vocabulary is None:
        layer.adapt(NUMBERS)
    model = behind(layer, (1,), "int64")
    x = np.random.default_rng(0).choice([3, 5, 7, 9], (N, 1))
    before = model.layers[-1].kernel.numpy()
    wrapped = private(model, engine=engine, noise_multiplier=1.0)
    wrapped.fit(x, np.arange(N) % CLASSES, B, steps_per_epoch=1, verbose=0)
    assert np.all(model.layers[-1].kernel.numpy() != before)


def test_a_private_scale_goes_into_a_normalization_layer():
    x, y = dataset(N)
    mean, variance = PrivateScale(np.full(WIDTH, -4.0), np.full(WIDTH, 4.0), 1.0, N).release(x, seed=0)
    model = keras.Sequential(
        [layers.Input((WIDTH,)), layers.Normalization(mean=mean, variance=variance), layers.Dense(CLASSES)]
    )
    np.testing.assert_allclose(model.layers[0](x), (x - mean) / np.sqrt(variance), rtol=1e-4, atol=1e-5)
    assert statistics_layers(model) == []
    private(model, noise_multiplier=1.0).fit(x, y, B, steps_per_epoch=1, verbose=0)
    assert np.isfinite(weights_of(model)).all()


@pytest.mark.parametrize("engine", ["fast", "reference"])
def test_training_warns_of_an_adapted_layer_once(engine):
    model = behind(adapted(layers.Normalization(name="scaled"), TABLE), (WIDTH,), "float32")
    plan, run = TrainingPlan(B, 1, 1.0, 0.5), DpSgdRun(N, B, 1.0, N // B)
    with pytest.warns(UserWarning, match="Layer 'scaled'.*outside of epsilon") as said:
        train(model, TABLE, np.arange(N) % CLASSES, plan=plan, run=run, delta=1e-3, seed=0, engine=engine)
    assert sum("outside of epsilon" in str(one.message) for one in said) == 1
