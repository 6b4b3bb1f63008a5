"""DP-SGD with TF Privacy's DPKerasSGDOptimizer, done as the accountant assumes.

One microbatch an example, a loss vector with one entry an example, Poisson batches, and the noisy sum
divided by the expected batch size: four things that ``model.fit`` with TF Privacy leaves to its user.
"""

from __future__ import annotations

import time

import numpy as np
import tensorflow as tf
from tensorflow_privacy.privacy.optimizers.dp_optimizer_keras import DPKerasSGDOptimizer

from tfprivacy_lab.checks import InputError, check_all_finite
from tfprivacy_lab.dp.accounting import DpSgdRun, epsilon_after, steps_for
from tfprivacy_lab.dp.plan import EpochRecord, TrainingPlan
from tfprivacy_lab.dp.sampling import PoissonBatches


def dp_sgd_optimizer(run: DpSgdRun, plan: TrainingPlan, batches: PoissonBatches) -> DPKerasSGDOptimizer:
    r"""TF Privacy's optimizer, set so that each logical batch gets noise of exactly σC once.

    A logical batch arrives as k physical ones of P rows. The optimizer adds noise at each, so each gets
    :math:`\sigma C / \sqrt{k}`: the k independent draws sum to :math:`\sigma C`, and only the sum is
    applied. It averages over k·P rows, padding included; the learning rate is scaled by kP/B, which
    makes the step the noisy sum over the expected batch size B, a constant that depends on no data.
    """
    accumulated = batches.accumulation_steps
    return DPKerasSGDOptimizer(
        l2_norm_clip=plan.l2_norm_clip,
        noise_multiplier=run.noise_multiplier / np.sqrt(accumulated),
        num_microbatches=batches.rows,
        gradient_accumulation_steps=accumulated,
        learning_rate=plan.learning_rate * accumulated * batches.rows / run.batch_size,
        momentum=plan.momentum,
    )


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
        InputError: if shapes do not fit, values are not finite, or the model mixes examples.

    Guarantee: add-or-remove-one (ε, δ)-DP of all iterates, for the ε of ``run`` (Abadi et al. 2016,
    Alg. 1). Not covered: TensorFlow's Philox noise is not cryptographic, and floating-point Gaussians
    have known gaps (Mironov 2012); validation figures; hyperparameters tuned on the same examples.
    """
    _check_arguments(model, examples, labels, run, plan)
    batches = PoissonBatches(run.examples, run.batch_size, run.steps, plan.physical_batch_size, seed)
    tf.keras.utils.set_random_seed(seed % 2**32)
    tf.random.set_seed(seed)
    model.compile(
        optimizer=dp_sgd_optimizer(run, plan, batches),
        loss=tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="none"),
    )
    records, averages, step = [], [], 0
    for epoch in range(1, plan.epochs + 1):
        start, end = time.perf_counter(), steps_for(run.examples, run.batch_size, epoch)
        model.fit(_physical_batches(batches, examples, labels, step, end), verbose=0)
        step = end
        accuracy = None if validation is None else evaluate_accuracy(model, *validation)
        record = EpochRecord(epoch, step, epsilon_after(run, step, delta), accuracy, time.perf_counter() - start)
        records.append(record)
        if epoch > plan.epochs * (1 - plan.average_last):
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
    """Refuse what would run and void the guarantee."""
    if len(examples) != run.examples or np.shape(labels) != (run.examples,):
        raise InputError(
            f"Expected examples and labels for run.examples={run.examples}, got shapes "
            f"{np.shape(examples)} and {np.shape(labels)}."
        )
    if plan.batch_size != run.batch_size:
        raise InputError(f"Expected plan.batch_size={plan.batch_size} to be run.batch_size={run.batch_size}.")
    check_all_finite("examples", np.asarray(examples))
    if steps_for(run.examples, run.batch_size, plan.epochs) != run.steps:
        raise InputError(f"Expected the steps of epochs={plan.epochs}, got run.steps={run.steps}.")
    check_model_is_per_example(model)


def check_model_is_per_example(model: tf.keras.Model) -> None:
    """Refuse models in which one example's gradient depends on another, or losses of no example.

    Raises:
        InputError: naming the layer.
    """
    for layer in model._flatten_layers(include_self=False, recursive=True):
        mixes = isinstance(layer, tf.keras.layers.BatchNormalization)
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
