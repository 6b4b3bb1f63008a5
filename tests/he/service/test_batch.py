"""Batch scoring: every query answered once, whoever dies meanwhile; what is wrong is named and stops no other."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import distributed
import numpy as np
import pytest

from tests.he.services import make_head
from tfprivacy_lab import he
from tfprivacy_lab.checks import InputError
from tfprivacy_lab.he.service import batch


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("scoring")


@pytest.fixture(scope="module")
def head(folder):
    """(file, server of the same head)."""
    return folder / "head.npz", he.Server(*make_head(folder / "head.npz"))


@pytest.fixture(scope="module")
def made(head, bfv_client):
    """Queries by name, and the exact logits that belong to them."""
    rng, made = np.random.default_rng(3), {}
    for number in range(24):
        query = bfv_client.encrypt(rng.uniform(-1, 1, size=(1 + number, 6)), 1.0)
        made[f"query {number:02d}.q"] = query, bfv_client.decrypt(head[1].evaluate(query), query)
    return made


@pytest.fixture
def queries(tmp_path, made):
    """A folder of queries, with what is passed over in it."""
    path = tmp_path / "queries"
    (path / "folder").mkdir(parents=True)
    (path / ".hidden").write_bytes(b"hidden")
    for name, (query, _) in made.items():
        (path / name).write_bytes(query)
    return path


@pytest.fixture(scope="module")
def cluster():
    options = {"n_workers": 3, "threads_per_worker": 1, "processes": True, "dashboard_address": ":0"}
    with distributed.LocalCluster(**options, host="127.0.0.1", silence_logs=50) as running:
        yield running


def score(*arguments, **options):
    """Scoring that answers any set, as these queries are under bfv."""
    return batch.score(*arguments, **{"replies": "any"} | options)


def check(out, made, client, names=None):
    """Exactly these replies are there, each whole and exact, and nothing else but the head's digest."""
    names = made if names is None else names
    assert {path.name for path in out.iterdir()} == {f"{name}.reply" for name in names} | {batch.HEAD_FILE}
    for name in names:
        query, logits = made[name]
        np.testing.assert_array_equal(client.decrypt((out / f"{name}.reply").read_bytes(), query), logits)


