"""The command line as a stranger meets it: results, and one-line refusals that write nothing."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tfprivacy_lab.cli.command import main
from tfprivacy_lab.walkthrough import whole_path

ROOT = Path(__file__).parents[2]


@pytest.fixture
def lab(capsys):
    """Run a command in this process; returns (exit code, stdout, stderr)."""

    def run(*arguments):
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = stop.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def refused(lab, tmp_path):
    """Run a command that must be refused in one line, exit code 2, with nothing written."""

    def run(*arguments, naming):
        before = sorted(tmp_path.rglob("*"))
        code, out, err = lab(*arguments)
        assert (code, out) == (2, "")
        assert err.count("\n") == 1, err
        assert naming in err
        assert sorted(tmp_path.rglob("*")) == before

    return run


@pytest.fixture
def he_files(lab, tmp_path):
    """Keys, features, a head, a query, a reply, and where logits would go."""
    rng = np.random.default_rng(5)
    names = ("keys", "features.npy", "head.npz", "query", "reply", "logits.npy")
    files = {name.split(".")[0]: tmp_path / name for name in names}
    np.save(files["features"], rng.normal(size=(5, 37)))
    np.savez(files["head"], kernel=rng.normal(size=(37, 7)), bias=rng.normal(size=7))
    assert lab("he", "keygen", "--scheme", "bfv", "--out", files["keys"])[0] == 0
    assert lab(*encrypt(files))[0] == 0
    assert lab(*evaluate(files))[0] == 0
    return files


def encrypt(files, **other):
    f = files | other
    return "he", "encrypt", "--keys", f["keys"], "--features", f["features"], "--out", f["query"]


def evaluate(files, **other):
    f = files | other
    return "he", "evaluate", "--head", f["head"], "--query", f["query"], "--out", f["reply"]


def decrypt(files, **other):
    f = files | other
    return "he", "decrypt", "--keys", f["keys"], "--reply", f["reply"], "--out", f["logits"]


@pytest.mark.parametrize("scheme", ["bfv", "ckks"])
def test_four_commands_give_the_float_logits(lab, he_files, tmp_path, scheme):
    files = he_files | {"keys": tmp_path / f"{scheme}.keys", "query": tmp_path / "q", "reply": tmp_path / "r"}
    code, out, err = lab("he", "keygen", "--scheme", scheme, "--out", files["keys"], "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["scheme"] == scheme
    for command in (encrypt, evaluate, decrypt):
        assert lab(*command(files))[0] == 0
    head = np.load(files["head"])
    expected = np.load(files["features"]) @ head["kernel"] + head["bias"]
    assert np.load(files["logits"]) == pytest.approx(expected, abs=0.05 if scheme == "bfv" else 1e-3)


def test_a_replayed_reply_is_refused_unless_its_query_is_named(refused, lab, he_files, tmp_path):
    """The reply to an earlier query of the same keys, under which it decrypts without a fault."""
    first = he_files | {"query": tmp_path / "q1", "reply": tmp_path / "r1"}
    code, out, _ = lab(*encrypt(first), "--json")
    assert code == 0
    first_id = json.loads(out)["query_id"]
    assert lab(*evaluate(first))[0] == 0
    assert lab(*encrypt(he_files))[0] == 0
    assert lab(*evaluate(he_files))[0] == 0
    refused(*decrypt(first), naming="the last query")
    refused(*decrypt(first), "--query", he_files["query"], naming="another query")
    refused(*decrypt(he_files), "--query-id", first_id, naming=first_id)
    refused(*decrypt(he_files), "--query-id", first_id, "--query", he_files["query"], naming="--query")
    for files, more in ((he_files, ()), (first, ("--query", first["query"])), (first, ("--query-id", first_id))):
        assert lab(*decrypt(files), *more)[0] == 0
    note = tmp_path / "keys.last-query"
    assert stat.S_IMODE(note.stat().st_mode) == 0o600
    note.write_text("{")
    refused(*decrypt(he_files), naming="last query")
    note.unlink()
    refused(*decrypt(he_files), naming="--query")
    note.mkdir()  # it cannot be written
    code, out, _ = lab(*encrypt(he_files), "--json")
    assert code == 0
    assert "--query" in json.loads(out)["note"]


def test_logits_are_for_their_owner_only(lab, he_files):
    os.umask(0o022)
    assert lab(*decrypt(he_files))[0] == 0
    assert stat.S_IMODE(he_files["logits"].stat().st_mode) == 0o600


def test_key_file_is_private(he_files):
    assert stat.S_IMODE(os.stat(he_files["keys"]).st_mode) == 0o600


def test_evaluating_does_not_need_the_keys(lab, he_files):
    he_files["keys"].unlink()
    he_files["reply"].unlink()
    assert lab(*evaluate(he_files))[0] == 0


@pytest.mark.parametrize(
    ("features", "naming"),
    [
        (np.full((2, 37), np.nan), "features"),
        (np.full((2, 37), np.inf), "features"),
        (np.zeros((0, 37)), "features"),
        (np.zeros(37), "features"),
        (np.array([["a", "b"]]), "features"),
        (np.zeros((2, 2049)), "2048"),
        (np.zeros((2, 3), complex), "features"),
    ],
)
def test_bad_features_are_refused(refused, he_files, tmp_path, features, naming):
    np.save(tmp_path / "bad.npy", features)
    refused(*encrypt(he_files, features=tmp_path / "bad.npy", query=tmp_path / "new"), naming=naming)


def test_wrong_width_is_refused(refused, lab, he_files, tmp_path):
    np.save(tmp_path / "wide.npy", np.ones((2, 38)))
    assert lab(*encrypt(he_files, features=tmp_path / "wide.npy", query=tmp_path / "wide"))[0] == 0
    refused(*evaluate(he_files, query=tmp_path / "wide", reply=tmp_path / "new"), naming="37")


@pytest.mark.parametrize("name", ["query", "reply", "keys"])
@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "longer"])
def test_damaged_files_are_refused(refused, he_files, tmp_path, name, damage):
    data = bytearray(he_files[name].read_bytes())
    if damage == "truncated":
        data = data[: len(data) // 2]
    elif damage == "flipped":
        data[len(data) // 3] ^= 4
    elif damage == "empty":
        data = bytearray()
    else:
        data += b"\0"
    (tmp_path / "bad").write_bytes(data)
    other = {name: tmp_path / "bad"}
    command = {
        "query": lambda: evaluate(he_files, **other, reply=tmp_path / "new"),
        "reply": lambda: decrypt(he_files, **other),
        "keys": lambda: encrypt(he_files, **other, query=tmp_path / "new"),
    }[name]()
    refused(*command, naming={"keys": "key"}.get(name, name))


def test_a_private_key_offered_as_a_query_is_refused(refused, he_files, tmp_path):
    refused(*evaluate(he_files, query=he_files["keys"], reply=tmp_path / "new"), naming="key")


def test_a_query_offered_as_keys_is_refused(refused, he_files):
    refused(*decrypt(he_files, keys=he_files["query"]), naming="key")


def test_another_key_cannot_decrypt(refused, lab, he_files, tmp_path):
    assert lab("he", "keygen", "--scheme", "bfv", "--out", tmp_path / "other")[0] == 0
    refused(*decrypt(he_files, keys=tmp_path / "other"), naming="another key")


@pytest.mark.parametrize(
    ("arrays", "naming"),
    [
        ({"kernel": np.full((37, 7), np.nan), "bias": np.zeros(7)}, "kernel"),
        ({"kernel": np.ones((37, 7)), "bias": np.full(7, 1e12)}, "overflow"),
        ({"kernel": np.ones((37, 7)), "bias": np.zeros(6)}, "bias"),
        ({"kernel": np.ones((37, 7))}, "bias"),
        ({"kernel": np.ones((37, 1001)), "bias": np.zeros(1001)}, "1000"),
        ({"kernel": np.array([[{}]]), "bias": np.zeros(1)}, "head"),
    ],
)
def test_bad_heads_are_refused(refused, he_files, tmp_path, arrays, naming):
    np.savez(tmp_path / "bad.npz", **arrays)
    refused(*evaluate(he_files, head=tmp_path / "bad.npz", reply=tmp_path / "new"), naming=naming)


@pytest.mark.parametrize("what", ["keys", "features"])
def test_missing_files_are_named(refused, he_files, tmp_path, what):
    refused(*encrypt(he_files, **{what: tmp_path / "nowhere", "query": tmp_path / "new"}), naming="nowhere")


ACCOUNT = ["account", "--examples", "60000", "--batch-size", "256", "--epochs", "60", "--delta", "1e-5"]


def test_account_as_json(lab):
    code, out, err = lab(*ACCOUNT, "--noise-multiplier", "1.1", "--json")
    assert (code, err) == (0, "")
    figures = json.loads(out)
    assert figures["epsilon"] == pytest.approx(2.382, abs=5e-4)
    assert figures["epsilon_rdp"] == pytest.approx(2.597, abs=5e-4)
    assert figures["epsilon_no_amplification"] == pytest.approx(56.950, abs=5e-4)
    assert {"accountant", "sampling", "adjacency", "delta", "steps"} <= set(figures)


def test_calibrate_inverts_account(lab):
    code, out, _ = lab(*["calibrate", *ACCOUNT[1:]], "--epsilon", "2.382", "--json")
    assert code == 0
    assert json.loads(out)["noise_multiplier"] == pytest.approx(1.1, abs=2e-4)
    assert json.loads(out)["epsilon"] <= 2.382


@pytest.mark.parametrize("command", [["account", "--noise-multiplier", "1.1"], ["calibrate", "--epsilon", "2"]])
def test_large_delta_is_warned_of_once(lab, command):
    """However many functions on the way warn; and again by the next command."""
    arguments = [*command, *ACCOUNT[1:-1], "1e-3", "--json"]
    for _ in range(2):
        code, out, err = lab(*arguments)
        assert code == 0
        assert err.startswith("warning: delta=0.001 is not below 1/examples")
        assert err.count("\n") == 1
        json.loads(out)


def test_the_figure_without_amplification_says_for_which_neighbours(lab):
    for arguments in ([*ACCOUNT, "--noise-multiplier", "1.1"], ["calibrate", *ACCOUNT[1:], "--epsilon", "2"]):
        code, out, _ = lab(*arguments)
        told = dict(line.split(maxsplit=1) for line in out.splitlines())
        assert (code, told["epsilon_no_amplification_adjacency"], told["adjacency"]) == (
            0,
            "zero_out",
            "add_or_remove_one",
        )


@pytest.mark.parametrize(
    ("arguments", "naming"),
    [
        (["calibrate", *ACCOUNT[1:], "--epsilon", "0"], "epsilon"),
        (["calibrate", *ACCOUNT[1:], "--epsilon", "-1"], "epsilon"),
        (["calibrate", *ACCOUNT[1:], "--epsilon", "nan"], "epsilon"),
        ([*ACCOUNT, "--noise-multiplier", "0"], "noise_multiplier"),
        ([*ACCOUNT[:-1], "0", "--noise-multiplier", "1"], "delta"),
        ([*ACCOUNT[:-1], "1", "--noise-multiplier", "1"], "delta"),
        (["account", "--examples", "100", *ACCOUNT[3:], "--noise-multiplier", "1"], "batch_size"),
        ([*ACCOUNT, "--noise-multiplier", "many"], "noise-multiplier"),
        (["train", "--recipe", "nothing", "--epsilon", "3", "--out", "OUT"], "recipe"),
        (["train", "--recipe", "seed-mlp", "--epsilon", "0", "--out", "OUT"], "epsilon"),
        (["train", "--recipe", "seed-mlp", "--epsilon", "3", "--engine", "warp", "--out", "OUT"], "engine"),
        (["train", "--recipe", "seed-mlp", "--epsilon", "3", "--seed", "-1", "--out", "OUT"], "seed"),
        (["train", "--recipe", "seed-mlp", "--epsilon", "3", "--epochs", "0", "--out", "OUT"], "epochs"),
        (["walkthrough", "--out", "OUT", "--seed", "x"], "seed"),
        (["walkthrough", "--out", "OUT", "--seed", "-3"], "seed"),
        (["audit", "--run", "nowhere", "--out", "OUT"], "nowhere"),
        (["data", "prepare", "--from-idx", "nowhere", "--data-dir", "OUT"], "nowhere"),
        (["mpc", "listing", "--protocol", "spdz"], "protocol"),
        (["mpc", "listing", "--tls"], "--processes"),
        (["mpc", "certificates", "--parties", "a-b", "--out", "OUT"], "parties"),
        (["mpc", "certificates", "--parties", "a", "--out", "OUT", "--days", "0"], "days"),
        (["mpc", "party", "--job", "no", "--me", "a", "--data", "n", "--addresses", "a=h:1", "--out", "OUT"], "job no"),
        (["frobnicate"], "frobnicate"),
    ],
)
def test_bad_arguments_are_refused(refused, tmp_path, arguments, naming):
    refused(*[str(tmp_path / "new") if argument == "OUT" else argument for argument in arguments], naming=naming)


def test_table_of_the_walkthrough_is_for_people(lab, monkeypatch):
    metrics = json.loads((ROOT / "results" / "walkthrough" / "metrics.json").read_text())
    monkeypatch.setattr(whole_path, "walk", lambda out, **options: metrics)
    code, out, err = lab("walkthrough", "--out", "some where")
    lines = out.splitlines()
    assert (code, err, len(lines)) == (0, "", 12)
    assert {(line[28], line[29] == " ") for line in lines} == {(" ", False)}
    table = {line[:28].rstrip(): line[29:] for line in lines}
    assert table["Test accuracy"] == f"{metrics['test_accuracy']:.2%} of 10000 test images"
    assert table["Epsilon"] == "2.99987 at delta 1e-05"
    assert 2.99986 < metrics["epsilon"] < 2.99987
    assert table["Accountant"] == metrics["accountant"]
    assert table["Sampling"].startswith("poisson, 538 steps, 2048 of 55000 examples expected in each")
    assert table["Adjacency"] == "add or remove one"
    assert table["Attack"].endswith("no contradiction of the epsilon above")
    assert table["Encrypted, BFV"] == "100.00% the same answers as in the clear, the integers of the clear"
    assert table["Report"] == os.path.join("some where", "report.html")


@pytest.mark.parametrize(
    ("spoil", "row", "said"),
    [
        (lambda m: m["audit"]["dp"]["accounted"].update(violation=True), "Attack", "CONTRADICTS"),
        (lambda m: m["he"]["bfv"].update(exact=False), "Encrypted, BFV", "NOT the integers"),
        (lambda m: m["he"]["ckks"].update(within_bound=False), "Encrypted, CKKS", "BEYOND the stated error"),
    ],
)
def test_table_of_the_walkthrough_says_what_failed(lab, monkeypatch, spoil, row, said):
    metrics = json.loads((ROOT / "results" / "walkthrough" / "metrics.json").read_text())
    spoil(metrics)
    monkeypatch.setattr(whole_path, "walk", lambda out, **options: metrics)
    assert [
        said in line for line in lab("walkthrough", "--out", "x")[1].splitlines() if line.startswith(f"{row} ")
    ] == [True]


def test_json_of_the_walkthrough_is_its_metrics(lab, monkeypatch):
    metrics = json.loads((ROOT / "results" / "walkthrough" / "metrics.json").read_text())
    monkeypatch.setattr(whole_path, "walk", lambda out, **options: metrics)
    assert json.loads(lab("walkthrough", "--out", "x", "--json")[1]) == metrics


@pytest.mark.processes
def test_module_and_errors_in_a_real_process(tmp_path):
    """Exit code and streams of the process itself, and no TensorFlow in it."""
    command = [sys.executable, "-X", "importtime", "-m", "tfprivacy_lab", *ACCOUNT, "--noise-multiplier", "1.1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0
    assert "tensorflow" not in done.stderr
    command = [sys.executable, "-m", "tfprivacy_lab", "he", "decrypt", "--keys", "k", "--reply", "r", "--out", "o"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("tfprivacy_lab he decrypt: error: ")
    assert done.stderr.count("\n") == 1
