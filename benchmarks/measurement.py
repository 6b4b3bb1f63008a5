"""How one path of the DP benchmark is timed, inside a process of its own: blocks that alternate with its baseline.

The standard library only: TensorFlow's, PyTorch's and JAX's processes import it alike. A process prints one JSON
object a line as it goes, so that whoever started it can tell slow from stuck, and keep what was measured if not.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import sys
import time
from collections.abc import Callable
from typing import Protocol

MODELS = {"document_mlp": 101_770, "tutorial_cnn": 26_010}
BATCH_SIZES = (256, 2048)
# Near MNIST's 60,000, and a multiple of both batch sizes: no partial batch on either side.
EXAMPLES = 59_392
L2_NORM_CLIP, NOISE_MULTIPLIER, LEARNING_RATE = 1.0, 1.1, 0.15


class TrainingPath(Protocol):
    """One way to train a model: what its user calls, and the bare step inside."""

    weights: int

    def fit(self, steps: int) -> tuple[int, float] | None:
        """Train about ``steps`` steps as a user would, sampling included.

        Returns:
            How many steps it did, and the seconds that they took if setting up does not count; None for
            all of them, and all of the time.
        """

    def bare(self, steps: int) -> None:
        """Run the compiled train step alone on a batch that never changes, and wait for it."""


def measure(make_path: Callable, make_baseline: Callable | None, arguments: argparse.Namespace) -> None:
    """Print the peak memory of a path, alone in the process so far, then rounds that alternate with its baseline.

    Each round times a block of either, first the one, then the other, and swaps who goes first: a machine
    that slows down for a while slows both. The first steps, which trace and compile, are in no block. The
    peak is that of one call of ``fit``: Keras keeps a copy of the examples a call until Python collects it.
    """
    before = peak_mb()
    path = make_path()
    emit("built", weights=path.weights, note=getattr(path, "note", None))
    begun = time.perf_counter()
    path.fit(arguments.first)
    emit("warm", first_s=time.perf_counter() - begun, peak_mb=peak_mb(), before_mb=before)
    if make_baseline is None:
        return
    blocks = {"ms": (path.fit, block_steps(path.fit, arguments.seconds))}
    baseline = make_baseline()
    baseline.fit(1)
    blocks["baseline_ms"] = (baseline.fit, block_steps(baseline.fit, arguments.seconds))
    if blocks["ms"][1] > 1:
        # Where a step takes longer than a block, fit is the bare step, and twice the time buys nothing.
        for name, bare in (("step_ms", path.bare), ("step_baseline_ms", baseline.bare)):
            bare(1)
            blocks[name] = (bare, block_steps(bare, arguments.seconds / 3))
    start, last = time.perf_counter(), 0.0
    for number in range(arguments.rounds):
        begun = time.perf_counter()
        if number and begun - start + last > arguments.budget:
            break
        order = sorted(blocks, key=lambda name: (name.startswith("step_"), ("baseline" in name) ^ (number % 2 == 0)))
        emit("round", **{name: milliseconds(*blocks[name]) for name in order})
        last = time.perf_counter() - begun


def milliseconds(run: Callable[[int], tuple[int, float] | None], steps: int) -> float:
    """Wall time of a step, in a block of ``steps``."""
    gc.collect()
    begun = time.perf_counter()
    found = run(steps)
    done, seconds = found or (steps, time.perf_counter() - begun)
    return 1e3 * seconds / done


def block_steps(run: Callable[[int], tuple[int, float] | None], seconds: float) -> int:
    """Steps that fill a block of about ``seconds``, by two tries: the first one still warms up."""
    steps = 1
    for _ in range(2):
        if (steps := max(1, round(1e3 * seconds / milliseconds(run, steps)))) == 1:
            break
    return steps


def peak_mb() -> float:
    """The most memory that this process has had resident, in 10^6 bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def emit(event: str, **values) -> None:
    """One JSON line on stdout."""
    print(json.dumps({"event": event, **values}), flush=True)


def parse_arguments(paths) -> argparse.Namespace:
    """The command line that every process of the benchmark takes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", choices=paths)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("batch", type=int)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="length of a block")
    parser.add_argument("--budget", type=float, default=20.0, help="no new round after so many seconds of rounds")
    parser.add_argument("--first", type=int, default=20, help="steps of the first call, at which memory is read")
    parser.add_argument("--alone", action="store_true", help="peak memory only, no rounds")
    return parser.parse_args()
