"""One worker of the two that ``test_replicas.py`` starts: trains on its own examples, writes what came out."""

import sys

import numpy as np
import tensorflow as tf

from tfprivacy_lab.dp import PrivateModel

layers = tf.keras.layers
LOSS = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def trained(strategy, x, y, *, hidden, noise_multiplier, weights=None, rate=0.5, batch_size, steps, seed=7, **options):
    """Weights before and after ``steps`` steps, and what the model says it did."""
    with strategy.scope():
        tf.keras.utils.set_random_seed(1)
        between = [layers.Dense(hidden, "tanh")] if hidden else []
        model = tf.keras.Sequential([layers.Input(x.shape[1:]), *between, layers.Dense(10)])
        private = PrivateModel(model, l2_norm_clip=1.0, noise_multiplier=noise_multiplier, seed=seed, **options)
        private.compile(tf.keras.optimizers.SGD(rate), LOSS, metrics=["accuracy"])
    before = model.get_weights()
    shown = private.fit(x, y, batch_size, steps_per_epoch=steps, sample_weight=weights, verbose=0).history
    (phase,) = private.phases()
    return {
        "before": np.concatenate([array.ravel() for array in before]),
        "after": np.concatenate([array.ravel() for array in model.get_weights()]),
        "epsilon": shown["epsilon"][-1],
        "loss": shown["loss"][-1],
        "accuracy": private.evaluate(x, y, verbose=0)[1],
        "examples": phase.examples,
        "steps": phase.steps,
    }


def main(data, out):
    """Every case on this worker's half."""
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    rank, workers = strategy.cluster_resolver.task_id or 0, strategy.num_replicas_in_sync
    given = np.load(data)
    x, y = given["x"][rank::workers], given["y"][rank::workers]
    cases = {
        "noiseless": trained(strategy, x, y, hidden=8, noise_multiplier=0.0, batch_size=64, steps=6),
        "slow": trained(
            strategy, x, y, hidden=8, noise_multiplier=0.0, batch_size=64, steps=6, unknown_layers="slow"
        ),
        # Everyone takes part; in the second, but the wildest example of the first worker.
        "everyone": trained(strategy, x, y, hidden=0, noise_multiplier=0.0, batch_size=len(given["x"]), steps=1),
        "neighbour": trained(
            strategy, x, y, hidden=0, noise_multiplier=0.0, batch_size=len(given["x"]), steps=1,
            weights=np.where((np.arange(len(x)) == 0) & (rank == 0), 0.0, 1.0),
        ),
        "silent": trained(
            strategy, x, y, hidden=300, noise_multiplier=1.5, weights=np.zeros(len(x)), batch_size=64, steps=3
        ),
        "secure": trained(
            strategy, x, y, hidden=300, noise_multiplier=1.5, weights=np.zeros(len(x)), batch_size=64, steps=3,
            noise="secure", seed=None,
        ),
        "learnt": trained(strategy, x, y, hidden=0, noise_multiplier=1.0, batch_size=256, steps=60, rate=2.0),
    }  # fmt: skip
    np.savez(out, **{f"{case}/{name}": value for case, found in cases.items() for name, value in found.items()})


if __name__ == "__main__":
    main(*sys.argv[1:])
