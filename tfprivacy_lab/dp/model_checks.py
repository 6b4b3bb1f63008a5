"""What a model must be for clipping to bound anything: checked by looking, and by trying on three examples."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tfprivacy_lab.checks import InputError
from tfprivacy_lab.dp.clipping import BookKeeping, regularisation

_TRIED = 3
_TOLERANCE = 1e-3


def check_book_keeping(book_keeping: BookKeeping, losses_of, batch) -> int:
    """Hold book-keeping against automatic differentiation, one example at a time.

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
    model, batch = book_keeping.model, tf.nest.map_structure(lambda a: a[:_TRIED], batch)
    gradients = book_keeping.gradients(lambda: (losses_of(batch, False), None))
    norms = gradients.norms().numpy()
    for i, norm in enumerate(norms):
        one = tf.nest.map_structure(lambda a, i=i: a[i : i + 1], batch)
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(losses_of(one, False))
        found = tape.gradient(loss, model.trainable_variables, unconnected_gradients="zero")
        alone = float(tf.linalg.global_norm([tf.convert_to_tensor(g) for g in found]))
        if np.isfinite(alone) and abs(norm - alone) > _TOLERANCE * max(alone, 1e-6):
            raise InputError(
                f"Model {model.name!r} does not keep examples apart as its layers' rules expect: an example's gradient "
                f"has norm {alone:.6g} alone and {norm:.6g} in a batch. A layer mixes examples, or a weight is used "
                "outside its layer; use layers of Keras, or unknown_layers='slow'."
            )
    return gradients.floats_per_example()


def check_gradients_are_per_example(model: tf.keras.Model, losses_of, batch) -> None:
    """Refuse a model in which the first example's gradient has to do with other examples.

    In training it must not move with another example's inputs; it must be the same alone, among others, and among
    copies of itself, which finds losses that look at other labels and layers that mix whole numbers. A forward
    pass in training must leave all weights as they are: what a layer notes of its inputs would be released
    without noise. Losses that layers add for a batch (``add_loss``) are refused too: they belong to no example.

    Args:
        model: The model; what the trial changes is restored.
        losses_of: From (batch, training) to losses (n,).
        batch: (inputs, labels) of tensors.

    Raises:
        InputError: naming the model.
    """
    batch = tf.nest.map_structure(lambda a: a[: _TRIED + 1], batch)
    inputs = [a for a in tf.nest.flatten(batch[0]) if a.dtype.is_floating]
    kept = [(variable, variable.numpy()) for variable in model.non_trainable_variables if variable.dtype.is_floating]
    with tf.GradientTape() as outer:
        outer.watch(inputs)
        with tf.GradientTape() as inner:
            loss = losses_of(batch, True)[0]
        found = inner.gradient(loss, model.trainable_variables, unconnected_gradients="zero")
        size = tf.add_n([tf.reduce_sum(tf.convert_to_tensor(g) ** 2) for g in found])
    _check_weights_were_left_alone(model, kept)
    if len(model.losses) != len(regularisation(model)):
        raise InputError(
            f"Model {model.name!r} adds losses that depend on the examples (add_loss): they belong to no example; "
            "make them part of the loss, or remove them."
        )
    reached = outer.gradient(size, inputs, unconnected_gradients="zero")
    if any(np.any(np.abs(r[1:]) > 0) for r in reached) or not _is_the_same_among_others(model, losses_of, batch):
        raise InputError(
            f"Model {model.name!r} mixes the examples of a batch: one example's gradient depends on another's values, "
            "so clipping bounds nothing; remove the layer that computes across the first axis, or the loss that looks "
            "at other labels."
        )


def _check_weights_were_left_alone(model, kept):
    """Restore what a forward pass in training changed, and refuse it; a generator's state is a whole number."""
    changed = [variable for variable, before in kept if not np.array_equal(variable.numpy(), before, equal_nan=True)]
    for variable, before in kept:
        variable.assign(before)
    if changed:
        raise InputError(
            f"Model {model.name!r} writes what it computes from examples into the weight {changed[0].name!r}, which "
            "would be saved without noise; remove or freeze the layer that does."
        )


def _is_the_same_among_others(model, losses_of, batch) -> bool:
    """Whether the first example's gradient is one and the same alone, in the batch, and among copies of itself."""

    def first_gradient(rows):
        with tf.GradientTape() as tape:
            loss = losses_of(tf.nest.map_structure(lambda a: tf.gather(a, rows), batch), False)[0]
        found = tape.gradient(loss, model.trainable_variables, unconnected_gradients="zero")
        return np.concatenate([tf.convert_to_tensor(g).numpy().ravel() for g in found])

    alone, count = first_gradient([0]), len(tf.nest.flatten(batch)[0])
    others = [first_gradient(rows) for rows in (range(count), [0] * _TRIED) if count > 1]
    if not np.isfinite(alone).all():
        return True
    return all(np.linalg.norm(other - alone) <= _TOLERANCE * max(np.linalg.norm(alone), 1e-6) for other in others)


def training_state(model: tf.keras.Model) -> tuple:
    """What only ``compile`` and ``fit`` may change: which weights are trained, and the optimizer's steps."""
    return (*(id(variable) for variable in model.trainable_variables), int(model.optimizer.iterations.numpy()))


def check_nothing_was_restored(model: tf.keras.Model, before: tuple, callbacks) -> None:
    """Refuse to go on from a state that came from elsewhere: what it cost is in no record, and its noise would return.

    Args:
        model: A compiled model.
        before: What :func:`training_state` gave when ``compile`` or ``fit`` ended.
        callbacks: Those of ``fit``.

    Raises:
        InputError: saying what to do instead.
    """
    if any(isinstance(callback, tf.keras.callbacks.BackupAndRestore) for callback in callbacks or []):
        raise InputError(
            "BackupAndRestore would bring back the weights without what they cost, and draw the same noise again; "
            "leave it out, and register runs with a Ledger."
        )
    *trainable, steps = training_state(model)
    if trainable != list(before[:-1]):
        raise InputError("Other weights are trainable than when the model was compiled; call compile again.")
    if steps != before[-1]:
        raise InputError(
            f"The optimizer is at step {steps} and was at {before[-1]} when this model was last compiled or fitted: it "
            "was restored or used elsewhere, and what that cost is in no record; compile with a new optimizer."
        )
