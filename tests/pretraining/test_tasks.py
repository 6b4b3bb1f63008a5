"""Pretraining: what it learns carries over to real handwriting, and the same seed gives the same weights."""

import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import ndimage
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from tfprivacy_lab.checks import InputError
from tfprivacy_lab.data.rendered_digits import render_digits
from tfprivacy_lab.models import architectures
from tfprivacy_lab.pretraining import tasks
from tfprivacy_lab.pretraining.tasks import pretrain

FINGERPRINT = """
import hashlib, sys
import tensorflow as tf
from tfprivacy_lab.pretraining.tasks import pretrain
from tfprivacy_lab.data.rendered_digits import render_digits
tf.config.experimental.enable_op_determinism()
images, labels = render_digits(128, seed=5)
for seed in map(int, sys.argv[1:]):
    result = pretrain("supervised+contrastive", images, labels, seed=seed, epochs=1, batch_size=32)
    print(hashlib.sha256(b"".join(w.tobytes() for w in result.backbone.get_weights())).hexdigest())
"""


@pytest.fixture(scope="module")
def public():
    return render_digits(256, seed=0)


def fingerprints(*seeds):
    command = [sys.executable, "-c", FINGERPRINT, *map(str, seeds)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.processes
@pytest.mark.slow
def test_two_processes_reach_the_same_weights_and_another_seed_does_not():
    first, other = fingerprints(1, 2)
    assert fingerprints(1) == [first]
    assert other != first


@pytest.mark.parametrize("task", tasks.TASKS)
def test_every_task_returns_a_backbone_of_unit_features_and_a_falling_loss(task, public):
    images, labels = public
    result = pretrain(task, images, labels, seed=0, epochs=3, batch_size=32)
    assert len(result.history["loss"]) == 3
    assert result.history["loss"][-1] < result.history["loss"][0]
    features = architectures.embed(result.backbone, images)
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1.0, atol=1e-5)
    assert (result.classifier is not None) == ("supervised" in task) == ("accuracy" in result.history)
    assert (result.reconstruct is not None) == (task == "autoencoder")


def test_the_labels_are_not_used_where_they_are_not_wanted(public):
    images, _ = public
    assert pretrain("contrastive", images, seed=0, epochs=1).history.keys() == {"loss"}


def test_bytes_and_floats_are_the_same_images(public):
    images, labels = public
    scaled = images[..., None] / 255.0
    one, other = (pretrain("supervised", x, labels, seed=0, epochs=1).backbone for x in (images, scaled))
    np.testing.assert_allclose(architectures.embed(one, images), architectures.embed(other, images), atol=1e-3)


def test_a_view_keeps_the_original_and_moves_its_twin_by_little():
    images = render_digits(200, seed=2)[0][..., None].astype(np.float32) / 255.0
    views = tasks._views(tf.constant(images), tf.constant(0)).numpy()
    np.testing.assert_array_equal(views[:200], images)
    twins = views[200:]
    assert twins.min() >= 0.0
    assert twins.max() <= 1.0
    similar = (images * twins).sum((1, 2, 3)) / (np.linalg.norm(images) * np.linalg.norm(twins) / 200)
    strangers = (images * np.roll(twins, 1, 0)).sum((1, 2, 3)) / (np.linalg.norm(images) * np.linalg.norm(twins) / 200)
    assert similar.mean() > 1.5 * strangers.mean()
    assert not np.array_equal(tasks._views(tf.constant(images), tf.constant(1)).numpy(), views)


def test_the_contrastive_loss_is_the_textbook_sum():
    features = np.random.default_rng(0).normal(size=(8, 5))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    similar = np.exp(features @ features.T / tasks.TEMPERATURE)
    terms = [-np.log(similar[i, (i + 4) % 8] / (similar[i].sum() - similar[i, i])) for i in range(8)]
    loss = tasks._contrast(tf.constant(features, tf.float32))
    assert float(loss) == pytest.approx(np.mean(terms), rel=1e-4)


def handwriting():
    """scikit-learn's 8 x 8 digits, enlarged to 20 x 20 in the middle of 28 x 28."""
    digits = load_digits()
    enlarged = np.stack([ndimage.zoom(image / 16.0, 2.5, order=1) for image in digits.images])
    return np.clip(np.pad(enlarged, ((0, 0), (4, 4), (4, 4))), 0.0, 1.0).astype(np.float32), digits.target


def probe(extractor):
    images, labels = handwriting()
    features = architectures.embed(extractor, images)
    fitted = LogisticRegression(C=10.0, max_iter=200).fit(features[:300], labels[:300])
    return fitted.score(features[300:], labels[300:])


def test_two_short_epochs_beat_random_features_on_real_handwriting():
    images, labels = render_digits(6000, seed=0)
    keras.utils.set_random_seed(0)
    random = probe(architectures.backbone())
    learnt = probe(pretrain("supervised", images, labels, seed=0, epochs=2, batch_size=128).backbone)
    # A fifth fewer mistakes at the least.
    assert 1.0 - learnt < 0.8 * (1.0 - random)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"task": "jigsaw"}, "supervised"),
        ({"images": np.zeros((64, 784), np.uint8)}, "shape"),
        ({"images": np.zeros((64, 28, 28), np.int32)}, "dtype"),
        ({"labels": None}, "labels"),
        ({"labels": np.zeros(63, np.uint8)}, "labels"),
        ({"labels": np.zeros(64)}, "labels"),
        ({"labels": np.full(64, 10)}, "labels"),
        ({"seed": -1}, "seed"),
        ({"epochs": 0}, "epochs"),
        ({"batch_size": 65}, "batch_size"),
        ({"learning_rate": 0.0}, "learning_rate"),
    ],
)
def test_bad_arguments_are_refused(changed, message):
    images, labels = render_digits(64, seed=0)
    arguments = {"task": "supervised", "images": images, "labels": labels, "seed": 0, "epochs": 1, "batch_size": 32}
    with pytest.raises(InputError, match=message):
        pretrain(**(arguments | changed))
