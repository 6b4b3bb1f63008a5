"""The paths of the DP benchmark that run on Keras 2: plain, and TF Privacy's four.

``python benchmarks/tfp_paths.py PATH MODEL BATCH`` measures one in this process, against tf_keras in the same one.
TF Privacy's classes take the Keras of TensorFlow for Keras 2, which in this process it is.
"""

from __future__ import annotations

import os

os.environ["TF_USE_LEGACY_KERAS"] = "1"  # before TensorFlow is imported

import dp_paths
import tf_keras
from dp_paths import KerasPath
from measurement import L2_NORM_CLIP, LEARNING_RATE, NOISE_MULTIPLIER

from tfprivacy_lab import models, tf_privacy

_PRIVACY = {"l2_norm_clip": L2_NORM_CLIP, "noise_multiplier": NOISE_MULTIPLIER}
_OPTIONS = ("units", "activation", "rate", "filters", "kernel_size", "pool_size", "strides", "padding")


class EpochClock(tf_keras.callbacks.Callback):
    """As :class:`dp_paths.EpochClock`."""

    begun = seconds = 0.0
    on_epoch_begin, on_epoch_end = dp_paths.EpochClock.on_epoch_begin, dp_paths.EpochClock.on_epoch_end


class TfKerasPath(KerasPath):
    """A compiled model of tf_keras on arrays, through its own ``fit``."""

    clock = EpochClock


def layers_of(name: str) -> list:
    """The layers of a model of the benchmark, input first, as layers of tf_keras."""
    made = [tf_keras.layers.Input(models.IMAGE_SHAPE)]
    for layer in getattr(models, name)().layers:
        config = layer.get_config()
        options = {option: config[option] for option in _OPTIONS if option in config}
        made.append(getattr(tf_keras.layers, type(layer).__name__)(**options))
    return made


def compiled(model, optimizer=None, reduction: str = "sum_over_batch_size"):
    """``model`` with the benchmark's loss, and its optimizer unless another is given."""
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction=reduction)
    model.compile(optimizer=optimizer or tf_keras.optimizers.SGD(LEARNING_RATE), loss=loss)
    return model


def plain(name: str, batch: int, arrays) -> TfKerasPath:
    """The baseline: no privacy."""
    return TfKerasPath(compiled(tf_keras.Sequential(layers_of(name))), *arrays, batch)


def with_optimizer(optimizer_class, name: str, batch: int, arrays) -> TfKerasPath:
    """An optimizer of TF Privacy's, one microbatch an example."""
    optimizer = optimizer_class(**_PRIVACY, num_microbatches=batch, learning_rate=LEARNING_RATE)
    return TfKerasPath(compiled(tf_keras.Sequential(layers_of(name)), optimizer, "none"), *arrays, batch)


def tfp_optimizer(name: str, batch: int, arrays) -> TfKerasPath:
    """TF Privacy's first optimizer."""
    return with_optimizer(_load("optimizers.dp_optimizer_keras").DPKerasSGDOptimizer, name, batch, arrays)


def tfp_vectorized(name: str, batch: int, arrays) -> TfKerasPath:
    """TF Privacy's vectorised optimizer."""
    made = _load("optimizers.dp_optimizer_keras_vectorized")
    return with_optimizer(made.VectorizedDPKerasSGDOptimizer, name, batch, arrays)


def tfp_model(name: str, batch: int, arrays, layer_registry=None) -> TfKerasPath:
    """TF Privacy's model class, without XLA: with it, it is slower on a processor."""
    made = _load("keras_models.dp_keras_model")
    # Without its input among the layers, a Sequential has no graph yet, and the registry is silently not used.
    model = made.DPSequential(**_PRIVACY, use_xla=False, layer_registry=layer_registry, layers=layers_of(name))
    note = None
    if layer_registry is not None and not model._enable_fast_peg_computation:
        note = "the registry has no convolution: falls back to the path without it"
    return TfKerasPath(compiled(model), *arrays, batch, note=note)


def tfp_registry(name: str, batch: int, arrays) -> TfKerasPath:
    """TF Privacy's model class with its registry of layers whose norms need no per-example gradients."""
    registry = _load("fast_gradient_clipping.layer_registry").make_default_layer_registry()
    return tfp_model(name, batch, arrays, registry)


def _load(module: str):
    return tf_privacy.load(module, "The benchmark's path of TF Privacy")


PATHS = {
    "tf_keras": plain,
    "DPKerasSGDOptimizer": tfp_optimizer,
    "VectorizedDPKerasSGDOptimizer": tfp_vectorized,
    "DPModel": tfp_model,
    "DPModel + registry": tfp_registry,
}


if __name__ == "__main__":
    dp_paths.main(PATHS, "tf_keras")
