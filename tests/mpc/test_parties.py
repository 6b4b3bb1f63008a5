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
import tempfile
import threading
import time
import types

import numpy as np
import pytest

from tests.mpc.groups import SECRET, Group, ended, free_ports, listening, one_line
from tfprivacy_lab import files, mpc
from tfprivacy_lab.checks import InputError
from tfprivacy_lab.cli import mpc as mpc_commands
from tfprivacy_lab.cli.command import main
from tfprivacy_lab.mpc import parties, processes
from tfprivacy_lab.mpc.transport.certificates import Credentials, make_certificates, make_pems
from tfprivacy_lab.mpc.transport.links import Control, PartyError

pytestmark = pytest.mark.processes


def test_processes_with_certificates_give_the_simulations_result_log_no_secret_and_expose_no_port(tmp_path):
    group = Group(tmp_path, tls=True)
    processes = {name: group.start(name) for name in group.world.parties}
    for line in processes["alice"].stderr:
        if line.startswith("step 1 "):
            break
    # Both engines run: a push under another's name reaches neither, as there is no port to send it to.
    assert {name: listening(process) for name, process in processes.items()} == {"alice": [], "bob": []}
    # This process has a port, and is seen to have it.
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert f"0100007F:{server.getsockname()[1]:04X}" in listening(types.SimpleNamespace(pid=os.getpid()))
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


@pytest.mark.slow
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


@pytest.mark.long
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


@pytest.mark.long
def test_data_of_another_shape_is_told_to_the_others(tmp_path):
    group = Group(tmp_path)
    wrong = {"x": np.zeros((3, 1)), "y": np.zeros((4, 1))}
    alice, bob = group.start("alice"), group.start("bob", data=wrong)
    one_line(bob, "Expected x of shape (4, 1)")
    one_line(alice, "bob gave up: its x does not fit what was agreed")


def run_alone(data, **changes):
    """What Alice is told of her own data, and what Bob, who is there and computes nothing, hears of it."""
    job, _ = mpc_commands.listing_job(mpc.World("cheetah", ("alice", "bob")))
    job = dataclasses.replace(job, **changes)
    where = dict(zip(("alice", "bob"), (("127.0.0.1", port) for port in free_ports(["127.0.0.1"] * 2)), strict=True))
    said = {}

    def alice():
        try:
            mpc.run_party(job, "alice", data, where)
        except InputError as error:
            said["alice"] = str(error)

    thread = threading.Thread(target=alice)
    thread.start()
    with pytest.raises(PartyError) as heard:
        Control("bob", job.world.ranks, where, None).join(json.loads(job.to_json()), "none", 60)
    thread.join(60)
    return said["alice"], str(heard.value)


@pytest.mark.parametrize(
    ("changes", "array", "line"),
    [
        ({}, "ids", "Expected ids to hold 4 texts or whole numbers"),
        ({"initial": "shares", "weights": None, "weight_range": 8.0}, "kernel_0", "Expected kernel_0 to be a share"),
    ],
)
@pytest.mark.usefixtures("engine")
def test_others_hear_what_the_command_refuses(tmp_path, capsys, changes, array, line):
    """Ids that are not one for each row, and a damaged share."""
    job, _ = mpc_commands.listing_job(mpc.World("cheetah", ("alice", "bob")))
    job = dataclasses.replace(job, **changes, arithmetic=mpc.FixedPoint(64, 20))
    job.save(tmp_path / "job.json")
    arrays = {"x": X, "query": np.zeros((1, 1)), "ids": np.arange(3), "kernel_0": np.zeros(9, np.uint8)}
    files.write_private_arrays(tmp_path / "alice.npz", **arrays)
    where = dict(zip(("alice", "bob"), (("127.0.0.1", port) for port in free_ports(["127.0.0.1"] * 2)), strict=True))
    addresses = ",".join(f"{name}={host}:{port}" for name, (host, port) in where.items())
    command = ["mpc", "party", "--job", tmp_path / "job.json", "--me", "alice", "--data", tmp_path / "alice.npz"]
    command, codes = [*command, "--addresses", addresses, "--out", tmp_path / "out.npz"], []
    thread = threading.Thread(target=lambda: codes.append(main(list(map(str, command)))))
    thread.start()
    with pytest.raises(PartyError, match=f"^alice gave up: its {array} does not fit what was agreed$"):
        Control("bob", job.world.ranks, where, None).join(json.loads(job.to_json()), "none", 20)
    thread.join(60)
    assert codes == [2]
    assert line in capsys.readouterr().err


X = np.zeros((4, 1))


