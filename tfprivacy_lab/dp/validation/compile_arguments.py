"""What ``PrivateModel.compile`` takes beside the loss."""

from __future__ import annotations

import inspect

import keras
import tensorflow as tf

from tfprivacy_lab.checks import InputError

# Names that Keras resolves by the shapes of labels and outputs.
_METRICS = {"accuracy", "acc", "crossentropy", "ce"}
_OPTIONS = set(inspect.signature(keras.Model.compile).parameters) - {"self", "optimizer", "loss", "metrics"}


def check(options: dict, metrics=None) -> dict:
    """The options that go on to Keras.

    Args:
        options: Further keyword arguments of ``compile``.
        metrics: Its metrics.

    Raises:
        InputError: naming the one under which no budget would be kept, or that Keras does not take.
    """
    options = dict(options)
    if unknown := sorted(set(options) - _OPTIONS):
        raise InputError(
            f"Expected options of Keras' compile, got {unknown[0]!r}; it takes {', '.join(sorted(_OPTIONS))}."
        )
    if options.pop("loss_weights", None) is not None:
        raise InputError("loss_weights are for several losses; scale the one loss instead.")
    if options.get("jit_compile", "auto") not in ("auto", False, None):
        raise InputError("jit_compile leaves out the check that stops a step beyond the budget; leave it out.")
    # Keras would compile by XLA of itself where there is a GPU.
    options["jit_compile"] = False
    # Under a global policy of 16 bits it would scale the optimizer's steps.
    options["auto_scale_loss"] = False
    _check_metrics("metrics", metrics)
    _check_metrics("weighted_metrics", options.get("weighted_metrics"))
    return options


def checked_optimizer(optimizer) -> keras.optimizers.Optimizer:
    """The optimizer, by name or as it is.

    Raises:
        InputError: if it is unknown, no optimizer of Keras, or adds noise of its own.
    """
    if any("tensorflow_privacy" in cls.__module__ for cls in type(optimizer).__mro__):
        raise InputError(
            f"Expected a plain Keras optimizer, got {type(optimizer).__name__} of TF Privacy: PrivateModel clips and "
            "adds the noise itself; pass a plain one, and engine='reference' to PrivateModel for DPKerasSGDOptimizer."
        )
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        raise InputError("Expected a plain optimizer, got a LossScaleOptimizer: both engines compute in float32.")
    try:
        found = optimizer if isinstance(optimizer, keras.optimizers.Optimizer) else keras.optimizers.get(optimizer)
    except (ValueError, TypeError) as error:
        raise InputError(
            f"Expected optimizer to be a Keras optimizer or the name of one ('sgd', 'adam'), got {optimizer!r}."
        ) from error
    if not isinstance(found, keras.optimizers.Optimizer):
        raise InputError(f"Expected optimizer to be a Keras optimizer, got {type(optimizer).__name__}.")
    if found.loss_scale_factor is not None:
        raise InputError("Expected an optimizer without loss_scale_factor: both engines compute in float32.")
    return found


def _check_metrics(name, metrics):
    """Refuse names that Keras would refuse at the first step."""
    for metric in tf.nest.flatten(metrics):
        if metric is None or callable(metric) or (isinstance(metric, str) and metric.lower() in _METRICS):
            continue
        try:
            known = isinstance(metric, str) and callable(keras.metrics.get(metric))
        except (ValueError, TypeError):
            known = False
        if not known:
            raise InputError(f"Expected {name} to be metrics of Keras or the names of such, got {metric!r}.")