def identity(out):
    """What changes if a file is written again."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in out.iterdir()}


def test_a_folder_on_this_machine_and_again(tmp_path, head, queries, made, bfv_client):
    lines = []
    outcome = score(head[0], queries, tmp_path / "out", jobs=2, on_progress=lines.append)
    assert outcome == batch.Outcome(24, 0, {})
    assert lines[-1] == "24 of 24 queries"
    check(tmp_path / "out", made, bfv_client)
    before = identity(tmp_path / "out")
    (tmp_path / "out" / "query 05.q.reply").unlink()
    assert score(head[0], queries, tmp_path / "out", jobs=1) == batch.Outcome(1, 23, {})
    after = identity(tmp_path / "out")
    del before["query 05.q.reply"], after["query 05.q.reply"]
    assert after == before
    check(tmp_path / "out", made, bfv_client)


def test_a_worker_of_a_cluster_killed_midway_loses_and_doubles_nothing(
    tmp_path, head, queries, made, bfv_client, cluster
):
    killed = []

    def kill_one(line):
        if line.startswith("4 of") and not killed:
            with distributed.Client(cluster.scheduler_address, set_as_default=False) as client:
                killed.append(min(client.run(os.getpid).values()))
            os.kill(killed[0], signal.SIGKILL)

    outcome = score(head[0], queries, tmp_path / "out", cluster=cluster.scheduler_address, on_progress=kill_one)
    assert len(killed) == 1
    assert outcome == batch.Outcome(24, 0, {})
    check(tmp_path / "out", made, bfv_client)
    before = identity(tmp_path / "out")
    again = score(head[0], queries, tmp_path / "out", cluster=cluster.scheduler_address)
    assert again == batch.Outcome(0, 24, {})
    assert identity(tmp_path / "out") == before


def hold(address, name, pipe):
    """Has the workers of now wait at this query until a pipe is written; returns their processes."""

    def patch(name=name, pipe=str(pipe)):
        import os

        from tfprivacy_lab.he.service import batch

        plain = batch._read

        def read(path, what):
            if os.path.basename(path) == name:
                with open(pipe, "rb") as stream:
                    stream.read()
            return plain(path, what)

        batch._read = read
        return os.getpid()

    with distributed.Client(address, set_as_default=False) as client:
        client.wait_for_workers(1)
        return set(client.run(patch).values())


def let_go(address):
    """Undo :func:`hold`, for tests that share the cluster."""

    def restore():
        import importlib

        from tfprivacy_lab.he.service import batch

        importlib.reload(batch)

    with distributed.Client(address, set_as_default=False) as client:
        client.run(restore)


def reader_of(path, processes):
    """Which of the processes has the file open."""
    for process in processes:
        for link in Path(f"/proc/{process}/fd").iterdir():
            if os.path.exists(link) and os.path.samefile(link, path):
                return process
    return None


def test_the_query_of_a_killed_worker_goes_to_another(tmp_path, head, made, bfv_client, cluster):
    """A pipe shows who works at a query, and keeps it working until the test has killed it."""
    pipe, name = tmp_path / "pipe", "query 07.q"
    os.mkfifo(pipe)
    paths = [tmp_path / name, tmp_path / "query 01.q"]
    for path in paths:
        path.write_bytes(made[path.name][0])
    processes = hold(cluster.scheduler_address, name, pipe)
    outcomes = []
    address = cluster.scheduler_address
    thread = threading.Thread(
        target=lambda: outcomes.append(score(head[0], paths, tmp_path / "out", cluster=address)), daemon=True
    )
    thread.start()
    first = os.open(pipe, os.O_WRONLY)
    victim = reader_of(pipe, processes)
    assert victim is not None
    os.kill(victim, signal.SIGKILL)
    while os.path.exists(f"/proc/{victim}"):  # until its last thread has let go of the pipe
        threading.Event().wait(0.01)
    os.close(first)
    while thread.is_alive():  # another that was told to wait finds the pipe written
        try:
            os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
        except OSError:
            threading.Event().wait(0.02)
    let_go(address)
    assert outcomes == [batch.Outcome(2, 0, {})]
    check(tmp_path / "out", made, bfv_client, [name, "query 01.q"])


def test_two_that_score_one_query_leave_one_reply(tmp_path, head, made, bfv_client):
    query, reply = tmp_path / "query 00.q", tmp_path / "reply"
    query.write_bytes(made["query 00.q"][0])
    digest = batch._head_digest(head[0])
    task = (str(head[0]), digest, str(query), str(reply), "any")
    assert batch.score_one(*task) == ("query 00.q", "")
    first = reply.stat().st_ino
    assert batch.score_one(*task) == ("query 00.q", "")
    assert reply.stat().st_ino == first
    reply.write_bytes(b"something else")
    assert "is there already" in batch.score_one(*task)[1]
    assert reply.read_bytes() == b"something else"
    assert "to be the head" in batch.score_one(str(head[0]), "0" * 64, str(query), str(tmp_path / "new"), "any")[1]


def test_what_cannot_be_scored_is_named_and_the_others_are(tmp_path, head, queries, made, bfv_client):
    (queries / "damaged").write_bytes(made["query 00.q"][0][:-1])
    (queries / "wide").write_bytes(bfv_client.encrypt(np.ones((1, 7))))
    (queries / "nowhere").symlink_to(tmp_path / "nothing")
    out = tmp_path / "out"
    score(head[0], [queries / "query 00.q"], out, jobs=1)
    (out / "query 01.q.reply").write_bytes(b"foreign")
    outcome = score(head[0], queries, out, jobs=2)
    assert (outcome.scored, outcome.finished) == (22, 1)
    assert set(outcome.failures) == {"damaged", "wide", "nowhere", "query 01.q"}
    assert "a link" in outcome.failures["nowhere"]
    assert (out / "query 01.q.reply").read_bytes() == b"foreign"
    (out / "query 01.q.reply").unlink()
    check(out, made, bfv_client, set(made) - {"query 01.q"})
    with pytest.raises(InputError, match="4 of 27 queries were not scored"):
        outcome.check()


def test_a_reply_to_another_query_of_that_name_is_no_reply(tmp_path, head, queries, bfv_client):
    out = tmp_path / "out"
    score(head[0], queries, out, jobs=1)
    (queries / "query 03.q").write_bytes(bfv_client.encrypt(np.ones((4, 6)), 1.0))
    outcome = score(head[0], queries, out, jobs=1)
    assert (outcome.finished, list(outcome.failures)) == (23, ["query 03.q"])


def test_leftovers_of_a_killed_run_are_removed_and_foreign_files_stay(tmp_path, head, queries, made, bfv_client):
    out = tmp_path / "out"
    score(head[0], [queries / "query 00.q"], out, jobs=1)
    (out / ".query 02.q.abcd1234.partial.reply").write_bytes(b"half")
    (out / "notes.txt").write_text("mine")
    score(head[0], queries, out, jobs=1)
    (out / "notes.txt").unlink()
    check(out, made, bfv_client)


def test_names_that_are_patterns(tmp_path, head, made, bfv_client):
    path = tmp_path / "[a]*?.q"
    path.write_bytes(made["query 00.q"][0])
    score(head[0], path, tmp_path / "out", jobs=1)
    renamed = {path.name: made["query 00.q"]}
    check(tmp_path / "out", renamed, bfv_client)


def test_two_runs_do_not_share_a_folder(tmp_path, head, queries):
    out = tmp_path / "out"
    digest = batch._head_digest(head[0])
    with batch._owned_folder(out, digest, []), pytest.raises(InputError, match="another run"):
        score(head[0], queries, out, jobs=1)


def refusals(tmp_path, head, queries):
    """(arguments, what the message names)."""
    np.savez(tmp_path / "bad.npz", kernel=np.full((6, 3), np.nan), bias=np.zeros(3))
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "photo.jpg").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    shutil.copytree(queries, tmp_path / "more")
    other = tmp_path / "other"
    make_head(tmp_path / "other.npz", seed=9)
    score(tmp_path / "other.npz", [queries / "query 00.q"], other, jobs=1)
    out = tmp_path / "new"
    return [
        ((tmp_path / "none.npz", queries, out), "none.npz"),
        ((tmp_path / "bad.npz", queries, out), "kernel"),
        ((head[0], tmp_path / "nothing", out), "nothing"),
        ((head[0], tmp_path / "empty", out), "empty"),
        ((head[0], [queries / "query 00.q", tmp_path / "more"], out), "query 00.q"),
        ((head[0], queries, tmp_path / "foreign"), "photo.jpg"),
        ((head[0], queries, other), "another's"),
        ((head[0], queries, queries / "query 00.q"), "query 00.q"),
    ]


def test_what_cannot_begin_is_refused_before_anything_is_written(tmp_path, head, queries):
    for arguments, naming in refusals(tmp_path, head, queries):
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(InputError, match=naming.replace(".", r"\.")):
            score(*arguments, jobs=1)
        assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("address", ["127.0.0.1:1", "http://h:1", "tcp://", "tcp://127.0.0.1:1", "tcp://127.0.0.1:x"])
def test_clusters_that_are_none(tmp_path, head, queries, address, monkeypatch):
    """No thread is left: distributed's locks are shared, and a collected client would close in somebody's start."""
    monkeypatch.setattr(batch, "_CONNECT_SECONDS", 0.5)
    before = set(threading.enumerate())
    with pytest.raises(InputError, match="luster"):
        score(head[0], queries, tmp_path / "out", cluster=address)
    assert [thread for thread in threading.enumerate() if thread not in before and thread.name == "IO loop"] == []


def test_a_scheduler_that_goes_away(tmp_path, head, made):
    """The pipe is never written: the query is still at work when the scheduler is stopped."""
    pipe, query = tmp_path / "pipe", tmp_path / "query 07.q"
    os.mkfifo(pipe)
    query.write_bytes(made[query.name][0])
    errors = []
    with distributed.LocalCluster(1, threads_per_worker=1, dashboard_address=":0", silence_logs=50) as cluster:
        hold(cluster.scheduler_address, query.name, pipe)

        def run():
            try:
                score(head[0], query, tmp_path / "out", cluster=cluster.scheduler_address)
            except InputError as error:
                errors.append(str(error))

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        writer = os.open(pipe, os.O_WRONLY)
        cluster.close()
        thread.join(60)
        os.close(writer)
    assert len(errors) == 1
    assert "run it again" in errors[0]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {batch.HEAD_FILE}


HOSTILE = {
    "pipe": os.mkfifo,
    "endless": lambda path: path.symlink_to("/dev/zero"),
    "link": lambda path: path.symlink_to(path.parent / "query 00.q"),
    "n" * 252: lambda path: path.write_bytes(b"TFPLABHE"),
    "line\nbreak\x1b[2J": lambda path: path.write_bytes(b"no query"),
    "huge": lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_WRONLY), 2**40),
    os.fsdecode(b"not \xff utf-8"): lambda path: path.write_bytes(b"no query"),
}


@pytest.mark.processes
def test_no_file_of_a_folder_stops_the_others(tmp_path, head, queries, made, bfv_client):
    """Pipes, links, devices, names and sizes: each is named, in one line, and nobody waits for it."""
    for name, make in HOSTILE.items():
        make(queries / name)
    longest = "m" * 249
    (queries / longest).write_bytes(made["query 00.q"][0])
    done = score_command("--head", head[0], "--queries", queries, "--out", tmp_path / "out", "--jobs", 1)
    assert done.returncode == 2
    assert "7 of 32 queries were not scored" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert "\x1b" not in done.stderr
    check(tmp_path / "out", {**made, longest: made["query 00.q"]}, bfv_client)


@pytest.mark.processes
def test_queries_whose_replies_give_the_head_away_are_refused_unless_asked_for(
    tmp_path, head, made, bfv_client, bfv_sanitized_client
):
    folder = tmp_path / "queries"
    folder.mkdir()
    (folder / "plain").write_bytes(made["query 00.q"][0])
    (folder / "sanitized").write_bytes(bfv_sanitized_client.encrypt(np.ones((1, 6)), 1.0))
    command = [sys.executable, "-m", "tfprivacy_lab", "he", "score", "--head", head[0], "--queries", folder]
    command += ["--out", tmp_path / "out", "--jobs", 1]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 2
    assert "plain: " in done.stderr
    assert "make keys with a sanitized scheme" in done.stderr
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"sanitized.reply", batch.HEAD_FILE}
    outcome = batch.score(head[0], folder, tmp_path / "all", jobs=1, replies="any")
    assert (outcome.scored, outcome.failures) == (2, {})
    with pytest.raises(InputError, match="replies"):
        batch.score(head[0], folder, tmp_path / "some", replies="some")


def score_command(*arguments):
    command = [sys.executable, "-m", "tfprivacy_lab", "he", "score", *map(str, arguments), "--replies", "any"]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)


@pytest.mark.processes
def test_the_command(tmp_path, head, queries, made, bfv_client, cluster):
    out = tmp_path / "out"
    arguments = ["--head", head[0], "--queries", queries, "--out", out, "--json"]
    done = score_command(*arguments, "--cluster", cluster.scheduler_address)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"replies": str(out), "scored": 24, "finished_before": 0}
    check(out, made, bfv_client)
    (queries / "bad").write_bytes(b"bad")
    done = score_command(*arguments, "--jobs", 1)
    assert (done.returncode, done.stdout) == (2, "")
    assert "1 of 25 queries were not scored, the others were: bad: " in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    done = score_command(*arguments[:-1], "--jobs", 1, "--cluster", "tcp://h:1")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
