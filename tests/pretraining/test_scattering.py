"""Scattering against Kymatio's NumPy front end, and what projections must keep."""

import keras
import numpy as np
import pytest
from kymatio.numpy import Scattering2D

from tfprivacy_lab.checks import InputError
from tfprivacy_lab.data.rendered_digits import render_digits
from tfprivacy_lab.models import architectures
from tfprivacy_lab.pretraining import scattering

IMAGES = render_digits(60, seed=3)[0]


def by_hand(images):
    """Group-normalised coefficients, group by group, in float64."""
    coefficients = Scattering2D(J=2, shape=(28, 28), L=8)(images.astype(np.float64) / 255)
    assert coefficients.shape[1:] == (81, 7, 7)
    groups = coefficients.reshape(len(images), 27, 3 * 49)
    centred = groups - groups.mean(2, keepdims=True)
    return (centred / np.sqrt((centred**2).mean(2, keepdims=True) + 1e-5)).reshape(len(images), -1)


@pytest.mark.slow
def test_features_are_those_of_another_front_end():
    found = architectures.embed(scattering.scattering_extractor(), IMAGES)
    assert found.shape == (60, scattering.FEATURES)
    np.testing.assert_allclose(found, by_hand(IMAGES), atol=2e-3)
    assert np.linalg.norm(found, axis=1).max() <= 63.0


@pytest.mark.slow
def test_a_row_depends_on_its_own_image_alone():
    extractor = scattering.scattering_extractor()
    together = architectures.embed(extractor, IMAGES[:8])
    alone = np.concatenate([architectures.embed(extractor, IMAGES[i : i + 1]) for i in range(8)])
    np.testing.assert_allclose(together, alone, atol=1e-4)


@pytest.mark.slow
def test_projection_is_half_whitening_on_public_axes():
    found = architectures.embed(scattering.projected_scattering(IMAGES, 12), IMAGES)
    features = by_hand(IMAGES)
    centred = features - features.mean(0)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    wanted = left[:, :12] * sizes[:12] / (sizes[:12] ** 2 / (len(IMAGES) - 1)) ** 0.25
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    # Axes are known up to their sign.
    np.testing.assert_allclose(np.abs(found), np.abs(wanted), atol=5e-3)


@pytest.mark.slow
def test_side_by_side_keeps_the_unit_norm_and_both_parts():
    parts = [scattering.projected_scattering(IMAGES, 5), architectures.freeze(architectures.backbone())]
    both = scattering.side_by_side(parts)
    found = architectures.embed(both, IMAGES)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, atol=1e-5)
    one, other = (architectures.embed(part, IMAGES) / np.sqrt(2) for part in parts)
    np.testing.assert_allclose(found, np.concatenate([one, other], 1), atol=1e-5)
    assert not both.trainable_variables


@pytest.mark.slow
def test_a_saved_extractor_gives_the_same_features(tmp_path):
    extractor = scattering.projected_scattering(IMAGES, 5)
    extractor.save(tmp_path / "extractor.keras")
    loaded = keras.models.load_model(tmp_path / "extractor.keras", compile=False, safe_mode=True)
    np.testing.assert_array_equal(architectures.embed(loaded, IMAGES), architectures.embed(extractor, IMAGES))


@pytest.mark.parametrize(("dimension", "message"), [(0, "dimension"), (4000, "dimension"), (60, "more public images")])
def test_bad_dimensions_are_refused(dimension, message):
    with pytest.raises(InputError, match=message):
        scattering.projected_scattering(IMAGES, dimension)


def test_other_image_sizes_are_refused():
    with pytest.raises(InputError, match="28, 28"):
        scattering.GroupNormalizedScattering().build((None, 32, 32, 1))
