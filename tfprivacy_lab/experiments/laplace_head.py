"""Frozen public features in few dimensions, for the recipe ``laplace-head``: a dense head under Laplace noise.

A gradient's L1 norm grows with its number of coordinates, so pure ε wants few of them. The features of a
public backbone are projected onto the leading principal axes of *public* features; 128 axes become 32 at
nearly no loss, and the head has 330 weights instead of 1,290. Every step uses the whole private set: at a
pure ε, sampling buys nothing that larger sums do not.
"""

from __future__ import annotations

import keras
import numpy as np

from tfprivacy_lab.checks import InputError, check_matrix, check_positive_int
from tfprivacy_lab.models import architectures

DIMENSION = 32


def public_projection(public_features, dimension: int = DIMENSION) -> keras.Sequential:
    r"""A frozen model from features to few dimensions of unit norm: :math:`z = V^\top (x - \bar x)`, over its norm.

    Args:
        public_features: Features of **public** examples, shape (m, d), m > dimension; V and the mean are
            computed from them, so a private example among them would be released outside any guarantee.
        dimension: Number k of principal axes to keep, at most d.

    Returns:
        A Keras model, (n, d) to (n, k), without trainable weights.

    Raises:
        InputError: if the features do not fit.
    """
    features = check_matrix("public_features", public_features)
    rows, width = features.shape
    dimension = check_positive_int("dimension", dimension, at_most=width)
    if rows <= dimension:
        raise InputError(f"Expected more public features than dimension={dimension}, got {rows}.")
    mean = features.mean(axis=0)
    *_, axes = np.linalg.svd(features - mean, full_matrices=False)
    projection = keras.layers.Dense(dimension, name="projection")
    model = keras.Sequential(
        [keras.layers.Input((width,)), projection, keras.layers.UnitNormalization()], name="projector"
    )
    projection.set_weights([axes[:dimension].T, -mean @ axes[:dimension].T])
    return architectures.freeze(model)


def projected_backbone(backbone: keras.Model, public_images, dimension: int = DIMENSION) -> keras.Model:
    """``backbone`` and its :func:`public_projection` as one frozen extractor, images to unit vectors (n, k)."""
    projector = public_projection(architectures.embed(backbone, public_images), dimension)
    layers = [keras.layers.Input(architectures.IMAGE_SHAPE), backbone, projector]
    return architectures.freeze(keras.Sequential(layers, name="projected_backbone"))
