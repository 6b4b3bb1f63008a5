"""The paths of the DP benchmark that run on Keras 3: plain, and ours.

``python benchmarks/dp_paths.py PATH MODEL BATCH`` measures one in this process, against Keras in the same one.
"""

from __future__ import annotations

import os
import time

import keras
import measurement
import numpy as np
import tensorflow as tf
from measurement import EXAMPLES, L2_NORM_CLIP, LEARNING_RATE, NOISE_MULTIPLIER

from tfprivacy_lab import models
from tfprivacy_lab.dp import native

_PRIVACY = {"l2_norm_clip": L2_NORM_CLIP, "noise_multiplier": NOISE_MULTIPLIER}


def random_examples(count: int = EXAMPLES) -> tuple[np.ndarray, np.ndarray]:
    """Examples in MNIST's shapes; what they hold changes no time."""
    generator = np.random.default_rng(0)
    return generator.random((count, *models.IMAGE_SHAPE), np.float32), generator.integers(0, models.CLASSES, count)


class EpochClock(keras.callbacks.Callback):
    """Seconds from the beginning of the first epoch to the end of the last."""

    begun = seconds = 0.0

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 0:
            self.begun = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        self.seconds = time.perf_counter() - self.begun


class KerasPath:
    """A compiled Keras model on arrays, through its own ``fit``; ``extra`` follows (x, y) into its train step."""

    def __init__(self, model, examples, labels, batch: int, note: str | None = None, extra: tuple = ()):
        self.model, self.examples, self.labels, self.batch = model, examples, labels, batch
        self.note, self.extra = note, extra
        self.weights = sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)
        self._function = self._batches = None

    clock = EpochClock

    def fit(self, steps: int) -> tuple[int, float]:
        epochs = max(1, round(steps * self.batch / len(self.examples)))
        steps = min(steps, len(self.examples) // self.batch)
        clock = self.clock()
        self.model.fit(
            self.examples, self.labels, batch_size=self.batch, epochs=epochs, steps_per_epoch=steps, verbose=0,
            callbacks=[clock],
        )  # fmt: skip
        return epochs * steps, clock.seconds

    def bare(self, steps: int) -> None:
        if self._function is None:
            self.model.make_train_function()
            self._function = self.model.train_function
            batch = tf.constant(self.examples[: self.batch]), tf.constant(self.labels[: self.batch]), *self.extra
            self._batches = iter(tf.data.Dataset.from_tensors(batch).repeat())
        for _ in range(steps):
            logs = self._function(self._batches)
        for value in logs.values():
            value.numpy()


class FastPath(KerasPath):
    """Ours, whose steps run only while its record is open, and which goes on from no state but its own."""

    def bare(self, steps: int) -> None:
        from tfprivacy_lab.dp.validation import models as model_checks

        self.model._record.open(self.model._record.kind, steps)
        super().bare(steps)
        self.model._left_at = model_checks.training_state(self.model)


def keras_model(name: str, optimizer=None, reduction: str = "sum_over_batch_size") -> keras.Sequential:
    """A model of the benchmark, compiled; nothing but its loss is tracked."""
    return compiled(getattr(models, name)(), optimizer, reduction)


def compiled(model, optimizer=None, reduction="sum_over_batch_size"):
    """``model`` with the benchmark's loss, and its optimizer unless another is given."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction=reduction)
    model.compile(optimizer=optimizer or keras.optimizers.SGD(LEARNING_RATE), loss=loss)
    return model


def fast(name: str, batch: int, arrays) -> KerasPath:
    """Ours: clipping by book-keeping, Poisson batches drawn inside ``fit``."""
    from tfprivacy_lab.dp import PrivateModel

    model = PrivateModel(getattr(models, name)(), **_PRIVACY, seed=0)
    # Its train step takes what its own pipeline yields: sample weights too, and how many rows hold an example.
    extra = (tf.ones(batch), tf.constant(batch, tf.int64))
    note = None if native.operations() else "no compiled operations"
    return FastPath(compiled(model), *arrays, batch, note=note, extra=extra)


def fast_on_tensorflow(name: str, batch: int, arrays) -> KerasPath:
    """Ours without the operations that set-up compiles."""
    os.environ[native.SWITCH] = "1"
    return fast(name, batch, arrays)


def plain(name: str, batch: int, arrays) -> KerasPath:
    """The baseline: no privacy."""
    return KerasPath(keras_model(name), *arrays, batch)


PATHS = {
    "keras": plain,
    "fast": fast,
    "fast, TensorFlow's operations": fast_on_tensorflow,
}


def main(paths, baseline: str) -> None:
    """Measure the path that the command line names, beside a baseline of the same framework."""
    arguments = measurement.parse_arguments(paths)
    arrays = random_examples()
    name, batch = arguments.model, arguments.batch

    alone = arguments.alone or arguments.path == baseline
    measurement.measure(
        lambda: paths[arguments.path](name, batch, arrays),
        None if alone else lambda: paths[baseline](name, batch, arrays),
        arguments,
    )


if __name__ == "__main__":
    main(PATHS, "keras")
