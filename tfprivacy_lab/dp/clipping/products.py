r"""Σ over positions of products :math:`x_t g_t^\top`, one an example: their norms, and their weighted sum.

Each class is one way to it, for X (batch, groups, positions, d) and G (batch, groups, positions, p):

.. math:: \|J_b\|^2 = \Big\|\sum_t x_{bt} g_{bt}^\top\Big\|^2 = \sum_{t,s} (x_{bt} \cdot x_{bs})(g_{bt} \cdot g_{bs})

The left side makes J (small kernels, many positions), the right one never does ("ghost norm": Goodfellow 2015; Li
et al. 2022; Bu, Mao and Xu 2022).
"""

from __future__ import annotations

import abc
import copy

import tensorflow as tf

from tfprivacy_lab.dp import native

# Above this many weights a layer's per-example gradients are never kept, whatever it costs otherwise.
LARGEST_MATERIALISED = 2**16
# From so many positions on, or up to so many weights, keeping a gradient costs less than making it once more.
_POSITIONS_WORTH_KEEPING = 64
_WEIGHTS_WORTH_KEEPING = 1024
# Rounding of a double.
_ROUNDING = 2.0**-53
# The square of the smallest number that is not flushed to zero; what is smaller counts as that.
_SMALLEST_SQUARE = 2.0**-252


class Products(abc.ABC):
    """J of every example of a batch, unformed.

    Attributes:
        sums: Σ_t g_bt, (batch, p), the gradient of a bias, if squared_norms counted it in; None if not.
    """

    sums: tf.Tensor | None = None

    @abc.abstractmethod
    def squared_norms(self) -> tf.Tensor:
        """(batch,)."""

    @abc.abstractmethod
    def weighted_sum(self, factors: tf.Tensor) -> tf.Tensor:
        """Σ_b factors_b J_b, (groups, d, p); call after squared_norms."""

    @abc.abstractmethod
    def floats_per_example(self) -> int:
        """Numbers an example needs beyond what back-propagation holds anyway."""

    def keeping(self, rows: tf.Tensor) -> Products:
        """A copy in which the examples that ``rows`` (batch,) says no to are zero."""
        return cleared(self, rows)


def summed(factors: tf.Tensor, each: tf.Tensor) -> tf.Tensor:
    """Σ_b factors_b each_b, of (batch, ...); a product of a row and a matrix waits for all threads, and is slower."""
    return tf.reduce_sum(each * tf.reshape(factors, (-1, *[1] * (len(each.shape) - 1))), 0)


def cleared(one, rows: tf.Tensor, but: tuple[str, ...] = ()):
    """A copy whose tensors, all (batch, ...), are zero for the examples that ``rows`` says no to."""

    def zeroed(value):
        mask = tf.reshape(rows, (-1, *[1] * (len(value.shape) - 1)))
        return tf.where(mask, value, tf.zeros_like(value))

    other = copy.copy(one)
    for name, value in vars(one).items():
        if name not in but:
            setattr(other, name, tf.nest.map_structure(lambda a: zeroed(a) if tf.is_tensor(a) else a, value))
    return other


def products_of(x: tf.Tensor, g: tf.Tensor, *, bias: bool) -> Products:
    """The cheapest way for matrices X (batch, groups, positions, d) and G (batch, groups, positions, p).

    With ``bias``, the gradients' sum over positions is that of a bias; compiled operations count it in.
    """
    groups, positions, d = x.shape[1:]
    p = g.shape[3]
    if positions == 1:
        return CompiledOuterProducts(x, g, bias) if groups == 1 and native.operations() else OuterProducts(x, g)
    if positions is not None and groups == 1 and worth_compiling(positions, d, p):
        x, g = (tf.reshape(a, (-1, positions, 1, a.shape[3])) for a in (x, g))
        return CompiledProducts(x, g, bias=bias, kernel_size=(1, 1), strides=(1, 1), dilations=(1, 1), padding=(0, 0))
    # In multiply-adds an example; the ghost norm pays the weighted product on top.
    if positions is not None and groups * d * p <= LARGEST_MATERIALISED and 3 * d * p < positions**2 * (d + p + 2):
        return KeptProducts(x, g)
    return GhostProducts(x, g)


def worth_compiling(positions: int, d: int, p: int) -> bool:
    """Whether compiled operations are there, and quicker than comparing positions, which takes doubles."""
    return native.operations() is not None and positions > 1 and d * p <= 2 * positions * (d + p)


class MatrixProducts(Products):
    """J of operands laid out as matrices."""

    def __init__(self, x: tf.Tensor, g: tf.Tensor):
        self._x, self._g = x, g
        self._groups, self._positions, self._d = x.shape[1:]
        self._p = g.shape[3]

    def weighted_sum(self, factors):
        return _summed_products(self._x, self._g, factors)

    def floats_per_example(self):
        return self._groups * self._positions * (self._d + self._p)


class OuterProducts(MatrixProducts):
    """One position: the norm of an outer product is the product of norms."""

    def squared_norms(self):
        # In doubles: a small input and a large gradient have a product, and floats would lose the square of either.
        squares = [
            tf.reduce_sum(tf.square(tf.cast(a, tf.float64)), [2, 3]) + a.shape[3] * _SMALLEST_SQUARE
            for a in (self._x, self._g)
        ]
        return tf.cast(tf.reduce_sum(squares[0] * squares[1], 1), tf.float32)


