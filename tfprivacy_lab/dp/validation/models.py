"""What a model, its state and the scope it is used in must be, before anything is computed."""

from __future__ import annotations

import contextlib

import keras
import tensorflow as tf

from tfprivacy_lab.checks import InputError
from tfprivacy_lab.dp.validation.preprocessing import warn_of_statistics
from tfprivacy_lab.models.chains import check_is_of_keras_3
from tfprivacy_lab.models.keras_internals import as_before_compile, is_overwritten, layers_of, own_weights, raw


def check_model(model) -> None:
    """Refuse what is no built Keras model of this scope, or does not compute in float32; warn of adapted layers.

    Raises:
        InputError: naming the argument, or the layer.
    """
    check_is_of_keras_3(model)
    if keras.backend.backend() != "tensorflow":
        raise InputError(
            f"Expected Keras to compute by TensorFlow, got the backend {keras.backend.backend()!r}; set "
            "KERAS_BACKEND=tensorflow before Keras is imported."
        )
    if not isinstance(model, keras.Model):
        raise InputError(f"Expected model to be a keras.Model, got {type(model).__name__}.")
    for name in ("train_step", "compute_loss"):
        if getattr(type(model), name) is not getattr(keras.Model, name):
            raise InputError(
                f"Model {model.name!r} ({type(model).__name__}) has a {name} of its own, which a private fit does not "
                "run; wrap a model without it, and give its loss to compile."
            )
    if not model.built:
        raise InputError(
            f"Expected model to be built, got {model.name!r} without weights: begin it with an Input, or call it once "
            "on examples."
        )
    if not _is_of_this_scope(model):
        raise InputError(
            f"Expected model {model.name!r} and its PrivateModel to be made in the scope of one strategy, got a model "
            f"of {_name(_strategy_of(model))} under {_name(tf.distribute.get_strategy())}; make both in it."
        )
    check_layers(model)
    warn_of_statistics(model)


def check_layers(model: keras.Model) -> None:
    """Refuse layers that do not compute in float32, or whose weights follow the examples.

    Raises:
        InputError: naming the layer.
    """
    for layer in layers_of(model):
        dtype = layer.compute_dtype
        if dtype is not None and dtype != "float32" and tf.as_dtype(dtype).is_floating:
            raise InputError(
                f"Layer {layer.name!r} computes in {dtype} (policy {layer.dtype_policy.name!r}): both engines compute "
                "in float32, and the rounding of another would pass the clipping norm; use the policy 'float32'."
            )
        _check_not_quantized(layer)


def _check_not_quantized(layer):
    mode = getattr(layer, "quantization_mode", None)
    if mode is not None or any(map(is_overwritten, own_weights(layer))):
        raise InputError(
            f"Layer {layer.name!r} ({type(layer).__name__}) is quantised ({mode or '8-bit numbers'}): its scales "
            "follow the examples, and no rule covers them; use the model as it was before quantize."
        )


def check_something_is_trained(model: keras.Model) -> None:
    """Refuse a model that is frozen whole.

    Raises:
        InputError: naming the model.
    """
    if not model.trainable_variables:
        raise InputError(f"Expected model {model.name!r} to have trainable weights, got none; set trainable = True.")


def check_scope(private: keras.Model, doing: str) -> None:
    """Refuse to go on in the scope of a strategy that the model was not made in.

    Raises:
        InputError: saying what is done where.
    """
    if tf.distribute.has_strategy() and not _is_of_this_scope(private.model):
        raise InputError(
            f"{doing} is called under {_name(tf.distribute.get_strategy())}, and the PrivateModel was made under "
            f"{_name(_strategy_of(private.model))}; make model and PrivateModel in the strategy's scope."
        )


def _is_of_this_scope(model):
    here = tf.distribute.get_strategy().extended
    return all(here.variable_created_in_scope(one) for one in raw(model.variables))


def _strategy_of(model):
    held = (getattr(variable, "distribute_strategy", None) for variable in raw(model.variables))
    return next((strategy for strategy in held if strategy is not None), None)


def _name(strategy):
    name = type(strategy).__name__
    return "no strategy" if strategy is None or name.startswith("_Default") else name


@contextlib.contextmanager
def without_training(model: keras.Model):
    """The model meanwhile without what training left beside its weights: what its ``compile`` made, and figures.

    Metrics that its layers or its ``compile`` hold are reset: they would be exported, without noise.
    """
    without_figures(model)
    with as_before_compile(model):
        yield model


def without_figures(model: keras.Model) -> keras.Model:
    """The model, its metrics and those of its layers reset."""
    for metric in [metric for layer in layers_of(model) for metric in layer.metrics]:
        metric.reset_state()
    return model


def training_state(model: keras.Model) -> tuple:
    """What only ``compile`` and ``fit`` may change: which weights are trained, and the optimizer's steps.

    Those are its first variable: ``iterations`` counts in ``gradient_accumulation_steps``.
    """
    return (*(id(variable) for variable in model.trainable_variables), int(model.optimizer.variables[0].numpy()))


def check_nothing_was_restored(model: keras.Model, before: tuple) -> None:
    """Refuse to go on from a state that came from elsewhere: what it cost is in no record, and its noise would return.

    Args:
        model: A compiled model.
        before: What :func:`training_state` gave when ``compile``, ``fit`` or ``restore_checkpoint`` ended.

    Raises:
        InputError: saying what to do instead.
    """
    *trainable, steps = training_state(model)
    if trainable != list(before[:-1]):
        raise InputError("Other weights are trainable than when the model was compiled; call compile again.")
    if steps != before[-1]:
        raise InputError(
            f"The optimizer is at step {steps} and was at {before[-1]} when this model was last compiled or fitted: it "
            "was restored or used elsewhere, and what that cost is in no record; compile with a new optimizer, or go "
            "on from what save_checkpoint wrote by restore_checkpoint."
        )
