"""SGD under Laplace noise: per-example clipping in the L1 norm, for a guarantee with δ = 0.

The document's section 3.1 offers Laplace or Gaussian noise on gradients. Laplace noise buys a pure ε, and pays
for it twice: the L1 norm of a gradient grows with the number of weights, and pure ε adds up over steps
without the square root. It suits few weights, large batches and few steps.

Noise is drawn **once a logical batch**. Gaussian noise may be drawn in k parts of σ/√k each; parts of a Laplace
variable are not Laplace, and a sum of k smaller draws would be no ε-DP mechanism at the stated ε.
"""

from __future__ import annotations

import collections

import dp_accounting
import keras
import numpy as np
import tensorflow as tf

from tfprivacy_lab import tf_privacy
from tfprivacy_lab.checks import check_finite_number, check_positive_int
from tfprivacy_lab.dp.accounting.gaussian import check_delta
from tfprivacy_lab.dp.accounting.laplace import LaplacePlan, LaplaceRun, laplace_epsilon_after
from tfprivacy_lab.dp.mechanisms.secure_noise import secure_laplace
from tfprivacy_lab.dp.plan import EpochRecord
from tfprivacy_lab.dp.sampling import PoissonBatches
from tfprivacy_lab.dp.seed_streams import SeedStream
from tfprivacy_lab.dp.training import lineage, planned
from tfprivacy_lab.dp.training.reference import physical_steps

_WHAT = "SGD under Laplace noise"
_SumAggregationDPQuery = tf_privacy.load("dp_query.dp_query", _WHAT).SumAggregationDPQuery

# Rounding to float32 can lengthen a clipped record by 2^-23; clipping to this much less keeps the bound.
_ROUNDING = 1.0 - 1e-6


class LaplaceSumQuery(_SumAggregationDPQuery):
    r"""A TF Privacy query: clip records in the L1 norm, sum, add Laplace noise.

    :math:`\sum_i g_i \min(1, C / \|g_i\|_1) + \mathrm{Laplace}(b)` on every coordinate. A record whose norm is
    not finite counts as zero. For TF Privacy's generic Keras optimizers
    (``dp_optimizer_keras.make_keras_generic_optimizer_class``); with gradient accumulation take
    :func:`laplace_sgd_optimizer`, which draws noise once a logical batch and not once a physical one.

    Args:
        l1_norm_clip: C > 0, in gradient units.
        scale: Scale b of the noise > 0; a step is (C/b)-DP before sampling.
        seed: Whole number >= 0 that keys a Philox generator, for tests and teaching or kept secret; None
            takes noise from the operating system's cryptographic generator.

    Raises:
        InputError: naming the argument.

    Guarantee: one record added or removed moves the sum by at most C in the L1 norm. Not covered: noise in
    single precision, see :mod:`tfprivacy_lab.dp.mechanisms.secure_noise`.
    """

    _GlobalState = collections.namedtuple("_GlobalState", ["l1_norm_clip", "scale"])

    def __init__(self, l1_norm_clip: float, scale: float, seed: int | None = None):
        self._l1_norm_clip = check_finite_number("l1_norm_clip", l1_norm_clip, above=0)
        self._scale = check_finite_number("scale", scale, above=0)
        self._generator = None if seed is None else _philox(check_positive_int("seed", seed, at_least=0))
        # Whether the next result is released, and so needs noise; a tensor, asked for within each step.
        self._is_released = lambda: tf.constant(True)

    def draw_noise_when(self, is_released) -> None:
        """Add noise only to results of which ``is_released()``, a boolean scalar tensor, is true."""
        self._is_released = is_released

    def initial_global_state(self):
        """L1 clipping norm and scale of the noise."""
        return self._GlobalState(tf.constant(self._l1_norm_clip), tf.constant(self._scale))

    def derive_sample_params(self, global_state):
        """The L1 clipping norm."""
        return global_state.l1_norm_clip

    def preprocess_record(self, params, record):
        """The record, scaled down to L1 norm C if it is longer."""
        clip = tf.cast(params, tf.float64) * _ROUNDING
        norm = tf.add_n([tf.reduce_sum(tf.abs(tf.cast(part, tf.float64))) for part in tf.nest.flatten(record)])
        factor = tf.where(tf.math.is_finite(norm), clip / tf.maximum(norm, clip), 0.0)
        return tf.nest.map_structure(lambda part: tf.math.multiply_no_nan(part, tf.cast(factor, part.dtype)), record)

    def get_noised_result(self, sample_state, global_state):
        """The sum, with fresh noise on every coordinate if it is released."""

        def noised():
            return tf.nest.map_structure(lambda total: total + self._noise(total, global_state.scale), sample_state)

        result = tf.cond(self._is_released(), noised, lambda: tf.nest.map_structure(tf.identity, sample_state))
        return result, global_state, dp_accounting.LaplaceDpEvent(self._scale / self._l1_norm_clip)

    def _noise(self, total, scale):
        """Laplace noise of the shape and dtype of ``total``."""
        if self._generator is None:
            flat = tf.numpy_function(lambda shape: secure_laplace(shape, 1.0), [tf.shape(total)], tf.float64)
            standard = tf.ensure_shape(flat, total.shape)
        else:
            # A Laplace variable is the difference of two exponential ones; 1 - u is never zero.
            uniforms = self._generator.uniform(tf.concat([[2], tf.shape(total)], 0), dtype=tf.float64)
            logarithms = tf.math.log1p(-uniforms)
            standard = logarithms[0] - logarithms[1]
        return tf.cast(tf.cast(scale, tf.float64) * standard, total.dtype)


