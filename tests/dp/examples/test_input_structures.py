"""For every structure of inputs that Keras takes, one row moves the noiseless sum by C at most."""

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from tests.dp.training.test_planned import CLASSES
from tests.dp.training.test_private_model import LOSS, FixedDraws, private, weights_of
from tfprivacy_lab.dp.sampling import PoissonSample
from tfprivacy_lab.dp.training.replicas import Replicas

layers = keras.layers
N, B, C = 24, 6, 0.8
SQUARED = {0: 0.25, 1: 4.0, 2: 0.0}
OTHERS = [1, 4, 5, 11, 17]
WILD = N - 1
# The reference engine lays out its rows for what this seed draws, at least as many as the tests draw in its place.
SEED = next(seed for seed in range(100) if PoissonSample(N, B / N, seed).indices(0).size > len(OTHERS))


class Nested(keras.Model):
    """Takes {"left": (a, b), "right": c}."""

    def __init__(self):
        super().__init__()
        self.head = layers.Dense(CLASSES)

    def call(self, inputs):
        (a, b), c = inputs["left"], inputs["right"]
        return self.head(tf.concat([a, b, c], 1))


class FirstOfList(keras.Model):
    """Takes a list and looks at its parts by place, as subclassed models do."""

    def __init__(self):
        super().__init__()
        self.head = layers.Dense(CLASSES)

    def call(self, inputs):
        return self.head(inputs[0])


def functional(*widths, names=None):
    """One dense head over several inputs."""
    inputs = [layers.Input((w,), name=names[i] if names else None) for i, w in enumerate(widths)]
    joined = layers.Concatenate()(inputs) if len(inputs) > 1 else inputs[0]
    return keras.Model(inputs, layers.Dense(CLASSES)(joined))


def built(model, structure):
    """A subclassed model, called once on examples of its structure."""
    model(tf.nest.map_structure(lambda a: a[:2], structure))
    return model


STRUCTURES = {
    "array": (lambda x: functional(5), lambda a, b, c: a),
    "list of one": (lambda x: functional(5), lambda a, b, c: [a]),
    "tuple of one": (lambda x: functional(5), lambda a, b, c: (a,)),
    "dict of one": (lambda x: functional(5, names=["a"]), lambda a, b, c: {"a": a}),
    "list of one, subclassed": (lambda x: built(FirstOfList(), x), lambda a, b, c: [a]),
    "list of equal shapes": (lambda x: functional(5, 5), lambda a, b, c: [a, b]),
    "tuple of equal shapes": (lambda x: functional(5, 5), lambda a, b, c: (a, b)),
    "list of three, unequal": (lambda x: functional(5, 5, 3), lambda a, b, c: [a, b, c]),
    "dict of three": (
        lambda x: functional(5, 5, 3, names=["a", "b", "c"]),
        lambda a, b, c: {"c": c, "a": a, "b": b},
    ),
    "nested": (lambda x: built(Nested(), x), lambda a, b, c: {"left": (a, b), "right": c}),
    "nested, with a list": (lambda x: built(Nested(), x), lambda a, b, c: {"left": [a, b], "right": c}),
}
ENGINES = {
    "fast": {},
    "slow": {"unknown_layers": "slow"},
    "reference": {"engine": "reference", "noise_multiplier": 1e-7},
}
SETTINGS = [(sampling, physical) for sampling in ("poisson", "shuffled") for physical in (None, 4)]


def cases():
    """Structures in turn with each engine, sampling and physical batch; slow are all engines, and long is all."""
    for i, structure in enumerate(STRUCTURES):
        for k, engine in enumerate(ENGINES):
            # The reference engine samples by Poisson's law, and pads to physical batches anyway.
            settings = SETTINGS[:2] if engine == "reference" else SETTINGS
            for j, (sampling, physical) in enumerate(settings):
                in_turn = [] if k == i % len(ENGINES) else [pytest.mark.slow]
                marks = in_turn if j == i % len(settings) else [pytest.mark.long]
                name = f"{structure}-{engine}-{sampling}-{physical}"
                yield pytest.param(structure, engine, sampling, physical, id=name, marks=marks)


def columns():
    """Three inputs, (N, 5), (N, 5) and (N, 3), the last row wild; and labels."""
    rng = np.random.default_rng(0)
    a, b, c = (rng.normal(size=(N, width)).astype(np.float32) for width in (5, 5, 3))
    for part in (a, b, c):
        part[WILD] = 1e3 * rng.normal(size=part.shape[1])
    return (a, b, c), rng.integers(0, CLASSES, N)


def step(wrapped, start, x, y, drawn, monkeypatch, **options):
    """Weights after one step on the rows ``drawn``, from the weights ``start``."""
    monkeypatch.setattr(Replicas, "sampler", lambda *_: FixedDraws(drawn))
    wrapped.model.set_weights(start)
    wrapped.fit(x, y, B, steps_per_epoch=1, verbose=0, **options)
    return weights_of(wrapped.model).astype(np.float64)


