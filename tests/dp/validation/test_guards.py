"""Ways around the guarantee: noise drawn twice, norms that vanish, budgets undone, examples that meet or leak."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.dp.ledger.test_ledger import STEP
from tests.dp.training.test_planned import CLASSES, WIDTH
from tests.dp.training.test_private_model import LOSS, B, N, dataset, linear, private, weights_of
from tfprivacy_lab.checks import InputError
from tfprivacy_lab.dp import PrivateModel, QuantileClip, StopBeforeBudget
from tfprivacy_lab.dp.clipping.ghost import BookKeeping
from tfprivacy_lab.dp.ledger.ledger import Ledger

pytestmark = pytest.mark.usefixtures("operations")

layers = keras.layers


@pytest.mark.parametrize("engine", ["fast", "reference"])
@pytest.mark.parametrize("compiled_again", [False, True])
def test_calls_of_fit_do_not_share_noise(engine, compiled_again):
    x, y = np.zeros((N, WIDTH), np.float32), np.zeros(N, np.int64)
    wrapped, moves = private(noise_multiplier=5.0, engine=engine), []
    for _ in range(3):
        before = wrapped.model.layers[0].kernel.numpy()
        wrapped.fit(x, y, B, steps_per_epoch=2, verbose=0)
        moves.append(wrapped.model.layers[0].kernel.numpy() - before)
        if compiled_again:
            wrapped.compile(keras.optimizers.SGD(0.5), LOSS)
    assert np.std(moves[0]) > 0.05
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert np.std(moves[a] - moves[b]) > 0.5 * np.std(moves[a])


class Centred(layers.Layer):
    """Subtracts an example's mean over time, so that the positions' gradients cancel."""

    def call(self, inputs):
        return inputs - tf.reduce_mean(inputs, 1, keepdims=True)


@pytest.mark.parametrize("method", ["flat", "automatic"])
@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_a_gradient_that_cancels_between_positions_is_clipped(method, scale):
    """In float32 the ghost norm of these is zero, or below; the oracle forms the gradient in float64."""
    rng = np.random.default_rng(0)
    x = (255 + rng.uniform(-0.01, 0.01, (3, 16, 512))).astype(np.float32)
    upstream = tf.constant(scale * rng.normal(size=(16, 256)), tf.float32)
    model = keras.Sequential([layers.Input((16, 512)), layers.Dense(256, use_bias=False), Centred()])
    assert_bounded(model, x, lambda outputs: tf.reduce_sum(outputs * upstream, [1, 2]), method)


@pytest.mark.parametrize("method", ["flat", "automatic"])
def test_a_token_whose_gradients_cancel_is_clipped(method):
    upstream = tf.constant(1e4 * np.random.default_rng(1).normal(size=(40, 8)), tf.float32)
    model = keras.Sequential([layers.Input((40,), dtype="int32"), layers.Embedding(5, 8), Centred()])
    assert_bounded(model, np.zeros((3, 40), np.int32), lambda out: tf.reduce_sum(out * upstream, [1, 2]), method)


@pytest.mark.parametrize(("positions", "width"), [(63, 64), (256, 257), (1000, 257)])
def test_many_positions_between_two_that_cancel(positions, width):
    """What lies between 2^20 and -2^20 is lost in floats as they are added, in the norm or in the sum or in both."""
    products = np.full(positions, 0.0375)
    products[[0, -1]] = 2.0**20, -(2.0**20)
    x = np.zeros((1, positions, width), np.float32)
    x[0, :, 0] = np.sqrt(np.abs(products))
    upstream = np.zeros((1, positions, width), np.float32)
    upstream[0, :, 0] = products / x[0, :, 0]
    model = keras.Sequential([layers.Input((positions, width)), layers.Dense(width, use_bias=False)])
    for l2_norm_clip in (0.495, 1.0, 0.999 * 0.0375 * (positions - 2)):
        assert_bounded(model, x, lambda out: tf.reduce_sum(out * upstream, [1, 2]), "flat", l2_norm_clip)


def test_a_norm_of_many_small_weights_beside_large_ones_is_not_rounded_down():
    """Squares just below half a unit of the last place of 1: a float that has reached 1 takes in none of 65,520."""
    small = np.sqrt(0.99 * 2.0**-24)
    x, upstream = np.zeros((1, 70, 256), np.float32), np.zeros((1, 70, 256), np.float32)
    x[0, 0], upstream[0, 0] = 1.0, small
    x[0, 1, :16], upstream[0, 1, 0] = 1.0, 1.0
    model = keras.Sequential([layers.Input((70, 256)), layers.Dense(256, use_bias=False)])
    assert_bounded(model, x, lambda out: tf.reduce_sum(out * upstream, [1, 2]), "flat")


def test_many_tokens_between_two_that_cancel():
    gradients = np.full((1, 1000, 8), 0.0)
    gradients[0, :, 0] = 0.0375
    gradients[0, [0, -1], 0] = 2.0**20, -(2.0**20)
    upstream = tf.constant(gradients, tf.float32)
    model = keras.Sequential([layers.Input((1000,), dtype="int32"), layers.Embedding(5, 8)])
    for l2_norm_clip in (1.0, 37.0):
        assert_bounded(
            model,
            np.zeros((1, 1000), np.int32),
            lambda out: tf.reduce_sum(out * upstream, [1, 2]),
            "flat",
            l2_norm_clip,
        )


@pytest.mark.parametrize("method", ["flat", "automatic"])
@pytest.mark.parametrize(("small", "large"), [(1e-19, 1e19), (1e-30, 1e30), (1e19, 1e-19)])
def test_a_small_input_under_a_large_gradient_is_clipped(small, large, method):
    """The square of either is no float, and their product is 28."""
    x = np.full((1, 784), small, np.float32)
    model = keras.Sequential([layers.Input((784,)), layers.Dense(1, use_bias=False)])
    assert_bounded(model, x, lambda out: large * out[:, 0], method)


def assert_bounded(model, x, losses_of, method, l2_norm_clip=1.0):
    """No example alone moves the clipped sum by more than C."""
    for row in range(len(x)):
        gradients = BookKeeping(model).gradients(lambda row=row: (losses_of(model(x[row : row + 1])), None))
        total, _ = gradients.clipped_sum(l2_norm_clip, method)
        assert np.linalg.norm([np.linalg.norm(part) for part in total]) <= l2_norm_clip * (1 + 1e-6)


@pytest.mark.parametrize("name", ["noise_multiplier", "engine"])
def test_what_is_accounted_cannot_be_set_apart_from_what_is_drawn(name):
    with pytest.raises(AttributeError):
        setattr(private(), name, 50.0)


def test_the_strictest_of_several_budgets_holds():
    x, y = dataset(N)
    wrapped = private(noise_multiplier=2.0, delta=1e-3)
    wrapped.fit(x, y, B, epochs=50, callbacks=[StopBeforeBudget(1.5), StopBeforeBudget(8.0)], verbose=0)
    assert 0 < wrapped.epsilon() <= 1.5
    wrapped.fit(x, y, B, epochs=50, callbacks=[StopBeforeBudget(8.0), StopBeforeBudget(2.0)], verbose=0)
    assert 1.5 < wrapped.epsilon() <= 2.0


def test_a_limit_outside_of_fit_is_refused():
    wrapped = private(noise_multiplier=2.0)
    with pytest.raises(InputError, match="No fit is under way"):
        wrapped.allow_steps_within(1.0, 1e-5)
    wrapped.fit(*dataset(N), B, verbose=0)
    with pytest.raises(InputError, match="No fit is under way"):
        wrapped.allow_steps_within(1.0, 1e-5)


def test_no_step_outside_of_fit():
    wrapped = private(noise_multiplier=2.0)
    wrapped.fit(*dataset(N), B, verbose=0)
    x, y = dataset(B)
    with pytest.raises(tf.errors.InvalidArgumentError, match="budget"):
        wrapped.train_step((tf.constant(x), tf.constant(y), tf.ones(B), tf.constant(B, tf.int64)))


def test_what_came_from_elsewhere_is_not_gone_on_with(tmp_path):
    x, y = dataset(N)
    wrapped = private(noise_multiplier=2.0, optimizer=keras.optimizers.SGD(0.5, 0.9))
    with pytest.raises(InputError, match="BackupAndRestore"):
        wrapped.fit(x, y, B, callbacks=[keras.callbacks.BackupAndRestore(tmp_path)], verbose=0)
    wrapped.fit(x, y, B, verbose=0)
    wrapped.fit(x, y, B, verbose=0)
    wrapped.optimizer.iterations.assign(3)
    with pytest.raises(InputError, match="at step 3"):
        wrapped.fit(x, y, B, verbose=0)


def test_layers_set_free_later_are_looked_at():
    x, y = dataset(N)
    frozen = layers.BatchNormalization(trainable=False)
    wrapped = private(keras.Sequential([layers.Input((WIDTH,)), frozen, layers.Dense(CLASSES)]))
    wrapped.fit(x, y, B, verbose=0)
    frozen.trainable = True
    with pytest.raises(InputError, match="Other weights are trainable"):
        wrapped.fit(x, y, B, verbose=0)
    with pytest.raises(InputError, match="BatchNormalization"):
        wrapped.compile("sgd", LOSS)


class RunningMean(layers.Layer):
    """Keeps the mean of what it sees in a weight, as a hand-made batch normalisation does."""

    def build(self, shape):
        self.seen = self.add_weight(name="seen", shape=shape[1:], trainable=False, initializer="zeros")

    def call(self, inputs, training=None):
        if training:
            self.seen.assign(tf.reduce_mean(inputs, 0))
        return inputs


@pytest.mark.parametrize("engine", ["fast", "reference"])
def test_a_layer_that_writes_examples_down_is_refused(engine):
    model = keras.Sequential([layers.Input((WIDTH,)), RunningMean(), layers.Dense(CLASSES)])
    with pytest.raises(InputError, match="without noise"):
        private(model, noise_multiplier=1.0, engine=engine).fit(*dataset(N), B, verbose=0)
    assert not np.any(model.layers[0].seen.numpy())


class ClassBalanced(keras.losses.Loss):
    """Divides by how many of the batch have the label."""

    def call(self, y_true, y_pred):
        label = tf.cast(tf.reshape(y_true, [-1]), tf.int64)
        same = tf.reduce_sum(tf.cast(label[:, tf.newaxis] == label, tf.float32), 1)
        return keras.losses.sparse_categorical_crossentropy(y_true, y_pred, from_logits=True) / same


@pytest.mark.parametrize("engine", ["fast", "reference"])
def test_losses_that_look_at_other_labels_are_refused(engine):
    x, _ = dataset(N)
    with pytest.raises(InputError, match="mixes the examples"):
        private(loss=ClassBalanced(), engine=engine).fit(x, np.arange(N) % CLASSES, B, verbose=0)


@pytest.mark.parametrize("engine", ["fast", "reference"])
def test_whole_numbers_that_meet_are_refused(engine):
    class BatchCentred(layers.Layer):
        def call(self, inputs):
            return inputs - tf.reduce_mean(inputs, 0, keepdims=True)

    model = keras.Sequential(
        [layers.Input((3,), dtype="int32"), layers.Embedding(9, 4), BatchCentred(), layers.Flatten(), layers.Dense(3)]
    )
    rng = np.random.default_rng(0)
    with pytest.raises(InputError, match=r"mixes the examples|keep examples apart"):
        private(model, engine=engine).fit(rng.integers(0, 9, (N, 3)), rng.integers(0, 3, N), B, verbose=0)


@pytest.mark.parametrize("engine", ["fast", "reference"])
def test_one_overflowing_example_leaves_no_trace(engine):
    """Its gradient is not finite; TF Privacy's own clip would make every weight NaN."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(N, WIDTH)).astype(np.float32), rng.normal(size=(N, 1)).astype(np.float32)
    x[5] = 3e38
    model = keras.Sequential([layers.Input((WIDTH,)), layers.Dense(1)])
    wrapped = private(model, loss="mse", noise_multiplier=0.5, engine=engine)
    wrapped.fit(x, y, B, epochs=3, verbose=0)
    assert np.isfinite(weights_of(model)).all()


