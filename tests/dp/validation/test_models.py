"""What PrivateModel refuses by name before anything is drawn, and what it says of what it did."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from tests.dp.clipping.test_ghost import assert_same, head, images
from tests.dp.training.test_planned import CLASSES, NO_NOISE, WIDTH
from tests.dp.training.test_private_model import LOSS, B, N, dataset, linear, private, tied, weights_of
from tfprivacy_lab.checks import InputError
from tfprivacy_lab.dp import PrivateModel, QuantileClip
from tfprivacy_lab.dp.clipping.ghost import BookKeeping
from tfprivacy_lab.dp.training.reference_checks import check_reference
from tfprivacy_lab.dp.training.replicas import Replicas

layers = keras.layers


@pytest.fixture
def channels_first():
    """TensorFlow convolves channels_first on a processor only by oneDNN, which it turns on where AVX-512 is."""
    try:
        layers.Conv2D(1, 1, data_format="channels_first")(np.zeros((1, 1, 2, 2), np.float32))
    except tf.errors.OpError:
        pytest.skip("TensorFlow has no channels_first convolution on this processor")


@pytest.mark.usefixtures("channels_first")
@pytest.mark.parametrize(
    "layer",
    [
        lambda: layers.Conv2D(4, 3, data_format="channels_first"),
        lambda: layers.Conv2D(3, 2, padding="same", strides=2, data_format="channels_first"),
        lambda: layers.Conv2D(6, (2, 1), groups=3, data_format="channels_first", use_bias=False),
        lambda: layers.DepthwiseConv2D(3, data_format="channels_first", depth_multiplier=2),
    ],
)
def test_convolutions_with_channels_first(layer):
    """As many rows as channels in the first: a bias on the wrong axis would go unseen by its shape."""
    model = keras.Sequential(head(layers.Input((3, 6, 4)), layer(), layers.Activation("tanh")))
    assert_same(model, images(4, 3, 6, 4))


@pytest.mark.usefixtures("channels_first")
def test_a_model_with_channels_first_is_fitted():
    model = keras.Sequential(head(layers.Input((1, 5, 5)), layers.Conv2D(4, 3, data_format="channels_first")))
    wrapped, before = private(model), weights_of(model)
    wrapped.fit(images(N, 1, 5, 5), np.arange(N) % CLASSES, B, steps_per_epoch=1, verbose=0)
    assert wrapped.phases()[0].steps == 1
    assert np.isfinite(weights_of(model)).all()
    assert not np.array_equal(weights_of(model), before)


LABELS = {
    "too large": (LOSS, [0, 1, CLASSES], f"Expected y to hold whole numbers from 0 to {CLASSES - 1}, got {CLASSES}"),
    "negative": ("sparse_categorical_crossentropy", [0, -1, 1], "whole numbers from 0 to 2, got -1"),
    "no whole number": (LOSS, [0.0, 1.5, 1.0], "whole numbers from 0 to 2, got 1.5"),
    "in another's hands": (
        lambda y, out: tf.nn.sparse_softmax_cross_entropy_with_logits(tf.cast(y[:, 0], tf.int32), out),
        [0, 1, 7],
        "Expected y to be labels that the loss takes: .*label value",
    ),
    "one-hot of too many": (
        keras.losses.CategoricalCrossentropy(from_logits=True),
        np.eye(CLASSES + 1)[[0, 1, 2]],
        "Expected y to be labels that the loss takes",
    ),
}


@pytest.mark.parametrize("engine", ["fast", "reference"])
@pytest.mark.parametrize(("loss", "labels", "message"), LABELS.values(), ids=LABELS.keys())
def test_labels_that_would_stop_a_step_are_refused_before_the_first(loss, labels, message, engine):
    """The wrong one last, where a trial of the first few would not find it."""
    x, _ = dataset(N)
    y = np.repeat(np.array(labels)[:1], N, 0)
    y[-len(labels) :] = labels
    wrapped = private(loss=loss, noise_multiplier=1.0, engine=engine)
    before = weights_of(wrapped.model)
    with pytest.raises(InputError, match=message):
        wrapped.fit(x, y, B, verbose=0)
    assert wrapped.phases() == []
    assert np.array_equal(weights_of(wrapped.model), before)


def test_labels_that_the_loss_ignores_and_whole_floats_are_taken():
    x, y = dataset(N)
    y = np.where(np.arange(N) % 5 == 0, -1, y).astype(np.float32)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)
    wrapped = private(loss=loss)
    history = wrapped.fit(x, y, B, steps_per_epoch=1, verbose=0)
    assert wrapped.phases()[0].steps == 1
    assert np.isfinite(history.history["loss"]).all()


SGD = keras.optimizers.SGD
OPTIONS = {
    "weight_decay": lambda: SGD(0.5, weight_decay=0.1),
    "clipnorm": lambda: SGD(0.5, clipnorm=1.0),
    "clipvalue": lambda: SGD(0.5, clipvalue=1.0),
    "global_clipnorm": lambda: SGD(0.5, global_clipnorm=1.0),
    "use_ema": lambda: SGD(0.5, use_ema=True),
    "gradient_accumulation_steps": lambda: SGD(0.5, gradient_accumulation_steps=2),
    "loss_scale_factor": lambda: SGD(0.5, loss_scale_factor=2.0),
    "nesterov": lambda: SGD(0.5, 0.9, nesterov=True),
}
# Of Keras' SGD; those of the moving average do nothing without use_ema.
TAKEN = {"name", "learning_rate", "momentum", "ema_momentum", "ema_overwrite_frequency"}


@pytest.mark.parametrize("option", OPTIONS)
def test_options_that_the_reference_engine_would_leave_undone_are_refused(option):
    with pytest.raises(InputError, match=f"(?i){option}"):
        private(optimizer=OPTIONS[option](), engine="reference")


def test_every_option_is_taken_or_refused():
    assert set(SGD().get_config()) == TAKEN | set(OPTIONS)


def test_engines_follow_a_learning_rate_that_a_callback_sets_and_count_steps():
    x, y = dataset(N)
    start, after = None, []
    halved = keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate * 0.3)
    for engine in ("fast", "reference"):
        wrapped = private(optimizer=SGD(0.5, 0.9), engine=engine, noise_multiplier=NO_NOISE)
        start = start or wrapped.model.get_weights()
        wrapped.model.set_weights(start)
        wrapped.fit(x, y, B, epochs=3, steps_per_epoch=2, callbacks=[halved], verbose=0)
        assert wrapped.optimizer.iterations == 6
        after.append(weights_of(wrapped.model))
    np.testing.assert_allclose(*after, atol=1e-5)
    wrapped.optimizer.iterations.assign(3)
    with pytest.raises(InputError, match="at step 3"):
        wrapped.fit(x, y, B, verbose=0)


def test_the_reference_engine_takes_over_no_state():
    x, y = dataset(N)
    used = SGD(0.5, 0.9)
    used.build([tf.Variable(1.0)])
    used.iterations.assign(4)
    with pytest.raises(InputError, match="at step 4 already"):
        private(optimizer=used, engine="reference", noise_multiplier=1.0).fit(x, y, B, verbose=0)


def test_adaptive_clipping_under_a_strategy():
    strategy = tf.distribute.MirroredStrategy(["/cpu:0"])
    with strategy.scope():
        wrapped = PrivateModel(linear(), l2_norm_clip=QuantileClip(0.7, B, 5.0), noise_multiplier=1.0, seed=3)
        wrapped.compile("sgd", LOSS)
    assert wrapped.l2_norm_clip == pytest.approx(0.7)
    wrapped.fit(*dataset(N), B, steps_per_epoch=2, verbose=0)
    assert wrapped.l2_norm_clip != pytest.approx(0.7)


@pytest.mark.parametrize("engine", ["fast", "reference"])
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16", "float64"])
def test_other_precisions_are_refused_by_name(policy, engine):
    model = keras.Sequential([layers.Input((WIDTH,)), layers.Dense(CLASSES, dtype=policy, name="wide")])
    with pytest.raises(InputError, match=rf"Layer 'wide' computes in .* \(policy '{policy}'\)"):
        private(model, engine=engine)


class Seen(layers.Layer):
    """Keeps a metric of what it sees."""

    def __init__(self):
        super().__init__()
        self.mean = keras.metrics.Mean(name="seen")

    def call(self, inputs):
        self.mean.update_state(tf.reduce_mean(inputs))
        return inputs


class Deep(keras.Model):
    """Subclassed, with a metric inside."""

    def __init__(self, **options):
        super().__init__(**options)
        self.dense, self.seen = layers.Dense(CLASSES), Seen()

    def call(self, inputs):
        return self.dense(self.seen(inputs))


def test_a_subclassed_model_is_saved_without_what_it_saw(tmp_path):
    x, y = dataset(N)
    model = Deep()
    model(x[:1])
    wrapped = private(model, noise_multiplier=1.0)
    shown = wrapped.fit(x, y, B, steps_per_epoch=2, verbose=0).history
    (seen,) = model.seen.metrics
    assert shown["seen"][0] != 0
    # The model itself may be saved too, so that no figure is left in it once a fit is over.
    assert seen.count == 0
    seen.update_state(3.0)
    wrapped.save(tmp_path / "model.keras")
    assert seen.count == 0
    loaded = keras.models.load_model(tmp_path / "model.keras", custom_objects={"Deep": Deep})
    np.testing.assert_allclose(loaded.dense.kernel, model.dense.kernel)
    wrapped.fit(x, y, B, steps_per_epoch=1, verbose=0)


def test_weights_used_outside_their_layer_are_trained_example_by_example():
    x, y = dataset(N)
    after, start = [], None
    for engine in ("fast", "reference"):
        wrapped = private(tied(), unknown_layers="slow", engine=engine, noise_multiplier=NO_NOISE)
        start = start or wrapped.model.get_weights()
        wrapped.model.set_weights(start)
        wrapped.fit(x / 10, y, B, steps_per_epoch=2, verbose=0)
        after.append(weights_of(wrapped.model))
    np.testing.assert_allclose(*after, atol=1e-5)
    assert np.abs(after[0] - np.concatenate([array.ravel() for array in start])).max() > 0.01


NO_MODELS = {
    "text": (lambda: "model", "Expected model to be a keras.Model, got str"),
    "layer": (lambda: layers.Dense(3), "Expected model to be a keras.Model, got Dense"),
    "unbuilt": (lambda: keras.Sequential([layers.Dense(3)]), "Expected model to be built"),
    "frozen": (lambda: linear(trainable=False), "to have trainable weights, got none"),
}


@pytest.mark.parametrize(("build", "message"), NO_MODELS.values(), ids=NO_MODELS.keys())
def test_what_is_no_model_to_train_is_refused(build, message):
    with pytest.raises(InputError, match=message):
        private(build())


ARGUMENTS = {
    "input width": ({"x": np.ones((N, WIDTH + 1), np.float32)}, r"does not take x, examples of shape \(6,\)"),
    "epochs": ({"epochs": 2.5}, "epochs to be a whole number >= 1, got epochs=2.5"),
    "no epochs": ({"epochs": 0}, "epochs=0"),
    "initial epoch": ({"epochs": 2, "initial_epoch": 3}, "initial_epoch to be a whole number >= 0 and <= 2"),
    "no steps": ({"steps_per_epoch": 0}, "steps_per_epoch to be a whole number >= 1, got steps_per_epoch=0"),
    "half a step": ({"steps_per_epoch": 1.5}, "steps_per_epoch=1.5"),
}


@pytest.mark.parametrize(("changes", "message"), ARGUMENTS.values(), ids=ARGUMENTS.keys())
def test_arguments_of_fit_are_refused_by_name(changes, message):
    x, y = dataset(N)
    wrapped = private(noise_multiplier=1.0)
    with pytest.raises(InputError, match=message):
        wrapped.fit(**{"x": x, "y": y, "batch_size": B, "verbose": 0} | changes)
    assert wrapped.phases() == []


def test_scopes_that_do_not_fit_are_refused():
    strategy = tf.distribute.MirroredStrategy(["/cpu:0"])
    with strategy.scope():
        inside = linear()
    with pytest.raises(InputError, match="made in the scope of one strategy, got a model of MirroredStrategy under no"):
        private(inside)
    outside = linear()
    with strategy.scope(), pytest.raises(InputError, match="a model of no strategy under MirroredStrategy"):
        private(outside)
    wrapped = private(outside)
    with strategy.scope(), pytest.raises(InputError, match="fit is called under MirroredStrategy"):
        wrapped.fit(*dataset(N), B, verbose=0)
    with strategy.scope(), pytest.raises(InputError, match="compile is called under MirroredStrategy"):
        wrapped.compile("sgd", LOSS)


def test_engines_and_samplings_for_one_worker_are_refused_for_two():
    replicas = Replicas()
    replicas.count = 2
    with pytest.raises(InputError, match="sampling='shuffled' is for one worker"):
        replicas.sampler("shuffled", N, 2 * N, B, 3, 0)
    assert replicas.sampler("poisson", N, 2 * N, B, 3, 0).probability == B / (2 * N)
    with pytest.raises(InputError, match="engine='reference' is for one worker"):
        check_reference(linear(), 1.0, "flat", "philox", 2)
    check_reference(linear(), 1.0, "flat", "philox", 1)


def test_epsilon_of_shuffled_batches_says_what_it_holds_for():
    x, y = dataset(N)
    wrapped = private(noise_multiplier=2.0, delta=1e-3)
    wrapped.fit(x, y, B, steps_per_epoch=2, verbose=0)
    said = wrapped.privacy()
    assert (said["sampling"], said["amplification"]) == ("poisson", "by sampling")
    assert said["adjacency"] == "add_or_remove_one"
    assert (said["epsilon"], said["delta"], said["steps"]) == (wrapped.epsilon(), 1e-3, 2)
    with pytest.warns(UserWarning, match="without amplification by sampling, and for zero-out adjacency") as warned:
        wrapped.fit(x, y, B, steps_per_epoch=1, sampling="shuffled", verbose=0)
    assert sum("zero-out" in str(one.message) for one in warned) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        wrapped.fit(x, y, B, steps_per_epoch=1, sampling="shuffled", verbose=0)
    said = wrapped.privacy()
    assert said["adjacency"] == "zero_out"
    assert (said["sampling"], said["amplification"]) == (["poisson", "shuffled"], ["by sampling", "none"])
    assert wrapped.privacy(1e-6)["epsilon"] == wrapped.epsilon(1e-6) > said["epsilon"]


def test_books_are_kept_for_known_layers_of_any_policy_that_computes_in_float32():
    BookKeeping(keras.Sequential([layers.Input((WIDTH,)), layers.Dense(CLASSES, dtype="float32")]))


def test_a_model_of_keras_2_is_refused_in_a_sentence():
    model = tf_keras.Sequential([tf_keras.layers.Input((WIDTH,)), tf_keras.layers.Dense(CLASSES)])
    with pytest.raises(InputError, match=r"Expected model to be of Keras 3, got 'sequential.*' of tf_keras") as refused:
        PrivateModel(model, l2_norm_clip=1.0, noise_multiplier=1.0)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("engine", ["fast", "reference"])
@pytest.mark.parametrize("mode", ["int8", "float8"])
def test_a_quantised_layer_is_refused_by_name(mode, engine):
    model = keras.Sequential([layers.Input((16,)), layers.Dense(16, name="small"), layers.Dense(CLASSES)])
    model.layers[0].quantize(mode)
    with pytest.raises(InputError, match=rf"Layer .small. .Dense. is quantised .*{mode}"):
        private(model, engine=engine, unknown_layers="slow")


def with_lora():
    model = keras.Sequential([layers.Input((WIDTH,)), layers.Dense(6, "tanh", name="adapted"), layers.Dense(CLASSES)])
    model.layers[0].enable_lora(2)
    model.layers[0].lora_kernel_b.assign(np.random.default_rng(1).normal(size=(2, 6)))
    return model


def partly_frozen():
    model = keras.Sequential([layers.Input((WIDTH,)), layers.Dense(CLASSES, name="half")])
    model.layers[0].bias.trainable = False
    return model


@pytest.mark.parametrize(
    ("build", "message"),
    [(with_lora, "Layer 'adapted' .Dense. is trained by LoRA"), (partly_frozen, "half/bias' is frozen")],
)
def test_layers_that_have_no_rule_as_they_are_set_are_trained_example_by_example(build, message):
    x, y = dataset(N)
    with pytest.raises(InputError, match=message):
        private(build())
    wrapped = private(build(), unknown_layers="slow", l2_norm_clip=0.05, optimizer=keras.optimizers.SGD(1.0))
    before = [weight.numpy().copy() for weight in wrapped.model.trainable_variables]
    wrapped.fit(x, y, B, steps_per_epoch=1, verbose=0)
    moved = [w.numpy() - b for w, b in zip(wrapped.model.trainable_variables, before, strict=True)]
    norm = np.sqrt(sum(float((m**2).sum()) for m in moved))
    # So many clipped gradients of norm 0.05 over the expected number.
    assert 0 < norm <= 0.05 * 2 * B / B


def test_a_weight_that_was_made_to_stay_is_trained_once_it_is_set_free():
    """TensorFlow watches those alone that were made to be trained."""
    model = keras.Sequential([layers.Input((WIDTH,)), Scaled(), layers.Dense(CLASSES)])
    model.layers[0].scale.trainable = True
    before = model.layers[0].scale.numpy().copy()
    private(model, unknown_layers="slow").fit(*dataset(N), B, steps_per_epoch=1, verbose=0)
    assert np.abs(model.layers[0].scale.numpy() - before).min() > 0


class Scaled(layers.Layer):
    """Scales by a weight that is made not to be trained."""

    def build(self, shape):
        self.scale = self.add_weight(shape=shape[1:], initializer="ones", trainable=False)

    def call(self, inputs):
        return inputs * self.scale
