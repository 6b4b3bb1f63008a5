"""The Keras object: its steps, its noise, its budget, its habits, and what it refuses."""

import subprocess
import sys
import zipfile

import dp_accounting
import keras
import numpy as np
import pytest
import tensorflow as tf
from dp_accounting import pld
from scipy import stats

from tests.dp.training.test_planned import CLASSES, WIDTH, dataset, gradient, initial_weights
from tfprivacy_lab.checks import InputError
from tfprivacy_lab.dp import PrivateModel, QuantileClip, StopBeforeBudget, calibrate_noise_multiplier, plain, steps_for
from tfprivacy_lab.dp.accounting.phases import Phase, epsilon_of
from tfprivacy_lab.dp.sampling import PoissonSample, ShuffledBatches
from tfprivacy_lab.dp.training.replicas import Replicas

layers = keras.layers
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
N, B = 60, 12


def linear(width=WIDTH, **dense):
    return keras.Sequential([layers.Input((width,)), layers.Dense(CLASSES, **dense)])


def private(model=None, optimizer=None, loss=LOSS, metrics=None, compiled=None, **options):
    """A compiled PrivateModel without noise, unless asked for."""
    model = model or linear()
    arguments = {"l2_norm_clip": 0.8, "noise_multiplier": 0.0, "seed": 3} | options
    wrapped = PrivateModel(model, **arguments)
    wrapped.compile(optimizer or keras.optimizers.SGD(0.5), loss, metrics, **(compiled or {}))
    return wrapped


def weights_of(model):
    return np.concatenate([array.ravel() for array in model.get_weights()])


NOISELESS = {"batch_size": B, "l2_norm_clip": 0.8, "noise_multiplier": 0}


def weighted_gradient(weights, x, target):
    """The gradient of an example's loss times its weight."""
    label, weight = target
    return [weight * part for part in gradient(weights, x, label)]


@pytest.mark.parametrize("physical", [None, 1, 5, 64])
@pytest.mark.parametrize("sampling", ["poisson", "shuffled"])
def test_steps_are_those_of_the_plain_algorithm(sampling, physical):
    """Whatever the physical batch: padding weighs nothing, and the sum is over the expected size."""
    x, y = dataset(N)
    weight = np.random.default_rng(0).uniform(0, 2, N)
    wrapped = private()
    wrapped.model.set_weights(initial_weights(wrapped.model))
    sampler = PoissonSample(N, B / N, 3) if sampling == "poisson" else ShuffledBatches(N, B, 3)
    start, draws = wrapped.model.get_weights(), map(sampler.indices, range(7))
    given = (x.astype(float), list(zip(y, weight, strict=True)), draws, [[0 * array for array in start]] * 7)
    expected = plain.dp_sgd(weighted_gradient, start, *given, learning_rate=0.5, **NOISELESS)
    options = {"sample_weight": weight, "sampling": sampling, "physical_batch_size": physical, "verbose": 0}
    wrapped.fit(x, y, B, steps_per_epoch=7, **options)
    for found, oracle in zip(wrapped.model.get_weights(), expected, strict=True):
        np.testing.assert_allclose(found, oracle, atol=2e-5)


def test_arrays_and_datasets_are_the_same():
    x, y = dataset(N)
    after = []
    for given in ((x, y), (tf.data.Dataset.from_tensor_slices((x, y)), None)):
        wrapped = private()
        wrapped.model.set_weights(initial_weights(wrapped.model))
        wrapped.fit(*given, B, epochs=2, verbose=0)
        after.append(weights_of(wrapped.model))
    assert np.array_equal(*after)


class FixedDraws:
    """A sampler that draws what it is told, at every step."""

    def __init__(self, drawn):
        self.drawn = np.array(drawn)

    def indices(self, step):
        return self.drawn


