"""Inputs in every structure that Keras takes, and models that are put together of models."""

from __future__ import annotations

import keras
import tensorflow as tf

from .case import CLASSES, NOT_TRAINED, Case, labels, mlp, numbers, sequential

_L = keras.layers
_NARROW, _WIDE = numbers(3), numbers(4, 5)


def _joined(inputs, parts):
    """Logits from two inputs of unequal shapes."""
    above = _L.Concatenate()([_L.Dense(4, "relu")(parts[0]), _L.Flatten()(_L.Dense(2)(parts[1]))])
    return keras.Model(inputs, _L.Dense(CLASSES)(above))


def _two_inputs():
    return keras.Input((3,), name="narrow"), keras.Input((4, 5), name="wide")


def _listed():
    inputs = _two_inputs()
    return _joined(list(inputs), inputs)


def _in_a_tuple():
    inputs = _two_inputs()
    return _joined(inputs, inputs)


def _in_a_dictionary():
    narrow, wide = _two_inputs()
    return _joined({"narrow": narrow, "wide": wide}, (narrow, wide))


def _nested():
    narrow, wide = _two_inputs()
    third = keras.Input((3,), name="third")
    return _joined({"pair": [narrow, third], "wide": wide}, (_L.Add()([narrow, third]), wide))


def _three_equal():
    inputs = [keras.Input((5,)) for _ in range(3)]
    return keras.Model(inputs, _L.Dense(CLASSES)(_L.Concatenate()([_L.Dense(3, "tanh")(one) for one in inputs])))


def _siamese():
    first, second = keras.Input((5,)), keras.Input((5,))
    tower = mlp(_L.Dense(4))
    return keras.Model([first, second], _L.Dense(CLASSES)(keras.ops.abs(tower(first) - tower(second))))


def _tickets():
    """The functional guide's model of tickets, with one of its outputs."""
    title, body = (keras.Input((None,), name=name, dtype="int64") for name in ("title", "body"))
    tags = keras.Input((4,), name="tags")
    title_features = _L.LSTM(3)(_L.Embedding(9, 3)(title))
    body_features = _L.LSTM(2)(_L.Embedding(9, 3)(body))
    above = _L.concatenate([title_features, body_features, tags])
    return keras.Model([title, body, tags], _L.Dense(1, name="priority")(above))


def _two_outputs():
    inputs = keras.Input((5,))
    shared = _L.Dense(6, "relu")(inputs)
    return keras.Model(inputs, [_L.Dense(CLASSES)(shared), _L.Dense(1)(shared)])


class Subclassed(keras.Model):
    """Layers in attributes, lists and dictionaries; inputs by name."""

    def __init__(self):
        super().__init__()
        self.first = {"narrow": _L.Dense(4, "relu"), "wide": _L.Dense(2)}
        self.blocks = [_L.Dense(5, "tanh"), _L.Dropout(0.0), _L.Dense(CLASSES)]

    def call(self, inputs, training=None):
        wide = self.first["wide"](inputs["wide"])
        above = tf.concat([self.first["narrow"](inputs["narrow"]), tf.reshape(wide, (-1, 8))], 1)
        for block in self.blocks:
            above = block(above, training=training) if isinstance(block, _L.Dropout) else block(above)
        return above


class Linear(_L.Layer):
    """The guide's Linear layer: weights of its own."""

    def build(self, shape):
        self.w = self.add_weight(shape=(shape[-1], 4), initializer="random_normal", trainable=True)
        self.b = self.add_weight(shape=(4,), initializer="random_normal", trainable=True)

    def call(self, inputs):
        return tf.matmul(inputs, self.w) + self.b


class AddsLoss(_L.Layer):
    """The guide's layer that adds a loss of its inputs."""

    def call(self, inputs):
        self.add_loss(1e-2 * tf.reduce_sum(inputs))
        return inputs


def _subclassed():
    model = Subclassed()
    model({"narrow": _NARROW[:1], "wide": _WIDE[:1]})
    return model


def _partly_frozen():
    inner = mlp(_L.Dense(4, "relu"), _L.Dense(4, "relu"))
    inner.layers[0].trainable = False
    return sequential((5,), inner, _L.Dense(CLASSES))


def _frozen_inner():
    inner = mlp(_L.Dense(4, "relu"))
    inner.trainable = False
    return sequential((5,), inner, _L.Dense(CLASSES))


