"""Parties as processes: results, certificates, and one clear line when another dies, lies or is a stranger."""

import contextlib
import dataclasses
import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from tests.mpc.groups import SECRET, Group, ended, listening, one_line
from tfprivacy_lab import mpc, mpc_commands
from tfprivacy_lab.checks import InputError
from tfprivacy_lab.mpc.certificates import Credentials, make_certificates


def test_processes_with_certificates_give_the_simulations_result_log_no_secret_and_expose_no_port(tmp_path):
    group = Group(tmp_path, tls=True)
    processes = {name: group.start(name) for name in group.world.parties}
    for line in processes["alice"].stderr:
        if line.startswith("step 1 "):
            break
    # Both engines run: a push under another's name reaches neither, as there is no port to send it to.
    assert {name: listening(process) for name, process in processes.items()} == {"alice": [], "bob": []}
    done = {name: ended(process) for name, process in processes.items()}
    assert {code for code, _, _ in done.values()} == {0}, done
    simulated = mpc.simulate(group.job, group.data)
    found = np.load(tmp_path / "bob.out.npz")
    assert found["weight.0"] == pytest.approx(simulated.outcomes["bob"].weights[0], abs=1e-4)
    assert not any(name.startswith("weight") for name in np.load(tmp_path / "alice.out.npz").files)
    assert stat.S_IMODE(os.stat(tmp_path / "bob.out.npz").st_mode) == 0o600
    for _, out, err in done.values():
        assert str(SECRET)[:6] not in out + err
        assert "bytes_sent" in out
    assert "order of rows not compared" in done["bob"][2]


def test_killed_midway_the_other_says_so_and_ends(tmp_path):
    group = Group(tmp_path, steps=20_000)
    alice, bob = group.start("alice"), group.start("bob")
    for line in alice.stderr:
        if line.startswith("step 20 "):
            break
    os.kill(bob.pid, signal.SIGKILL)
    killed = time.monotonic()
    one_line(alice, "bob is gone")
    assert time.monotonic() - killed < 10
    bob.communicate()
    assert not (tmp_path / "alice.out.npz").exists()


@pytest.mark.slow
def test_stopped_midway_the_other_does_not_hang(tmp_path):
    group = Group(tmp_path, steps=20_000)
    alice, bob = group.start("alice"), group.start("bob")
    for line in alice.stderr:
        if line.startswith("step 20 "):
            break
    os.kill(bob.pid, signal.SIGSTOP)
    try:
        one_line(alice, "bob fell silent")
    finally:
        bob.kill()
        bob.communicate()


@pytest.mark.slow
def test_data_of_another_shape_is_told_to_the_others(tmp_path):
    group = Group(tmp_path)
    wrong = {"x": np.zeros((3, 1)), "y": np.zeros((4, 1))}
    alice, bob = group.start("alice"), group.start("bob", data=wrong)
    one_line(bob, "Expected x of shape (4, 1)")
    one_line(alice, "bob gave up: Expected x of shape (4, 1)")


LIE = """
from tfprivacy_lab.mpc import engine
share = engine.Engine.share
def lie(self, name, owner, value, shape):
    share(self, name, owner, None if value is None else value[:3], shape)
engine.Engine.share = lie
"""


def test_a_liar_about_shapes_is_caught_by_what_arrives(tmp_path):
    """Bob's own checks are switched off: he agrees on four rows and shares three."""
    group = Group(tmp_path)
    alice, bob = group.start("alice"), group.start("bob", prelude=f"exec({LIE!r})")
    one_line(alice, "bob sent shape (3, 1) for x.bob, agreed was (4, 1)")
    ended(bob)


@pytest.mark.parametrize(
    ("change", "naming"),
    [
        ({"world": mpc.World("cheetah", ("alice", "bob"))}, "bob runs another job: world."),
        pytest.param({"reveal_weights": ("alice", "bob")}, "another job: reveal_weights", marks=pytest.mark.slow),
    ],
)
def test_another_protocol_or_job_is_named(tmp_path, change, naming):
    group = Group(tmp_path)
    alice, bob = group.start("alice"), group.start("bob", job=dataclasses.replace(group.job, **change))
    one_line(alice, naming)
    one_line(bob, "alice runs another job")


@pytest.mark.slow
def test_no_certificate_no_run(tmp_path):
    group = Group(tmp_path, tls=True)
    alice, bob = group.start("alice", more=("--join-seconds", "10")), group.start("bob", certificates=False)
    one_line(alice, "has no certificate of this group")
    code, _, err = ended(bob)
    assert code == 2
    assert "alice" in err


def test_addresses_beyond_this_machine_need_certificates():
    job, data = mpc_commands.listing_job(mpc.World("cheetah", ("alice", "bob")))
    with pytest.raises(InputError, match="certificates"):
        mpc.run_party(job, "alice", data["alice"], {"alice": ("127.0.0.1", 1), "bob": ("192.0.2.1", 1)})


def test_certificate_folders_are_private_and_never_overwritten(tmp_path):
    folders = make_certificates(("alice", "bob"), tmp_path / "c", days=2)
    assert [os.path.basename(folder) for folder in folders] == ["alice", "bob"]
    assert stat.S_IMODE(os.stat(tmp_path / "c" / "alice" / "private_key.pem").st_mode) == 0o600
    assert sorted(os.listdir(tmp_path / "c")) == ["alice", "bob"]  # The authority's key is nowhere.
    with pytest.raises(InputError, match="already"):
        make_certificates(("alice",), tmp_path / "c")
    with pytest.raises(InputError, match="different names"):
        make_certificates(("a b",), tmp_path / "d")
    (tmp_path / "c" / "bob" / "private_key.pem").unlink()
    with pytest.raises(InputError, match="private_key"):
        Credentials.of_folder(tmp_path / "c" / "bob")


@pytest.mark.parametrize("arguments", [[], ["--processes", "--tls"]])
def test_listing_command_from_a_cold_start(arguments):
    command = [sys.executable, "-m", "tfprivacy_lab", "mpc", "listing", "--protocol", "aby3", "--json", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert np.ravel(found["kernel"]) == pytest.approx([0.8950, -0.0513], abs=1e-3)
    assert found["bias"] == pytest.approx([0.0927], abs=1e-3)
    assert found["prediction"] == pytest.approx(0.5146, abs=1e-3)
    assert {"protocol", "bytes_sent", "seconds"} <= set(found)


LAUNCHED = """
import sys
import numpy as np
from tfprivacy_lab import mpc, mpc_commands
job, data = mpc_commands.listing_job(mpc.World("cheetah", ("alice", "bob")))
mpc.launch(job, {name: one | {"unused": np.full(50_000, 0.731)} for name, one in data.items()}, tls=True)
"""


def children(pid):
    """Processes that a process started."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{pid}/children") as stream:
        return [int(one) for one in stream.read().split()]
    return []


def test_a_killed_launch_takes_its_parties_with_it_and_leaves_no_data(tmp_path):
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    launched = subprocess.Popen([sys.executable, "-c", LAUNCHED], env=environment, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while len(parties := children(launched.pid)) < 2:
        assert time.monotonic() < deadline
        assert launched.poll() is None, launched.stderr.read()
    launched.kill()
    launched.communicate()
    while any(os.path.exists(f"/proc/{pid}") for pid in parties):
        assert time.monotonic() < deadline
        threading.Event().wait(0.02)
    assert [file for _, _, found in os.walk(tmp_path) for file in found] == []
