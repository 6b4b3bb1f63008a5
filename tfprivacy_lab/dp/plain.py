r"""DP-SGD in thirty lines of NumPy, to be read first: Algorithm 1 of Abadi et al. (2016).

A step takes each of n examples with probability :math:`q = B / n`, a coin of its own each, and moves the weights by

.. math:: \theta \leftarrow \theta - \frac{\eta}{B} \Big( \sum_{i \in S} \frac{g_i}{\max(1, \|g_i\| / C)}
    + N(0, \sigma^2 C^2 I) \Big).

:math:`\|g_i\|` is over all weights of the model together, noise is drawn once per logical batch S, and B is the
*expected* size of S, a constant: the size that was drawn is private.

This is the oracle. The fast engine, :class:`tfprivacy_lab.dp.PrivateModel` with ``clipping_method="flat"``, Poisson
sampling and SGD without momentum, must come to these weights when it is given these samples and this noise; tests see
to it, and nothing of the package imports this module. The engine clips one millionth inside C, which makes up for the
rounding of float32.

>>> rng = np.random.default_rng(0)
>>> x, y = np.array([[0.0, 1.0], [1.0, 0.0]] * 20), np.array([0, 1] * 20)
>>> start = [np.zeros((2, 2)), np.zeros(2)]
>>> kernel, bias = dp_sgd(
...     softmax_gradient, start, x, y, poisson_samples(40, 10, 30, rng), standard_normals(start, 30, rng),
...     batch_size=10, l2_norm_clip=1.0, noise_multiplier=1.0, learning_rate=0.5,
... )
>>> (x @ kernel + bias).argmax(axis=1)[:4]
array([0, 1, 0, 1])

*Guarantee*: with secret coins and noise, what any :class:`tfprivacy_lab.dp.DpSgdRun` of the same n, B, σ and number of
steps is accounted, for one example added or removed. *Not covered*: NumPy's generator, which can be predicted;
arguments, which are not checked. For data that matter use ``PrivateModel``, and give it no seed.
"""

from __future__ import annotations

import numpy as np


def softmax_gradient(weights, x, label):
    """Gradient of one example's cross-entropy, for softmax regression: weights are a kernel (d, c) and a bias (c,)."""
    kernel, bias = weights
    logits = x @ kernel + bias
    error = np.exp(logits - logits.max())
    error /= error.sum()
    error[label] -= 1
    return [np.outer(x, error), error]


def clip(gradient, l2_norm_clip):
    r"""One example's gradient over :math:`\max(1, \|g\| / C)`, the norm over all its arrays together."""
    norm = np.sqrt(sum(np.sum(part**2) for part in gradient))
    return [part / max(1, norm / l2_norm_clip) for part in gradient]


def poisson_samples(examples, batch_size, steps, rng):
    """Positions of each step's examples: every example joins every step by a coin of its own."""
    for _ in range(steps):
        yield np.flatnonzero(rng.random(examples) < batch_size / examples)


def standard_normals(weights, steps, rng):
    """Standard Gaussian arrays of the weights' shapes, for each step."""
    for _ in range(steps):
        yield [rng.normal(size=np.shape(array)) for array in weights]


def noisy_mean(gradient, weights, x, y, sample, normal, *, batch_size, l2_norm_clip, noise_multiplier):
    """Clip each example's gradient, sum, add noise once, divide by the expected batch size."""
    total = [noise_multiplier * l2_norm_clip * array for array in normal]
    for i in sample:
        clipped = clip(gradient(weights, x[i], y[i]), l2_norm_clip)
        total = [a + b for a, b in zip(total, clipped, strict=True)]
    return [array / batch_size for array in total]


def dp_sgd(gradient, weights, x, y, samples, normals, *, learning_rate, **settings):
    """Algorithm 1: a step of SGD along the noisy mean for each of the samples.

    Args:
        gradient: From (weights, one x, one y) to that example's gradient, an array per weight.
        weights: Arrays to begin from.
        x: Private inputs, (n, ...).
        y: Labels, (n, ...).
        samples: Positions of the examples of each step, as :func:`poisson_samples` draws them.
        normals: Standard Gaussian arrays of the weights' shapes for each step, as of :func:`standard_normals`.
        learning_rate: Step size η on the noisy mean.
        **settings: ``batch_size`` B, ``l2_norm_clip`` C and ``noise_multiplier`` σ.

    Returns:
        The weights after the last step, float64.
    """
    weights = [np.asarray(array, np.float64) for array in weights]
    for sample, normal in zip(samples, normals, strict=True):
        mean = noisy_mean(gradient, weights, x, y, sample, normal, **settings)
        weights = [array - learning_rate * step for array, step in zip(weights, mean, strict=True)]
    return weights
