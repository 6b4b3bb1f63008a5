"""DP-SGD against a loop in NumPy, its noise against its stated scale, and its sensitivity."""

import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from tfprivacy_lab.checks import InputError
from tfprivacy_lab.dp import plain
from tfprivacy_lab.dp.accounting.gaussian import DpSgdRun, account, epsilon_after, steps_for
from tfprivacy_lab.dp.plan import TrainingPlan
from tfprivacy_lab.dp.sampling import PoissonBatches
from tfprivacy_lab.dp.training import planned
from tfprivacy_lab.dp.training import reference as optimizers

layers = keras.layers
WIDTH, HIDDEN, CLASSES = 5, 4, 3
# Small enough that float32 cannot see it beside the weights; the accountant cannot price it.
NO_NOISE = 1e-20


def head():
    return keras.Sequential([layers.Input((WIDTH,)), layers.Dense(CLASSES)])


def mlp():
    return keras.Sequential([layers.Input((WIDTH,)), layers.Dense(HIDDEN, activation="relu"), layers.Dense(CLASSES)])


def dataset(n, seed=0):
    rng = np.random.default_rng(seed)
    # Sizes over three orders of magnitude: some gradients are clipped and some are not.
    examples = rng.normal(size=(n, WIDTH)) * 10 ** rng.uniform(-1.5, 1.5, (n, 1))
    return examples.astype(np.float32), rng.integers(0, CLASSES, n)


def initial_weights(model, seed=1):
    rng = np.random.default_rng(seed)
    return [rng.normal(scale=0.5, size=weights.shape).astype(np.float32) for weights in model.get_weights()]


def gradient(weights, x, label):
    """Cross-entropy's gradient for one example by the chain rule, float64, in the order of the weights."""
    if len(weights) == 4:
        hidden = np.maximum(x @ weights[0] + weights[1], 0)
        above = gradient(weights[2:], hidden, label)
        below = (weights[2] @ above[1]) * (hidden > 0)
        return [np.outer(x, below), below, *above]
    return plain.softmax_gradient(weights, x, label)


def size(gradients):
    return np.sqrt(sum((gradient**2).sum() for gradient in gradients))


def brute_force(weights, examples, labels, draws, plan):
    """The plain algorithm without noise, and momentum as Polyak's.

    Returns the weights after every step, and how many gradients were clipped and were not.
    """
    weights, after, clipped = [array.astype(np.float64) for array in weights], [], [0, 0]
    velocity = zeros = [0 * array for array in weights]
    settings = {"batch_size": plan.batch_size, "l2_norm_clip": plan.l2_norm_clip, "noise_multiplier": 0}
    examples = examples.astype(np.float64)
    for drawn in draws:
        for i in drawn:
            clipped[int(size(gradient(weights, examples[i], labels[i])) > plan.l2_norm_clip)] += 1
        mean = plain.noisy_mean(gradient, weights, examples, labels, drawn, zeros, **settings)
        velocity = [plan.momentum * v - plan.learning_rate * s for v, s in zip(velocity, mean, strict=True)]
        weights = [array + v for array, v in zip(weights, velocity, strict=True)]
        after.append(weights)
    return after, clipped


@pytest.fixture
def unpriced(monkeypatch):
    """Lets a run have next to no noise, whose ε no accountant can discretise."""
    monkeypatch.setattr(planned, "epsilon_after", lambda run, steps, delta: float("inf"))


def train_weights(model, examples, labels, plan, noise_multiplier=NO_NOISE, seed=0, **options):
    """Weights after every epoch, and the model's at the end."""
    n, history = len(labels), []
    run = DpSgdRun(n, plan.batch_size, noise_multiplier, steps_for(n, plan.batch_size, plan.epochs))
    planned.train(
        model, examples, labels, plan=plan, run=run, delta=1e-5, seed=seed,
        on_epoch=lambda record: history.append(model.get_weights()), **options,
    )  # fmt: skip
    return history, model.get_weights()