def _philox(seed: int) -> tf.random.Generator:
    """A generator keyed by the whole seed; TensorFlow's own seeds would cut it to 31 bits."""
    state = SeedStream.LAPLACE_NOISE.sequence(seed).generate_state(3, np.uint64)
    return tf.random.Generator.from_state(state.view(np.int64), alg="philox")


def laplace_sgd_optimizer(run: LaplaceRun, plan: LaplacePlan, batches: PoissonBatches, *, secure_noise: bool = False):
    r"""TF Privacy's generic optimizer with Laplace noise, of scale b exactly once a logical batch.

    A logical batch arrives as k physical ones of P rows. TF Privacy asks the query for a result at each, and
    applies their mean at every k-th; the query adds noise at that one alone, by the very test that the
    optimizer applies by. The learning rate is scaled by kP/B, which makes the step the noisy sum over the
    expected batch size B.

    Args:
        run: What is accounted; its noise multiplier times ``plan.l1_norm_clip`` is the scale b.
        plan: Hyperparameters.
        batches: The batches; their seed keys the noise.
        secure_noise: Draw from the operating system's generator instead; then nothing is reproducible.
    """
    accumulated = batches.accumulation_steps
    scale = run.noise_multiplier * plan.l1_norm_clip
    query = LaplaceSumQuery(plan.l1_norm_clip, scale, None if secure_noise else batches.seed)
    optimizer = tf_privacy.sgd_classes(_WHAT)[1](
        dp_sum_query=query,
        num_microbatches=batches.rows,
        gradient_accumulation_steps=accumulated,
        learning_rate=plan.learning_rate * accumulated * batches.rows / run.batch_size,
        momentum=plan.momentum,
    )
    query.draw_noise_when(lambda: tf.equal(tf.math.floormod(optimizer.iterations + 1, accumulated), 0))
    return optimizer


def train_laplace(
    model: keras.Model,
    examples: np.ndarray,
    labels: np.ndarray,
    *,
    plan: LaplacePlan,
    run: LaplaceRun,
    delta: float,
    seed: int,
    secure_noise: bool = False,
    validation: tuple[np.ndarray, np.ndarray] | None = None,
    on_epoch=None,
) -> list[EpochRecord]:
    """Train ``model`` in place under Laplace noise; returns the epoch records.

    Args:
        model: A built Keras model ending in logits, with no layer that mixes examples.
        examples: Private inputs, shape (n, ...), float.
        labels: Class indices, shape (n,), int.
        plan: Hyperparameters.
        run: What is accounted, from :meth:`LaplacePlan.calibrated`; its ``examples`` must be n.
        delta: δ at which the epoch records state ε, in [0, 1); 0 for the pure ε.
        seed: Seed of sampling, noise and dropout, as in :func:`tfprivacy_lab.dp.training.planned.train`.
        secure_noise: Draw noise from the operating system's generator; the seed then decides the rest.
        validation: Held-out inputs and labels; their accuracy is not covered by the guarantee.
        on_epoch: Called with each EpochRecord.

    Returns:
        One record an epoch. The last one's ε is the run's.

    Raises:
        InputError: if shapes do not fit, values are not finite, labels are no class indices, the model
            mixes examples, or the weights overflow.

    Guarantee: add-or-remove-one ``run.pure_epsilon``-DP of all iterates, δ = 0. Not covered: as
    :func:`tfprivacy_lab.dp.training.planned.train`; single precision alone voids δ = 0 in the letter (Mironov 2012).
    """
    if delta != 0:
        check_delta(delta)
    examples, labels = planned.checked_arguments(model, examples, labels, run, plan)
    batches = PoissonBatches(run.examples, run.batch_size, run.steps, plan.physical_batch_size, seed)
    planned.seed_layers(seed)
    optimizer = laplace_sgd_optimizer(run, plan, batches, secure_noise=secure_noise)
    steps = physical_steps(model, optimizer, lambda x, y: planned.losses_of(model, (x, y), True))

    pure = f"{run.steps} steps under Laplace noise by train_laplace, of pure epsilon {run.pure_epsilon:.4g}"
    lineage.mark(model, lineage.FinishedFit([], seed, (pure,)))

    def run_steps(first, last):
        steps(planned.physical_batches(batches, examples, labels, first, last))

    def epsilon_at(step):
        return laplace_epsilon_after(run, step, delta)

    return planned.run_epochs(model, plan, run, run_steps, epsilon_at, validation, on_epoch)
