"""One small model, and every kind of thing that people give to ``fit``."""

from __future__ import annotations

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

from .case import CLASSES, EXAMPLES, Case, ids, labels, mlp, numbers, one_hot, sequential

_L = keras.layers
_X, _Y = numbers(5), labels()
_WEIGHTS = np.random.default_rng(0).uniform(0, 2, EXAMPLES).astype(np.float32)
_OF_CLASSES = {0: 0.5, 1: 1.0, 2: 3.0}


class Batches(keras.utils.PyDataset):
    """Batches of some rows."""

    def __init__(self, x, y, rows):
        self.x, self.y, self.rows = x, y, rows

    def __len__(self):
        return -(-len(self.x) // self.rows)

    def __getitem__(self, number):
        part = slice(number * self.rows, (number + 1) * self.rows)
        return self.x[part], self.y[part]


class Singles(Batches):
    """Single examples."""

    def __init__(self, x, y):
        super().__init__(x, y, 1)

    def __getitem__(self, number):
        return self.x[number], self.y[number]


def _case(inputs, given=None, x=_X, build=mlp, **more):
    if given is not None:
        more["given"] = given
    return Case("what fit is given", "two layers", inputs, build, x, _Y, **more)


def _as_x(change):
    return lambda x, y: {"x": change(x), "y": y}


def _dataset(x, y):
    return tf.data.Dataset.from_tensor_slices((x, y))


def _zipped(x, y):
    return tf.data.Dataset.zip(tuple(tf.data.Dataset.from_tensor_slices(part).batch(4) for part in (x, y)))


def _generated(x, y):
    """Batches from a generator."""
    kinds = tf.TensorSpec((None, 5), tf.float32), tf.TensorSpec((None,), tf.int64)
    return tf.data.Dataset.from_generator(lambda: iter(Batches(x, y, 4)), output_signature=kinds)


def _ragged(x):
    return tf.RaggedTensor.from_row_lengths(x.ravel(), np.full(len(x), x.shape[1]))


def _with_nan(x):
    return np.where(np.arange(x.size).reshape(x.shape) == 7, np.nan, x)


def _images():
    return sequential((4, 4), _L.Rescaling(1 / 255), _L.Flatten(), _L.Dense(CLASSES))


CASES = (
    _case("float64", _as_x(lambda x: x.astype(np.float64)), slow=True),
    _case("float16", _as_x(lambda x: x), x=_X.astype(np.float16)),
    _case("uint8 images", x=ids(256, 4, 4).astype(np.uint8), build=_images, slow=True),
    _case("booleans", x=ids(2, 5).astype(bool), slow=True),
    _case("tf.Tensor", lambda x, y: {"x": tf.constant(x), "y": tf.constant(y)}, slow=True),
    _case("Python lists", lambda x, y: {"x": x.tolist(), "y": y.tolist()}),
    _case("pandas DataFrame and Series", lambda x, y: {"x": pd.DataFrame(x), "y": pd.Series(y)}),
    _case("labels as a column, (n, 1)", lambda x, y: {"x": x, "y": y[:, np.newaxis]}, slow=True),
    _case("labels as float64", lambda x, y: {"x": x, "y": y.astype(np.float64)}, slow=True),
    _case("sample_weight", options={"sample_weight": _WEIGHTS}, weights=_WEIGHTS),
    _case("class_weight", options={"class_weight": _OF_CLASSES}, weights=np.array([_OF_CLASSES[c] for c in _Y])),
    _case("Dataset of single examples", lambda x, y: {"x": _dataset(x, y)}),
    _case(
        "Dataset of single examples with weights",
        lambda x, y: {"x": tf.data.Dataset.from_tensor_slices((x, y, _WEIGHTS))},
        weights=_WEIGHTS,
        slow=True,
    ),
    _case("batched Dataset", lambda x, y: {"x": _dataset(x, y).batch(4)}),
    _case("Dataset zipped from batched ones", lambda x, y: {"x": _zipped(x, y)}),
    _case("Dataset of a generator's batches", lambda x, y: {"x": _generated(x, y)}),
    _case("Dataset, and y beside it", lambda x, y: {"x": _dataset(x, y), "y": y}),
    _case("endless Dataset", lambda x, y: {"x": _dataset(x, y).repeat()}),
    _case("generator", lambda x, y: {"x": iter(Batches(x, y, 4))}),
    _case("keras.utils.Sequence of batches", lambda x, y: {"x": Batches(x, y, 4)}),
    _case("keras.utils.Sequence of single examples", lambda x, y: {"x": Singles(x, y)}),
    _case("SparseTensor", _as_x(tf.sparse.from_dense)),
    _case("RaggedTensor", _as_x(_ragged)),
    _case("NaN in a row", _as_x(_with_nan)),
    _case("strings", _as_x(lambda x: x.astype(str))),
    _case("one-hot labels where class numbers are meant", lambda x, y: {"x": x, "y": one_hot()}),
    _case("another width than the model's", _as_x(lambda x: x[:, :4])),
    _case("fewer labels than inputs", lambda x, y: {"x": x, "y": y[:-1]}),
)