@pytest.mark.parametrize("build", [head, mlp])
@pytest.mark.parametrize(
    ("engine", "physical", "momentum"),
    [("reference", 64, 0.0), ("reference", 3, 0.9), ("reference", 1, 0.0), ("fast", 64, 0.9)],
)
def test_training_equals_brute_force(unpriced, build, engine, physical, momentum):
    """Joint clipping, the Poisson sum over B, heavy-ball once a logical batch, whatever the physical one."""
    n, seed = 24, 89
    # A rate at which rounding does not grow from step to step.
    plan = TrainingPlan(4, 5, 1.0, 0.7 * (1 - momentum), momentum, physical_batch_size=physical)
    examples, labels = dataset(n)
    batches = PoissonBatches(n, 4, 30, physical, seed)
    draws = [batches.indices(step) for step in range(30)]
    assert min(map(len, draws)) == 0  # One draw is empty: nothing but the momentum moves.
    assert batches.accumulation_steps == {64: 1, 3: 4, 1: 10}[physical]
    model = build()
    start = initial_weights(model)
    expected, clipped = brute_force(start, examples, labels, draws, plan)
    assert min(clipped) > 15
    model.set_weights(start)
    history, final = train_weights(model, examples, labels, plan, seed=seed, engine=engine)
    for epoch, weights in enumerate(history):
        for array, oracle in zip(weights, expected[6 * epoch + 5], strict=True):
            np.testing.assert_allclose(array, oracle, atol=2e-5, rtol=2e-5)
    assert all(np.array_equal(a, b) for a, b in zip(history[-1], final, strict=True))
    assert all(np.abs(a - b).max() > 0.05 for a, b in zip(final, start, strict=True))


def test_empty_draws_move_nothing(unpriced):
    plan = TrainingPlan(1, 8, 1.0, 0.5, 0.0)
    seed = next(seed for seed in range(99) if not drawn_in_epoch(seed, 5) and drawn_in_epoch(seed, 4))
    model = head()
    history, _ = train_weights(model, *dataset(2), plan, seed=seed)
    assert all(np.array_equal(a, b) for a, b in zip(history[4], history[5], strict=True))
    assert not np.array_equal(history[3][0], history[4][0])


def drawn_in_epoch(seed, epoch):
    batches = PoissonBatches(2, 1, 16, seed=seed)
    return sum(batches.indices(2 * epoch + step).size for step in (0, 1))


@pytest.mark.parametrize(("average_last", "kept"), [(0.3, [7, 8, 9]), (0.9, range(1, 10))])
def test_average_is_over_the_last_fraction_of_the_epochs(unpriced, average_last, kept):
    plan = TrainingPlan(2, 10, 1.0, 0.5, 0.5, average_last)
    history, final = train_weights(head(), *dataset(2), plan)
    assert len(history) == 10
    for array, snapshots in zip(final, zip(*history, strict=True), strict=True):
        np.testing.assert_allclose(array, np.mean([snapshots[i] for i in kept], axis=0), rtol=1e-6, atol=1e-7)


SIGMA, CLIP, RATE, NOISY_BATCH = 1.7, 0.3, 2.0, 4


def noise_updates(physical, seed):
    """Updates an epoch (three logical steps each) where every gradient is zero: epochs × coordinates.

    Zero inputs and no biases: kernels get gradient x ⊗ error = 0, so that all that moves them is noise.
    """
    n, epochs = 12, 24
    dense = {"use_bias": False, "kernel_initializer": "zeros"}
    model = keras.Sequential([layers.Input((60,)), layers.Dense(50, **dense), layers.Dense(10, **dense)])
    plan = TrainingPlan(NOISY_BATCH, epochs, CLIP, RATE, 0.0, physical_batch_size=physical)
    history, _ = train_weights(model, np.zeros((n, 60)), np.zeros(n, int), plan, SIGMA, seed)
    flat = np.array([np.concatenate([array.ravel() for array in weights]) for weights in history])
    assert PoissonBatches(n, NOISY_BATCH, 3 * epochs, physical, seed).accumulation_steps == {1: 8, 32: 1}[physical]
    return np.diff(flat, axis=0, prepend=0)


