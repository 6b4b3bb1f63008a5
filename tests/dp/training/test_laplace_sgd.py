"""SGD under Laplace noise: a loop in NumPy, the law of its noise, its account, and the check on neighbours."""

import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from scipy import integrate, optimize, stats

from tests.dp.training.test_planned import FixedBatches
from tfprivacy_lab import tf_privacy
from tfprivacy_lab.checks import InputError
from tfprivacy_lab.dp import plain
from tfprivacy_lab.dp.accounting.laplace import LaplacePlan, LaplaceRun, account_laplace, laplace_epsilon_after
from tfprivacy_lab.dp.mechanisms import secure_noise
from tfprivacy_lab.dp.mechanisms.empirical_check import check_neighbours
from tfprivacy_lab.dp.sampling import PoissonBatches
from tfprivacy_lab.dp.training import laplace_sgd
from tfprivacy_lab.dp.training.planned import losses_of
from tfprivacy_lab.dp.training.reference import physical_steps

layers = keras.layers
WIDTH, CLASSES = 5, 3
LEVEL = 1e-6


def head(**options):
    return keras.Sequential([layers.Input((WIDTH,)), layers.Dense(CLASSES, **options)])


def dataset(n, seed=0):
    rng = np.random.default_rng(seed)
    examples = rng.normal(size=(n, WIDTH)) * 10 ** rng.uniform(-1.5, 1.5, (n, 1))
    return examples.astype(np.float32), rng.integers(0, CLASSES, n)


def gradient(kernel, bias, x, label):
    """Cross-entropy's gradient of one example for a dense layer, float64."""
    return np.concatenate([part.ravel() for part in plain.softmax_gradient((kernel, bias), x, label)])


def replay_uniforms(seed, shapes, draws):
    """The noise that a seed gives, by Philox and the quantile function of each exponential variable."""
    state = np.random.SeedSequence(seed, spawn_key=(3,)).generate_state(3, np.uint64)
    generator = tf.random.Generator.from_state(state.view(np.int64), alg="philox")
    result = []
    for _ in range(draws):
        parts = [generator.uniform([2, *shape], dtype=tf.float64).numpy() for shape in shapes]
        result.append(np.concatenate([(stats.expon.ppf(u[1]) - stats.expon.ppf(u[0])).ravel() for u in parts]))
    return result