@pytest.mark.parametrize(
    ("data", "own", "array"),
    [
        ({"x": np.where(np.arange(4)[:, None] == 2, np.inf, X)}, "index (2, 0)", "x"),
        ({"x": X, "query": [[SECRET + 1]]}, "Expected query within the agreed range", "query"),
        ({"x": np.ma.masked_equal([[1.0], [0.5], [0], [0]], 0.5), "query": [[0]]}, "masked", "x"),
        ({"x": X, "query": [[0], [0, 1]]}, "Expected query to be an array", "query"),
        ({"x": X, "query": [[0]], "ids": ["a"]}, "Expected ids to hold 4", "ids"),
        (None, "Expected the data of alice to be a mapping", "data"),
    ],
)
@pytest.mark.usefixtures("engine")
def test_what_is_wrong_with_a_partys_data_is_for_its_own_eyes(data, own, array):
    said, heard = run_alone(data)
    assert own in said
    assert heard == f"alice gave up: its {array} does not fit what was agreed"


@pytest.mark.parametrize(
    ("data", "naming"),
    [
        ({"x": np.ma.masked_equal([[0.7], [0.5], [0], [0]], 0.7)}, "alice: Expected x without masked values"),
        ({"x": [[1], [0], [1, 0], [1]]}, "alice: Expected x to be an array"),
        ({"x": np.array([[1], [0], [None], [1]])}, "alice: Expected x to hold real numbers"),
        ({"x": X, "query": np.array([["a"]], object)}, "alice: Expected query to hold real numbers"),
        ({"x": X, "query": [[0]], "ids": np.array([1, None, 2, 3])}, "Expected ids to hold 4"),
        (None, "Expected data to map alice to what it has, got None"),
    ],
)
@pytest.mark.parametrize("run", [mpc.launch, mpc.simulate])
@pytest.mark.usefixtures("engine")
def test_data_are_checked_before_any_process_is_started(monkeypatch, run, data, naming):
    monkeypatch.setattr(processes, "subprocess", None)
    job, good = mpc_commands.listing_job(mpc.World("cheetah", ("alice", "bob")))
    with pytest.raises(InputError, match=f"^{naming}"):
        run(job, {**good, "alice": data})
    for wrong, line in (
        ({**good, "dave": {}}, "of parties"),
        (list(good.values()), "to map parties to what they have"),
    ):
        with pytest.raises(InputError, match=f"^Expected data {line}"):
            run(job, wrong)


def test_addresses_are_read_or_refused():
    assert mpc_commands._addresses("alice=h:1, bob=[2001:db8::7]:65535,c=[::1]:9") == {
        "alice": ("h", 1),
        "bob": ("2001:db8::7", 65535),
        "c": ("::1", 9),
    }
    assert mpc_commands._address("listen", " 0.0.0.0:9000 ") == ("0.0.0.0", 9000)


@pytest.mark.parametrize(
    ("text", "echoed"),
    [
        ("alice=h:1,alice=h:2", "'alice=h:2'"),
        ("=h:1", "'=h:1'"),
        ("alice=h:1,", "''"),
        ("alice", "''"),
        ("alice=h", "'h'"),
        ("alice=:1", "':1'"),
        ("alice=h:0", "'h:0'"),
        ("alice=h:65536", "'h:65536'"),
        ("alice=h:-1", "'h:-1'"),
        ("alice=h:\u0661", "'h:\u0661'"),
        ("alice=[]:1", r"'\[\]:1'"),
    ],
)
def test_what_is_no_address_of_the_command_is_refused(text, echoed):
    with pytest.raises(InputError, match=f"Expected addresses .*, got {echoed}"):
        mpc_commands._addresses(text)


def test_an_output_that_cannot_be_written_is_refused_before_the_meeting(tmp_path, monkeypatch, capsys):
    group = Group(tmp_path)
    group.job.save(tmp_path / "job.json")
    files.write_private_arrays(tmp_path / "alice.npz", **group.data["alice"])
    monkeypatch.setattr(parties, "run_party", None)
    (tmp_path / "file").write_text("")
    given = ["--job", tmp_path / "job.json", "--me", "alice", "--data", tmp_path / "alice.npz"]
    for out in (tmp_path, tmp_path / "file" / "out.npz", tmp_path / ("n" * 300), "/proc/no/out.npz"):
        command = ["mpc", "party", *given, "--addresses", group.addresses, "--out", out]
        assert main(list(map(str, command))) == 2
        assert f"Cannot write {out}" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alice.npz", "file", "job.json"]


LIE = """
from tfprivacy_lab.mpc.runtime import engine
share = engine.Engine.share
def lie(self, name, owner, value, shape):
    share(self, name, owner, None if value is None else value[:3], shape)
engine.Engine.share = lie
"""


@pytest.mark.slow
def test_a_liar_about_shapes_is_caught_by_what_arrives(tmp_path):
    """Bob's own checks are switched off: he agrees on four rows and shares three."""
    group = Group(tmp_path)
    alice, bob = group.start("alice"), group.start("bob", prelude=f"exec({LIE!r})")
    one_line(alice, "bob sent shape (3, 1) for x.bob, agreed was (4, 1)")
    ended(bob)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "naming"),
    [
        ({"world": mpc.World("cheetah", ("alice", "bob"))}, "bob runs another job: world."),
        pytest.param({"reveal_weights": ("alice", "bob")}, "another job: reveal_weights", marks=pytest.mark.long),
    ],
)
def test_another_protocol_or_job_is_named(tmp_path, change, naming):
    group = Group(tmp_path)
    alice, bob = group.start("alice"), group.start("bob", job=dataclasses.replace(group.job, **change))
    one_line(alice, naming)
    one_line(bob, "alice runs another job")


