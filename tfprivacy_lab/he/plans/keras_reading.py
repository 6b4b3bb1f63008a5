r"""A Keras chain of layers as affine layers and squares: what is linear is folded, the rest refused by name.

Layers without effect at inference are skipped. Batch and input normalisation and rescaling are
:math:`x \mapsto g x + h` element by element and go into the layer beside them; average pooling, and dense layers in a
row, are matrices and are multiplied. A softmax or sigmoid at the end is dropped with a warning: it keeps the order of
logits, and who decrypts can apply it.

**What was read is what Keras computes**: both are evaluated on random inputs and compared at the end.
"""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np

from tfprivacy_lab.checks import InputError, ModelReadingWarning
from tfprivacy_lab.he.plans.layers import Affine
from tfprivacy_lab.models.chains import Link, chain_of, is_of_keras

_NOTHING = frozenset(
    {"Flatten", "Dropout", "Reshape", "SpatialDropout2D", "GaussianNoise", "GaussianDropout", "ActivityRegularization"}
)
# Of keras.ops in a functional model, those that are read as the layer of that name.
_OPERATIONS = frozenset({"Square", "Softmax"})
_SQUARES = frozenset({"square", "tfprivacy_lab>square"})
_AT_THE_END = frozenset({"softmax", "sigmoid"})
_INSTEAD = {
    "MaxPooling2D": "use AveragePooling2D",
    "GlobalMaxPooling2D": "use GlobalAveragePooling2D",
    "LayerNormalization": "use BatchNormalization, which is linear at inference",
    "GroupNormalization": "use BatchNormalization, which is linear at inference",
    "Lambda": "use a layer of Keras, or Square",
    "ReLU": "use Square, and train again",
}
_SQUARE = "square"


@dataclasses.dataclass(frozen=True)
class _Scaling:
    """gain * x + shift, element by element of the flattened input."""

    gain: np.ndarray
    shift: np.ndarray


@dataclasses.dataclass(frozen=True)
class _Final:
    """A softmax or sigmoid, to be dropped if it is last."""

    name: str
    layer: str