@pytest.fixture(scope="module", params=[(32, 1), (1, 1)], ids=["whole", "eight physical batches"])
def noise(request):
    return noise_updates(*request.param)


def has_deviation(sample, deviation):
    """Two-sided chi-square test of a normal sample's scale, wrong once in a million."""
    p = stats.chi2.sf((sample**2).sum() / deviation**2, sample.size)
    return 5e-7 < p < 1 - 5e-7


def test_noise_has_the_stated_scale_once_a_logical_batch(noise):
    stated = np.sqrt(3) * SIGMA * CLIP * RATE / NOISY_BATCH
    for part in (noise, noise[:, :3000], noise[:, 3000:], noise[0], noise[-1]):
        assert has_deviation(part, stated)
        assert not has_deviation(part, 0.9 * stated)
        assert not has_deviation(part, 1.1 * stated)
    assert stats.kstest(noise.ravel() / stated, "norm").pvalue > 1e-6


def test_noise_is_fresh_for_every_step_epoch_and_variable(noise):
    correlation = np.corrcoef(noise)
    assert np.abs(correlation - np.eye(len(noise))).max() < 6 / np.sqrt(noise.shape[1])
    for shift in range(1, len(noise)):
        kernels = np.corrcoef(noise[shift:, :500].ravel(), noise[: len(noise) - shift, 3000:].ravel())[0, 1]
        assert abs(kernels) < 6 / np.sqrt(500 * (len(noise) - shift))
    same_step = np.corrcoef(noise[:, :500].ravel(), noise[:, 3000:].ravel())[0, 1]
    assert abs(same_step) < 6 / np.sqrt(noise[:, :500].size)


def test_noise_depends_on_all_bits_of_the_seed():
    """TensorFlow's global seed is taken modulo 2^31 - 1: so few that each could be tried."""
    state = optimizers.KeyedGaussianSum(1.0, 1.0, optimizers.noise_generator(5))
    zeros = [tf.zeros(1000), tf.zeros(1000)]
    reference = np.array(state.get_noised_result(zeros, state.initial_global_state())[0])
    assert abs(np.corrcoef(reference)[0, 1]) < 0.2
    for other in (5 + 2**31 - 1, 5 + 2**32, 5 + 2**62, 6):
        query = optimizers.KeyedGaussianSum(1.0, 1.0, optimizers.noise_generator(other))
        drawn = np.array(query.get_noised_result(zeros, query.initial_global_state())[0])
        assert abs(np.corrcoef(reference.ravel(), drawn.ravel())[0, 1]) < 0.15
    again = optimizers.KeyedGaussianSum(1.0, 1.0, optimizers.noise_generator(5))
    assert np.array_equal(reference, again.get_noised_result(zeros, again.initial_global_state())[0])
    assert not np.array_equal(reference, again.get_noised_result(zeros, again.initial_global_state())[0])


class FixedBatches(PoissonBatches):
    """Batches that were drawn elsewhere."""

    draws = ()

    def indices(self, step):
        return np.asarray(self.draws[step], np.int64)


def test_one_example_moves_the_sum_by_at_most_the_clip():
    """Neighbouring datasets, the same draw of the others: ‖update · B / learning rate‖ differs by at most C."""
    rng = np.random.default_rng(3)
    n, clip, trials = 30, 0.8, 40
    examples, labels = dataset(n, seed=4)
    examples[:3] *= [[1e-4], [1e3], [1e6]]
    pairs = []
    for trial in range(trials):
        drawn = np.flatnonzero(rng.random(n) < 0.4)
        removed = trial % 3 if trial < 9 else rng.integers(n)
        pairs += [np.union1d(drawn, removed), np.setdiff1d(drawn, removed)]
    batches = FixedBatches(n, 10, 2 * trials, 7)
    object.__setattr__(batches, "draws", pairs)
    # A large rate, so that rounding the weights to float32 is small beside the update.
    plan = TrainingPlan(10, 1, clip, 100.0, 0.0)
    model = mlp()
    optimizer = optimizers.dp_sgd_optimizer(DpSgdRun(n, 10, NO_NOISE, 2 * trials), plan, batches)
    run_batches = optimizers.physical_steps(model, optimizer, lambda x, y: planned.losses_of(model, (x, y), True))
    start, sums = initial_weights(model), []
    assert batches.accumulation_steps > 1
    for step in range(2 * trials):
        model.set_weights(start)
        for indices, weights in zip(*batches.layout(step), strict=True):
            run_batches([(examples[indices], labels[indices], weights)])
        sums.append([(a - b.astype(float)) / 10.0 for a, b in zip(model.get_weights(), start, strict=True)])
    moved = [size([a - b for a, b in zip(*pair, strict=True)]) for pair in zip(sums[::2], sums[1::2], strict=True)]
    assert max(moved) <= clip * (1 + 1e-5)
    assert max(moved) > 0.999 * clip
    assert min(moved) < 0.9 * clip


