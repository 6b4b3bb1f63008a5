"""Rules of layers, and how a user's own layer gets one."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfprivacy_lab import dp
from tfprivacy_lab.checks import InputError
from tfprivacy_lab.dp.clipping import rules
from tfprivacy_lab.dp.clipping.ghost import UnknownLayerError

layers = keras.layers


class Scale(layers.Layer):
    """A layer that Keras does not have."""

    def build(self, shape):
        self.scale = self.add_weight(shape=shape[-1:], name="scale", initializer="ones")

    def call(self, inputs):
        return inputs * self.scale


class Noisy(layers.Dense):
    """Draws random numbers."""

    def call(self, inputs):
        return super().call(inputs) * tf.random.uniform(())


class ScaleRule(dp.ExampleGradientsRule):
    def example_gradients(self, inputs, gradients):
        return {"scale": inputs * gradients}


@pytest.fixture(autouse=True)
def _registered_for_one_test(monkeypatch):
    monkeypatch.setattr(rules, "KNOWN", rules.KNOWN)
    before = dict(rules.KNOWN)
    yield
    rules.KNOWN.clear()
    rules.KNOWN.update(before)


def drawn(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


WHOLE = np.random.default_rng(1).integers(0, 5, (4, 6))
KNOWN = {
    "dense": (layers.Dense(3, activation="tanh"), drawn(5, 4)),
    "dense-wide": (layers.Dense(3, activation="tanh"), drawn(8, 784)),
    "dense-constrained": (layers.Dense(3, kernel_constraint="non_neg"), drawn(5, 4)),
    "dense-positions": (layers.Dense(3, use_bias=False), drawn(5, 2, 4)),
    "einsum": (layers.EinsumDense("abc,cd->abd", (2, 3), bias_axes="bd"), drawn(5, 2, 4)),
    "conv": (layers.Conv2D(2, 3, strides=2, padding="same"), drawn(4, 7, 6, 3)),
    "depthwise": (layers.DepthwiseConv2D(3, depth_multiplier=2), drawn(4, 6, 6, 2)),
    "embedding": (layers.Embedding(5, 3), WHOLE),
    "layer-norm": (layers.LayerNormalization(), drawn(4, 3, 6)),
    "group-norm": (layers.GroupNormalization(2), drawn(4, 3, 6)),
}


@pytest.mark.parametrize(("layer", "inputs"), KNOWN.values(), ids=KNOWN)
def test_every_rule_keeps_the_contract(layer, inputs):
    assert set(rules.KNOWN) == {type(layer) for layer, _ in KNOWN.values()}
    dp.check_rule(layer, inputs)


def test_a_layer_of_ones_own_trains_by_its_rule():
    data, target = drawn(64, 3), drawn(64, 3)

    def trained(**options):
        keras.utils.set_random_seed(3)
        model = keras.Sequential([keras.Input((3,)), Scale(), layers.Dense(3)])
        private = dp.PrivateModel(model, l2_norm_clip=0.5, noise_multiplier=1.0, seed=7, **options)
        private.compile(keras.optimizers.SGD(0.1), keras.losses.MeanSquaredError())
        private.fit(data, target, 16, epochs=2, verbose=0)
        return model.get_weights()

    with pytest.raises(UnknownLayerError, match="Scale"):
        trained()
    slow = trained(unknown_layers="slow")
    dp.register_rule(Scale, ScaleRule)
    dp.check_rule(Scale(), drawn(8, 3))
    for mine, other in zip(trained(), slow, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-6)


class Doubled(dp.ExampleGradientsRule):
    def example_gradients(self, inputs, gradients):
        return {"scale": 2 * inputs * gradients}


class OfTheFirst(dp.ExampleGradientsRule):
    """Right for one use, wrong for two."""

    def example_gradients(self, inputs, gradients):
        return {"scale": self.inputs[0] * self.gradients[0]}


class Mixed(dp.ExampleGradientsRule):
    """Gives an example a part of another."""

    def example_gradients(self, inputs, gradients):
        return {"scale": inputs * gradients + 0.1 * tf.roll(inputs * gradients, 1, 0)}


class Lost(dp.ExampleGradientsRule):
    """Norms are right, and the sum is not."""

    def example_gradients(self, inputs, gradients):
        return {"scale": inputs * gradients}

    def weighted_sum(self, factors):
        return [1.5 * total for total in super().weighted_sum(factors)]


class Kept(dp.ExampleGradientsRule):
    """Lets an example that is not finite into the sum."""

    def example_gradients(self, inputs, gradients):
        return {"scale": inputs * gradients}

    def keeping(self, rows):
        return self


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        (Doubled, r"per-example norms that differ .* by 1 of their size \(1 use\)"),
        (OfTheFirst, r"differ .*\(2 uses\)"),
        (Mixed, r"per-example norms that differ .*\(1 use\)"),
        (Lost, r"the clipped sum for 'scale' that differ .* by 0\.5 of their size \(1 use\)"),
        (Kept, r"the clipped sum for 'scale' .*\(an example that is not finite\)"),
    ],
)
def test_a_wrong_rule_is_found(rule, told):
    dp.register_rule(Scale, rule)
    with pytest.raises(InputError, match=told):
        dp.check_rule(Scale(), drawn(8, 3))


class Unclipped(dp.ExampleGradientsRule):
    """Norms are right, and nothing is clipped."""

    def example_gradients(self, inputs, gradients):
        return {"scale": inputs * gradients}

    def weighted_sum(self, factors):
        return super().weighted_sum(tf.ones_like(factors))


class NoNumber(dp.ExampleGradientsRule):
    """Its norms are no numbers, so that nothing would be trained."""

    def example_gradients(self, inputs, gradients):
        return {"scale": inputs * gradients * np.nan}


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        (Doubled, "norm"),
        (Mixed, "norm|sum of clipped"),
        (NoNumber, "norm"),
        (Lost, "sum of clipped gradients .* dp.check_rule"),
        (Unclipped, "sum of clipped gradients .* dp.check_rule"),
    ],
)
def test_a_wrong_rule_is_found_by_the_trial_of_a_fit_too(rule, told):
    dp.register_rule(Scale, rule)
    model = keras.Sequential([keras.Input((3,)), Scale(), layers.Dropout(0.5), layers.Dense(3)])
    before = model.get_weights()
    private = dp.PrivateModel(model, l2_norm_clip=0.5, noise_multiplier=1.0, seed=7)
    private.compile(keras.optimizers.SGD(0.1), keras.losses.MeanSquaredError())
    with pytest.raises(InputError, match=told):
        private.fit(drawn(64, 3) / 100, drawn(64, 3) / 100, 16, verbose=0)
    for mine, other in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(mine, other)


class Small(dp.ExampleGradientsRule):
    """Wrong for the example of the smallest gradient alone."""

    def example_gradients(self, inputs, gradients):
        made = inputs * gradients
        norms = tf.norm(made, axis=1)
        return {"scale": made * tf.where(norms == tf.reduce_min(norms), 2.0, 1.0)[:, tf.newaxis]}


class Nameless(dp.ExampleGradientsRule):
    """Gives its weight another name."""

    def example_gradients(self, inputs, gradients):
        return {"scales": inputs * gradients}


class Nothing(dp.ExampleGradientsRule):
    """Forgets the layer's weight."""

    def example_gradients(self, inputs, gradients):
        return {}


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        (Small, "per-example norms that differ .* by 1 of their size"),
        (Nameless, "gives gradients of 'scales', and layer .* has the weights 'scale'"),
        (Nothing, "gives gradients of nothing, and layer .* has the weights 'scale'"),
    ],
)
def test_a_rule_of_small_faults_is_found(rule, told):
    dp.register_rule(Scale, rule)
    inputs = drawn(8, 3) * np.array([[1e-3]] + 7 * [[1.0]], np.float32)
    with pytest.raises(InputError, match=told):
        dp.check_rule(Scale(), inputs)


