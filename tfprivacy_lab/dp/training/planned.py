"""DP-SGD with TF Privacy's DPKerasSGDOptimizer, done as the accountant assumes.

One microbatch an example, a loss vector with one entry an example, Poisson batches, and the noisy sum
divided by the expected batch size: four things that ``model.fit`` with TF Privacy leaves to its user.
"""

from __future__ import annotations

import time

import keras
import numpy as np
import tensorflow as tf

from tfprivacy_lab.checks import InputError, check_all_finite, check_choice, check_positive_int
from tfprivacy_lab.dp.accounting.gaussian import DpSgdRun, check_delta, epsilon_after, steps_for
from tfprivacy_lab.dp.accounting.phases import Phase
from tfprivacy_lab.dp.clipping import ghost
from tfprivacy_lab.dp.plan import EpochRecord, TrainingPlan
from tfprivacy_lab.dp.sampling import PoissonBatches
from tfprivacy_lab.dp.seed_streams import SeedStream
from tfprivacy_lab.dp.training import lineage
from tfprivacy_lab.dp.training.private_model import PrivateModel
from tfprivacy_lab.dp.training.reference_checks import check_jacobian
from tfprivacy_lab.dp.trials import isolation
from tfprivacy_lab.dp.trials.rows import rows_to_try
from tfprivacy_lab.dp.validation.models import without_figures
from tfprivacy_lab.dp.validation.preprocessing import warn_of_statistics
from tfprivacy_lab.models.architectures import outputs


