"""Whether a model keeps examples apart, found by trying it on a few: what clipping needs to bound anything."""

from __future__ import annotations

import warnings

import keras
import numpy as np
import tensorflow as tf

from tfprivacy_lab.checks import InputError
from tfprivacy_lab.dp.clipping.ghost import regularisation
from tfprivacy_lab.dp.trials.draws import RepeatableDraws
from tfprivacy_lab.dp.trials.row_gradients import reason, row_derivatives, row_gradients, size
from tfprivacy_lab.dp.trials.rows import companies, contents, gathered, magnitudes, other_numbers, other_places
from tfprivacy_lab.dp.trials.weights_left_alone import WeightsLeftAlone

# Of the gradient's norm: batches of another height are rounded otherwise.
_TOLERANCE = 3e-4
# Norms below this count as this: where predictions are sure, little but rounding is left.
_SMALL = 1e-2
# Rows of a trial's batch, at least: a row alone must have company, be it of its own kind.
_FEWEST = 4
# A gradient of less is lost in the rounding that comparisons allow for.
_TELLING = 1e-3


def outputs_of(model: keras.Model, x) -> tf.Tensor:
    """The model's outputs for a few examples.

    Raises:
        InputError: if it does not take such examples, or keeps them.
    """
    with RepeatableDraws(model) as draws:  # Keras' recurrent layers draw masks of dropout even where they use none.
        left_alone = WeightsLeftAlone(model, draws.states())
        try:
            outputs = model(x, training=False)
        except InputError:
            raise
        except Exception as error:
            shapes = ", ".join(str(tuple(a.shape[1:])) for a in tf.nest.flatten(x))
            raise InputError(
                f"Model {model.name!r} does not take x, examples of shape {shapes}: {reason(error)}."
            ) from error
        left_alone.check(lambda part: model(part, training=False), [x])
    return outputs


def check_gradients_are_per_example(model: keras.Model, losses_of, batch, *, height=None, eagerly=False) -> None:
    """Refuse a model in which an example's gradient in training has to do with other examples.

    The model runs as in ``fit``, in a graph, on rows that are there; a row's gradient is computed beside others, in
    another order, beside copies of itself, among fewer and among more, alone and elsewhere in the batch. Random layers
    draw the same numbers each time. It must stay what it is, and other rows' inputs must not reach it by derivative:
    either may see what the other cannot. All weights must be left as they are: what a layer notes of its inputs would
    be released without noise. Losses that layers add for a batch (``add_loss``) are refused too: they belong to no
    example.

    Args:
        model: The model; what the trial changes is restored.
        losses_of: From (batch, training) to losses (n,).
        batch: (inputs, labels) of tensors, few rows that differ: see
            :func:`.rows_to_try`. Of equal rows, or one, a trial sees by derivative, and
            whether it matters how many there are; a warning says so.
        height: Rows that ``fit`` computes at a time, if it is a fixed number; None if it varies.
        eagerly: Whether ``fit`` runs without a graph.

    Raises:
        InputError: naming the model.

    Not covered: what a model would do with examples unlike those tried.
    """
    with RepeatableDraws(model) as draws:
        trial = _Trial(model, losses_of, batch, draws, {"height": height, "eagerly": eagerly})
        mixes = trial.finds_mixing()
    if trial.blind:
        warnings.warn(
            f"Model {model.name!r} was tried on {trial.blind}: the trial cannot see whether their values would reach "
            "each other's gradients, but by derivative.",
            stacklevel=3,
        )
    if mixes:
        raise InputError(
            f"Model {model.name!r} mixes the examples of a batch: one example's gradient depends on another's values, "
            "or on its place or their number, so clipping bounds nothing; remove the layer that computes across the "
            "first axis, or the loss that looks at other labels."
        )


