"""The Laplace and the Gaussian mechanism: a query's answer, plus noise scaled to its sensitivity.

A mechanism M is (ε, δ)-differentially private if for all neighbouring datasets D1, D2 (one record added
or removed) and all sets S of outputs, :math:`\\Pr[M(D_1) \\in S] \\le e^\\varepsilon \\Pr[M(D_2) \\in S] + \\delta`
(Dwork and Roth 2014, Def. 2.4). What a mechanism costs at every ε is its privacy profile δ(ε).

No TensorFlow is imported here.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from scipy import optimize

from tfprivacy_lab.checks import InputError, check_all_finite, check_finite_number, settle
from tfprivacy_lab.dp.accounting.privacy_loss import analytic_gaussian
from tfprivacy_lab.dp.mechanisms import secure_noise

_LARGEST, _LARGEST_EPSILON = 1e100, 1e4
_SMALLEST_DELTA, _LARGEST_NOISE_MULTIPLIER = 1e-300, 1e12


@dataclasses.dataclass(frozen=True)
class LaplaceMechanism:
    r"""Release :math:`f(D) + \mathrm{Laplace}(b)`, independent noise on every coordinate.

    Attributes:
        sensitivity: Bound on the **L1** distance of f between neighbouring datasets, in f's unit, > 0.
        scale: Scale b of the noise, in f's unit, > 0; its standard deviation is :math:`\sqrt{2} b`.

    Raises:
        InputError: naming the argument that is out of range.

    Guarantee: ε-DP with :math:`\varepsilon = \Delta_1 / b` and δ = 0 (Dwork et al. 2006, Prop. 1), for
    reals. Not covered: the floating-point numbers that stand for them, see :mod:`.secure_noise`.
    """

    sensitivity: float
    scale: float

    def __post_init__(self):
        settle(self, sensitivity=check_finite_number("sensitivity", self.sensitivity, above=0, at_most=_LARGEST))
        settle(self, scale=check_finite_number("scale", self.scale, above=0, at_most=_LARGEST))

    @classmethod
    def calibrated(cls, sensitivity: float, epsilon: float) -> LaplaceMechanism:
        r"""The mechanism that spends ε: :math:`b = \Delta_1 / \varepsilon`.

        Raises:
            InputError: naming the argument.
        """
        sensitivity = check_finite_number("sensitivity", sensitivity, above=0, at_most=_LARGEST)
        epsilon = check_finite_number("epsilon", epsilon, above=0, at_most=_LARGEST_EPSILON)
        return cls(sensitivity, sensitivity / epsilon)

    @property
    def epsilon(self) -> float:
        """The pure ε, at which δ is zero."""
        return self.sensitivity / self.scale

    def delta(self, epsilon: float) -> float:
        r"""Privacy profile: the smallest δ at ε >= 0, :math:`\max(0, 1 - e^{(\varepsilon - \Delta_1/b)/2})`.

        Exact for a move along one coordinate. That is the worst case: splitting it as :math:`a + b = \Delta_1`
        over two coordinates takes :math:`\tfrac12 \min(a, b, \tfrac{a + b - \varepsilon}{2})
        e^{(\varepsilon - a - b)/2}` off δ (in units of the scale; tests integrate it).

        Raises:
            InputError: naming the argument.
        """
        epsilon = check_finite_number("epsilon", epsilon, at_least=0)
        return max(0.0, -math.expm1((epsilon - self.epsilon) / 2))

    def release(self, value, seed: int | None = None):
        """``value`` under fresh noise.

        Args:
            value: f(D): a number, or an array of any shape.
            seed: None takes noise from the operating system's cryptographic generator. A number is for
                tests and teaching: whoever knows it can subtract the noise.

        Returns:
            float64 of the shape of ``value``; a float for a number.

        Raises:
            InputError: if ``value`` is not finite and real.
        """
        value = _check_value(value)
        if seed is None:
            return _plain(value + secure_noise.secure_laplace(value.shape, self.scale))
        return _plain(value + secure_noise.seeded_generator(seed).laplace(scale=self.scale, size=value.shape))


@dataclasses.dataclass(frozen=True)
class GaussianMechanism:
    r"""Release :math:`f(D) + N(0, \sigma^2)`, independent noise on every coordinate.

    Attributes:
        sensitivity: Bound on the **L2** distance of f between neighbouring datasets, in f's unit, > 0.
        stddev: Standard deviation σ of the noise, in f's unit, > 0.

    Raises:
        InputError: naming the argument that is out of range.

    Guarantee: (ε, δ(ε))-DP for every ε >= 0 at once, with δ of :meth:`delta`; never with δ = 0. Not
    covered: floating-point numbers, see :mod:`tfprivacy_lab.dp.mechanisms.secure_noise`.
    """

    sensitivity: float
    stddev: float

    def __post_init__(self):
        settle(self, sensitivity=check_finite_number("sensitivity", self.sensitivity, above=0, at_most=_LARGEST))
        settle(self, stddev=check_finite_number("stddev", self.stddev, above=0, at_most=_LARGEST))

    @classmethod
    def classical(cls, sensitivity: float, epsilon: float, delta: float) -> GaussianMechanism:
        r"""The textbook's noise, :math:`\sigma = \Delta_2 \sqrt{2 \ln(1.25/\delta)} / \varepsilon`.

        Never less than :meth:`calibrated` needs; kept because papers quote it. Its proof needs ε < 1.

        Raises:
            InputError: naming the argument; for ε >= 1, where the formula is not proven and, further up, false.

        Source: Dwork and Roth 2014, Thm A.1.
        """
        sensitivity = check_finite_number("sensitivity", sensitivity, above=0, at_most=_LARGEST)
        epsilon = check_finite_number("epsilon", epsilon, above=0)
        delta = check_finite_number("delta", delta, at_least=_SMALLEST_DELTA, below=1)
        if epsilon >= 1:
            raise InputError(
                f"Expected epsilon < 1 for the classical calibration, got epsilon={epsilon:g}; "
                "use GaussianMechanism.calibrated, which holds for every epsilon."
            )
        return cls(sensitivity, sensitivity * math.sqrt(2 * math.log(1.25 / delta)) / epsilon)

    @classmethod
    def calibrated(cls, sensitivity: float, epsilon: float, delta: float) -> GaussianMechanism:
        """The least noise that is (ε, δ)-DP, found on the exact profile (analytic Gaussian mechanism).

        Returns:
            A mechanism with ``delta(epsilon) <= delta``; its noise is within a part in 10^8 of the optimum
            up to a noise multiplier of 10^4, and above it, never below, beyond.

        Raises:
            InputError: naming the argument, or if the noise multiplier would pass 10^12.

        Source: Balle and Wang 2018, Alg. 1 (here: Brent's method on log δ, which is monotone in σ).
        """
        sensitivity = check_finite_number("sensitivity", sensitivity, above=0, at_most=_LARGEST)
        epsilon = check_finite_number("epsilon", epsilon, at_least=0, at_most=_LARGEST_EPSILON)
        delta = check_finite_number("delta", delta, at_least=_SMALLEST_DELTA, below=1)

        # A part in 10^12 below δ, for the rounding of logarithms.
        target = math.log(delta) - 1e-12

        def excess(log_ratio: float) -> float:
            return analytic_gaussian.log_delta(math.exp(log_ratio), epsilon) - target

        low = high = 0.0
        while excess(high) > 0:
            low, high = high, high + 1
            if high > math.log(_LARGEST_NOISE_MULTIPLIER):
                raise InputError(
                    f"No noise up to {_LARGEST_NOISE_MULTIPLIER:g} times the sensitivity is shown to meet "
                    f"epsilon={epsilon:g}, delta={delta:g}; use a larger delta or epsilon."
                )
        while excess(low) <= 0:
            low, high = low - 1, low
        ratio = math.exp(optimize.brentq(excess, low, high, xtol=1e-14))
        while analytic_gaussian.log_delta(ratio, epsilon) > target:
            ratio *= 1 + 1e-11
        return cls(sensitivity, sensitivity * ratio)

    @property
    def noise_multiplier(self) -> float:
        """σ over the sensitivity, dimensionless."""
        return self.stddev / self.sensitivity

    def delta(self, epsilon: float) -> float:
        r"""Privacy profile: the smallest δ at ε >= 0.

        :math:`\Phi(\tfrac{\Delta}{2\sigma} - \tfrac{\varepsilon\sigma}{\Delta}) -
        e^\varepsilon \Phi(-\tfrac{\Delta}{2\sigma} - \tfrac{\varepsilon\sigma}{\Delta})`, exact
        (Balle and Wang 2018, Thm 8).

        Raises:
            InputError: naming the argument.
        """
        epsilon = check_finite_number("epsilon", epsilon, at_least=0)
        return math.exp(analytic_gaussian.log_delta(self.noise_multiplier, epsilon))

    def epsilon(self, delta: float) -> float:
        """The smallest ε at δ in (0, 1): the profile, inverted; 0 if δ(0) is no more than δ.

        Raises:
            InputError: naming the argument.
        """
        delta = check_finite_number("delta", delta, at_least=_SMALLEST_DELTA, below=1)
        return analytic_gaussian.gaussian_epsilon(self.noise_multiplier, delta)

    def release(self, value, seed: int | None = None):
        """``value`` under fresh noise; arguments and result as :meth:`LaplaceMechanism.release`.

        Raises:
            InputError: if ``value`` is not finite and real.
        """
        value = _check_value(value)
        if seed is None:
            return _plain(value + secure_noise.secure_normal(value.shape, self.stddev, dtype=np.float64))
        return _plain(value + secure_noise.seeded_generator(seed).normal(scale=self.stddev, size=value.shape))


def _check_value(value) -> np.ndarray:
    array = np.asarray(value)
    if array.dtype.kind not in "fiub":
        raise InputError(f"Expected value to hold real numbers, got dtype {array.dtype}.")
    array = array.astype(np.float64)
    check_all_finite("value", array)
    return array


def _plain(array: np.ndarray):
    return float(array) if np.ndim(array) == 0 else array
