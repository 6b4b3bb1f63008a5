"""A budget that is never passed and never under-counted, whoever is killed when."""

import contextlib
import json
import os
import random
import resource
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import dp_accounting
import pytest
from dp_accounting import pld

from tfprivacy_lab.checks import InputError
from tfprivacy_lab.cli import command
from tfprivacy_lab.data import datasets
from tfprivacy_lab.dp.accounting import composition, events, phases
from tfprivacy_lab.dp.accounting.gaussian import DpSgdRun
from tfprivacy_lab.dp.ledger import file
from tfprivacy_lab.dp.ledger.ledger import Ledger, dataset_digest, run_name

DATASET = "ab" * 32
STEP = dp_accounting.GaussianDpEvent(20.0)
RUN = DpSgdRun(examples=1000, batch_size=50, noise_multiplier=1.5, steps=100)


@pytest.fixture
def ledger(tmp_path):
    return Ledger.create(tmp_path / "mnist.ledger", DATASET, epsilon=2.0, delta=1e-5)


def test_what_is_charged_is_what_composition_says(ledger):
    assert ledger.spent() == 0.0
    first = ledger.register("one", RUN)
    second = ledger.register("two", STEP)
    assert first.spent == pytest.approx(pld.PLDAccountant().compose(RUN.event()).get_epsilon(1e-5), rel=1e-9)
    both = pld.PLDAccountant().compose(RUN.event()).compose(STEP).get_epsilon(1e-5)
    assert second.spent == pytest.approx(both, rel=1e-6)
    assert second.remaining == pytest.approx(2.0 - both, rel=1e-6)
    again = Ledger.open(ledger.path, dataset=DATASET)
    assert again.spent() == second.spent
    assert (again.dataset, again.epsilon, again.delta) == (DATASET, 2.0, 1e-5)
    assert ledger.path.stat().st_mode & 0o777 == 0o600


def test_a_long_life_does_not_brick_a_ledger(tmp_path):
    """More steps and more entries than one event may hold; still open, still exact, still refusing."""
    ledger, tiny = Ledger.create(tmp_path / "old", DATASET, 2.0, 1e-5), dp_accounting.GaussianDpEvent(400.0)
    insert_entries(ledger.path, tiny, 10_500)
    granted = ledger.register("one-more", dp_accounting.SelfComposedDpEvent(tiny, 500))
    all_of_it = pld.PLDAccountant().compose(dp_accounting.GaussianDpEvent(400.0 / 11_000**0.5)).get_epsilon(1e-5)
    # A closed form where dp_accounting rounds upwards.
    assert all_of_it * (1 - 1e-7) < granted.spent == ledger.spent() <= all_of_it
    assert ledger.show()["entries"] == 10_501
    with pytest.raises(InputError, match=r"refuses run 'too-much'"):
        ledger.register("too-much", dp_accounting.GaussianDpEvent(1.0))


def insert_entries(path, event, count):
    """So many charged runs, chained as a ledger chains them, in one transaction."""
    text, head = events.dumps(event), Ledger.open(path).show()["head"]
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("BEGIN")
    for number in range(1, count + 1):
        row = (number, "register", f"run-{number}", 0, text, "")
        head = file._link(head, *row)
        connection.execute("INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?)", (*row, head))
    connection.execute(f"PRAGMA user_version = {count}")
    connection.execute("COMMIT")
    connection.close()


def test_a_shuffled_run_is_refused_by_name(ledger):
    """Its cost holds for a record that is zeroed, and the ledger promises for one that is absent."""
    with pytest.raises(InputError, match=r"add_or_remove_one, got one for zero_out \(shuffled batches\)"):
        ledger.register("shuffled", phases.Phase(60, 12, 20.0, "shuffled", 5).event())
    assert ledger.entries() == ()


def test_a_row_is_on_disk_before_the_noise(ledger, monkeypatch):
    """Every connection that writes syncs the file and its folder at COMMIT: synchronous = EXTRA."""
    seen = []

    @contextlib.contextmanager
    def noting(own):
        with connection_of(own) as connection:
            yield connection
            seen.append(connection.execute("PRAGMA synchronous").fetchone()[0])

    connection_of = file.LedgerFile._connection
    monkeypatch.setattr(file.LedgerFile, "_connection", noting)
    ledger.register("one", STEP)
    assert seen
    assert set(seen) == {3}


