"""Dense models: their activations, regularisers, constraints and random layers."""

from __future__ import annotations

import keras

from .case import CLASSES, Case, labels, mlp, numbers, sequential, yes_or_no

_L = keras.layers
_FAMILY = "dense"


def _case(model, build, x=None, y=None, loss=None, **more):
    x, y = numbers(5) if x is None else x, labels() if y is None else y
    return Case(_FAMILY, model, "float32", build, x, y, **({} if loss is None else {"loss": loss}), **more)


def _tutorial():
    return sequential(
        (8, 8), _L.Flatten(), _L.Dense(16, "relu"), _L.Dropout(0.2), _L.Dense(CLASSES, activation="softmax")
    )


def _residual():
    inputs = keras.Input((5,))
    above = inputs
    for _ in range(2):
        above = _L.Add()([above, _L.Dense(5)(_L.Dense(7, "gelu")(_L.LayerNormalization()(above)))])
    return keras.Model(inputs, _L.Dense(CLASSES)(above))


CASES = (
    _case("linear regression", lambda: sequential((5,), _L.Dense(1)), y=numbers(1), loss="mse"),
    _case(
        "logistic regression",
        lambda: sequential((5,), _L.Dense(1, "sigmoid")),
        y=yes_or_no(),
        loss="binary_crossentropy",
        slow=True,
    ),
    _case("two layers, logits", mlp, compiled={"metrics": ["accuracy"]}),
    _case(
        "Keras' beginner tutorial: Flatten, Dense, Dropout, softmax",
        _tutorial,
        x=numbers(8, 8),
        loss="sparse_categorical_crossentropy",
    ),
    _case(
        "no bias, Activation, LeakyReLU, ELU layers",
        lambda: sequential(
            (5,),
            _L.Dense(6, use_bias=False),
            _L.LeakyReLU(),
            _L.Dense(6),
            _L.ELU(),
            _L.Dense(CLASSES),
            _L.Activation("softmax"),
        ),
        loss="sparse_categorical_crossentropy",
        slow=True,
    ),
    _case("PReLU", lambda: mlp(_L.PReLU("uniform"), _L.Dense(CLASSES))),
    _case(
        "Dense over time steps",
        lambda: sequential((4, 5), _L.Dense(6, "tanh"), _L.Dense(2)),
        x=numbers(4, 5),
        y=numbers(4, 2),
        loss="mse",
        slow=True,
    ),
    _case(
        "EinsumDense",
        lambda: sequential(
            (4, 5), _L.EinsumDense("btd,dhe->bthe", (4, 2, 3), bias_axes="he"), _L.Flatten(), _L.Dense(CLASSES)
        ),
        x=numbers(4, 5),
    ),
    _case(
        "autoencoder",
        lambda: sequential((8,), _L.Dense(3, "relu"), _L.Dense(8, "sigmoid")),
        x=numbers(8),
        y=numbers(8),
        loss="mse",
        slow=True,
    ),
    _case("residual blocks", _residual, slow=True),
    _case(
        "kernel_regularizer and bias_regularizer",
        lambda: mlp(_L.Dense(CLASSES, kernel_regularizer="l2", bias_regularizer="l1")),
    ),
    _case("kernel_constraint", lambda: mlp(_L.Dense(CLASSES, kernel_constraint=keras.constraints.MaxNorm(0.5)))),
    _case("activity_regularizer", lambda: mlp(_L.Dense(CLASSES, activity_regularizer="l2"))),
    _case("ActivityRegularization layer", lambda: mlp(_L.ActivityRegularization(0.1), _L.Dense(CLASSES))),
    _case(
        "Dropout, AlphaDropout, GaussianDropout, GaussianNoise",
        lambda: sequential(
            (5,),
            _L.Dropout(0.3),
            _L.Dense(6, "selu"),
            _L.AlphaDropout(0.3),
            _L.GaussianDropout(0.2),
            _L.GaussianNoise(0.3),
            _L.Dense(CLASSES),
        ),
    ),
    _case(
        "policy mixed_float16", lambda: sequential((5,), _L.Dense(6, "relu", dtype="mixed_float16"), _L.Dense(CLASSES))
    ),
    _case(
        "computed in float64",
        lambda: sequential((5,), _L.Dense(6, "relu", dtype="float64"), _L.Dense(CLASSES, dtype="float64")),
    ),
)
