"""Logical batches as a tf.data pipeline: examples drawn by index, laid out in rows, padding masked."""

from __future__ import annotations

import math
import threading

import numpy as np
import tensorflow as tf

# Python draws so many steps at a time, so that it seldom stands between TensorFlow and the interpreter's lock.
_STEPS_AT_ONCE = 64
# Logical batches that are laid out meanwhile; each is in memory whole.
_GATHERED_AT_ONCE = 2


def pipeline(sampler, examples: tuple, first: int, last: int, *, rows: int, parts: int = 1) -> tf.data.Dataset:
    """Logical steps first..last-1 as (x, y, weights, count).

    Args:
        sampler: Has ``indices(step)``.
        examples: What :func:`tfprivacy_lab.dp.examples.arrays.checked` gave.
        first: First step.
        last: Step after the last.
        rows: Each batch is padded to a multiple of this many rows, an empty one to as many.
        parts: Devices of this process that share a step: each step is cut into so many elements.

    Returns:
        A dataset, to be read once, whose elements' first axis varies: x, y, and weights that are 0 on padding;
        ``count`` is the number of rows that hold an example, first in order.
    """

    *examples, weights = examples
    weights = weights.numpy()

    claimed = threading.Lock()

    def claim():
        if not claimed.acquire(blocking=False):  # Keras begins again on what it takes to be used up.
            raise RuntimeError("These batches were drawn already: a sample that comes twice is none.")
        return np.int64(-(-(last - first) // _STEPS_AT_ONCE))

    def block(number):
        start = first + number * _STEPS_AT_ONCE
        numbers = range(start, min(start + _STEPS_AT_ONCE, last))
        drawn = [indices[part::parts] for indices in map(sampler.indices, numbers) for part in range(parts)]
        counts = np.array([one.size for one in drawn])
        ends = np.append(0, np.cumsum(np.maximum(1, -(-counts // rows)) * rows))
        places, held = np.zeros(ends[-1], np.int64), np.zeros(ends[-1], np.float32)
        for one, begin in zip(drawn, ends[:-1], strict=True):
            places[begin : begin + one.size] = one
            held[begin : begin + one.size] = weights[one]
        return places, held, ends, counts

    @tf.autograph.experimental.do_not_convert
    def claimed_blocks(_number):
        return tf.ensure_shape(tf.numpy_function(claim, [], tf.int64), ())

    @tf.autograph.experimental.do_not_convert
    def blockwise(number):
        found = tf.numpy_function(block, [number], (tf.int64, tf.float32, tf.int64, tf.int64))
        return tuple(tf.ensure_shape(part, (None,)) for part in found)

    @tf.autograph.experimental.do_not_convert
    def steps(places, held, ends, counts):
        def one(number):
            begin, end = ends[number], ends[number + 1]
            return places[begin:end], held[begin:end], counts[number]

        return tf.data.Dataset.range(tf.shape(counts, tf.int64)[0]).map(tf.autograph.experimental.do_not_convert(one))

    @tf.autograph.experimental.do_not_convert
    def gathered(places, held, count):
        x, y = tf.nest.map_structure(lambda a: tf.gather(a, places), examples)
        return x, y, held, count

    # Not from_generator, which sets for the whole process how soon the allocator gives memory back. Whoever reads asks
    # once for all blocks: where that fails there is nothing after it, though tf.data goes on after an error.
    found = tf.data.Dataset.range(1).map(claimed_blocks)
    found = found.flat_map(tf.data.Dataset.range).map(blockwise)
    found = found.prefetch(1).flat_map(steps).map(gathered, num_parallel_calls=_GATHERED_AT_ONCE, deterministic=True)
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    # They would write the whole pipeline, and all examples with it, into a graph first.
    options.experimental_optimization.apply_default_optimizations = False
    return found.prefetch(2).with_options(options)


def rounding(batch_size: int) -> int:
    """Rows to whose multiples a batch is padded: few shapes, each of which TensorFlow prepares for once.

    A Poisson batch spreads by about the root of its size; steps of that make a handful of shapes.
    """
    return 2 ** max(0, round(math.log2(math.sqrt(batch_size))))
