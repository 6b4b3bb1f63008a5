"""The benchmark's machinery: what becomes of events, limits that hold, paths that train. No time is asserted."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import accuracy_table  # noqa: E402
import bench_dp  # noqa: E402
import bench_mpc  # noqa: E402
import dp_paths  # noqa: E402
import dp_table  # noqa: E402
import measurement  # noqa: E402
import reproduce_dp  # noqa: E402
import watched  # noqa: E402

from tests.legibility import complaints  # noqa: E402

ROUNDS = [
    {"event": "round", "ms": 6.0, "baseline_ms": 4.0, "step_ms": 3.0, "step_baseline_ms": 1.0},
    {"event": "round", "ms": 9.0, "baseline_ms": 3.0, "step_ms": 2.0, "step_baseline_ms": 1.0},
    {"event": "round", "ms": 8.0, "baseline_ms": 4.0, "step_ms": 5.0, "step_baseline_ms": 2.0},
]
EVENTS = [
    {"event": "built", "weights": 101_770, "note": None},
    {"event": "warm", "first_s": 2.5, "peak_mb": 900.0, "before_mb": 700.0},
    *ROUNDS,
]


def row(events, reason=None, alone=False):
    return bench_dp.figures(events, 101_770, reason, alone=alone)


def test_a_row_holds_medians_of_the_rounds_and_ratios_within_a_round():
    found = row(EVENTS)
    assert (found["ms"], found["baseline_ms"], found["rounds"], found["peak_mb"]) == (8.0, 4.0, 3, 900.0)
    assert found["ratio"] == 2.0  # The median of 1.5, 3 and 2, not 8/4 by another name: see the next line.
    assert found["ratio_quartiles"] == [1.75, 2.5]
    assert (found["step_ms"], found["step_ratio"]) == (3.0, 2.5)
    assert "missing" not in found


def test_a_process_that_was_stopped_keeps_the_rounds_that_it_finished():
    assert row(EVENTS, "not finished: more than 16 GB of memory")["rounds"] == 3
    stopped = row(EVENTS[:2], "not finished: a step took more than 120 s")
    assert stopped == {
        "rounds": 0,
        "peak_mb": 900.0,
        "first_s": 2.5,
        "missing": "not finished: a step took more than 120 s",
    }
    assert row([])["missing"] == "it ended without a round"


def test_a_baseline_alone_needs_no_rounds():
    assert row(EVENTS[:2], alone=True) == {"rounds": 0, "peak_mb": 900.0, "first_s": 2.5}
    assert "missing" in row(EVENTS[:1], alone=True)


def test_another_model_is_never_compared():
    assert row([{**EVENTS[0], "weights": 7}, *EVENTS[1:]]) == {
        "missing": "it built another model: 7 weights instead of 101770"
    }


def test_a_peer_without_environment_has_a_row_that_says_why():
    peer, ours = (next(c for c in bench_dp.CONTESTANTS if c.path == name) for name in ("Opacus ghost", "fast"))
    found = bench_dp.unavailable_row("tutorial_cnn", 256, peer, "only 1 GiB free")
    assert (found["path"], found["missing"]) == ("Opacus ghost", "only 1 GiB free")
    assert bench_dp.unavailable_row("tutorial_cnn", 256, ours, "only 1 GiB free") is None


def all_rows():
    """A row a path and case: numbers, a limit reached, a peer that is not there."""
    rows = []
    for model, batch in (("document_mlp", 256), ("tutorial_cnn", 2048)):
        for contestant in bench_dp.CONTESTANTS:
            found = {"model": model, "batch": batch, "path": contestant.path, "baseline": contestant.baseline}
            if contestant.path == contestant.baseline:
                found |= row(EVENTS[:2], alone=True)
            elif contestant.path == "DPKerasSGDOptimizer":
                found |= row(EVENTS[:2], "not finished: a step took more than 120 s")
            else:
                found |= row(EVENTS)
            rows.append(found)
    return rows


@pytest.fixture
def written(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_dp, "ROOT", tmp_path)
    monkeypatch.setattr(bench_dp, "RESULTS", tmp_path / "results" / "metrics.json")
    monkeypatch.setattr(bench_dp, "PAGE", tmp_path / "results" / "table.md")
    bench_dp.write(all_rows()[::-1])
    return tmp_path / "results"


def test_metrics_table_and_figure(written):
    metrics = json.loads((written / "metrics.json").read_text())
    assert {"rows", "commit", "versions", "hardware", "examples", "noise_multiplier"} <= metrics.keys()
    assert len(metrics["rows"]) == 2 * len(bench_dp.CONTESTANTS)
    for found in metrics["rows"]:
        assert {"model", "batch", "path", "baseline"} <= found.keys()
        assert ("missing" in found) != ({"ms", "ratio", "peak_mb"} <= found.keys())
    keras, fast = metrics["rows"][:2]
    assert (keras["path"], keras["ms"], keras["ratio"]) == ("keras", 4.0, 1.0)
    assert (fast["path"], fast["ratio"], fast["peak_ratio"]) == ("fast", 2.0, 1.0)
    table = (written / "table.md").read_text()
    assert "| tfprivacy_lab | 8 | 2.00 (1.75–2.50) | 3 | 2.50 | 900 | 1.00 | 2.50 |" in table
    assert (
        "| TF Privacy DPKerasSGDOptimizer | not finished: a step took more than 120 s | – | – | – | 900 | 1.00 | 2.50 |"
        in table
    )
    widths = {len(re.findall(r"\|", text)) for text in table.splitlines() if text.startswith("|")}
    assert widths == {len(dp_table._COLUMNS) + 1}
    picture = matplotlib.image.imread(written / "ratio.png")
    assert min(picture.shape[:2]) > 300
    assert picture.std() > 0.01


def test_costs_on_shares_can_be_read():
    rows = json.loads(bench_mpc.RESULTS.read_text())["rows"]
    assert {row["route"] for row in rows} == set(bench_mpc.LOOK)
    figure = bench_mpc.figure.__wrapped__(rows)
    FigureCanvasAgg(figure)
    assert complaints(figure) == []
    assert sum(len(line.get_xdata()) for line in figure.axes[0].get_lines()) == len(rows)


def test_accuracy_rows_show_seconds_with_and_without_features_told_apart():
    old = {"recipe": "seed-mlp", "target_epsilon": 3.0, "epsilon": 2.9, "test_accuracy": 0.95, "seconds": 70.4}
    new = old | {"recipe": "tutorial-cnn", "features_seconds": 3.0}
    found = reproduce_dp.rows([run | {"seed": seed} for run in (old, new) for seed in (0, 1, 2)])
    assert [row["features_seconds"] for row in found] == [None, 3.0]
    table = accuracy_table.detailed({"rows": found})
    assert "| seed-mlp | 3 | 95.00 ± 0.00 | ≤ 70 |" in table
    assert "| tutorial-cnn | 3 | 95.00 ± 0.00 | 70 |" in table
    before = [{key: value for key, value in row.items() if key != "features_seconds"} for row in found]
    assert "| tutorial-cnn | 3 | 95.00 ± 0.00 | ≤ 70 |" in accuracy_table.detailed({"rows": before})
    assert len({line.count("|") for line in table.splitlines()}) == 1


def test_an_interrupted_run_goes_on_unless_code_or_question_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_dp, "UNFINISHED", tmp_path / "unfinished.json")
    monkeypatch.setattr(bench_dp, "RESULTS", tmp_path / "metrics.json")
    rows = all_rows()
    (tmp_path / "unfinished.json").write_text(json.dumps({"code": bench_dp.code_hash(), "only": [], "rows": rows[:3]}))
    assert bench_dp.kept_rows([], set()) == rows[:3]
    assert bench_dp.kept_rows(["fast"], {"fast", "keras"}) == []
    (tmp_path / "metrics.json").write_text(json.dumps({"rows": rows}))
    kept = bench_dp.kept_rows(["fast"], {"fast", "keras"})
    assert len(kept) == len(rows) - 4
    assert {"fast", "keras"}.isdisjoint(found["path"] for found in kept)
    monkeypatch.setattr(bench_dp, "code_hash", lambda: "another")
    assert bench_dp.kept_rows([], set()) == []


def print_and(then):
    """A process that prints one event, then does ``then``."""
    code = f"import json, sys, time; print(json.dumps({{'event': 'warm'}}), flush=True); {then}"
    return [sys.executable, "-c", code]


@pytest.mark.processes
@pytest.mark.parametrize(
    ("then", "limits", "reason"),
    [
        ("pass", {}, None),
        ("time.sleep(60)", {"quiet": 0.5}, "not finished: a step took more than 0.5 s"),
        ("x = bytearray(b'1') * 300_000_000; time.sleep(60)", {"memory_gb": 0.2}, "not finished: more than 0.2 GB"),
        ("raise ValueError('no such thing')", {}, "failed: ValueError: no such thing"),
        ("sys.exit(3)", {}, "failed: exit code 3"),
    ],
)
def test_a_process_is_ended_at_its_limits(tmp_path, then, limits, reason):
    events, why = watched.run(print_and(then), tmp_path / "log", dict(os.environ), **limits)
    assert events == [{"event": "warm"}]
    assert why is None if reason is None else why.startswith(reason)


def test_blocks_are_measured_in_turn(capsys, monkeypatch):
    monkeypatch.setattr(measurement.gc, "collect", lambda: None)  # With TensorFlow loaded it takes long.
    calls, clock = [], [0.0]
    monkeypatch.setattr(measurement.time, "perf_counter", lambda: clock[0])

    class Recorded:
        weights, note = 5, None

        def __init__(self, name):
            self.name = name
            clock[0] += 7.0

        def fit(self, steps):
            clock[0] += 1e-3 * steps if self.name in calls else 3.0
            calls.append(self.name)
            return steps, 1e-3 * steps

        def bare(self, steps):
            clock[0] += 1e-3 * steps
            calls.append(self.name)

    arguments = measurement.argparse.Namespace(seconds=1e-2, rounds=2, budget=60.0, first=1)
    measurement.measure(lambda: Recorded("A"), lambda: Recorded("B"), arguments)
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["event"] for event in events] == ["built", "warm", "round", "round"]
    assert events[1]["peak_mb"] >= events[1]["before_mb"] > 10
    assert events[1]["first_s"] == 3.0  # The first fit alone.
    assert (events[2]["ms"], events[2]["baseline_ms"]) == pytest.approx((1.0, 1.0))
    # Whoever goes first in one round goes second in the next.
    assert "".join(calls[-8:]) in ("BABAABAB", "ABABBABA")


ARRAYS = dp_paths.random_examples(64)


TRAINED = [*((path, "document_mlp") for path in dp_paths.PATHS), ("keras", "tutorial_cnn"), ("fast", "tutorial_cnn")]


@pytest.mark.parametrize(("path", "model"), TRAINED)
def test_paths_train_the_model_of_the_benchmark(path, model):
    contestant = dp_paths.PATHS[path](model, 16, ARRAYS)
    assert contestant.weights == measurement.MODELS[model]
    before = [weight.copy() for weight in contestant.model.get_weights()]
    steps, seconds = contestant.fit(2)
    assert steps == 2
    assert seconds > 0
    contestant.bare(1)
    after = contestant.model.get_weights()
    assert all(np.isfinite(weight).all() for weight in after)
    assert all(np.any(a != b) for a, b in zip(before, after, strict=True))


def events_of(*arguments):
    """What a path of TF Privacy prints, in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "benchmarks"), str(ROOT)])}
    short = ("16", "--rounds", "1", "--seconds", "0.01", "--first", "1")
    command = [sys.executable, str(ROOT / "benchmarks" / "tfp_paths.py"), *arguments, *short]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize(
    "path",
    [
        "DPKerasSGDOptimizer",
        "VectorizedDPKerasSGDOptimizer",
        pytest.param("DPModel", marks=pytest.mark.long),
        "DPModel + registry",
    ],
)
def test_paths_of_tf_privacy_train_the_model_of_the_benchmark(path):
    built, *_, last = events_of(path, "document_mlp")
    assert (built["weights"], built["note"]) == (measurement.MODELS["document_mlp"], None)
    assert last["event"] == "round"
    assert min(last["ms"], last["baseline_ms"]) > 0


@pytest.mark.processes
@pytest.mark.slow
def test_tf_privacys_registry_falls_back_for_convolutions_and_says_so():
    built, *_ = events_of("DPModel + registry", "tutorial_cnn", "--alone")
    assert built["weights"] == measurement.MODELS["tutorial_cnn"]
    assert "falls back" in built["note"]


@pytest.mark.processes
def test_unknown_path_is_refused():
    command = [sys.executable, str(ROOT / "benchmarks" / "bench_dp.py"), "--only", "nothing"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=False)
    assert done.returncode == 2
    assert "invalid choice: 'nothing'" in done.stderr
