"""Meeting, and what the connections carry: strangers, forgers, large jobs, other rows. No engine and no process."""

import contextlib
import json
import os
import socket
import ssl
import struct
import tempfile
import threading
import time
import warnings

import numpy as np
import pytest

from tfprivacy_lab import mpc
from tfprivacy_lab.checks import InputError, RowOrderWarning
from tfprivacy_lab.mpc import parties
from tfprivacy_lab.mpc.jobs import row_ids
from tfprivacy_lab.mpc.transport import links
from tfprivacy_lab.mpc.transport.certificates import Credentials, make_certificates
from tfprivacy_lab.mpc.transport.entrance import is_loopback
from tfprivacy_lab.mpc.transport.links import Control, PartyError
from tfprivacy_lab.mpc.transport.peers import DATA, MAGIC, OPEN, Peer, shut
from tfprivacy_lab.mpc.transport.relay import Messages, Relay

NAMES = ("alice", "bob", "carol")
# What another party's message looks like to the engine; the key can be guessed.
PUSH = json.dumps({"sender_rank": 1, "key": "root:P2P-160:1->0", "value": "AAAA", "trans_type": "MONO"})
FORGED = (
    "POST /org.interconnection.link.ReceiverService/Push HTTP/1.1\r\nHost: engine\r\nContent-Type: application/json\r\n"
    f"Content-Length: {len(PUSH)}\r\n\r\n{PUSH}"
).encode()


def free_port(host="127.0.0.1"):
    return addresses(["somebody"], host)["somebody"][1]


def addresses(names=NAMES[:2], host="127.0.0.1"):
    """Addresses that are free; looked for together, so that no two are the same."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with contextlib.ExitStack() as stack:
        found = [stack.enter_context(socket.create_server((host, 0), family=family)) for _ in names]
        return {name: (host, one.getsockname()[1]) for name, one in zip(names, found, strict=True)}


@pytest.fixture(scope="module")
def certified(tmp_path_factory):
    folder = tmp_path_factory.mktemp("certificates")
    make_certificates(NAMES, folder / "group")
    return {name: Credentials.of_folder(folder / "group" / name).loaded() for name in NAMES}


def join(ends, seconds=20.0, **own):
    """Join all ends at once; errors by name, None for none."""
    errors = {}

    def one(end):
        given = {"job": {"a": 1}, "code": "c", **own.get(end.me, {})}
        try:
            end.join(given.pop("job"), given.pop("code"), seconds, **given)
            errors[end.me] = None
        except PartyError as error:
            errors[end.me] = str(error)

    threads = [threading.Thread(target=one, args=(end,)) for end in ends]
    for thread in threads:
        thread.start()
    return threads, errors


def joined(ends, seconds=20.0, **own):
    threads, errors = join(ends, seconds, **own)
    for thread in threads:
        thread.join(60)
    return errors


def knock(address, data=b"", seconds=60):
    """A connection of a stranger, as soon as the port is there."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(ConnectionRefusedError):
            connection = socket.create_connection(address, timeout=10)
            connection.sendall(data)
            return connection
        threading.Event().wait(0.005)
    raise AssertionError("nobody listens")


def reset(connection):
    """End a connection by a reset, as a scanner does."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


@pytest.fixture(autouse=True)
def quiet_threads(monkeypatch):
    """No thread may end by an exception: it would be a traceback on the party's terminal."""
    ended = []
    monkeypatch.setattr(threading, "excepthook", ended.append)
    yield
    assert [str(one.exc_value) for one in ended] == []


def test_a_party_exposes_one_port_where_a_forged_push_is_refused_and_then_none(certified):
    where = addresses()
    ends = {name: Control(name, NAMES[:2], where, certified[name]) for name in NAMES[:2]}
    threads, errors = join([ends["alice"]])
    with knock(where["alice"], FORGED) as forger:
        answer = b""
        with contextlib.suppress(ConnectionError):
            while part := forger.recv(4096):
                answer += part
    assert b"HTTP" not in answer
    assert joined([ends["bob"]]) == {"bob": None}
    threads[0].join(20)
    assert errors == {"alice": None}
    for address in where.values():
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address, timeout=5)
    for end in ends.values():
        end.close()