@pytest.mark.long
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


@pytest.mark.slow_but("arguments0")
@pytest.mark.parametrize("arguments", [[], ["--processes", "--tls"]])
@pytest.mark.usefixtures("engine")
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
import dataclasses
from tfprivacy_lab import mpc
from tfprivacy_lab.cli import mpc as mpc_commands
job, data = mpc_commands.listing_job(mpc.World("cheetah", ("alice", "bob")))
mpc.launch(dataclasses.replace(job, training=mpc.Training("sum_of_squares", 1e-3, 1500)), data, tls=True)
"""


def children(pid):
    """Processes that a process started."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{pid}/children") as stream:
        return [int(one) for one in stream.read().split()]
    return []


def engines_connected(folder):
    """Whether both parties' sockets have come and gone: only while engines connect there is a way to them."""
    seen = set()

    def look():
        now = {entry for entry in os.listdir(folder) if entry.startswith("tfprivacy_lab_mpc_") and entry not in logs}
        logs.update(entry for entry in now if os.path.exists(os.path.join(folder, entry, "engine.log")))
        seen.update(now - logs)
        return len(seen) == 2 and not now

    logs = set()
    return look


@pytest.fixture
def folder(monkeypatch):
    """Where temporary files go: a name that leaves room for a socket's, which those of pytest's folders may not."""
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        monkeypatch.setenv("TMPDIR", folder)
        yield folder


@pytest.mark.parametrize("when", ["at the start", pytest.param("midway", marks=pytest.mark.long)])
@pytest.mark.usefixtures("engine")
def test_a_killed_launch_takes_its_parties_with_it_and_leaves_nothing(folder, when):
    launched = subprocess.Popen([sys.executable, "-c", LAUNCHED], stderr=subprocess.PIPE)
    deadline, connected = time.monotonic() + 180, engines_connected(folder)
    while len(processes := children(launched.pid)) < 2 or (when == "midway" and not connected()):
        assert time.monotonic() < deadline
        assert launched.poll() is None, launched.stderr.read()
        threading.Event().wait(0.002)
    launched.kill()
    launched.communicate()
    while any(os.path.exists(f"/proc/{pid}") for pid in processes):
        assert time.monotonic() < deadline
        threading.Event().wait(0.02)
    # What this process itself has in memory as functions, TensorFlow may have left: it was killed.
    left = [one for one in os.listdir(folder) if not one.startswith("__autograph_generated_file")]
    assert left == []


@pytest.mark.slow
@pytest.mark.usefixtures("engine")
def test_a_launch_reads_long_reports_and_leaves_no_file_and_no_socket(folder):
    """Each report is longer than a pipe or a socket holds."""
    columns = 200_000
    world = mpc.World("cheetah", ("alice", "bob"))
    features = dict.fromkeys(world.parties, (1, columns))
    job = mpc.Job(world=world, layers=(), features=features, reveal_predictions=world.parties)
    vectors = np.random.default_rng(0).uniform(-1, 1, (2, 1, columns))
    data = {name: {"x": x} for name, x in zip(world.parties, vectors, strict=True)}
    run = mpc.launch(job, data, tls=True)
    for outcome in run.outcomes.values():
        assert outcome.predictions.nbytes > 64_000
        assert outcome.predictions == pytest.approx(vectors.sum(0)[0], abs=1e-4)
    assert os.listdir(folder) == []


@pytest.mark.usefixtures("engine")
def test_a_child_that_ends_before_it_reads_is_named_and_the_others_are_taken_down(monkeypatch):
    """What it is asked stays in this process, in a buffer that closing would write once more."""
    started = []

    def start(_, **streams):
        started.append(subprocess.Popen(["sleep", "60"] if started else ["false"], **streams))
        if len(started) == 1:
            started[0].wait()
        return started[-1]

    monkeypatch.setattr(processes, "subprocess", types.SimpleNamespace(Popen=start, PIPE=subprocess.PIPE))
    monkeypatch.setattr(processes, "_wait", lambda children, seconds: list(children))
    job = mpc.Job(world=mpc.World("cheetah", ("alice", "bob")), features={"alice": (1, 1)})
    with pytest.raises(PartyError, match="alice: its process ended with code 1"):
        mpc.launch(job, {"alice": {"x": [[1.0]]}})
    assert [one.returncode for one in started] == [1, -signal.SIGKILL]


def test_keys_of_a_launch_are_in_no_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    pems = make_pems(("alice", "bob"))
    with Credentials.of_pems(pems["alice"]) as credentials:
        loaded = credentials.loaded()
    assert [one["subject"][0][0][1] for one in loaded.client.get_ca_certs()] == ["tfprivacy_lab group"]
    mixed = pems["alice"] | {"private_key": pems["bob"]["private_key"]}
    with Credentials.of_pems(mixed) as credentials, pytest.raises(InputError, match="with its key"):
        credentials.loaded()
