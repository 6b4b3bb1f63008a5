"""What a rule is: one layer's share in the norms and in the clipped sum of per-example gradients."""

from __future__ import annotations

import abc
import math

import keras
import tensorflow as tf

from tfprivacy_lab.checks import InputError
from tfprivacy_lab.dp.clipping.products import cleared, summed
from tfprivacy_lab.models.keras_internals import own_weights


class Rule(abc.ABC):
    """What a layer's per-example gradients are, from its inputs and the gradients at its outputs.

    An instance is one layer in one forward pass, in which the layer may be used several times.

    Attributes:
        layer: The Keras layer.
        inputs: Its inputs, one per use, each (batch, ...).
        outputs: Its outputs, one per use; gradients are taken at these.
        gradients: The loss's gradients at ``outputs``, one per use; there after the forward pass.
    """

    def __init__(self, layer: keras.layers.Layer):
        self.layer, self.inputs, self.outputs = layer, [], []
        self.gradients: list[tf.Tensor] = []

    def forward(self, call, inputs, *args, **kwargs):
        """The tensor at which gradients are taken: the layer's output."""
        return call(inputs, *args, **kwargs)

    def activate(self, outputs):
        """What the layer does after the point at which gradients are taken: nothing."""
        return outputs

    @abc.abstractmethod
    def squared_norms(self) -> tf.Tensor:
        """Squared norm of each example's gradient, (batch,)."""

    @abc.abstractmethod
    def weighted_sum(self, factors: tf.Tensor) -> list[tf.Tensor]:
        """Σ_b factors_b · gradient_b, for each of the layer's trainable weights, in their order."""

    @abc.abstractmethod
    def floats_per_example(self) -> int:
        """Numbers an example needs beyond what back-propagation holds anyway."""

    def keeping(self, rows: tf.Tensor) -> Rule:
        """A copy in which the examples that ``rows`` (batch,) says no to are zero; call after squared_norms."""
        return cleared(self, rows, but=("layer", "outputs"))

    def _in_order(self, **by_name) -> list[tf.Tensor]:
        """The gradients named as the layer's attributes, in the order of its trainable weights."""
        known = {id(getattr(self.layer, name, None)): value for name, value in by_name.items()}
        weights = own_weights(self.layer)
        if {*known} != {id(weight) for weight in weights}:
            raise InputError(
                f"{type(self).__name__} gives gradients of {', '.join(map(repr, by_name)) or 'nothing'}, and layer "
                f"{self.layer.name!r} has the weights {', '.join(repr(weight.name) for weight in weights)}: name the "
                "layer's attribute that holds each."
            )
        return [known[id(weight)] for weight in weights]


class ExampleGradientsRule(Rule):
    """The rule of a layer with few weights: its per-example gradients are made, one by one, and then summed.

    ``example_gradients`` is all that such a rule has to say.
    """

    @abc.abstractmethod
    def example_gradients(self, inputs, gradients) -> dict[str, tf.Tensor]:
        """The gradients of one use, (batch, *weight.shape), by the names of the layer's attributes that hold weights.

        Args:
            inputs: The layer's input in that use, (batch, ...).
            gradients: The loss's gradient at its output in that use, (batch, ...).
        """

    def _gradients(self) -> dict[str, tf.Tensor]:
        found: dict[str, tf.Tensor] = {}
        for inputs, gradients in zip(self.inputs, self.gradients, strict=True):
            for name, value in self.example_gradients(inputs, gradients).items():
                found[name] = value + found[name] if name in found else value
        return found

    def squared_norms(self) -> tf.Tensor:
        self._found = self._gradients()
        self._in_order(**self._found)  # refuses names that are not the layer's
        return sum(tf.reduce_sum(tf.square(g), list(range(1, len(g.shape)))) for g in self._found.values())

    def weighted_sum(self, factors: tf.Tensor) -> list[tf.Tensor]:
        return self._in_order(**{name: summed(factors, g) for name, g in self._found.items()})

    def floats_per_example(self) -> int:
        made = sum(math.prod(weight.shape) for weight in own_weights(self.layer))
        return made + 2 * sum(math.prod(x.shape[1:]) for x in self.inputs)
