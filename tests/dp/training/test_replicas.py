"""Two real worker processes on loopback: one noisy sum, one accountant, whatever their number."""

import itertools
import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats
from sklearn.datasets import load_digits

from tests.dp.training.test_planned import gradient
from tfprivacy_lab.dp import plain
from tfprivacy_lab.dp.accounting.gaussian import DpSgdRun, epsilon_after
from tfprivacy_lab.dp.sampling import PoissonSample

pytestmark = [pytest.mark.processes, pytest.mark.slow]

EXAMPLES, WIDTH, CLASSES = 1201, 64, 10


def digits():
    """Scikit-learn's digits; the first, worker 0's, is blown up: its gradient is clipped for sure."""
    x, y = load_digits(return_X_y=True)
    x = (x[:EXAMPLES] / 16).astype(np.float32)
    x[0] *= 1e3
    return x, y[:EXAMPLES].astype(np.int64)


def free_ports(count):
    """Ports that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def run_workers(folder, count):
    """Start ``count`` workers, wait for them, and return what each wrote."""
    x, y = digits()
    np.savez(folder / "digits.npz", x=x, y=y)
    cluster = {"worker": [f"127.0.0.1:{port}" for port in free_ports(count)]}
    running = []
    for rank in range(count):
        environment = os.environ | {
            "TF_CONFIG": json.dumps({"cluster": cluster, "task": {"type": "worker", "index": rank}}),
            "TF_CPP_MIN_LOG_LEVEL": "3",
        }
        arguments = [
            "-m",
            "tests.dp.training.two_workers",
            str(folder / "digits.npz"),
            str(folder / f"{count}-{rank}.npz"),
        ]
        running.append(
            subprocess.Popen(
                [sys.executable, *arguments],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    for one in running:
        said, _ = one.communicate(timeout=800)
        assert one.returncode == 0, said[-3000:]
    return [dict(np.load(folder / f"{count}-{rank}.npz")) for rank in range(count)]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What one worker and two found: {count: [of each worker]}."""
    folder = tmp_path_factory.mktemp("workers")
    return {count: run_workers(folder, count) for count in (1, 2)}


def parts(flat, hidden):
    """Kernel and bias of each layer, from the flat weights."""
    widths = [WIDTH, *([hidden] if hidden else []), CLASSES]
    found, at = [], 0
    for a, b in itertools.pairwise(widths):
        found += [flat[at : at + a * b].reshape(a, b), flat[at + a * b : at + a * b + b]]
        at += a * b + b
    assert at == flat.size
    return found


def draws(workers, batch_size, steps, seed=7):
    """Who takes part in each step, by position in the whole set: each worker draws among its own examples."""
    union = [[] for _ in range(steps)]
    for rank in range(workers):
        mine = np.arange(rank, EXAMPLES, workers)
        sample = PoissonSample(mine.size, batch_size / EXAMPLES, seed, rank)
        for step in range(steps):
            union[step].extend(mine[sample.indices(step)])
    return union


def tanh_gradient(weights, x, label):
    """Cross-entropy's gradient of tanh(x W + b) V + c, by the chain rule in float64."""
    hidden = np.tanh(x @ weights[0] + weights[1])
    above = gradient(weights[2:], hidden, label)
    below = (weights[2] @ above[1]) * (1 - hidden**2)
    return [np.outer(x, below), below, *above]


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("case", ["noiseless", "slow"])
def test_the_sum_is_that_of_all_workers_examples(found, workers, case):
    x, y = digits()
    first = found[workers][0]
    start = parts(first[f"{case}/before"], 8)
    given = (start, x.astype(np.float64), y, draws(workers, 64, 6), [[0 * array for array in start]] * 6)
    settings = {"batch_size": 64, "l2_norm_clip": 1, "noise_multiplier": 0}
    weights = plain.dp_sgd(tanh_gradient, *given, learning_rate=0.5, **settings)
    expected = np.concatenate([array.ravel() for array in weights])
    np.testing.assert_allclose(first[f"{case}/after"], expected, atol=2e-5)
    assert np.abs(first[f"{case}/after"] - first[f"{case}/before"]).max() > 0.01


def test_workers_agree_bit_for_bit(found):
    one, other = found[2]
    for name in one:
        if not name.endswith("accuracy"):
            assert np.array_equal(one[name], other[name]), name


def scale_of_noise(record, case, claimed):
    """p-value, two-sided, of the noise in ``case`` having standard deviation ``claimed``."""
    noise = record[f"{case}/after"].astype(np.float64) - record[f"{case}/before"]
    below = stats.chi2.cdf(np.sum((noise / claimed) ** 2), noise.size)
    return 2 * min(below, 1 - below)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("case", ["silent", "secure"])
def test_noise_has_the_scale_of_one_worker(found, workers, case):
    """With every weight zero only noise moves the model: T draws of σC, over B, times the learning rate."""
    claimed = 0.5 * 1.5 * 1.0 * np.sqrt(3) / 64
    record = found[workers][0]
    level = 1e-9 if case == "secure" else 1e-3  # "secure" noise is other noise every time.
    assert scale_of_noise(record, case, claimed) > level
    assert scale_of_noise(record, case, 0.9 * claimed) < 1e-9
    assert scale_of_noise(record, case, 1.1 * claimed) < 1e-9
    noise = (record[f"{case}/after"] - record[f"{case}/before"]) / claimed
    assert stats.kstest(noise, "norm").pvalue > level


@pytest.mark.parametrize("workers", [1, 2])
def test_one_example_moves_the_sum_by_at_most_the_clipping_norm(found, workers):
    """The wildest one, whose gradient is thousands of times C, really taken away, in a batch of some of the others."""
    record = found[workers][0]
    moved = record["everyone/after"].astype(np.float64) - record["neighbour/after"]
    distance = np.linalg.norm(moved) * 64 / 0.5
    assert record["everyone/examples"] == record["neighbour/examples"] + 1 == EXAMPLES
    assert 0.99 < distance < 1 + 1e-4  # The weights themselves are rounded to 1e-7 of their size.


@pytest.mark.parametrize("workers", [1, 2])
def test_one_accountant(found, workers):
    record = found[workers][0]
    assert (record["learnt/examples"], record["learnt/steps"]) == (EXAMPLES, 60)
    run = DpSgdRun(EXAMPLES, 256, 1.0, 60)
    assert record["learnt/epsilon"] == epsilon_after(run, 60, 1e-5)


def test_accuracy_is_that_of_one_worker(found):
    """Eight runs each, whose sampling and noise differ: the means are apart by no more than chance makes them."""
    alone = found[1][0]["learnt/accuracy"]
    together = np.mean([worker["learnt/accuracy"] for worker in found[2]], 0)
    assert len(alone) == len(together) == 8
    assert min(*alone, *together) > 0.75
    assert stats.ttest_ind(alone, together, equal_var=False).pvalue > 1e-3
    assert abs(np.mean(alone) - np.mean(together)) < 0.02
