"""``make bench-dp``: what a DP step costs, in time and memory, against the same framework's step without privacy.

Every path runs in a fresh process, and is timed there in blocks that alternate with its baseline; ratios are
medians over rounds. What could not be measured has a row that says why. Interrupted, it goes on where it
stopped, unless the code that it measures has changed since. ``--only PATH`` measures that path again and keeps
the other rows.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import dp_table
import watched
from measurement import BATCH_SIZES, EXAMPLES, L2_NORM_CLIP, MODELS, NOISE_MULTIPLIER

from tfprivacy_lab import files
from tfprivacy_lab.provenance import commit, provenance

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results" / "bench_dp" / "metrics.json"
PAGE = ROOT / "docs" / "results" / "training_cost.md"
UNFINISHED = ROOT / "runs" / "bench-dp" / "unfinished.json"


class Contestant(NamedTuple):
    """A path of the benchmark: what runs it, and what it is compared with."""

    path: str
    baseline: str
    script: str
    options: tuple[str, ...] = ()

    @property
    def is_peer(self) -> bool:
        """Whether it runs in the peers' environment."""
        return self.script.startswith("peers/")


_KERAS, _TF_KERAS = "dp_paths.py", "tfp_paths.py"
_OPACUS, _JAX = "peers/opacus_paths.py", "peers/jax_privacy_paths.py"
CONTESTANTS = (
    Contestant("keras", "keras", _KERAS, ("--alone",)),
    Contestant("fast", "keras", _KERAS, ("--rounds", "15", "--budget", "75")),
    Contestant("fast, TensorFlow's operations", "keras", _KERAS),
    Contestant("tf_keras", "tf_keras", _TF_KERAS, ("--alone",)),
    Contestant("DPModel + registry", "tf_keras", _TF_KERAS),
    Contestant("DPModel", "tf_keras", _TF_KERAS),
    Contestant("VectorizedDPKerasSGDOptimizer", "tf_keras", _TF_KERAS),
    Contestant("DPKerasSGDOptimizer", "tf_keras", _TF_KERAS, ("--first", "1")),
    Contestant("pytorch", "pytorch", _OPACUS, ("--alone",)),
    Contestant("Opacus hooks", "pytorch", _OPACUS),
    Contestant("Opacus ghost", "pytorch", _OPACUS),
    Contestant("jax", "jax", _JAX, ("--alone",)),
    Contestant("JAX-Privacy clipped_grad", "jax", _JAX, ("--first", "2")),
    Contestant("JAX-Privacy clipped_grad, microbatch 1", "jax", _JAX),
)


def main() -> None:
    """Measure what is missing, then write the rows, the table and the figure."""
    only = parse_arguments().only
    chosen = [c for c in CONTESTANTS if not only or c.path in only or c.path in {baseline_of(name) for name in only}]
    rows = kept_rows(only, {contestant.path for contestant in chosen})
    unavailable = missing_peers() if any(c.is_peer for c in chosen) else None
    if os.getloadavg()[0] > 0.5:
        print(f"This machine is busy (load {os.getloadavg()[0]:.1f}): the figures will be worth little.", flush=True)
    cases = list(itertools.product(MODELS, BATCH_SIZES, chosen))
    for number, (model, batch, contestant) in enumerate(cases, 1):
        if find(rows, model, batch, contestant.path):
            continue
        print(f"{number}/{len(cases)} {model} {batch} {contestant.path}: ", end="", flush=True)
        row = unavailable_row(model, batch, contestant, unavailable) or measured_row(model, batch, contestant)
        print(dp_table.summary(row), flush=True)
        rows.append(row)
        files.write_json(UNFINISHED, {"code": code_hash(), "only": only, "rows": rows})
    write(rows)
    UNFINISHED.unlink(missing_ok=True)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [contestant.path for contestant in CONTESTANTS]
    parser.add_argument("--only", nargs="+", metavar="PATH", choices=names, help=f"one or more of {', '.join(names)}")
    arguments = parser.parse_args()
    arguments.only = sorted(set(arguments.only or []))
    return arguments


def baseline_of(path: str) -> str:
    """The baseline of a path."""
    return next(contestant.baseline for contestant in CONTESTANTS if contestant.path == path)


def kept_rows(only: list[str], chosen: set[str]) -> list[dict]:
    """Rows that need not be measured: of an interrupted run of the same code, or those that --only leaves alone."""
    if UNFINISHED.exists():
        found = files.read_json(UNFINISHED, "interrupted benchmark")
        if (found.get("code"), found["only"]) == (code_hash(), only):
            return found["rows"]
    if only and RESULTS.exists():
        rows = files.read_json(RESULTS, "results")["rows"]
        return [row for row in rows if row["path"] not in chosen]
    return []


def code_hash() -> str:
    """SHA-256 of everything that decides a row: the models, the engine, and how they are measured."""
    folders = (ROOT / "tfprivacy_lab" / "dp", ROOT / "benchmarks")
    paths = [path for folder in folders for ending in ("*.py", "*.cc", "*.h") for path in folder.rglob(ending)]
    found = [ROOT / "tfprivacy_lab" / "models" / "architectures.py", *paths]
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(found))).hexdigest()


def missing_peers() -> str | None:
    """Make the peers' environment; why it could not be made, if so."""
    done = subprocess.run(
        ["bash", str(ROOT / "benchmarks" / "peers" / "environment.sh")], stderr=subprocess.PIPE, text=True, check=False
    )
    lines = done.stderr.strip().splitlines()
    return (lines[-1] if lines else "its environment could not be made") if done.returncode else None


