"""Which parameter set and packing a head needs, by the same proofs that keep it from overflowing, in words."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from tfprivacy_lab.checks import InputError, check_choice, check_finite_number, check_positive_int
from tfprivacy_lab.he.messages import wire
from tfprivacy_lab.he.quantization import limits
from tfprivacy_lab.he.quantization.heads import QuantizedHead, check_head
from tfprivacy_lab.he.quantization.steps import check_feature_range, steps_of_range
from tfprivacy_lab.he.ring.parameters import MAX_COEFF_MODULUS_BITS, PACKINGS, PARAMETERS, Parameters

SCHEMES = ("bfv", "ckks")


@dataclasses.dataclass(frozen=True)
class Choice:
    """A set and a packing for one head, and what is proved of them.

    Attributes:
        parameters: The set; its name is what ``Client.generate`` takes.
        packing: What ``Client.encrypt`` takes.
        head: The quantised head.
        error_bound: Bound on the error of any logit, over the whole range of features.
        query_bytes: Size of a query of the samples asked for.
        reply_bytes: Size of its reply.
        products: Products of polynomials a sample (coefficient packing), or of matrices of residues (batched).
        bits_left: How often the noise could double before a decryption is wrong: the room left by the proof.
    """

    parameters: Parameters
    packing: str
    head: QuantizedHead
    error_bound: float
    query_bytes: int
    reply_bytes: int
    products: int
    bits_left: float

    def explain(self) -> list[str]:
        """The choice in words, a reason a line."""
        pinned, (features, classes) = self.parameters, self.head.kernel.shape
        primes = " x ".join(str(prime.bit_length()) for prime in pinned.key_primes)
        limit = MAX_COEFF_MODULUS_BITS[pinned.poly_modulus_degree]
        exact = "exact: every integer logit decrypts as it is" if pinned.scheme == "bfv" else "approximate"
        noise = ", and noise" if pinned.scheme == "ckks" else ""
        return [
            f"set {pinned.name}: ring degree N = {pinned.poly_modulus_degree}, primes of {primes} bits, "
            f"{pinned.coeff_modulus_bits} in all; the 2024 table allows {limit} for 128-bit security",
            f"packing {self.packing}: {self._packing_in_words()}",
            f"features of {pinned.feature_bits} bits, weights up to {int(np.abs(self.head.kernel).max())}: the most "
            f"that neither overflows nor drowns in noise, for any features in range; {exact}",
            f"error of a logit: at most {self.error_bound:.3g} (rounding of features and weights{noise})",
            f"room: the noise could grow by {self.bits_left:.1f} bits before a decryption fails; as it is, one fails "
            "with probability below 2^-64 a reply",
            f"bytes: query {self.query_bytes}, reply {self.reply_bytes}, evaluation keys 0",
            self._replies_in_words(),
            f"whatever the set, {features + 1} chosen samples or half as many give a {features} x {classes} head away",
        ]

    def _packing_in_words(self):
        if self.packing == "coefficient":
            return f"a ciphertext a sample, {self.products} product{'s' * (self.products > 1)} of polynomials each"
        return f"a ciphertext a feature, {self.parameters.samples_per_block} samples in each; one matrix product"

    def _replies_in_words(self):
        if self.parameters.sanitizes:
            return (
                f"replies are sanitised: an encryption of zero, uniform masks, and flooding within "
                f"2^-{limits.FLOODING_BITS} a sample: nothing of the head but its logits, and its scale, "
                f"{self.head.weight_scale:g}, a power of two"
            )
        return (
            "replies are not sanitised: whoever holds the key can work out the weights from one; ask for sanitized if "
            "the head is a secret"
        )


def choose(
    kernel,
    bias=None,
    *,
    samples: int = 1,
    scheme: str | None = None,
    packing: str | None = None,
    sanitized: bool = False,
    feature_range=1.0,
    max_error: float | None = None,
) -> Choice:
    """The set and packing that send the fewest bytes among those that do what is asked, by proof.

    Args:
        kernel: Finite, shape (d, c), d <= 2048, c <= 1000.
        bias: Finite, shape (c,), or None.
        samples: Samples of a query, >= 1.
        scheme: "bfv" (exact), "ckks", or None for either.
        packing: "coefficient" or "batched", or None for either; those in slots are never cheaper
            (:func:`tfprivacy_lab.he.choice.costs.compare_packings`).
        sanitized: Whether replies must tell nothing of the head but the logits.
        feature_range: Public bound on the features' magnitudes, > 0, or one a column.
        max_error: The error of a logit that is wanted, > 0, for all features in range; None for any.

    Returns:
        The choice.

    Raises:
        InputError: if nothing does, with what comes nearest and what would do.
    """
    kernel, bias = check_head(kernel, bias)
    check_positive_int("samples", samples)
    bounds = check_feature_range(feature_range, len(kernel))
    if scheme is not None:
        check_choice("scheme", scheme, SCHEMES)
    if packing is not None:
        check_choice("packing", packing, PACKINGS)
    if max_error is not None:
        check_finite_number("max_error", max_error, above=0)
    found, reasons = [], []
    for parameters in PARAMETERS.values():
        if scheme not in (None, parameters.scheme) or parameters.sanitizes != sanitized:
            continue
        for candidate in parameters.packings if packing is None else {packing} & {*parameters.packings}:
            try:
                found.append(_evaluated(kernel, bias, parameters, candidate, samples, bounds))
            except InputError as error:
                reasons.append(str(error))
    if not found and not reasons:
        raise InputError("Expected packing=coefficient for sanitised replies, got batched.")
    if not found:
        raise InputError(reasons[0])
    fitting = [one for one in found if max_error is None or one.error_bound <= max_error]
    if not fitting:
        best = min(found, key=lambda one: one.error_bound)
        raise InputError(
            f"Expected max_error={max_error:g}, but the least that is proved is {best.error_bound:.3g} "
            f"({best.parameters.name}, {best.packing}); ask for no less, let the scheme be ckks, or rescale features "
            "so that they fill feature_range."
        )
    return min(fitting, key=lambda one: one.query_bytes + one.reply_bytes)


def _evaluated(kernel, bias, parameters, packing, samples, bounds) -> Choice:
    """One candidate, with its proofs."""
    steps = steps_of_range(bounds, parameters)
    head = QuantizedHead.from_float(kernel, bias, parameters, steps.exponent, packing, steps.columns)
    features, classes = kernel.shape
    sizes = []
    for kind, columns, width in ((wire.QUERY, features, 0), (wire.REPLY, classes, features)):
        header = wire.Header(
            kind, parameters, bytes(16), samples=samples, columns=columns, packing=packing, features=width
        )
        if kind == wire.QUERY:
            header = dataclasses.replace(header, column_steps=steps.columns)
        wire.check_size(header, "features")
        sizes.append(header.message_bytes)
    noise = float(limits.noise_bound(parameters, head.kernel, packing).max())
    noise += limits.flooding(parameters, features, classes)
    room = parameters.modulus / (2 * parameters.plaintext_modulus if parameters.scheme == "bfv" else 2)
    products = parameters.products(features, classes) if packing == "coefficient" else 1
    error = float(np.max(head.error_bound()))
    return Choice(parameters, packing, head, error, *sizes, products, math.log2(room / noise))
