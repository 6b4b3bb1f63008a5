"""Wavelet scattering: features that are fixed by mathematics, so they see no data and cost no privacy.

Two orders of wavelet transform and modulus (Bruna & Mallat 2013), the strongest fixed features known for
DP training on MNIST (Tramèr & Boneh 2021, "Differentially private learning needs better features").
"""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf
from kymatio.scattering2d.filter_bank import filter_bank

from tfprivacy_lab.checks import InputError, check_positive_int
from tfprivacy_lab.models import architectures

SCALE, ANGLES, GROUPS = 2, 8, 27
CHANNELS = 1 + SCALE * ANGLES + ANGLES**2 * SCALE * (SCALE - 1) // 2
FEATURES = CHANNELS * (architectures.IMAGE_SHAPE[0] // 2**SCALE) ** 2
_VARIANCE_FLOOR = 1e-5
# Reflected edges on each side: 36 pixels, which halve twice; the outer ring of the 9 x 9 result is dropped.
_MARGIN = 4


@keras.saving.register_keras_serializable(package="tfprivacy_lab")
class GroupNormalizedScattering(keras.layers.Layer):
    """Scattering of 28 x 28 images at scale 2² with 8 angles, each group of 3 channels standardised per image.

    Input shape: (n, 28, 28, 1). Output shape: (n, 3969); the norm of a row is at most 63.

    Guarantee: a row depends on its own image alone, and there are no weights.
    """

    def build(self, input_shape):
        if tuple(input_shape[1:]) != architectures.IMAGE_SHAPE:
            raise InputError(f"Expected images of shape (n, 28, 28, 1), got {tuple(input_shape)}.")
        side = architectures.IMAGE_SHAPE[0] + 2 * _MARGIN
        bank = filter_bank(side, side, SCALE, ANGLES)
        self._low, self._low_halved = (level.astype(np.complex64) for level in bank["phi"]["levels"])
        waves = np.stack([wave["levels"][0] for wave in bank["psi"]]).astype(np.complex64)
        self._fine, self._coarse = waves[:ANGLES], waves[ANGLES:]
        super().build(input_shape)

    def call(self, inputs):
        edges = [[0, 0], [0, 0], [_MARGIN, _MARGIN], [_MARGIN, _MARGIN]]
        image = tf.pad(tf.transpose(inputs, (0, 3, 1, 2)), edges, mode="REFLECT")
        spectrum = _spectrum(image)
        fine = tf.abs(tf.signal.ifft2d(spectrum * self._fine))
        coarse = tf.abs(tf.signal.ifft2d(_fold(spectrum * self._coarse, 2)))
        parts = [_smooth(image, self._low, 4), _smooth(fine, self._low, 4), _smooth(coarse, self._low_halved, 2)]
        # One angle after the other: all at once would take 700 MB for a thousand images.
        for angle in range(ANGLES):
            spectrum = _spectrum(fine[:, angle : angle + 1])
            second = tf.abs(tf.signal.ifft2d(_fold(spectrum * self._coarse, 2)))
            parts.append(_smooth(second, self._low_halved, 2))
        grouped = tf.reshape(tf.concat(parts, axis=1), (-1, GROUPS, FEATURES // GROUPS))
        mean, variance = tf.nn.moments(grouped, axes=[2], keepdims=True)
        return tf.reshape((grouped - mean) / tf.sqrt(variance + _VARIANCE_FLOOR), (-1, FEATURES))


def _spectrum(image):
    return tf.signal.fft2d(tf.cast(image, tf.complex64))


def _fold(spectrum, factor):
    """Every ``factor``-th pixel of the image, taken in its spectrum (n, channels, side, side)."""
    side, channels = spectrum.shape[-1], spectrum.shape[1]
    folded = tf.reshape(spectrum, (-1, channels, factor, side // factor, factor, side // factor))
    return tf.reduce_mean(folded, axis=[2, 4])


def _smooth(image, low, factor):
    """Low-passed, every ``factor``-th pixel, without the outer ring: (n, channels, 7, 7)."""
    return tf.math.real(tf.signal.ifft2d(_fold(_spectrum(image) * low, factor)))[..., 1:-1, 1:-1]


def scattering_extractor() -> keras.Sequential:
    """All 3,969 features, images (n, 28, 28, 1) to (n, 3969)."""
    layers = [keras.layers.Input(architectures.IMAGE_SHAPE), GroupNormalizedScattering(name="scattering")]
    return architectures.freeze(keras.Sequential(layers, name="scattering_extractor"))


def projected_scattering(public_images, dimension: int) -> keras.Sequential:
    r"""Scattering on the leading principal axes of **public** images, half whitened, unit norm.

    :math:`z = \Lambda^{-1/4} V^\top (s(x) - \bar s)`, over its norm: between plain axes (the first few drown
    the rest) and whitened ones (the last few are noise). Fewer coordinates take less noise.

    Args:
        public_images: uint8 or float in [0, 1], (m, 28, 28), m > dimension.
        dimension: Axes to keep, 1 to 3,969.

    Returns:
        A frozen model, images to (n, dimension).

    Raises:
        InputError: naming the argument.
    """
    dimension = check_positive_int("dimension", dimension, at_most=FEATURES)
    extractor = scattering_extractor()
    features = architectures.embed(extractor, public_images)
    if len(features) <= dimension:
        raise InputError(f"Expected more public images than dimension={dimension}, got {len(features)}.")
    mean = features.mean(axis=0)
    variances, axes = np.linalg.eigh(np.cov(features - mean, rowvar=False))
    kept = axes[:, ::-1][:, :dimension] / np.maximum(variances[::-1][:dimension], 1e-12) ** 0.25
    projection = keras.layers.Dense(dimension, name="projection")
    inputs = keras.layers.Input(architectures.IMAGE_SHAPE)
    layers = [inputs, *extractor.layers, projection, keras.layers.UnitNormalization()]
    model = keras.Sequential(layers, name="projected_scattering")
    projection.set_weights([kept.astype(np.float32), (-mean @ kept).astype(np.float32)])
    return architectures.freeze(model)


def side_by_side(extractors) -> keras.Model:
    """One frozen extractor from several, unit norm again if each part has it: features over √k, joined."""
    images = keras.layers.Input(architectures.IMAGE_SHAPE)
    scale = len(extractors) ** -0.5
    parts = [keras.layers.Rescaling(scale)(extractor(images)) for extractor in extractors]
    return architectures.freeze(keras.Model(images, keras.layers.Concatenate()(parts), name="features"))
