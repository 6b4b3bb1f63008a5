"""One small walkthrough, made once, for all tests that look at what it writes."""

import contextlib
import importlib
import os
import subprocess
import sys

import pytest
from hypothesis import settings

# Importing the package before TensorFlow keeps TensorFlow's start-up notices out of the tests' output.
import tfprivacy_lab  # noqa: F401
from tfprivacy_lab.checks import MissingPackageError

# What the locks of newer Pythons leave out (requirements/setup.sh). A package of the lock that is missing is a failure.
LEFT_OUT = {"spu": sys.version_info >= (3, 12), "tensorflow-empirical-privacy": sys.version_info >= (3, 13)}

# The same examples each time: what fails here fails wherever the tests run.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item):
    """As :func:`pytest_runtest_call`, for fixtures."""
    with _skipping():
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Skip what needs a package that there is none of for this Python, and say which."""
    with _skipping():
        return (yield)


@contextlib.contextmanager
def _skipping():
    try:
        yield
    except MissingPackageError as error:
        if not LEFT_OUT.get(error.package):
            raise
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def engine():
    """What a test asks for that computes on shares in other processes: it is skipped where there is no engine."""
    importlib.import_module("tfprivacy_lab.mpc.library")


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
