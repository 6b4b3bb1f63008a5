"""Learn a backbone from public images, by one of four tasks.

Nothing here sees a private example, so the weights it learns have no privacy cost.

How the default was chosen: by the accuracy and the log-loss of a cross-validated linear probe on the 8 x 8
digits of scikit-learn (real handwriting, public; Alpaydin & Kaynak 1998). After 50 to 100 seconds on
80,000 rendered digits (the autoencoder: 21 on 60,000) the probe reaches 98.5 % with both losses, 97.9 %
with labels alone, 97.6 % with views alone and 92.9 % with the autoencoder. Labels alone pull the ten
classes together until a head has little left to learn; views alone do not say what a digit is. The choice
was then looked at, not made, on private validation images; the renderer's pen, edge and aspect were
compared with private training digits on a contact sheet.
"""

from __future__ import annotations

import dataclasses

import keras
import numpy as np
import tensorflow as tf

from tfprivacy_lab.checks import InputError, check_choice, check_finite_number, check_positive_int
from tfprivacy_lab.models.architectures import BACKBONES, CLASSES, autoencoder, check_images
from tfprivacy_lab.pretraining.progress import Progress

TASKS = ("supervised", "contrastive", "supervised+contrastive", "autoencoder")
DEFAULT_TASK = "supervised+contrastive"

LOGIT_SCALE = 16.0
TEMPERATURE = 0.2
CONTRAST_WEIGHT = 0.2


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A backbone and how it came about.

    Attributes:
        backbone: Images (n, 28, 28, 1) to unit-norm features (n, d).
        history: Mean training loss of each epoch under ``"loss"``; with labels, also ``"accuracy"``.
        classifier: The public head of the supervised tasks, features to logits; else None.
        reconstruct: The whole autoencoder, images to images; else None.
    """

    backbone: keras.Model
    history: dict[str, list[float]]
    classifier: keras.Model | None = None
    reconstruct: keras.Model | None = None


def pretrain(
    task: str,
    images,
    labels=None,
    *,
    seed: int,
    epochs: int = 5,
    batch_size: int = 256,
    learning_rate: float = 2e-3,
    network: str = "backbone",
    progress: bool = False,
) -> Pretrained:
    """Train a new backbone on public images.

    - ``supervised``: cross-entropy of a cosine classifier on the labels that rendering gives for free.
    - ``contrastive``: two random views of an image attract, others repel (SimCLR, Chen et al. 2020, eq. 1).
    - ``supervised+contrastive``: both losses added, on the same two views.
    - ``autoencoder``: undo noise through the 128 features (Vincent et al. 2008), the teaching baseline.

    Args:
        task: One of `TASKS`.
        images: Public images, uint8 or float in [0, 1], (n, 28, 28) or (n, 28, 28, 1), n >= batch_size.
        labels: Whole numbers in [0, 9], (n,); not needed by ``contrastive`` and ``autoencoder``.
        seed: Whole number in [0, 2^32). Under ``tf.config.experimental.enable_op_determinism()``, which the caller
            enables, the same seed and data give the same weights bit for bit.
        epochs: Passes over the images, >= 1.
        batch_size: Images a step, >= 2.
        learning_rate: Adam's first rate; it falls to zero along a cosine.
        network: One of :data:`tfprivacy_lab.models.architectures.BACKBONES`; the network to train.
        progress: Whether to show how far it is, on stderr.

    Returns:
        A `Pretrained`; its backbone is not yet frozen.

    Raises:
        InputError: naming the argument.

    Guarantee: draws no private data; the backbone is a function of the arguments alone.
    """
    check_choice("task", task, TASKS)
    check_choice("network", network, BACKBONES)
    seed = check_positive_int("seed", seed, at_least=0, at_most=2**32 - 1)
    epochs = check_positive_int("epochs", epochs)
    learning_rate = check_finite_number("learning_rate", learning_rate, above=0.0)
    images = _public_images(images)
    batch_size = check_positive_int("batch_size", batch_size, at_least=2, at_most=len(images))
    labels = _public_labels(task, labels, len(images))
    keras.utils.set_random_seed(seed)
    learner = _LEARNERS[task](BACKBONES[network]())
    steps = len(images) // batch_size
    rate = keras.optimizers.schedules.CosineDecay(learning_rate, epochs * steps)
    step = _step(learner, keras.optimizers.Adam(rate))
    history: dict[str, list[float]] = {}
    with Progress(f"      {task}", epochs * steps, shown=progress) as shown:
        for epoch in range(epochs):
            order = np.random.default_rng([seed, epoch]).permutation(len(images))[: steps * batch_size]
            totals: dict[str, tf.Tensor] = {}
            for rows in order.reshape(steps, batch_size):
                for name, value in step(images[rows], labels[rows]).items():
                    totals[name] = totals.get(name, 0.0) + value
                shown.advance()
            for name, total in totals.items():
                history.setdefault(name, []).append(float(total) / steps)
    return Pretrained(learner.backbone, history, learner.classifier, learner.reconstruct)


def _public_images(images):
    """Images as (n, 28, 28, 1); bytes stay bytes, for a batch is scaled when it is used."""
    array = np.asarray(images)
    if array.dtype == np.uint8:
        check_images(array[:1])
        return array.reshape(len(array), 28, 28, 1)
    return check_images(array)


def _public_labels(task, labels, count):
    """Labels as int32 (count,); zeros if the task needs none."""
    if task in ("contrastive", "autoencoder"):
        return np.zeros(count, np.int32)
    array = np.asarray(labels)
    if array.dtype.kind not in "iu" or array.shape != (count,):
        raise InputError(f"Expected labels of whole numbers, shape ({count},), got {array.dtype}, {array.shape}.")
    if array.min() < 0 or array.max() >= CLASSES:
        raise InputError(f"Expected labels in [0, {CLASSES - 1}], got {array.min()} to {array.max()}.")
    return array.astype(np.int32)


def _step(learner, optimizer):
    """One compiled optimizer step; returns the batch's metrics."""

    @tf.function(reduce_retracing=True, autograph=False)
    def step(images, labels):
        scaled = tf.cast(images, tf.float32) / (255.0 if images.dtype == tf.uint8 else 1.0)
        with tf.GradientTape() as tape:
            metrics = learner.metrics(scaled, labels, optimizer.iterations)
        variables = learner.variables()
        optimizer.apply_gradients(zip(tape.gradient(metrics["loss"], variables), variables, strict=True))
        return metrics

    return step


