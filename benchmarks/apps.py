"""``make apps``: the three applications, results/apps and docs/results/apps.md."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import pages

from tfprivacy_lab.apps import APPS
from tfprivacy_lab.cli.apps import page, run_apps

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results" / "apps" / "metrics.json"
SEEDS = 5


def main() -> None:
    """Run all, then write the page."""
    metrics = run_apps(APPS, RESULTS.parent, SEEDS, lambda line: print(line, file=sys.stderr, flush=True))
    publish(metrics)
    print(f"results/apps: {len(metrics['rows'])} rows in {metrics['seconds']:.0f} s")


def publish(metrics: dict) -> None:
    """The tables."""
    pages.write(parts(metrics))


def parts(metrics: dict) -> list[pages.Part]:
    """The tables and where they stand."""
    return [pages.Part(pages.RESULT_PAGES / "apps.md", pages.marks("apps results", "apps"), page(metrics).strip())]


if __name__ == "__main__":
    main()
