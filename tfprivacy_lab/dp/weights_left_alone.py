"""Whether a model leaves its weights as they are while it computes: what it notes would be saved without noise."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tfprivacy_lab.checks import InputError

_TABLES = (tf.lookup.experimental.MutableHashTable, tf.lookup.experimental.DenseHashTable)


def _entries(table) -> list:
    """What a table holds, in an order of its own content."""
    keys, values = (part.numpy() for part in table.export())
    return sorted((str(key), value.tobytes()) for key, value in zip(keys, np.asarray(values), strict=True))


class WeightsLeftAlone:
    """All weights of a model as they are now, to be held against what they are later.

    Args:
        model: The model.
        exempt: Variables that may change: random generators' states.
    """

    def __init__(self, model: tf.keras.Model, exempt=()):
        self._model, exempt = model, {id(state) for state in exempt}
        # Lookup tables stand among a model's variables and are none.
        variables = [one for one in model.variables if isinstance(one, tf.Variable) and id(one) not in exempt]
        self._kept = [(variable, variable.numpy()) for variable in variables]
        saved = tf.train.TrackableView(model).descendants()
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
        name = changed[0].name
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
        return [variable for variable, before in self._kept if variable.numpy().tobytes() != before.tobytes()]

    def _content(self):
        return tuple(variable.numpy().tobytes() for variable, _ in self._kept)

    def _restore(self):
        for variable, before in self._kept:
            variable.assign(before)
