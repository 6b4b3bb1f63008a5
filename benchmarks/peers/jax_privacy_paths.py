"""JAX-Privacy's clipped_grad, against the same JAX model without privacy.

``.venv-peers/bin/python benchmarks/peers/jax_privacy_paths.py PATH MODEL BATCH``, with benchmarks/ in PYTHONPATH.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import jax_privacy
import measurement
import numpy as np
import optax
from measurement import EXAMPLES, L2_NORM_CLIP, LEARNING_RATE, NOISE_MULTIPLIER

_CONVOLUTION = functools.partial(jax.lax.conv_general_dilated, dimension_numbers=("NHWC", "HWIO", "NHWC"))
# By default all examples' gradients are made at once; one at a time is far quicker on a processor.
_MICROBATCHES = {"JAX-Privacy clipped_grad": None, "JAX-Privacy clipped_grad, microbatch 1": 1}
_SHAPES = {
    "document_mlp": [(784, 128), (128, 10)],
    "tutorial_cnn": [(8, 8, 1, 16), (4, 4, 16, 32), (512, 32), (32, 10)],
}


def initial(name: str) -> list:
    """Kernels and zero biases of a model."""
    keys = jax.random.split(jax.random.key(0), len(_SHAPES[name]))
    kernels = [
        jax.random.normal(key, shape) / math.sqrt(math.prod(shape[:-1]))
        for key, shape in zip(keys, _SHAPES[name], strict=True)
    ]
    return [(kernel, jnp.zeros(kernel.shape[-1])) for kernel in kernels]


def document_mlp(weights, images, key):
    """784-128-10 with dropout 0.2; logits."""
    (kernel, bias), (last, last_bias) = weights
    hidden = jax.nn.relu(images.reshape(len(images), -1) @ kernel + bias)
    hidden = jnp.where(jax.random.bernoulli(key, 0.8, hidden.shape), hidden / 0.8, 0.0)
    return hidden @ last + last_bias


def tutorial_cnn(weights, images, key):
    """The convolutional network of TensorFlow Privacy's tutorial; logits."""
    del key
    hidden = images
    for (kernel, bias), padding in zip(weights[:2], ("SAME", "VALID"), strict=True):
        hidden = jax.nn.relu(_CONVOLUTION(hidden, kernel, (2, 2), padding) + bias)
        hidden = jax.lax.reduce_window(hidden, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 1, 1, 1), "VALID")
    (kernel, bias), (last, last_bias) = weights[2:]
    return jax.nn.relu(hidden.reshape(len(hidden), -1) @ kernel + bias) @ last + last_bias


class JaxPath:
    """A compiled step on arrays in memory, shuffled."""

    def __init__(self, name: str, examples, labels, batch: int, private: bool, microbatch_size: int | None = None):
        self.examples, self.labels, self.batch = examples, labels, batch
        self.state = initial(name)
        self.weights = sum(weight.size for weight in jax.tree.leaves(self.state))
        forward = {"document_mlp": document_mlp, "tutorial_cnn": tutorial_cnn}[name]

        def loss(weights, images, labels, key):
            logits = forward(weights, images, key)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        optimizer = optax.sgd(LEARNING_RATE)
        gradient = jax.grad(loss)
        if private:
            gradient = jax_privacy.clipped_grad(
                loss, l2_clip_norm=L2_NORM_CLIP, batch_argnums=(1, 2), prng_argnum=3, normalize_by=batch,
                microbatch_size=microbatch_size,
            )  # fmt: skip
            stddev = NOISE_MULTIPLIER * gradient.sensitivity()
            privatizer = jax_privacy.noise_addition.gaussian_privatizer(stddev=stddev / batch, prng_key=0)
            optimizer = optax.chain(privatizer, optimizer)
        self.optimizer_state = optimizer.init(self.state)
        self.key = jax.random.key(1)

        @functools.partial(jax.jit, donate_argnums=(0, 1))
        def step(weights, optimizer_state, key, images, labels):
            key, subkey = jax.random.split(key)
            updates, optimizer_state = optimizer.update(gradient(weights, images, labels, subkey), optimizer_state)
            return optax.apply_updates(weights, updates), optimizer_state, key

        self._step = step

    def fit(self, steps: int) -> None:
        generator = np.random.default_rng(0)
        for step in range(steps):
            start = step * self.batch % (len(self.examples) - self.batch + 1)
            if start == 0:
                order = generator.permutation(len(self.examples))
            rows = order[start : start + self.batch]
            self._run(self.examples[rows], self.labels[rows])
        jax.block_until_ready(self.state)

    def bare(self, steps: int) -> None:
        images, labels = jnp.asarray(self.examples[: self.batch]), jnp.asarray(self.labels[: self.batch])
        for _ in range(steps):
            self._run(images, labels)
        jax.block_until_ready(self.state)

    def _run(self, images, labels):
        self.state, self.optimizer_state, self.key = self._step(
            self.state, self.optimizer_state, self.key, images, labels
        )


def main() -> None:
    """Measure the path that the command line names."""
    arguments = measurement.parse_arguments(["jax", *_MICROBATCHES])
    generator = np.random.default_rng(0)
    examples = generator.random((EXAMPLES, 28, 28, 1), np.float32)
    labels = generator.integers(0, 10, EXAMPLES).astype(np.int32)

    def path(private):
        size = _MICROBATCHES.get(arguments.path)
        return JaxPath(arguments.model, examples, labels, arguments.batch, private, size)

    alone = arguments.alone or arguments.path == "jax"
    measurement.measure(lambda: path(arguments.path != "jax"), None if alone else lambda: path(False), arguments)


if __name__ == "__main__":
    main()
