"""Random numbers of a trial that come again on request, and leave no trace in the program's own."""

from __future__ import annotations

import contextlib
import random

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.eager import context

from tfprivacy_lab.models.keras_internals import global_seed_state, layers_of, raw, seed_states

# The trial's; whoever chose a seed of their own has another, and gets it back.
_SEED = 1_870_345_021


def generators_of(model: keras.Model) -> list[tf.random.Generator]:
    """TensorFlow's generators that a model's layers hold."""
    held = [value for layer in layers_of(model) for value in vars(layer).values()]
    return [value for value in held if isinstance(value, tf.random.Generator)]


class RepeatableDraws:
    """Dropout and the like, made to draw the same numbers as often as a comparison needs.

    Covers the seeds of Keras, TensorFlow, NumPy and Python, and generators that the model's layers hold.

    Args:
        model: The model whose layers are tried.

    Attributes:
        by_row: Whether a batch of another height draws the same for its first rows. TensorFlow fills tensors in order;
            but how far a ``tf.random.Generator`` moves on, to its next draw, depends on the height.
        thorough: Whether operations of TensorFlow's that count their own draws (``tf.random``) begin again, too. All
            graphs that TensorFlow has prepared are lost by it; layers of Keras count in a variable and need it not.
    """

    def __init__(self, model: keras.Model):
        # Keras' own count up by one at every draw, whatever its size.
        self._seeded = seed_states(model)
        self._generators = generators_of(model)
        self.by_row = not self._generators
        self.thorough, self._begun = False, False

    def states(self) -> list[tf.Variable]:
        """The variables that hold the generators."""
        return [*raw(self._seeded), *(generator.state for generator in self._generators)]

    def __enter__(self):
        own = context.context()
        own.ensure_initialized()
        self._before = own._seed, getattr(own, "_rng", None), np.random.get_state(), random.getstate()
        self._global = contextlib.ExitStack()
        self._seeded = [*self._seeded, self._global.enter_context(global_seed_state())]
        self._states = [state.numpy().copy() for state in self.states()]
        return self

    def begin_again(self) -> None:
        """Whatever is drawn next is what was drawn after the last call; TensorFlow's own draws only if ``thorough``."""
        if self.thorough or not self._begun:
            tf.random.set_seed(_SEED)
            self._begun = True
        np.random.seed(0)
        random.seed(0)
        for number, state in enumerate(raw(self._seeded)):
            state.assign(tf.cast([_SEED, number], state.dtype))
        for generator in self._generators:
            generator.reset_from_seed(_SEED)

    def __exit__(self, *error):
        own = context.context()
        own._seed, own._rng, legacy, plain = self._before
        np.random.set_state(legacy)
        random.setstate(plain)
        for state, before in zip(self.states(), self._states, strict=True):
            state.assign(before)
        self._global.close()
