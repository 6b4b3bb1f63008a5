r"""Mean and variance of each column under differential privacy, to scale inputs by in place of exact ones.

A ``Normalization`` layer that was adapted to private rows, or a scaler fitted to them, carries exact statistics out
with the model. These carry noise, at a cost that is known before any is drawn.

No TensorFlow is imported here.
"""

from __future__ import annotations

import dataclasses
import math

import dp_accounting
import numpy as np

from tfprivacy_lab.checks import InputError, check_all_finite, check_choice, check_finite_number, check_matrix, settle
from tfprivacy_lab.dp.accounting.adjacency import ADD_OR_REMOVE_ONE, ZERO_OUT
from tfprivacy_lab.dp.mechanisms.additive import GaussianMechanism

# The largest of u² + (u² - 1/2)² for u in [-1, 1].
_LARGEST_SQUARE = 1.25


@dataclasses.dataclass(frozen=True, eq=False)
class PrivateScale:
    r"""Release each column's mean and variance by one Gaussian mechanism.

    Values are cut to [low, high] and brought to u in [-1, 1]. What gets noise is the sum over rows of
    :math:`v = (u_1, …, u_d, u_1^2 - \tfrac12, …, u_d^2 - \tfrac12)`, and of a 1 where the number of rows is private.

    ``ledger.register("scale", scale.event())``, then ``mean, variance = scale.release(x)``, then
    ``keras.layers.Normalization(mean=mean, variance=variance)``.

    Args:
        low: Lower bound of each column, (d,), in the column's unit. From knowledge of the field, not from the data.
        high: Upper bounds, (d,), above ``low``.
        noise_multiplier: Noise standard deviation over the sensitivity, > 0.
        count: Number of rows to divide by, >= 1, a public constant that stays what it is when a row is added or
            removed; None if it is private, and gets noise too.

    Raises:
        InputError: naming the argument.

    Guarantee: what a Gaussian mechanism of that noise multiplier has, for add-or-remove-one and for zero-out, since
    :math:`\|v\|^2 \le \tfrac54 d`, and one more for the count. Not covered: bounds or a count that were read off the
    data; floating-point numbers, see :mod:`tfprivacy_lab.dp.mechanisms.secure_noise`.
    """

    low: np.ndarray
    high: np.ndarray
    noise_multiplier: float
    count: int | None = None

    def __post_init__(self):
        bounds = []
        for name in ("low", "high"):
            array = np.asarray(getattr(self, name))
            if array.dtype.kind not in "fiu" or array.ndim != 1 or array.size == 0:
                raise InputError(f"Expected {name} to be one number per column, got {getattr(self, name)!r}.")
            array = array.astype(np.float64)
            check_all_finite(name, array)
            settle(self, **{name: array})
            bounds.append(array)
        low, high = bounds
        if low.shape != high.shape or not np.all(low < high) or not np.all(np.isfinite(high - low)):
            raise InputError(f"Expected low < high for every column, got low={low} and high={high}.")
        settle(self, noise_multiplier=check_finite_number("noise_multiplier", self.noise_multiplier, above=0))
        if self.count is not None:
            settle(self, count=check_finite_number("count", self.count, at_least=1))

    @classmethod
    def calibrated(cls, low, high, *, epsilon: float, delta: float, count: int | None = None) -> PrivateScale:
        """The one that spends (ε, δ) by itself.

        Raises:
            InputError: naming the argument.
        """
        return cls(low, high, GaussianMechanism.calibrated(1.0, epsilon, delta).noise_multiplier, count)

    def event(self) -> dp_accounting.DpEvent:
        """What a release costs, for accountants and ledgers; charge it before it is drawn."""
        return dp_accounting.GaussianDpEvent(self.noise_multiplier)

    def epsilon(self, delta: float) -> float:
        """ε of one release by itself, at δ in (0, 1)."""
        return self._mechanism().epsilon(delta)

    def sensitivity(self, adjacency: str = ADD_OR_REMOVE_ONE) -> float:
        r"""How far one row moves :meth:`sums`, in L2: :math:`\sqrt{\tfrac54 d}`, or that of one more for the count.

        The same whether a row is added, removed or becomes zero: it is the norm of what one row adds.
        """
        check_choice("adjacency", adjacency, (ADD_OR_REMOVE_ONE, ZERO_OUT))
        return math.sqrt(_LARGEST_SQUARE * self.low.size + (self.count is None))

    def sums(self, examples) -> np.ndarray:
        """What gets the noise: sums over rows of u, of u² - 1/2, and of 1 where the count is private.

        Args:
            examples: (n, d), real and finite.

        Raises:
            InputError: if they are not.
        """
        rows = check_matrix("examples", examples, columns=self.low.size)
        u = np.clip((np.clip(rows, self.low, self.high) - self.low) / (self.high - self.low) * 2 - 1, -1, 1)
        found = [u.sum(0), (u**2 - 0.5).sum(0)]
        return np.concatenate([*found, [float(len(rows))]] if self.count is None else found)

    def release(self, examples, seed: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance of each column, under fresh noise.

        Args:
            examples: (n, d), real and finite.
            seed: None takes noise from the operating system's cryptographic generator. A number is for tests and
                teaching: whoever knows it can subtract the noise.

        Returns:
            mean (d,) within the bounds, and variance (d,), which is never below what noise alone would show: a column
            that hardly varies is scaled by little, not blown up.

        Raises:
            InputError: naming the argument.
        """
        noisy = self._mechanism().release(self.sums(examples), seed)
        d, half = self.low.size, (self.high - self.low) / 2
        n = self.count if self.count is not None else max(1.0, noisy[-1])
        mean = np.clip(noisy[:d] / n, -1, 1)
        smallest = min(1.0, self._mechanism().stddev / n)
        variance = np.clip(noisy[d : 2 * d] / n + 0.5 - mean**2, smallest, 1)
        return self.low + half * (mean + 1), half**2 * variance

    def _mechanism(self) -> GaussianMechanism:
        return GaussianMechanism(self.sensitivity(), self.noise_multiplier * self.sensitivity())