ADAPTIVE = {"l2_norm_clip": QuantileClip(0.8, B, 5.0), "noise_multiplier": 1e-7}
NEIGHBOURS = {
    "flat": {},
    "automatic": {"clipping_method": "automatic"},
    "adaptive": ADAPTIVE,
    "example by example": {"unknown_layers": "slow", "recurrent": True},
    "reference": {"engine": "reference", "noise_multiplier": 1e-7},
    "few rows at a time": {"physical": 4},
    "adaptive, few rows at a time": {**ADAPTIVE, "physical": 5},
}


@pytest.mark.slow_but("flat", "reference", "adaptive, few rows at a time")
@pytest.mark.parametrize("options", NEIGHBOURS.values(), ids=NEIGHBOURS.keys())
def test_one_example_moves_a_noiseless_step_by_at_most_the_norm(options, monkeypatch):
    """Neighbouring sets: the last example is there or is not, as wild as it likes, in a batch of others and padding.

    Who is drawn is fixed, so that the two runs differ by that example alone; its gradient is far above C, so the
    step moves by nearly all of C.
    """
    options = dict(options)
    physical, recurrent = options.pop("physical", None), options.pop("recurrent", False)
    for scale in [1e1] if recurrent or "engine" in options else [1e1, 1e3, 1e5]:
        x, y = dataset(N, seed=int(scale) % 7)
        x[-1] = scale * np.array([1, -2, 0.5, 1, 3])
        after = []
        for n in (N, N - 1):
            drawn = [i for i in (3, 4, 9, 20, 21, 30, 41, N - 1) if i < n]
            monkeypatch.setattr(Replicas, "sampler", lambda *_, drawn=drawn: FixedDraws(drawn))
            keras.utils.set_random_seed(2)
            model = linear()
            if recurrent:
                model = keras.Sequential(
                    [layers.Input((WIDTH,)), layers.Reshape((WIDTH, 1)), layers.LSTM(2), layers.Dense(CLASSES)]
                )
            # The wild example's label is the one that the model thinks least of: its gradient is large for sure.
            y[-1] = np.argmin(model(x[-1:]))
            wrapped = private(model, keras.optimizers.SGD(1.0), **options)
            wrapped.fit(x[:n], y[:n], B, steps_per_epoch=1, physical_batch_size=physical, verbose=0)
            after.append(weights_of(model).astype(np.float64))
        moved = np.linalg.norm(after[0] - after[1]) * B
        # Weights are rounded to 1e-7 of their size.
        assert (0.2 if recurrent else 0.98 if "clipping_method" in options else 0.99) * 0.8 < moved
        assert moved <= 0.8 * (1 + 1e-6) + B * 1e-6


def noise_of(steps, *, rate=0.5, width=3000, multiplier=1.5, **options):
    """Movement of the weights where no example weighs anything."""
    wrapped = private(linear(width), keras.optimizers.SGD(rate), noise_multiplier=multiplier, **options)
    before = weights_of(wrapped.model).astype(np.float64)
    x, y = np.ones((N, width), np.float32), np.zeros(N, int)
    physical = 5 if steps == 4 else None
    wrapped.fit(x, y, B, steps_per_epoch=steps, sample_weight=np.zeros(N), physical_batch_size=physical, verbose=0)
    return weights_of(wrapped.model) - before


def p_value(noise, stddev):
    """Two-sided, of Gaussian noise having this standard deviation."""
    below = stats.chi2.cdf(np.sum((noise / stddev) ** 2), noise.size)
    return 2 * min(below, 1 - below)