def test_overspending_is_refused_and_leaves_no_trace(ledger):
    ledger.register("one", RUN)
    spent = ledger.spent()
    with pytest.raises(InputError, match=r"spent epsilon=.*asked .*together .*total of epsilon=2 .*more noise"):
        ledger.register("two", DpSgdRun(1000, 50, 1.0, 1000))
    assert ledger.spent() == spent
    assert [entry.run for entry in ledger.entries()] == ["one"]
    ledger.register("two", dp_accounting.GaussianDpEvent(50.0))


def test_a_resumed_run_is_not_charged_twice(ledger):
    settings = {"learning_rate": 0.1}
    name = run_name("seed-mlp", noise_seed=7, settings=settings)
    assert (
        name == run_name("seed-mlp", noise_seed=7, settings=settings) != run_name("seed-mlp", noise_seed=8, settings={})
    )
    first = ledger.register(name, RUN, noise_seed=7, settings=settings)
    again = Ledger.open(ledger.path).register(name, RUN, noise_seed=7, settings=settings)
    assert (first.charged, again.charged) == (True, False)
    assert again.spent == first.spent
    with pytest.raises(InputError, match="noise seed or other settings"):
        ledger.register(name, RUN, noise_seed=8, settings=settings)
    with pytest.raises(InputError, match="noise seed or other settings"):
        # The same noise under another learning rate: the difference of the two would be free of noise.
        ledger.register(name, RUN, noise_seed=7, settings={"learning_rate": 0.2})
    with pytest.raises(InputError, match="another event"):
        ledger.register(name, STEP, noise_seed=7, settings=settings)
    assert len(ledger.entries()) == 1


def test_a_run_without_a_kept_seed_is_charged_each_time(ledger):
    ledger.register("one", STEP)
    with pytest.raises(InputError, match="kept no noise seed"):
        ledger.register("one", STEP)
    assert ledger.register("one-again", STEP).charged


def test_a_run_by_parts_pays_for_the_parts_it_drew(ledger):
    ledger.register("long", STEP, noise_seed=1)
    whole = [ledger.extend("long", part, STEP, noise_seed=1) for part in (1, 2)]
    assert not ledger.extend("long", 1, STEP, noise_seed=1).charged
    three = pld.PLDAccountant().compose(STEP, 3).get_epsilon(1e-5)
    assert whole[-1].spent == pytest.approx(three, rel=1e-6)
    with pytest.raises(InputError, match="part=3"):
        ledger.extend("long", 4, STEP, noise_seed=1)
    with pytest.raises(InputError, match="part=0"):
        ledger.extend("unknown", 1, STEP)
    ledger.finish("long")
    ledger.finish("long")
    assert ledger.spent() == whole[-1].spent
    with pytest.raises(InputError, match="finished"):
        ledger.extend("long", 3, STEP, noise_seed=1)
    with pytest.raises(InputError, match="no run"):
        ledger.finish("unknown")


def test_show_lists_what_was_spent_by_which_run(ledger):
    ledger.register("one", RUN, noise_seed=1)
    ledger.register("two", STEP, noise_seed=2)
    ledger.extend("two", 1, STEP, noise_seed=2)
    ledger.finish("one")
    shown = json.loads(json.dumps(ledger.show(), allow_nan=False))
    assert [(run["run"], run["parts"], run["finished"]) for run in shown["runs"]] == [
        ("one", 1, True),
        ("two", 2, False),
    ]
    assert shown["runs"][1]["epsilon_alone"] == pytest.approx(
        composition.epsilon_of(dp_accounting.SelfComposedDpEvent(STEP, 2), 1e-5), rel=1e-9
    )
    assert max(run["epsilon_alone"] for run in shown["runs"]) < shown["spent"] == ledger.spent()
    assert shown["remaining"] == pytest.approx(2.0 - shown["spent"])
    assert (shown["epsilon"], shown["delta"], shown["entries"]) == (2.0, 1e-5, 4)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"epsilon": 0.0}, "epsilon"),
        ({"epsilon": float("nan")}, "epsilon"),
        ({"delta": 1.0}, "delta"),
        ({"dataset": ""}, "dataset"),
        ({"dataset": "a b\n"}, "dataset"),
        ({"dataset": None}, "dataset"),
    ],
)
def test_a_bad_budget_makes_no_file(tmp_path, change, named):
    with pytest.raises(InputError, match=named):
        Ledger.create(tmp_path / "ledger", **({"dataset": DATASET, "epsilon": 1.0, "delta": 1e-5} | change))
    assert list(tmp_path.iterdir()) == []


