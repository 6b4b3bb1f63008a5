"""The whole path on real MNIST, small; and the same path killed and resumed."""

import dataclasses
import json
import shutil
import signal
import stat
import subprocess

import numpy as np
import pytest

from tests.conftest import walkthrough_command
from tfprivacy_lab import files, he
from tfprivacy_lab.checks import InputError
from tfprivacy_lab.cli import command
from tfprivacy_lab.data import datasets, idx
from tfprivacy_lab.dp.accounting import gaussian
from tfprivacy_lab.dp.ledger.ledger import Ledger, dataset_digest
from tfprivacy_lab.experiments import claims
from tfprivacy_lab.report import figures
from tfprivacy_lab.walkthrough import stages, whole_path

WRITTEN = ["metrics.json", "report.html", "model_card.md", "privacy_statement.txt", "model.keras", "head.npz"]


@pytest.fixture(scope="session")
def metrics(walkthrough_run):
    return json.loads((walkthrough_run[0] / "metrics.json").read_text())


def test_writes_what_it_promises_and_keeps_quiet(walkthrough_run):
    out, done = walkthrough_run
    for name in WRITTEN:
        assert (out / name).stat().st_size > 0, name
    assert not list(out.rglob("*.partial*"))
    assert "Traceback" not in done.stderr
    # Progress, and nothing else: TensorFlow's own notices never reach the user.
    assert all(line.startswith(("[", " ")) for line in done.stderr.splitlines()), done.stderr


def test_ends_in_twelve_lines_for_people(walkthrough_run, metrics):
    out, done = walkthrough_run
    lines = dict(line.split("  ", 1) for line in done.stdout.splitlines())
    assert list(lines) == [
        *("Test accuracy", "Without DP", "Epsilon", "Accountant", "Sampling", "Adjacency"),
        *("Attack", "Attack, positive control", "Encrypted, BFV", "Encrypted, CKKS", "Time", "Report"),
    ]
    assert f"{metrics['test_accuracy']:.2%} of 1000 test images" in lines["Test accuracy"]
    assert f"{metrics['epsilon']:.6g} at delta 1e-05" in lines["Epsilon"]
    assert lines["Report"].strip() == str(out / "report.html")


def test_long_parts_say_what_they_are_at(walkthrough_run):
    said = walkthrough_run[1].stderr
    for what in (
        "supervised+contrastive on 4000 public digits",
        "epoch  4  epsilon",
        "bfv   1000 images",
        "ckks  1000",
    ):
        assert what in said


def test_metrics_keep_the_contract(metrics):
    keys = (
        "recipe dataset seed test_accuracy epsilon delta accountant sampling adjacency noise_multiplier "
        "l2_norm_clip batch_size epochs steps seconds commit versions hardware pretraining audit he history"
    )
    assert set(keys.split()) <= set(metrics)
    assert metrics["official_mnist"] is True


def test_epsilon_is_that_of_the_noise_drawn(metrics):
    """Recomputed from the run's own record: every logical step drew noise once."""
    run = gaussian.DpSgdRun(
        metrics["examples"], metrics["batch_size"], metrics["noise_multiplier"], metrics["history"][-1]["steps"]
    )
    assert gaussian.epsilon_after(run, run.steps, metrics["delta"]) == pytest.approx(metrics["epsilon"], rel=1e-9)
    assert metrics["history"][-1]["epsilon"] == metrics["epsilon"] <= 3.0
    assert metrics["ledger"]["total"] == 3.0
    assert metrics["ledger"]["spent"] == pytest.approx(metrics["epsilon"], rel=1e-6)
    assert metrics["steps"] == metrics["history"][-1]["steps"]
    assert np.all(np.diff([record["epsilon"] for record in metrics["history"]]) > 0)


def test_the_default_ledger_says_that_it_covers_this_folder_only(walkthrough_run, metrics):
    out, done = walkthrough_run
    assert "ledger.sqlite covers this folder only" in done.stderr
    assert metrics["ledger"]["covers"].startswith("this folder only")
    said = " ".join((out / "privacy_statement.txt").read_text().split())
    assert "Ledger covers this folder only" in said


@pytest.mark.slow
def test_a_shared_ledger_is_charged_by_every_walkthrough_or_refuses(walkthrough_run, metrics, tmp_path):
    """Two walkthroughs on the same data are charged to one budget, though each is within its own."""
    whole = datasets.load_private("mnist", None, validation=1, seed=3)
    shared = Ledger.create(tmp_path / "shared", dataset_digest(whole.train, whole.validation), 4.0, 1e-5)
    shutil.copytree(walkthrough_run[0], tmp_path / "run")
    for _ in range(2):
        whole_path.walk(tmp_path / "run", fast=True, seed=0, ledger=shared.path)
    assert [entry.run for entry in shared.entries()] == [metrics["ledger"]["run"]] * 2
    assert shared.spent() == pytest.approx(metrics["epsilon"], rel=1e-6)
    work = stages.Work(tmp_path, whole_path.settings_for(fast=True, seed=1), None, print, shared.path)
    with pytest.raises(InputError, match="above the total of epsilon=4"):
        stages._charge(work, 1)
    with pytest.raises(InputError, match="no such file"):
        whole_path.walk(tmp_path / "new", fast=True, ledger=tmp_path / "missing")
    assert not (tmp_path / "new").exists()


