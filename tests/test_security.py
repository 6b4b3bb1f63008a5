"""SECURITY.md's figures are computed by the commands that it shows."""

import doctest
import json
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_figures_are_what_its_commands_print():
    found = doctest.testfile(str(ROOT / "SECURITY.md"), module_relative=False)
    assert found.attempted >= 3
    assert found.failed == 0


def test_the_run_is_the_walkthrough_of_the_readme():
    metrics = json.loads((ROOT / "results" / "walkthrough" / "metrics.json").read_text())
    run = (
        "DpSgdRun(examples={examples:_}, batch_size={batch_size:_}, noise_multiplier={noise_multiplier}, steps={steps})"
    )
    assert run.format(**metrics) in (ROOT / "SECURITY.md").read_text()