def test_records_state_the_accounted_epsilon():
    n, plan = 30, TrainingPlan(8, 3, 1.0, 0.1, 0.0)
    run = DpSgdRun(n, 8, 2.0, 12)
    examples, labels = dataset(n)
    seen = []
    model = head()
    records = planned.train(
        model, examples, labels, plan=plan, run=run, delta=1e-3, seed=0, validation=(examples, labels),
        on_epoch=seen.append,
    )  # fmt: skip
    assert seen == records
    assert [record.epoch for record in records] == [1, 2, 3]
    assert [record.steps for record in records] == [4, 8, 12] == [steps_for(n, 8, e) for e in (1, 2, 3)]
    assert [record.epsilon for record in records] == [epsilon_after(run, steps, 1e-3) for steps in (4, 8, 12)]
    assert 0 < records[0].epsilon < records[1].epsilon < records[2].epsilon == account(run, 1e-3)["epsilon"]
    logits = examples @ model.get_weights()[0] + model.get_weights()[1]
    assert records[-1].validation_accuracy == pytest.approx(np.mean(logits.argmax(1) == labels))


DETERMINISM = """
import hashlib, sys, keras, numpy as np, tensorflow as tf
from tfprivacy_lab.dp import DpSgdRun, TrainingPlan, train
tf.config.experimental.enable_op_determinism()
def digest(seed):
    keras.utils.set_random_seed(0)
    dense = keras.layers.Dense
    model = keras.Sequential([keras.layers.Input((5,)), dense(8, "relu"), keras.layers.Dropout(0.5), dense(3)])
    x = np.random.default_rng(0).random((20, 5), np.float32)
    plan, run = TrainingPlan(10, 2, 1.0, 0.5, physical_batch_size=4), DpSgdRun(20, 10, 1.0, 4)
    train(model, x, np.arange(20) % 3, plan=plan, run=run, delta=1e-3, seed=seed)
    return hashlib.sha256(b"".join(w.tobytes() for w in model.get_weights())).hexdigest()
print(*[digest(seed) for seed in map(int, sys.argv[1:])])
"""


@pytest.mark.processes
@pytest.mark.slow
def test_same_seed_gives_the_same_bits():
    """In two calls and in two processes; determinism is switched on for a whole process, so not in this one."""
    running = [
        subprocess.Popen([sys.executable, "-c", DETERMINISM, *seeds], stdout=subprocess.PIPE, text=True)
        for seeds in (["7", "7", "8"], ["7"])
    ]
    (first, again, other), (elsewhere,) = (process.communicate()[0].split() for process in running)
    assert first == again == elsewhere
    assert first != other


def sequential(*between, **dense):
    return keras.Sequential([layers.Input((WIDTH,)), *between, layers.Dense(CLASSES, **dense)])


def attempt(model=None, n=12, **changes):
    examples, labels = dataset(n)
    plan = TrainingPlan(6, 1, 1.0, 0.5)
    arguments = {
        "examples": examples, "labels": labels, "plan": plan, "run": DpSgdRun(n, 6, 2.0, 2), "delta": 1e-5, "seed": 0,
    } | changes  # fmt: skip
    model = model or head()
    before = model.get_weights()
    try:
        return planned.train(model, arguments.pop("examples"), arguments.pop("labels"), **arguments)
    except InputError:
        # Refused before the first step, or after an overflow.
        unchanged = all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=False))
        assert unchanged or not np.isfinite(model.get_weights()[0]).all()
        raise


