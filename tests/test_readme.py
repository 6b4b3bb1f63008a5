"""What the README and the Makefile say is what is there."""

import json
import re
from pathlib import Path

import pytest

from benchmarks import reproduce
from tfprivacy_lab.cli.command import _build_parser

reproduce_dp = reproduce.reproduce_dp
accuracy_table = reproduce_dp.accuracy_table
ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def between(page, marks):
    """What a command wrote between its marks."""
    return page.split(marks[0])[1].split(marks[1])[0].strip()


def test_tables_are_the_results_files():
    found = json.loads(reproduce_dp.RESULTS.read_text())
    page = (ROOT / "REPRODUCTION.md").read_text()
    assert between(README, reproduce_dp.README_MARKS) == accuracy_table.matrix(found)
    assert between(page, reproduce_dp.PAGE_MARKS) == accuracy_table.detailed(found)
    for row in found["rows"]:
        assert row["command"] in between(page, reproduce_dp.COMMAND_MARKS)
    walkthrough = json.loads(reproduce.RESULTS.read_text())
    assert between(README, reproduce.MARKS) == reproduce.summary(walkthrough)


def test_rows_follow_from_their_runs():
    found = json.loads(reproduce_dp.RESULTS.read_text())
    assert found["rows"] == reproduce_dp.rows(found["runs"])
    for row in found["rows"]:
        mine = [
            run for run in found["runs"] if (run["recipe"], run["target_epsilon"]) == (row["recipe"], row["epsilon"])
        ]
        accuracies = [run["test_accuracy"] for run in mine]
        assert row["seeds"] == len({run["seed"] for run in mine}) == len(mine) >= 3
        assert row["accuracy_mean"] == pytest.approx(sum(accuracies) / len(accuracies))
        assert 0.98 * row["epsilon"] < row["epsilon_spent"] <= row["epsilon"]


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
    contract = "setup data walkthrough train audit encrypt mpc apps notebooks bench reproduce test lint clean help"
    documented = set(re.findall(r"^([a-z-]+):.*## ", makefile, flags=re.MULTILINE))
    assert set(contract.split()) <= documented