def test_bad_names_seeds_and_settings_are_refused(ledger):
    for run in ("", "a b", "x" * 201, None, 3):
        with pytest.raises(InputError, match="run"):
            ledger.register(run, STEP)
    with pytest.raises(InputError, match="noise_seed"):
        ledger.register("one", STEP, noise_seed=-1)
    with pytest.raises(InputError, match="settings"):
        ledger.register("one", STEP, noise_seed=1, settings={"x": float("nan")})
    with pytest.raises(InputError, match="event"):
        ledger.register("one", "gaussian")
    with pytest.raises(InputError, match="part"):
        ledger.extend("one", 0, STEP)
    assert ledger.entries() == ()


def test_an_existing_file_is_never_overwritten(ledger):
    before = ledger.path.read_bytes()
    with pytest.raises(InputError, match="there already"):
        Ledger.create(ledger.path, DATASET, 5.0, 1e-5)
    assert ledger.path.read_bytes() == before


def test_another_data_set_is_refused(ledger):
    with pytest.raises(InputError, match="data set"):
        Ledger.open(ledger.path, dataset="cd" * 32)


@pytest.mark.parametrize(
    "content",
    [b"", b"not a database", b"SQLite format 3\0" + bytes(200), bytes(range(256)) * 16],
    ids=["empty", "text", "header", "bytes"],
)
def test_foreign_files_are_refused(tmp_path, content):
    path = tmp_path / "ledger"
    path.write_bytes(content)
    with pytest.raises(InputError, match=str(path)):
        Ledger.open(path)
    assert path.read_bytes() == content
    with pytest.raises(InputError, match="no such file"):
        Ledger.open(tmp_path / "missing")
    with pytest.raises(InputError, match="no such file"):
        Ledger.open(tmp_path)


def test_another_database_is_refused(tmp_path):
    path = tmp_path / "ledger"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE entries (number INTEGER)")
    connection.close()
    with pytest.raises(InputError, match="no ledger"):
        Ledger.open(path)


