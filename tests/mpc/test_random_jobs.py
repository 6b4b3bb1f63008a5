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


@pytest.mark.slow
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
