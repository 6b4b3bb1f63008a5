"""The fast engine against the reference one, on random models of every layer that the fast one knows."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.dp.clipping.test_ghost import BATCH, CLASSES, by_book_keeping, convolutions, cross_entropy, flat
from tests.dp.training.test_planned import NO_NOISE
from tfprivacy_lab.checks import InputError
from tfprivacy_lab.dp.accounting.gaussian import DpSgdRun
from tfprivacy_lab.dp.plan import TrainingPlan
from tfprivacy_lab.dp.sampling import PoissonBatches
from tfprivacy_lab.dp.training.reference import dp_sgd_optimizer
from tfprivacy_lab.dp.training.reference_checks import check_reference

pytestmark = pytest.mark.usefixtures("operations")

layers = keras.layers


def by_reference(model, x, y, weights, l2_norm_clip):
    """The clipped sum by TF Privacy's optimizer, which gives the mean over the rows."""
    run = DpSgdRun(BATCH, BATCH, NO_NOISE, 1)
    optimizer = dp_sgd_optimizer(run, TrainingPlan(BATCH, 1, l2_norm_clip, 1.0, 0.0), PoissonBatches(BATCH, BATCH, 1))
    with tf.GradientTape(persistent=True) as tape:
        losses = cross_entropy(y, model(x)) * tf.constant(weights, tf.float32)
    found = optimizer._compute_gradients(losses, model.trainable_variables, tape=tape)
    return [BATCH * tf.convert_to_tensor(gradient).numpy() for gradient, _ in found]


@st.composite
def models(draw):
    """A picture and a sentence to logits: convolutions, normalisations, tokens under a mask, einsums, shared layers."""
    height, width, channels = draw(st.integers(3, 6)), draw(st.integers(3, 6)), draw(st.sampled_from([2, 4]))
    picture, sentence = layers.Input((height, width, channels)), layers.Input((4,))
    # Not in groups: the reference engine refuses them, and test_ghost.py has them against a loop.
    above = layers.Conv2D(4, 2, padding="same", use_bias=draw(st.booleans()))(picture)
    above = layers.GroupNormalization(draw(st.sampled_from([1, 2, -1])))(above)
    above = draw(convolutions(height, width, 4))(above)
    above = layers.Dense(3, "tanh")(layers.Flatten()(layers.LayerNormalization()(above)))
    embedding, shared = layers.Embedding(5, 3, mask_zero=draw(st.booleans())), layers.Dense(3, "tanh")
    tokens = layers.EinsumDense("btd,de->bte", (4, 3), bias_axes=draw(st.sampled_from([None, "e", "te"])))(
        embedding(sentence)
    )
    pooled = layers.GlobalAveragePooling1D()(shared(shared(tokens)))
    model = keras.Model([picture, sentence], layers.Dense(CLASSES)(layers.Concatenate()([shared(above), pooled])))
    return model, (BATCH, height, width, channels)


def check_engines(built, seed):
    """Half of the examples are clipped and half are not; the first weighs nothing."""
    model, shape = built
    rng = np.random.default_rng(seed)
    for variable in model.trainable_variables:
        variable.assign(rng.normal(scale=0.4, size=variable.shape))
    x = [tf.constant(rng.normal(size=shape), tf.float32), tf.constant(rng.integers(0, 5, (BATCH, 4)))]
    y, weights = rng.integers(0, CLASSES, BATCH), np.append(0.0, rng.uniform(0.1, 3, BATCH - 1))
    _, norms = by_book_keeping(model, x, y, weights, 1.0)
    l2_norm_clip = float(np.median(norms))
    found, _ = by_book_keeping(model, x, y, weights, l2_norm_clip)
    expected = flat(by_reference(model, x, y, weights, l2_norm_clip))
    assert np.linalg.norm(flat(found) - expected) < 1e-5 * np.linalg.norm(expected)


# TF Privacy's Jacobian is compiled anew for every model: seconds each.
@settings(max_examples=3)
@given(models(), st.integers(0, 10**6))
def test_engines_give_the_same_sum(built, seed):
    check_engines(built, seed)


@pytest.mark.long
@settings(max_examples=40)
@given(models(), st.integers(0, 10**6))
def test_engines_give_the_same_sum_on_many(built, seed):
    check_engines(built, seed)


def test_the_reference_engine_refuses_what_its_jacobian_gets_wrong():
    """In groups, TensorFlow's Jacobian is wrong, or stops; the refusal can go when this fails."""
    model = keras.Sequential([layers.Input((3, 4, 4)), layers.Conv2D(4, 2, groups=2), layers.Flatten()])
    model.add(layers.Dense(CLASSES))
    rng = np.random.default_rng(0)
    x, y = tf.constant(rng.normal(size=(BATCH, 3, 4, 4)), tf.float32), rng.integers(0, CLASSES, BATCH)
    right = flat(by_book_keeping(model, x, y, np.ones(BATCH), 1e6)[0])
    try:
        found = flat(by_reference(model, x, y, np.ones(BATCH), 1e6))
    except tf.errors.InvalidArgumentError:
        found = np.zeros_like(right)  # where convolutions are not oneDNN's
    assert np.linalg.norm(found - right) > 0.01 * np.linalg.norm(right)
    with pytest.raises(InputError, match="convolution in 2 groups"):
        check_reference(model, 1.0, "flat", "philox", 1)
