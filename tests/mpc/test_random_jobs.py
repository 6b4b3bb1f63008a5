"""Random jobs against NumPy: orders, widths, splits, protocols, ranges near their ends; within the stated bounds.

Data lie at the ends of their ranges, half of the time all at once, because that is where values would wrap.
"""

import itertools

import numpy as np
import pytest

from tfprivacy_lab import mpc
from tfprivacy_lab.checks import InputError

NAMES = ("zurich", "basel", "chur")
WORLDS = {
    "semi2k": mpc.World("semi2k", NAMES, "chur"),
    "aby3": mpc.World("aby3", NAMES),
    "cheetah": mpc.World("cheetah", NAMES[:2]),
}


def at_the_ends(rng, shape, largest):
    """Values within ±largest: all at one end, each at an end, or anywhere."""
    kind = rng.integers(3)
    if kind == 0:
        return np.full(shape, largest)
    signs = rng.choice([-1.0, 1.0], shape)
    return largest * signs if kind == 1 else rng.uniform(-largest, largest, shape)


def random_job(seed):
    """(job, data) of one layer trained and queried; ranges are raised as long as the plan takes them."""
    rng = np.random.default_rng(seed)
    world = WORLDS[("semi2k", "aby3", "cheetah")[seed % 3]]
    holders = [str(name) for name in rng.permutation(world.parties)[: rng.integers(1, len(world.parties) + 1)]]
    split = str(rng.choice(["columns", "rows"]))
    loss = str(rng.choice(["sum_of_squares", "mean_squared_error", "binary_crossentropy"]))
    logistic, width = loss == "binary_crossentropy", int(rng.integers(1, 4))
    rows = {name: int(rng.integers(1, 9)) if split == "rows" else 6 for name in holders}
    widths = {name: width if split == "rows" else int(rng.integers(1, 4)) for name in holders}
    labels = holders if split == "rows" else [str(rng.choice(world.parties))]
    total = width if split == "rows" else sum(widths.values())
    asking = [str(rng.choice(world.parties))] if split == "rows" or len(holders) == 1 else holders
    shuffled = [str(name) for name in rng.permutation(asking)]
    clipped = bool(rng.integers(2))
    weights = [at_the_ends(rng, (total, 1), 1.0).tolist(), at_the_ends(rng, (1,), 1.0).tolist()]
    job, last = None, int(rng.choice([0, 4, 13]))
    for exponent in itertools.count(int(rng.integers(-3, 2))):
        feature_range = 2.0**exponent
        # Large rates only where the weights are clipped: without, bounds grow with every step.
        rate = float(rng.choice([0.5, 7.0])) if clipped else 0.5 / (1 + total * feature_range**2) / 12
        given = {
            "world": world,
            "layers": (mpc.Layer(1, "sigmoid" if logistic else "linear"),),
            "features": {name: (rows[name], widths[name]) for name in holders},
            "split": split,
            "labels": tuple(str(name) for name in rng.permutation(labels)),
            "weights": weights,
            "training": mpc.Training(loss, rate, int(rng.integers(1, 4))),
            "query": {name: (3, total if len(asking) == 1 else widths[name]) for name in shuffled},
            "reveal_weights": (world.parties[0],),
            "reveal_predictions": (world.parties[0],),
            "feature_range": feature_range,
            "label_range": 1.0 if logistic else 2.0,
            "weight_range": 2.0 if clipped else None,
        }
        try:
            tried = mpc.Job(**given)
            planned = mpc.plan(tried)
        except InputError:
            break
        job = tried
        # Some jobs stay within 64 bits, near their end; some are as people would have them.
        if exponent >= last or (seed % 2 and planned.largest * 8 > planned.arithmetic.largest):
            break
    data = {name: {} for name in world.parties}
    for name in holders:
        data[name]["x"] = at_the_ends(rng, job.features[name], job.feature_range)
    for name in labels:
        shape = (job.rows if split == "columns" else rows[name], 1)
        data[name]["y"] = rng.integers(0, 2, shape).astype(float) if logistic else at_the_ends(rng, shape, 2.0)
    for name in asking:
        data[name]["query"] = at_the_ends(rng, job.query[name], job.feature_range)
    return job, data, holders


