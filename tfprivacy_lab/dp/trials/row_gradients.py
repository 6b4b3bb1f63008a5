"""The gradient of one row's loss in a batch, computed as ``fit`` computes it: in a graph of open batch size."""

from __future__ import annotations

import re

import numpy as np
import tensorflow as tf

from tfprivacy_lab.checks import InputError
from tfprivacy_lab.dp.clipping.rows import refusal_of
from tfprivacy_lab.models.keras_internals import raw

# Lines of messages that say where, not what.
_WHERE = re.compile(r"(?i)^(in user code|file \"|graph execution error|detected at|<stack|call arguments|•)")
_DRAWS = re.compile("Random|Rng|Multinomial|Normal|PyFunc")
_NAMED = re.compile(r"^([\w.]*(?:Error|Exception)): (?!Exception encountered)(.*)")
_CALLED = re.compile(r"xception encountered when calling (\w+)\.\w+\(\)")
# Bold type, and names of functions that TensorFlow puts before what it says.
_MARKS = re.compile(r"\x1b\[\d*m|\{\{[^}]*\}\}\s*")


_INSTEAD = (
    "Write its call with TensorFlow's operations (no .numpy(), no Python on values of tensors), or compile with "
    "run_eagerly=True."
)
_INSTEAD_OF_SPECTRAL = (
    "In place of SpectralNormalization, a kernel_constraint bounds a kernel after each step, at no cost."
)


class Compiled:
    """A function of (batch, place) as ``fit`` would run it; traced once, at the first call.

    Args:
        model: Named in errors.
        function: From a structure of tensors (n, ...) and a place in the batch to a structure of tensors. ``gradient``
            and the model are called within.
        batch: What it will be given: shapes and dtypes.
        height: Rows of every batch, if their number is fixed; None leaves it open.
        eagerly: Whether ``fit`` runs without a graph.
    """

    def __init__(self, model, function, batch, *, height: int | None = None, eagerly: bool = False):
        self._model, self._function, self._eagerly = model, function, eagerly
        specs = tf.nest.map_structure(lambda a: tf.TensorSpec((height, *a.shape[1:]), a.dtype), batch)
        signature = (specs, tf.TensorSpec((), tf.int32))
        # No automatic conversion of Python's if and while, as in fit; it takes most of the time of tracing besides.
        in_graph = tf.autograph.experimental.do_not_convert(function)
        self._compiled = function if eagerly else tf.function(in_graph, input_signature=signature)
        self._traced = eagerly

    def draws_in_loops(self) -> bool:
        """Whether random numbers may be drawn in a loop of the graph, whose turns need not come in their order."""
        if self._eagerly:
            return False
        graph = self._compiled.get_concrete_function().graph.as_graph_def()
        within = {node.op for function in graph.library.function for node in function.node_def}
        loops = {kind for kind in within | {node.op for node in graph.node} if "While" in kind}
        return bool(loops) and any(_DRAWS.search(kind) for kind in within)

    def __call__(self, part, place: int):
        """The function's value.

        Raises:
            InputError: naming the model, if it cannot be put in a graph, or stops on these rows.
        """
        try:
            if not self._traced:
                self._compiled.get_concrete_function()
                self._traced = True
        except Exception as error:
            why = reason(error)
            raise known(error) or InputError(
                f"Model {self._model.name!r} cannot be computed in a graph, as fit computes it: {why}. "
                + (_INSTEAD_OF_SPECTRAL if "(SpectralNormalization)" in why else _INSTEAD)
            ) from error
        try:
            return self._compiled(part, tf.constant(place))
        except Exception as error:
            raise known(error) or InputError(
                f"Model {self._model.name!r} stops on examples of x, put together as random batches may be (any of "
                f"them, in any number): {reason(error)}."
            ) from error


def row_gradients(model, losses_of, batch, training: bool, **how) -> Compiled:
    """The flat gradient of the loss at a place of the batch, and all losses, as a function of (batch, place)."""

    def gradient(part, place):
        variables = raw(model.trainable_variables)
        with tf.GradientTape() as tape:
            tape.watch(variables)
            losses = losses_of(part, training)
            loss = losses[place]
        return flat(tape.gradient(loss, variables, unconnected_gradients="zero")), losses

    return Compiled(model, gradient, batch, **how)


def row_derivatives(model, losses_of, batch, training: bool, **how) -> Compiled:
    """By how much rows' inputs reach the loss at a place, by derivative, as a function of (batch, place).

    A list of (n,), one for each input of real numbers.
    """

    def reached(part, place):
        inputs = [a for a in tf.nest.flatten(part[0]) if a.dtype.is_floating]
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            loss = losses_of(part, training)[place]
        found = map(tf.convert_to_tensor, tape.gradient(loss, inputs, unconnected_gradients="zero"))
        return [tf.reduce_max(tf.abs(tf.reshape(f, (tf.shape(f)[0], -1))), 1) for f in found]

    return Compiled(model, reached, batch, **how)


def flat(gradients) -> tf.Tensor:
    """Gradients as one vector."""
    return tf.concat([tf.reshape(tf.convert_to_tensor(g), [-1]) for g in gradients], 0)


def size(gradient) -> float:
    """Norm of a gradient, in doubles; NaN or infinite if it overflowed."""
    with np.errstate(over="ignore", invalid="ignore"):
        return float(np.linalg.norm(np.asarray(gradient, np.float64)))


def known(error: BaseException | None) -> InputError | None:
    """What this package said, if the error comes of that: TensorFlow raises errors of its own for those in a graph."""
    while error is not None:
        if isinstance(error, InputError):
            return error
        if isinstance(error, tf.errors.OpError) and (refusal := refusal_of(error)):
            return InputError(refusal)
        error = error.__cause__ or error.__context__
    return None


def reason(error: BaseException) -> str:
    """What went wrong, in a line, and in what kind of layer: Keras and TensorFlow say where at length."""
    text = _MARKS.sub("", str(error))
    lines = [line.strip(" *\t") for line in text.splitlines() if line.strip(" *\t")]
    lines = [line for line in lines if not _WHERE.search(line)] or ["no message"]
    called = _CALLED.findall(text)
    kind, said = type(error).__name__, lines[0]
    if named := [found for found in map(_NAMED.match, lines) if found]:
        kind, said = named[-1].groups()
    elif called:
        said = lines[max(i for i, line in enumerate(lines) if _CALLED.search(line)) + 1 :][:1] or [said]
        said = said[0]
    layer = f"layer of {called[-1]}, " if called else ""
    return f"{layer}{kind}: {said[:160]}".rstrip(".")