@pytest.mark.parametrize("change", [lambda d: d.prefetch(2), lambda d: d.cache(), lambda d: d.map(lambda *a: a)])
def test_batches_in_disguise_are_refused(change):
    batched = tf.data.Dataset.from_tensor_slices(dataset(N)).batch(6)
    with pytest.raises(InputError, match="single examples"):
        private().fit(change(batched), batch_size=2, verbose=0)
    private().fit(change(batched.unbatch()), batch_size=2, steps_per_epoch=1, verbose=0)


def test_adaptive_clipping_is_for_poisson_batches():
    wrapped = PrivateModel(linear(), l2_norm_clip=QuantileClip(1.0, B, 5.0), noise_multiplier=1.0)
    wrapped.compile("sgd", LOSS)
    with pytest.raises(InputError, match="sampling='shuffled'"):
        wrapped.fit(*dataset(N), B, sampling="shuffled", verbose=0)


def test_compilers_that_drop_the_limit_are_refused():
    with pytest.raises(InputError, match="jit_compile"):
        private(compiled={"jit_compile": True})


def test_a_ledger_grants_a_seed_to_one_run(tmp_path):
    ledger = Ledger.create(tmp_path / "ledger", "digits", epsilon=3.0, delta=1e-5)
    assert ledger.register("a", STEP, noise_seed=7, settings={"rate": 1}).charged
    with pytest.raises(InputError, match="run 'a' has the same noise seed"):
        ledger.register("b", STEP, noise_seed=7, settings={"rate": 2})
    assert ledger.register("b", STEP, noise_seed=8, settings={"rate": 2}).charged
    assert not ledger.register("a", STEP, noise_seed=7, settings={"rate": 1}).charged
    assert ledger.register("c", STEP).charged
    assert ledger.register("d", STEP).charged