@pytest.mark.parametrize(("physical", "momentum"), [(64, 0.0), (3, 0.9)])
def test_training_equals_brute_force_noise_included(physical, momentum):
    """L1 clipping, the Poisson sum over B, one draw of noise a logical batch: one example after the other."""
    n, seed, epochs = 24, 8, 2
    plan = LaplacePlan(4, epochs, 0.5, 0.4, momentum, physical_batch_size=physical)
    run = LaplaceRun(n, 4, 2.0, 6 * epochs)
    batches = PoissonBatches(n, 4, run.steps, physical, seed)
    assert batches.accumulation_steps == -(-batches.largest // physical)
    examples, labels = dataset(n)
    model = head(kernel_initializer="zeros")
    weights, velocity, clipped = np.zeros((WIDTH + 1) * CLASSES), 0.0, [0, 0]
    drawn_noise = replay_uniforms(seed, [(WIDTH, CLASSES), (CLASSES,)], run.steps)
    for step in range(run.steps):
        total = plan.l1_norm_clip * run.noise_multiplier * drawn_noise[step]
        kernel, bias = weights[:-CLASSES].reshape(WIDTH, CLASSES), weights[-CLASSES:]
        for i in batches.indices(step):
            one = gradient(kernel, bias, examples[i].astype(float), labels[i])
            scale = min(1, plan.l1_norm_clip / np.abs(one).sum())
            clipped[int(scale < 1)] += 1
            total = total + scale * one
        velocity = momentum * velocity - plan.learning_rate * total / plan.batch_size
        weights = weights + velocity
    records = laplace_sgd.train_laplace(model, examples, labels, plan=plan, run=run, delta=0, seed=seed)
    trained = np.concatenate([array.ravel() for array in model.get_weights()])
    assert min(clipped) > 2
    np.testing.assert_allclose(trained, weights, atol=2e-4, rtol=2e-4)
    assert [record.epsilon for record in records] == [6 * epoch * run.step_epsilon for epoch in range(1, epochs + 1)]
    assert records[-1].epsilon == run.pure_epsilon


def noise_updates(physical, secure, seed=1):
    """Noise of every logical step in units of the stated scale, where every gradient is zero: steps × weights."""
    n, clip, rate, steps = 12, 0.3, 2.0, 60
    plan = LaplacePlan(4, 20, clip, rate, 0.0, physical_batch_size=physical)
    batches = PoissonBatches(n, 4, steps, physical, seed)
    run = LaplaceRun(n, 4, 1.7, steps)
    optimizer = laplace_sgd.laplace_sgd_optimizer(run, plan, batches, secure_noise=secure)
    variables = [tf.Variable(tf.zeros((40, 20))), tf.Variable(tf.zeros(10))]
    parts = batches.accumulation_steps

    @tf.function
    def physical_step():
        with tf.GradientTape() as tape:
            losses = tf.zeros(batches.rows) * (tf.reduce_sum(variables[0]) + tf.reduce_sum(variables[1]))
        optimizer.minimize(losses, variables, tape=tape)

    after, between = [np.zeros(810)], []
    for i in range(steps * parts):
        physical_step()
        flat = np.concatenate([variable.numpy().ravel() for variable in variables])
        (after if (i + 1) % parts == 0 else between).append(flat)
    if between:  # nothing moves before the logical batch is whole
        assert np.array_equal(np.array(between), np.repeat(after[:-1], parts - 1, axis=0))
    return np.diff(np.array(after, float), axis=0) / (1.7 * clip * rate / 4), parts


@pytest.fixture(scope="module", params=[(32, False), (1, False), (2, True)], ids=["whole", "parts", "secure parts"])
def standard_noise(request):
    physical, secure = request.param
    words, generator = secure_noise.random_words, np.random.default_rng(5)
    secure_noise.random_words = lambda count: generator.integers(0, 2**64, count, np.uint64)
    try:
        sample, parts = noise_updates(physical, secure)
    finally:
        secure_noise.random_words = words
    assert parts == {32: 1, 1: 8, 2: 4}[physical]
    return sample


def has_scale(sample, scale):
    """Two-sided test: magnitudes of Laplace variables add up to a gamma variable."""
    p = stats.gamma(sample.size).sf(np.abs(sample).sum() / scale)
    return LEVEL / 2 < p < 1 - LEVEL / 2


def test_noise_is_laplace_of_the_stated_scale_once_a_logical_batch(standard_noise):
    for part in (standard_noise, standard_noise[:, :800], standard_noise[:30]):
        assert has_scale(part, 1.0)
        assert not has_scale(part, 0.9)
        assert not has_scale(part, 1.1)
    sample = standard_noise.ravel()
    assert stats.kstest(sample, "laplace").pvalue > LEVEL
    # Shape: what k draws of the same variance would sum to is rejected, for k of two on.
    rng = np.random.default_rng(0)
    for parts in (2, 4):
        summed = rng.laplace(scale=np.sqrt(1 / parts), size=(parts, sample.size)).sum(axis=0)
        assert stats.kstest(summed, "laplace").pvalue < LEVEL


def test_noise_is_independent_across_steps_and_weights(standard_noise):
    correlation = np.corrcoef(standard_noise)
    assert np.abs(correlation - np.eye(len(standard_noise))).max() < 6 / np.sqrt(standard_noise.shape[1])
    flat = standard_noise.ravel()
    for lag in (1, 10, 800, 810):
        assert abs(np.corrcoef(flat[lag:], flat[:-lag])[0, 1]) < 6 / np.sqrt(flat.size)


def test_noise_depends_on_all_bits_of_the_seed():
    def drawn(seed):
        query = laplace_sgd.LaplaceSumQuery(1.0, 1.0, seed)
        return query.get_noised_result([tf.zeros(500)], query.initial_global_state())[0][0].numpy()

    reference = drawn(5)
    assert np.array_equal(reference, drawn(5))
    for other in (6, 5 + 2**31 - 1, 5 + 2**32, 5 + 2**64, 5 + 2**127, None):
        assert abs(np.corrcoef(reference, drawn(other))[0, 1]) < 0.25


def test_query_clips_the_joint_l1_norm():
    query = laplace_sgd.LaplaceSumQuery(2.0, 1.0, 0)
    rng, params = np.random.default_rng(0), query.derive_sample_params(query.initial_global_state())
    for size in 10.0 ** np.arange(-6, 30, 3):
        record = [rng.normal(size=shape) * size for shape in ((30, 4), (4,))]
        clipped = query.preprocess_record(params, [tf.constant(part, tf.float32) for part in record])
        norm = sum(np.abs(part).sum() for part in record)
        for part, original in zip(clipped, record, strict=True):
            np.testing.assert_allclose(part, original * min(1, 2.0 / norm), rtol=3e-6)
        assert sum(np.abs(part.numpy().astype(float)).sum() for part in clipped) <= 2.0
    for bad in (np.nan, np.inf):
        clipped = query.preprocess_record(params, [tf.constant([1.0, bad]), tf.constant([1.0])])
        assert [part.numpy().tolist() for part in clipped] == [[0.0, 0.0], [0.0]]


def test_one_example_moves_the_sum_by_at_most_the_clip():
    """Neighbouring datasets in several physical batches; the two noises are the same, so they cancel."""
    rng = np.random.default_rng(3)
    n, clip, trials = 30, 2.0, 12
    examples, labels = dataset(n, seed=4)
    examples[:3] *= [[1e-4], [1e3], [1e6]]
    pairs = []
    for trial in range(trials):
        drawn = np.flatnonzero(rng.random(n) < 0.4)
        removed = trial % 3 if trial < 6 else rng.integers(n)
        pairs += [np.union1d(drawn, removed), np.setdiff1d(drawn, removed)]
    batches = FixedBatches(n, 10, 2 * trials, 7, seed=1)
    object.__setattr__(batches, "draws", pairs)
    model, rate = head(kernel_initializer="zeros"), 100.0
    run, sums = LaplaceRun(n, 10, 0.05, 2 * trials), []
    optimizer = laplace_sgd.laplace_sgd_optimizer(run, LaplacePlan(10, 1, clip, rate), batches)
    run_batches = physical_steps(model, optimizer, lambda x, y: losses_of(model, (x, y), True))
    assert batches.accumulation_steps > 1
    drawn_noise = replay_uniforms(1, [(WIDTH, CLASSES), (CLASSES,)], 2 * trials)
    for step in range(2 * trials):
        model.set_weights([np.zeros((WIDTH, CLASSES)), np.zeros(CLASSES)])
        for indices, weights in zip(*batches.layout(step), strict=True):
            run_batches([(examples[indices], labels[indices], weights)])
        flat = np.concatenate([array.ravel() for array in model.get_weights()]).astype(float)
        sums.append(-flat * 10 / rate - drawn_noise[step] * 0.05 * clip)
    moved = np.abs(np.array(sums[::2]) - np.array(sums[1::2])).sum(axis=1)
    assert moved.max() <= clip * (1 + 1e-5)
    assert moved.max() > 0.999 * clip
    assert moved.min() < 0.9 * clip


def test_query_plugs_into_the_generic_optimizers_as_it_is():
    """Without laplace_sgd_optimizer, each result gets noise: more than needed under accumulation, never less."""
    made = tf_privacy.load("optimizers.dp_optimizer_keras", "this test")
    optimizer_class = made.make_keras_generic_optimizer_class(tf_keras.optimizers.legacy.Adam)
    model = tf_keras.Sequential([tf_keras.layers.Input((WIDTH,)), tf_keras.layers.Dense(CLASSES)])
    optimizer = optimizer_class(dp_sum_query=laplace_sgd.LaplaceSumQuery(1.0, 0.5, 3), num_microbatches=8)
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="none")
    model.compile(optimizer, loss)
    before = model.get_weights()
    model.fit(*dataset(32), batch_size=8, verbose=0)
    assert all(np.abs(a - b).min() > 0 for a, b in zip(before, model.get_weights(), strict=True))
    assert optimizer.get_config()["global_state"] == {"l1_norm_clip": 1.0, "scale": 0.5}
    *_, event = laplace_sgd.LaplaceSumQuery(2.0, 3.0, 0).get_noised_result([tf.zeros(1)], optimizer._global_state)
    assert event.noise_multiplier == 1.5