@pytest.mark.filterwarnings("ignore:sampling='shuffled'")
@pytest.mark.parametrize(("structure", "engine", "sampling", "physical"), cases())
def test_one_row_moves_the_noiseless_sum_by_at_most_the_norm(structure, engine, sampling, physical, monkeypatch):
    make, arrange = STRUCTURES[structure]
    parts, y = columns()
    x = arrange(*parts)
    keras.utils.set_random_seed(2)
    model = make(x)
    y[WILD] = np.argmin(model(tf.nest.map_structure(lambda a: a[WILD:], x))[0])
    if engine == "slow":  # a layer without a rule, that does nothing here, makes the model differentiate row by row
        model = with_unknown_layer(model, x)
    wrapped = private(model, keras.optimizers.SGD(1.0), l2_norm_clip=C, seed=SEED, **ENGINES[engine])
    start = model.get_weights()
    options = {"sampling": sampling, "physical_batch_size": physical}
    without, *others = (
        step(wrapped, start, x, y, drawn, monkeypatch, **options) for drawn in (OTHERS, [*OTHERS, WILD], [*OTHERS, 2])
    )
    wild, tame = (np.linalg.norm(with_it - without) * B for with_it in others)
    # Weights are rounded to 1e-7 of their size.
    assert 0.9 * C <= wild <= C * (1 + 1e-6) + B * 1e-6
    assert 0 < tame <= C * (1 + 1e-6) + B * 1e-6


class Shift(layers.Layer):
    """Adds a weight; no rule knows it."""

    def build(self, shape):
        self.shift = self.add_weight(name="shift", shape=(shape[-1],), initializer="zeros")

    def call(self, inputs):
        return inputs + self.shift


class Shifted(keras.Model):
    """A model under a layer that book-keeping has no rule for."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.shift = inner, Shift()

    def call(self, inputs):
        return self.shift(self.inner(inputs))


def with_unknown_layer(model, x):
    return built(Shifted(model), x)


AS_GIVEN = {
    "list of one": lambda a, y: ([a], y),
    "list of numbers": lambda a, y: (a.tolist(), y.tolist()),
    "labels in a list": lambda a, y: (a, [y]),
    "tensors": lambda a, y: (tf.constant(a), tf.constant(y)),
    "strided": lambda a, y: (np.repeat(a, 2, 0)[::2], np.repeat(y, 3)[::3]),
    "float64": lambda a, y: (a.astype(np.float64), y.astype(np.int32)),
    "pandas": lambda a, y: (pd.DataFrame(a), pd.Series(y)),
    "Sequence of batches": lambda a, y: (Batches(a, y, 5), None),
    "Sequence of single examples": lambda a, y: (Batches(a, y, None), None),
    "dataset": lambda a, y: (tf.data.Dataset.from_tensor_slices((a, y)), None),
    "dataset, unbatched": lambda a, y: (tf.data.Dataset.from_tensor_slices((a, y)).batch(7).unbatch(), None),
}


class Batches(keras.utils.PyDataset):
    """Batches of so many rows, the last one shorter; or single examples."""

    def __init__(self, x, y, rows):
        super().__init__()
        self.x, self.y, self.rows = x, y, rows

    def __len__(self):
        return len(self.y) if self.rows is None else -(-len(self.y) // self.rows)

    def __getitem__(self, i):
        part = i if self.rows is None else slice(i * self.rows, (i + 1) * self.rows)
        return self.x[part], self.y[part]


@pytest.mark.slow_but("tensors", "strided", "pandas", "Sequence of batches", "dataset")
@pytest.mark.parametrize("given", AS_GIVEN.values(), ids=AS_GIVEN.keys())
def test_however_the_examples_are_given_training_is_the_same(given):
    """Against the arrays themselves, under one seed of sampling; n is the number of examples, not of batches."""
    (a, _, _), y = columns()
    after = []
    for x, labels in ((a, y), given(a, y)):
        keras.utils.set_random_seed(2)
        wrapped = private(functional(5))
        wrapped.fit(x, labels, batch_size=B, epochs=2, verbose=0)
        assert [phase.examples for phase in wrapped.phases()] == [N]
        after.append(weights_of(wrapped.model))
    np.testing.assert_array_equal(*after)


def test_class_weights_are_sample_weights():
    (a, _, _), y = columns()
    table = {0: 0.5, 1: 2.0, 2: 0.0}
    by_example = np.array([table[label] for label in y], np.float32)
    after = []
    for labels, loss, options in (
        (y, LOSS, {"sample_weight": by_example**2}),
        (y, LOSS, {"class_weight": table, "sample_weight": by_example}),
        (np.eye(CLASSES)[y], keras.losses.CategoricalCrossentropy(from_logits=True), {"class_weight": SQUARED}),
    ):
        keras.utils.set_random_seed(2)
        wrapped = private(functional(5), loss=loss)
        wrapped.fit(a, labels, batch_size=B, epochs=2, verbose=0, **options)
        after.append(weights_of(wrapped.model))
    np.testing.assert_allclose(after[1], after[0], atol=1e-6)
    np.testing.assert_allclose(after[2], after[0], atol=1e-6)
