"""Models that look ids up."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf

from .case import CLASSES, Case, ids, labels, numbers, sentences, sequential, yes_or_no

_L = keras.layers
_WORDS, _LENGTH = 9, 5


def _text_classification():
    """Keras' basic text classification, ids given."""
    return sequential(
        (None,),
        _L.Embedding(_WORDS, 4),
        _L.Dropout(0.2),
        _L.GlobalAveragePooling1D(),
        _L.Dropout(0.2),
        _L.Dense(1),
        dtype="int64",
    )


def _flat(dtype, length=_LENGTH):
    return lambda: sequential((length,), _L.Embedding(_WORDS, 3), _L.Flatten(), _L.Dense(CLASSES), dtype=dtype)


def _masked():
    return sequential(
        (_LENGTH,), _L.Embedding(_WORDS, 4, mask_zero=True), _L.Dense(4, "tanh"), _L.GlobalAveragePooling1D(),
        _L.Dense(CLASSES),
    )  # fmt: skip


def _tagger():
    return sequential((_LENGTH,), _L.Embedding(_WORDS, 4, mask_zero=True), _L.Dense(CLASSES))


def _table():
    """Columns of ids and of numbers in one float table."""
    table = keras.Input((4,))
    embedded = _L.Flatten()(_L.Embedding(_WORDS, 3)(table[:, :2]))
    return keras.Model(table, _L.Dense(CLASSES)(_L.Concatenate()([embedded, table[:, 2:]])))


def _two_towers():
    """Keras' recommender: the product of a user's and a film's vector, and their biases."""
    user, film = (keras.Input((), dtype="int64", name=name) for name in ("user", "film"))
    vectors = [_L.Embedding(7, 4)(one) for one in (user, film)]
    biases = [_L.Embedding(7, 1)(one) for one in (user, film)]
    match = keras.ops.sum(vectors[0] * vectors[1], 1, keepdims=True) + biases[0] + biases[1]
    return keras.Model([user, film], keras.ops.sigmoid(match))


class Tied(keras.Model):
    """Words in and words out by one matrix."""

    def __init__(self):
        super().__init__()
        self.embedding, self.dense = _L.Embedding(_WORDS, 4), _L.Dense(4, "tanh")

    def call(self, inputs):
        return tf.matmul(self.dense(self.embedding(inputs)), self.embedding.embeddings, transpose_b=True)


def _tied():
    model = Tied()
    model(np.zeros((1, _LENGTH), np.int64))
    return model


def _shared():
    first, second = keras.Input((3,), dtype="int32"), keras.Input((3,), dtype="int32")
    embedding = _L.Embedding(_WORDS, 3)
    joined = _L.Concatenate(axis=1)([embedding(first), embedding(second)])
    return keras.Model([first, second], _L.Dense(CLASSES)(_L.Flatten()(joined)))


def _case(model, inputs, build, x, y=None, **more):
    return Case("embedding", model, inputs, build, x, labels() if y is None else y, **more)


_IDS = ids(_WORDS, _LENGTH)
_MIXED = np.concatenate([ids(_WORDS, 2).astype(np.float32), numbers(2)], 1)

CASES = (
    _case(
        "Keras' basic text classification",
        "int64 ids",
        _text_classification,
        _IDS,
        yes_or_no(),
        loss=keras.losses.BinaryCrossentropy(from_logits=True),
        slow=True,
    ),
    _case("Embedding, Flatten, Dense", "int32 ids", _flat("int32"), _IDS.astype(np.int32), slow=True),
    _case("Embedding, Flatten, Dense", "uint8 ids", _flat("uint8"), _IDS.astype(np.uint8), slow=True),
    _case("Embedding, Flatten, Dense", "ids as float32", _flat(None), _IDS.astype(np.float32)),
    _case("ids and numbers", "one float32 table", _table, _MIXED),
    _case("mask_zero and pooling under the mask", "int64 ids, padded", _masked, sentences(_WORDS, _LENGTH), slow=True),
    _case(
        "mask_zero, a class for each word",
        "int64 ids, padded",
        _tagger,
        sentences(_WORDS, _LENGTH),
        ids(CLASSES, _LENGTH),
    ),
    _case(
        "one Embedding for two inputs",
        "list of int32 ids",
        _shared,
        [ids(_WORDS, 3, seed=s).astype(np.int32) for s in (0, 1)],
    ),
    _case(
        "recommender of two towers",
        "list of int64 ids, one each",
        _two_towers,
        [ids(7), ids(7, seed=1)],
        yes_or_no(),
        loss="mse",
        slow=True,
    ),
    _case("tied input and output weights", "int64 ids", _tied, _IDS, ids(_WORDS, _LENGTH, seed=1)),
)