# --- Accounting ---------------------------------------------------------------------------------------


def loss_pair(q, b):
    """Densities with and without one example of gradient 1, Poisson-sampled, under Laplace noise of scale b."""

    def present(x):
        return q * np.exp(-np.abs(x - 1) / b) / (2 * b) + (1 - q) * np.exp(-np.abs(x) / b) / (2 * b)

    return present, lambda x: np.exp(-np.abs(x) / b) / (2 * b)


@pytest.mark.parametrize(("q", "b"), [(1.0, 0.5), (0.3, 0.5), (0.05, 2.0), (0.01, 0.1)])
def test_pure_epsilon_of_a_step_is_the_largest_loss(q, b):
    present, absent = loss_pair(q, b)
    x = np.linspace(-3, 4, 100_001)
    run = LaplaceRun(10_000, round(10_000 * q), b, 7)
    assert run.step_epsilon == pytest.approx(np.abs(np.log(present(x) / absent(x))).max(), rel=1e-9)
    assert run.pure_epsilon == pytest.approx(7 * run.step_epsilon)


@pytest.mark.parametrize(("q", "b", "delta"), [(1.0, 0.5, 0.05), (0.3, 0.5, 0.01), (0.05, 1.0, 1e-3)])
def test_pld_of_one_step_is_the_integral(q, b, delta):
    """Both directions of δ(ε) by quadrature, at the ε that the accountant returns."""
    pair = loss_pair(q, b)
    epsilon = laplace_epsilon_after(LaplaceRun(1_000, round(1_000 * q), b, 1), 1, delta)
    worst = max(hockey_stick(*pair, epsilon), hockey_stick(*pair[::-1], epsilon))
    assert worst == pytest.approx(delta, rel=2e-3)
    assert worst <= delta * (1 + 1e-6)


