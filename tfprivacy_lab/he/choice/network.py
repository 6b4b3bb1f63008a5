"""Which plan a network needs, by the proofs that keep it from overflowing, in words."""

from __future__ import annotations

import dataclasses

from tfprivacy_lab.checks import InputError, check_choice, check_finite_number, check_positive_int
from tfprivacy_lab.he.choice.head import SCHEMES
from tfprivacy_lab.he.plans.deep_image import DeepPlan
from tfprivacy_lab.he.plans.layers import Network
from tfprivacy_lab.he.plans.network import BatchedPlan
from tfprivacy_lab.he.plans.single_image import SinglePlan
from tfprivacy_lab.he.ring.parameters import MAX_COEFF_MODULUS_BITS


@dataclasses.dataclass(frozen=True)
class NetworkChoice:
    """A plan for one network and a number of samples, and what is proved of it.

    Attributes:
        plan: A :class:`~tfprivacy_lab.he.plans.network.BatchedPlan`, or for one sample after the other a
            :class:`.SinglePlan` or :class:`.DeepPlan`.
        samples: How many.
        summary: Parameters, levels, keys and bytes of all of them, as numbers and strings.
    """

    plan: BatchedPlan | SinglePlan | DeepPlan
    samples: int
    summary: dict

    @property
    def bytes(self) -> int:
        """All that is sent, keys once."""
        return sum(self.summary[name] for name in ("up_bytes", "down_bytes", "key_bytes"))

    def explain(self) -> list[str]:
        """The choice in words, a reason a line."""
        told, public = self.summary, self.plan.public
        degree = told["poly_modulus_degree"]
        primes = " x ".join(str(prime.bit_length()) for prime in public.parameters.coeff_modulus)
        low, high = public.input_range
        return [
            f"{told['scheme']}, ring degree N = {degree}, primes of {primes} bits, "
            f"{told['coeff_modulus_bits']} in all; the 2024 table allows {MAX_COEFF_MODULUS_BITS[degree]} "
            "for 128-bit security",
            self._packing_in_words(),
            f"inputs within {low:g}..{high:g}, an input of 1 encrypted as 2^{public.input_bits}: the finest at which "
            "none in range overflows, by interval arithmetic through all layers",
            self._error_in_words(),
            f"bytes: {told['up_bytes']} up, {told['down_bytes']} down, {told['evaluation_keys']} evaluation keys of "
            f"{told['key_bytes']} bytes once a client",
            "replies are not sanitised: whoever holds the key learns of the weights more than the logits",
        ]

    def _packing_in_words(self) -> str:
        told = self.summary
        if told["packing"] == "single":
            squares = "a square" if told["levels"] == 2 else "two squares"
            return (
                f"one sample a ciphertext: {told['plaintext_products']} products with plaintexts, "
                f"{told['rotations']} rotations and {squares}; keys for steps {told['rotation_steps']}"
            )
        size = self.plan.public.parameters.samples_per_block
        return f"a ciphertext an input, up to {size} samples in each: products of matrices, no rotation and no key"

    def _error_in_words(self) -> str:
        exact = "; the integer network decrypts exactly" if self.summary["scheme"] == "bfv" else ""
        likely, worst = self.summary["likely_error_bound"], self.summary["error_bound"]
        beside = f"; but for a probability of 2^-56 an image, {likely:.3g}" if likely < worst else ""
        return f"error of a logit: at most {worst:.3g} for every input in range{beside}{exact}"


def choose_network(
    network: Network,
    *,
    samples: int = 1,
    scheme: str | None = None,
    input_range=(0.0, 1.0),
    max_error=None,
    likely: bool = False,
) -> NetworkChoice:
    """The plan that sends the fewest bytes among those that do what is asked, by proof.

    Args:
        network: Layers and squares, float.
        samples: To be evaluated for one client, >= 1.
        scheme: "bfv" (exact, one square), "ckks", or None for either.
        input_range: Lowest and highest value of any input, finite.
        max_error: The error of a logit that is wanted, > 0, for all inputs in range; None for any.
        likely: Decide by the likely bound, which fails with probability 2**-56 an image under the assumption of
            :mod:`~tfprivacy_lab.he.plans.likely_error`, instead of the worst case.

    Returns:
        The choice.

    Raises:
        InputError: if nothing does, with what comes nearest and what would do.
    """
    check_positive_int("samples", samples)
    if scheme is not None:
        check_choice("scheme", scheme, SCHEMES)
    if max_error is not None:
        check_finite_number("max_error", max_error, above=0)
    found, reasons = [], []
    for candidate in SCHEMES if scheme is None else (scheme,):
        for make in (_batched, _single):
            try:
                found += make(network, candidate, samples, input_range)
            except InputError as error:
                reasons.append(error)
    if not found:
        raise reasons[0]
    kind = "likely_error_bound" if likely else "error_bound"
    fitting = [one for one in found if max_error is None or one.summary[kind] <= max_error]
    if not fitting:
        best = min(found, key=lambda one: one.summary[kind])
        least = "likely bound" if likely else "that is proved"
        likelier = min(one.summary["likely_error_bound"] for one in found)
        instead = "" if likely or likelier > max_error else f", decide by the likely bound, {likelier:.3g} (likely)"
        raise InputError(
            f"Expected max_error={max_error:g}, but the least {least} is {best.summary[kind]:.3g} "
            f"({best.summary['scheme']}, {best.summary['packing']}); ask for no less{instead}, or narrow input_range."
        )
    return min(fitting, key=lambda one: one.bytes)


def _batched(network, scheme, samples, input_range) -> list[NetworkChoice]:
    plan = BatchedPlan.make(network, scheme, input_range)
    summary = plan.public.summary(samples)
    return [NetworkChoice(plan, samples, {**summary, "likely_error_bound": summary["error_bound"]})]


def _single(network, scheme, samples, input_range) -> list[NetworkChoice]:
    """Nothing for BFV, which has no such plan."""
    if scheme == "bfv":
        return []
    plan = (SinglePlan if network.squares == 1 else DeepPlan).make(network, input_range)
    summary = {**plan.public.summary(), "likely_error_bound": plan.likely_error_bound()}
    return [NetworkChoice(plan, samples, {**summary, **{n: samples * summary[n] for n in ("up_bytes", "down_bytes")}})]
