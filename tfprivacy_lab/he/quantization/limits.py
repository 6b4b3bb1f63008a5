r"""What a quantised head may use of a parameter set: the limits that keep a result from overflowing or drowning.

**A sum over a whole polynomial** (coefficient packing): a logit's coefficient of the product meets the noise times
*every* weight of the polynomial, so the norms are those of all classes in it. With B the bound on a fresh coefficient
(:mod:`.ring.parameters`) and one half for every rounding of :math:`q m / t` by the encoding of features and
of the bias, a logit's coefficient is off by at most

.. math:: n = B \|w\|_2 + \tfrac12 \|w\|_1 + \tfrac12.

**A sanitised reply** gains an encryption of zero, of noise :math:`B_0` (fresh and without p), and at the c coefficients
that carry a sample's logits a uniform integer of magnitude up to F. Two heads with the same integer logits differ there
by at most :math:`2 (n + B_0)`. So with

.. math:: 2^{40} c\,(n + B_0) \le F

the c flooded values of a sample together are within statistical distance :math:`2^{-40}` of each other. F follows from
the set and the head's *shape* alone, which are public: were it made for the head's own n, its spread would tell the
weights' norm. A head whose n is too large for F is scaled down until it is not.

* BFV: F is the largest integer that decryption stands, :math:`F (1 + 2^{-40}/c) \le q/2t`.
* CKKS: F costs precision, so it is made for heads of d inputs whose columns fill the integer range with
  :math:`\|w\|_2 \le 1.5\, \|w\|_1 / \sqrt d`: with equal magnitudes the factor is 1, with Gaussian weights 1.25.

**Decryption is right** for BFV if the coefficient error, flooding included, stays below half a step, :math:`q / 2t`.
For CKKS nothing wraps if the coefficients of the result, at most the largest slot, stay below :math:`q/2`.
"""

from __future__ import annotations

import math

import numpy as np

from tfprivacy_lab.he.ring.parameters import DEVIATIONS, LIMB_BITS, Parameters

FLOODING_BITS = 40
"""A sample's sanitised reply tells two heads of equal logits apart with advantage at most 2**-40 (module docstring)."""

_USUAL_RATIO = 1.5
"""Of the L2 to the L1 norm of a column of d weights, times the root of d."""


def flooding(parameters: Parameters, features: int, classes: int) -> int:
    """F, the magnitude of the uniform integers that hide a reply's noise (module docstring); 0 if none do.

    Args:
        parameters: The set.
        features: d of the head.
        classes: c of the head, how many coefficients of a sample's reply carry logits.
    """
    if not parameters.sanitizes:
        return 0
    share = 2.0**FLOODING_BITS * classes
    if parameters.scheme == "bfv":
        return math.floor(_room(parameters) / (1 + 1 / share))
    together = min(classes, parameters.poly_modulus_degree // features)
    column = parameters.modulus / 2 / parameters.max_feature
    l2_norm = column * min(1.0, _USUAL_RATIO / math.sqrt(features)) * math.sqrt(together)
    return math.floor(share * noise_of(parameters, column * together, l2_norm))


def noise_bound(parameters: Parameters, kernel: np.ndarray, packing: str = "batched") -> np.ndarray:
    """Bound on the noise of the coefficients that carry each class, but for flooding; see the module docstring.

    Args:
        parameters: The set.
        kernel: Integer weights, shape (d, c).
        packing: One of the set's ``packings``.

    Returns:
        float64, shape (c,), in units of q's residues.
    """
    magnitudes = np.abs(kernel).astype(np.float64)
    l1_norm, l2_norm = magnitudes.sum(axis=0), np.sqrt(np.square(magnitudes).sum(axis=0))
    if packing == "coefficient":
        features, classes = kernel.shape
        together = np.arange(classes) // (parameters.poly_modulus_degree // features)
        l1_norm = np.bincount(together, l1_norm)[together]
        l2_norm = np.sqrt(np.bincount(together, np.square(l2_norm))[together])
    return noise_of(parameters, l1_norm, l2_norm)


def load(parameters: Parameters, kernel: np.ndarray, bias: np.ndarray, packing: str = "batched") -> dict:
    """How full each proved limit is, by integer weight column; right if all are at most 1.

    Args:
        parameters: The set.
        kernel: Integer weights, shape (d, c).
        bias: Integer bias, shape (c,).
        packing: One of the set's ``packings``.

    Returns:
        The fraction used of the plaintext range, of the room for noise (BFV), of what flooding hides, and for batched
        packing of the 53 bits in which float64 products of limbs are exact; by name, each of shape (c,).
    """
    magnitudes = np.abs(kernel).astype(np.float64)
    l1_norm, offsets = magnitudes.sum(axis=0), np.ldexp(np.abs(bias).astype(np.float64), parameters.bias_shift)
    noise, flood = noise_bound(parameters, kernel, packing), flooding(parameters, *kernel.shape)
    limits = {"exact product": l1_norm * 2.0 ** (LIMB_BITS - 53)} if packing == "batched" else {}
    if parameters.sanitizes:
        limits["hidden noise"] = noise * 2.0**FLOODING_BITS * kernel.shape[1] / flood
    if parameters.scheme == "bfv":
        t = parameters.plaintext_modulus
        limits["integer range"] = (l1_norm * parameters.max_feature + offsets) / ((t - 1) // 2)
        if not parameters.sanitizes:  # where flooding fills the room, "hidden noise" is the narrower limit
            limits["noise room"] = noise / _room(parameters)
    else:
        # Coefficients are at most the largest slot, whose real and imaginary parts are two samples.
        complex_slots = math.sqrt(2) if packing == "batched" else 1.0
        most = complex_slots * l1_norm * parameters.max_feature + offsets + noise + flood
        limits["integer range"] = most / _room(parameters)
    return limits


def _room(parameters: Parameters) -> float:
    """Half a step of BFV's plaintext, half of q for CKKS; a millionth aside covers float64 here and SEAL's rounding."""
    return parameters.modulus * (1 - 2**-20) / (2 * (parameters.plaintext_modulus or 1))


def noise_of(parameters: Parameters, l1_norm, l2_norm):
    """n for weights of these norms, and under a sanitising set B_0 as well: what flooding has to hide."""
    zero = DEVIATIONS * math.sqrt(parameters.fresh_variance) if parameters.sanitizes else 0.0
    return parameters.coefficient_noise_bound(l2_norm) + l1_norm / 2 + 0.5 + zero
