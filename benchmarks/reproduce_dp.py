"""Accuracy of every recipe at ε = 1, 2, 3 and 8 (δ = 1e-5), three seeds; ``make reproduce-dp``.

Runs what is missing, best recipe first, and after every run writes results/reproduce_dp/metrics.json and
accuracy.png, the tables of REPRODUCTION.md and the short one of README.md. Interrupted, it goes on where it stopped.
A seed decides the split, the first weights, the sampling and the noise; the public features of the recipes
that have ``features`` are the same for all seeds. The test set is opened once a run, and chooses nothing.
"""

from __future__ import annotations

import itertools
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))

import accuracy_table
import pages

from tfprivacy_lab import files
from tfprivacy_lab.experiments.recipes import RECIPES
from tfprivacy_lab.provenance import provenance

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results" / "reproduce_dp" / "metrics.json"
EPSILONS = (1.0, 2.0, 3.0, 8.0)
ORDER = ("scatter-finetune", "finetune", "seed-mlp", "scatter-linear", "tutorial-cnn")
# Recipes whose own engine is the reference, which takes minutes where this one takes seconds.
ENGINES = {"seed-mlp": "fast", "finetune": "fast"}
SEEDS = (0, 1, 2)
DELTA = 1e-5
ACCOUNTING = {"accountant": "PLD", "sampling": "Poisson", "adjacency": "add-or-remove-one"}
SHOWN = ("scatter-finetune", "seed-mlp", "tutorial-cnn")


def main() -> None:
    """Run what is missing, then rewrite the tables."""
    found = files.read_json(RESULTS, "results")["runs"] if RESULTS.exists() else []
    for name, seed, epsilon in itertools.product(ORDER, SEEDS, EPSILONS):
        if not any((run["recipe"], run["target_epsilon"], run["seed"]) == (name, epsilon, seed) for run in found):
            found.append(one_run(name, epsilon, seed))
            print(found[-1], flush=True)
            write(found)
    write(found)


def one_run(name: str, epsilon: float, seed: int) -> dict:
    """One seed of one row: what its command runs."""
    out = ROOT / "runs" / "reproduce_dp" / f"{name}-{epsilon:g}-{seed}"
    backbone = ROOT / "runs" / "reproduce" / f"backbone-{seed}.keras"
    pretrained = RECIPES[name].pretraining is not None
    if pretrained and backbone.exists() and not (out / "backbone.keras").exists():
        # Public and a function of the seed alone: no need to learn it again for every budget.
        out.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(backbone, out / "backbone.keras")
    # In a process of its own, by the row's own command: memory is given back, whatever TensorFlow keeps.
    arguments = command(name, epsilon).replace("--seed 0", f"--seed {seed}").replace("DIR", str(out)).split()[1:]
    done = subprocess.run([sys.executable, "-m", "tfprivacy_lab", *arguments], stdout=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise SystemExit(f"{name} at epsilon {epsilon:g}, seed {seed}: exit code {done.returncode}")
    metrics = files.read_json(out / "metrics.json", "metrics")
    if pretrained:
        backbone.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(out / "backbone.keras", backbone)
    kept = (
        "recipe",
        "seed",
        "epsilon",
        "noise_multiplier",
        "batch_size",
        "epochs",
        "engine",
        "test_accuracy",
        "seconds",
        "features_seconds",
    )
    return {"target_epsilon": epsilon, **{key: metrics[key] for key in kept if key in metrics}}


def rows(found: list[dict]) -> list[dict]:
    """Mean and spread over the seeds of every case that has them all, in the table's order."""
    table = []
    for name, epsilon in itertools.product(ORDER, EPSILONS):
        mine = [run for run in found if (run["recipe"], run["target_epsilon"]) == (name, epsilon)]
        if len(mine) == len(SEEDS):
            accuracies = [run["test_accuracy"] for run in mine]
            table.append(
                {
                    "recipe": name,
                    "epsilon": epsilon,
                    "epsilon_spent": max(run["epsilon"] for run in mine),
                    "accuracy_mean": float(np.mean(accuracies)),
                    "accuracy_sd": float(np.std(accuracies, ddof=1)),
                    "seeds": len(mine),
                    "seconds": max(run["seconds"] for run in mine),
                    # None where runs of before did not tell it apart: their seconds hold it.
                    "features_seconds": max((run["features_seconds"] for run in mine), default=None)
                    if all("features_seconds" in run for run in mine)
                    else None,
                    "command": command(name, epsilon),
                }
            )
    return table


def command(name: str, epsilon: float) -> str:
    """What runs one seed of a row."""
    engine = f" --engine {ENGINES[name]}" if name in ENGINES else ""
    return f"tfprivacy_lab train --recipe {name} --epsilon {epsilon:g} --delta {DELTA:g} --seed 0{engine} --out DIR"


def write(found: list[dict]) -> None:
    """Results, figure and tables."""
    metrics = {"delta": DELTA, **ACCOUNTING, "rows": rows(found), "runs": found, **provenance()}
    files.write_json(RESULTS, metrics)
    publish(metrics)


def publish(metrics: dict) -> None:
    """The figure and the tables."""
    files.write_bytes(RESULTS.parent / "accuracy.png", accuracy_table.figure(metrics))
    pages.write(parts(metrics))


def parts(metrics: dict) -> list[pages.Part]:
    """The tables and where they stand."""
    commands = "\n".join(row["command"] for row in metrics["rows"])
    page, target = ROOT / "REPRODUCTION.md", "reproduce-dp"
    table = f"{accuracy_table.detailed(metrics)}\n\n{accuracy_table.caption(metrics)}"
    return [
        pages.Part(pages.README, pages.marks("dp results", target), accuracy_table.matrix(metrics, SHOWN)),
        pages.Part(page, pages.marks("table", target), table),
        pages.Part(page, pages.marks("commands", target), f"```\n{commands}\n```"),
    ]


if __name__ == "__main__":
    sys.exit(main())
