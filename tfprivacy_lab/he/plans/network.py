r"""From a network to a plan: integers, scales, and the proof that nothing overflows, for the batched packing.

One ciphertext holds one input of a block of samples, and the server computes on the ciphertexts' residues. No key is
switched and nothing is rescaled: scales only multiply. With inputs :math:`X = D x`, integer weights
:math:`W = rint(s w)` and biases at the scale of what they are added to,

.. math:: c_1 = D s_1, \qquad c_{l+1} = c_l^2 s_{l+1}, \qquad y = Y / c_n .

**No overflow.** Interval arithmetic takes the inputs' range through the integer layers: every value that a slot can
hold lies within the bounds, whatever the inputs. Residues represent polynomials modulo q; only the last must not
wrap, and its coefficients are at most its largest slot.

* CKKS: :math:`|Y| + noise < q/2`. Noise e of a slot: :math:`\|W\|_1 N/2` for the encoder's roundings and the
  sub-Gaussian bound of :mod:`~tfprivacy_lab.he.ring.network_parameters` after the first layer; then
  :math:`2 M e + e^2` by a square of values of at most M, and :math:`|W| e` by a layer.
* BFV: :math:`|Y| \le (t-1)/2`, exact then. With :math:`c_0 + c_1 s = (q/t) m + v + q K` over the integers,
  :math:`|K| \le 2(N+1)`, the scaled square decrypts to :math:`m^2` with the noise
  :math:`2 m v + (t/q) v^2 + 2 t v K + \varepsilon`, at most :math:`t N |v| (4N + 5) + (t/q) N |v|^2 + \varepsilon`, the
  roundings of SEAL's residue arithmetic being :math:`\varepsilon \le (k+2)(1 + N + N^2)` for k primes
  (Bajard et al. 2016, eprint 2016/510). The last layer's noise stays below :math:`q / 2t`.

**Exact products.** Residues below p times integer weights add up to at most 2**53 - p: float64 computes them exactly,
and the quotients by p after.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from tfprivacy_lab.checks import InputError, check_choice
from tfprivacy_lab.he.plans.layers import Affine, Network, check_input_range
from tfprivacy_lab.he.ring.network_parameters import BATCHED, NetworkParameters
from tfprivacy_lab.he.ring.parameters import LIMB_BITS

WEIGHT_BITS = range(4, 13)
_SLACK = 1 + 2.0**-30
"""What float64 may lose in the bounds' own arithmetic."""


