"""TF Privacy's DPKerasSGDOptimizer, set so that a logical batch of any size gets exactly its noise."""

from __future__ import annotations

import dp_accounting
import keras
import numpy as np
import tensorflow as tf

from tfprivacy_lab import tf_privacy
from tfprivacy_lab.checks import InputError
from tfprivacy_lab.dp.accounting.gaussian import DpSgdRun
from tfprivacy_lab.dp.plan import TrainingPlan
from tfprivacy_lab.dp.sampling import PoissonBatches
from tfprivacy_lab.dp.training.record import StepKind
from tfprivacy_lab.dp.training.reference_checks import check_sgd, noise_generator
from tfprivacy_lab.models.keras_internals import raw

_WHAT = "DP-SGD by DPKerasSGDOptimizer"
_GaussianSumQuery = tf_privacy.load("dp_query.gaussian_query", _WHAT).GaussianSumQuery
DPKerasSGDOptimizer = tf_privacy.sgd_classes(_WHAT)[0]


class KeyedGaussianSum(_GaussianSumQuery):
    """TF Privacy's clipped sum, with noise from a generator that is keyed by the whole seed.

    TF Privacy's own draws from TensorFlow's global generator, which cuts its seed to 31 bits: few enough
    to try each one against the released weights. This one also goes on where it was if Keras retraces, and
    examples whose gradient is not finite take no part: TF Privacy's clip lets them through.
    """

    def __init__(self, l2_norm_clip: float, stddev: float, generator: tf.random.Generator):
        super().__init__(l2_norm_clip, stddev)
        self._generator = generator

    def preprocess_record(self, params, record):
        """The clipped gradient, or zeros for one that is not finite."""
        flat = [tf.convert_to_tensor(part) for part in tf.nest.flatten(record)]
        finite = tf.math.is_finite(tf.linalg.global_norm(flat))
        kept = [tf.where(finite, part, tf.zeros_like(part)) for part in flat]
        return super().preprocess_record(params, tf.nest.pack_sequence_as(record, kept))

    def get_noised_result(self, sample_state, global_state):
        """The sum with fresh noise on every coordinate."""

        def add_noise(total):
            return total + self._generator.normal(tf.shape(total), stddev=global_state.stddev, dtype=total.dtype)

        event = dp_accounting.GaussianDpEvent(self._stddev / self._l2_norm_clip)
        return tf.nest.map_structure(add_noise, sample_state), global_state, event