class Two(layers.Layer):
    """Takes two tensors."""

    def build(self, shape):
        self.scale = self.add_weight(shape=shape[0][-1:], name="scale", initializer="ones")

    def call(self, inputs):
        return inputs[0] * self.scale + inputs[1]


def test_a_rule_is_for_one_input():
    dp.register_rule(Two, ScaleRule)
    place = keras.Input((3,))
    private = dp.PrivateModel(keras.Model(place, Two()([place, place])), l2_norm_clip=1.0, noise_multiplier=1.0, seed=7)
    private.compile(keras.optimizers.SGD(0.1), keras.losses.MeanSquaredError())
    with pytest.raises(InputError, match="takes or gives several tensors: a rule is for one input"):
        private.fit(drawn(64, 3), drawn(64, 3), 16, verbose=0)


class Once(layers.Layer):
    """Computes outside of TensorFlow: its gradient can be taken once."""

    def call(self, inputs):
        found = tf.py_function(lambda x: 2 * x, [inputs], tf.float32)
        return tf.ensure_shape(found, inputs.shape)


def test_a_right_rule_beside_what_is_differentiated_once():
    dp.register_rule(Scale, ScaleRule)
    model = keras.Sequential([keras.Input((3,)), Scale(), Once(), layers.Dense(3)])
    private = dp.PrivateModel(model, l2_norm_clip=1.0, noise_multiplier=1.0, seed=7)
    private.compile(keras.optimizers.SGD(0.1), keras.losses.MeanSquaredError())
    private.fit(drawn(64, 3), drawn(64, 3), 16, verbose=0)
    assert private.privacy()["steps"] == 4