def affine_layers(model) -> tuple[Affine, ...]:
    """The affine layers of a model, with a square between each two.

    Raises:
        InputError: naming the layer that a ciphertext cannot compute, and what to do.

    Warns:
        ModelReadingWarning: if a softmax or sigmoid at the end was dropped.
    """
    links = chain_of(model)
    items, dropped = [item for link in links for item in _read(link)], None
    if items and isinstance(items[-1], _Final):
        dropped = items.pop()
    for item in items:
        if isinstance(item, _Final):
            raise InputError(_refusal(item.layer, item.name, "only at the end can it be left to who decrypts"))
    folded = _fold(items)
    kinds = [_SQUARE if item is _SQUARE else "affine" for item in folded]
    if kinds != ["affine", _SQUARE] * (len(kinds) // 2) + ["affine"]:
        raise InputError(
            f"Expected dense or convolutional layers with one square between each two, got {' '.join(kinds)}."
        )
    if dropped:
        warnings.warn(
            f"the {dropped.name} of layer {dropped.layer!r} is dropped: what is decrypted are logits, whose order is "
            f"the same; apply {dropped.name} after decryption",
            ModelReadingWarning,
            stacklevel=3,
        )
    layers = tuple(item for item in folded if item is not _SQUARE)
    _check_reading(layers, dropped, model)
    return layers


def _read(link: Link) -> list:
    """A Keras layer as what it computes: an Affine, a _Scaling, a square, a _Final, several of these, or nothing."""
    layer, kind = link.layer, type(link.layer).__name__
    if not is_of_keras(layer) and not _is_square(layer):
        raise InputError(
            _refusal(layer.name, f"{kind}, a class of yours", "use layers of Keras, and Square, as they are")
        )
    for weights in getattr(layer, "get_weights", list)():  # an operation has none
        if not np.isfinite(weights).all():
            raise InputError(f"Layer {layer.name!r} ({kind}) has weights that are not finite; train the model again.")
    if not hasattr(layer, "get_weights") and kind not in _OPERATIONS:
        raise InputError(
            _refusal(layer.name, f"the operation {kind}", "use Dense, Conv2D, AveragePooling2D and Square")
        )
    config = layer.get_config()
    if kind in _NOTHING:
        return []
    activation = _activation(config)
    after = _after(activation, layer)
    if _is_square(layer):
        return [_SQUARE]
    if kind == "Softmax" and not _is_last_axis(layer.axis, link.shape):
        raise InputError(_refusal(layer.name, f"softmax along axis {layer.axis}", "use the last axis"))
    if kind in ("Activation", "Softmax") and (found := after if kind == "Activation" else _after("softmax", layer)):
        return found
    if kind == "Activation" and activation == "linear":
        return []
    if kind in _SCALINGS:
        return [_SCALINGS[kind](layer, link.shape)]
    if kind in ("AveragePooling2D", "GlobalAveragePooling2D"):
        return [_pooling(layer, config, link.shape)]
    if kind not in ("Dense", "Conv2D") or after is None:
        advice = _INSTEAD.get(kind, "use Dense, Conv2D and Square")
        raise InputError(_refusal(layer.name, f"{kind}, activation {activation!r}", advice))
    return [_affine(layer, kind, config, link.shape), *after]


def _is_square(layer) -> bool:
    """Whether a layer is :class:`.Square`, or ``keras.ops.square`` in a functional model."""
    kind = type(layer)
    return f"{kind.__module__}.{kind.__qualname__}" == "tfprivacy_lab.models.architectures.Square" or (
        is_of_keras(layer) and kind.__name__ == "Square"
    )


def _refusal(name: str, what: str, advice: str) -> str:
    return f"Layer {name!r} ({what}) cannot be evaluated on ciphertexts; {advice}."


def _activation(config) -> str:
    """The name of a layer's activation."""
    activation = config.get("activation", "linear")
    if isinstance(activation, dict):  # a registered function of the user's
        activation = activation.get("config", activation.get("class_name"))
    return activation


def _after(activation, layer) -> list | None:
    """What an activation is, or None if it is nothing that can be computed or dropped."""
    if activation in _SQUARES:
        return [_SQUARE]
    if activation in _AT_THE_END:
        return [_Final(activation, layer.name)]
    return [] if activation == "linear" else None


def _affine(layer, kind: str, config, shape) -> Affine:
    """A dense layer, or a convolution."""
    kernel, *bias = (np.asarray(weight, np.float64) for weight in layer.get_weights())
    inputs = int(np.prod(shape))
    if kind == "Dense" and inputs != len(kernel):
        raise InputError(f"Layer {layer.name!r} works along the last axis of {shape}; flatten it before.")
    windows = _windows(layer, config, shape) if kind == "Conv2D" else np.arange(inputs)[np.newaxis]
    kernel = kernel.reshape(-1, kernel.shape[-1])
    return Affine(kernel, bias[0] if bias else np.zeros(kernel.shape[1]), windows, inputs)


def _is_last_axis(axis, shape) -> bool:
    """Whether an axis, counted from the examples', or a list of one, is the last of an example of the shape."""
    return list(np.ravel(axis)) in ([-1], [len(shape)])


def _batch_normalization(layer, shape) -> _Scaling:
    if not _is_last_axis(layer.axis, shape):
        what = f"BatchNormalization, axis {layer.axis}"
        raise InputError(_refusal(layer.name, what, "normalise the last axis"))
    mean, variance = (np.asarray(value, np.float64) for value in (layer.moving_mean, layer.moving_variance))
    gain = (np.asarray(layer.gamma, np.float64) if layer.scale else 1.0) / np.sqrt(variance + layer.epsilon)
    shift = (np.asarray(layer.beta, np.float64) if layer.center else 0.0) - mean * gain
    return _scaling(gain, shift, shape)


def _rescaling(layer, shape) -> _Scaling:
    return _scaling(np.asarray(layer.scale, np.float64), np.asarray(layer.offset, np.float64), shape)


def _normalization(layer, shape) -> _Scaling:
    mean = np.asarray(layer.mean, np.float64)[0]
    deviation = np.maximum(np.sqrt(np.asarray(layer.variance, np.float64)[0]), 1e-7)  # Keras' backend.epsilon()
    if layer.invert:
        return _scaling(deviation, mean, shape)
    return _scaling(1 / deviation, -mean / deviation, shape)


_SCALINGS = {
    "BatchNormalization": _batch_normalization,
    "Rescaling": _rescaling,
    "Normalization": _normalization,
}


def _scaling(gain, shift, shape) -> _Scaling:
    return _Scaling(np.broadcast_to(gain, shape).ravel(), np.broadcast_to(shift, shape).ravel())


def _pooling(layer, config, shape) -> Affine:
    """Average pooling, padding left out of the averages, as one matrix."""
    if config["data_format"] != "channels_last":
        raise InputError(f"Layer {layer.name!r}: expected channels_last.")
    height, width, channels = shape
    if "pool_size" not in config:  # global
        matrix = np.tile(np.eye(channels), (height * width, 1)) / (height * width)
    else:
        asked = {**config, "kernel_size": config["pool_size"], "dilation_rate": (1, 1)}
        rows, columns = _positions(height, 0, asked), _positions(width, 1, asked)
        along = [
            (places[:, :, np.newaxis] == np.arange(length)).sum(axis=1) / (places >= 0).sum(axis=1, keepdims=True)
            for places, length in ((rows, height), (columns, width))
        ]
        matrix = np.kron(np.kron(*along).T, np.eye(channels))
    return Affine(matrix, np.zeros(matrix.shape[1]), np.arange(len(matrix))[np.newaxis], len(matrix))


def _fold(items: list) -> list:
    """Linear items in a row as one Affine; squares between them stay."""
    folded: list = []
    for item in items:
        if item is _SQUARE or not folded or folded[-1] is _SQUARE:
            folded.append(item)
        else:
            folded.append(_compose(folded.pop(), item))
    return [_diagonal(item) if isinstance(item, _Scaling) else item for item in folded]


def _compose(first, second):
    """The second after the first; a convolution beside a scaling by channels stays one."""
    if isinstance(first, _Scaling) and isinstance(second, _Scaling):
        return _Scaling(first.gain * second.gain, first.shift * second.gain + second.shift)
    if isinstance(second, _Scaling):
        channels = first.kernel.shape[1]
        gain, shift = (part.reshape(-1, channels) for part in (second.gain, second.shift))
        if (gain == gain[0]).all() and (shift == shift[0]).all():
            return Affine(first.kernel * gain[0], first.bias * gain[0] + shift[0], first.windows, first.inputs)
        second = _diagonal(second)
    elif isinstance(first, _Scaling):
        whole = (second.windows >= 0).all() or not first.shift.any()
        gain, shift = (np.append(part, 0.0)[second.windows] for part in (first.gain, first.shift))
        alike = ((gain == gain.max(axis=0)) | (second.windows < 0)).all() and (shift == shift[0]).all()
        if whole and alike and (gain.max(axis=0) != 0).all():
            bias = second.bias + shift[0] @ second.kernel
            return Affine(second.kernel * gain.max(axis=0)[:, np.newaxis], bias, second.windows, second.inputs)
        first = _diagonal(first)
    kernel = second.apply(first.dense_kernel().T).T
    bias = second.apply(first.full_bias()[:, np.newaxis])[:, 0] + second.full_bias()
    return Affine(np.ascontiguousarray(kernel), bias, np.arange(first.inputs)[np.newaxis], first.inputs)


def _diagonal(scaling: _Scaling) -> Affine:
    return Affine(np.diag(scaling.gain), scaling.shift, np.arange(len(scaling.gain))[np.newaxis], len(scaling.gain))


def _windows(layer, config, shape) -> np.ndarray:
    """The input index of every window entry of a convolution, (positions, height * width * channels)."""
    if config["data_format"] != "channels_last" or config["groups"] != 1:
        raise InputError(f"Layer {layer.name!r}: expected channels_last and one group of channels.")
    height, width, channels = shape
    rows = _positions(height, 0, config)
    columns = _positions(width, 1, config)
    inside = (rows >= 0)[:, np.newaxis, :, np.newaxis] & (columns >= 0)[np.newaxis, :, np.newaxis, :]
    pixels = rows[:, np.newaxis, :, np.newaxis] * width + columns[np.newaxis, :, np.newaxis, :]
    indices = np.where(inside[..., np.newaxis], pixels[..., np.newaxis] * channels + np.arange(channels), -1)
    return indices.reshape(rows.shape[0] * columns.shape[0], -1)


def _positions(length: int, axis: int, config) -> np.ndarray:
    """Along one axis, the input place of each entry of each window, -1 on padding; (outputs, kernel size)."""
    size, stride, dilation = (config[name][axis] for name in ("kernel_size", "strides", "dilation_rate"))
    span = (size - 1) * dilation + 1
    if config["padding"] == "same":
        outputs = -(-length // stride)
        before = max((outputs - 1) * stride + span - length, 0) // 2
    else:
        outputs, before = (length - span) // stride + 1, 0
    places = np.arange(outputs)[:, np.newaxis] * stride + np.arange(size) * dilation - before
    return np.where((places >= 0) & (places < length), places, -1)


def _check_reading(layers, dropped: _Final | None, model) -> None:
    """Hold what was read against what the model computes, in its own precision, on random inputs."""
    inputs = np.random.default_rng(0).uniform(-1, 1, (4, *map(int, model.inputs[0].shape[1:])))
    half = any("16" in str(getattr(link.layer, "compute_dtype", "")) for link in chain_of(model))
    expected = np.asarray(model(inputs.astype(np.float32), training=False), np.float64).reshape(len(inputs), -1)
    values = inputs.astype(np.float32).astype(np.float64).reshape(len(inputs), -1).T
    errors = np.zeros_like(values)  # what Keras' precision, a millionth of what is added up, makes of it by the end
    for number, layer in enumerate(layers):
        if number:
            values, errors = np.square(values), 2 * np.abs(values) * errors + np.square(errors)
        sizes = layer.apply(np.abs(values), np.abs(layer.kernel)) + np.abs(layer.full_bias())[:, np.newaxis]
        errors = layer.apply(errors, np.abs(layer.kernel)) + 1e-6 * sizes
        values = layer.apply(values) + layer.full_bias()[:, np.newaxis]
    found = _final(values.T, dropped)
    if not np.isfinite(expected).all():
        raise InputError(
            f"Model {model.name!r} computes numbers that are not finite on inputs within -1..1; rescale it."
        )
    allowed = (1e-2 if half else 1e-4) * np.abs(expected).max() + (1e-5 if dropped else errors.max())
    if found.shape != expected.shape or not (np.abs(found - expected) <= allowed).all():
        raise InputError(
            f"Model {model.name!r} computes something else than its layers say: off by "
            f"{np.abs(found - expected).max() if found.shape == expected.shape else np.inf:.3g} of "
            f"{np.abs(expected).max():.3g}; use layers of Keras, and Square, as they are."
        )


def _final(logits: np.ndarray, dropped: _Final | None) -> np.ndarray:
    if dropped is None:
        return logits
    if dropped.name == "sigmoid":
        return 1 / (1 + np.exp(-np.clip(logits, -500, 500)))
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)