@dataclasses.dataclass(frozen=True)
class PublicPlan:
    """What client and server both know: everything but the weights.

    Attributes:
        parameters: The ring and its primes.
        inputs, outputs: Length of an input vector, and number of logits.
        squares: Squarings in a row; a reply's ciphertexts have ``2**squares + 1`` polynomials, of BFV 3.
        input_range: Lowest and highest input allowed.
        input_bits: An input of 1 is encrypted as ``2**input_bits``.
        output_scale: A logit of 1 is decrypted as this.
        error_bound: Bound on any logit's error against the float network, over all inputs in range.
    """

    parameters: NetworkParameters
    inputs: int
    outputs: int
    squares: int
    input_range: tuple[float, float]
    input_bits: int
    output_scale: float
    error_bound: float

    @property
    def reply_size(self) -> int:
        """Polynomials in a ciphertext of the reply."""
        return 2**self.squares + 1

    def blocks(self, samples: int) -> int:
        """Blocks that hold this many samples, the last one padded."""
        return -(-samples // self.parameters.samples_per_block)

    def query_shape(self, samples: int) -> tuple[int, ...]:
        """Shape of a query's residues: (blocks, inputs, 2, primes, N)."""
        return (self.blocks(samples), self.inputs, 2, len(self.parameters.primes), self.parameters.poly_modulus_degree)

    def reply_shape(self, samples: int) -> tuple[int, ...]:
        """Shape of a reply's residues: (blocks, outputs, polynomials, primes, N)."""
        return (self.blocks(samples), self.outputs, self.reply_size, *self.query_shape(samples)[3:])

    def summary(self, samples: int) -> dict:
        """Parameters, levels, keys and bytes of a batch, as numbers and strings."""
        pinned, blocks = self.parameters, self.blocks(samples)
        return {
            "scheme": pinned.scheme,
            "packing": "batched",
            "poly_modulus_degree": pinned.poly_modulus_degree,
            "coeff_modulus_bits": pinned.coeff_modulus_bits,
            "levels": self.squares,
            "evaluation_keys": 0,
            "key_bytes": 0,
            "up_bytes": blocks * self.inputs * pinned.ciphertext_bytes(),
            "down_bytes": blocks * self.outputs * pinned.ciphertext_bytes(self.reply_size),
            "error_bound": self.error_bound,
        }


@dataclasses.dataclass(frozen=True, eq=False)
class BatchedPlan:
    """Integer layers that provably neither overflow nor drown in noise, and what is public about them.

    Attributes:
        layers: Affine layers of integers.
        public: Everything but the weights.
        load: The fraction used of each proved limit, none above 1.

    Guarantee: for all inputs in range, BFV decrypts to exactly :func:`integer_logits`, CKKS within ``error_bound`` of
        the float network, but for a probability of 2**-64 a reply.
    """

    layers: tuple[Affine, ...]
    public: PublicPlan
    load: dict[str, float]

    @classmethod
    def make(cls, network: Network, scheme: str = "ckks", input_range=(0.0, 1.0)) -> BatchedPlan:
        """The plan of smallest proved error, by weight precision; it looks at no example.

        Args:
            network: Layers and squares, float.
            scheme: ``"ckks"``, or ``"bfv"`` for one square.
            input_range: Lowest and highest value of any input, finite.

        Raises:
            InputError: if the scheme has no room for the squares, or the network for its magnitudes.
        """
        check_choice("scheme", scheme, ("bfv", "ckks"))
        low, high = check_input_range(input_range)
        parameters = BATCHED.get((scheme, network.squares))
        if parameters is None:
            raise InputError(f"Expected a network of one square for {scheme}, got {network.squares}; use ckks.")
        plans = (_fit(network, parameters, (low, high), bits) for bits in WEIGHT_BITS)
        plans = [plan for plan in plans if plan is not None]
        if not plans:
            raise InputError(
                f"The network could overflow: inputs within {low:g}..{high:g} can grow beyond the "
                f"{parameters.modulus.bit_length()} bits of {scheme}; rescale its layers or narrow input_range."
            )
        return min(plans, key=lambda plan: plan.public.error_bound)


def integer_logits(plan: BatchedPlan, integers: np.ndarray) -> np.ndarray:
    """The oracle of BFV: the integer network in exact int64 arithmetic.

    Args:
        plan: Its limits keep every sum within int64.
        integers: Quantised inputs, int64, shape (samples, inputs).

    Returns:
        int64, shape (samples, outputs).
    """
    values = np.asarray(integers, np.int64).T
    for number, layer in enumerate(plan.layers):
        values = values if number == 0 else values * values
        values = layer.apply(values) + layer.full_bias().astype(np.int64)[:, np.newaxis]
    return np.ascontiguousarray(values.T)


def _fit(network, parameters, input_range, weight_bits) -> BatchedPlan | None:
    """The plan of these weight bits with the finest inputs that the limits allow, or None."""
    input_bits, load = 40 if parameters.scheme == "ckks" else 12, 0.0
    scales = [_weight_scale(layer, parameters, weight_bits) for layer in network.layers]
    while input_bits >= 1:
        layers, output_scale = _integers(network, scales, input_bits)
        bounds = Bounds.of(layers, parameters, input_range, input_bits)
        load = max(bounds.load.values())
        if load <= 1:
            error = bounds.noise.max() / output_scale + _deviation(
                network, layers, scales, input_range, input_bits, bounds
            )
            public = PublicPlan(
                parameters,
                network.inputs,
                network.outputs,
                network.squares,
                input_range,
                input_bits,
                output_scale,
                float(error),
            )
            return BatchedPlan(layers, public, bounds.load)
        input_bits -= max(1, math.ceil(math.log2(load) / 2**network.squares))
    return None


def _weight_scale(layer: Affine, parameters: NetworkParameters, weight_bits: int) -> float:
    """The scale that makes the largest integer weight 2**weight_bits, or less where products must be exact."""
    largest = np.abs(layer.kernel).max()
    if largest == 0:
        return 1.0
    exact = 2.0 ** (53 - (LIMB_BITS if parameters.scheme == "bfv" else max(parameters.primes).bit_length()))
    column = np.abs(layer.kernel).sum(axis=0).max()
    return min(2.0**weight_bits / largest, (exact - len(layer.kernel)) / column)


def _integers(network: Network, scales, input_bits: int) -> tuple[tuple[Affine, ...], float]:
    """The layers' kernels and biases as integers, and the scale of the result."""
    layers, cumulative = [], math.ldexp(1.0, input_bits)
    for number, (layer, scale) in enumerate(zip(network.layers, scales, strict=True)):
        cumulative = cumulative * scale if number == 0 else cumulative**2 * scale
        kernel = np.rint(layer.kernel * scale).astype(np.int64)
        bias = np.array([int(value) for value in np.rint(layer.bias * cumulative)], dtype=object)
        layers.append(Affine(kernel, bias, layer.windows, layer.inputs))
    return tuple(layers), cumulative


@dataclasses.dataclass(frozen=True, eq=False)
class Bounds:
    """How far integers and noise can go (module docstring): per logit, and the fraction used of each limit."""

    magnitude: np.ndarray
    noise: np.ndarray
    load: dict[str, float]

    @classmethod
    def of(cls, layers, parameters: NetworkParameters, input_range, input_bits: int) -> Bounds:
        """The bounds of integer layers on inputs in range."""
        low, high = (np.full(layers[0].inputs, math.ldexp(end, input_bits)) for end in input_range)
        noise, bfv = None, parameters.scheme == "bfv"
        if bfv:
            low, high = np.floor(low), np.ceil(high)
        for number, layer in enumerate(layers):
            if number:
                noise = _square_noise(noise, largest_of(low, high), parameters)
                low, high = square_interval(low, high)
            noise = _first_noise(layer, parameters) if noise is None else layer.apply(noise, np.abs(layer.kernel))
            noise = noise + 0.5
            low, high = interval(layer, low, high)
        magnitude = largest_of(low, high) * _SLACK
        modulus = parameters.modulus * (1 - 2.0**-20)
        if bfv:
            t = parameters.plaintext_modulus
            load = {"integer range": magnitude.max() / ((t - 1) // 2), "noise room": noise.max() * 2 * t / modulus}
            return cls(magnitude, np.zeros_like(noise), load)
        return cls(magnitude, noise, {"integer range": (magnitude + noise).max() * 2 / modulus})


def interval(layer: Affine, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the layer makes of values between ``low`` and ``high``, each of shape (inputs,)."""
    bias = layer.full_bias().astype(np.float64)
    up, down = np.maximum(layer.kernel, 0), np.minimum(layer.kernel, 0)
    return layer.apply(low, up) + layer.apply(high, down) + bias, layer.apply(high, up) + layer.apply(low, down) + bias


def square_interval(low, high):
    """What the square makes of values between ``low`` and ``high``."""
    squares = np.square(low), np.square(high)
    return np.where((low < 0) & (high > 0), 0.0, np.minimum(*squares)), np.maximum(*squares)


def largest_of(low, high) -> np.ndarray:
    """Bound on the magnitude of values between ``low`` and ``high``."""
    return np.maximum(np.abs(low), np.abs(high))


def _first_noise(layer: Affine, parameters: NetworkParameters) -> np.ndarray:
    """Noise after the first layer, by output: encryption's, and the encoder's rounding of every input."""
    l1, l2 = np.abs(layer.kernel).sum(axis=0), np.sqrt(np.square(layer.kernel, dtype=np.float64).sum(axis=0))
    if parameters.scheme == "bfv":
        noise = parameters.coefficient_noise_bound(l2) + l1 / 2
    else:
        noise = parameters.slot_noise_bound(l2) * math.sqrt(2) + l1 * (parameters.poly_modulus_degree / 2)
    return np.tile(noise, len(layer.windows))


def _square_noise(noise, magnitude, parameters: NetworkParameters) -> np.ndarray:
    if parameters.scheme == "ckks":
        return 2 * magnitude * noise + np.square(noise)
    degree, t, q = parameters.poly_modulus_degree, parameters.plaintext_modulus, parameters.modulus
    rounding = (len(parameters.primes) + 2) * (1 + degree + degree**2)
    return t * degree * noise * (4 * degree + 5) + t / q * degree * np.square(noise) + rounding


def _deviation(network, layers, scales, input_range, input_bits, bounds) -> float:
    """Bound on a logit's change by rounding inputs (BFV), weights and biases, and by decoding in float64."""
    low, high = (np.full(network.inputs, float(end)) for end in input_range)
    deviation = np.full(network.inputs, 0.0 if bounds.noise.any() else 2.0 ** -(input_bits + 1))
    cumulative = math.ldexp(1.0, input_bits)
    for number, (layer, integers, scale) in enumerate(zip(network.layers, layers, scales, strict=True)):
        if number:
            largest = largest_of(low, high)
            deviation = 2 * largest * deviation + np.square(deviation)
            low, high = square_interval(low, high)
        cumulative = cumulative * scale if number == 0 else cumulative**2 * scale
        rounded = integers.kernel / scale
        deviation = layer.apply(deviation, np.abs(rounded)) + 0.5 / cumulative
        deviation += layer.apply(largest_of(low, high), np.abs(rounded - layer.kernel))
        low, high = interval(layer, low, high)
    return float((deviation * _SLACK + 2.0**-40 * bounds.magnitude / cumulative).max())
