r"""Logistic regression by plain gradient descent in NumPy: what training on shares is held against.

One step on n rows: :math:`w \leftarrow w - \tfrac{\eta}{n} \left(\sum_i (\sigma(w \cdot x_i) - y_i) x_i + z\right)`,
with z = 0, or noise that the caller drew. No privacy is claimed here: the caller's noise, if any, is what counts.
"""

from __future__ import annotations

import numpy as np
from scipy.special import expit


def fit(x, y, *, learning_rate: float, steps: int, start=None, noise=None) -> tuple[np.ndarray, np.ndarray]:
    """Train on all rows at once.

    Args:
        x: Features, (n, d).
        y: Labels 0 and 1, (n,) or (n, 1).
        learning_rate: Step size on the mean gradient.
        steps: Number of steps.
        start: (kernel, bias) to start from; zeros by default.
        noise: Added to the gradient sum of each step, (steps, d + 1), the bias last.

    Returns:
        Kernel (d, 1) and bias (1,), float64.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64).reshape(-1, 1)
    kernel, bias = (np.zeros((x.shape[1], 1)), np.zeros(1)) if start is None else map(np.asarray, start)
    noise = np.zeros((steps, x.shape[1] + 1)) if noise is None else noise
    for extra in noise:
        residual = expit(x @ kernel + bias) - y
        kernel = kernel - learning_rate / len(x) * (x.T @ residual + extra[:-1, None])
        bias = bias - learning_rate / len(x) * (residual.sum(0) + extra[-1:])
    return kernel, bias


def logits(x, kernel, bias) -> np.ndarray:
    """Two logits a row, (n, 2): zero, and that of label 1."""
    positive = np.asarray(x, np.float64) @ kernel + bias
    return np.hstack([np.zeros_like(positive), positive])
