"""DP-SGD with TF Privacy's DPKerasSGDOptimizer, done as the accountant assumes.

One microbatch an example, a loss vector with one entry an example, Poisson batches, and the noisy sum
divided by the expected batch size: four things that ``model.fit`` with TF Privacy leaves to its user.
"""

from __future__ import annotations

import time

import dp_accounting
import numpy as np
import tensorflow as tf
from tensorflow_privacy.privacy.dp_query.gaussian_query import GaussianSumQuery
from tensorflow_privacy.privacy.optimizers.dp_optimizer_keras import DPKerasSGDOptimizer

from tfprivacy_lab.checks import InputError, check_all_finite
from tfprivacy_lab.dp.accounting import DpSgdRun, check_delta, epsilon_after, steps_for
from tfprivacy_lab.dp.plan import EpochRecord, TrainingPlan
from tfprivacy_lab.dp.sampling import PoissonBatches

# Batch normalisation of every make: Keras' base class, which SyncBatchNormalization and the TF1 layer share.
_BatchNormalizationBase = tf.keras.layers.BatchNormalization.__base__


class KeyedGaussianSum(GaussianSumQuery):
    """TF Privacy's clipped sum, with noise from a Philox generator that is keyed by the whole seed.

    TF Privacy's own draws from TensorFlow's global generator, which cuts its seed to 31 bits: few enough
    to try each one against the released weights. This one also goes on where it was if Keras retraces.
    """

    def __init__(self, l2_norm_clip: float, stddev: float, seed: int):
        super().__init__(l2_norm_clip, stddev)
        state = np.random.SeedSequence(seed, spawn_key=(0,)).generate_state(3, np.uint64)
        self._generator = tf.random.Generator.from_state(state.view(np.int64), alg="philox")

    def get_noised_result(self, sample_state, global_state):
        """The sum with fresh noise on every coordinate."""

        def add_noise(total):
            return total + self._generator.normal(tf.shape(total), stddev=global_state.stddev, dtype=total.dtype)

        event = dp_accounting.GaussianDpEvent(self._stddev / self._l2_norm_clip)
        return tf.nest.map_structure(add_noise, sample_state), global_state, event


def dp_sgd_optimizer(run: DpSgdRun, plan: TrainingPlan, batches: PoissonBatches) -> DPKerasSGDOptimizer:
    r"""TF Privacy's optimizer, set so that each logical batch gets noise of exactly σC once.

    A logical batch arrives as k physical ones of P rows. The optimizer adds noise at each, so each gets
    :math:`\sigma C / \sqrt{k}`: the k independent draws sum to :math:`\sigma C`, and only the sum is
    applied. It averages over k·P rows, padding included; the learning rate is scaled by kP/B, which
    makes the step the noisy sum over the expected batch size B, a constant that depends on no data.
    """
    accumulated = batches.accumulation_steps
    optimizer = DPKerasSGDOptimizer(
        l2_norm_clip=plan.l2_norm_clip,
        noise_multiplier=run.noise_multiplier / np.sqrt(accumulated),
        num_microbatches=batches.rows,
        gradient_accumulation_steps=accumulated,
        learning_rate=plan.learning_rate * accumulated * batches.rows / run.batch_size,
        momentum=plan.momentum,
    )
    plain = optimizer._dp_sum_query
    optimizer._dp_sum_query = KeyedGaussianSum(plain._l2_norm_clip, plain._stddev, batches.seed)
    return optimizer


def train(
    model: tf.keras.Model,
    examples: np.ndarray,
    labels: np.ndarray,
    *,
    plan: TrainingPlan,
    run: DpSgdRun,
    delta: float,
    seed: int,
    validation: tuple[np.ndarray, np.ndarray] | None = None,
    on_epoch=None,
) -> list[EpochRecord]:
    """Train ``model`` in place with DP-SGD; returns the epoch records.

    Args:
        model: A built Keras model ending in logits, with no layer that mixes examples.
        examples: Private inputs, shape (n, ...), float.
        labels: Class indices, shape (n,), int.
        plan: Hyperparameters.
        run: What is accounted, from :meth:`TrainingPlan.calibrated`; its ``examples`` must be n.
        delta: δ at which the epoch records state ε.
        seed: Seed of sampling, noise and dropout. A published seed makes a run reproducible and its
            guarantee a demonstration; take :func:`tfprivacy_lab.dp.sampling.fresh_seed` to mean it.
        validation: Held-out inputs and labels; their accuracy is not covered by the guarantee.
        on_epoch: Called with each EpochRecord.

    Returns:
        One record an epoch. The last one's ε is the run's.

    Raises:
        InputError: if shapes do not fit, values are not finite, labels are no class indices, the model
            mixes examples, or the weights overflow.

    Guarantee: add-or-remove-one (ε, δ)-DP of all iterates, for the ε of ``run`` (Abadi et al. 2016,
    Alg. 1). Not covered: TensorFlow's Philox noise is not cryptographic, and floating-point Gaussians
    have known gaps (Mironov 2012); validation figures; hyperparameters tuned on the same examples.
    """
    check_delta(delta)
    examples, labels = _check_arguments(model, examples, labels, run, plan)
    batches = PoissonBatches(run.examples, run.batch_size, run.steps, plan.physical_batch_size, seed)
    # Dropout and the like: a seed of their own, from which that of the noise does not follow.
    tf.keras.utils.set_random_seed(int(np.random.SeedSequence(seed, spawn_key=(1,)).generate_state(1)[0]))
    model.compile(
        optimizer=dp_sgd_optimizer(run, plan, batches),
        loss=tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="none"),
    )
    records, averages, step = [], [], 0
    for epoch in range(1, plan.epochs + 1):
        start, end = time.perf_counter(), steps_for(run.examples, run.batch_size, epoch)
        model.fit(_physical_batches(batches, examples, labels, step, end), verbose=0)
        step = end
        _check_weights_finite(model, epoch)
        accuracy = None if validation is None else evaluate_accuracy(model, *validation)
        record = EpochRecord(epoch, step, epsilon_after(run, step, delta), accuracy, time.perf_counter() - start)
        records.append(record)
        if plan.epochs - epoch < round(plan.epochs * plan.average_last, 9):
            averages.append(model.get_weights())
        if on_epoch is not None:
            on_epoch(record)
    if averages:
        model.set_weights([np.mean(weights, axis=0) for weights in zip(*averages, strict=True)])
    return records