def test_accuracy_is_that_of_the_saved_model(walkthrough_run, metrics):
    from tfprivacy_lab.data import datasets
    from tfprivacy_lab.experiments import runs

    test = datasets.load_test().take(slice(metrics["test_examples"]))
    logits = runs.load_model(walkthrough_run[0] / "model.keras").predict(test.images, verbose=0)
    assert np.mean(logits.argmax(axis=1) == test.labels) == pytest.approx(metrics["test_accuracy"], abs=1e-9)
    assert metrics["test_accuracy"] > 0.85


def test_encrypted_logits_are_exact_or_within_the_bound(metrics):
    assert metrics["he"]["bfv"]["exact"] is True
    assert metrics["he"]["ckks"]["within_bound"] is True
    for scheme in ("bfv", "ckks"):
        assert metrics["he"][scheme]["agreement"] >= 0.999


def test_exported_head_answers_a_fresh_client(walkthrough_run):
    head = files.read_arrays(walkthrough_run[0] / "head.npz", "head", ("kernel", "bias"))
    features = files.read_arrays(walkthrough_run[0] / "state/features.npz", "features", ("validation",))["validation"]
    client = he.Client.generate("ckks")
    logits = client.decrypt(he.Server(head["kernel"], head["bias"]).evaluate(client.encrypt(features[:3])))
    assert logits == pytest.approx(features[:3] @ head["kernel"] + head["bias"], abs=1e-2)


def test_private_features_are_for_their_owner_only(walkthrough_run):
    assert stat.S_IMODE((walkthrough_run[0] / "state").stat().st_mode) == 0o700


def test_the_attack_finds_the_positive_control(metrics):
    control, private = metrics["audit"]["positive_control"], metrics["audit"]["dp"]
    assert control["best"]["auc_interval"][0] > 0.52
    assert private["accounted"]["violation"] is False
    assert private["accounted"]["accounted_epsilon"] == metrics["epsilon"]


def test_second_run_does_nothing(walkthrough_run, tmp_path):
    out = shutil.copytree(walkthrough_run[0], tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file() and path.name != ".lock"}
    assert whole_path.walk(out, fast=True, seed=0) == json.loads((out / "metrics.json").read_text())
    after = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file() and path.name != ".lock"}
    assert after == before


def test_a_folder_holds_one_run(walkthrough_run, tmp_path):
    out = shutil.copytree(walkthrough_run[0], tmp_path / "run")
    with pytest.raises(InputError, match="other settings \\(recipe, seed"):
        whole_path.walk(out, fast=True, seed=1)


def own_set(root, digits, others=(), test=range(10), count=60):
    """A prepared set of drawn images with some digits in turn, ``others`` once each."""
    draw, splits = np.random.default_rng(0), {}
    for split, labels in (("train", [*(list(digits) * count)[:count], *others]), ("test", list(test))):
        images = draw.integers(0, 255, (len(labels), 28, 28), dtype=np.uint8)
        splits[split] = images, np.array(labels, np.uint8)
    for (split, kind), name in idx._NAMES.items():
        files.write_bytes(root / "idx" / name, idx.encode(splits[split][kind == "labels"]))
    datasets.prepare("mnist", root / "tfds", from_idx=root / "idx")
    return root / "tfds"


