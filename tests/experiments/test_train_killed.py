"""``train --ledger``, killed (SIGKILL) at random and given again: charged once, and before it draws."""

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from tfprivacy_lab.dp.ledger.ledger import Ledger
from tfprivacy_lab.experiments.recipes import RECIPES

pytestmark = pytest.mark.processes

KILLS = 6


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What a process of its own found: it loads TensorFlow once, and forks before TensorFlow has begun anything."""
    folder = tmp_path_factory.mktemp("killed")
    code = "import sys; from tests.experiments import test_train_killed as own; own.kill_at_random(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        capture_output=True,
        text=True,
        timeout=800,
        cwd=Path(__file__).parents[2],
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return folder, json.loads(done.stdout.splitlines()[-1])


@pytest.mark.long
def test_no_kill_left_a_draw_uncounted_and_none_was_counted_twice(told):
    folder, found = told
    assert found["kills"] == KILLS
    assert found["killed_after_the_first_draw"] >= KILLS / 2
    ledger = Ledger.open(folder / "ledger")
    assert [entry.kind for entry in ledger.entries()] == ["register", "finish"]
    metrics = json.loads((folder / "run" / "metrics.json").read_text())
    assert ledger.entries()[0].run == metrics["run_name"]
    assert ledger.spent() == pytest.approx(metrics["epsilon"], rel=1e-6)
    assert not (folder / "run" / ".noise_seed").exists()


def kill_at_random(folder):
    """Start the command, kill it, look at ledger and draws; at last let it end."""
    from tfprivacy_lab.data import datasets
    from tfprivacy_lab.dp.ledger.ledger import dataset_digest
    from tfprivacy_lab.experiments import runs  # noqa: F401  TensorFlow is loaded here, once

    folder = Path(folder)
    rng = np.random.default_rng(0)
    splits = [datasets.Split(rng.random((n, 28, 28, 1), np.float32), rng.integers(0, 10, n)) for n in (600, 50, 50)]
    private = datasets.PrivateData(*splits[:2], official=False)
    datasets.load_private = lambda *arguments, **options: private
    datasets.load_test = lambda *arguments, **options: splits[2]
    small = RECIPES["seed-mlp"]
    RECIPES["seed-mlp"] = dataclasses.replace(small, plan=dataclasses.replace(small.plan, batch_size=100))
    ledger = Ledger.create(folder / "ledger", dataset_digest(*splits[:2]), 3.5, 1e-4)
    chance, never, drawn = random.Random(20261122), threading.Event(), 0
    for number in range(KILLS):
        child, known = start(folder), draws(folder)
        # Every other one dies among its draws, the rest anywhere before them.
        late = time.monotonic() + 120
        while number % 2 and draws(folder) == known and time.monotonic() < late:
            never.wait(0.01)
        never.wait(chance.uniform(0.05, 1.0))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), (folder / "log").read_text()[-2000:]
        drawn += draws(folder) > known
        assert len(ledger.entries()) == 1 if draws(folder) else len(ledger.entries()) <= 1
    _, status = os.waitpid(start(folder), 0)
    assert status == 0, (folder / "log").read_text()[-2000:]
    print(json.dumps({"kills": KILLS, "killed_after_the_first_draw": drawn}))


def draws(folder):
    """How many times a child came to draw noise."""
    path = folder / "draws"
    return path.stat().st_size if path.exists() else 0


def start(folder):
    """A child that runs the command line on the small private set."""
    child = os.fork()
    if child:
        return child
    try:
        log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(log, 1), os.dup2(log, 2)
        os._exit(command(folder))
    finally:
        os._exit(9)


def command(folder):
    from tfprivacy_lab.cli import command as cli
    from tfprivacy_lab.dp.training.noise import GaussianNoise

    add = GaussianNoise.add

    def noting(self, *arguments, **options):
        # Called when the step is traced, which comes before any noise.
        handle = os.open(folder / "draws", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.write(handle, b".")
        os.fsync(handle)
        os.close(handle)
        return add(self, *arguments, **options)

    GaussianNoise.add = noting
    options = ["--recipe", "seed-mlp", "--epsilon", "3", "--delta", "1e-4", "--epochs", "60"]
    return cli.main(["train", *options, "--out", str(folder / "run"), "--ledger", str(folder / "ledger")])