class HiddenNormalization(layers.Layer):
    def __init__(self):
        super().__init__()
        self.inner = layers.BatchNormalization()

    def call(self, inputs):
        return self.inner(inputs)


NORMALIZERS = {
    "plain": layers.BatchNormalization,
    "synchronised": lambda: layers.BatchNormalization(synchronized=True),
    "two models deep": lambda: keras.Sequential([keras.Sequential([layers.BatchNormalization()])]),
    "attribute of a layer": HiddenNormalization,
    "without weights": lambda: layers.BatchNormalization(center=False, scale=False),
}


@pytest.mark.parametrize("build", NORMALIZERS.values(), ids=NORMALIZERS.keys())
def test_batch_normalisation_is_refused(build):
    with pytest.raises(InputError, match="BatchNormalization in training: it mixes the examples"):
        attempt(sequential(build()))


def test_frozen_batch_normalisation_is_allowed():
    normalization = layers.BatchNormalization(trainable=False)
    model = sequential(normalization)
    assert attempt(model)[-1].steps == 2
    frozen = sequential(sequential(layers.BatchNormalization()))
    frozen.layers[0].trainable = False
    before = frozen.layers[0].get_weights()
    attempt(frozen)
    assert all(np.array_equal(a, b) for a, b in zip(before, frozen.layers[0].get_weights(), strict=True))


MIXERS = {
    "centred by the batch": lambda: layers.Lambda(lambda x: x - tf.reduce_mean(x, axis=0)),
    "normed over the batch": lambda: layers.UnitNormalization(axis=0),
    "rolled": lambda: layers.Lambda(lambda x: x + 0.1 * tf.roll(x, 1, axis=0)),
}


@pytest.mark.parametrize("build", MIXERS.values(), ids=MIXERS.keys())
@pytest.mark.parametrize("kernel", ["zeros", "glorot_uniform"])
def test_layers_that_mix_examples_are_refused(build, kernel):
    with pytest.raises(InputError, match="mixes the examples of a batch"):
        attempt(sequential(build(), kernel_initializer=kernel))


def test_layers_that_keep_examples_apart_are_allowed():
    keep = [layers.Dropout(0.5), layers.LayerNormalization(), layers.UnitNormalization(), layers.Dense(6, "tanh")]
    image = [layers.Reshape((6, 1)), layers.Conv1D(6, 2), layers.GroupNormalization(3), layers.MaxPool1D()]
    assert attempt(sequential(*keep, *image, layers.Flatten()))[-1].steps == 2


@pytest.mark.parametrize("regulariser", ["kernel_regularizer", "bias_regularizer", "activity_regularizer"])
def test_losses_of_no_example_are_refused(regulariser):
    with pytest.raises(InputError, match="adds 1 loss terms that belong to no example"):
        attempt(sequential(**{regulariser: "l2"}))
    with pytest.raises(InputError, match="adds 1 loss terms"):
        attempt(sequential(sequential(**{regulariser: "l2"}), layers.Dense(WIDTH)))


EXAMPLES, LABELS = dataset(12)


def spoiled(place, value, dtype=np.float64):
    examples = EXAMPLES.astype(dtype)
    examples[place] = value
    return examples