def train(
    model: keras.Model,
    examples: np.ndarray,
    labels: np.ndarray,
    *,
    plan: TrainingPlan,
    run: DpSgdRun,
    delta: float,
    seed: int,
    validation: tuple[np.ndarray, np.ndarray] | None = None,
    on_epoch=None,
    engine: str = "reference",
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
        engine: "reference": TF Privacy's DPKerasSGDOptimizer, gradients by ``tape.jacobian``. "fast": the
            same by book-keeping (:class:`tfprivacy_lab.dp.training.private_model.PrivateModel`), on the same batches.

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
    check_positive_int("seed", seed, at_least=0)
    check_choice("engine", engine, ENGINES)
    examples, labels = checked_arguments(model, examples, labels, run, plan, tried=engine == "reference")
    seed_layers(seed)
    run_steps = ENGINES[engine](model, examples, labels, plan, run, delta, seed)
    return run_epochs(model, plan, run, run_steps, lambda step: epsilon_after(run, step, delta), validation, on_epoch)


def seed_layers(seed: int) -> None:
    """Seed dropout and the like, by a seed of their own from which that of the noise does not follow."""
    keras.utils.set_random_seed(int(SeedStream.LAYERS.sequence(seed).generate_state(1)[0]))


def run_epochs(model, plan, run, run_steps, epsilon_at, validation=None, on_epoch=None) -> list[EpochRecord]:
    """Epoch after epoch of ``run_steps(first, last)``: records, finite weights, the average of the last ones.

    Args:
        model: The model that the steps train.
        plan: Has ``epochs`` and ``average_last``.
        run: Has ``examples`` and ``batch_size``.
        run_steps: Does the logical steps first..last-1.
        epsilon_at: ε after so many steps.
        validation: As for :func:`train`.
        on_epoch: As for :func:`train`.
    """
    records, averages, step = [], [], 0
    for epoch in range(1, plan.epochs + 1):
        start, end = time.perf_counter(), steps_for(run.examples, run.batch_size, epoch)
        try:
            run_steps(step, end)
            step = end
            _check_weights_finite(model, epoch)
            accuracy = None if validation is None else evaluate_accuracy(model, *validation)
        finally:
            without_figures(model)  # A mean of private examples would be exported with the model.
        records.append(EpochRecord(epoch, step, epsilon_at(step), accuracy, time.perf_counter() - start))
        if plan.epochs - epoch < round(plan.epochs * plan.average_last, 9):
            averages.append(model.get_weights())
        if on_epoch is not None:
            on_epoch(records[-1])
    if averages:
        model.set_weights([np.mean(weights, axis=0) for weights in zip(*averages, strict=True)])
    return records


def _reference(model, examples, labels, plan, run, delta, seed):
    """Steps by DPKerasSGDOptimizer."""
    from tfprivacy_lab.dp.training.reference import dp_sgd_optimizer, physical_steps

    check_jacobian(model)
    batches = PoissonBatches(run.examples, run.batch_size, run.steps, plan.physical_batch_size, seed)
    steps = physical_steps(model, dp_sgd_optimizer(run, plan, batches), lambda x, y: losses_of(model, (x, y), True))
    done = Phase(run.examples, run.batch_size, run.noise_multiplier, "poisson", run.steps)
    lineage.mark(model, lineage.FinishedFit([done], seed))
    return lambda first, last: steps(physical_batches(batches, examples, labels, first, last))


def _fast(model, examples, labels, plan, run, delta, seed):
    """Steps by book-keeping; physical batches as memory allows."""
    private = PrivateModel(
        model, l2_norm_clip=plan.l2_norm_clip, noise_multiplier=run.noise_multiplier, seed=seed, delta=delta
    )
    private.compile(
        optimizer=keras.optimizers.SGD(plan.learning_rate, plan.momentum),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )

    def run_steps(first, last):
        private.fit(examples, labels, run.batch_size, steps_per_epoch=last - first, verbose=0)

    return run_steps


ENGINES = {"reference": _reference, "fast": _fast}


def evaluate_accuracy(model: keras.Model, examples: np.ndarray, labels: np.ndarray) -> float:
    """Fraction of examples whose largest logit is at the label."""
    logits = outputs(model, examples)
    return float(np.mean(np.argmax(logits, axis=1) == labels))


def physical_batches(batches, examples, labels, first, last):
    """The physical batches of logical steps first..last-1 as a tf.data.Dataset of fixed shapes."""
    kinds = (tf.float32, tf.int64)

    @tf.autograph.experimental.do_not_convert
    def layout(step):
        shape = (batches.accumulation_steps, batches.rows)
        found = tf.numpy_function(batches.layout, [step], (tf.int64, tf.float32))
        return [tf.ensure_shape(part, shape) for part in found]

    @tf.autograph.experimental.do_not_convert
    def gathered(places, weights):
        x, y = tf.numpy_function(lambda places: (examples[places], labels[places]), [places], kinds)
        return tf.ensure_shape(x, (batches.rows, *examples.shape[1:])), tf.ensure_shape(y, (batches.rows,)), weights

    # Not from_generator, see examples.batches.
    dataset = tf.data.Dataset.range(first, last).map(layout).unbatch().map(gathered)
    count = (last - first) * batches.accumulation_steps
    return dataset.apply(tf.data.experimental.assert_cardinality(count)).prefetch(2)


def checked_arguments(model, examples, labels, run, plan, *, tried=True):
    """Refuse what would run and void the guarantee; returns float32 examples and int64 labels.

    Without ``tried``, whether the model keeps examples apart, and holds statistics of them, is left to who trains it.
    """
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
    ghost.check_no_batch_normalization(model)
    _check_no_added_losses(model)
    labels = labels.astype(np.int64, copy=False)
    if tried:
        warn_of_statistics(model)
        of_batch = lambda batch, training: losses_of(model, batch, training)  # noqa: E731
        few = rows_to_try((tf.convert_to_tensor(examples), tf.convert_to_tensor(labels)))
        isolation.check_gradients_are_per_example(model, of_batch, few)
    return examples, labels


def losses_of(model, batch, training):
    """Cross-entropy of each example, (rows,)."""
    logits = model(batch[0], training=training)
    return keras.losses.sparse_categorical_crossentropy(batch[1], logits, from_logits=True)


def _check_weights_finite(model, epoch):
    """Clipping cannot stop an overflow inside one gradient; such weights are of no use to anyone."""
    if not all(np.isfinite(weights).all() for weights in model.get_weights()):
        raise InputError(
            f"The weights overflowed in epoch {epoch}: the examples are too large, or the learning rate is; "
            "scale the examples to about 1."
        )


def _check_no_added_losses(model):
    """Refuse losses of no example: DPKerasSGDOptimizer would clip them with every one."""
    if model.losses:
        raise InputError(
            f"Model {model.name!r} adds {len(model.losses)} loss terms that belong to no example (regularisers); "
            "they would be clipped with every example: remove them."
        )
