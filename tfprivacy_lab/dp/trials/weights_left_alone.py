"""Whether a model leaves its weights as they are while it computes: what it notes would be saved without noise."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf

from tfprivacy_lab.checks import InputError

_TABLES = (tf.lookup.experimental.MutableHashTable, tf.lookup.experimental.DenseHashTable)


def _entries(table) -> list:
    """What a table holds, in an order of its own content."""
    keys, values = (part.numpy() for part in table.export())
    return sorted((str(key), value.tobytes()) for key, value in zip(keys, np.asarray(values), strict=True))


def _variables(model, saved):
    """(name, TensorFlow's variable) of all that a model keeps."""
    yield from ((one.path, one.value) for one in model.variables)
    for one in saved:
        if isinstance(one, keras.Variable):
            yield one.path, one.value
        elif isinstance(one, tf.Variable):
            yield one.name, one


class WeightsLeftAlone:
    """All weights of a model as they are now, to be held against what they are later.

    Args:
        model: The model.
        exempt: Variables that may change: random generators' states.
    """

    def __init__(self, model: keras.Model, exempt=()):
        self._model, exempt = model, {id(state) for state in exempt}
        saved = tf.train.TrackableView(model).descendants()
        # A layer may keep variables of TensorFlow's, of which Keras does not know: they are saved all the same.
        found = {id(value): (name, value) for name, value in _variables(model, saved)}
        # A copy, as eager tensors lend NumPy their own memory.
        self._kept = [(name, value, value.numpy().copy()) for key, (name, value) in found.items() if key not in exempt]
        self._tables = [(one, _entries(one)) for one in saved if isinstance(one, _TABLES)]

    def check(self, compute, batches) -> None:
        """Refuse a model whose weights are others than they were, and bring them back.

        Args:
            compute: What changed them: computes the model on one of ``batches``; only called if they changed.
            batches: With other examples each.

        Raises:
            InputError: naming the weight; and saying so if it becomes the same whatever the examples are.
        """
        for table, before in self._tables:
            if _entries(table) != before:
                raise InputError(
                    f"Model {self._model.name!r} writes into a lookup table ({type(table).__name__}) when called: "
                    "what it keeps of examples there would be saved without noise; remove the layer that does, and "
                    "build the model anew."
                )
        if not (changed := self._changed()):
            return
        name = changed[0]
        becomes = set()
        for batch in batches:
            self._restore()
            compute(batch)
            becomes.add(self._content())
        self._restore()
        if len(batches) > 1 and becomes != {self._content()} and len(becomes) == 1:
            raise InputError(
                f"Model {self._model.name!r} changes the weight {name!r} at every call in training, whatever the "
                "examples are: how often it is called depends on how many were drawn, and no noise covers that; leave "
                "the layer out or call it with training=False (in place of SpectralNormalization, a kernel_constraint "
                "bounds a kernel after each step, at no cost)."
            )
        raise InputError(
            f"Model {self._model.name!r} writes into the weight {name!r} when it is called: what it keeps of examples "
            "there would be saved without noise; remove or freeze the layer that does."
        )

    def _changed(self):
        return [name for name, value, before in self._kept if value.numpy().tobytes() != before.tobytes()]

    def _content(self):
        return tuple(value.numpy().tobytes() for _, value, _ in self._kept)

    def _restore(self):
        for _, value, before in self._kept:
            value.assign(before)