def dp_sgd_optimizer(
    run: DpSgdRun, plan: TrainingPlan, batches: PoissonBatches, generator: tf.random.Generator | None = None
):
    r"""TF Privacy's optimizer, set so that each logical batch gets noise of exactly σC once.

    A logical batch arrives as k physical ones of P rows. The optimizer adds noise at each, so each gets
    :math:`\sigma C / \sqrt{k}`: the k independent draws sum to :math:`\sigma C`, and only the sum is
    applied. It averages over k·P rows, padding included; the learning rate is scaled by kP/B, which
    makes the step the noisy sum over the expected batch size B, a constant that depends on no data.

    Args:
        run: What is accounted.
        plan: Clip, learning rate and momentum.
        batches: The fixed shapes that hold every logical batch.
        generator: Of the noise, if an earlier optimizer of the same seed drew from it; None begins it.
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
    generator = noise_generator(batches.seed) if generator is None else generator
    optimizer._dp_sum_query = KeyedGaussianSum(plain._l2_norm_clip, plain._stddev, generator)
    return optimizer


def reference_optimizer(
    sgd: keras.optimizers.Optimizer,
    run: DpSgdRun,
    l2_norm_clip: float,
    batches: PoissonBatches,
    generator: tf.random.Generator,
):
    """The DPKerasSGDOptimizer that steps as ``sgd`` would by the noisy mean."""
    rate, momentum = float(sgd.learning_rate.numpy()), float(sgd.momentum or 0.0)
    plan = TrainingPlan(run.batch_size, 1, l2_norm_clip, rate, momentum)
    return dp_sgd_optimizer(run, plan, batches, generator)


class ReferenceSteps:
    """Logical steps by DPKerasSGDOptimizer, a physical batch at a time, for one call of ``fit``.

    The learning rate is the SGD optimizer's at every step, and the steps are counted there.

    Args:
        sgd: The SGD optimizer to step as.
        run: What is accounted; its steps are those of all calls up to the end of this one.
        l2_norm_clip: Clipping norm C.
        batches: The fixed shapes that hold every logical batch.
        variables: The trainable weights.
        generator: Of the noise; the same for all calls of a model, or their noise would cancel.
        before: The steps of an earlier call, whose momentum goes on.

    Raises:
        InputError: if the SGD optimizer is set or was used for steps that this cannot go on with.
    """

    def __init__(self, sgd, run, l2_norm_clip: float, batches: PoissonBatches, variables, generator, before=None):
        check_sgd(sgd)
        if before is None and int(sgd.iterations.numpy()):
            raise InputError(
                f"The optimizer is at step {int(sgd.iterations.numpy())} already: engine='reference' cannot go on from "
                "its state; compile with a new optimizer."
            )
        self._sgd, self._optimizer = sgd, reference_optimizer(sgd, run, l2_norm_clip, batches, generator)
        variables = raw(variables)
        tf_privacy.create_slots(self._optimizer, variables)
        self._rows, self._pieces, self._variables = batches.rows, batches.accumulation_steps, variables
        self.physical_batch_size = self._rows * self._pieces
        # Of the noisy mean over so many rows, to the noisy sum over the expected batch size.
        self._rate_scale = self.physical_batch_size / run.batch_size
        if before is not None and self._optimizer._momentum:
            for variable in variables:
                velocity = before._optimizer.get_slot(variable, "momentum")
                self._optimizer.get_slot(variable, "momentum").assign(velocity)

    def step(self, losses_of, x, y, weights) -> None:
        """One logical batch of ``physical_batch_size`` rows; ``losses_of(x, y)`` gives losses (rows,)."""
        rate = tf.convert_to_tensor(self._sgd.learning_rate)
        self._optimizer.learning_rate.assign(rate * self._rate_scale)

        def body(piece):
            start = piece * self._rows
            part = tf.nest.map_structure(lambda a: a[start : start + self._rows], (x, y, weights))
            part = tf.nest.map_structure(lambda a: tf.ensure_shape(a, (self._rows, *a.shape[1:])), part)
            _minimize(self._optimizer, self._variables, lambda: losses_of(part[0], part[1]) * part[2])
            return [piece + 1]

        tf.while_loop(lambda piece: piece < self._pieces, body, [tf.constant(0)], parallel_iterations=1)
        self._sgd.iterations.assign_add(1)


def _minimize(optimizer, variables, compute_losses):
    """One physical batch; ``compute_losses()`` gives weighted losses (rows,)."""
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(variables)
        losses = compute_losses()
    optimizer.minimize(losses, variables, tape=tape)


def physical_steps(model: keras.Model, optimizer, losses_of):
    """What runs an optimizer of TF Privacy over physical batches, as ``fit`` of Keras 2 does.

    Args:
        model: The model whose trainable weights it steps.
        optimizer: Of TF Privacy.
        losses_of: From (x, y) to losses (rows,).

    Returns:
        A function of a dataset of (x, y, weights).
    """
    variables = raw(model.trainable_variables)
    tf_privacy.create_slots(optimizer, variables)

    @tf.function(autograph=False)
    def step(x, y, weights):
        _minimize(optimizer, variables, lambda: losses_of(x, y) * weights)

    def run(dataset):
        for batch in dataset:
            step(*batch)

    return run


def begin_reference(
    sgd, kind: StepKind, l2_norm_clip, last, rows, seed, variables, generator, before
) -> ReferenceSteps:
    """The steps of one call of ``fit``, up to step ``last``, in physical batches of ``rows`` at most."""
    batches = PoissonBatches(kind.examples, kind.batch_size, last, rows, seed)
    run = DpSgdRun(kind.examples, kind.batch_size, kind.noise_multiplier, last)
    return ReferenceSteps(sgd, run, l2_norm_clip, batches, variables, generator, before)
