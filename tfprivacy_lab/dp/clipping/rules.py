"""The layers that book-keeping knows: those with a kernel, and embeddings and normalisations beside them."""

from __future__ import annotations

import abc
import math

import keras
import tensorflow as tf

from tfprivacy_lab.dp.clipping.convolution import ConvolutionRule, DepthwiseConvolutionRule
from tfprivacy_lab.dp.clipping.linear import DenseRule, EinsumDenseRule, Rule
from tfprivacy_lab.dp.clipping.products import ghost_norms, summed

_layers = keras.layers


class EmbeddingRule(Rule):
    """Embedding: the gradient is G's rows added up by token; equal tokens are compared, no row is made."""

    def forward(self, call, inputs, *args, **kwargs):
        return call(inputs, *args, **kwargs)

    def activate(self, outputs):
        return outputs

    def _tokens(self):
        batch, width = tf.shape(self.inputs[0])[0], self.layer.output_dim
        tokens = [tf.reshape(tf.cast(ids, tf.int32), (batch, -1)) for ids in self.inputs]
        gradients = [tf.reshape(g, (batch, -1, width)) for g in self.gradients]
        return tf.concat(tokens, 1), tf.concat(gradients, 1)

    def squared_norms(self) -> tf.Tensor:
        tokens, gradients = self._tokens()
        same = tf.cast(tokens[:, :, tf.newaxis] == tokens[:, tf.newaxis, :], tf.float64)
        exact = tf.cast(gradients, tf.float64)
        squared = tf.reduce_sum(same * tf.matmul(exact, exact, transpose_b=True), [1, 2])
        terms = self.layer.output_dim + tf.cast(tf.shape(tokens)[1], tf.float64) ** 2
        return ghost_norms(squared, tf.reduce_sum(tf.norm(exact, axis=2), 1), terms)

    def weighted_sum(self, factors: tf.Tensor) -> list[tf.Tensor]:
        tokens, gradients = self._tokens()
        # In doubles, as tokens that cancel would leave floats nothing but rounding; only rows that occur are summed.
        scaled = tf.cast(gradients, tf.float64) * tf.cast(factors, tf.float64)[:, tf.newaxis, tf.newaxis]
        rows, places = tf.unique(tf.reshape(tokens, [-1]))
        flat = tf.reshape(scaled, (-1, self.layer.output_dim))
        summed = tf.cast(tf.math.unsorted_segment_sum(flat, places, tf.size(rows)), tf.float32)
        return [tf.scatter_nd(rows[:, tf.newaxis], summed, (self.layer.input_dim, self.layer.output_dim))]

    def floats_per_example(self) -> int:
        positions = sum(math.prod(ids.shape[1:]) for ids in self.inputs)
        return positions * (2 * positions + 2 * self.layer.output_dim)


class NormalizationRule(Rule):
    """Layers that scale and shift what they normalised within an example: few weights, so gradients are made."""

    def forward(self, call, inputs, *args, **kwargs):
        return call(inputs, *args, **kwargs)

    def activate(self, outputs):
        return outputs

    @abc.abstractmethod
    def normalised(self, inputs) -> tf.Tensor:
        """The input, normalised, before scale and shift; same shape."""

    @abc.abstractmethod
    def axes(self, inputs) -> list[int]:
        """The axes along which the scale varies."""

    def _gradients(self) -> dict[str, tf.Tensor]:
        found: dict[str, tf.Tensor] = {}
        for inputs, g in zip(self.inputs, self.gradients, strict=True):
            kept = self.axes(inputs)
            over = [axis for axis in range(1, len(inputs.shape)) if axis not in kept]
            for name, product in (("gamma", lambda x=inputs, g=g: g * self.normalised(x)), ("beta", lambda g=g: g)):
                weight = getattr(self.layer, name)
                if weight is None:
                    continue
                value = tf.reshape(tf.reduce_sum(product(), over) if over else product(), (-1, *weight.shape))
                found[name] = value + found[name] if name in found else value
        return found

    def squared_norms(self) -> tf.Tensor:
        self._found = self._gradients()
        return sum(tf.reduce_sum(tf.square(g), list(range(1, len(g.shape)))) for g in self._found.values())

    def weighted_sum(self, factors: tf.Tensor) -> list[tf.Tensor]:
        return self._in_order(**{name: summed(factors, g) for name, g in self._found.items()})

    def floats_per_example(self) -> int:
        return 2 * sum(math.prod(x.shape[1:]) for x in self.inputs)


class LayerNormalizationRule(NormalizationRule):
    """LayerNormalization (Ba, Kiros and Hinton 2016)."""

    def axes(self, inputs):
        axis = self.layer.axis
        return [one % len(inputs.shape) for one in (axis if isinstance(axis, list | tuple) else [axis])]

    def normalised(self, inputs):
        mean, variance = tf.nn.moments(inputs, self.axes(inputs), keepdims=True)
        return (inputs - mean) * tf.math.rsqrt(variance + self.layer.epsilon)


class GroupNormalizationRule(NormalizationRule):
    """GroupNormalization (Wu and He 2018)."""

    def axes(self, inputs):
        return [self.layer.axis % len(inputs.shape)]

    def normalised(self, inputs):
        (axis,), shape = self.axes(inputs), tf.shape(inputs)
        channels = inputs.shape[axis]
        groups = channels if self.layer.groups == -1 else self.layer.groups
        split = tf.concat([shape[:axis], [groups, channels // groups], shape[axis + 1 :]], 0)
        parts = tf.reshape(inputs, split)
        over = [a for a in range(1, len(inputs.shape) + 1) if a != axis]
        mean, variance = tf.nn.moments(parts, over, keepdims=True)
        return tf.reshape((parts - mean) * tf.math.rsqrt(variance + self.layer.epsilon), shape)


# By exact class: a subclass may compute anything.
KNOWN = {
    _layers.Dense: DenseRule,
    _layers.EinsumDense: EinsumDenseRule,
    _layers.Conv2D: ConvolutionRule,
    _layers.DepthwiseConv2D: DepthwiseConvolutionRule,
    _layers.Embedding: EmbeddingRule,
    _layers.LayerNormalization: LayerNormalizationRule,
    _layers.GroupNormalization: GroupNormalizationRule,
}
