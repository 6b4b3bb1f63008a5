r"""One noisy sum from several workers: each clips its own examples and adds its share of the noise.

With W replicas, each draws noise of standard deviation :math:`\\sigma C / \\sqrt{W}` from a stream of its own; the
all-reduced sum then carries exactly :math:`\\sigma C`, whatever W is. Without a given seed each worker draws a secret
one of its own, and none knows all of the noise.
"""

from __future__ import annotations

import math

import tensorflow as tf

from tfprivacy_lab.checks import InputError
from tfprivacy_lab.dp.sampling import PoissonSample, ShuffledBatches


class Replicas:
    """The workers of the ``tf.distribute`` strategy in whose scope this is made; alone without one."""

    def __init__(self):
        self._strategy = tf.distribute.get_strategy() if tf.distribute.has_strategy() else None
        self.count = self._strategy.num_replicas_in_sync if self._strategy else 1
        self._here = len(self._strategy.extended.worker_devices) if self._strategy else 1
        resolver = getattr(self._strategy, "cluster_resolver", None)
        self._worker = (resolver.task_id or 0) if resolver is not None else 0

    def total(self, examples: int) -> int:
        """Private examples of all workers together; every worker brings its own."""
        if self.count == self._here:
            return examples
        counted = self._strategy.run(tf.function(lambda: tf.constant(examples, tf.int64)))
        return int(self._strategy.reduce(tf.distribute.ReduceOp.SUM, counted, axis=None)) // self._here

    def sampler(self, sampling: str, mine: int, total: int, batch_size: int, seed: int, first_step: int):
        """What draws this worker's part of each logical batch.

        Poisson samples of disjoint sets with one probability are together a Poisson sample of their union.

        Raises:
            InputError: for shuffled batches over several workers.
        """
        if sampling == "poisson":
            return PoissonSample(mine, batch_size / total, seed, self._worker)
        if self.count > 1:
            raise InputError("sampling='shuffled' is for one worker; use sampling='poisson'.")
        return ShuffledBatches(mine, batch_size, seed, first_step)

    def distribute(self, make):
        """The dataset that ``make(parts)`` gives, one element a replica of this worker."""
        if self._strategy is None:
            return make(1)
        return self._strategy.distribute_datasets_from_function(lambda _: make(self._here))

    def noisy_sum(self, total: list[tf.Tensor], noise, step: tf.Tensor, stddevs: list) -> list[tf.Tensor]:
        """The sums over replicas, each under noise of its standard deviation in all."""
        context = tf.distribute.get_replica_context()
        replica = context.replica_id_in_sync_group
        share = 1 / math.sqrt(self.count)
        noisy = noise.add(total, [share * stddev for stddev in stddevs], step, replica)
        return noisy if self.count == 1 else context.all_reduce(tf.distribute.ReduceOp.SUM, noisy)

    def apply(self, optimizer, gradients: list[tf.Tensor], variables) -> None:
        """Let the optimizer step by gradients that are the same on every replica already."""
        # Keras adds gradients up over the replicas, always, and clips each replica's before: one has all, others none.
        if self.count > 1:
            first = tf.distribute.get_replica_context().replica_id_in_sync_group == 0
            gradients = [tf.where(first, gradient, tf.zeros_like(gradient)) for gradient in gradients]
        optimizer.apply_gradients(list(zip(gradients, variables, strict=True)))