@pytest.mark.parametrize(("steps", "options"), [(1, {}), (4, {}), (2, {"noise": "secure", "seed": None})], ids=str)
def test_noise_has_the_stated_scale_once_a_logical_batch(steps, options):
    noise, claimed = noise_of(steps, **options), 0.5 * 1.5 * 0.8 * np.sqrt(steps) / B
    level = 1e-9 if "noise" in options else 1e-3  # Without a seed it is other noise every time.
    assert p_value(noise, claimed) > level
    assert max(p_value(noise, 0.9 * claimed), p_value(noise, 1.1 * claimed)) < 1e-9
    assert stats.kstest(noise / claimed, "norm").pvalue > level
    # Neighbouring coordinates, and the two layers' ends, have nothing to do with each other.
    assert stats.pearsonr(noise[:-1], noise[1:]).pvalue > level
    assert stats.pearsonr(noise[: noise.size // 2], noise[noise.size // 2 :][: noise.size // 2]).pvalue > level


def test_noise_of_steps_fits_and_seeds_is_independent():
    first, second = noise_of(1), noise_of(1, seed=4)
    np.testing.assert_allclose(first, noise_of(1), atol=1e-6)  # Weights are rounded to 1e-7 of their size.
    assert stats.pearsonr(first, second).pvalue > 1e-3
    wrapped = private(linear(3000), keras.optimizers.SGD(1.0), noise_multiplier=1.0)
    x, y, at = np.ones((N, 3000), np.float32), np.zeros(N, int), [weights_of(wrapped.model)]
    for _ in range(3):
        wrapped.fit(x, y, B, steps_per_epoch=1, sample_weight=np.zeros(N), verbose=0)
        at.append(weights_of(wrapped.model))
    moves = np.diff(at, axis=0)
    assert all(stats.pearsonr(moves[i], moves[j]).pvalue > 1e-3 for i, j in ((0, 1), (0, 2), (1, 2)))
    assert stats.kstest(moves.ravel() * B / 0.8, "norm").pvalue > 1e-3


DETERMINISM = """
import hashlib, sys, keras, numpy as np, tensorflow as tf
from tfprivacy_lab.dp import PrivateModel
tf.config.experimental.enable_op_determinism()
for seed in map(int, sys.argv[1:]):
    keras.utils.set_random_seed(0)
    layers = keras.layers
    stack = [layers.Conv2D(3, 3), layers.Flatten(), layers.Dropout(0.5), layers.Dense(3)]
    model = keras.Sequential([layers.Input((6, 6, 1)), *stack])
    private = PrivateModel(model, l2_norm_clip=1.0, noise_multiplier=1.0, seed=seed)
    private.compile(keras.optimizers.SGD(0.5), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    x = np.random.default_rng(0).random((40, 6, 6, 1), np.float32)
    private.fit(x, np.arange(40) % 3, 10, epochs=2, verbose=0)
    print(hashlib.sha256(b"".join(array.tobytes() for array in model.get_weights())).hexdigest())
"""


@pytest.mark.processes
@pytest.mark.slow
def test_same_seed_same_bits_in_another_process():
    runs = [
        subprocess.Popen([sys.executable, "-c", DETERMINISM, *seeds], stdout=subprocess.PIPE, text=True)
        for seeds in (["7", "7", "8"], ["7"])
    ]
    (first, again, another), (elsewhere,) = (run.communicate()[0].split() for run in runs)
    assert first == again == elsewhere
    assert first != another


def test_regularisers_are_added_after_the_noise_and_unclipped():
    x, y = dataset(N)
    wrapped = private(linear(kernel_regularizer=keras.regularizers.L2(0.3)))
    kernel = 5 * initial_weights(wrapped.model)[0]
    wrapped.model.set_weights([kernel, np.zeros(CLASSES, np.float32)])
    wrapped.fit(x, y, B, steps_per_epoch=1, sample_weight=np.zeros(N), verbose=0)
    np.testing.assert_allclose(wrapped.model.get_weights()[0], kernel * (1 - 0.5 * 2 * 0.3), rtol=1e-5)
    assert 2 * 0.3 * np.linalg.norm(kernel) > 3 * 0.8  # More than clipping would have let through.


OPTIMIZERS = {
    "Adam": lambda: keras.optimizers.Adam(0.05),
    "AdamW": lambda: keras.optimizers.AdamW(0.05),
    "schedule": lambda: keras.optimizers.SGD(keras.optimizers.schedules.ExponentialDecay(0.5, 5, 0.9), 0.9),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_any_optimizer_steps_by_the_noisy_mean(optimizer):
    """The optimizer is given the noisy mean: run by hand on the same mean, it goes to the same place."""
    x, y = dataset(N)
    wrapped, twin = private(optimizer=optimizer()), linear()
    start = initial_weights(wrapped.model)
    wrapped.model.set_weights(start), twin.set_weights(start)
    by_itself = optimizer()
    for step in range(4):
        weights = [array.astype(float) for array in twin.get_weights()]
        drawn = PoissonSample(N, B / N, 3).indices(step)
        zeros = [0 * array for array in weights]
        mean = plain.noisy_mean(gradient, weights, x.astype(float), y, drawn, zeros, **NOISELESS)
        by_itself.apply_gradients(
            zip([tf.constant(g, tf.float32) for g in mean], twin.trainable_variables, strict=True)
        )
    wrapped.fit(x, y, B, steps_per_epoch=4, verbose=0)
    np.testing.assert_allclose(weights_of(wrapped.model), weights_of(twin), atol=2e-4)
    assert wrapped.optimizer.iterations == 4


def independent_epsilon(phases, delta):
    """ε by dp-accounting, built here from what the phases say."""
    accountant = pld.PLDAccountant()
    for phase in phases:
        gaussian = dp_accounting.GaussianDpEvent(phase.noise_multiplier)
        if phase.sampling == "poisson":
            sampled = dp_accounting.PoissonSampledDpEvent(phase.batch_size / phase.examples, gaussian)
            accountant.compose(sampled, phase.steps)
        else:
            accountant.compose(gaussian, -(-phase.steps // -(-phase.examples // phase.batch_size)))
    return accountant.get_epsilon(delta)


def test_epsilon_of_phases_is_that_of_dp_accounting():
    x, y = dataset(N)
    wrapped = private(noise_multiplier=2.0, delta=1e-3)
    shown = wrapped.fit(x, y, B, epochs=3, verbose=0).history["epsilon"]
    assert shown == sorted(shown)
    assert wrapped.phases() == [Phase(N, B, 2.0, "poisson", 15)]
    wrapped.fit(x, y, 20, steps_per_epoch=4, verbose=0)
    wrapped.fit(x, y, 20, steps_per_epoch=4, sampling="shuffled", verbose=0)
    assert [(phase.batch_size, phase.sampling, phase.steps) for phase in wrapped.phases()] == [
        (12, "poisson", 15), (20, "poisson", 4), (20, "shuffled", 4),
    ]  # fmt: skip
    for delta in (1e-3, 1e-6):
        assert wrapped.epsilon(delta) == pytest.approx(independent_epsilon(wrapped.phases(), delta), rel=1e-3)
    assert epsilon_of([Phase(N, B, 0.0, "poisson", 1)], 1e-5) == np.inf
    assert epsilon_of([Phase(N, B, 0.0, "poisson", 0)], 1e-5) == 0.0


def test_every_fit_of_shuffled_batches_is_a_pass_of_its_own():
    """One step a call: an example may be in all of them, so they are not one pass."""
    x, y = dataset(N)
    wrapped = private(noise_multiplier=2.0, delta=1e-3)
    for _ in range(3):
        wrapped.fit(x, y, B, steps_per_epoch=1, sampling="shuffled", verbose=0)
    assert [(phase.steps, phase.passes) for phase in wrapped.phases()] == [(1, 1)] * 3
    three = pld.PLDAccountant()
    three.compose(dp_accounting.GaussianDpEvent(2.0), 3)
    assert wrapped.epsilon() == pytest.approx(three.get_epsilon(1e-3), rel=1e-3)


def test_epochs_never_take_more_steps_than_noise_is_calibrated_for():
    """57 examples in batches of 10 are 5.7 a pass: rounding up each epoch would pass what steps_for counts."""
    x, y = dataset(57)
    multiplier = calibrate_noise_multiplier(57, 10, steps_for(57, 10, 4), 3.0, 1e-3)
    wrapped = private(noise_multiplier=multiplier, delta=1e-3)
    wrapped.fit(x, y, 10, epochs=4, verbose=0)
    assert [phase.steps for phase in wrapped.phases()] == [20]
    assert 2.5 < wrapped.epsilon() <= 3.0


class Stubborn(keras.callbacks.Callback):
    """Goes on whatever others say."""

    def on_train_batch_end(self, batch, logs=None):
        self.model.stop_training = False


@pytest.mark.slow
def test_training_stops_before_the_budget_and_not_a_step_earlier():
    x, y = dataset(N)
    wrapped = private(noise_multiplier=2.0, delta=1e-3)
    wrapped.fit(x, y, B, epochs=1, verbose=0)
    wrapped.fit(x, y, 20, epochs=50, callbacks=[StopBeforeBudget(4.0)], verbose=0)
    *before, last = wrapped.phases()
    assert wrapped.epsilon() <= 4.0
    assert independent_epsilon([*before, last], 1e-3) <= 4.0 + 1e-3
    one_more = Phase(last.examples, last.batch_size, last.noise_multiplier, last.sampling, last.steps + 1)
    assert independent_epsilon([*before, one_more], 1e-3) > 4.0 - 1e-3
    at = weights_of(wrapped.model)
    with pytest.raises(InputError, match="leaves no step"):
        wrapped.fit(x, y, 20, callbacks=[StopBeforeBudget(4.0)], verbose=0)
    with pytest.raises(InputError, match="leaves no step"):
        wrapped.fit(x, y, 20, callbacks=[StopBeforeBudget(1.0, 1e-3)], verbose=0)
    assert np.array_equal(weights_of(wrapped.model), at)


@pytest.mark.parametrize("compiled", [{}, {"steps_per_execution": 7}])
def test_no_step_passes_the_budget_whatever_else_goes_on(compiled):
    """A callback that will not stop: the step itself refuses."""
    x, y = dataset(N)
    wrapped = private(noise_multiplier=2.0, delta=1e-3, compiled=compiled)
    with pytest.raises(tf.errors.InvalidArgumentError, match="would pass the privacy budget"):
        wrapped.fit(x, y, B, epochs=50, callbacks=[StopBeforeBudget(2.0), Stubborn()], verbose=0)
    (phase,) = wrapped.phases()
    assert 0 < independent_epsilon([phase], 1e-3) <= 2.0 + 1e-3


def test_an_interrupted_fit_counts_the_steps_that_it_did():
    x, y = dataset(N)

    def stop(batch, logs):
        if batch == 2:
            raise KeyboardInterrupt

    wrapped = private(noise_multiplier=1.0)
    with pytest.raises(KeyboardInterrupt):
        wrapped.fit(x, y, B, callbacks=[keras.callbacks.LambdaCallback(on_train_batch_end=stop)], verbose=0)
    assert [phase.steps for phase in wrapped.phases()] == [3]


def test_keras_habits(tmp_path):
    x, y = dataset(N)
    model = linear(kernel_regularizer="l2")
    wrapped = private(model, metrics=["accuracy"], noise_multiplier=1.0)
    plain = keras.models.clone_model(model)
    callbacks = [
        keras.callbacks.ModelCheckpoint(str(tmp_path / "best.keras"), save_best_only=True, monitor="val_loss"),
        keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate * 0.5),
        keras.callbacks.CSVLogger(tmp_path / "log.csv"),
        keras.callbacks.EarlyStopping("val_loss", patience=50),
    ]
    history = wrapped.fit(x, y, B, epochs=3, validation_data=(x, y), callbacks=callbacks, verbose=0).history
    assert set(history) == {"loss", "accuracy", "val_loss", "val_accuracy", "epsilon", "learning_rate"}
    assert history["learning_rate"] == pytest.approx([0.25, 0.125, 0.0625])
    # Figures of training examples are shown, and leave in no file.
    assert (tmp_path / "log.csv").read_text().startswith("epoch,epsilon,learning_rate,val_accuracy,val_loss\n")
    plain.set_weights(model.get_weights())
    plain.compile(loss=LOSS, metrics=["accuracy"])
    assert wrapped.evaluate(x, y, verbose=0) == pytest.approx(plain.evaluate(x, y, verbose=0), rel=1e-5)
    assert np.array_equal(wrapped.predict(x, verbose=0), plain.predict(x, verbose=0))
    wrapped.save(tmp_path / "model.keras")
    for name in ("best.keras", "model.keras"):
        loaded = keras.models.load_model(tmp_path / name, safe_mode=True)
        assert type(loaded) is keras.Sequential
    assert np.array_equal(weights_of(loaded), weights_of(model))


def test_a_saved_model_holds_no_seed(tmp_path):
    seed = 2**100 + 98765
    wrapped = private(noise_multiplier=1.0, seed=seed)
    wrapped.fit(*dataset(N), B, verbose=0)
    wrapped.save(tmp_path / "model.keras")
    with zipfile.ZipFile(tmp_path / "model.keras") as archive:
        content = b"".join(archive.read(name) for name in archive.namelist())
    state = np.random.SeedSequence(seed, spawn_key=(0,)).generate_state(3, np.uint64)
    for secret in (*state, np.uint64(seed % 2**64)):
        assert secret.tobytes() not in content
        assert str(secret).encode() not in content


class Added(layers.Layer):
    """Adds a loss of the whole batch, and has weights that no rule knows."""

    def build(self, shape):
        self.scale = self.add_weight(name="scale", shape=shape[1:], initializer="ones")

    def call(self, inputs):
        self.add_loss(tf.reduce_mean(inputs))
        return inputs * self.scale


def test_added_losses_are_refused_also_example_by_example():
    model = keras.Sequential([layers.Input((WIDTH,)), Added(), layers.Dense(CLASSES)])
    wrapped = private(model, unknown_layers="slow")
    with pytest.raises(InputError, match="adds losses that depend on the examples"):
        wrapped.fit(*dataset(N), B, verbose=0)


class Folding(layers.Layer):
    """Folds time into the batch for the layer within."""

    def __init__(self, layer, **options):
        super().__init__(**options)
        self.layer = layer

    def call(self, inputs):
        folded = self.layer(tf.reshape(inputs, (-1, inputs.shape[2])))
        return tf.reshape(folded, (-1, inputs.shape[1], folded.shape[1]))


class Tied(keras.Model):
    """Uses a layer's kernel outside the layer."""

    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(CLASSES)

    def call(self, inputs):
        return self.dense(inputs) + tf.matmul(inputs**2, self.dense.kernel)


def tied():
    model = Tied()
    model(np.ones((1, WIDTH), np.float32))
    return model


def two_outputs():
    x = layers.Input((WIDTH,))
    return keras.Model(x, [layers.Dense(CLASSES)(x), layers.Dense(CLASSES)(x)])


def stacked(layer, shape=(WIDTH,)):
    return lambda: keras.Sequential([layers.Input(shape), layer(), layers.Dense(CLASSES)])


def centred():
    return layers.Lambda(lambda inputs: inputs - tf.reduce_mean(inputs, 0))


MODELS = {
    "weight used outside": (tied, "outside its layer"),
    "centred": (stacked(centred), "mixes the examples"),
    "two outputs": (two_outputs, "to have one output, got 2"),
    "batch normalisation": (stacked(layers.BatchNormalization), "BatchNormalization in training"),
    "recurrent": (stacked(lambda: layers.LSTM(2), (WIDTH, 1)), "no rule for it"),
    "positions in the batch": (
        lambda: keras.Sequential(
            [layers.Input((WIDTH, 2)), Folding(layers.Dense(2)), layers.Flatten(), layers.Dense(CLASSES)]
        ),
        "rows for a batch of",
    ),
}


@pytest.mark.parametrize(("build", "message"), MODELS.values(), ids=MODELS.keys())
def test_models_that_cannot_be_trained_so_are_refused(build, message):
    model = build()
    before = weights_of(model)
    x, y = dataset(N)
    x = (
        x
        if getattr(model, "name", "").startswith("tied") or model.input_shape[1:] == (WIDTH,)
        else np.random.default_rng(0).random((N, *model.input_shape[1:]), np.float32)
    )

    def attempt():
        private(model, noise_multiplier=1.0).fit(x, y, B, verbose=0)

    with pytest.raises(InputError, match=message):
        attempt()
    assert np.array_equal(weights_of(model), before)


X, Y = dataset(N)
REFUSED = {
    "no batch size": ({"batch_size": None}, "Expected batch_size, the expected size"),
    "large batch": ({"batch_size": N + 1}, f"Expected batch_size <= {N} examples, got batch_size={N + 1}"),
    "zero batch": ({"batch_size": 0}, "batch_size to be a whole number >= 1"),
    "sampling": ({"sampling": "sorted"}, "sampling to be one of poisson, shuffled, got sampling='sorted'"),
    "physical": ({"physical_batch_size": 0}, "physical_batch_size to be"),
    "lengths": ({"y": Y[1:]}, "one and the same number of examples"),
    "empty": ({"x": X[:0], "y": Y[:0]}, "number of examples"),
    "NaN": ({"x": np.where(np.arange(N)[:, None] == 4, np.nan, X)}, "Expected x to be finite, got nan"),
    "text": ({"x": X.astype(str)}, "Expected x to be an array of numbers"),
    "weights": ({"sample_weight": -np.ones(N)}, "Expected sample_weight to be >= 0"),
    "few weights": ({"sample_weight": np.ones(N - 1)}, r"sample_weight to have shape \(60,\)"),
    "split": ({"validation_split": 0.1}, "does not take 'validation_split'"),
    "batched": ({"x": tf.data.Dataset.from_tensor_slices((X, Y)).batch(4), "y": None}, "single examples"),
    "endless": ({"x": tf.data.Dataset.from_tensor_slices((X, Y)).repeat(), "y": None}, "endless"),
    "empty dataset": ({"x": tf.data.Dataset.from_tensor_slices((X, Y)).take(0), "y": None}, "empty dataset"),
}


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_arguments_are_refused_before_any_noise(changes, message):
    wrapped = private(noise_multiplier=1.0)
    before = weights_of(wrapped.model)
    arguments = {"x": X, "y": Y, "batch_size": B, "verbose": 0} | changes
    with pytest.raises(InputError, match=message) as refusal:
        wrapped.fit(**arguments)
    assert len(str(refusal.value).splitlines()) == 1
    assert np.array_equal(weights_of(wrapped.model), before)
    assert wrapped.phases() == []


@pytest.mark.parametrize(
    "change",
    [{"l2_norm_clip": 0}, {"l2_norm_clip": np.nan}, {"noise_multiplier": -1}, {"delta": 0}, {"engine": "slow"},
     {"noise": "weak"}, {"unknown_layers": "skip"}, {"clipping_method": "hard"}, {"seed": -1}],
    ids=str,
)  # fmt: skip
def test_settings_are_refused_by_name(change):
    with pytest.raises(InputError, match=next(iter(change))):
        private(**change)


def test_losses_are_taken_apart_or_refused():
    x, y = dataset(N)
    one_hot, after = np.eye(CLASSES, dtype=np.float32)[y], []
    by_position = lambda labels, outputs: keras.losses.categorical_crossentropy(labels, outputs, from_logits=True)  # noqa: E731
    for loss in (
        keras.losses.CategoricalCrossentropy(from_logits=True),
        keras.losses.CategoricalCrossentropy(from_logits=True, reduction="sum"),
        keras.losses.CategoricalCrossentropy(from_logits=True, reduction="none"),
        by_position,
    ):
        wrapped = private(loss=loss)
        wrapped.model.set_weights(initial_weights(wrapped.model))
        wrapped.fit(x, one_hot, B, steps_per_epoch=3, verbose=0)
        after.append(weights_of(wrapped.model))
    assert all(np.array_equal(after[0], other) for other in after[1:])
    scalar = lambda labels, outputs: tf.reduce_mean(outputs)  # noqa: E731
    with pytest.raises(InputError, match="one value an example, got a single number"):
        private(loss=scalar).fit(x, y, B, verbose=0)
    for loss in (None, ["mse", "mse"], "mean_absolute_terror"):
        with pytest.raises(InputError, match="Expected loss to be"):
            private(loss=loss)


def test_masked_positions_count_for_nothing_in_an_examples_loss():
    """A tagger over padded sentences: the mean is over the sentence, not over the batch's longest."""
    tokens = np.array([[1, 2, 3, 0], [4, 0, 0, 0], [2, 2, 1, 3]])
    tags = np.array([[0, 1, 2, 0], [1, 0, 0, 0], [2, 1, 0, 1]])
    model = keras.Sequential([layers.Input((4,)), layers.Embedding(5, 3, mask_zero=True), layers.Dense(3)])
    wrapped = private(model, keras.optimizers.SGD(1.0), l2_norm_clip=1e6)
    start = model.get_weights()
    with tf.GradientTape() as tape:
        losses = keras.losses.sparse_categorical_crossentropy(tags, model(tokens), from_logits=True)
        mask = tf.constant(tokens != 0, tf.float32)
        mean = tf.reduce_sum(tf.reduce_sum(losses * mask, 1) / tf.reduce_sum(mask, 1)) / 3
    expected = [tf.convert_to_tensor(g).numpy() for g in tape.gradient(mean, model.trainable_variables)]
    wrapped.fit(tokens, tags, 3, steps_per_epoch=1, verbose=0)
    for before, after, step in zip(start, model.get_weights(), expected, strict=True):
        np.testing.assert_allclose(after, before - step, atol=1e-5)


@pytest.mark.parametrize(("engine", "physical"), [("fast", None), ("fast", 7), ("reference", None)])
def test_weighted_metrics_take_the_examples_weights(engine, physical):
    """Half of the examples weigh nothing: only the others count in the loss and in the one metric, all in the other."""
    x, y = dataset(N)
    weights = (np.arange(N) % 2).astype(np.float32)
    penalty = 0.5 if engine == "fast" else 0.0
    model = linear(bias_regularizer=keras.regularizers.L2(penalty) if penalty else None)
    model.layers[-1].set_weights([np.zeros((WIDTH, CLASSES)), np.eye(CLASSES)[0]])
    options = {
        "metrics": ["accuracy"],
        "compiled": {"weighted_metrics": [keras.metrics.SparseCategoricalAccuracy("w")]},
    }
    wrapped = private(model, keras.optimizers.SGD(1e-9), engine=engine, noise_multiplier=1.0, **options)
    options = {"sample_weight": weights, "physical_batch_size": physical, "steps_per_epoch": 1, "verbose": 0}
    history = wrapped.fit(x, y, N, **options).history
    right = y == 0  # what the bias alone predicts
    losses = np.log(np.e + CLASSES - 1) - right
    assert history["loss"][0] == pytest.approx((losses * weights).mean() + penalty, rel=1e-4)
    assert history["accuracy"][0] == pytest.approx(right.mean(), abs=1e-6)
    assert history["w"][0] == pytest.approx(right[weights == 1].mean(), abs=1e-6)
    assert history["w"][0] != pytest.approx(history["accuracy"][0], abs=1e-3)
