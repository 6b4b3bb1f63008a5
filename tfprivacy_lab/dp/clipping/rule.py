"""What a rule is: one layer's share in the norms and in the clipped sum of per-example gradients."""

from __future__ import annotations

import abc

import keras
import tensorflow as tf

from tfprivacy_lab.dp.clipping.products import cleared, summed
from tfprivacy_lab.models.keras_internals import own_weights


class Rule(abc.ABC):
    """What a layer's per-example gradients are, from its inputs and the gradients at its outputs.

    An instance is one layer in one forward pass, in which the layer may be used several times.

    Attributes:
        layer: The Keras layer.
        inputs: Its inputs, one per use, each (batch, ...).
        outputs: Its outputs before the activation, one per use; gradients are taken at these.
        gradients: The loss's gradients at ``outputs``, one per use; there after the forward pass.
    """

    def __init__(self, layer: keras.layers.Layer):
        self.layer, self.inputs, self.outputs = layer, [], []
        self.gradients: list[tf.Tensor] = []

    def forward(self, call, inputs, *args, **kwargs):
        """The layer's output before its activation: its own code, with the activation switched off."""
        if not hasattr(self.layer, "activation"):
            return call(inputs, *args, **kwargs)
        activation, self.layer.activation = self.layer.activation, None
        try:
            return call(inputs, *args, **kwargs)
        finally:
            self.layer.activation = activation

    def activate(self, outputs):
        """What the layer does after the point at which gradients are taken."""
        activation = getattr(self.layer, "activation", None)
        return outputs if activation is None else activation(outputs)

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
        known = {id(getattr(self.layer, name)): value for name, value in by_name.items()}
        return [known[id(weight)] for weight in own_weights(self.layer)]


class ExampleGradientsRule(Rule):
    """The rule of a layer with few weights: its per-example gradients are made, one by one, and then summed.

    ``example_gradients`` is all that such a rule has to say.
    """

    @abc.abstractmethod
    def example_gradients(self, inputs, gradients) -> dict[str, tf.Tensor]:
        """The gradients of one use, (batch, *weight.shape), by the names of the layer's attributes that hold weights.

        Args:
            inputs: The layer's input in that use, (batch, ...).
            gradients: The loss's gradient at its output before the activation, (batch, ...).
        """

    def _gradients(self) -> dict[str, tf.Tensor]:
        found: dict[str, tf.Tensor] = {}
        for inputs, gradients in zip(self.inputs, self.gradients, strict=True):
            for name, value in self.example_gradients(inputs, gradients).items():
                found[name] = value + found[name] if name in found else value
        return found

    def squared_norms(self) -> tf.Tensor:
        self._found = self._gradients()
        return sum(tf.reduce_sum(tf.square(g), list(range(1, len(g.shape)))) for g in self._found.values())

    def weighted_sum(self, factors: tf.Tensor) -> list[tf.Tensor]:
        return self._in_order(**{name: summed(factors, g) for name, g in self._found.items()})

    def floats_per_example(self) -> int:
        return 2 * sum(x.shape[1:].num_elements() or 0 for x in self.inputs)