class GhostProducts(MatrixProducts):
    """Positions compared with each other; all in doubles, as positions that cancel would leave floats nothing."""

    def __init__(self, x, g):
        super().__init__(tf.cast(x, tf.float64), tf.cast(g, tf.float64))

    def squared_norms(self):
        grams = [tf.matmul(a, a, transpose_b=True) for a in (self._x, self._g)]
        lengths = [tf.linalg.diag_part(gram) + _SMALLEST_SQUARE for gram in grams]
        largest = tf.reduce_sum(tf.sqrt(lengths[0] * lengths[1]), [1, 2])
        terms = self._d + self._p + tf.cast(tf.shape(self._x)[2], tf.float64) ** 2
        return ghost_norms(tf.reduce_sum(grams[0] * grams[1], [1, 2, 3]), largest, terms)

    def weighted_sum(self, factors):
        return tf.cast(_summed_products(self._x, self._g, tf.cast(factors, tf.float64)), tf.float32)

    def floats_per_example(self):
        return 2 * (super().floats_per_example() + 2 * self._groups * self._positions**2)


class KeptProducts(MatrixProducts):
    """J made and kept, as (p, d): the longer rows make the product and the norm quicker."""

    def squared_norms(self):
        self._kept = tf.matmul(self._g, self._x, transpose_a=True)
        # In doubles: a float that adds up many equal squares rounds the same way again and again.
        squares = tf.reduce_sum(tf.square(tf.cast(self._kept, tf.float64)), [1, 2, 3])
        return tf.cast(squares, tf.float32)

    def weighted_sum(self, factors):
        flat = tf.reshape(self._kept, (-1, self._groups * self._p * self._d))
        summed = tf.reshape(tf.matmul(factors[tf.newaxis], flat), (self._groups, self._p, self._d))
        return tf.transpose(summed, (0, 2, 1))

    def floats_per_example(self):
        return super().floats_per_example() + self._groups * self._d * self._p


class CompiledOuterProducts(MatrixProducts):
    """One position, and the bias along with it."""

    def __init__(self, x, g, bias: bool):
        super().__init__(x, g)
        self._bias = bias

    def squared_norms(self):
        x, g = (tf.reshape(a, (-1, a.shape[3])) for a in (self._x, self._g))
        self.sums = g if self._bias else None
        return native.operations().tfprivacy_lab_outer_product_norms(x, g, bias=self._bias)


class CompiledProducts(Products):
    """J of a convolution made in the processor's cache, from patches that are laid out there too.

    Args:
        inputs: (batch, height, width, channels).
        gradients: At the output, (batch, rows, columns, filters).
        bias: Whether the gradients' sum over positions counts in.
        kernel_size, strides, dilations, padding: Two numbers each; padding is that above and on the left.
    """

    def __init__(self, inputs, gradients, *, bias, kernel_size, strides, dilations, padding):
        self._inputs, self._gradients, self._bias = inputs, gradients, bias
        sizes = {"kernel_size": kernel_size, "strides": strides, "dilations": dilations, "padding": padding}
        self._window = {name: list(size) for name, size in sizes.items()}
        self._weights = kernel_size[0] * kernel_size[1] * inputs.shape[3] * gradients.shape[3]
        positions = gradients.shape[1] * gradients.shape[2]
        self._keep = self._weights <= _WEIGHTS_WORTH_KEEPING or (
            positions >= _POSITIONS_WORTH_KEEPING and self._weights <= LARGEST_MATERIALISED
        )
        self._kept = None

    def squared_norms(self):
        found = native.operations().tfprivacy_lab_example_products(
            self._inputs, self._gradients, keep=self._keep, bias=self._bias, **self._window
        )
        self.sums, self._kept = found.sums if self._bias else None, found.products if self._keep else None
        return found.squared_norms

    def weighted_sum(self, factors):
        p = self._gradients.shape[3]
        if self._keep:
            flat = tf.reshape(self._kept, (-1, self._weights))
            return tf.reshape(tf.matmul(factors[tf.newaxis], flat), (1, -1, p))
        return native.operations().tfprivacy_lab_weighted_products(
            self._inputs, self._gradients, factors, **self._window
        )[tf.newaxis]

    def floats_per_example(self):
        return self._gradients.shape[3] + (self._weights if self._keep else 0)


def _summed_products(x, g, factors):
    """Σ over examples and positions of factor x g^T, (groups, d, p)."""
    scaled = g * factors[:, tf.newaxis, tf.newaxis, tf.newaxis]
    if x.shape[1] > 1:
        return tf.einsum("bgtd,bgtp->gdp", x, scaled)
    x, g = tf.reshape(x, (-1, x.shape[3])), tf.reshape(scaled, (-1, g.shape[3]))
    return tf.matmul(x, g, transpose_a=True)[tf.newaxis]


def ghost_norms(squared: tf.Tensor, largest: tf.Tensor, terms) -> tf.Tensor:
    r"""Squared norms from sums of products that may cancel, never too small for what doubles make of the sum.

    Args:
        squared: :math:`\sum_{t,s} (x_t \cdot x_s)(g_t \cdot g_s)`, (batch,), float64.
        largest: :math:`\sum_t \|x_t\| \|g_t\|`, (batch,), float64: the square of it bounds all terms together.
        terms: How many additions a sum has at most; each rounds relative to what was added up.

    Returns:
        float32, (batch,).
    """
    return tf.cast(tf.maximum(squared, 0.0) + _ROUNDING * terms * tf.square(largest), tf.float32)