def _unfrozen_within():
    """Keras trains nothing of a frozen model, whatever its layers say."""
    inner = mlp(_L.Dense(4, "relu"))
    inner.trainable = False
    inner.layers[-1].trainable = True
    return sequential((5,), inner, _L.Dense(CLASSES))


def _mixes():
    return mlp(_L.Lambda(lambda a: a - tf.reduce_mean(a, 0)), _L.Dense(CLASSES))


def _case(model, inputs, build, x, y=None, **more):
    return Case("structure", model, inputs, build, x, labels() if y is None else y, **more)


_FIVE = numbers(5)
_TICKETS = [(10 * abs(numbers(length))).astype("int64") % 9 for length in (3, 5)]

CASES = (
    _case("two layers", "list of one", mlp, _FIVE, given=lambda x, y: {"x": [x], "y": y}),
    _case("two layers", "tuple of one", mlp, _FIVE, given=lambda x, y: {"x": (x,), "y": y}, slow=True),
    _case(
        "two layers",
        "dictionary of one, by the Input's name",
        lambda: _named(),
        _FIVE,
        given=lambda x, y: {"x": {"table": x}, "y": y},
    ),
    _case("two inputs", "list, unequal shapes", _listed, [_NARROW, _WIDE]),
    _case("two inputs", "tuple, unequal shapes", _in_a_tuple, (_NARROW, _WIDE), slow=True),
    _case("two inputs", "dictionary", _in_a_dictionary, {"narrow": _NARROW, "wide": _WIDE}),
    _case(
        "two inputs declared as a list",
        "dictionary, by the Inputs' names",
        _listed,
        {"wide": _WIDE, "narrow": _NARROW},
        slow=True,
    ),
    _case("three inputs", "list, equal shapes", _three_equal, [numbers(5, seed=s) for s in range(3)]),
    _case(
        "three inputs", "dictionary that holds a list", _nested, {"pair": [_NARROW, numbers(3, seed=1)], "wide": _WIDE}
    ),
    _case(
        "Keras' functional guide: tickets, one output",
        "list of int64 ids and float32",
        _tickets,
        [*_TICKETS, numbers(4)],
        numbers(1),
        loss="mse",
        slow=True,
    ),
    _case("siamese: one tower, two inputs", "list, equal shapes", _siamese, [_FIVE, numbers(5, seed=1)], slow=True),
    _case(
        "two outputs",
        "float32",
        _two_outputs,
        _FIVE,
        [labels(), numbers(1)],
        loss=["sparse_categorical_crossentropy", "mse"],
    ),
    _case("subclassed, inputs by name", "dictionary", _subclassed, {"narrow": _NARROW, "wide": _WIDE}),
    _case("a layer of one's own weights", "float32", lambda: mlp(Linear(), _L.Dense(CLASSES)), _FIVE),
    _case("a layer that adds a loss of its inputs", "float32", lambda: mlp(AddsLoss(), _L.Dense(CLASSES)), _FIVE),
    _case(
        "a model in a model", "float32", lambda: sequential((5,), mlp(_L.Dense(4)), _L.Dense(CLASSES)), _FIVE, slow=True
    ),
    _case("a model in a model, the inner one frozen", "float32", _frozen_inner, _FIVE, slow=True),
    _case("a model in a model, the inner one partly frozen", "float32", _partly_frozen, _FIVE),
    _case("a model in a model, the inner one frozen, a layer of it not", "float32", _unfrozen_within, _FIVE),
    _case("Lambda and operations between layers", "float32", lambda: _operations(), _FIVE, slow=True),
    _case("Lambda that subtracts the batch's mean", "float32", _mixes, _FIVE, not_compared=NOT_TRAINED),
    _case(
        "Sequential that is not built",
        "float32",
        lambda: keras.Sequential([_L.Dense(CLASSES)]),
        _FIVE,
        not_compared=NOT_TRAINED,
    ),
    _case(
        "everything frozen",
        "float32",
        lambda: sequential((5,), _L.Dense(CLASSES, trainable=False)),
        _FIVE,
        not_compared=NOT_TRAINED,
    ),
)


def _named():
    return keras.Sequential([keras.Input((5,), name="table"), _L.Dense(6, "relu"), _L.Dense(CLASSES)])


def _operations():
    inputs = keras.Input((5,))
    above = _L.Lambda(lambda a: a / tf.norm(a, axis=-1, keepdims=True))(inputs)
    above = keras.ops.relu(_L.Dense(6)(above)) ** 2 + 0.5
    return keras.Model(inputs, _L.Dense(CLASSES)(keras.ops.reshape(above, (-1, 6))))
