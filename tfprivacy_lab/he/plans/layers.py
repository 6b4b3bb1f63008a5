"""A Keras network as affine layers with a square between each two: what ciphertexts can compute, and its oracle.

A convolution is a dense layer on windows of its input: output position p, channel c is
:math:`\\sum_k W_{kc}\\, x_{window(p, k)} + b_c`, a dense layer being the case of one window that holds all inputs.
Vectors are Keras' row-major flattenings, so that ``Flatten`` changes nothing.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from tfprivacy_lab.checks import InputError, check_all_finite, check_finite_number, check_positive_int, settle
from tfprivacy_lab.he.ring.parameters import MAX_FEATURES

MAX_SQUARES = 2
"""Squares in a row that the parameter sets have room for."""


@dataclasses.dataclass(frozen=True, eq=False)
class Affine:
    """One dense or convolutional layer without activation.

    Args:
        kernel: Shape (k, c): window entries by channels. Float for a network, integers once quantised.
        bias: Shape (c,); float, or integers (Python's, as they may pass 64 bits).
        windows: Input index of each entry, int64 (positions, k); -1 where a window stands on padding.
        inputs: Length of the input vector.
    """

    kernel: np.ndarray
    bias: np.ndarray
    windows: np.ndarray
    inputs: int

    def __post_init__(self):
        settle(self, inputs=check_positive_int("inputs", self.inputs))
        for name in ("kernel", "bias", "windows"):  # copies: plans are made of them, and servers later
            array = np.array(getattr(self, name))
            array.setflags(write=False)
            settle(self, **{name: array})

    @property
    def outputs(self) -> int:
        """Length of the output vector, positions * channels."""
        return len(self.windows) * self.kernel.shape[1]

    @property
    def products(self) -> int:
        """Multiplications an input vector."""
        return self.windows.size * self.kernel.shape[1]

    def apply(self, values: np.ndarray, kernel: np.ndarray | None = None) -> np.ndarray:
        """The layer without its bias.

        Args:
            values: Shape (inputs, ...): one input a row.
            kernel: Instead of the layer's, of its shape: its absolute value, say.

        Returns:
            Shape (outputs, ...), of the common dtype.
        """
        kernel = self.kernel if kernel is None else kernel
        tail = values.shape[1:]
        if np.array_equal(self.windows, np.arange(self.inputs)[np.newaxis]):  # a dense layer's
            return (kernel.T @ values.reshape(self.inputs, -1)).reshape(self.outputs, *tail)
        if (self.windows < 0).any():
            values = np.concatenate([values, np.zeros((1, *tail), values.dtype)])
        patches = values[self.windows].reshape(*self.windows.shape, -1)
        return (kernel.T @ patches).reshape(self.outputs, *tail)

    def dense_kernel(self) -> np.ndarray:
        """The same layer as one matrix, shape (inputs, outputs)."""
        positions, channels = len(self.windows), self.kernel.shape[1]
        matrix = np.zeros((self.inputs + 1, positions, channels), self.kernel.dtype)
        for position, window in enumerate(self.windows):
            matrix[window, position] = self.kernel  # a window's entries differ, but for the padding at -1
        return matrix[:-1].reshape(self.inputs, self.outputs)

    def full_bias(self) -> np.ndarray:
        """The bias of every output, shape (outputs,)."""
        return np.tile(self.bias, len(self.windows))


def check_input_range(input_range) -> tuple[float, float]:
    """Lowest and highest value of any input, finite.

    Raises:
        InputError: if it is no pair, or not in this order.
    """
    try:
        shape = np.shape(input_range)
    except ValueError:
        shape = ()  # parts of different lengths
    if not isinstance(input_range, tuple | list | np.ndarray) or shape[:1] != (2,):
        raise InputError(f"Expected input_range as (lowest, highest), got input_range={input_range!r}.")
    low, high = (check_finite_number("input_range", end) for end in input_range)
    if not low < high:
        raise InputError(f"Expected input_range as (lowest, highest), got input_range={input_range!r}.")
    return low, high


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """Affine layers with a square between each two: the oracle in float64.

    :math:`y = A_n(\\ldots A_2(A_1(x)^2)^2 \\ldots)`

    Args:
        layers: Float :class:`Affine` layers, each as long as the one before; 1 or 2 squares between them.

    Raises:
        InputError: if they do not fit together, or there are too many.
    """

    layers: tuple[Affine, ...]

    def __post_init__(self):
        if not 1 <= self.squares <= MAX_SQUARES:
            raise InputError(f"Expected a network of 1 to {MAX_SQUARES} squares between layers, got {self.squares}.")
        for before, after in zip(self.layers, self.layers[1:], strict=False):
            if before.outputs != after.inputs:
                raise InputError(f"Expected a layer for {before.outputs} inputs, got one for {after.inputs}.")
        for number, layer in enumerate(self.layers):
            if max(layer.inputs, layer.outputs) > MAX_FEATURES:
                raise InputError(
                    f"Expected layers of at most {MAX_FEATURES} inputs and outputs, "
                    f"got layer {number} from {layer.inputs} to {layer.outputs}."
                )
            check_all_finite(f"kernel of layer {number}", layer.kernel)
            check_all_finite(f"bias of layer {number}", layer.bias)

    @property
    def inputs(self) -> int:
        """Length of the input vector."""
        return self.layers[0].inputs

    @property
    def outputs(self) -> int:
        """Number of logits."""
        return self.layers[-1].outputs

    @property
    def squares(self) -> int:
        """Squarings in a row, the multiplicative depth."""
        return len(self.layers) - 1

    def evaluate(self, inputs) -> np.ndarray:
        """The logits in the clear.

        Args:
            inputs: Real, shape (samples, ...), flattening to (samples, inputs).

        Returns:
            float64, shape (samples, outputs).
        """
        values = np.asarray(inputs, np.float64).reshape(len(inputs), -1).T
        for number, layer in enumerate(self.layers):
            values = values if number == 0 else np.square(values)
            values = layer.apply(values) + layer.full_bias()[:, np.newaxis]
        return np.ascontiguousarray(values.T)

    @classmethod
    def from_keras(cls, model) -> Network:
        """The network that a built Keras model, a chain of layers used once, computes at inference.

        Args:
            model: ``Dense`` and ``Conv2D`` layers with a square after each but the last: a layer of class
                ``Square``, or an activation of the name ``square``. ``Flatten``, ``Reshape`` and ``Dropout``
                may stand between; normalisation, rescaling, average pooling and dense layers in a row are folded.

        Raises:
            InputError: naming the layer that a ciphertext cannot compute, what makes the model no chain, or that it
                computes something else than its layers say.

        Warns:
            ModelReadingWarning: if a softmax or sigmoid at the end was dropped.
        """
        from tfprivacy_lab.he.plans.keras_reading import affine_layers

        return cls(affine_layers(model))
