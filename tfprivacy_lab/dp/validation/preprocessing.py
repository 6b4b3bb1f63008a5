"""Layers that were adapted to data: the exact statistics they hold leave with the model, and no noise covers them."""

from __future__ import annotations

import warnings

import keras
import numpy as np

from tfprivacy_lab.models.keras_internals import layers_of


def statistics_layers(model: keras.Model) -> list[str]:
    """Names of the layers that hold statistics of data: means, vocabularies, boundaries that ``adapt`` left there.

    What stands in a layer's arguments (``mean=``, ``vocabulary=``, ``bin_boundaries=``) is not among them: whoever
    writes it there says that it may be known.
    """
    return [layer.name for layer in _adapted(model)]


def not_covered_statistics(model: keras.Model) -> list[str]:
    """A sentence for each of :func:`statistics_layers`, for what a statement lists as not covered."""
    return [
        f"the statistics of layer {layer.name!r} ({type(layer).__name__}), exact if it was adapted to private examples"
        for layer in _adapted(model)
    ]


def warn_of_statistics(model: keras.Model) -> None:
    """Say once per layer that its statistics are not covered, and what to give it instead."""
    for layer in _adapted(model):
        warnings.warn(
            f"Layer {layer.name!r} ({type(layer).__name__}) was adapted to data. If these are the private examples, "
            f"their exact statistics leave with the model, outside of epsilon; give it {_INSTEAD[_kind(layer)]}.",
            stacklevel=4,
        )


def _adapted(model):
    found = [layer for layer in layers_of(model) if _kind(layer) and _KINDS[_kind(layer)](layer)]
    # TextVectorization holds a StringLookup.
    parts = {id(part) for layer in found for part in layers_of(layer)[1:]}
    return [layer for layer in found if id(layer) not in parts]


def _kind(layer) -> str | None:
    """The argument that takes what ``adapt`` would find; None for layers that cannot be adapted."""
    if not callable(getattr(layer, "adapt", None)):
        return None
    if isinstance(layer, keras.layers.Normalization):
        return "mean"
    if isinstance(layer, keras.layers.Discretization):
        return "bin_boundaries"
    return "vocabulary" if hasattr(layer, "get_vocabulary") else "other"


def _is_given(layer, argument) -> bool:
    return layer.get_config().get(argument) is not None


def _is_off(layer) -> bool:
    """Whether a Normalization has left the mean 0 and the variance 1 that it begins with: Keras counts no examples."""
    return bool(np.any(layer.adapt_mean.numpy() != 0) or np.any(layer.adapt_variance.numpy() != 1))


_KINDS = {
    "mean": lambda layer: layer.built and not _is_given(layer, "mean") and _is_off(layer),
    # Either their number is given, or the boundaries are.
    "bin_boundaries": lambda layer: layer.num_bins is not None and len(layer.bin_boundaries or ()) > 0,
    "vocabulary": lambda layer: (
        not _is_given(layer, "vocabulary") and len(layer.get_vocabulary(include_special_tokens=False)) > 0
    ),
    "other": lambda layer: bool(getattr(layer, "is_adapted", False)),
}
_INSTEAD = {
    "mean": "public ones as mean= and variance=, or noisy ones of tfprivacy_lab.dp.PrivateScale, whose cost is stated",
    "bin_boundaries": "public boundaries as bin_boundaries=",
    "vocabulary": "a public vocabulary as vocabulary=",
    "other": "public statistics",
}
