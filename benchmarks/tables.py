"""``make tables``: every table of the README and of docs/results again, from results/; measures nothing."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import apps
import bench_dp
import bench_he
import bench_mpc
import reproduce
import reproduce_dp

from tfprivacy_lab import files

COMMANDS = (reproduce_dp, reproduce, bench_dp, bench_he, bench_mpc, apps)


def main() -> None:
    """What each command wrote after it had measured."""
    for command in COMMANDS:
        command.publish(files.read_json(command.RESULTS, "results"))


if __name__ == "__main__":
    main()