def in_float(job, data, holders):
    """(kernel, bias, predictions) by NumPy, joined in the order in which the holders were named."""
    axis = 1 if job.split == "columns" else 0
    x = np.concatenate([data[name]["x"] for name in holders], axis)
    labels = holders if job.split == "rows" else [name for name in data if "y" in data[name]]
    y = np.concatenate([data[name]["y"] for name in labels])
    asking = holders if len(job.query) > 1 else list(job.query)
    query = np.concatenate([data[name]["query"] for name in asking], 1)
    kernel, bias = (np.array(one) for one in job.weights)
    logistic = job.training.loss == "binary_crossentropy"
    rate = job.training.learning_rate / (1 if job.training.loss == "sum_of_squares" else len(x))

    def value(rows):
        return 0.5 + 0.5 * np.tanh((rows @ kernel + bias) / 2) if logistic else rows @ kernel + bias

    for _ in range(job.training.steps):
        residual = (value(x) - y) * (1 if logistic else 2)
        kernel, bias = kernel - rate * x.T @ residual, bias - rate * residual.sum(0)
        if job.weight_range is not None:
            kernel, bias = (np.clip(one, -job.weight_range, job.weight_range) for one in (kernel, bias))
    return kernel, bias, lambda k, b: 0.5 + 0.5 * np.tanh((query @ k + b) / 2) if logistic else query @ k + b


def check(job, data, holders, run):
    """Weights within the plan's bound of float's, where it has one; predictions within theirs of the same weights."""
    found = run(job, data)
    mine = found.outcomes[job.world.parties[0]]
    kernel, bias, predict = in_float(job, data, holders)
    if found.plan.weight_error is not None:
        off = np.concatenate([(mine.weights[0] - kernel).ravel(), mine.weights[1] - bias])
        assert np.linalg.norm(off) <= found.plan.weight_error * (1 + 1e-9)
    assert np.abs(mine.weights[0]).max() <= found.plan.largest
    assert np.abs(mine.predictions - predict(*mine.weights)).max() <= found.plan.prediction_error * (1 + 1e-9)
    return found.plan


@pytest.mark.parametrize("seed", range(4))
def test_random_jobs_agree_with_numpy(seed):
    check(*random_job(seed), mpc.simulate)


@pytest.mark.processes
@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("first", range(100, 160, 10))
def test_sixty_random_jobs_agree_with_numpy_in_a_simulation_and_as_processes(first):
    bounded, sizes = 0, set()
    for seed in range(first, first + 10):
        for run in (mpc.simulate, mpc.launch):
            planned = check(*random_job(seed), run)
        bounded += planned.weight_error is not None
        sizes.add(planned.arithmetic)
    assert bounded >= 2  # The bound on weights was tried, and so were the arithmetics.
    assert len(sizes) >= 2


@pytest.mark.parametrize("protocol", list(WORLDS))
def test_an_update_far_beyond_the_clip_does_not_wrap(protocol):
    """4,000 rows at the end of their range, a rate of 7: what is clipped to ±1 was a million before."""
    world = WORLDS[protocol]
    x = np.full((4000, 1), 16.0)
    job = mpc.Job(
        world=world,
        layers=(mpc.Layer(1),),
        features={"basel": x.shape},
        labels=("basel",),
        weights=[[[1.0]], [1.0]],
        training=mpc.Training("sum_of_squares", 7.0, 1),
        feature_range=16.0,
        weight_range=1.0,
        reveal_weights=("basel",),
    )
    data = {"basel": {"x": x, "y": np.full((4000, 1), -1.0)}}
    kernel, bias = mpc.simulate(job, data).outcomes["basel"].weights
    assert np.ravel(kernel) == pytest.approx([-1.0], abs=1e-4)
    assert bias == pytest.approx([-1.0], abs=1e-4)


def test_weights_themselves_must_fit():
    """A kernel of 2^46 alone is beyond 64 bits."""
    job = mpc.Job(
        world=WORLDS["aby3"],
        layers=(mpc.Layer(1),),
        query={"basel": (1, 1)},
        initial="zurich",
        weight_range=2.0**46,
        feature_range=2.0**-16,
        reveal_predictions=("basel",),
    )
    planned = mpc.plan(job)
    assert planned.arithmetic.largest > 2.0**46
    data = {"zurich": {"kernel_0": np.array([[2.0**46]]), "bias_0": np.zeros(1)}, "basel": {"query": [[2.0**-16]]}}
    found = mpc.simulate(job, data).outcomes["basel"].predictions[0, 0]
    assert found == pytest.approx(2.0**30, abs=planned.prediction_error)
    assert planned.prediction_error < 2.0**20