def test_truncated_files_are_refused(ledger):
    ledger.register("one", RUN)
    content = ledger.path.read_bytes()
    for size in (100, 4096, len(content) // 2, len(content) - 4096):
        ledger.path.write_bytes(content[:size])
        with pytest.raises(InputError, match=str(ledger.path)):
            Ledger.open(ledger.path)


def test_rows_cannot_be_changed_or_removed(ledger):
    ledger.register("one", STEP)
    connection = sqlite3.connect(ledger.path)
    for statement in ("UPDATE budget SET epsilon = 100", "DELETE FROM entries", "UPDATE entries SET run = 'x'"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            connection.execute(statement)
    connection.close()


@pytest.mark.parametrize(
    "edit",
    [
        ["DROP TRIGGER entries_delete"],
        ["PRAGMA writable_schema = ON", "DELETE FROM sqlite_master WHERE name = 'entries_update'"],
        ["REPLACE INTO budget SELECT 0, dataset, 100.0, delta, hash FROM budget"],
        ["REPLACE INTO entries SELECT number, kind, run, part, replace(event, '20.0', '99.0'), fingerprint, hash "
         "FROM entries WHERE number = 2"],
        ["REPLACE INTO entries SELECT 2, kind, 'x', part, event, fingerprint, hash FROM entries WHERE number = 2"],
        ["INSERT INTO entries SELECT 4, kind, 'new', part, event, fingerprint, hash FROM entries WHERE number = 3"],
        ["CREATE TABLE notes (text)"],
        ["PRAGMA user_version = 2"],
    ],
)  # fmt: skip
def test_edits_by_other_tools_are_seen(ledger, edit):
    for run in ("one", "two", "three"):
        ledger.register(run, STEP)
    connection = sqlite3.connect(ledger.path, isolation_level=None)
    for statement in edit:
        connection.execute(statement)
    connection.close()
    with pytest.raises(InputError, match=r"edited|damaged|Cannot use ledger"):
        Ledger.open(ledger.path)
    with pytest.raises(InputError, match=r"edited|damaged|Cannot use ledger"):
        ledger.register("four", STEP)


def test_rows_cut_off_at_the_end_are_seen(ledger):
    """The chain of what is left still fits; the count does not."""
    for run in ("one", "two"):
        ledger.register(run, STEP)
    connection = sqlite3.connect(ledger.path, isolation_level=None)
    (trigger,) = connection.execute("SELECT sql FROM sqlite_master WHERE name = 'entries_delete'").fetchone()
    for statement in ("DROP TRIGGER entries_delete", "DELETE FROM entries WHERE number = 2", trigger):
        connection.execute(statement)
    connection.close()
    with pytest.raises(InputError, match="user_version"):
        Ledger.open(ledger.path)


@pytest.mark.processes
def test_a_full_disk_grants_nothing(ledger):
    """What SQLite cannot write is refused in one line, and the ledger is as it was."""
    ledger.register("one", STEP)
    assert "Cannot use ledger" in finished(start("register_on_a_full_disk", ledger.path))
    assert [entry.run for entry in Ledger.open(ledger.path).entries()] == ["one"]
    assert ledger.register("two", STEP).charged


def test_command_line(ledger, capsys):
    ledger.register("seed-mlp-1", RUN)
    assert command.main(["ledger", "show", "--ledger", str(ledger.path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == ledger.show()
    assert command.main(["ledger", "show", "--ledger", str(ledger.path)]) == 0
    told = capsys.readouterr().out
    assert "seed-mlp-1" in told
    assert "remaining" in told
    budget = ["--epsilon", "1", "--delta", "1e-5", "--ledger"]
    assert command.main(["ledger", "create", *budget, str(ledger.path)]) == 2
    assert "there already" in capsys.readouterr().err
    assert command.main(["ledger", "show", "--ledger", str(ledger.path) + ".missing"]) == 2
    assert "no such file" in capsys.readouterr().err


@pytest.mark.slow
def test_command_line_opens_a_budget_for_the_train_set(tmp_path, capsys):
    """The digest is that of all train examples, whichever are held out by a run."""
    path = tmp_path / "mnist.ledger"
    assert command.main(["ledger", "create", "--epsilon", "3", "--delta", "1e-5", "--ledger", str(path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    private = datasets.load_private("mnist", validation=123, seed=9)
    digest = dataset_digest(private.validation, private.train)
    assert digest != dataset_digest(private.train)
    assert (told["dataset"], told["spent"], told["epsilon"]) == (digest, 0.0, 3.0)
    assert Ledger.open(path, dataset=digest).entries() == ()


@pytest.mark.processes
def test_two_processes_at_once_never_pass_the_total(tmp_path):
    """Four processes register at once, then, when each was granted once, as fast as they can until it is refused."""
    ledger = Ledger.create(tmp_path / "ledger", DATASET, epsilon=1.0, delta=1e-5)
    workers = [start("spend_until_refused", ledger.path, worker, 4) for worker in range(4)]
    granted = [int(finished(worker)) for worker in workers]
    known = ledger.entries()
    assert len(known) == sum(granted)
    assert all(count > 0 for count in granted)
    assert len({entry.run for entry in known}) == len(known)
    spent = pld.PLDAccountant().compose(STEP, len(known)).get_epsilon(1e-5)
    assert spent * (1 - 1e-7) < ledger.spent() <= spent
    assert spent <= 1.0 < pld.PLDAccountant().compose(STEP, len(known) + 1).get_epsilon(1e-5)


@pytest.mark.processes
@pytest.mark.parametrize("kills", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_killed_anywhere_nothing_is_drawn_that_is_not_counted(tmp_path, kills):
    """Three runs at once, each killed (SIGKILL) at random times and resumed; see :func:`kill_at_random`."""
    ledger = Ledger.create(tmp_path / "ledger", DATASET, epsilon=3.0, delta=1e-5)
    log = tmp_path / "draws"
    told = json.loads(finished(start("kill_at_random", ledger.path, log, kills, 20261122)))
    assert told["kills"] >= kills
    drawn = draws(log)
    counted = {(entry.run, entry.part) for entry in ledger.entries() if entry.event is not None}
    assert len(drawn) >= kills / 4, "the runs must get far enough to draw noise"
    assert drawn <= counted
    # A kill between charge and draw leaves a part that is counted and not drawn: at most one a run.
    assert len(counted - drawn) <= len({run for run, _ in counted})
    of_draws = pld.PLDAccountant().compose(STEP, len(drawn)).get_epsilon(1e-5)
    assert of_draws * (1 - 1e-7) <= ledger.spent() <= 3.0
    rounded = pld.PLDAccountant().compose(STEP, len(counted)).get_epsilon(1e-5)
    assert rounded * (1 - 1e-7) < ledger.spent() <= rounded


def start(function, *arguments):
    """A process of its own that runs one of the functions below, without TensorFlow."""
    code = f"import sys; from tests.dp.ledger import test_ledger as own; own.{function}(*sys.argv[1:])"
    code += "; assert 'tensorflow' not in sys.modules"
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
    )


def finished(process):
    """What it printed, if it ended well."""
    out, err = process.communicate(timeout=800)
    assert process.returncode == 0, err[-2000:]
    return out


def spend_until_refused(path, worker, workers):
    ledger = Ledger.open(path)
    wait_for_all(Path(path).parent, "ready", worker, int(workers))
    for count in range(10_000):
        try:
            ledger.register(f"{worker}-{count}", STEP)
        except InputError as error:
            print(count if "refuses" in str(error) else error)
            return
        if count == 0:  # Whoever comes first could spend all before the next one comes.
            wait_for_all(Path(path).parent, "granted", worker, int(workers))


def wait_for_all(folder, what, worker, workers):
    """Return once every worker has come here (who starts late would find nothing left to spend)."""
    (folder / f"{what}-{worker}").touch()
    late = time.monotonic() + 120
    while len(list(folder.glob(f"{what}-*"))) < workers:
        assert time.monotonic() < late, f"a worker was never {what}"
        time.sleep(0.002)


def register_on_a_full_disk(path):
    """The kernel refuses to let any file grow beyond one kilobyte."""
    ledger = Ledger.open(path)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))
    try:
        ledger.register("two", STEP)
    except InputError as error:
        print(error)


def kill_at_random(path, log, kills, seed):
    """Keep three workers running; kill one at a time, look at ledger and log after each kill, start it again."""
    chance, killed, workers = random.Random(int(seed)), 0, {}
    ledger, never = Ledger.open(path), threading.Event()
    # On a busy machine further, until the runs have got somewhere.
    while killed < int(kills) or len(draws(log)) < int(kills) / 4:
        for name in range(3):
            if name not in workers:
                workers[name] = fork(path, log, name)
        never.wait(chance.expovariate(1 / 0.05))
        name = chance.choice(sorted(workers))
        os.kill(workers[name], signal.SIGKILL)
        _, status = os.waitpid(workers.pop(name), 0)
        assert os.WIFSIGNALED(status), "a worker ended by itself: its budget or its code is wrong"
        killed += 1
        # The log first: what is drawn after it is read does not count against the ledger.
        drawn = draws(log)
        assert drawn <= {(entry.run, entry.part) for entry in ledger.entries()}
    for worker in workers.values():
        os.kill(worker, signal.SIGKILL)
        os.waitpid(worker, 0)
    print(json.dumps({"kills": killed}))


def fork(path, log, name):
    """A worker: runs of six parts, each part charged, then drawn; goes on where it was killed, with the same seed."""
    child = os.fork()
    if child:
        return child
    try:
        ledger, handle = Ledger.open(path), os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        for number in range(1000):
            run = f"worker{name}-run{number}"
            if any(entry.run == run and entry.kind == "finish" for entry in ledger.entries()):
                continue
            ledger.register(run, STEP, noise_seed=number)
            draw(handle, run, 0)
            for part in range(1, 6):
                ledger.extend(run, part, STEP, noise_seed=number)
                draw(handle, run, part)
            ledger.finish(run)
    except InputError as error:
        # Overspent: nothing more may be drawn; wait for the end.
        if "refuses" in str(error):
            threading.Event().wait()
        raise
    finally:
        os._exit(1)


def draw(handle, run, part):
    """In place of noise: a line on disk."""
    os.write(handle, f"{run} {part}\n".encode())
    os.fsync(handle)


def draws(log):
    """(run, part) of every line."""
    path = Path(log)
    lines = path.read_text().splitlines() if path.exists() else []
    return {(line.split()[0], int(line.split()[1])) for line in lines}
