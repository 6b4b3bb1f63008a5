"""One small walkthrough, made once, for all tests that look at what it writes."""

import os
import subprocess
import sys

import pytest

# Importing the package before TensorFlow keeps TensorFlow's start-up notices out of the tests' output.
import tfprivacy_lab  # noqa: F401


def walkthrough_command(out, *options):
    """The command line of a small walkthrough."""
    return [sys.executable, "-m", "tfprivacy_lab", "walkthrough", "--out", str(out), "--fast", *options]


@pytest.fixture(scope="session")
def walkthrough_run(tmp_path_factory):
    """(folder, finished process) of an uninterrupted ``walkthrough --fast``."""
    out = tmp_path_factory.mktemp("walk") / "a run"
    done = subprocess.run(
        walkthrough_command(out), capture_output=True, text=True, timeout=800, check=False, env=os.environ.copy()
    )
    assert done.returncode == 0, done.stderr
    return out, done