META = b"\n0\n(org.interconnection.link.ReceiverService\x12\x04Push\x18\x00 \x82\x80\x80\x800"


def number(value):
    """A number of variable length, seven bits a byte."""
    return bytes([value & 127 | 128]) + number(value >> 7) if value > 127 else bytes([value])


def message(rank, value=b"", meta=META, after=b""):
    """What an engine sends: a push with its number, a key and a value."""
    push = (b"\x08" + number(rank) if rank else b"") + b"\x12\x03key\x1a" + number(len(value)) + value + after
    return struct.pack(">4sII", b"PRPC", len(meta) + len(push), len(meta)) + meta + push


def engine(relay, me, echo):
    """Stands for a party's engine: takes one connection, and returns what ``echo`` makes of what it gets."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(relay.addresses()[me].removeprefix("unix:"))
    listener.listen()

    def serve():
        connection, _ = listener.accept()
        with connection:
            while part := connection.recv(1 << 16):
                connection.sendall(echo(part))

    threading.Thread(target=serve, daemon=True).start()
    return listener


@pytest.mark.parametrize(("tls", "slow"), [(True, 0.0), (False, 0.0), (True, 0.02)])
def test_engines_reach_each_other_through_the_relay_and_only_through_sockets_of_this_user(
    certified, monkeypatch, tls, slow
):
    send = Peer.send_frame
    monkeypatch.setattr(Peer, "send_frame", lambda *arguments: threading.Event().wait(slow) or send(*arguments))
    where, names = addresses(), NAMES[:2]
    relays = {name: Relay(names, name) for name in names}
    ends = [Control(n, names, where, certified[n] if tls else None, relay=relays[n]) for n in names]
    assert set(joined(ends).values()) == {None}
    flipped = bytes(255 - byte for byte in range(256))
    values = np.random.default_rng(0).integers(0, 256, (3, 1 << 20), np.uint8)
    sent = {
        name: b"".join(message(rank, value.tobytes()) for value in values) + message(rank)
        for rank, name in enumerate(names)
    }
    with engine(relays["alice"], "alice", bytes), engine(relays["bob"], "bob", lambda part: part.translate(flipped)):
        found = {}

        def call(me, other):
            path = relays[me].addresses()[other].removeprefix("unix:")
            assert os.stat(os.path.dirname(path)).st_mode & 0o077 == 0
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as mine:
                mine.connect(path)
                threading.Thread(target=mine.sendall, args=(sent[me],)).start()
                answer = bytearray()
                while len(answer) < len(sent[me]):
                    answer += mine.recv(1 << 16)
                found[me] = bytes(answer)

        calls = [threading.Thread(target=call, args=pair) for pair in (names, names[::-1])]
        for one in calls:
            one.start()
        for one in calls:
            one.join(60)
    assert found["alice"] == sent["alice"].translate(flipped)
    assert found["bob"] == sent["bob"]
    for end in ends:
        end.close()


@pytest.mark.parametrize(
    "forged",
    [
        message(1, b"share"),  # In Bob's name.
        message(0, b"share"),
        message(2, b"share", after=b"\x08\x01"),  # The last one counts.
        message(2, b"share", after=b"\x88\x80\x80\x80\x10\x01"),  # The same, as a number too long for a field.
        message(2, b"share", after=b"\x88\x00\x01"),
        message(2, b"share", after=b"\x0a\x01\x01"),
        message(2, b"share", after=b"\x25\x00\x00\x00\x00"),
        message(2, b"share", meta=META.replace(b"\x18\x00", b"\x18\x01")),  # Compressed.
        message(2, b"share", meta=META + b"\x28\x05"),  # With an attachment.
        message(2, b"share", meta=META.replace(b"Push", b"Pull")),
        struct.pack(">4sII", b"PRPC", 1 << 30, 1),
        struct.pack(">4sII", b"PRPC", 4, 400) + bytes(4),
        FORGED,
    ],
)
def test_a_party_cannot_speak_to_an_engine_in_anothers_name(forged):
    """Carol is the third: her number is 2."""
    good = [message(2, b"share" * number) for number in range(9)]
    messages = Messages("carol", 2)
    stream = b"".join(good)
    assert b"".join(messages.whole(stream[start : start + 7]) for start in range(0, len(stream), 7)) == stream
    with pytest.raises(PartyError, match=r"^carol sent for the engine what is no message of an engine"):
        any(messages.whole(forged[start : start + 5]) for start in range(0, len(forged), 5))
    with pytest.raises(PartyError, match=r"^carol sent for the engine"):
        Messages("carol", 2).whole(forged)


def test_a_party_that_forges_anothers_message_ends_the_run_and_is_named():
    where, names = addresses(NAMES), NAMES
    relay = Relay(names, "alice")
    alice = Control("alice", names, where, None, relay=relay)
    ends = [alice, *(Control(name, names, where, None) for name in names[1:])]
    assert set(joined(ends).values()) == {None}
    took = []
    with engine(relay, "alice", lambda part: took.append(part) or b""):
        carol = ends[2].peers["alice"]
        carol.send_frame(OPEN, 0)
        carol.send_frame(DATA, 0, message(1, b"share"))
        assert alice.failed.wait(20)
    assert str(alice.failure).startswith("carol sent for the engine")
    assert took == []
    for end in ends:
        end.close()


@pytest.mark.slow_but("True")
@pytest.mark.parametrize("tls", [True, False])
def test_a_thousand_stray_connections_disturb_no_party_that_gathers(certified, tls):
    where = addresses(NAMES)
    ends = [Control(name, NAMES, where, certified[name] if tls else None) for name in NAMES]
    threads, errors = join(ends[:1])
    said = [b"", b"GET / HTTP/1.1\r\n\r\n", b"\x02\x00\x00\x00\x00\x00\x00\x00\x00{}", b"\x16\x03\x01", FORGED]
    with contextlib.ExitStack() as silent:
        for number in range(1000):
            connection = knock(where["alice"])
            with contextlib.suppress(OSError):
                connection.sendall(said[number % len(said)])
            # The last ones stay, and say no more.
            if number >= 800:
                silent.enter_context(connection)
            elif number % 2:
                connection.close()
            else:
                reset(connection)
        others = joined(ends[1:])
        threads[0].join(20)
    assert {**errors, **others} == dict.fromkeys(NAMES)
    for end in ends:
        end.close()


@pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.1\r\n\r\n", b"\x02\x00\x00\x00\x00\x00\x00\x00\x00{}", b"\x01"])
def test_who_did_not_come_is_named_and_so_is_what_came_instead(said):
    where = addresses()
    threads, errors = join([Control("alice", NAMES[:2], where, None)], seconds=0.6)
    with knock(where["alice"], said) as stranger:
        stranger.shutdown(socket.SHUT_WR)
        threads[0].join(20)
    assert errors["alice"].startswith("bob did not come in time; 1 others came and were sent away, the last because ")


@pytest.mark.parametrize("tls", [True, False])
def test_strangers_who_reset_their_connections_are_counted_and_leave_no_traceback(certified, tls):
    where = addresses()
    threads, errors = join([Control("alice", NAMES[:2], where, certified["alice"] if tls else None)], seconds=1.5)
    for _ in range(100):
        reset(knock(where["alice"], b"x"))
    threads[0].join(20)
    assert errors["alice"].startswith("bob did not come in time; 100 others came and were sent away, the last because ")


def test_a_client_of_tls_1_2_is_refused_even_with_a_certificate(certified, tmp_path):
    make_certificates(NAMES, tmp_path / "group")
    own = Credentials.of_folder(tmp_path / "group" / "bob")
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.load_cert_chain(own.certificate, own.private_key)
    old.load_verify_locations(own.authority)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    where = addresses()
    alice = Control("alice", NAMES[:2], where, Credentials.of_folder(tmp_path / "group" / "alice").loaded())
    threads, errors = join([alice], seconds=1.5)
    with knock(where["alice"]) as plain, pytest.raises(ssl.SSLError, match=r"(?i)protocol.version"):
        old.wrap_socket(plain, server_hostname="alice")
    threads[0].join(20)
    assert "1 others came and were sent away" in errors["alice"]
    # The same certificate is good for TLS 1.3.
    assert own.loaded().client.minimum_version == ssl.TLSVersion.TLSv1_3


def test_certificates_of_another_group_or_another_party_are_strangers(certified, tmp_path):
    make_certificates(NAMES[:2], tmp_path / "other")
    other = Credentials.of_folder(tmp_path / "other" / "bob").loaded()
    for shown, naming in ((other, "certificate"), (None, "certificate"), (certified["alice"], "certificate of alice")):
        where = addresses()
        ends = [Control("alice", NAMES[:2], where, certified["alice"]), Control("bob", NAMES[:2], where, shown)]
        errors = joined(ends, seconds=1.5)
        assert "bob did not come in time" in errors["alice"]
        assert naming in errors["alice"]
        assert errors["bob"]


def test_a_stranger_with_a_partys_name_does_not_keep_the_party_out(certified):
    """Carol belongs to the group and says she is Bob."""
    where = addresses()
    alice = Control("alice", NAMES[:2], where, certified["alice"])
    threads, errors = join([alice])
    posing = joined([Control("bob", NAMES[:2], {**where, "bob": ("127.0.0.1", free_port())}, certified["carol"])])
    assert posing["bob"] == "alice refuses: bob shows the certificate of carol."
    bob = Control("bob", NAMES[:2], where, certified["bob"])
    assert joined([bob]) == {"bob": None}
    threads[0].join(20)
    assert errors == {"alice": None}
    alice.close()
    bob.close()


@pytest.fixture
def impatient(monkeypatch):
    """A party is called silent after a second."""
    monkeypatch.setattr(links, "_SILENCE_SECONDS", 1.0)
    monkeypatch.setattr(links, "_BEAT_SECONDS", 0.1)
    monkeypatch.setattr(links, "_GRACE_SECONDS", 0.5)


def forward(address, to):
    """Listen at an address, and carry what comes to another and back."""

    def carry(one, other):
        with contextlib.suppress(OSError):
            while part := one.recv(1 << 16):
                other.sendall(part)

    def serve(listener):
        with listener:
            one, _ = listener.accept()
        other = socket.create_connection(to)
        for pair in ((one, other), (other, one)):
            threading.Thread(target=carry, args=pair, daemon=True).start()

    threading.Thread(target=serve, args=(socket.create_server(address),), daemon=True).start()


def test_a_third_party_that_meets_late_ends_no_group(impatient):
    """Carol reaches Alice at once, and Bob after longer than the silence that ends a group."""
    where = addresses(NAMES)
    bob, alice = Control("bob", NAMES, where, None), Control("alice", NAMES, where, None)
    late = ("127.0.0.1", free_port())
    carol = Control("carol", NAMES, {**where, "bob": late}, None)
    threads, errors = join([alice, bob, carol])
    assert not alice.failed.wait(2.5)
    forward(late, where["bob"])
    for thread in threads:
        thread.join(20)
    assert errors == dict.fromkeys(NAMES)
    assert not alice.failed.wait(1.5)
    assert {end.run_id for end in (alice, bob, carol)} == {alice.run_id}
    assert len(alice.run_id) == 64
    for end in (alice, bob, carol):
        end.close()


def hello_of(address, job=None, **changes):
    """A connection that has said what Bob says, and what came back."""
    peer = Peer(knock(address))
    digest = links.hashlib.sha256(json.dumps(job or {"a": 1}, sort_keys=True).encode()).hexdigest()
    hello = {"magic": MAGIC, "me": "bob", "digest": digest, "code": "c", "nonce": "1", "number": "2", "refusal": None}
    peer.send(**{**hello, **changes})
    return peer


def test_a_party_that_falls_silent_while_others_gather_is_named_at_once(impatient):
    where = addresses(NAMES)
    threads, errors = join([Control("alice", NAMES, where, None)], seconds=60)
    with hello_of(where["alice"]).connection as connection:
        Peer(connection).send(rows={})
        threads[0].join(20)
    assert errors["alice"] == "bob fell silent for 1 s."


def test_a_party_started_again_is_let_in_while_others_gather():
    """Bob dies after he has met Alice and is started again; their connection breaks; Carol comes last."""
    where = addresses(NAMES)
    alice = Control("alice", NAMES, where, None)
    threads, errors = join([alice])
    first = hello_of(where["alice"])
    first.send(rows={})
    while "bob" not in alice.peers:
        threading.Event().wait(0.005)
    reset(first.connection)
    bob, carol = Control("bob", NAMES, where, None), Control("carol", NAMES, where, None)
    more, others = join([bob])
    while "alice" not in bob.peers or "bob" not in alice.peers:
        threading.Event().wait(0.005)
    shut(bob.peers["alice"].connection)
    last, rest = join([carol])
    for thread in threads + more + last:
        thread.join(20)
    assert {**errors, **others, **rest} == dict.fromkeys(NAMES)
    assert {end.run_id for end in (alice, bob, carol)} == {alice.run_id}
    for end in (alice, bob, carol):
        end.close()


def test_something_that_listens_and_says_nothing_is_no_party(monkeypatch):
    monkeypatch.setattr(links.entrance, "HELLO_SECONDS", 0.5)
    where = addresses(NAMES)
    with socket.create_server(where["alice"]) as silent:
        threading.Thread(target=lambda: [silent.accept() for _ in range(2)], daemon=True).start()
        errors = joined([Control(name, NAMES, where, None) for name in NAMES[1:]], seconds=5.0)
    assert "alice" in errors["bob"]
    assert "alice" in errors["carol"]
    assert not any("\n" in error for error in errors.values())


def test_columns_in_another_order_are_named_by_all():
    jobs = {name: {"job": {"holders": ["alice", "bob"]}} for name in NAMES}
    jobs["carol"] = {"job": {"holders": ["bob", "alice"]}}
    where = addresses(NAMES)
    errors = joined([Control(name, NAMES, where, None) for name in NAMES], **jobs)
    assert all("runs another job: holders is" in error for error in errors.values()), errors


def test_who_came_and_left_is_named_and_who_met_only_some(impatient):
    where = addresses()
    threads, errors = join([Control("alice", NAMES[:2], where, None)], seconds=1.0)
    peer = hello_of(where["alice"])
    assert peer.receive(10)["me"] == "alice"
    assert peer.receive(10)["rows"] == {}
    reset(peer.connection)
    threads[0].join(20)
    assert errors["alice"].startswith("bob did not come in time; bob ")
    assert errors["alice"].endswith(", and did not come again.")
    where = addresses(NAMES)
    lost = {**where, "bob": ("127.0.0.1", free_port())}
    errors = joined([Control(n, NAMES, lost if n == "carol" else where, None) for n in NAMES], seconds=1.5)
    assert "bob" in errors["alice"]
    assert all(errors.values())


def test_a_third_party_hears_who_fell_silent_and_not_another_name(impatient):
    where = addresses(NAMES)
    ends = [Control(name, NAMES, where, None) for name in NAMES]
    assert set(joined(ends).values()) == {None}
    alice, bob, carol = ends
    # Alice's beat stops for Bob alone: he notices, ends, and says why.
    alice.peers["bob"].send = lambda **message: None
    assert bob.failed.wait(10)
    assert str(parties._explained(bob, None, NAMES, 600.0)) == "alice fell silent for 1 s."
    assert carol.failed.wait(10)
    assert str(carol.failure) == "bob gave up: alice fell silent for 1 s."
    for end in ends:
        end.close()


def test_a_last_word_waits_for_nobody_who_takes_none(monkeypatch):
    monkeypatch.setattr(links, "_LAST_WORD_SECONDS", 0.2)
    where = addresses(NAMES)
    ends = [Control(name, NAMES, where, None) for name in NAMES]
    assert set(joined(ends).values()) == {None}
    alice, _, carol = ends
    with alice.peers["bob"]._sending:
        begun = time.monotonic()
        alice.give_up("no more")
        assert time.monotonic() - begun < 10
    assert carol.failed.wait(10)
    assert str(carol.failure) == "alice gave up: no more"
    for end in ends:
        end.close()


@pytest.mark.parametrize(
    ("changes", "then", "naming"),
    [
        ({"nonce": "\ud800", "number": "\ud800"}, {"rows": {"training rows": "\ud800"}}, "bob holds training rows"),
        ({"refusal": "no\n\x1b[31mdata"}, {}, "bob gave up: no??[31mdata"),
        ({"me": ["x\n\x1b[31m"]}, {}, "bob did not come in time; 1 others came"),
        ({"me": "x\n\x1b[31m"}, {}, "bob did not come in time; 1 others came"),
        ({"digest": "other"}, {"job": {"\x1b[31m\n": 1}}, "bob runs another job: ?[31m? is 1 there"),
        ({"digest": "other"}, {"refused": "x\n\x1b[31mERROR"}, "bob refuses: x??[31mERROR"),
        ({}, {"rows": [1]}, "bob does not speak"),
    ],
)
def test_what_others_say_cannot_reach_the_terminal_nor_keep_a_party_waiting(changes, then, naming):
    where = addresses()
    alice = Control("alice", NAMES[:2], where, None)
    threads, errors = join([alice], seconds=1.0, alice={"job": {"a": 1}, "rows": {"training rows": b"ids"}})
    peer = hello_of(where["alice"], **changes)
    with contextlib.suppress(OSError):
        peer.send(**then)
    threads[0].join(20)
    peer.close()
    assert errors["alice"].startswith(naming)
    assert errors["alice"].isprintable()


def test_jobs_larger_than_the_sockets_buffers_are_compared_and_not_waited_for():
    large = {"weights": [0.123456789] * 800_000, "steps": 1}
    where = addresses()
    ends = [Control(name, NAMES[:2], where, None) for name in NAMES[:2]]
    errors = joined(ends, alice={"job": large}, bob={"job": large | {"steps": 2}})
    assert errors == {
        "alice": "bob runs another job: steps is 2 there and 1 here.",
        "bob": "alice runs another job: steps is 1 there and 2 here.",
    }
    where = addresses()
    ends = [Control(name, NAMES[:2], where, None) for name in NAMES[:2]]
    assert set(joined(ends, alice={"job": large}, bob={"job": large}).values()) == {None}
    for end in ends:
        end.close()


def test_a_third_party_hears_what_differs_between_two():
    where = addresses(NAMES)
    ends = [Control(name, NAMES, where, None) for name in NAMES]
    errors = joined(ends, carol={"code": "other"})
    assert "carol compiled other programs" in errors["alice"]
    assert all(errors.values())
    where = addresses()
    ends = [Control(name, NAMES[:2], where, None) for name in NAMES[:2]]
    assert joined(ends, bob={"refusal": "no data"})["alice"] == "bob gave up: no data"


def test_a_party_that_refuses_its_own_data_waits_for_those_who_compile_longer(impatient):
    where = addresses(NAMES)
    alice, bob, carol = (Control(name, NAMES, where, None) for name in NAMES)
    threads, errors = join([alice, bob], alice={"refusal": "no data"})
    threads[1].join(20)
    # Longer than the others, who leave when the first has heard them.
    time.sleep(2 * links._GRACE_SECONDS)
    errors |= joined([carol])
    threads[0].join(20)
    assert errors["alice"] == "no data"
    assert errors["bob"] == "alice gave up: no data"
    assert errors["carol"] == "alice gave up: no data"


def test_a_sockets_folder_is_measured_in_bytes(monkeypatch):
    for folder, fits in (("/" + "u" * 60, True), ("/" + "ü" * 60, False)):
        monkeypatch.setattr(tempfile, "tempdir", folder)
        if fits:
            Relay(NAMES, "alice")
        else:
            with pytest.raises(InputError, match="a shorter name than /ü"):
                Relay(NAMES, "alice")


def test_a_port_may_be_bound_elsewhere_than_where_it_is_reached_and_on_ipv6():
    where = addresses(host="::1")
    ends = [Control("alice", NAMES[:2], where, None, listen=("::", where["alice"][1]))]
    ends.append(Control("bob", NAMES[:2], where, None))
    assert set(joined(ends).values()) == {None}
    for end in ends:
        end.close()
    with pytest.raises(InputError, match=r"Cannot listen at \[2001:db8::1\]:4711"):
        Control("alice", NAMES[:2], where, None, listen=("2001:db8::1", 4711)).join({}, "c", 1.0)


@pytest.mark.parametrize(
    ("host", "is_one"),
    [
        *(("127.0.0.1", True), ("127.9.8.7", True), ("::1", True), ("localhost", True)),
        *(("127.evil.example", False), ("127.1", False), ("localhost.evil.example", False), ("10.0.0.1", False)),
        *(("::ffff:10.0.0.1", False), ("", False), ("0.0.0.0", False)),
    ],
)
def test_only_this_machine_is_loopback(host, is_one):
    assert is_loopback(host) is is_one


WORLD = mpc.World("semi2k", ("alice", "bob"), "alice")


def columns_job(**changes):
    given = {
        "world": WORLD,
        "layers": (mpc.Layer(1),),
        "features": {"alice": (3, 1), "bob": (3, 1)},
        "labels": ("bob",),
        "weights": [[[0.0], [0.0]], [0.0]],
        "training": mpc.Training("sum_of_squares", 0.1, 1),
        **changes,
    }
    return mpc.Job(**given)


def test_rows_in_another_order_are_noticed_by_all_before_anything_is_shared():
    job = columns_job()
    ids = {"alice": np.array(["a", "b", "c"]), "bob": np.array(["a", "c", "b"])}
    rows = {name: {"rows": row_ids.of_party(job, name, {"ids": one})} for name, one in ids.items()}
    where = addresses()
    errors = joined([Control(name, NAMES[:2], where, None) for name in NAMES[:2]], **rows)
    assert "bob holds training rows of other ids, or in another order" in errors["alice"]
    assert "alice holds training rows" in errors["bob"]
    rows["bob"] = rows["alice"]
    where = addresses()
    ends = [Control(name, NAMES[:2], where, None) for name in NAMES[:2]]
    assert set(joined(ends, **rows).values()) == {None}
    for end in ends:
        end.close()
    rows["bob"] = {"rows": row_ids.of_party(job, "bob", {})}
    where = addresses()
    errors = joined([Control(name, NAMES[:2], where, None) for name in NAMES[:2]], **rows)
    assert "bob has none" in errors["alice"]
    assert "bob has none" in errors["bob"]


def test_ids_are_compared_in_a_simulation_too_and_checked():
    job = columns_job()
    data = {"alice": {"ids": [1, 2, 3]}, "bob": {"ids": ["1", "2", "3"]}}
    row_ids.compare(job, data)
    with pytest.raises(InputError, match="alice holds training rows of other ids"):
        row_ids.compare(job, {**data, "bob": {"ids": [1, 3, 2]}})
    with pytest.raises(InputError, match="ids to hold 3 texts or whole numbers"):
        row_ids.compare(job, {**data, "bob": {"ids": [1.5, 2, 3]}})
    for ids in ([1, 1, 2], ["x"] * 3, np.array([b"a", b"b", b"a"])):
        with pytest.raises(InputError, match="ids to be different for each row, got"):
            row_ids.compare(job, {"alice": {"ids": ids}, "bob": {"ids": ids}})
    with pytest.raises(InputError, match="ids to be texts of whole characters"):
        row_ids.compare(job, {**data, "bob": {"ids": ["\ud800", "a", "b"]}})
    # Rows of one party alone, or split by rows, are in no one else's order.
    assert (
        row_ids.of_party(columns_job(split="rows", labels=("alice", "bob"), weights=[[[0.0]], [0.0]]), "bob", {}) == {}
    )


@pytest.mark.processes
@pytest.mark.slow_but("fit", "simulate")
@pytest.mark.parametrize("run", ["fit", "simulate", "launch"])
@pytest.mark.usefixtures("engine")
def test_an_order_of_rows_that_nobody_compared_is_said_once(run):
    x, y = np.zeros((3, 1)), np.zeros((3, 1))
    given = {"alice": {"x": x}, "bob": {"x": x, "y": y}}
    model = mpc.SharedModel([mpc.Layer(1)], mpc.World("cheetah", NAMES[:2]))
    model.compile("sum_of_squares", 0.1)

    def start(ids):
        if run == "fit":
            model.fit({"alice": x, "bob": x}, {"bob": y}, steps=1, ids=ids)
        else:
            data = {name: {**one, **({"ids": ids[name]} if ids else {})} for name, one in given.items()}
            getattr(mpc, run)(columns_job(), data)

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", RowOrderWarning)
        start(None)
        start({"alice": [1, 2, 3], "bob": [1, 2, 3]})
    said = [str(one.message) for one in said if one.category is RowOrderWarning]
    assert len(said) == 1
    assert said[0].startswith("Order of rows not compared: no ids of the training rows.")
    assert "\n" not in said[0]