def random_model(seed):
    """(model, what ``fit`` takes, how its columns are split): one or two layers, noise, batches, bounded rows."""
    rng = np.random.default_rng(seed)
    world = WORLDS[("semi2k", "aby3", "cheetah")[seed % 3]]
    holders = [str(name) for name in rng.permutation(world.parties)[: rng.integers(1, len(world.parties) + 1)]]
    split, batches, steps = str(rng.choice(["columns", "rows"])), int(rng.integers(1, 3)), int(rng.integers(1, 4))
    loss = str(rng.choice(["sum_of_squares", "mean_squared_error", "binary_crossentropy"]))
    last = mpc.Layer(int(rng.integers(1, 3)), "sigmoid" if loss == "binary_crossentropy" else "linear")
    hidden = [mpc.Layer(3, str(rng.choice(["relu", "sigmoid", "linear"])))] * int(rng.integers(2))
    width, row_norm = int(rng.integers(1, 4)), [None, float(rng.uniform(0.5, 1.5))][rng.integers(2)]
    feature_range = 2.0 ** int(rng.integers(-2, 3))
    model = mpc.SharedModel(
        [*hidden, last],
        world,
        feature_range=feature_range,
        label_range=1.0 if loss == "binary_crossentropy" else 2.0,
        weight_range=2.0,
        sigmoid_error=0.02,
        seed=seed,
    )
    widths = {name: width if split == "rows" else int(rng.integers(1, 4)) for name in holders}
    rows = {name: batches * int(rng.integers(1, 4)) if split == "rows" else 4 * batches for name in holders}
    x = {name: at_the_ends(rng, (rows[name], widths[name]), feature_range) for name in holders}
    if row_norm is not None:
        x = {
            name: one / np.maximum(np.linalg.norm(one, axis=1, keepdims=True) / row_norm, 1) for name, one in x.items()
        }
    whose = {name: rows[name] for name in holders} if split == "rows" else {str(rng.choice(holders)): 4 * batches}
    y = {name: rng.integers(0, 2, (count, last.units)).astype(float) for name, count in whose.items()}
    total = sum(rows.values()) if split == "rows" else 4 * batches
    model.compile(loss, float(rng.choice([0.1, 1.0])), batch_size=total // batches, row_norm=row_norm)
    given = {"x": x, "y": y, "steps": steps, "split": split, "reveal_weights": (world.parties[0],)}
    bits = [None, 16, 20][rng.integers(3)]
    if bits is not None:
        into = [width if split == "rows" else sum(widths.values()), *(layer.units for layer in model.layers)]
        size = sum((before + 1) * after for before, after in itertools.pairwise(into))
        noisy = tuple(str(name) for name in rng.permutation(world.parties)[: rng.integers(1, 3)])
        given["noise"] = mpc.NoiseShares(noisy, 2.0 ** (8 - bits), bits)
        given["noise_steps"] = {name: rng.integers(-999, 1000, (steps, size)) for name in noisy}
    return model, given


def forward(weights, layers, rows):
    for layer, kernel, bias in zip(layers, weights[::2], weights[1::2], strict=True):
        rows = rows @ kernel + bias
        if layer.activation == "sigmoid":
            rows = 0.5 + 0.5 * np.tanh(rows / 2)
        elif layer.activation == "relu":
            rows = np.maximum(rows, 0)
    return rows


def trained_in_float(model, x, y, steps, split, noise=None, noise_steps=None, **_):
    """Kernel and bias of one layer by NumPy: batches in turn, noise added to every sum, weights clipped."""
    kernel, bias = (np.array(one) for one in model.job.weights)
    joined = np.concatenate(list(x.values()), 1 if split == "columns" else 0)
    labels = np.concatenate([y[name] for name in x if name in y])
    training = model.job.training
    factor = 2 if training.loss != "binary_crossentropy" else 1
    rate = training.learning_rate / (1 if training.loss == "sum_of_squares" else training.batch_size)
    added = 0.0 if noise is None else sum(noise_steps.values()) * 2.0**-noise.fraction_bits
    for step in range(steps):
        part = slice(*(training.batch_size * (step % (len(joined) // training.batch_size) + end) for end in (0, 1)))
        residual = factor * (forward([kernel, bias], model.layers, joined[part]) - labels[part])
        total = np.concatenate([(joined[part].T @ residual).ravel(), residual.sum(0)])
        total = total + (added[step] if noise is not None else 0)
        moved = np.concatenate([kernel.ravel(), bias]) - rate * total
        kernel, bias = np.split(np.clip(moved, -2, 2), [kernel.size])
        kernel = kernel.reshape(joined.shape[1], -1)
    return kernel, bias


def check_carried(seed, run):
    """Train, then ask the shares again and again; the oracle is NumPy on the weights that one party learns."""
    model, given = random_model(seed)
    rng, world, holders = np.random.default_rng(seed + 1), model.world, list(given["x"])
    found = model.fit(**given, run=run)
    weights = found.outcomes[world.parties[0]].weights
    if found.plan.weight_error is not None:
        kernel, bias = trained_in_float(model, **given)
        off = np.concatenate([(weights[0] - kernel).ravel(), weights[1] - bias])
        assert np.linalg.norm(off) <= found.plan.weight_error * (1 + 1e-9)
    whole = given["split"] == "rows" or len(holders) == 1
    widths = [one.shape[1] for one in given["x"].values()][: 1 if whole else None]
    for asking in [holders, [name for name in world.parties if name not in holders]] * 2:
        rows = at_the_ends(rng, (3, sum(widths)), model._ranges["feature_range"])
        parts = dict(zip(holders, np.split(rows, np.cumsum(widths)[:-1], axis=1), strict=False))
        if whole or asking is not holders:
            if not asking:
                continue
            parts = {asking[0]: rows}
        shuffled = {str(name): parts[name] for name in rng.permutation(list(parts))}
        answer = model.predict(shuffled, reveal=(world.parties[-1],), run=run)
        planned = model.outcomes.plan
        assert planned.arithmetic == found.plan.arithmetic
        assert np.abs(answer - forward(weights, model.layers, rows)).max() <= planned.prediction_error * (1 + 1e-9)
    return found.plan


@pytest.mark.slow_but("0")
@pytest.mark.parametrize("seed", range(3))
def test_random_models_answer_from_their_shares_as_numpy(seed):
    check_carried(seed, mpc.simulate)


@pytest.mark.processes
@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("first", range(200, 260, 10))
def test_sixty_random_models_answer_from_their_shares_as_numpy(first):
    planned = [check_carried(seed, mpc.simulate) for seed in range(first, first + 10)]
    assert len({one.arithmetic for one in planned}) >= 2
    assert sum(one.weight_error is not None for one in planned) >= 2
    check_carried(first, mpc.launch)


@pytest.mark.slow_but("sum_of_squares")
@pytest.mark.parametrize("loss", ["binary_crossentropy", "sum_of_squares"])
def test_the_weights_error_holds_where_each_of_four_holders_bounds_its_own_columns(loss):
    """Rows at the bound of every holder are twice as long as it: steps expand that a row of norm one would not.

    In float, training stands at its optimum; on shares, whatever is rounded grows where steps expand.
    """
    holders = ("alice", "bob", "carol", "dan")
    rng, logistic = np.random.default_rng(3), loss == "binary_crossentropy"
    one = {name: rng.normal(size=(1, 2)) for name in holders}
    x = {name: np.repeat(row / np.linalg.norm(row), 6, axis=0) for name, row in one.items()}
    first = x["alice"][0]
    if logistic:  # Two of three labels are one: the optimum's argument is log 2.
        y, rates, start = np.array([[0.0], [1.0], [1.0]] * 2), (0.5, 3.9), first * np.log(2)
    else:
        y, rates, start = np.array([[-1.0], [1.0]] * 3), (0.005, 0.08), np.array([-first[1], first[0]])
    kernel, bias, stated = np.concatenate([start, np.zeros(6)])[:, None], np.zeros(1), []
    joined = np.hstack(list(x.values()))
    assert joined.T @ (forward([kernel, bias], [mpc.Layer(1, "sigmoid" if logistic else "linear")], joined) - y) == (
        pytest.approx(np.zeros((8, 1)), abs=1e-12)
    )
    for rate in rates:
        job = mpc.Job(
            world=mpc.World("semi2k", (*holders, "eve"), "eve"),
            layers=(mpc.Layer(1, "sigmoid" if logistic else "linear"),),
            features=dict.fromkeys(holders, (6, 2)),
            labels=("alice",),
            weights=[kernel, bias],
            training=mpc.Training(loss, rate, 12, row_norm=1.0),
            reveal_weights=("alice",),
            weight_range=2.0,
        )
        data = {name: {"x": x[name]} for name in holders}
        data["alice"]["y"] = y
        run = mpc.simulate(job, data)
        weights = run.outcomes["alice"].weights
        off = np.linalg.norm(np.concatenate([(weights[0] - kernel).ravel(), weights[1] - bias]))
        if run.plan.weight_error is not None:
            stated.append(rate)
            assert off <= run.plan.weight_error
    assert stated == [rates[0]]
