"""The accuracy table of the README: every row over three seeds, written with its command.

``python benchmarks/reproduce.py`` runs what is missing, writes results/walkthrough/metrics.json after every
run, and puts the table, and the figures of a walkthrough, where README.md shows them. Interrupted, it goes
on where it stopped. Seeds vary everything: public rendering and pretraining, the split, sampling and noise.
Test accuracy is reported, never chosen by.
"""

from __future__ import annotations

import itertools
import shutil
import sys
from pathlib import Path

import numpy as np

from tfprivacy_lab import files, runs, walkthrough
from tfprivacy_lab.provenance import provenance
from tfprivacy_lab.recipes import RECIPES

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results" / "walkthrough" / "metrics.json"
CASES = (("finetune", 1.0), ("finetune", 3.0), ("seed-mlp", 3.0))
SEEDS = (0, 1, 2)
DELTA = 1e-5
FIGURES = ("training.png", "roc.png", "logits.png")
BEGIN, END = "<!-- results: written by make reproduce -->", "<!-- /results -->"


def main() -> None:
    """Run what is missing, then rewrite the table."""
    found = files.read_json(RESULTS, "results") if RESULTS.exists() else {"runs": []}
    done = {(run["recipe"], run["target_epsilon"], run["seed"]) for run in found["runs"]}
    for seed, (name, epsilon) in itertools.product(SEEDS, CASES):
        if (name, epsilon, seed) not in done:
            found["runs"].append(one_run(name, epsilon, seed))
            write(found)
            print(found["runs"][-1], flush=True)
    write(found)
    walkthrough.walk(ROOT / "runs" / "reproduce" / "walkthrough", seed=SEEDS[0], on_progress=print)
    for name in FIGURES:
        shutil.copyfile(ROOT / "runs" / "reproduce" / "walkthrough" / "figures" / name, RESULTS.parent / name)
    readme = ROOT / "README.md"
    files.write_bytes(readme, with_table(readme.read_text(), found["rows"], found["hardware"]).encode())


def one_run(name: str, epsilon: float, seed: int) -> dict:
    """One seed of one row: what its command runs."""
    out = ROOT / "runs" / "reproduce" / f"{name}-{epsilon:g}-{seed}"
    backbone = ROOT / "runs" / "reproduce" / f"backbone-{seed}.keras"
    if backbone.exists() and not (out / "backbone.keras").exists():
        # Public and a function of the seed alone: no need to learn it again for every budget.
        out.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(backbone, out / "backbone.keras")
    metrics = runs.train_recipe(RECIPES[name], out, epsilon=epsilon, delta=DELTA, seed=seed)
    if RECIPES[name].pretraining is not None:
        shutil.copyfile(out / "backbone.keras", backbone)
    kept = ("recipe", "seed", "epsilon", "noise_multiplier", "test_accuracy", "seconds")
    return {"target_epsilon": epsilon, **{key: metrics[key] for key in kept}}


def write(found: dict) -> None:
    """The results file: every run, and the rows of the table."""
    found["rows"] = [row(found["runs"], name, epsilon) for name, epsilon in CASES if any_run(found, name, epsilon)]
    files.write_json(RESULTS, {"delta": DELTA, **found, **provenance()})
    found.update(provenance())


def any_run(found: dict, name: str, epsilon: float) -> bool:
    """Whether a row has a run yet."""
    return any((run["recipe"], run["target_epsilon"]) == (name, epsilon) for run in found["runs"])


def row(all_runs: list[dict], name: str, epsilon: float) -> dict:
    """Mean and spread over the seeds of a row, with the command that runs one of them."""
    mine = [run for run in all_runs if (run["recipe"], run["target_epsilon"]) == (name, epsilon)]
    accuracies = [run["test_accuracy"] for run in mine]
    return {
        "recipe": name,
        "epsilon": max(run["epsilon"] for run in mine),
        "delta": DELTA,
        "accuracy_mean": float(np.mean(accuracies)),
        "accuracy_sd": float(np.std(accuracies, ddof=1)) if len(mine) > 1 else 0.0,
        "seeds": len(mine),
        "command": f"tfprivacy_lab train --recipe {name} --epsilon {epsilon:g} --delta {DELTA:g} --seed 0 --out DIR",
    }


def with_table(readme: str, rows: list[dict], hardware: str) -> str:
    """``readme`` with the table of ``rows`` between its marks."""
    head, rest = readme.split(BEGIN)
    lines = ["| recipe | ε (PLD, Poisson) | test accuracy, % | command, one seed |", "|---|---|---|---|"]
    for row in rows:
        accuracy = f"{100 * row['accuracy_mean']:.2f} ± {100 * row['accuracy_sd']:.2f} ({row['seeds']} seeds)"
        lines.append(f"| {row['recipe']} | {row['epsilon']:.3f} | {accuracy} | `{row['command']}` |")
    note = f"δ = {DELTA:g}, add-or-remove-one adjacency, mean ± standard deviation. {hardware}."
    return f"{head}{BEGIN}\n" + "\n".join(lines) + f"\n\n{note}\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    sys.exit(main())