def test_a_right_rule_beside_examples_that_cancel():
    dp.register_rule(Scale, ScaleRule)
    inputs = np.concatenate([drawn(32, 3), -drawn(32, 3)])
    model = keras.Sequential([keras.Input((3,)), Scale(), layers.Dense(3, use_bias=False)])
    private = dp.PrivateModel(model, l2_norm_clip=1.0, noise_multiplier=1.0, seed=7)
    private.compile(keras.optimizers.SGD(0.1), keras.losses.MeanSquaredError())
    private.fit(inputs, np.sign(inputs), 16, verbose=0)
    assert private.privacy()["steps"] == 4


class Half(dp.Rule):
    """Does not say all that a rule has to."""

    def squared_norms(self):
        return None


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((Scale(), ScaleRule), "keras.layers.Layer as layer_class, got <Scale"),
        ((dict, ScaleRule), "as layer_class, got <class 'dict'>"),
        ((Scale, ScaleRule.example_gradients), "as rule, got <function"),
        ((Scale, dict), "as rule, got <class 'dict'>"),
        ((Scale, dp.Rule), "as rule, got"),
        ((Scale, Half), "defines all of its methods as rule, got .*Half"),
        ((layers.Dense, ScaleRule), "without a rule as layer_class, got keras.layers.Dense"),
    ],
)
def test_what_is_no_rule_is_refused(arguments, told):
    before = dict(rules.KNOWN)
    with pytest.raises(InputError, match=told):
        dp.register_rule(*arguments)
    assert before == rules.KNOWN


@pytest.mark.parametrize(
    ("layer", "inputs", "told"),
    [
        (Scale(), drawn(8, 3), "no rule"),
        (layers.ReLU(), drawn(8, 3), "weights of its own"),
        (layers.Dense(2), drawn(1, 3), "at least 2 examples, got"),
        (layers.Dense(2), drawn(3), "shape"),
        (layers.Dense(2), np.ones((4, 3), np.float32), "at least 2 examples differ"),
        (layers.Embedding(5, 2), np.array([[1, 2], [1, 2]]), "at least 2 examples differ"),
        (layers.Dense(2, trainable=False), drawn(4, 3), "weights of its own"),
        (layers.LSTM(2), drawn(4, 2, 3), "weights of its own, and no others"),
        (Noisy(2), drawn(4, 3), "draws no random numbers"),
        (layers.Dense(2, dtype="mixed_float16"), drawn(4, 3), "computes in float32"),
        (layers.Dense(2, use_bias=False), np.eye(3, dtype=np.float32) * [[1], [1], [0]], "not zero, got norms"),
    ],
)
def test_what_cannot_be_checked_is_refused(layer, inputs, told):
    with pytest.raises(InputError, match=told):
        dp.check_rule(layer, inputs)
