"""Whether a model keeps examples apart, found by trying it on a few: what clipping needs to bound anything."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tfprivacy_lab.checks import InputError
from tfprivacy_lab.dp.clipping import BookKeeping, regularisation
from tfprivacy_lab.dp.trial_draws import RepeatableDraws

TRIED = 4
# Of the gradient's norm: batches of another height are rounded otherwise.
_TOLERANCE = 3e-4
# Norms below this count as this: where predictions are sure, little but rounding is left.
_SMALL = 1e-2


def outputs_of(model: tf.keras.Model, x) -> tf.Tensor:
    """The model's outputs for a few examples.

    Raises:
        InputError: if it does not take such examples, or keeps them.
    """
    check_weights = _weights_left_alone(model)
    try:
        outputs = model(x, training=False)
    except InputError:
        raise
    except (ValueError, TypeError, tf.errors.OpError) as error:
        shapes = ", ".join(str(tuple(a.shape[1:])) for a in tf.nest.flatten(x))
        raise InputError(f"Model {model.name!r} does not take x, examples of shape {shapes}.") from error
    check_weights()
    return outputs


def check_book_keeping(book_keeping: BookKeeping, losses_of, batch) -> int:
    """Hold book-keeping against automatic differentiation, one example at a time, as in training.

    Weights that are used outside their layer, layers that fold the batch, and layers that mix examples all
    show as another norm.

    Args:
        book_keeping: The model's.
        losses_of: From (batch, training) to losses (n,).
        batch: Structure of tensors, (n, ...).

    Returns:
        Numbers of working memory that an example needs.

    Raises:
        InputError: naming the model.
    """
    model, batch = book_keeping.model, tf.nest.map_structure(lambda a: a[:TRIED], batch)
    with RepeatableDraws(model) as draws:
        draws.begin_again()
        gradients = book_keeping.gradients(lambda: (losses_of(batch, True), None))
        draws.begin_again()
        with tf.GradientTape(persistent=True) as tape:
            losses = tf.unstack(losses_of(batch, True))
    for loss, norm in zip(losses, gradients.norms().numpy(), strict=True):
        expected = float(np.linalg.norm(_flat(tape, loss, model)))
        if np.isfinite(expected) and abs(norm - expected) > 1e-3 * max(expected, 1e-6):
            raise InputError(
                f"Model {model.name!r} does not keep examples apart as its layers' rules expect: an example's gradient "
                f"has norm {expected:.6g}, and by the rules {norm:.6g}. A layer mixes examples, or a weight is used "
                "outside its layer; use layers of Keras, or unknown_layers='slow'."
            )
    return gradients.floats_per_example()


def check_gradients_are_per_example(model: tf.keras.Model, losses_of, batch) -> None:
    """Refuse a model in which an example's gradient in training has to do with other examples.

    Random layers draw the same numbers each time. The gradient must not move with another example's inputs, by
    derivative and by trial, first and last in the batch: a layer may hide from derivatives what it computes. It must
    be the same alone, among others, and among copies of itself, which finds losses that look at other labels and
    layers that mix whole numbers. All weights must be left as they are: what a layer notes of its inputs would be
    released without noise. Losses that layers add for a batch (``add_loss``) are refused too: they belong to no
    example.

    Args:
        model: The model; what the trial changes is restored.
        losses_of: From (batch, training) to losses (n,).
        batch: (inputs, labels) of tensors.

    Raises:
        InputError: naming the model.
    """
    batch = tf.nest.map_structure(lambda a: a[:TRIED], batch)
    with RepeatableDraws(model) as draws:
        check_weights = _weights_left_alone(model, draws.states())
        draws.begin_again()
        reached, belongs_to_none = _reach(model, losses_of, batch)
        check_weights()
        if belongs_to_none:
            raise InputError(
                f"Model {model.name!r} adds losses that depend on the examples (add_loss): they belong to no example; "
                "make them part of the loss, or remove them."
            )
        mixes = reached or _Trial(model, losses_of, batch, draws, check_weights).finds_mixing()
        check_weights()
    if mixes:
        raise InputError(
            f"Model {model.name!r} mixes the examples of a batch: one example's gradient depends on another's values, "
            "so clipping bounds nothing; remove the layer that computes across the first axis, or the loss that looks "
            "at other labels."
        )


def _reach(model, losses_of, batch) -> tuple[bool, bool]:
    """Whether other examples' inputs reach the first one's gradient, and whether there are losses of no example."""
    inputs = [a for a in tf.nest.flatten(batch[0]) if a.dtype.is_floating]
    with tf.GradientTape() as outer:
        outer.watch(inputs)
        with tf.GradientTape() as inner:
            loss = losses_of(batch, True)[0]
        found = inner.gradient(loss, model.trainable_variables, unconnected_gradients="zero")
        size = tf.add_n([tf.reduce_sum(tf.square(g)) for g in map(tf.convert_to_tensor, found)])
    belongs_to_none = len(model.losses) > len(regularisation(model))
    try:
        reached = outer.gradient(size, inputs, unconnected_gradients="zero")
    except LookupError:  # An operation without a derivative is in between: trials must tell.
        reached = []
    return any(np.any(np.abs(r[1:]) > 0) for r in reached), belongs_to_none


def _weights_left_alone(model, states=()):
    """A check, to be called later, that all weights but random generators' states are as they are now."""
    exempt = {id(state) for state in states}
    kept = [(variable, variable.numpy()) for variable in model.variables if id(variable) not in exempt]

    def check():
        changed = [variable for variable, before in kept if variable.numpy().tobytes() != before.tobytes()]
        if changed:
            for variable, before in kept:
                variable.assign(before)
            raise InputError(
                f"Model {model.name!r} writes what it computes from examples into the weight {changed[0].name!r}, "
                "which would be saved without noise; remove or freeze the layer that does."
            )

    return check


