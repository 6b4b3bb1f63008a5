"""Keras' preprocessing layers within the model."""

from __future__ import annotations

import keras
import numpy as np

from .case import CLASSES, Case, ids, labels, numbers, sequential, yes_or_no

_L = keras.layers
# What is adapted is adapted to these: public rows, not those that are fitted.
_PUBLIC, _PUBLIC_IDS = numbers(5, seed=9), ids(9, 1, seed=9)
_WORDS = np.array(["a", "b", "c", "d"])


def _case(model, inputs, build, x, y=None, **more):
    return Case("preprocessing", model, inputs, build, x, labels() if y is None else y, **more)


def _headed(shape, *layers, dtype=None):
    return sequential(shape, *layers, _L.Dense(CLASSES), dtype=dtype)


def _adapted(layer, rows):
    layer.adapt(rows)
    return layer


def _images(*layers):
    return sequential((8, 8, 2), *layers, _L.Conv2D(2, 3), _L.Flatten(), _L.Dense(CLASSES))


def _texts():
    vector = _L.TextVectorization(max_tokens=8, output_sequence_length=3, vocabulary=list(_WORDS))
    return _headed((1,), vector, _L.Embedding(8, 3), _L.Flatten(), dtype="string")


def _structured():
    """Keras' structured data classification: each column by its kind, in a dictionary."""
    age, kind = keras.Input((1,), name="age"), keras.Input((1,), name="kind", dtype="int64")
    scaled = _adapted(_L.Normalization(), _PUBLIC[:, :1])(age)
    coded = _adapted(_L.IntegerLookup(output_mode="one_hot"), _PUBLIC_IDS)(kind)
    above = _L.Dropout(0.5)(_L.Dense(8, "relu")(_L.concatenate([scaled, coded])))
    return keras.Model({"age": age, "kind": kind}, _L.Dense(1, "sigmoid")(above))


def _crossed():
    first, second = (keras.Input((1,), dtype="int64") for _ in range(2))
    return keras.Model([first, second], _L.Dense(CLASSES)(_L.HashedCrossing(6, output_mode="one_hot")((first, second))))


_IMAGES, _IDS = numbers(8, 8, 2), ids(9, 1)
_STRINGS = _WORDS[ids(4, 1)].astype(object)

CASES = (
    _case(
        "Normalization, its mean and variance given",
        "float32",
        lambda: _headed((5,), _L.Normalization(mean=0.5, variance=2.0)),
        numbers(5),
        slow=True,
    ),
    _case(
        "Normalization, adapted to public rows",
        "float32",
        lambda: _headed((5,), _adapted(_L.Normalization(), _PUBLIC)),
        numbers(5),
    ),
    _case(
        "Rescaling, Resizing, CenterCrop",
        "uint8 images",
        lambda: _images(_L.Resizing(6, 6), _L.CenterCrop(5, 5), _L.Rescaling(1 / 127.5, offset=-1)),
        ids(256, 8, 8, 2).astype(np.uint8),
        slow=True,
    ),
    _case(
        "RandomRotation, RandomZoom, RandomTranslation",
        "float32 images",
        lambda: _images(_L.RandomRotation(0.2), _L.RandomZoom(0.3), _L.RandomTranslation(0.2, 0.2)),
        _IMAGES,
        slow=True,
    ),
    _case("RandomFlip", "float32 images", lambda: _images(_L.RandomFlip()), _IMAGES, slow=True),
    _case(
        "CategoryEncoding, one-hot",
        "int64 ids",
        lambda: _headed((1,), _L.CategoryEncoding(9, "one_hot"), dtype="int64"),
        _IDS,
    ),
    _case(
        "CategoryEncoding, multi-hot",
        "int64 ids",
        lambda: _headed((4,), _L.CategoryEncoding(9, "multi_hot"), dtype="int64"),
        ids(9, 4),
        slow=True,
    ),
    _case(
        "IntegerLookup, its vocabulary given",
        "int64 ids",
        lambda: _headed((1,), _L.IntegerLookup(vocabulary=[1, 3, 5], output_mode="one_hot"), dtype="int64"),
        _IDS,
        slow=True,
    ),
    _case(
        "IntegerLookup, adapted to public rows",
        "int64 ids",
        lambda: _headed((1,), _adapted(_L.IntegerLookup(output_mode="one_hot"), _PUBLIC_IDS), dtype="int64"),
        _IDS,
    ),
    _case(
        "Hashing",
        "int64 ids",
        lambda: _headed((1,), _L.Hashing(6, output_mode="one_hot"), dtype="int64"),
        _IDS,
        slow=True,
    ),
    _case("HashedCrossing", "list of int64 ids", _crossed, [_IDS, ids(9, 1, seed=1)], slow=True),
    _case(
        "Discretization, Embedding",
        "float32",
        lambda: _headed((5,), _L.Discretization([-0.5, 0.5]), _L.Embedding(3, 2), _L.Flatten()),
        numbers(5),
        slow=True,
    ),
    _case(
        "Keras' structured data classification",
        "dictionary of float32 and int64",
        _structured,
        {"age": numbers(1), "kind": _IDS},
        yes_or_no(),
        loss="binary_crossentropy",
        slow=True,
    ),
    _case("TextVectorization", "strings", _texts, _STRINGS),
    _case(
        "StringLookup",
        "strings",
        lambda: _headed((1,), _L.StringLookup(vocabulary=list(_WORDS), output_mode="one_hot"), dtype="string"),
        _STRINGS,
    ),
)
