"""A head in floats to one in integers, its logits back, and the integer oracle.

Features: :math:`X = rint(x / 2^{e + k_i})`, :math:`|X| \\le 2^{feature\\_bits}`, the steps public
(:mod:`~tfprivacy_lab.he.quantization.steps`).
Head: :math:`W = rint(w\\,2^{k_i} s)`, :math:`B = rint(b\\,s / 2^e)`, the weight scale :math:`s` as large as the proved
limits of :mod:`.limits` allow for the integer columns as they are; under a sanitising set a power of
two, as the scale travels with the reply and would tell more of the weights' size.
Result: :math:`Y = X W + B`, logits :math:`Y\\,2^e / s`.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from tfprivacy_lab.checks import InputError, check_finite_number, check_matrix, check_numbers, settle
from tfprivacy_lab.he.quantization import limits
from tfprivacy_lab.he.ring.parameters import MAX_CLASSES, MAX_FEATURES, Parameters

MIN_WEIGHT = 16
"""The largest integer weight must reach this: at least 4 bits of relative precision."""


def check_head(kernel, bias) -> tuple[np.ndarray, np.ndarray]:
    """A dense head's kernel (d, c) and bias (c,) as finite float64, within the stated caps.

    Raises:
        InputError: naming the kernel or the bias.
    """
    kernel = check_matrix("kernel", kernel)
    if kernel.shape[0] > MAX_FEATURES or kernel.shape[1] > MAX_CLASSES:
        raise InputError(
            f"Expected kernel of at most {MAX_FEATURES} inputs and {MAX_CLASSES} outputs, got shape {kernel.shape}."
        )
    bias = np.zeros(kernel.shape[1]) if bias is None else check_numbers("bias", bias)
    if bias.shape != kernel.shape[1:]:
        raise InputError(f"Expected bias of shape {kernel.shape[1:]} beside kernel {kernel.shape}, got {bias.shape}.")
    return kernel, bias


@dataclasses.dataclass(frozen=True, eq=False)
class QuantizedHead:
    """A dense head in integers that provably neither overflows nor drowns in noise; refused otherwise.

    Args:
        kernel: Integers, shape (d, c), Keras convention.
        bias: Integers in units of ``2**(step_exponent + bias_shift) / weight_scale``, shape (c,); the set's
            ``bias_shift`` is 0 but for sets of more than 31 feature bits.
        weight_scale: Float s, > 0: an integer weight of 1 stands for 1/s.
        step_exponent: e of the features' step.
        parameters: The scheme's set.
        packing: One of the set's packings.
        column_steps: k of every column's step, folded into the kernel's rows; empty if all are 0.
        rounded_away: Rows of the float kernel that are not zero, and are in integers.

    Raises:
        InputError: if for some features within the bound a result could leave the plaintext range, a
            noise coefficient the room for it, or a product the 53 bits of float64.

    Guarantee: for every quantised feature vector, :func:`integer_logits` equals what BFV decrypts to,
        but for a probability of 2**-64 a reply; CKKS decrypts within :meth:`error_bound`.
    """

    kernel: np.ndarray
    bias: np.ndarray
    weight_scale: float
    step_exponent: int
    parameters: Parameters
    packing: str = "batched"
    column_steps: tuple[int, ...] = ()
    rounded_away: int = 0

    def __post_init__(self):
        for name in ("kernel", "bias"):
            array = np.asarray(getattr(self, name))
            if array.dtype.kind not in "iu":
                raise InputError(f"Expected the quantised {name} to hold integers, got dtype {array.dtype}.")
            if array.size and max(abs(int(array.max())), abs(int(array.min()))) > 2**53:
                raise InputError(
                    f"Expected the quantised {name} within 2**53, got a magnitude beyond; lower its scale."
                )
            array = array.astype(np.int64)
            array.setflags(write=False)
            settle(self, **{name: array})
        check_head(self.kernel, self.bias)
        settle(self, weight_scale=check_finite_number("weight_scale", self.weight_scale, above=0))
        load = limits.load(self.parameters, self.kernel, self.bias, self.packing)
        for limit, used in load.items():
            if used.max() > 1:
                column = int(used.argmax())
                raise InputError(
                    f"The head could overflow: column {column} of kernel and bias needs {used[column]:.3g} times the "
                    f"{limit} of {self.parameters.name} (sum of |kernel| {self.l1_norms[column]:.0f}, |bias| "
                    f"{abs(int(self.bias[column]))}, |features| <= {self.parameters.max_feature}); "
                    "lower weight_scale or rescale the head."
                )

    @property
    def l1_norms(self) -> np.ndarray:
        """Sum of absolute integer weights by column, float64 (c,)."""
        return np.abs(self.kernel).sum(axis=0, dtype=np.float64)

    @property
    def l2_norms(self) -> np.ndarray:
        """L2 norm of the integer weights by column, float64 (c,)."""
        return np.sqrt(np.square(self.kernel, dtype=np.float64).sum(axis=0))

    @classmethod
    def from_float(
        cls, kernel, bias, parameters: Parameters, step_exponent: int, packing: str = "batched", column_steps=()
    ) -> QuantizedHead:
        """Quantise a float head with the largest weight scale that the proved limits allow.

        Args:
            kernel: Finite, shape (d, c), d <= 2048, c <= 1000, Keras convention.
            bias: Finite, shape (c,), or None for zeros.
            parameters: The scheme's set.
            step_exponent: e of the features' step.
            packing: One of the set's packings.
            column_steps: k of every column's step, or empty.

        Returns:
            The quantised head.

        Raises:
            InputError: if the bias beside these features would leave the kernel fewer than 4 bits.
        """
        kernel, bias = check_head(kernel, bias)
        used = kernel.any(axis=1)
        if column_steps:
            kernel = np.ldexp(kernel, np.array(column_steps)[:, np.newaxis])
        largest = float(np.max(np.abs(kernel)))
        # A power of two brings the kernel near 1, so that the scale's arithmetic cannot leave float64.
        shift = -math.frexp(largest)[1] if largest else 0
        with np.errstate(over="ignore", under="ignore"):
            kernel = np.ldexp(kernel, shift)
            unit_bias = np.ldexp(bias, shift - step_exponent - parameters.bias_shift)
            scale = _largest_scale(kernel, unit_bias, parameters, packing)
            weight_scale = float(np.ldexp(scale, shift))
        too_coarse = largest > 0 and scale * np.max(np.abs(kernel)) < MIN_WEIGHT - 0.5
        if too_coarse or not 0 < weight_scale < math.inf:
            raise InputError(
                f"The head could overflow: a bias of {np.max(np.abs(bias)):g} beside a kernel of at most {largest:g} "
                f"and features of at most {2.0 ** (step_exponent + parameters.feature_bits):g} leaves the kernel fewer "
                f"than 4 bits of the {parameters.name} integer range; encrypt with a larger feature_range, or "
                "rescale the features and the kernel."
            )
        integers = [np.rint(array * scale).astype(np.int64) for array in (kernel, unit_bias)]
        rounded_away = int((used & ~integers[0].any(axis=1)).sum())
        return cls(*integers, weight_scale, step_exponent, parameters, packing, tuple(column_steps), rounded_away)

    def error_bound(self, features=None) -> np.ndarray:
        """Bound on \\|decrypted logit - float logit\\| for the float head this was quantised from.

        The weights' rounding :math:`\\|x\\|_1 / 2s`, the bias's, and for BFV the features'
        :math:`\\|W\\|_1 2^e / 2s`; for CKKS instead the encoder's rounding :math:`\\|W\\|_1 N/2`, its float64
        arithmetic (2**-40 of the largest result) and the slot noise, in units of :math:`2^e / s`.

        Args:
            features: Float features (samples, d) to bound each sample, or None for the whole range.

        Returns:
            float64, shape (samples, c), or (c,) without features.

        Guarantee: CKKS's noise exceeds its share with probability at most 2**-64 a reply; BFV's bound
            holds whenever decryption is right.

        Not covered: the float head's own rounding.
        """
        unit = math.ldexp(1.0, self.step_exponent)
        if features is None:
            feature_sum = self.kernel.shape[0] * self.parameters.max_feature * unit
        else:
            features = check_matrix("features", features, columns=self.kernel.shape[0])
            sizes = np.ldexp(np.abs(features), -np.array(self.column_steps)) if self.column_steps else np.abs(features)
            feature_sum = sizes.sum(axis=1, keepdims=True)
        l1 = self.l1_norms
        if self.parameters.scheme == "bfv":
            rounding = l1 / 2 + 0.5
        else:
            largest = l1 * self.parameters.max_feature + np.ldexp(np.abs(self.bias), self.parameters.bias_shift)
            rounding = largest * 2.0**-40 + 2.0**self.parameters.bias_shift
            if self.packing == "coefficient":
                rounding += limits.noise_bound(self.parameters, self.kernel, self.packing)
                rounding += limits.flooding(self.parameters, *self.kernel.shape)
            else:
                noise = self.parameters.slot_noise_bound(self.l2_norms)
                rounding += noise + l1 * self.parameters.poly_modulus_degree / 2
        return (rounding * unit + feature_sum / 2) / self.weight_scale


def _largest_scale(kernel: np.ndarray, bias: np.ndarray, parameters: Parameters, packing: str) -> float:
    """The largest scale, up to rounding, at which all limits hold for the rounded columns."""

    def used(weights, offsets):
        return {name: float(part.max()) for name, part in limits.load(parameters, weights, offsets, packing).items()}

    # Each limit is linear in the scale but for a constant and the rounding of the weights, which the loop meets by
    # shrinking until the integers themselves fit.
    constant, full = used(np.zeros_like(kernel), np.zeros_like(bias)), used(kernel, bias)
    slopes = {name: full[name] - constant[name] for name in full}
    if not any(slopes.values()):
        return 1.0
    scale = min((1 - constant[name]) / slope for name, slope in slopes.items() if slope)
    if parameters.sanitizes and 0 < scale < math.inf:
        scale = 2.0 ** (math.frexp(scale)[1] - 1)
    while scale > 0:
        load = max(used(np.rint(kernel * scale), np.rint(bias * scale)).values())
        if load <= 1:
            break
        scale *= 0.5 if parameters.sanitizes else min(1 - 1e-6, 1 / load)
    return scale


def integer_logits(head: QuantizedHead, integers: np.ndarray) -> np.ndarray:
    """The oracle: ``integers @ kernel + bias`` in exact int64 arithmetic.

    Args:
        head: The quantised head; its proved limits keep every sum within int64.
        integers: Quantised features, int64, shape (samples, d).

    Returns:
        int64, shape (samples, c).
    """
    return np.asarray(integers, np.int64) @ head.kernel + head.bias


def dequantize_logits(integers, step_exponent: int, weight_scale: float) -> np.ndarray:
    """Logits of integer results: :math:`Y\\,2^e / s`, float64."""
    return np.ldexp(np.asarray(integers, np.float64) / weight_scale, step_exponent)