class _Supervised:
    """Cross-entropy of a linear classifier on the scaled unit features."""

    reconstruct = None

    def __init__(self, backbone):
        self.backbone = backbone
        self.classifier = keras.Sequential(
            [
                keras.layers.Input((self.backbone.output_shape[-1],)),
                keras.layers.Rescaling(LOGIT_SCALE),
                keras.layers.Dense(CLASSES),
            ],
            name="public_head",
        )

    def variables(self):
        return self.backbone.trainable_variables + self.classifier.trainable_variables

    def metrics(self, images, labels, iteration):
        return self.classified(self.backbone(images, training=True), labels)

    def classified(self, features, labels):
        logits = self.classifier(features)
        loss = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
        right = tf.equal(tf.argmax(logits, 1, output_type=tf.int32), labels)
        return {"loss": tf.reduce_mean(loss), "accuracy": tf.reduce_mean(tf.cast(right, tf.float32))}


class _Contrastive:
    """Two views of an image against all other images of the batch."""

    classifier = reconstruct = None

    def __init__(self, backbone):
        self.backbone = backbone

    def variables(self):
        return self.backbone.trainable_variables

    def metrics(self, images, labels, iteration):
        return {"loss": _contrast(self.backbone(_views(images, iteration), training=True))}


class _Both(_Supervised):
    """The supervised and the contrastive loss on the same two views."""

    def metrics(self, images, labels, iteration):
        features = self.backbone(_views(images, iteration), training=True)
        metrics = self.classified(features, tf.concat([labels, labels], 0))
        return metrics | {"loss": metrics["loss"] + CONTRAST_WEIGHT * _contrast(features)}


class _Autoencoder:
    """Mean squared error of the reconstruction from a noisy image."""

    classifier = None

    def __init__(self, backbone):
        self.backbone = backbone
        self.reconstruct = autoencoder(self.backbone)

    def variables(self):
        return self.reconstruct.trainable_variables

    def metrics(self, images, labels, iteration):
        noise = tf.random.stateless_normal(tf.shape(images), _seed(iteration, 0), stddev=0.3)
        noisy = tf.clip_by_value(images + noise, 0.0, 1.0)
        return {"loss": tf.reduce_mean(tf.square(self.reconstruct(noisy, training=True) - images))}


_LEARNERS = dict(zip(TASKS, (_Supervised, _Contrastive, _Both, _Autoencoder), strict=True))


def _contrast(features):
    """The NT-Xent loss of 2n unit features, rows i and n + i being two views of one image."""
    count = tf.shape(features)[0]
    similar = tf.matmul(features, features, transpose_b=True) / TEMPERATURE
    similar = tf.linalg.set_diag(similar, tf.fill([count], -1e9))
    twin = tf.roll(tf.range(count), count // 2, 0)
    return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(twin, similar))


def _seed(iteration, salt):
    """A stateless seed for one step; the run's seed enters through the data's order and the weights."""
    return tf.stack([tf.cast(iteration, tf.int32), salt])


def _views(images, iteration):
    """Every image as it is, then a random affine view of it: (2n, 28, 28, 1)."""
    count = tf.shape(images)[0]
    spread = tf.constant([0.15, 0.15, 1.0, 0.15, 0.15, 1.0])
    random = tf.random.stateless_normal([count, 6], _seed(iteration, 1)) * spread
    matrix = random + tf.constant([1.0, 0.0, 0.0, 0.0, 1.0, 0.0])
    # The map turns about the corner; move the image's centre back to where it was.
    centre = 13.5 * tf.stack([random[:, 0] + random[:, 1], random[:, 3] + random[:, 4]], 1)
    zero = tf.zeros([count, 1])
    matrix -= tf.concat([zero, zero, centre[:, :1], zero, zero, centre[:, 1:]], 1)
    moved = tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=tf.concat([matrix, tf.zeros([count, 2])], 1),
        output_shape=[28, 28],
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
    )
    return tf.concat([images, moved], 0)
