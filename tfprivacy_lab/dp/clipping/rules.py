"""The layers that book-keeping has a rule for, and how another gets one (:func:`register_rule`)."""

from __future__ import annotations

import abc
import math

import keras
import tensorflow as tf

from tfprivacy_lab.checks import InputError
from tfprivacy_lab.dp.clipping.convolution import ConvolutionRule, DepthwiseConvolutionRule
from tfprivacy_lab.dp.clipping.linear import DenseRule, EinsumDenseRule
from tfprivacy_lab.dp.clipping.products import ghost_norms
from tfprivacy_lab.dp.clipping.rule import ExampleGradientsRule, Rule

_layers = keras.layers


class EmbeddingRule(Rule):
    """Embedding: the gradient is G's rows added up by token; equal tokens are compared, no row is made."""

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


class NormalizationRule(ExampleGradientsRule):
    """Layers that scale and shift what they normalised within an example."""

    @abc.abstractmethod
    def normalised(self, inputs) -> tf.Tensor:
        """The input, normalised, before scale and shift; same shape."""

    @abc.abstractmethod
    def axes(self, inputs) -> list[int]:
        """The axes along which the scale varies."""

    def example_gradients(self, inputs, gradients):
        kept, found = self.axes(inputs), {}
        over = [axis for axis in range(1, len(inputs.shape)) if axis not in kept]
        for name in ("gamma", "beta"):
            weight = getattr(self.layer, name)
            if weight is not None:
                product = gradients * self.normalised(inputs) if name == "gamma" else gradients
                found[name] = tf.reshape(tf.reduce_sum(product, over) if over else product, (-1, *weight.shape))
        return found


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
# Rules of the lab's own; those of others are tried more closely.
OURS = frozenset(KNOWN)


def register_rule(layer_class: type[keras.layers.Layer], rule: type[Rule]) -> None:
    """Give a layer of one's own a rule, so that ``PrivateModel`` trains it as fast as the layers it knows.

    ::

        class Scale(keras.layers.Layer):
            def build(self, shape):
                self.scale = self.add_weight(shape=shape[-1:], name="scale")

            def call(self, inputs):
                return inputs * self.scale

        class ScaleRule(dp.ExampleGradientsRule):
            def example_gradients(self, inputs, gradients):
                return {"scale": inputs * gradients}

        dp.register_rule(Scale, ScaleRule)
        dp.check_rule(Scale(), tf.random.normal((8, 3)))

    Args:
        layer_class: The class of a layer of one input and one output. Its subclasses are not meant, as they may
            compute anything.
        rule: A subclass of :class:`.ExampleGradientsRule`, or of :class:`.Rule` where gradients need not be made.

    Raises:
        InputError: if the arguments are not such classes, or the layer is one of Keras' that have a rule.

    Guarantee: none by itself: a rule that is wrong clips wrongly. :func:`.check_rule` holds all that it says against a
    loop over the examples. The trial before the first step of a ``fit`` holds norms and the clipped sum of a few of
    its examples against automatic differentiation; not covered by it: what the rule does with examples whose gradient
    is not finite.
    """
    if not (isinstance(layer_class, type) and issubclass(layer_class, keras.layers.Layer)):
        raise InputError(f"Expected a subclass of keras.layers.Layer as layer_class, got {layer_class!r}.")
    if not (isinstance(rule, type) and issubclass(rule, Rule)) or getattr(rule, "__abstractmethods__", None):
        raise InputError(
            f"Expected a subclass of dp.ExampleGradientsRule or dp.Rule that defines all of its methods as rule, got "
            f"{rule!r}."
        )
    if layer_class in OURS:
        raise InputError(f"Expected a layer without a rule as layer_class, got keras.layers.{layer_class.__name__}.")
    KNOWN[layer_class] = rule