def _output_projections(model):
    """A stand-in for the losses that does not vanish where predictions are sure."""

    def projections(batch, training):
        outputs = tf.nest.flatten(model(batch[0], training=training))
        flattened = [tf.reshape(tf.cast(one, tf.float32), (tf.shape(one)[0], -1)) for one in outputs]
        return tf.add_n(
            [tf.reduce_sum(one * tf.cos(tf.range(tf.shape(one)[1], dtype=tf.float32)), 1) for one in flattened]
        )

    return projections


class _Trial:
    """One model on a few rows: gradients of one row, in company of one kind or another.

    Attributes:
        blind: What kept the trial from seeing anything, in words; empty if nothing did.
    """

    def __init__(self, model, losses_of, batch, draws, how):
        self._model, self._losses_of, self._batch, self._draws, self._how = model, losses_of, batch, draws, how
        self._count = len(tf.nest.flatten(batch)[0])
        self._height = how["height"] or max(self._count, _FEWEST)
        self._all = [row % self._count for row in range(self._height)]
        self._by_size = [int(row) for row in np.argsort(magnitudes(batch), kind="stable")]
        self._left_alone = WeightsLeftAlone(model, draws.states())
        self._seen = False

    @property
    def blind(self) -> str:
        if len(set(contents(self._batch[0]))) == 1:
            return "one example, or equal ones"
        return "" if self._seen else "examples whose gradients vanish or overflow at its present weights"

    def finds_mixing(self) -> bool:
        """Whether a row's gradient depends on its company, with what is dropped and without."""
        training = row_gradients(self._model, self._noting_added_losses, self._batch, True, **self._how)
        first = self._first(training)
        random = self._differs(training, first, times=1)
        self._take_out_what_overflows(training, first)
        mixes = not random and self._mixes(training, True, None)
        if mixes:  # Unless the draws were alike by chance.
            random = self._differs(training, first, times=8)
        if random:
            resting = row_gradients(self._model, self._losses_of, self._batch, False, **self._how)
            mixes = self._mixes_at_random(training, first) or self._mixes(resting, False, None)
        self._check_weights(training)
        return mixes

    def _mixes_at_random(self, training, first) -> bool:
        """As they are drawn first, and as they are drawn next: what is dropped hides what mixes.

        By draws that are cheap to repeat, which show most models to mix nothing; thoroughly only before a refusal.
        """
        for thorough in () if training.draws_in_loops() else (False, True):
            self._draws.thorough = thorough
            if thorough:
                first = self._compute(training, self._all, 0, 0)
            if self._comes_again(training, first, times=1):
                mixes = self._mixes(training, True, 0) or self._mixes(training, True, 1)
                if not mixes or (thorough and self._comes_again(training, first, times=4)):
                    return mixes
        if not self._how["eagerly"]:  # A loop in a graph draws in no fixed order; one in Python does.
            how = {**self._how, "eagerly": True}
            return _Trial(self._model, self._losses_of, self._batch, self._draws, how).finds_mixing()
        raise InputError(
            f"Model {self._model.name!r} draws random numbers that a trial cannot repeat, so whether it keeps examples "
            "apart cannot be seen; draw by a layer of Keras, tf.random, or a tf.random.Generator that the layer holds."
        )

    def _noting_added_losses(self, part, training):
        losses = self._losses_of(part, training)
        self._adds_losses = len(self._model.losses) > len(regularisation(self._model))
        return losses

    def _check_weights(self, gradients):
        batches = [self._all, *([row] * self._height for row in range(self._count))]
        self._left_alone.check(lambda rows: self._compute(gradients, rows, 0, 0), batches)

    def _first(self, gradients):
        """The first gradient and losses; all that is found at once by computing them."""
        first = self._compute(gradients, self._all, 0, 0)
        self._check_weights(gradients)
        if self._adds_losses:
            raise InputError(
                f"Model {self._model.name!r} adds losses that depend on the examples (add_loss): they belong to no "
                "example; make them part of the loss, or remove them."
            )
        return first

    def _differs(self, gradients, first, times) -> bool:
        """Whether going on gives something else than ``first``."""
        return not all(all(map(_close, first, self._compute(gradients, self._all, 0))) for _ in range(times))

    def _comes_again(self, gradients, first, times) -> bool:
        """Whether beginning again gives ``first`` again."""
        return all(all(map(_close, first, self._compute(gradients, self._all, 0, 0))) for _ in range(times))

    def _take_out_what_overflows(self, gradients, first):
        """Rows whose loss is no number even among copies have no place beside others."""
        for place, loss in enumerate(first[1][: self._count]):
            if not np.isfinite(loss):
                among_copies = self._compute(gradients, [place] * self._height, place)
                if not np.isfinite(among_copies[1][place]):
                    self._by_size.remove(place)

    def _compute(self, function, rows, place, draw=None):
        """What the function gives, after so many draws for as many rows as there are; None goes on drawing.

        To begin again thoroughly costs as much as to prepare the graph anew.
        """
        if draw is not None:
            self._draws.begin_again()
            for _ in range(draw):
                function(gathered(self._batch, self._all), 0)
        return [part.numpy() for part in tf.nest.flatten(function(gathered(self._batch, rows), place))]

    def _mixes(self, gradients, training, draw) -> bool:
        """Whether it shows in the losses' gradients; in those of the outputs, where the losses have none."""
        losses_of = self._losses_of
        own = self._own_gradients(gradients, draw)
        if not own:
            losses_of = _output_projections(self._model)
            gradients = row_gradients(self._model, losses_of, self._batch, training, **self._how)
            own = self._own_gradients(gradients, draw)
        self._seen |= bool(own)
        if not draw and self._reached(losses_of, training, draw, own):
            return True
        return any(
            not _same(gradient, self._compute(gradients, rows, place, draw)[0])
            for row, gradient in own.items()
            for rows, place in self._companies(row, draw)
        )

    def _own_gradients(self, gradients, draw) -> dict[int, np.ndarray]:
        """Of the first row whose gradient tells something and of the last: that beside none but copies of the row."""
        found: dict[int, np.ndarray] = {}
        for rows in (range(self._count), range(self._count)[::-1]):
            for row in rows:
                place = row % self._height
                gradient = found.get(row)
                if gradient is None:
                    gradient = self._compute(gradients, [row] * self._height, place, draw)[0]
                if np.isfinite(size(gradient)) and size(gradient) >= _TELLING:
                    found[row] = gradient
                    break
        return found

    def _companies(self, row, draw):
        """Batches with the row in them, and its place: as far as what is drawn for it is what it was among copies."""
        place = row % self._height
        batches = companies(row, place, self._by_size, self._height)
        if draw:
            return [(batches[0], place)]
        found = [(batch, place) for batch in batches]
        found += other_places(place, batches[0]) if draw is None else []
        if self._how["height"] is None and (draw is None or self._draws.by_row):
            found += other_numbers(row, place, batches[0], moved=draw is None)
        return found

    def _reached(self, losses_of, training, draw, subjects) -> bool:
        """Whether other rows' inputs reach a subject's loss by derivative."""
        if not any(a.dtype.is_floating for a in tf.nest.flatten(self._batch[0])):
            return False
        derivatives = row_derivatives(self._model, losses_of, self._batch, training, **self._how)
        for row in subjects:
            place = row % self._height
            rows = companies(row, place, self._by_size, self._height)[0]
            try:
                found = self._compute(derivatives, rows, place, draw)
            except InputError:  # An operation without derivative is in between: what is left must tell.
                return False
            if any(np.any(np.delete(one, place) > 0) for one in found):
                return True
        return False


def _close(one, other) -> bool:
    return np.allclose(one, other, rtol=1e-3, atol=1e-6, equal_nan=True)


def _same(one, other) -> bool:
    """Whether two gradients are one but for rounding; what overflows says nothing."""
    if not (np.isfinite(size(one)) and np.isfinite(size(other))):
        return True
    return size(np.asarray(other, np.float64) - one) <= _TOLERANCE * max(size(one), _SMALL)
