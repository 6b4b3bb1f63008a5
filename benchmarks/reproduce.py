"""The accuracy table (:mod:`reproduce_dp`), and one walkthrough: its figures, its page and README's table of attacks.

``make reproduce`` runs what is missing and goes on where it stopped. Test accuracy is reported, never chosen by.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import pages
import reproduce_dp

from tfprivacy_lab import files, walkthrough
from tfprivacy_lab.provenance import place

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results" / "walkthrough" / "metrics.json"
FIGURES = ("training.png", "roc.png", "logits.png")
PAGE = pages.RESULT_PAGES / "walkthrough.md"
ATTACKED = {
    "positive_control": "a network made to leak",
    "non_private": "the head trained without DP",
    "dp": "the head trained with DP",
}
SEED = 0


def main() -> None:
    """The table, then the walkthrough."""
    reproduce_dp.main()
    show_walkthrough()


def show_walkthrough() -> None:
    """Run the walkthrough, keep its figures and metrics, and write its tables."""
    out = ROOT / "runs" / "reproduce" / "walkthrough"
    metrics = walkthrough.walk(out, seed=SEED, on_progress=print)
    for name in FIGURES:
        shutil.copyfile(out / "figures" / name, RESULTS.parent / name)
    files.write_json(RESULTS, metrics)
    publish(metrics)


def publish(metrics: dict) -> None:
    """The tables."""
    pages.write(parts(metrics))


def parts(metrics: dict) -> list[pages.Part]:
    """The tables and where they stand."""
    page = f"{summary(metrics)}\n\n{attacks_table(metrics)}"
    return [
        pages.Part(pages.README, pages.marks("audit", "reproduce"), best_attacks(metrics)),
        pages.Part(PAGE, pages.marks("walkthrough", "reproduce"), page),
    ]


def best_attacks(metrics: dict) -> str:
    """What the best attack on each model found, beside the ε that was accounted."""
    lines = ["| attacked | AUC of the best attack (guessing: 0.5) | ε at least | ε at most |", "|---|---|---|---|"]
    for name, what in ATTACKED.items():
        found = metrics["audit"][name]
        best, claimed = found["best"], found["accounted"]["accounted_epsilon"]
        low, high = best["auc_interval"]
        most = "no guarantee" if claimed is None else f"{claimed:.2f}"
        cells = (what, f"{best['auc']:.3f} [{low:.3f}, {high:.3f}]", f"{best['epsilon_lower_bound']:.2f}", most)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def attacks_table(metrics: dict) -> str:
    """Every attack on every model."""
    lines = [
        "| attacked | attack | AUC | largest TPR − FPR | TPR at 1 % FPR | ε at least |",
        "|---|---|---|---|---|---|",
    ]
    for name, what in ATTACKED.items():
        for attack, found in metrics["audit"][name]["attacks"].items():
            low, high = found["auc_interval"]
            cells = (
                what,
                attack.replace("_", " "),
                f"{found['auc']:.3f} [{low:.3f}, {high:.3f}]",
                f"{found['advantage']:.3f}",
                f"{100 * found['tpr_at_fpr']['0.01']['tpr']:.1f} %",
                f"{found['epsilon_lower_bound']:.2f}",
            )
            lines.append(f"| {' | '.join(cells)} |")
    private = metrics["audit"]["dp"]
    useless = ", ".join(
        f"{what} {metrics['audit'][name]['advantage_without_leak']:.3f}" for name, what in ATTACKED.items()
    )
    return "\n".join(lines) + (
        f"\n\nIntervals and bounds at {private['confidence']:.0%} confidence, δ = {private['delta']:g}. A threshold "
        f"that knows nothing stays below this TPR − FPR: {useless}."
    )


def summary(metrics: dict) -> str:
    """A walkthrough in a sentence."""
    agree = " and ".join(
        f"{scheme.upper()} gives the same answers on {found['agreement'] * metrics['test_examples']:,.0f}"
        for scheme, found in metrics["he"].items()
    )
    machine = ", ".join(filter(None, [place(metrics), metrics.get("instructions")]))
    return (
        f"One walkthrough (seed {metrics['seed']}): {100 * metrics['test_accuracy']:.2f} % of the test images at "
        f"ε = {metrics['epsilon']:.3f}, δ = {metrics['delta']:g}; on encrypted features {agree} of them. "
        f"{machine}. The same seed gives the same figures on the same kind of processor, with as many cores and the "
        "same versions; others add in another order, round otherwise, and answer some images in ten thousand otherwise."
    )


if __name__ == "__main__":
    sys.exit(main())
