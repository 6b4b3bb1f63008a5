"""Every way out of a private model into a file: the wrapped model's weights leave, or nothing does.

What ``fit`` shows (loss, metrics) is computed from private rows without noise, and the noise's seed and state are
secrets. Keras finds what it saves by looking through a model's attributes; here it finds the wrapped model alone.
"""

from __future__ import annotations

import os

import keras

from tfprivacy_lab.checks import InputError
from tfprivacy_lab.dp.training.record import TrainingRecord
from tfprivacy_lab.dp.validation import models

# What a model that was compiled before it was wrapped has beside its weights.
_MADE_BY_COMPILE = (keras.optimizers.Optimizer, keras.metrics.Metric)


class ShownFigures:
    """The mean loss that ``fit`` shows; no Trackable, so that no checkpoint finds it."""

    def __init__(self):
        self.loss = keras.metrics.Mean(name="loss")


class SavedAsWrapped:
    """The part of a private model that says what leaves it.

    Written are the wrapped model's weights and architecture, and they load into a plain model and into a new
    PrivateModel alike. No optimizer state, seed, step counter, loss or metric is; what would need them is refused.
    :class:`tfprivacy_lab.dp.training.checkpoint.Resumable` keeps what it takes to go on.
    """

    model: keras.Model
    _record: TrainingRecord
    _shown: ShownFigures

    @property
    def _mean_loss(self):
        return self._shown.loss

    def save(self, filepath, *arguments, **options):
        """Save the wrapped model alone, as Keras' ``save``: no optimizer state, seed, or metric of training examples.

        A subclassed model is saved as it is; loading it takes its class, as Keras does.
        """
        with models.without_training(self.model) as model:
            model.save(filepath, *arguments, **options)

    def save_weights(self, filepath, *arguments, **options):
        """Save the wrapped model's weights, as Keras' ``save_weights``, in any of its formats."""
        with models.without_training(self.model) as model:
            model.save_weights(filepath, *arguments, **options)

    def load_weights(self, filepath, *arguments, **options):
        """Load weights into the wrapped model, as Keras' ``load_weights``.

        A file of weights says nothing of what they cost: ``privacy()`` states that from here on.
        """
        self._record.note(
            f"what the weights loaded from {os.path.basename(os.fspath(filepath))!r} cost where they were trained, "
            "unless on public examples"
        )
        return self.model.load_weights(filepath, *arguments, **options)

    def export(self, filepath, *arguments, **options):
        """Export the wrapped model for serving, as Keras' ``export``."""
        with models.without_training(self.model) as model:
            return model.export(filepath, *arguments, **options)

    def get_weights(self):
        """The wrapped model's weights, as NumPy arrays."""
        return self.model.get_weights()

    def set_weights(self, weights):
        """Set the wrapped model's weights; what they cost elsewhere is in no record, and ``privacy()`` says so."""
        self._record.note("what weights given to set_weights cost where they were trained, unless on public examples")
        self.model.set_weights(weights)

    def set_state_tree(self, state_tree):
        """As Keras' ``set_state_tree``; what the state cost elsewhere is in no record, and ``privacy()`` says so."""
        self._record.note("what a state given to set_state_tree cost where it was trained, unless on public examples")
        super().set_state_tree(state_tree)

    def get_config(self):
        """Refused: Keras' own ``save_model``, ``to_json``, ``clone_model`` and copies begin here.

        Raises:
            InputError: saying what to call instead.
        """
        raise _refusal("has no configuration, as its seed is a secret", "call save(path), or use its .model")

    def save_own_variables(self, store):
        """Refused: Keras asks this of a part of another model, which would take the training figures with it.

        Raises:
            InputError: saying what to do instead.
        """
        raise _refusal("is part of another model that is saved", "build that model on the PrivateModel's .model")

    def __reduce__(self):
        """Refused: a pickle would hold the seed.

        Raises:
            InputError: saying what to call instead.
        """
        raise _refusal("is not pickled, as its seed is a secret", "call save(path) or save_checkpoint(path)")

    def __copy__(self):
        """Refused, as :meth:`__deepcopy__`."""
        return self.__deepcopy__({})

    def __deepcopy__(self, memo):
        """Refused: a copy would draw the same noise again.

        Raises:
            InputError: saying what to call instead.
        """
        raise _refusal("is not copied, as both would draw the same noise", "wrap a copy of its .model")

    def _trackable_children(self, save_type="checkpoint", **options):
        """What ``tf.train.Checkpoint`` writes and restores: what it would of the wrapped model.

        Raises:
            InputError: for ``tf.saved_model.save``, which would trace the model's training too.
        """
        if save_type != "checkpoint":
            raise _refusal("is no SavedModel", "call export(path), or save(path)")
        wrapped = self.__dict__.get("model")
        if wrapped is None:
            return {}
        children = models.without_figures(wrapped)._trackable_children(save_type, **options)
        return {name: child for name, child in children.items() if not isinstance(child, _MADE_BY_COMPILE)}


def _refusal(why, instead):
    return InputError(f"A PrivateModel {why}; {instead}.")
