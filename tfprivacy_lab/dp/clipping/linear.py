r"""Rules of layers with a kernel: what a per-example gradient is made of is the input, and the gradient at the output.

For every layer whose output before the activation is linear in its kernel, the gradient of example b is
:math:`J_b = \sum_t x_{bt} g_{bt}^\top` over positions t (pixels, time steps, uses of the layer). Its norm
and weighted sum are taken whichever way is cheapest (:mod:`tfprivacy_lab.dp.clipping.products`).
"""

from __future__ import annotations

import abc
import math
import string

import tensorflow as tf

from tfprivacy_lab.checks import InputError
from tfprivacy_lab.dp.clipping.products import Products, cleared, products_of, summed
from tfprivacy_lab.dp.clipping.rule import Rule


class LinearRule(Rule):
    """Layers that multiply by a kernel, seen as X (batch, groups, positions, d) and G (..., p)."""

    def __init__(self, layer):
        super().__init__(layer)
        self._products: Products | None = None
        self._bias_gradients = None

    def forward(self, call, inputs, *args, **kwargs):
        """The output before the activation: the layer's own code, with the activation switched off."""
        activation, self.layer.activation = self.layer.activation, None
        try:
            return call(inputs, *args, **kwargs)
        finally:
            self.layer.activation = activation

    def activate(self, outputs):
        """The activation, after the point at which gradients are taken."""
        return outputs if self.layer.activation is None else self.layer.activation(outputs)

    @abc.abstractmethod
    def as_matrices(self, inputs, gradients) -> tuple[tf.Tensor, tf.Tensor]:
        """One use as X (batch, groups, positions, d) and G (batch, groups, positions, p)."""

    @abc.abstractmethod
    def kernel_shaped(self, summed: tf.Tensor) -> tf.Tensor:
        """A gradient (groups, d, p) in the kernel's shape."""

    def products(self) -> Products:
        """The products of inputs and gradients; made once, as squared_norms and weighted_sum share them."""
        if self._products is None:
            self._products = self._make_products()
        return self._products

    def _make_products(self):
        # A layer takes whole numbers too, one-hot rows say, and computes with them as its kernel's.
        uses = zip(self.inputs, self.gradients, strict=True)
        pairs = [self.as_matrices(tf.cast(x, g.dtype), g) for x, g in uses]
        columns = zip(*pairs, strict=True)
        x, g = (parts[0] if len(parts) == 1 else tf.concat(parts, 2) for parts in columns)
        return products_of(x, g, bias=self._has_simple_bias())

    def _has_simple_bias(self) -> bool:
        """Whether there is a bias whose gradient is G's sum over positions."""
        return self.layer.bias is not None

    def squared_norms(self) -> tf.Tensor:
        norms = self.products().squared_norms()
        if self.layer.bias is None:
            return norms
        if self.products().sums is not None:
            self._bias_gradients = self.products().sums
            return norms
        self._bias_gradients = self._per_example_bias()
        return norms + tf.reduce_sum(tf.square(self._bias_gradients), list(range(1, len(self._bias_gradients.shape))))

    def weighted_sum(self, factors: tf.Tensor) -> list[tf.Tensor]:
        named = {"kernel": self.kernel_shaped(self.products().weighted_sum(factors))}
        if self._bias_gradients is not None:
            named["bias"] = summed(factors, self._bias_gradients)
        return self._in_order(**named)

    def keeping(self, rows):
        other = cleared(self, rows, but=("layer", "outputs", "_products"))
        other._products = self.products().keeping(rows)
        return other

    def _per_example_bias(self):
        """(batch, *bias.shape): the output's gradient summed over all axes along which the bias repeats."""
        bias, total = self.layer.bias, 0.0
        for g in self.gradients:
            if getattr(self.layer, "data_format", None) == "channels_first":
                g = tf.transpose(g, (0, *range(2, len(g.shape)), 1))
            shape = [1] * (len(g.shape) - len(bias.shape)) + list(bias.shape)
            axes = [axis for axis in range(1, len(g.shape)) if shape[axis] == 1]
            total += tf.reshape(tf.reduce_sum(g, axes), (-1, *bias.shape)) if axes else g
        return total

    def floats_per_example(self) -> int:
        return self.products().floats_per_example()


class DenseRule(LinearRule):
    """Dense: every axis between the first and the last is a position."""

    def as_matrices(self, inputs, gradients):
        d, p = self.layer.kernel.shape
        positions = -1 if None in inputs.shape[1:-1] else math.prod(inputs.shape[1:-1])
        rows = -1 if positions > 0 else tf.shape(inputs)[0]
        return (tf.reshape(a, (rows, 1, positions, width)) for a, width in ((inputs, d), (gradients, p)))

    def kernel_shaped(self, summed):
        return summed[0]


class EinsumDenseRule(LinearRule):
    """EinsumDense: each letter of the equation is a group, a position, an input or an output of the kernel."""

    def as_matrices(self, inputs, gradients):
        x, k, y = self._letters(len(inputs.shape), len(gradients.shape))
        batch = x[0]
        groups = [c for c in k if c in x and c in y]
        d, p = [c for c in k if c in x and c not in y], [c for c in k if c in y and c not in x]
        positions = [c for c in x if c in y and c not in k and c != batch]
        if x[0] != y[0] or batch in k or set(x) - set(y) - set(k) or len(groups + d + p) != len(k):
            raise InputError(
                f"Layer {self.layer.name!r}: the equation {self.layer.equation!r} is not one of a kernel applied to "
                "each example; its first letter must be the batch's in input and output, and each letter of the "
                "kernel must be in one of them. Use Dense, or another equation."
            )
        self._kernel_letters, self._parts = k, (groups, d, p)
        sizes = {**dict(zip(x, inputs.shape, strict=True)), **dict(zip(y, gradients.shape, strict=True))}
        self._sizes = [[sizes[c] for c in part] for part in (groups, d, p)]
        shape = [math.prod(sizes[c] for c in groups), -1 if positions else 1]
        order = [
            [x.index(c) for c in (batch, *groups, *positions, *d)],
            [y.index(c) for c in (batch, *groups, *positions, *p)],
        ]
        return (
            tf.reshape(tf.transpose(a, to), (tf.shape(a)[0], *shape, math.prod(sizes[c] for c in last)))
            for a, to, last in zip((inputs, gradients), order, (d, p), strict=True)
        )

    def _has_simple_bias(self):
        return False  # It may vary along positions.

    def _letters(self, x_rank, y_rank):
        """The equation's letters for input, kernel and output, with an ellipsis spelled out."""
        left, y = self.layer.equation.replace(" ", "").split("->")
        x, k = left.split(",")
        spare = [c for c in string.ascii_letters if c not in self.layer.equation]

        def spelled(term, rank):
            return list(term.replace("...", "".join(spare[: rank - len(term.replace("...", ""))])))

        return spelled(x, x_rank), list(k), spelled(y, y_rank)

    def kernel_shaped(self, summed):
        groups, d, p = self._parts
        unfolded = tf.reshape(summed, [size for part in self._sizes for size in part])
        letters = [*groups, *d, *p]
        return tf.transpose(unfolded, [letters.index(c) for c in self._kernel_letters])
