"""Whether a model's layers are used as book-keeping's rules expect, found by trying them on a few examples."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tfprivacy_lab.checks import InputError
from tfprivacy_lab.dp.clipping.ghost import BookKeeping, clip_factors
from tfprivacy_lab.dp.clipping.one_row_per_example import check_heights, heights
from tfprivacy_lab.dp.trials.draws import RepeatableDraws
from tfprivacy_lab.dp.trials.row_gradients import Compiled, flat, size
from tfprivacy_lab.dp.trials.rows import gathered
from tfprivacy_lab.models.keras_internals import raw


def check_book_keeping(book_keeping: BookKeeping, losses_of, batch, *, height=None, eagerly=False) -> int:
    """Hold book-keeping against automatic differentiation, one example at a time, as in training.

    Weights that are used outside their layer, and layers that are given no row per example, show as another norm.

    Args:
        book_keeping: The model's.
        losses_of: From (batch, training) to losses (n,).
        batch: Structure of tensors, (n, ...); of few rows.
        height: Rows that ``fit`` computes at a time, if it is a fixed number.
        eagerly: Whether ``fit`` runs without a graph.

    Returns:
        Numbers of working memory that an example needs.

    Raises:
        InputError: naming the layer or the model.
    """
    model, count = book_keeping.model, len(tf.nest.flatten(batch)[0])
    rows = [row % count for row in range(height or count)]
    with RepeatableDraws(model) as draws:
        # One forward pass for both, whatever it draws; but some operations are differentiated once and not again.
        layers: list = []
        for shared in (True, False):
            norms = _both_norms(book_keeping, losses_of, layers, shared)
            compiled = Compiled(model, norms, batch, height=height, eagerly=eagerly)
            draws.begin_again()
            try:
                found = compiled(gathered(batch, rows), 0)[2].numpy()
                break
            except InputError as error:
                refused = error
        else:
            raise refused
        check_heights(layers, found, len(rows))
        for place in range(min(len(rows), count)):
            # What overflows in another row leaves no number in this one's gradient: copies have none such.
            for part in (rows, [rows[place]] * len(rows)):
                norm, gradient, _ = compiled(gathered(batch, part), place)
                if np.isfinite(expected := size(gradient)):
                    _check_norm(model, float(norm), expected)
                    break
        if book_keeping.has_rules_of_others:
            sums = Compiled(model, _both_sums(book_keeping, losses_of, shared), batch, height=height, eagerly=eagerly)
            for part in (rows, *([row] * len(rows) for row in rows[:count])):
                draws.begin_again()
                total, expected, scale = sums(gathered(batch, part), 0)
                if np.isfinite(size(expected)):
                    _check_sum(model, total, expected, float(scale))
                    break
        one = gathered(batch, [0])
        return book_keeping.gradients(lambda: (losses_of(one, True), None)).floats_per_example()


def _both_norms(book_keeping, losses_of, layers, shared):
    """By book-keeping the norm, and by differentiation the gradient, of a row; and how many rows layers saw.

    As a function of (batch, place); ``shared`` takes both from one forward pass. ``layers`` becomes the layers seen.
    """
    variables = raw(book_keeping.model.trainable_variables)

    def both(part, place):
        held = {}

        def compute(kept=True):
            if not kept:
                return losses_of(part, True), None
            with tf.GradientTape() as held["tape"]:
                held["tape"].watch(variables)
                losses = losses_of(part, True)
                held["loss"] = losses[place]
            return losses, None

        found = book_keeping.gradients(lambda: compute(shared), asserted=False)
        layers[:] = [use.layer for use in found.uses for _ in use.inputs]
        seen = heights(found.uses)
        if not shared:
            compute()
        gradient = held["tape"].gradient(held["loss"], variables, unconnected_gradients="zero")
        fit = tf.reduce_all(seen == tf.shape(found.losses)[0])
        norm = tf.cond(fit, lambda: found.norms()[place], lambda: tf.constant(np.nan, tf.float32))
        return norm, flat(gradient), seen

    return both


def _both_sums(book_keeping, losses_of, shared):
    """The clipped sum by book-keeping, that by differentiation with the same factors, and the sum of scaled norms.

    Clipping is automatic, under which every factor depends on its norm. ``shared`` as in :func:`_both_norms`.
    """
    variables = raw(book_keeping.model.trainable_variables)

    def both(part, place):
        held = {}

        def compute(kept=True):
            if not kept:
                return losses_of(part, True), None
            with tf.GradientTape() as held["tape"]:
                held["tape"].watch(variables)
                held["losses"] = losses_of(part, True)
            return held["losses"], None

        total, norms = book_keeping.gradients(lambda: compute(shared), asserted=False).clipped_sum(1.0, "automatic")
        if not shared:
            compute()
        factors = clip_factors(norms, 1.0, "automatic")
        expected = held["tape"].gradient(
            held["losses"], variables, output_gradients=factors, unconnected_gradients="zero"
        )
        return flat(total), flat(expected), tf.reduce_sum(factors * norms)

    return both


def _check_sum(model, total, expected, scale):
    """Refuse a sum that is another by more than rounding of what it adds up."""
    difference = size(total - expected) if total.shape == expected.shape else np.inf
    if not difference <= 1e-3 * max(scale, 1e-6):
        raise InputError(
            f"Model {model.name!r}: the sum of clipped gradients by its layers' rules is off by {difference:.6g} of "
            f"{scale:.6g}; hold the rule that was registered against a loop by dp.check_rule(layer, inputs)."
        )


def _check_norm(model, norm, expected):
    if not abs(norm - expected) <= 1e-3 * max(expected, 1e-6):
        raise InputError(
            f"Model {model.name!r} does not use its layers as their rules expect: an example's gradient has norm "
            f"{expected:.6g}, and by the rules {norm:.6g}. A weight is used outside its layer (tied weights), a layer "
            "in a tf.function of the model's own, or a layer is given rows that are no examples; pass "
            "unknown_layers='slow' to differentiate example by example."
        )