def unavailable_row(model: str, batch: int, contestant: Contestant, reason: str | None) -> dict | None:
    """The row of a peer that has no environment to run in."""
    if reason is None or not contestant.is_peer:
        return None
    return {"model": model, "batch": batch, "path": contestant.path, "baseline": contestant.baseline, "missing": reason}


def measured_row(model: str, batch: int, contestant: Contestant) -> dict:
    """Run one path in a process of its own; its row."""
    python = ROOT / (".venv-peers" if contestant.is_peer else ".venv") / "bin" / "python"
    script = ROOT / "benchmarks" / contestant.script
    command = [str(python), str(script), contestant.path, model, str(batch), *contestant.options]
    log = UNFINISHED.parent / f"{model}-{batch}-{contestant.path.replace(' ', '-')}.log"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "benchmarks"), str(ROOT)])}
    events, reason = watched.run(command, log, environment)
    row = {"model": model, "batch": batch, "path": contestant.path, "baseline": contestant.baseline}
    return {**row, **figures(events, MODELS[model], reason, alone="--alone" in contestant.options), "commit": commit()}


def figures(events: list[dict], weights: int, reason: str | None, *, alone: bool) -> dict:
    """What a process's events say: times, ratios with their quartiles, peak memory; or why there are none."""
    built, warm = (next((e for e in events if e["event"] == name), {}) for name in ("built", "warm"))
    rounds = [event for event in events if event["event"] == "round"]
    found = {"peak_mb": warm.get("peak_mb"), "first_s": warm.get("first_s"), "rounds": len(rounds)}
    if built.get("note"):
        found["note"] = built["note"]
    if built and built["weights"] != weights:
        return {"missing": f"it built another model: {built['weights']} weights instead of {weights}"}
    if rounds:
        for prefix in ("", "step_"):
            if prefix + "ms" not in rounds[0]:
                continue
            ratios = [event[f"{prefix}ms"] / event[f"{prefix}baseline_ms"] for event in rounds]
            found[f"{prefix}ms"] = statistics.median(event[f"{prefix}ms"] for event in rounds)
            found[f"{prefix}baseline_ms"] = statistics.median(event[f"{prefix}baseline_ms"] for event in rounds)
            found[f"{prefix}ratio"] = statistics.median(ratios)
            found[f"{prefix}ratio_quartiles"] = quartiles(ratios)
    elif reason or not (alone and warm):
        found["missing"] = reason or "it ended without a round"
    return {name: value for name, value in found.items() if value is not None}


def quartiles(values: list[float]) -> list[float]:
    """Lower and upper quartile."""
    if len(values) < 2:
        return [values[0], values[0]]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return [low, high]


def find(rows: list[dict], model: str, batch: int, path: str) -> dict | None:
    """The row of a path in a case."""
    return next((row for row in rows if (row["model"], row["batch"], row["path"]) == (model, batch, path)), None)


def write(rows: list[dict]) -> None:
    """metrics.json with the baselines' times filled in, the page and the figure."""
    rows = in_order([with_baseline(row, rows) for row in rows])
    shared = {"l2_norm_clip": L2_NORM_CLIP, "noise_multiplier": NOISE_MULTIPLIER, "examples": EXAMPLES}
    metrics = {"rows": rows, **shared, **provenance(), "peers_versions": peers_versions()}
    files.write_json(RESULTS, metrics)
    publish(metrics)
    print(*(path.relative_to(ROOT) for path in (PAGE, RESULTS.with_name("ratio.png"), RESULTS)), sep=", ")


def publish(metrics: dict) -> None:
    """The page and the figure."""
    files.write_bytes(PAGE, dp_table.table(metrics).encode())
    files.write_bytes(RESULTS.with_name("ratio.png"), dp_table.figure(metrics))


def with_baseline(row: dict, rows: list[dict]) -> dict:
    """``row`` with its peak over its baseline's; a baseline's own time from the rounds of all its paths."""
    case = (row["model"], row["batch"])
    baseline = find(rows, *case, row["baseline"]) or {}
    row = dict(row)
    if "peak_mb" in row and "peak_mb" in baseline:
        row["peak_ratio"] = row["peak_mb"] / baseline["peak_mb"]
    if row["path"] == row["baseline"]:
        pairs = [r for r in rows if (r["model"], r["batch"]) == case and r["baseline"] == row["path"]]
        for name in ("", "step_"):
            times = [r[f"{name}baseline_ms"] for r in pairs if f"{name}baseline_ms" in r]
            if times:
                row |= {f"{name}ms": statistics.median(times), f"{name}ratio": 1.0}
    return row


def in_order(rows: list[dict]) -> list[dict]:
    """Rows by case, then as CONTESTANTS lists them."""
    names = [contestant.path for contestant in CONTESTANTS]
    return sorted(rows, key=lambda row: (list(MODELS).index(row["model"]), row["batch"], names.index(row["path"])))


def peers_versions() -> dict[str, str]:
    """The peers' releases, as their environment has them."""
    python = ROOT / ".venv-peers" / "bin" / "python"
    names = ("torch", "opacus", "jax", "jax-privacy")
    if not shutil.which(str(python)):
        return {}
    code = f"import importlib.metadata as m; print(*(m.version(n) for n in {names}))"
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=False)
    return dict(zip(names, done.stdout.split(), strict=False))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("make bench-dp: interrupted; run it again to go on")
