"""Parties as processes: results, certificates, and one clear line when another dies, lies or is a stranger."""

import contextlib
import dataclasses
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from tfprivacy_lab import files, mpc, mpc_commands
from tfprivacy_lab.checks import InputError
from tfprivacy_lab.mpc.certificates import Credentials, make_certificates
from tfprivacy_lab.mpc.links import MAGIC, Control, PartyError

SEMI2K = mpc.World("semi2k", ("alice", "bob"), "alice")
SECRET = 0.7310585786300049


def free_ports(count):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in sockets]


class Group:
    """A job, each party's file, and processes to start."""

    def __init__(self, folder, world=SEMI2K, steps=10, tls=False, rows=4):
        self.folder, self.world = folder, world
        rng = np.random.default_rng(0)
        x = rng.uniform(0, 0.5, (rows, 2))
        x[0, 0] = SECRET
        self.data = {name: {} for name in world.parties}
        self.data["alice"] = {"x": x[:, :1]}
        self.data["bob"] = {"x": x[:, 1:], "y": (x.sum(1) > 0.5).astype(float)[:, None]}
        self.job = mpc.Job(
            world=world,
            layers=(mpc.Layer(1, "sigmoid"),),
            features={"alice": (rows, 1), "bob": (rows, 1)},
            labels=("bob",),
            weights=[[[0.3], [-0.2]], [0.1]],
            training=mpc.Training("binary_crossentropy", 0.1, steps),
            reveal_weights=("bob",),
        )
        ports = free_ports(len(world.parties))
        self.addresses = ",".join(f"{n}=127.0.0.1:{p}" for n, p in zip(world.parties, ports, strict=True))
        if tls:
            make_certificates(world.parties, folder / "certificates")
        self.tls = tls

    def start(self, name, job=None, data=None, certificates=True, prelude=""):
        """The process of one party; ``prelude`` is what a dishonest one does to its own program first."""
        path = self.folder / f"{name}.json"
        (job or self.job).save(path)
        files.write_private_arrays(self.folder / f"{name}.npz", **(self.data[name] if data is None else data))
        code = f"import sys; {prelude}\nfrom tfprivacy_lab.cli import main; sys.exit(main(sys.argv[1:]))"
        command = [sys.executable, "-c", code, "mpc", "party", "--job", path, "--me", name]
        command += ["--data", self.folder / f"{name}.npz", "--addresses", self.addresses]
        command += ["--out", self.folder / f"{name}.out.npz"]
        if self.tls and certificates:
            command += ["--certificates", self.folder / "certificates" / name]
        return subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(process, seconds=60):
    """(exit code, stdout, stderr) of a process that must end by itself."""
    try:
        out, err = process.communicate(timeout=seconds)
    finally:
        process.kill()
    return process.returncode, out, err


def one_line(process, naming, seconds=60):
    """A party that was told: exit code 2, one line on stderr besides its progress, nothing written."""
    code, out, err = ended(process, seconds)
    lines = [line for line in err.splitlines() if not line.startswith("step ")]
    assert (code, out) == (2, ""), err
    assert len(lines) == 1, err
    assert naming in lines[0]


def test_processes_with_certificates_give_the_simulations_result_and_log_no_secret(tmp_path):
    group = Group(tmp_path, tls=True)
    processes = {name: group.start(name) for name in group.world.parties}
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
    alice, bob = group.start("alice"), group.start("bob", certificates=False)
    one_line(alice, "has no certificate of this group")
    code, _, err = ended(bob)
    assert code == 2
    assert "alice" in err


def control(group, name, folder=None):
    addresses = {}
    for part in group.addresses.split(","):
        who, _, address = part.partition("=")
        addresses[who] = ("127.0.0.1", int(address.rpartition(":")[2]))
    credentials = None if folder is None else Credentials.of_folder(folder)
    return Control(name, group.world.ranks, addresses, credentials)


def meet(first, second, **changes):
    """Errors of two ends that join, by name; None for no error."""
    errors = {}

    def join(end, **hello):
        try:
            end.join(**{"job": {"a": 1}, "code": "c", "engine": "e", "seconds": 5.0, **hello})
            errors[end.me] = None
        except PartyError as error:
            errors[end.me] = str(error)

    thread = threading.Thread(target=join, args=(first,))
    thread.start()
    join(second, **changes)
    thread.join()
    first.close()
    second.close()
    return errors


def test_certificate_of_another_group_or_another_party_is_refused(tmp_path):
    group = Group(tmp_path, tls=True)
    make_certificates(("alice", "bob"), tmp_path / "other")
    mine = tmp_path / "certificates"
    assert meet(control(group, "alice", mine / "alice"), control(group, "bob", mine / "bob")) == {
        "alice": None,
        "bob": None,
    }
    strange = meet(control(group, "alice", mine / "alice"), control(group, "bob", tmp_path / "other" / "bob"))
    assert "no certificate of this group" in strange["alice"]
    without = meet(control(group, "alice", mine / "alice"), control(group, "bob"))
    assert "no certificate of this group" in without["alice"]
    assert "alice" in without["bob"]
    # Alice's own certificate, shown by someone who says it is Bob.
    posing = meet(control(group, "alice", mine / "alice"), control(group, "bob", mine / "alice"))
    assert posing["alice"] == "bob shows the certificate of alice."


def test_what_differs_is_noticed_by_both_and_told_to_a_third(tmp_path):
    group = Group(tmp_path)
    jobs = meet(control(group, "alice"), control(group, "bob"), job={"a": 2})
    assert jobs == {
        "alice": "bob runs another job: a is 2 there and 1 here.",
        "bob": "alice runs another job: a is 1 there and 2 here.",
    }
    refused = meet(control(group, "alice"), control(group, "bob"), refusal="no data")
    assert refused["alice"] == "bob gave up: no data"
    errors = meet(control(group, "alice"), control(group, "bob"), code="other")
    assert "other programs" in errors["alice"]
    assert "other programs" in errors["bob"]


@pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.1\r\n\r\n", b"\x02\x00\x00\x00{}", b"\x01\x00\x00\x00x"])
def test_strangers_at_the_port_are_refused_in_words(tmp_path, said):
    group = Group(tmp_path)
    alice, errors = control(group, "alice"), []

    def join():
        try:
            alice.join({"a": 1}, "c", "e", 5.0)
        except PartyError as error:
            errors.append(str(error))

    thread = threading.Thread(target=join)
    thread.start()
    port = int(group.addresses.split(",")[0].rpartition(":")[2])
    deadline = time.monotonic() + 5
    while True:
        try:
            stranger = socket.create_connection(("127.0.0.1", port))
            break
        except OSError:
            assert time.monotonic() < deadline
    with stranger:
        stranger.sendall(said)
        stranger.shutdown(socket.SHUT_WR)
        thread.join(10)
    assert len(errors) == 1
    assert MAGIC in errors[0] or "gone" in errors[0]


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