def evaluate_accuracy(model: tf.keras.Model, examples: np.ndarray, labels: np.ndarray) -> float:
    """Fraction of examples whose largest logit is at the label."""
    logits = model.predict(examples, batch_size=2048, verbose=0)
    return float(np.mean(np.argmax(logits, axis=1) == labels))


def _physical_batches(batches, examples, labels, first, last):
    """The physical batches of logical steps first..last-1 as a tf.data.Dataset of fixed shapes."""
    rows = batches.rows

    def generate():
        for step in range(first, last):
            indices, weights = batches.layout(step)
            for part, weight in zip(indices, weights, strict=True):
                yield examples[part], labels[part], weight

    signature = (
        tf.TensorSpec((rows, *examples.shape[1:]), tf.float32),
        tf.TensorSpec((rows,), tf.int64),
        tf.TensorSpec((rows,), tf.float32),
    )
    dataset = tf.data.Dataset.from_generator(generate, output_signature=signature)
    count = (last - first) * batches.accumulation_steps
    return dataset.apply(tf.data.experimental.assert_cardinality(count)).prefetch(2)


def _check_arguments(model, examples, labels, run, plan):
    """Refuse what would run and void the guarantee; returns float32 examples and int64 labels."""
    if np.shape(examples)[:1] != (run.examples,) or np.shape(labels) != (run.examples,):
        raise InputError(
            f"Expected examples and labels for run.examples={run.examples}, got shapes "
            f"{np.shape(examples)} and {np.shape(labels)}."
        )
    if plan.batch_size != run.batch_size:
        raise InputError(f"Expected plan.batch_size={plan.batch_size} to be run.batch_size={run.batch_size}.")
    if steps_for(run.examples, run.batch_size, plan.epochs) != run.steps:
        raise InputError(f"Expected the steps of epochs={plan.epochs}, got run.steps={run.steps}.")
    examples, labels = np.asarray(examples), np.asarray(labels)
    if examples.dtype.kind not in "fiu":
        raise InputError(f"Expected examples to hold real numbers, got dtype {examples.dtype}.")
    with np.errstate(over="ignore"):
        examples = examples.astype(np.float32, copy=False)
    check_all_finite("examples", examples)
    try:
        shape = tuple(model(examples[:1], training=False).shape)
    except Exception as error:
        raise InputError(f"Model {model.name!r} does not take examples of shape {examples.shape[1:]}.") from error
    if len(shape) != 2:
        raise InputError(f"Expected model {model.name!r} to give logits (n, classes), got shape {shape}.")
    wanted = f"Expected labels to be whole numbers from 0 to {shape[1] - 1}"
    if labels.dtype.kind not in "iu":
        raise InputError(f"{wanted}, got dtype {labels.dtype}.")
    if labels.min() < 0 or labels.max() >= shape[1]:
        raise InputError(f"{wanted}, got labels from {labels.min()} to {labels.max()}.")
    check_model_is_per_example(model)
    labels = labels.astype(np.int64, copy=False)
    _check_gradients_are_per_example(model, examples[:8], labels[:8])
    return examples, labels


def _check_gradients_are_per_example(model, examples, labels):
    """Refuse a model whose gradient for the first example moves with another example, by any layer."""
    inputs = tf.convert_to_tensor(examples)
    with tf.GradientTape() as outer:
        outer.watch(inputs)
        with tf.GradientTape() as inner:
            logits = model(inputs, training=True)
            loss = tf.keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)[0]
        gradients = inner.gradient(loss, model.trainable_variables, unconnected_gradients="zero")
        size = tf.add_n([tf.reduce_sum(gradient**2) for gradient in gradients])
    reached = outer.gradient(size, inputs, unconnected_gradients="zero")
    if np.any(np.abs(reached[1:]) > 0):
        raise InputError(
            f"Model {model.name!r} mixes the examples of a batch: one example's gradient depends on another's "
            "values, so clipping bounds nothing; remove the layer that computes across the first axis."
        )


def _check_weights_finite(model, epoch):
    """Clipping cannot stop an overflow inside one gradient; such weights are of no use to anyone."""
    if not all(np.isfinite(weights).all() for weights in model.get_weights()):
        raise InputError(
            f"The weights overflowed in epoch {epoch}: the examples are too large, or the learning rate is; "
            "scale the examples to about 1."
        )


def check_model_is_per_example(model: tf.keras.Model) -> None:
    """Refuse models in which one example's gradient depends on another, or losses of no example.

    Raises:
        InputError: naming the layer.
    """
    for layer in model._flatten_layers(include_self=False, recursive=True):
        mixes = isinstance(layer, _BatchNormalizationBase)
        if mixes and (layer.trainable or layer.trainable_weights):
            raise InputError(
                f"Layer {layer.name!r} is a BatchNormalization in training: it mixes the examples of a batch, so "
                "clipping bounds nothing; use GroupNormalization or freeze the layer."
            )
    if model.losses:
        raise InputError(
            f"Model {model.name!r} adds {len(model.losses)} loss terms that belong to no example (regularisers); "
            "they would be clipped with every example: remove them."
        )