class _Trial:
    """One model on one batch: gradients of one row, in company of one kind or another."""

    def __init__(self, model, losses_of, batch, draws, check_weights):
        self._model, self._losses_of, self._draws, self._check_weights = model, losses_of, draws, check_weights
        count = len(tf.nest.flatten(batch)[0])
        self._rows = [row % count for row in range(TRIED)]
        self._batch = batch

    def finds_mixing(self) -> bool:
        """Whether a row's gradient depends on its company; as they are, and tamed."""
        tamed = (tf.nest.map_structure(_tame, self._batch[0]), *self._batch[1:])
        # Large inputs overflow, or make predictions so sure that gradients vanish: either hides what company does.
        same = all(map(np.array_equal, tf.nest.flatten(tamed), tf.nest.flatten(self._batch)))
        for batch in [self._batch] if same else [self._batch, tamed]:
            self._batch = batch
            first = self._gradient(0, True, 0)
            random = not _same(first, self._gradient(0, True, 1))
            if random and not _same(first, self._gradient(0, True, 0)):
                raise InputError(
                    f"Model {self._model.name!r} draws random numbers that a trial cannot repeat, so whether it keeps "
                    "examples apart cannot be seen; draw by a layer of Keras, tf.random, or a tf.random.Generator "
                    "that the layer holds."
                )
            # What is dropped hides what mixes: other draws, and none.
            settings = [(True, 0), (True, 1), (False, 0)] if random else [(True, 0)]
            if any(self._mixes(*setting) for setting in settings):
                return True
        return False

    def _mixes(self, training, draw):
        for place in (0, -1):
            here = self._gradient(place, training, draw)
            if not _same(here, self._gradient(place, training, draw, changed=True)):
                return True
        first = self._gradient(0, training, draw)
        companies = [[self._rows[0]] * TRIED]
        if self._draws.by_row or not training:
            companies.append([self._rows[0]])
        return not all(_same(first, self._gradient(0, training, draw, rows=rows)) for rows in companies)

    def _gradient(self, place, training, draw, rows=None, *, changed=False):
        """The gradient of the row at ``place``, flat; with ``changed``, the others' values are others."""
        part = tf.nest.map_structure(lambda a: tf.gather(a, rows or self._rows), self._batch)
        if changed:
            inputs = tf.nest.map_structure(lambda a: _with_others(a, place), part[0])
            part = (
                inputs,
                *(tf.nest.map_structure(lambda a: tf.repeat(a[place][None], TRIED, 0), p) for p in part[1:]),
            )
        self._draws.begin_again(draw)
        with tf.GradientTape() as tape:
            loss = self._losses_of(part, training)[place]
        found = _flat(tape, loss, self._model)
        if changed:
            self._check_weights()
        return found


def _with_others(values, place):
    """The batch with all rows but one changed: far away where numbers are real, the same one where they are whole."""
    array = values.numpy()
    other = np.repeat(array[place][None], len(array), 0) if _are_whole(array) else 3 - 10 * array
    other[place] = array[place]
    return tf.convert_to_tensor(other)


def _tame(values):
    """Real numbers, each row within [-1, 1]; whole numbers as they are: they may be names."""
    array = values.numpy()
    if _are_whole(array):
        return values
    rows = np.abs(array).reshape(len(array), -1).max(1).reshape(-1, *[1] * (array.ndim - 1))
    return tf.convert_to_tensor(array / np.maximum(rows, 1))


def _are_whole(array):
    return array.dtype.kind != "f" or bool(np.all(array == np.round(array)))


def _flat(tape, loss, model):
    found = tape.gradient(loss, model.trainable_variables, unconnected_gradients="zero")
    return np.concatenate([tf.convert_to_tensor(g).numpy().ravel() for g in found])


def _same(one, other) -> bool:
    """Whether two gradients are one but for rounding; what overflows says nothing."""
    if not (np.isfinite(one).all() and np.isfinite(other).all()):
        return True
    return np.linalg.norm(other - one) <= _TOLERANCE * max(np.linalg.norm(one), _SMALL)
