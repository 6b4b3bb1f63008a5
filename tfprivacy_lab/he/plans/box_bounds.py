r"""Squares of a layer over all inputs in range, as quadratic forms: signs count, so that most of it cancels.

With inputs :math:`x = c + r u`, :math:`u \in [-1, 1]^d`, weights V and a layer :math:`z_h = w_h \cdot x + b_h`,

.. math:: \sum_h V_h z_h^2 = \sum_h V_h y_h^2 + 2 r\, g \cdot u + r^2\, u^T Q u, \quad
    y_h = w_h \cdot c + b_h,\; g = \sum_h V_h y_h w_h,\; Q = \sum_h V_h w_h w_h^T,

lies within :math:`2 r \|g\|_1` and d times the eigenvalues of Q, as :math:`\|u\|_2^2 \le d`. What a change
:math:`\delta_h` of the :math:`w_h` makes of it is to first order a form of the same kind,
:math:`2 \sum_h V_h (w_h \cdot x + b_h)(\delta_h \cdot x)`.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

MAX_COST = 2**33
"""Outputs times the cube of a form's size: beyond, eigenvalues take too long, and norms of the factors bound them."""
_SLACK = 1 + 2.0**-30
"""What float64 may lose."""


@dataclasses.dataclass(frozen=True, eq=False)
class SquaresOverBox:
    """A layer's squares, for inputs in range.

    Args:
        kernel: w, float (inputs, hidden).
        change: The changes of w, (inputs, hidden).
        bias: b, (hidden,).
        input_range: Lowest and highest value of any input.
    """

    kernel: np.ndarray
    change: np.ndarray
    bias: np.ndarray
    input_range: tuple[float, float]

    def values(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Between what :math:`\\sum_h V_h z_h^2` lies, for every column V of (hidden, outputs)."""
        linear = 2 * self._radius * np.abs(self.kernel @ (self._middle[:, np.newaxis] * weights)).sum(axis=0)
        least, most = self._eigenvalues(weights, self._factors[0], self._factors[0], 0.5)
        centre, slack = np.square(self._middle) @ weights, (_SLACK - 1) * (np.square(self._middle) @ np.abs(weights))
        return centre - (linear - least) * _SLACK - slack, centre + (linear + most) * _SLACK + slack

    def changes(self, weights: np.ndarray) -> np.ndarray:
        """Bound on :math:`|2 \\sum_h V_h z_h (\\delta_h \\cdot x)|`, for every column V of (hidden, outputs)."""
        moved, scaled = self._centre @ self.change, 2 * weights
        at_centre = np.abs((self._middle * moved) @ scaled)
        linear = self.kernel @ (moved[:, np.newaxis] * scaled) + self.change @ (self._middle[:, np.newaxis] * scaled)
        least, most = self._eigenvalues(weights, *self._factors, 1.0)
        slack = (_SLACK - 1) * (np.abs(self._middle * moved) @ np.abs(scaled))
        return (at_centre + self._radius * np.abs(linear).sum(axis=0) + np.maximum(-least, most)) * _SLACK + slack

    @functools.cached_property
    def _factors(self) -> tuple[np.ndarray, np.ndarray]:
        """Kernel and change in a common basis, which forms do not tell from the first."""
        both = np.hstack([self.kernel, self.change])
        both = np.linalg.qr(both, mode="r") if both.shape[0] > both.shape[1] else both
        return both[:, : self.kernel.shape[1]], both[:, self.kernel.shape[1] :]

    @property
    def _radius(self) -> float:
        return (self.input_range[1] - self.input_range[0]) / 2

    @property
    def _centre(self) -> np.ndarray:
        return np.full(len(self.kernel), (self.input_range[1] + self.input_range[0]) / 2)

    @property
    def _middle(self) -> np.ndarray:
        """y."""
        return self._centre @ self.kernel + self.bias

    def _eigenvalues(self, weights, left, right, factor: float) -> tuple[np.ndarray, np.ndarray]:
        """What :math:`r^2 u^T Q u` is at least and at most, with Q the sum of both products of left and right."""
        scale = self._radius**2 * len(self.kernel)
        if weights.shape[1] * len(left) ** 3 > MAX_COST:
            norms = np.linalg.norm(left, 2) * np.linalg.norm(right, 2)
            most = scale * 2 * factor * norms * np.abs(weights).max(axis=0)
            return -most, most
        least, most = np.zeros(weights.shape[1]), np.zeros(weights.shape[1])
        for number, column in enumerate(weights.T):
            product = (left * column) @ right.T
            found = np.linalg.eigvalsh(factor * (product + product.T))
            # A form of rank below its size has the eigenvalue 0, too.
            least[number], most[number] = min(found[0], 0.0), max(found[-1], 0.0)
        return scale * least, scale * most
