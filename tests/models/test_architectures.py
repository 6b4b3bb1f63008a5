"""Architectures, freezing, embedding and the joined model."""

import keras
import numpy as np
import pytest

from tfprivacy_lab.checks import InputError
from tfprivacy_lab.models import architectures


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (23, 28, 28), dtype=np.uint8)


@pytest.fixture(scope="module")
def extractor():
    keras.utils.set_random_seed(0)
    return architectures.backbone()


def test_parameter_counts_are_those_of_the_document_and_the_tutorial():
    assert architectures.document_mlp().count_params() == 101_770
    assert architectures.tutorial_cnn().count_params() == 26_010
    assert architectures.dense_head(128, 10).count_params() == 1_290


@pytest.mark.parametrize("build", [architectures.document_mlp, architectures.tutorial_cnn])
def test_models_give_logits(build, images):
    logits = build()(architectures.check_images(images)).numpy()
    assert logits.shape == (23, 10)
    assert not np.allclose(logits.sum(1), 1.0)


def test_features_have_norm_one_and_do_not_depend_on_the_chunks(extractor, images):
    whole = architectures.embed(extractor, images)
    assert whole.shape == (23, 128)
    assert whole.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(whole, axis=1), 1.0, atol=1e-5)
    for batch_size in (1, 5, 22):
        np.testing.assert_allclose(architectures.embed(extractor, images, batch_size), whole, atol=1e-5)


def test_embedding_is_deterministic_and_takes_every_form_of_the_images(extractor, images):
    whole = architectures.embed(extractor, images)
    np.testing.assert_array_equal(architectures.embed(extractor, images), whole)
    np.testing.assert_array_equal(architectures.embed(extractor, images[..., None]), whole)
    np.testing.assert_array_equal(architectures.embed(extractor, images.astype(np.float32) / np.float32(255)), whole)


def test_freeze_leaves_nothing_to_train_but_the_head():
    frozen = architectures.freeze(architectures.backbone())
    assert frozen.trainable_weights == []
    head = architectures.dense_head()
    assert [w.shape for w in architectures.with_head(frozen, head).trainable_weights] == [w.shape for w in head.weights]


def test_a_frozen_backbone_keeps_its_batch_statistics(images):
    frozen = architectures.freeze(architectures.backbone())
    before = [weight.numpy() for weight in frozen.weights]
    frozen(architectures.check_images(images), training=True)
    for old, new in zip(before, frozen.weights, strict=True):
        np.testing.assert_array_equal(old, new.numpy())


def test_the_joined_model_survives_a_round_trip_through_a_file(extractor, images, tmp_path):
    head = architectures.dense_head()
    kernel = np.random.default_rng(1).normal(size=(128, 10)).astype(np.float32)
    head.set_weights([kernel, np.arange(10, dtype=np.float32)])
    joined = architectures.with_head(extractor, head)
    joined.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", safe_mode=True)
    expected = architectures.embed(extractor, images) @ kernel + np.arange(10)
    for model in (joined, loaded):
        np.testing.assert_allclose(model(architectures.check_images(images)), expected, atol=1e-4)


def test_the_autoencoder_returns_images_in_range_through_the_given_encoder(extractor, images):
    decoded = architectures.autoencoder(extractor)(architectures.check_images(images)).numpy()
    assert decoded.shape == (23, 28, 28, 1)
    assert decoded.min() >= 0.0
    assert decoded.max() <= 1.0


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.zeros((3, 784), np.uint8), "shape"),
        (np.zeros((3, 28, 27), np.uint8), "shape"),
        (np.zeros((0, 28, 28), np.uint8), "shape"),
        (np.zeros((3, 28, 28), np.int64), "dtype"),
        (np.full((3, 28, 28), 255.0), "0, 1"),
        (np.full((3, 28, 28), np.nan), "0, 1"),
    ],
)
def test_images_of_a_wrong_kind_are_refused(extractor, bad, message):
    with pytest.raises(InputError, match=message):
        architectures.embed(extractor, bad)


def test_wrong_sizes_are_refused(extractor, images):
    with pytest.raises(InputError, match="features"):
        architectures.dense_head(0)
    with pytest.raises(InputError, match="128 features"):
        architectures.with_head(extractor, architectures.dense_head(64))
    with pytest.raises(InputError, match="batch_size"):
        architectures.embed(extractor, images, 0)
