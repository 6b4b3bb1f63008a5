"""One row of the table of models: how the model is made, what it is fitted on, and how that is given to ``fit``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import keras
import numpy as np

# Odd, so that a padded batch holds a row that is no example.
EXAMPLES = 11
CLASSES = 3
# Of models that are refused before a loop would have anything to say.
NOT_TRAINED = "it is not trained"
LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """A model that people train, and the examples it is tried on.

    Attributes:
        family: What the row stands under.
        model: The model in a few words.
        inputs: The kind of input in a few words.
        build: Makes the model; called under one seed each time.
        x: Inputs as arrays, (EXAMPLES, ...), or a structure of such: what the loop cuts rows from.
        y: Labels, (EXAMPLES, ...).
        loss: As ``compile`` takes it.
        given: From x and y to the arguments of ``fit`` that hold the examples; by default they are x and y.
        options: Further arguments of ``fit``: ``sample_weight``, ``class_weight``.
        weights: What these make of each example's loss, (EXAMPLES,), or None for 1.
        compiled: Further arguments of ``compile``.
        not_compared: Why the step cannot be held against a loop, or None.
        slow: Whether it is derived again by ``make test-slow`` alone: it takes long, or another row is much alike.
    """

    family: str
    model: str
    inputs: str
    build: Callable[[], keras.Model]
    x: object
    y: object
    loss: object = LOGITS
    given: Callable[[object, object], dict] = lambda x, y: {"x": x, "y": y}
    options: dict = dataclasses.field(default_factory=dict)
    weights: np.ndarray | None = None
    compiled: dict = dataclasses.field(default_factory=dict)
    not_compared: str | None = None
    slow: bool = False

    @property
    def name(self) -> str:
        """Family, model and inputs."""
        return f"{self.family}: {self.model}, {self.inputs}"


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    """Normal numbers, (EXAMPLES, *shape), float32."""
    return np.random.default_rng([seed, *shape]).normal(size=(EXAMPLES, *shape)).astype(np.float32)


def ids(high: int, *shape: int, seed: int = 0) -> np.ndarray:
    """Whole numbers below ``high``, (EXAMPLES, *shape), int64."""
    return np.random.default_rng([seed, high, *shape]).integers(0, high, (EXAMPLES, *shape))


def sentences(high: int, length: int) -> np.ndarray:
    """Token ids from 1, each row ended by zeros from a place of its own."""
    lengths = 1 + np.arange(EXAMPLES) % length
    return np.where(np.arange(length) < lengths[:, np.newaxis], 1 + ids(high - 1, length), 0)


def labels(count: int = CLASSES) -> np.ndarray:
    """A class for each example, every class taken."""
    return np.arange(EXAMPLES) % count


def one_hot(count: int = CLASSES) -> np.ndarray:
    """The same as rows of zeros and a one, float32."""
    return np.eye(count, dtype=np.float32)[labels(count)]


def yes_or_no() -> np.ndarray:
    """0 or 1 for each example, float32."""
    return (labels(3) > 0).astype(np.float32)


def sequential(shape: tuple, *layers, dtype: str | None = None) -> keras.Model:
    """A Sequential model on examples of a shape."""
    return keras.Sequential([keras.Input(shape, dtype=dtype), *layers])


def mlp(*head) -> keras.Model:
    """Two dense layers on five numbers, and logits unless another head is given."""
    return sequential((5,), keras.layers.Dense(6, "relu"), *(head or (keras.layers.Dense(CLASSES),)))
