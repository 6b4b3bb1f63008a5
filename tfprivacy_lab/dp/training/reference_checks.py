"""What ``engine="reference"`` refuses: all that TF Privacy's DPKerasSGDOptimizer does not do, or gets wrong."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf

from tfprivacy_lab import tf_privacy
from tfprivacy_lab.checks import InputError
from tfprivacy_lab.dp.clipping.adaptive import QuantileClip
from tfprivacy_lab.dp.seed_streams import SeedStream
from tfprivacy_lab.models.keras_internals import layers_of

# Keras' base class of all convolutions but the depthwise ones, whose ``groups`` is 1.
_Convolution = keras.layers.Conv2D.__base__
# Settings of a Keras optimizer that DPKerasSGDOptimizer would leave undone.
_NO_OPTIONS = (
    *("weight_decay", "clipnorm", "clipvalue", "global_clipnorm", "use_ema", "loss_scale_factor"),
    "gradient_accumulation_steps",
)


def noise_generator(seed: int) -> tf.random.Generator:
    """The Philox generator of a run's noise, keyed by the whole seed; one a run, so that no draw comes twice."""
    state = SeedStream.NOISE.sequence(seed).generate_state(3, np.uint64)
    return tf.random.Generator.from_state(state.view(np.int64), alg="philox")


def check_sgd(optimizer: keras.optimizers.Optimizer) -> None:
    """Refuse an optimizer whose steps DPKerasSGDOptimizer does not take.

    Raises:
        InputError: if it is not SGD with or without momentum, at a learning rate that is a number, without further
            options.
    """
    settings = optimizer.get_config()
    if (
        not isinstance(optimizer, keras.optimizers.SGD)
        or settings["nesterov"]
        or isinstance(settings["learning_rate"], dict)
    ):
        raise InputError(
            f"engine='reference' is DPKerasSGDOptimizer: expected SGD with a constant learning rate (callbacks may set "
            f"another) and no Nesterov momentum, got {type(optimizer).__name__}; use engine='fast'."
        )
    for option in _NO_OPTIONS:
        if settings.get(option):
            raise InputError(
                f"engine='reference' is DPKerasSGDOptimizer, which has no {option}, got {option}={settings[option]!r}; "
                "leave it out, or use engine='fast'."
            )


def check_jacobian(model: keras.Model) -> None:
    """Refuse layers whose gradient ``tape.jacobian``, which DPKerasSGDOptimizer uses, gets wrong.

    TensorFlow vectorises the gradient of a convolution's kernel without heed to groups.

    Raises:
        InputError: naming the layer.
    """
    for layer in layers_of(model):
        if getattr(layer, "groups", 1) > 1 and isinstance(layer, _Convolution) and layer.trainable_weights:
            raise InputError(
                f"Layer {layer.name!r} is a convolution in {layer.groups} groups: TensorFlow's Jacobian, by which "
                "DPKerasSGDOptimizer clips, is wrong for its kernel; use engine='fast'."
            )


def check_reference(model: keras.Model, l2_norm_clip, clipping_method: str, noise: str, replicas: int) -> None:
    """Refuse what DPKerasSGDOptimizer does not do.

    Raises:
        InputError: naming the argument or the model.
    """
    if isinstance(l2_norm_clip, QuantileClip):
        raise InputError("engine='reference' clips to one norm, got a QuantileClip; use engine='fast'.")
    if clipping_method != "flat":
        raise InputError(f"engine='reference' clips flat, got clipping_method={clipping_method!r}; use engine='fast'.")
    if noise != "philox":
        raise InputError(f"engine='reference' draws from Philox, got noise={noise!r}; use engine='fast'.")
    if replicas > 1:
        raise InputError("engine='reference' is for one worker; use engine='fast'.")
    tf_privacy.sgd_classes("engine='reference'")
    check_jacobian(model)
    if model.losses:
        raise InputError(
            f"Model {model.name!r} adds {len(model.losses)} loss terms that belong to no example (regularisers); "
            "engine='reference' would clip them with every example: remove them, or use engine='fast'."
        )
