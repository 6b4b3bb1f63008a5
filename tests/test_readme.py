"""What the README and the Makefile say is what is there."""

import json
import re
from pathlib import Path

import pytest

from benchmarks import reproduce
from tfprivacy_lab.cli import _build_parser

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_table_is_the_results_file():
    results = json.loads(reproduce.RESULTS.read_text())
    assert reproduce.with_table(README, results["rows"], results["hardware"]) == README


def test_rows_follow_from_their_runs():
    results = json.loads(reproduce.RESULTS.read_text())
    for row in results["rows"]:
        assert row["seeds"] >= 3
        runs = [run for run in results["runs"] if run["recipe"] == row["recipe"]]
        accuracies = [run["test_accuracy"] for run in runs if round(run["epsilon"]) == round(row["epsilon"])]
        assert row["accuracy_mean"] == pytest.approx(sum(accuracies) / len(accuracies))
        assert row["epsilon"] == max(run["epsilon"] for run in runs if round(run["epsilon"]) == round(row["epsilon"]))


def test_links_and_pictures_exist():
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    assert targets
    for target in targets:
        assert (ROOT / target).exists(), target


@pytest.mark.parametrize("line", re.findall(r"^tfprivacy_lab +(.+)$", README, flags=re.MULTILINE))
def test_commands_are_accepted(line):
    words = line.split("#")[0].split()
    options = _build_parser().parse_args(words)
    assert callable(options.command)


def test_make_targets_of_the_contract():
    makefile = (ROOT / "Makefile").read_text()
    contract = "setup data walkthrough train audit encrypt notebooks reproduce test lint clean help"
    documented = set(re.findall(r"^([a-z-]+):.*## ", makefile, flags=re.MULTILINE))
    assert set(contract.split()) <= documented
