"""What all tests share: which run when and beside which, and one small walkthrough for those that look at it."""

import contextlib
import fcntl
import fnmatch
import importlib
import json
import os
import subprocess
import sys
import time

import pytest
from hypothesis import HealthCheck, settings

# Under xdist every core has a worker; threads of TensorFlow's beyond that wait for each other.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")

# Importing the package before TensorFlow keeps TensorFlow's start-up notices out of the tests' output.
import tfprivacy_lab  # noqa: F401
from tfprivacy_lab.checks import MissingPackageError

# What the locks of newer Pythons leave out (requirements/setup.sh). A package of the lock that is missing is a failure.
LEFT_OUT = {"spu": sys.version_info >= (3, 12), "tensorflow-empirical-privacy": sys.version_info >= (3, 13)}

# The same examples each time: what fails here fails wherever the tests run. `make test-slow` tries more of them.
REPEATABLE = settings(
    derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
settings.register_profile("few", REPEATABLE, max_examples=10)
settings.register_profile("many", REPEATABLE, max_examples=40)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "few"))

# Until when tests that take minutes may begin (seconds since the epoch); after it they are skipped, by name.
UNTIL = float(os.environ.get("TESTS_BEGIN_UNTIL", "inf"))

# What is being tested, for the hook below.
running = []


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Give each test the marks that follow from others."""
    for item in items:
        for marker in item.iter_markers("slow_but"):
            if not any(fnmatch.fnmatchcase(item.callspec.id, pattern) for pattern in marker.args):
                item.add_marker("slow")
        if "walkthrough_run" in item.fixturenames:
            item.add_marker("processes")


def _no_unmarked_process(event, arguments):
    """Fails the test that starts Python unmarked; where a fixture of several tests does, the first of them."""
    if event != "subprocess.Popen" or sys.executable not in (arguments[0], *arguments[1][:1]):
        return
    if running and running[0].get_closest_marker("processes") is None:
        raise AssertionError(f"{running[0].nodeid} starts Python: mark it as one of `processes`")


sys.addaudithook(_no_unmarked_process)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Tell the hook which test runs."""
    running[:] = [item]
    try:
        return (yield)
    finally:
        running.clear()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item):
    """As :func:`pytest_runtest_call`, for fixtures."""
    if time.time() > UNTIL and item.get_closest_marker("long"):
        pytest.skip("no time was left for it")
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
    importlib.import_module("tfprivacy_lab.mpc.runtime.library")


def walkthrough_command(out, *options):
    """The command line of a small walkthrough."""
    return [sys.executable, "-m", "tfprivacy_lab", "walkthrough", "--out", str(out), "--fast", *options]


@pytest.fixture(scope="session")
def walkthrough_run(tmp_path_factory):
    """(folder, finished process) of an uninterrupted ``walkthrough --fast``; xdist's workers share one."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    out, told = shared / "walk" / "a run", shared / "walk.json"
    with open(shared / "walk.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not told.exists():
            command = walkthrough_command(out)
            done = subprocess.run(command, capture_output=True, text=True, timeout=800, check=False)
            told.write_text(json.dumps([done.returncode, done.stdout, done.stderr]))
    done = subprocess.CompletedProcess(walkthrough_command(out), *json.loads(told.read_text()))
    assert done.returncode == 0, done.stderr
    return out, done
