"""``make apps``: the three applications, results/apps and the README's table."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from reproduce_dp import replace_between

from tfprivacy_lab.apps import APPS
from tfprivacy_lab.cli.apps import run_apps, summary

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results" / "apps" / "metrics.json"
MARKS = ("<!-- apps results: written by make apps -->", "<!-- /apps results -->")
SEEDS = 5


def main() -> None:
    """Run all, then write the README's table."""
    metrics = run_apps(APPS, RESULTS.parent, SEEDS, lambda line: print(line, file=sys.stderr, flush=True))
    replace_between(ROOT / "README.md", MARKS, summary(metrics))
    print(f"results/apps: {len(metrics['rows'])} rows in {metrics['seconds']:.0f} s")


if __name__ == "__main__":
    main()
