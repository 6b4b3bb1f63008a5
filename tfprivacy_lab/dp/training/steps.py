r"""One logical step: clip every example's gradient, sum, add noise once, divide by the expected size."""

from __future__ import annotations

import keras
import tensorflow as tf

from tfprivacy_lab.checks import InputError, check_choice, check_finite_number
from tfprivacy_lab.dp.clipping import ghost
from tfprivacy_lab.dp.clipping.adaptive import QuantileClip, gradient_noise_multiplier
from tfprivacy_lab.dp.training.noise import GaussianNoise
from tfprivacy_lab.dp.training.record import StepKind
from tfprivacy_lab.dp.training.replicas import Replicas
from tfprivacy_lab.dp.trials.book_keeping import check_book_keeping

UNKNOWN_LAYERS = ("refuse", "slow")


class NoisySteps:
    r"""What turns a logical batch into a noisy mean gradient.

    Args:
        model: The model.
        l2_norm_clip: C > 0, or the :class:`tfprivacy_lab.dp.clipping.adaptive.QuantileClip` that C starts from and
            follows; each step then releases a noisy count too, and the gradients get the more noise that
            leaves the step's cost at ``noise_multiplier``.
        noise_multiplier: z of a whole step, the one that is accounted; >= 0.
        clipping_method: See :func:`tfprivacy_lab.dp.clipping.ghost.clip_factors`.
        unknown_layers: "refuse" or "slow".
        noise: The noise.
        replicas: Who else adds to the sum.

    Raises:
        InputError: naming the argument, or the layer.
    """

    def __init__(
        self,
        model: keras.Model,
        *,
        l2_norm_clip: float | QuantileClip,
        noise_multiplier: float,
        clipping_method: str,
        unknown_layers: str,
        noise: GaussianNoise,
        replicas: Replicas,
    ):
        self._model, self._noise, self._replicas = model, noise, replicas
        self._method = check_choice("clipping_method", clipping_method, ghost.METHODS)
        check_choice("unknown_layers", unknown_layers, UNKNOWN_LAYERS)
        self._unknown_layers = unknown_layers
        self.keep_books()
        self._quantile = l2_norm_clip if isinstance(l2_norm_clip, QuantileClip) else None
        if self._quantile is None:
            self._clip = check_finite_number("l2_norm_clip", l2_norm_clip, above=0)
            self._multiplier = check_finite_number("noise_multiplier", noise_multiplier, at_least=0)
        else:
            first = tf.VariableAggregation.ONLY_FIRST_REPLICA
            self._clip = tf.Variable(l2_norm_clip.l2_norm_clip, False, dtype=tf.float32, aggregation=first)
            self._multiplier = gradient_noise_multiplier(noise_multiplier, l2_norm_clip.count_stddev)

    @property
    def l2_norm_clip(self) -> float:
        """C as it is now."""
        return float(self._clip if self._quantile is None else self._clip.numpy())

    @property
    def adaptive_clip(self) -> float | None:
        """C as it is now if it adapts, for a checkpoint; None if it is fixed."""
        return None if self._quantile is None else self.l2_norm_clip

    def go_on_from(self, adaptive_clip: float) -> None:
        """Let a C that adapts go on from that of a checkpoint."""
        self._clip.assign(adaptive_clip)

    def keep_books(self) -> None:
        """Look at the model's layers anew: which are trained may have changed.

        Raises:
            InputError: naming the layer that cannot be trained so.
        """
        self.book_keeping = _book_keeping(self._model, self._unknown_layers)

    def check_books(self, losses_of, batch, **how) -> int:
        """Try book-keeping on a few examples; with ``unknown_layers="slow"``, leave it where it is not right.

        Args:
            losses_of: From (batch, training) to losses (n,).
            batch: Structure of tensors, (n, ...).
            **how: As :func:`tfprivacy_lab.dp.trials.book_keeping.check_book_keeping` takes them.

        Returns:
            Numbers of working memory that an example needs.

        Raises:
            InputError: naming the model, if its layers' rules do not hold.
        """
        if self.book_keeping is None:
            return 0
        try:
            return check_book_keeping(self.book_keeping, losses_of, batch, **how)
        except InputError:
            if self._unknown_layers == "refuse":
                raise
            self.book_keeping = None
            return 0

    def check_batches(self, batch_size: int, sampling: str) -> None:
        """The quantile's fraction is of the expected batch, and its noise is for Poisson sampling.

        Under shuffled batches an example that is zeroed stays in the count and may change sides, which moves the
        count by 1 and not by 1/2.

        Raises:
            InputError: if it is set for another.
        """
        if self._quantile is None:
            return
        if sampling != "poisson":
            raise InputError(f"QuantileClip is for sampling='poisson', got sampling={sampling!r}.")
        if self._quantile.batch_size != batch_size:
            raise InputError(
                f"Expected QuantileClip.batch_size to be batch_size={batch_size}, got {self._quantile.batch_size}."
            )

    def mean_gradient(self, forward, show, data, step: tf.Tensor, kind: StepKind) -> list[tf.Tensor]:
        """The noisy sum over the logical batch of all replicas, divided by its expected size.

        Args:
            forward: From (batch, training) to losses (rows,) and outputs.
            show: Called with losses, weights, labels and outputs of the examples, for metrics.
            data: x, y, weights (rows,) and the number of rows that hold an example.
            step: Number of the step; no two steps share noise.
            kind: Expected size, and how many rows to compute at a time.

        Returns:
            A gradient for each of the model's trainable variables.

        Guarantee: before the noise, one example moves the sum by at most C, and the centred count by 1/2.
        """
        clip = tf.convert_to_tensor(self._clip, tf.float32)
        total = self._sum_by_rows(lambda part, count: self._sum(forward, show, part, count, clip), data, kind)
        stddevs = [self._multiplier * clip] * len(total)
        if self._quantile is not None:
            stddevs[-1] = self._quantile.count_stddev
        noisy = self._replicas.noisy_sum(total, self._noise, step, stddevs)
        if self._quantile is not None:
            self._follow(noisy.pop(), clip)
        return [part / kind.batch_size for part in noisy]

    def _sum_by_rows(self, sum_of, data, kind):
        """``sum_of`` over the logical batch, as many rows at a time as ``kind`` says."""
        *batch, count = data
        if kind.rows is None:
            return sum_of(batch, count)
        height = tf.shape(batch[-1], tf.int64)[0]
        pieces = (height + kind.rows - 1) // kind.rows
        size = tf.constant(kind.rows, tf.int64) if kind.padded else (height + pieces - 1) // pieces

        def body(piece, total):
            start = piece * size
            part = tf.nest.map_structure(lambda a: a[start : start + size], batch)
            if kind.padded:
                part = tf.nest.map_structure(lambda a: tf.ensure_shape(a, (kind.rows, *a.shape[1:])), part)
            more = sum_of(part, tf.clip_by_value(count - start, 0, size))
            return piece + 1, [a + b for a, b in zip(total, more, strict=True)]

        zeros = [tf.zeros(variable.shape) for variable in self._model.trainable_variables]
        zeros += [] if self._quantile is None else [tf.zeros(())]
        start = (tf.constant(0, tf.int64), zeros)
        return tf.while_loop(lambda piece, _: piece < pieces, body, start, parallel_iterations=1)[1]

    def _sum(self, forward, show, part, count, clip):
        """The clipped sum of the first ``count`` rows, and their centred count; the others weigh nothing."""
        x, y, weights = part
        if self.book_keeping is None:
            one_loss = lambda one: forward(one, True)[0]  # noqa: E731
            total, norms, losses = ghost.clipped_sum_example_by_example(
                self._model, one_loss, (x, y), weights, clip, self._method
            )
            outputs = self._model(x, training=False)
        else:
            found = self.book_keeping.gradients(lambda: forward((x, y), True), weights)
            total, norms = found.clipped_sum(clip, self._method)
            losses, outputs = found.losses, found.extra
        show(losses[:count], weights[:count], y[:count], outputs[:count])
        if self._quantile is None:
            return total
        return [*total, tf.reduce_sum(tf.where(norms[:count] <= clip, 0.5, -0.5))]

    def _follow(self, noisy_count, clip):
        """Move C as :meth:`tfprivacy_lab.dp.clipping.adaptive.QuantileClip.updated` does."""
        rule = self._quantile
        fraction = tf.clip_by_value(noisy_count / rule.batch_size + 0.5, -1.0, 2.0)
        moved = clip * tf.exp(-rule.learning_rate * (fraction - rule.target_quantile))
        self._clip.assign(tf.clip_by_value(moved, rule.smallest, rule.largest))


def _book_keeping(model, unknown_layers) -> ghost.BookKeeping | None:
    """The model's book-keeping, or None where every example is to be differentiated alone."""
    ghost.check_layers_keep_examples_apart(model)
    try:
        return ghost.BookKeeping(model)
    except ghost.UnknownLayerError:
        if unknown_layers == "refuse":
            raise
        return None