def hockey_stick(p, q, epsilon):
    x = np.linspace(-25, 26, 2_000_001)
    return integrate.trapezoid(np.maximum(0, p(x) - np.exp(epsilon) * q(x)), x)


def test_pld_of_many_steps_against_an_independent_convolution():
    """The loss's histogram, raised to the T-th power in the frequency domain; add and remove."""
    q, b, steps, delta = 0.1, 0.8, 40, 1e-5
    present, absent = loss_pair(q, b)
    x = np.linspace(-22, 23, 1_000_001)
    grid, size, found = 1e-4, 2**19, []
    losses = grid * np.fft.fftfreq(size, 1 / size)
    for p, r in ((present, absent), (absent, present)):
        places = np.round(np.log(p(x) / r(x)) / grid).astype(int) % size
        histogram = np.bincount(places, p(x) * (x[1] - x[0]), minlength=size)
        composed = np.maximum(np.fft.irfft(np.fft.rfft(histogram) ** steps, size), 0)

        def excess(epsilon, composed=composed):
            above = losses > epsilon
            return composed[above] @ -np.expm1(epsilon - losses[above]) - delta

        found.append(optimize.brentq(excess, 0, 6, xtol=1e-6))
    run = LaplaceRun(10, 1, b, steps)
    assert laplace_epsilon_after(run, steps, delta) == pytest.approx(max(found), abs=1e-3)
    assert laplace_epsilon_after(run, steps, delta) < 0.5 * run.pure_epsilon


def test_account_states_each_figure():
    run = LaplaceRun(1_000, 100, 2.0, 25)
    figures = account_laplace(run, 1e-5)
    assert figures["epsilon_pure"] == pytest.approx(25 * np.log(1 + 0.1 * (np.exp(0.5) - 1)))
    assert figures["epsilon"] == laplace_epsilon_after(run, 25, 1e-5) < figures["epsilon_pure"]
    assert figures["epsilon_no_amplification"] == 3 * 0.5
    assert (figures["sampling"], figures["adjacency"], figures["delta"]) == ("poisson", "add_or_remove_one", 1e-5)
    assert laplace_epsilon_after(run, 0, 1e-5) == laplace_epsilon_after(run, 0, 0) == 0.0
    assert laplace_epsilon_after(run, 25, 0) == figures["epsilon_pure"]
    assert laplace_epsilon_after(LaplaceRun(9, 9, 1.0, 1), 1, 1e-9) <= 1.0
    assert run.epochs == 2.5