REFUSED = {
    "NaN": ({"examples": spoiled((7, 2), np.nan)}, r"examples to be finite, got nan at index \(7, 2\)"),
    "infinity": ({"examples": spoiled((0, 1), -np.inf)}, r"got -inf at index \(0, 1\)"),
    "beyond float32": ({"examples": spoiled((3, 0), 1e200)}, r"got inf at index \(3, 0\)"),
    "rate beyond float32": ({"plan": TrainingPlan(6, 1, 1e3, 1e37)}, "weights overflowed in epoch 1"),
    "objects": ({"examples": EXAMPLES.astype(object)}, "hold real numbers, got dtype object"),
    "complex": ({"examples": EXAMPLES + 0j}, "hold real numbers, got dtype complex"),
    "width": ({"examples": EXAMPLES[:, 1:]}, r"does not take examples of shape \(4,\)"),
    "few": ({"examples": EXAMPLES[1:]}, r"run.examples=12, got shapes \(11, 5\) and \(12,\)"),
    "few labels": ({"labels": LABELS[1:]}, r"run.examples=12, got shapes \(12, 5\) and \(11,\)"),
    "columns": ({"labels": LABELS[:, np.newaxis]}, r"and \(12, 1\)"),
    "one-hot": ({"labels": np.eye(CLASSES)[LABELS]}, r"and \(12, 3\)"),
    "float labels": ({"labels": LABELS + 0.6}, "whole numbers from 0 to 2, got dtype float64"),
    "text": ({"labels": LABELS.astype(str)}, "whole numbers from 0 to 2, got dtype <U"),
    "class too high": ({"labels": np.where(np.arange(12) == 5, 3, LABELS)}, "from 0 to 2, got labels from 0 to 3"),
    "negative class": ({"labels": np.where(np.arange(12) == 5, -1, LABELS)}, "got labels from -1 to"),
    "other n": ({"run": DpSgdRun(13, 6, 2.0, 3)}, "run.examples=13"),
    "other batch": ({"run": DpSgdRun(12, 5, 2.0, 3)}, "plan.batch_size=6 to be run.batch_size=5"),
    "other steps": ({"run": DpSgdRun(12, 6, 2.0, 3)}, "steps of epochs=1, got run.steps=3"),
    "engine": ({"engine": "slow"}, "engine to be one of reference, fast"),
    "delta": ({"delta": 1.0}, "delta to be a finite number > 0 and < 1, got delta=1.0"),
    "seed": ({"seed": -1}, "seed to be a whole number >= 0, got seed=-1"),
}


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_arguments_are_refused_before_training(changes, message):
    with pytest.raises(InputError, match=message) as refusal:
        attempt(**changes)
    assert len(str(refusal.value).splitlines()) == 1


def test_tensors_lists_and_integers_are_taken():
    for changes in (
        {"examples": tf.constant(EXAMPLES), "labels": tf.constant(LABELS)},
        {"examples": EXAMPLES.tolist(), "labels": LABELS.tolist()},
        {"examples": (EXAMPLES * 10).astype(int), "labels": LABELS.astype(np.uint8)},
    ):
        assert attempt(**changes)[-1].steps == 2


@pytest.mark.parametrize(
    "change",
    [
        {"batch_size": 0}, {"epochs": 0}, {"epochs": 1.5}, {"l2_norm_clip": 0}, {"learning_rate": -1},
        {"momentum": 1}, {"average_last": 1.1}, {"physical_batch_size": 0}, {"learning_rate": float("nan")},
    ],
    ids=str,
)  # fmt: skip
def test_plan_names_the_argument(change):
    arguments = {"batch_size": 4, "epochs": 2, "l2_norm_clip": 1.0, "learning_rate": 0.1}
    with pytest.raises(InputError, match=f"Expected {next(iter(change))} to be"):
        TrainingPlan(**(arguments | change))


def test_saved_model_holds_no_seed(tmp_path):
    """Whoever has the noise's key can subtract the noise: it must not travel with the weights."""
    model, seed = head(), 2**60 + 12345
    attempt(model, seed=seed)
    key = optimizers.noise_generator(seed).state.numpy()[2]
    model.save(tmp_path / "model.keras")
    with zipfile.ZipFile(tmp_path / "model.keras") as archive:
        content = b"".join(archive.read(name) for name in archive.namelist())
    assert model.get_weights()[0].tobytes() in content
    for secret in (key, np.int64(seed)):
        assert secret.tobytes() not in content
        assert str(secret).encode() not in content
    loaded = keras.models.load_model(tmp_path / "model.keras", compile=False, safe_mode=True)
    assert np.array_equal(loaded.get_weights()[0], model.get_weights()[0])
