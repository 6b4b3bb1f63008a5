"""What README.md shows: the accuracy table (:mod:`reproduce_dp`), and one walkthrough with its figures.

``make reproduce`` runs what is missing and goes on where it stopped. Test accuracy is reported, never chosen by.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import reproduce_dp

from tfprivacy_lab import files, walkthrough
from tfprivacy_lab.provenance import place

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results" / "walkthrough" / "metrics.json"
FIGURES = ("training.png", "roc.png", "logits.png")
MARKS = ("<!-- walkthrough: written by make reproduce -->", "<!-- /walkthrough -->")
SEED = 0


def main() -> None:
    """The table, then the walkthrough."""
    reproduce_dp.main()
    show_walkthrough()


def show_walkthrough() -> None:
    """Run the walkthrough, keep its figures and metrics, and put its figures into the README."""
    out = ROOT / "runs" / "reproduce" / "walkthrough"
    metrics = walkthrough.walk(out, seed=SEED, on_progress=print)
    for name in FIGURES:
        shutil.copyfile(out / "figures" / name, RESULTS.parent / name)
    files.write_json(RESULTS, metrics)
    reproduce_dp.replace_between(ROOT / "README.md", MARKS, summary(metrics))


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