def test_event_is_what_dp_accounting_composes():
    import dp_accounting

    run = LaplaceRun(1_000, 100, 2.0, 25)
    accountant = dp_accounting.pld.PLDAccountant().compose(run.event())
    assert accountant.get_epsilon(1e-5) == pytest.approx(laplace_epsilon_after(run, 25, 1e-5), rel=2e-3)


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 8.0])
@pytest.mark.parametrize("batch_size", [50, 333, 1_000])
def test_calibration_spends_the_budget_and_not_more(epsilon, batch_size):
    run = LaplacePlan(batch_size, 4, 1.0, 1.0).calibrated(1_000, epsilon)
    assert 0.999 * epsilon < run.pure_epsilon <= epsilon
    assert run.steps == -(-4_000 // batch_size)


# --- The guarantee, held against the code that runs ----------------------------------------------------


def whole_runs(*, present, noise_multiplier, seed, runs=3_000, sampled=True):
    """Weights after both steps of ``runs`` trainings of two steps, with or without the example that matters.

    Worst case: its gradient is clipped and always the same, on one weight, and nobody else moves that. Each
    row is one training, from zero, by the optimizer that training uses.
    """
    n, batch_size, clip = 2, 1 if sampled else 2, 0.5
    run = LaplaceRun(n, batch_size, noise_multiplier, 2 * runs)
    plan = LaplacePlan(batch_size, 1, clip, 1.0, physical_batch_size=1)
    batches = PoissonBatches(n, batch_size, 2 * runs, 1, seed)
    optimizer = laplace_sgd.laplace_sgd_optimizer(run, plan, batches)
    layout = [batches.layout(step) for step in range(2 * runs)]
    rows = np.array([weights[:, 0] * (indices[:, 0] == 1) for indices, weights in layout], np.float32)
    rows = tf.constant(rows * 1e3 * present)
    parts, weight = batches.accumulation_steps, tf.Variable([0.0])
    assert parts == 2

    @tf.function
    def train():
        released = tf.TensorArray(tf.float32, 2 * runs)
        for step in tf.range(2 * runs):
            if step % 2 == 0:
                weight.assign([0.0])
            for part in range(parts):
                with tf.GradientTape() as tape:
                    losses = rows[step, part : part + 1] * weight
                optimizer.minimize(losses, [weight], tape=tape)
            released = released.write(step, weight[0])
        return released.stack()

    return train().numpy().reshape(runs, 2) * batch_size / clip


def log_likelihood_ratio(q, noise_multiplier):
    """Of both released weights, under the stated noise: what the best attacker looks at."""
    present, absent = loss_pair(q, noise_multiplier)

    def statistic(weights):
        steps = -np.diff(weights, axis=1, prepend=0)
        return np.log(present(steps) / absent(steps)).sum(axis=1)

    return statistic


@pytest.mark.slow_but("False-0.8")
@pytest.mark.parametrize(("sampled", "noise_multiplier"), [(True, 0.5), (False, 0.8)])
def test_empirical_check_passes_at_the_stated_epsilon_and_fails_at_half(sampled, noise_multiplier):
    run = LaplaceRun(2, 1 if sampled else 2, noise_multiplier, 2)
    arguments = {"noise_multiplier": noise_multiplier, "sampled": sampled}
    outputs = [whole_runs(present=present, seed=seed, **arguments) for seed, present in enumerate((1.0, 0.0))]
    statistic = log_likelihood_ratio(run.sampling_probability, noise_multiplier)
    stated = check_neighbours(*outputs, epsilon=run.pure_epsilon, statistic=statistic)
    assert stated.verdict == "consistent"
    half = check_neighbours(*outputs, epsilon=run.pure_epsilon / 2, statistic=statistic)
    assert half.verdict == "violated"
    assert run.pure_epsilon / 2 < half.epsilon_interval[0] <= run.pure_epsilon
    assert half.detectable > 1.5 * run.pure_epsilon


def test_empirical_check_catches_half_the_noise_in_training():
    """The optimizer runs with half of what is stated."""
    stated = LaplaceRun(2, 1, 0.8, 2)
    outputs = [whole_runs(present=p, noise_multiplier=0.4, seed=s, runs=2_000) for s, p in enumerate((1.0, 0.0))]
    found = check_neighbours(*outputs, epsilon=stated.pure_epsilon, statistic=log_likelihood_ratio(0.5, 0.4))
    assert found.verdict == "violated"


# --- Arguments ------------------------------------------------------------------------------------------


def test_training_records_and_average():
    n, (examples, labels) = 30, dataset(30)
    plan, history = LaplacePlan(10, 4, 0.5, 0.3, 0.5, average_last=0.5), []
    run = LaplaceRun(n, 10, 1.0, 12)
    model = head()
    records = laplace_sgd.train_laplace(
        model, examples, labels, plan=plan, run=run, delta=1e-3, seed=2**100, secure_noise=True,
        validation=(examples, labels), on_epoch=lambda record: history.append(model.get_weights()),
    )  # fmt: skip
    assert [record.steps for record in records] == [3, 6, 9, 12]
    assert records[-1].epsilon == laplace_epsilon_after(run, 12, 1e-3) == account_laplace(run, 1e-3)["epsilon"]
    for array, third, fourth in zip(model.get_weights(), history[2], history[3], strict=True):
        np.testing.assert_allclose(array, (third + fourth) / 2, rtol=1e-6, atol=1e-7)
    assert all(0 <= record.validation_accuracy <= 1 for record in records)


def test_saved_model_holds_no_seed(tmp_path):
    """Whoever has the noise's key can subtract the noise: it must not travel with the weights."""
    model, seed = head(), 2**60 + 12345
    laplace_sgd.train_laplace(model, EXAMPLES, LABELS, plan=PLAN, run=RUN, delta=0, seed=seed)
    key = laplace_sgd._philox(seed).state.numpy()[2]
    model.save(tmp_path / "model.keras")
    with zipfile.ZipFile(tmp_path / "model.keras") as archive:
        content = b"".join(archive.read(name) for name in archive.namelist())
    assert model.get_weights()[0].tobytes() in content
    for secret in (key, np.int64(seed)):
        assert secret.tobytes() not in content
        assert str(secret).encode() not in content


EXAMPLES, LABELS = dataset(12)
RUN, PLAN = LaplaceRun(12, 6, 2.0, 2), LaplacePlan(6, 1, 1.0, 0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"examples": EXAMPLES[1:]}, "run.examples=12"),
        ({"examples": np.where(np.arange(60).reshape(12, 5) == 7, np.nan, EXAMPLES)}, "examples to be finite"),
        ({"labels": LABELS + 5}, "from 0 to 2"),
        ({"plan": LaplacePlan(5, 1, 1.0, 0.1)}, "plan.batch_size=5"),
        ({"run": LaplaceRun(12, 6, 2.0, 3)}, "run.steps=3"),
        ({"delta": 1.0}, "delta=1.0"),
        ({"seed": -1}, "seed=-1"),
        (
            {"model": keras.Sequential([layers.Input((WIDTH,)), layers.BatchNormalization(), layers.Dense(3)])},
            "mixes",
        ),
    ],
)
def test_training_refuses_what_would_void_the_guarantee(changes, message):
    arguments = {
        "model": head(),
        "examples": EXAMPLES,
        "labels": LABELS,
        "plan": PLAN,
        "run": RUN,
        "delta": 0,
        "seed": 0,
    }
    with pytest.raises(InputError, match=message):
        laplace_sgd.train_laplace(**(arguments | changes))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LaplaceRun(10, 11, 1, 1), "batch_size <= examples"),
        (lambda: LaplaceRun(10, 5, 0.01, 1), "noise_multiplier"),
        (lambda: LaplaceRun(10, 5, 1, 0), "steps=0"),
        (lambda: LaplaceRun(0, 5, 1, 1), "examples=0"),
        (lambda: LaplacePlan(10, 1, 0, 1), "l1_norm_clip=0"),
        (lambda: LaplacePlan(10, 1, 1, -1), "learning_rate=-1"),
        (lambda: LaplacePlan(10, 1, 1, 1, momentum=1), "momentum=1"),
        (lambda: LaplacePlan(10, 1, 1, 1).calibrated(100, 0), "epsilon=0"),
        (lambda: LaplacePlan(10, 1, 1, 1).calibrated(10, 1e-9), "needs a noise multiplier in"),
        (lambda: LaplacePlan(10, 1, 1, 1).calibrated(10, 50), "needs a noise multiplier in"),
        (lambda: laplace_epsilon_after(RUN, -1, 0), "steps=-1"),
        (lambda: laplace_epsilon_after(RUN, 1, 1), "delta=1"),
        (lambda: account_laplace(RUN, 0), "delta=0"),
        (lambda: laplace_sgd.LaplaceSumQuery(0, 1), "l1_norm_clip=0"),
        (lambda: laplace_sgd.LaplaceSumQuery(1, 0), "scale=0"),
        (lambda: laplace_sgd.LaplaceSumQuery(1, 1, 1.5), "seed=1.5"),
    ],
)
def test_arguments_are_checked(call, message):
    with pytest.raises(InputError, match=message):
        call()
