"""One worker of the two that ``test_replicas.py`` starts: trains on its own examples, writes what came out."""

import sys

import keras
import numpy as np
import tensorflow as tf

from tfprivacy_lab.dp import PrivateModel
from tfprivacy_lab.dp.training.replicas import Replicas

layers = keras.layers
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


class FixedDraws:
    """A sampler that draws what it is told, at every step."""

    def __init__(self, drawn):
        self.drawn = drawn

    def indices(self, step):
        return self.drawn


def one_step(strategy, x, y, drawn):
    """A noiseless step of a batch of 64 in which this worker draws the rows ``drawn``."""
    sampler, Replicas.sampler = Replicas.sampler, lambda *_: FixedDraws(drawn)
    try:
        return trained(strategy, x, y, hidden=0, noise_multiplier=0.0, batch_size=64, steps=1)
    finally:
        Replicas.sampler = sampler


def trained(
    strategy, x, y, *, hidden, noise_multiplier, weights=None, rate=0.5, batch_size, steps, seed=7, again=0, **options
):
    """Weights before and after ``steps`` steps, and what the model says it did.

    With ``again``, so many times more from the same weights, under draws of their own; the accuracies are all.
    """
    with strategy.scope():
        keras.utils.set_random_seed(1)
        between = [layers.Dense(hidden, "tanh")] if hidden else []
        model = keras.Sequential([layers.Input(x.shape[1:]), *between, layers.Dense(10)])
        private = PrivateModel(model, l2_norm_clip=1.0, noise_multiplier=noise_multiplier, seed=seed, **options)
        private.compile(keras.optimizers.SGD(rate), LOSS, metrics=["accuracy"])
    before = model.get_weights()
    shown = private.fit(x, y, batch_size, steps_per_epoch=steps, sample_weight=weights, verbose=0).history
    (phase,) = private.phases()
    after = model.get_weights()
    accuracies = [private.evaluate(x, y, verbose=0)[1]]
    for _ in range(again):
        model.set_weights(before)
        private.fit(x, y, batch_size, steps_per_epoch=steps, sample_weight=weights, verbose=0)
        accuracies.append(private.evaluate(x, y, verbose=0)[1])
    return {
        "before": np.concatenate([array.ravel() for array in before]),
        "after": np.concatenate([array.ravel() for array in after]),
        "epsilon": shown["epsilon"][-1],
        "loss": shown["loss"][-1],
        "accuracy": accuracies,
        "examples": phase.examples,
        "steps": phase.steps,
    }


def main(data, out):
    """Every case on this worker's half."""
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    rank, workers = strategy.cluster_resolver.task_id or 0, strategy.num_replicas_in_sync
    given = np.load(data)
    x, y = given["x"][rank::workers], given["y"][rank::workers]
    drawn = np.arange(0, len(x), 23)
    cases = {
        "noiseless": trained(strategy, x, y, hidden=8, noise_multiplier=0.0, batch_size=64, steps=6),
        "slow": trained(
            strategy, x, y, hidden=8, noise_multiplier=0.0, batch_size=64, steps=6, unknown_layers="slow"
        ),
        # The wildest example, first of the first worker's, is there and drawn, or is not there at all.
        "everyone": one_step(strategy, x, y, drawn),
        "neighbour": one_step(strategy, x[1:], y[1:], drawn[1:] - 1) if rank == 0 else one_step(strategy, x, y, drawn),
        "silent": trained(
            strategy, x, y, hidden=300, noise_multiplier=1.5, weights=np.zeros(len(x)), batch_size=64, steps=3
        ),
        "secure": trained(
            strategy, x, y, hidden=300, noise_multiplier=1.5, weights=np.zeros(len(x)), batch_size=64, steps=3,
            noise="secure", seed=None,
        ),
        "learnt": trained(strategy, x, y, hidden=0, noise_multiplier=1.0, batch_size=256, steps=60, rate=2.0, again=7),
    }  # fmt: skip
    np.savez(out, **{f"{case}/{name}": value for case, found in cases.items() for name, value in found.items()})


if __name__ == "__main__":
    main(*sys.argv[1:])
