"""Logical batches as a tf.data pipeline: examples drawn by index, laid out in rows, padding masked."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tfprivacy_lab.checks import InputError, check_all_finite

# Python draws so many steps at a time, so that it seldom stands between TensorFlow and the interpreter's lock.
_STEPS_AT_ONCE = 64


def from_dataset(dataset: tf.data.Dataset) -> tuple:
    """The arrays of a dataset of single examples, read once: drawing at random needs them at hand.

    Args:
        dataset: Finite, of (x, y) or (x, y, weight) for one example each; not batched.

    Raises:
        InputError: if it is batched, infinite or empty.
    """
    if _is_batched(dataset):
        raise InputError("Expected x to be a dataset of single examples, got a batched one; call .unbatch() on it.")
    if dataset.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise InputError("Expected x to be a finite dataset, got an endless one; take(n) examples of it.")
    rows = list(dataset.as_numpy_iterator())
    if not rows:
        raise InputError("Expected x to hold examples, got an empty dataset.")
    if not isinstance(rows[0], tuple) or len(rows[0]) not in (2, 3):
        raise InputError("Expected x to be a dataset of (example, label) or (example, label, weight).")
    return tuple(tf.nest.map_structure(lambda *parts: np.stack(parts), *column) for column in zip(*rows, strict=True))


def _is_batched(dataset) -> bool:
    """Whether elements are batches: looked for through cache, map, prefetch and the like, up to what takes apart."""
    while not any(word in type(dataset).__name__ for word in ("Unbatch", "FlatMap", "Interleave")):
        if "Batch" in type(dataset).__name__:
            return True
        if not isinstance(dataset := getattr(dataset, "_input_dataset", None), tf.data.Dataset):
            return False
    return False


def checked(x, y, weights) -> tuple:
    """Inputs, labels and sample weights, or a dataset in their place, as tensors with one first axis, all finite.

    Raises:
        InputError: naming the argument.
    """
    if isinstance(x, tf.data.Dataset):
        x, y, weights = (*from_dataset(x), None)[:3]
    x = tf.nest.map_structure(lambda a: _tensor("x", a), x)
    y = tf.nest.map_structure(lambda a: _tensor("y", a), y)
    if not tf.is_tensor(y):
        raise InputError("Expected y to be one array; models with several outputs are not supported.")
    counts = {len(a) for a in tf.nest.flatten((x, y))}
    if len(counts) != 1 or 0 in counts:
        raise InputError(f"Expected x and y to have one and the same number of examples, got {sorted(counts)}.")
    (n,) = counts
    if weights is None:
        return x, y, tf.ones(n)
    weights = tf.cast(_tensor("sample_weight", weights), tf.float32)
    if weights.shape != (n,):
        raise InputError(f"Expected sample_weight to have shape ({n},), got {tuple(weights.shape)}.")
    if np.any(weights.numpy() < 0):
        raise InputError("Expected sample_weight to be >= 0.")
    return x, y, weights


def _tensor(name, value):
    array = value.numpy() if tf.is_tensor(value) else np.asarray(value)
    if array.dtype.kind not in "fiub" or array.ndim == 0:
        raise InputError(f"Expected {name} to be an array of numbers, got dtype {array.dtype}, shape {array.shape}.")
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):
            array = array.astype(np.float32, copy=False)
        check_all_finite(name, array)
    # A tensor that is fit is not copied: fit may be called once an epoch.
    return value if tf.is_tensor(value) and value.dtype == array.dtype else tf.convert_to_tensor(array)


def pipeline(sampler, examples: tuple, first: int, last: int, *, rows: int, parts: int = 1) -> tf.data.Dataset:
    """Logical steps first..last-1 as (x, y, weights, count).

    Args:
        sampler: Has ``indices(step)``.
        examples: What :func:`checked` gave.
        first: First step.
        last: Step after the last.
        rows: Each batch is padded to a multiple of this many rows, an empty one to as many.
        parts: Devices of this process that share a step: each step is cut into so many elements.

    Returns:
        A dataset whose elements' first axis varies: x, y, and weights that are 0 on padding; ``count`` is
        the number of rows that hold an example, first in order.
    """

    *examples, weights = examples
    weights = weights.numpy()

    def blocks():
        for start in range(first, last, _STEPS_AT_ONCE):
            steps = range(start, min(start + _STEPS_AT_ONCE, last))
            drawn = [indices[part::parts] for indices in map(sampler.indices, steps) for part in range(parts)]
            counts = np.array([one.size for one in drawn])
            ends = np.append(0, np.cumsum(np.maximum(1, -(-counts // rows)) * rows))
            places, held = np.zeros(ends[-1], np.int64), np.zeros(ends[-1], np.float32)
            for one, begin in zip(drawn, ends[:-1], strict=True):
                places[begin : begin + one.size] = one
                held[begin : begin + one.size] = weights[one]
            yield places, held, ends, counts

    def batches(places, held, ends, counts):
        @tf.function
        def gather(number):
            begin, end = ends[number], ends[number + 1]
            x, y = tf.nest.map_structure(lambda a: tf.gather(a, places[begin:end]), examples)
            return x, y, held[begin:end], counts[number]

        return tf.data.Dataset.range(tf.shape(counts, tf.int64)[0]).map(gather)

    kinds = (tf.int64, tf.float32, tf.int64, tf.int64)
    drawn = tf.data.Dataset.from_generator(
        blocks, output_signature=tuple(tf.TensorSpec((None,), kind) for kind in kinds)
    )
    drawn = drawn.prefetch(1).flat_map(batches)
    drawn = drawn.apply(tf.data.experimental.assert_cardinality((last - first) * parts))
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return drawn.prefetch(2).with_options(options)
