"""Parties on addresses of their own, with certificates: strangers knock, one is slow, silent or stands still.

What is slow or long has a test without processes in ``test_links``.
"""

import contextlib
import dataclasses
import socket
import threading
import time

import numpy as np
import pytest

from tests.mpc.groups import Group, ended, one_line
from tests.mpc.transport.test_links import FORGED, knock, reset
from tfprivacy_lab import mpc

pytestmark = pytest.mark.processes

ABY3 = mpc.World("aby3", ("alice", "bob", "carol"))
HOSTS = ("127.0.0.2", "127.0.0.3", "127.0.0.4")


@pytest.fixture
def group(tmp_path):
    return Group(tmp_path, ABY3, tls=True, hosts=HOSTS)


def check_result(group):
    """All three ended well, and Bob has learnt what the simulation gives."""
    expected = mpc.simulate(group.job, group.data).outcomes["bob"].weights
    with np.load(group.folder / "bob.out.npz") as found:
        for number, weight in enumerate(expected):
            assert found[f"weight.{number}"] == pytest.approx(weight, abs=1e-4)


@pytest.mark.slow
def test_a_thousand_strangers_and_forged_pushes_change_no_result(group):
    """They come while two parties gather, many reset, some stay silent to the end; a third party comes late."""
    processes = {name: group.start(name) for name in ("alice", "bob")}
    with contextlib.ExitStack() as silent:
        for number in range(1000):
            connection = silent.enter_context(knock(group.where[("alice", "bob")[number % 2]]))
            with contextlib.suppress(OSError):
                connection.sendall((b"", FORGED, b"\x16\x03\x01", b"\0" * 64)[number // 2 % 4])
            if number < 900:
                (reset if number // 8 % 2 else socket.socket.close)(connection)
        processes["carol"] = group.start("carol")
        done = {name: ended(process) for name, process in processes.items()}
    assert {name: code for name, (code, _, _) in done.items()} == dict.fromkeys(processes, 0), done
    for _, _, err in done.values():
        assert [line for line in err.splitlines() if not line.startswith(("step ", "order of rows"))] == []
    check_result(group)


SLOW = """
import time
from tfprivacy_lab.mpc.transport import peers
send = peers.Peer.send_frame
def slow(self, kind, channel, body=b""):
    time.sleep(0.02)
    send(self, kind, channel, body)
peers.Peer.send_frame = slow
"""


@pytest.mark.long
def test_a_slow_party_makes_it_slow_and_nothing_else(group):
    processes = [group.start(name, prelude=f"exec({SLOW!r})" if name == "carol" else "") for name in ABY3.parties]
    assert [ended(process, 180)[0] for process in processes] == [0, 0, 0]
    check_result(group)


STANDS_STILL = """
import threading
from tfprivacy_lab.mpc.runtime import engine
run, count = engine.Engine.run, iter(range(100))
def stand(self, *arguments):
    if next(count) == 5:
        threading.Event().wait()
    run(self, *arguments)
engine.Engine.run = stand
"""


@pytest.mark.slow
def test_a_party_that_is_there_and_makes_no_progress_is_not_waited_for_for_ever(group):
    """Its heart beats; its engine sends nothing."""
    names, more = ABY3.parties, ("--wait-seconds", "4")
    processes = {
        name: group.start(name, prelude=f"exec({STANDS_STILL!r})" if name == "carol" else "", more=more)
        for name in names
    }
    for line in processes["alice"].stderr:
        if line.startswith("step 4 "):
            break
    begun = time.monotonic()
    told = {name: ended(processes[name]) for name in names}
    assert time.monotonic() - begun < 15
    assert {code for code, _, _ in told.values()} == {2}, told
    for name, (_, out, err) in told.items():
        lines = [line for line in err.splitlines() if not line.startswith(("step ", "order of rows"))]
        assert (out, len(lines)) == ("", 1), err
        assert "sent nothing within the 4 s of wait_seconds" in lines[0], err
        assert not (group.folder / f"{name}.out.npz").exists()


@pytest.mark.long
def test_a_party_that_has_the_columns_in_another_order_is_named_by_all(group):
    other = dataclasses.replace(group.job, holders=("bob", "alice"))
    processes = {name: group.start(name, other if name == "carol" else None) for name in ABY3.parties}
    one_line(processes["alice"], "carol runs another job: holders")
    one_line(processes["bob"], "carol runs another job: holders")
    one_line(processes["carol"], "runs another job: holders")


@pytest.mark.long
def test_a_silent_party_is_named(group):
    """Something listens at Alice's address and says nothing."""
    with socket.create_server(group.where["alice"]) as silent:
        threading.Thread(target=lambda: [silent.accept() for _ in range(99)], daemon=True).start()
        processes = {name: group.start(name, more=("--join-seconds", "6")) for name in ("bob", "carol")}
        knock(group.where["bob"]).close()
        knock(group.where["carol"]).close()
        begun = time.monotonic()
        one_line(processes["bob"], "alice")
        one_line(processes["carol"], "alice")
        assert time.monotonic() - begun < 20
