"""Where a number comes from, in a checkout, in a changed one, and without git."""

import importlib.metadata
import json
import platform
import subprocess

import pytest

from tfprivacy_lab import provenance


def git(folder, *arguments):
    identity = ["-c", "user.name=T", "-c", "user.email=t@example.org"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A repository of its own, in which the module believes to stand."""
    root = tmp_path / "a checkout"
    (root / "tfprivacy_lab").mkdir(parents=True)
    (root / "tfprivacy_lab" / "provenance.py").write_text("x")
    git(tmp_path, "init", "-q", str(root))
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "Start")
    monkeypatch.setattr(provenance, "__file__", str(root / "tfprivacy_lab" / "provenance.py"))
    return root


def test_commit_is_the_head_and_a_plus_if_files_differ(checkout):
    head = git(checkout, "rev-parse", "HEAD")
    assert len(head) == 40
    assert provenance.commit() == head
    (checkout / "notes.txt").write_text("not tracked")
    assert provenance.commit() == head
    (checkout / "tfprivacy_lab" / "provenance.py").write_text("changed")
    assert provenance.commit() == head + "+"
    git(checkout, "commit", "-qam", "Change")
    assert provenance.commit() == git(checkout, "rev-parse", "HEAD") != head


def test_no_commit_outside_a_checkout(tmp_path, monkeypatch):
    """Even if a folder above is someone's repository."""
    git(tmp_path, "init", "-q", str(tmp_path))
    package = tmp_path / "site-packages" / "tfprivacy_lab"
    package.mkdir(parents=True)
    monkeypatch.setattr(provenance, "__file__", str(package / "provenance.py"))
    assert provenance.commit() is None


def test_no_commit_without_git_or_from_a_broken_one(checkout, monkeypatch, tmp_path):
    with monkeypatch.context() as without:
        without.setenv("PATH", str(tmp_path))
        assert provenance.commit() is None
    (checkout / ".git" / "HEAD").write_text("nonsense")
    assert provenance.commit() is None


def test_a_git_that_hangs_is_left(checkout, monkeypatch):
    def hang(command, **options):
        raise subprocess.TimeoutExpired(command, options["timeout"])

    monkeypatch.setattr(subprocess, "run", hang)
    assert provenance.commit() is None


def test_versions_are_the_installed_ones(monkeypatch):
    found = provenance.versions()
    assert found["python"] == platform.python_version()
    for name in ("tensorflow", "tensorflow-privacy", "dp-accounting", "numpy", "Pyfhel"):
        assert found[name] == importlib.metadata.version(name)
    monkeypatch.setattr(provenance, "_PACKAGES", ("numpy", "no-such-package"))
    assert list(provenance.versions()) == ["python", "numpy"]


def test_hardware_counts_what_this_process_may_use(monkeypatch):
    assert "\n" not in provenance.hardware()
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 3, 5})
    monkeypatch.setattr("os.sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 2**21}.__getitem__)
    monkeypatch.setattr(provenance, "_processor", lambda: "CPU X")
    assert provenance.hardware() == f"CPU X, 3 cores, 8 GiB, {platform.system()} {platform.machine()}"


def test_processor_is_named_without_proc(monkeypatch):
    def absent(path):
        raise FileNotFoundError(path)

    monkeypatch.setattr("pathlib.Path.read_text", absent)
    monkeypatch.setattr(platform, "processor", lambda: "")
    assert provenance._processor() == "unknown processor"


def test_provenance_is_json():
    found = provenance.provenance()
    assert json.loads(json.dumps(found)) == found
    assert set(found) == {"commit", "versions", "hardware", "instructions"}