def small(count):
    """Settings of the small run that suit an own set of so many images."""
    fast = whole_path.settings_for(fast=True)
    plan = dataclasses.replace(fast.recipe.plan, batch_size=count // 4)
    return dataclasses.replace(fast, recipe=dataclasses.replace(fast.recipe, plan=plan, validation=count // 4))


@pytest.mark.parametrize(
    ("digits", "others", "test"),
    [(range(7), (), range(10)), ([3], (), [3]), (range(5), (9,), [7, 8]), (range(10), (), [0])],
)
def test_own_set_may_lack_digits(tmp_path, digits, others, test):
    """Absent from train, from test, from both; one image of a digit: the first of each, then the second, are shown."""
    work = stages.Work(tmp_path / "run", small(60), own_set(tmp_path, digits, others, test), print)
    found = stages.prepare_data(work)
    assert found["test"] == len(test)
    shown = files.read_arrays(work.state("samples.npz"), "samples", ("private_images", "private_labels"))
    labels = shown["private_labels"].tolist()
    present = sorted(set(work.private().train.labels.tolist()))
    assert labels[: len(present)] == present
    assert labels[len(present) :] == [digit for digit in present if digit not in others]
    assert shown["private_images"].shape == (len(labels), 28, 28)
    with np.load(work.state("samples.npz")) as arrays:
        assert figures.samples(**arrays).startswith(b"\x89PNG")


@pytest.mark.parametrize(("options", "least"), [(["--fast"], 1_512), ([], 7_048)])
def test_too_few_images_are_one_line_and_nothing_is_written(tmp_path, capsys, options, least):
    root, out = own_set(tmp_path, range(10)), tmp_path / "out" / "run"
    assert command.main(["walkthrough", "--out", str(out), "--data-dir", str(root), *options]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert f"Expected at least {least} train images in --data-dir {root}" in said[0]
    assert "got 60; prepare more by 'data prepare --from-idx DIR'" in said[0]
    assert ("add --fast" in said[0]) == (not options)
    assert not out.parent.exists()


def test_labels_beyond_nine_are_one_line_and_nothing_is_written(tmp_path, capsys):
    with pytest.raises(InputError, match=r"labels 0 to 9 .* got 12 at position 60; leave such images out"):
        own_set(tmp_path, range(10), others=[12])
    assert not (tmp_path / "tfds").exists()
    assert (
        command.main(["data", "prepare", "--from-idx", str(tmp_path / "idx"), "--data-dir", str(tmp_path / "tfds")])
        == 2
    )
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.long
@pytest.mark.timeout(900)
def test_walkthrough_on_an_own_set_without_some_digits(tmp_path, monkeypatch):
    settings = small(400)
    pretraining = dataclasses.replace(settings.recipe.pretraining, images=400, epochs=1)
    settings = dataclasses.replace(
        settings,
        recipe=dataclasses.replace(settings.recipe, pretraining=pretraining),
        compared=(("autoencoder", 1),),
        compared_images=320,
    )
    monkeypatch.setattr(whole_path, "settings_for", lambda **options: settings)
    root = own_set(tmp_path, range(7), others=[8], test=[7, 9], count=400)
    metrics = whole_path.walk(tmp_path / "run", data_dir=root)
    assert metrics["official_mnist"] is False
    assert metrics["he"]["bfv"]["exact"] is True
    assert (tmp_path / "run" / "report.html").stat().st_size > 0


def test_two_at_once_are_refused(tmp_path):
    with claims.only_one(tmp_path / "state"), pytest.raises(InputError, match="Another run"):
        whole_path.walk(tmp_path, fast=True)


def test_unwritable_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file"):
        whole_path.walk(tmp_path / "file" / "run", fast=True)


def without_times(value):
    """Metrics but for times."""
    if isinstance(value, dict):
        return {key: without_times(item) for key, item in value.items() if not key.startswith("seconds")}
    return value


def kill_when(out, stage, delay, *options):
    """Start the walkthrough; kill -9 it ``delay`` seconds after the stage begins."""
    with subprocess.Popen(walkthrough_command(out, *options), stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if line.startswith(f"[{stage}/") and "done before" not in line:
                break
        try:
            process.wait(timeout=delay)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)


def resume(out, *options):
    """Run the walkthrough to its end; returns its metrics."""
    done = subprocess.run(walkthrough_command(out, *options), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads((out / "metrics.json").read_text())


@pytest.mark.processes
@pytest.mark.long
def test_killed_in_training_and_resumed_equals_uninterrupted(metrics, tmp_path):
    kill_when(tmp_path / "run", 4, 5.0)
    assert not (tmp_path / "run" / "metrics.json").exists()
    assert without_times(resume(tmp_path / "run")) == without_times(metrics)


@pytest.mark.processes
@pytest.mark.long
@pytest.mark.timeout(900)
def test_killed_at_five_random_moments_equals_uninterrupted(metrics, tmp_path):
    moments = np.random.default_rng(2024).uniform(4, 30, size=5)
    for moment in moments:
        with subprocess.Popen(walkthrough_command(tmp_path / "run"), stderr=subprocess.DEVNULL) as process:
            try:
                process.wait(timeout=moment)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
    assert without_times(resume(tmp_path / "run")) == without_times(metrics)


@pytest.mark.processes
@pytest.mark.long
@pytest.mark.timeout(900)
def test_secret_seed_survives_a_kill_and_not_the_training(tmp_path):
    out = tmp_path / "run"
    kill_when(out, 4, 6.0, "--seed", "os")
    kept = out / "state" / ".noise_seed"
    seed = json.loads(kept.read_text())
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert seed.bit_length() > 96
    metrics = resume(out, "--seed", "os")
    assert metrics["seed"] is None
    assert not kept.exists()
    for path in out.rglob("*"):
        if path.is_file():
            assert str(seed).encode() not in path.read_bytes(), path
    assert "operating system" in (out / "privacy_statement.txt").read_text()
