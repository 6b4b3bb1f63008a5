"""Data sets and Keras sequences read once into arrays, and told from what only looks like single examples."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf

from tfprivacy_lab.checks import InputError, check_positive_int
from tfprivacy_lab.models import keras_internals

# In the names of what takes elements apart, and of what makes one of several.
_APART, _TOGETHER = ("Unbatch", "FlatMap", "Interleave"), ("Batch", "GroupByWindow")


def from_dataset(dataset: tf.data.Dataset, model: keras.Model | None = None) -> tuple:
    """The arrays of a dataset of single examples, read once: drawing at random needs them at hand.

    Args:
        dataset: Finite, of (x, y) or (x, y, weight) for one example each; not batched.
        model: Whose inputs tell an example from a batch.

    Raises:
        InputError: if it is batched, or may be; if it is infinite, empty, or of examples of several shapes.
    """
    if _is_batched(dataset):
        raise InputError(
            "Expected x to be a dataset of single examples, got a batched one: a batch would count as one example; "
            "call .unbatch() on it."
        )
    if dataset.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise InputError("Expected x to be a finite dataset, got an endless one; take(n) examples of it.")
    spec = dataset.element_spec
    if not isinstance(spec, tuple) or len(spec) not in (2, 3):
        raise InputError("Expected x to be a dataset of (example, label) or (example, label, weight).")
    if any(not isinstance(part, tf.TensorSpec) for part in tf.nest.flatten(spec)):
        kinds = sorted({type(part).__name__ for part in tf.nest.flatten(spec)} - {"TensorSpec"})
        raise InputError(f"Expected x to be a dataset of tensors, got {', '.join(kinds)}; map it to dense tensors.")
    try:
        rows = list(dataset.as_numpy_iterator())
        columns = [tf.nest.map_structure(lambda *parts: np.stack(parts), *column) for column in zip(*rows, strict=True)]
    except ValueError as error:
        raise InputError(
            "Expected x to be a dataset of examples of one shape, got several; pad them to one length."
        ) from error
    if not rows:
        raise InputError("Expected x to hold examples, got an empty dataset.")
    _check_elements_are_examples(spec, columns, model)
    return tuple(columns)


def _is_batched(dataset) -> bool:
    """Whether elements are batches: looked for through zip, cache, map and the like, up to what takes apart."""
    name = type(dataset).__name__
    if any(word in name for word in _APART) and "DirectedInterleave" not in name:
        return False
    return any(word in name for word in _TOGETHER) or any(_is_batched(part) for part in dataset._inputs())


def _check_elements_are_examples(spec, columns, model) -> None:
    """Refuse batches that no operation of tf.data made, as a generator does that yields them.

    The model's inputs have an axis for examples and those of one example. Where no model says how many those are,
    a first axis that all parts of an element share may be one of examples.
    """
    x = tf.nest.flatten(columns[0])
    expected = input_shapes(model, columns[0])
    if expected is not None:
        if any(_has_an_axis_more(array.shape, shape) for array, shape in zip(x, expected, strict=True)):
            got, wanted = x[0].shape[1:], tuple(expected[0][1:])
            raise InputError(
                f"Expected x to be a dataset of single examples of shape {wanted}, as the model's input is, got "
                f"elements of shape {got}: a batch would count as one example; call .unbatch() on the dataset."
            )
        return
    firsts = {part.shape[0] if part.shape.rank else -1 for part in tf.nest.flatten(spec)}
    if firsts != {-1} and len(firsts) == 1:
        raise InputError(
            "Expected x to be a dataset of single examples, got elements whose parts all begin with one and the same "
            "axis: batches, for all that can be seen; call .unbatch() on it, or pass x and y as arrays, (n, ...)."
        )


def input_shapes(model: keras.Model | None, x) -> list[tuple] | None:
    """Shapes of the model's inputs in the order of x's leaves, the axis of examples first; None where unknown."""
    spec = None if model is None else keras_internals.inputs_of(model)
    if spec is None or (isinstance(spec, dict) and isinstance(x, dict) and set(spec) != set(x)):
        return None
    found = [tuple(part.shape) or None for part in tf.nest.flatten(spec)]
    return found if len(found) == len(tf.nest.flatten(x)) and None not in found else None


def _has_an_axis_more(got, expected) -> bool:
    """Whether arrays (n, ...) have more axes than the input, but for a last one of 1, which Keras takes off."""
    if len(got) <= len(expected):
        return False
    squeezed = len(got) == len(expected) + 1 and got[-1] == 1
    fits = all(e in (None, g) for g, e in zip(got[1:-1], expected[1:], strict=False))
    return not (squeezed and fits)


def from_sequence(sequence: keras.utils.PyDataset, model: keras.Model | None = None) -> tuple:
    """The examples of a Keras Sequence, read once, batch after batch; each row of its batches is one example.

    Args:
        sequence: Of (x, y) or (x, y, weights), batches as Keras has them, or single examples: those whose label is a
            number, or that are as the model's inputs are.
        model: Whose inputs tell an example from a batch.

    Raises:
        InputError: if it is empty, of something else, or of examples of several shapes.
    """
    kind = type(sequence).__name__
    try:
        length = sequence.num_batches
    except NotImplementedError:
        length = None
    except TypeError as error:  # A class without __len__; or what its __len__ does, or gives.
        raise InputError(
            f"Expected x to be a Sequence of known length, got {kind}: {error}; give it __len__."
        ) from error
    if length is None:
        raise InputError(f"Expected x to be a Sequence of known length, got {kind} without one; give it __len__.")
    length = check_positive_int(f"the number of batches of {kind}", length, at_least=0)
    parts = [sequence[i] for i in range(length)]
    if not parts:
        raise InputError("Expected x to hold examples, got an empty Sequence.")
    if any(not isinstance(part, tuple | list) or len(part) not in (2, 3) for part in parts):
        raise InputError("Expected x to be a Sequence of (x, y) or (x, y, weights).")
    parts = [tuple(part[:-1] if len(part) == 3 and part[2] is None else part) for part in parts]
    single = _is_single(parts[0], model)
    join = np.stack if single else np.concatenate
    for part in parts if not single else ():
        lengths = {len(a) if np.ndim(a) else -1 for a in tf.nest.flatten(part)}
        if len(lengths) != 1 or -1 in lengths:
            raise InputError(
                f"Expected a Sequence's x and y to have one row per example, got lengths {sorted(lengths)}."
            )
    try:
        return tuple(
            tf.nest.map_structure(lambda *arrays: join([np.asarray(a) for a in arrays]), *column)
            for column in zip(*parts, strict=True)
        )
    except (ValueError, TypeError) as error:
        raise InputError("Expected x to be a Sequence of examples of one shape; pad them to one length.") from error


def _is_single(part, model) -> bool:
    """Whether an element of a Sequence is one example: its label is a number, or its x is as the model's inputs are."""
    if np.ndim(part[1]) == 0 and not isinstance(part[1], dict):
        return True
    expected = input_shapes(model, part[0])
    if expected is None:
        return False
    shapes = [np.shape(array) for array in tf.nest.flatten(part[0])]
    return all(
        len(shape) == len(wanted) - 1 and all(w in (None, s) for s, w in zip(shape, wanted[1:], strict=True))
        for shape, wanted in zip(shapes, expected, strict=True)
    )
