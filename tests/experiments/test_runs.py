"""What a run of a recipe writes, refuses, and keeps secret; on a small private set."""

import copy
import dataclasses
import hashlib
import json
import shutil

import dp_accounting
import numpy as np
import pytest
from dp_accounting import pld

from tfprivacy_lab.checks import InputError, MissingPackageError
from tfprivacy_lab.data import datasets
from tfprivacy_lab.dp.accounting import comparison, gaussian
from tfprivacy_lab.dp.ledger.ledger import Ledger, dataset_digest
from tfprivacy_lab.dp.training.noise import GaussianNoise
from tfprivacy_lab.experiments import audits, runs
from tfprivacy_lab.experiments.recipes import RECIPES
from tfprivacy_lab.models import architectures

DELTA = 1e-4


def images_and_labels(count, seed):
    """Ten classes, each a bright row of its own: learnt in a few steps."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 10, count)
    images = rng.uniform(0, 0.2, (count, 28, 28, 1)).astype(np.float32)
    images[np.arange(count), 2 * labels + 3] += 0.8
    return datasets.Split(images, labels)


def small_recipe(monkeypatch):
    """The document's network on 600 private examples."""
    private = datasets.PrivateData(images_and_labels(600, 1), images_and_labels(100, 2), official=False)
    monkeypatch.setattr(datasets, "load_private", lambda *arguments, **options: private)
    monkeypatch.setattr(datasets, "load_test", lambda *arguments, **options: images_and_labels(200, 3))
    small = RECIPES["seed-mlp"]
    small = dataclasses.replace(small, plan=dataclasses.replace(small.plan, batch_size=100, epochs=2))
    monkeypatch.setitem(RECIPES, "seed-mlp", small)
    return small


@pytest.fixture
def recipe(monkeypatch):
    return small_recipe(monkeypatch)


def train(recipe, folder, epsilon=3.0, seed=0, **options):
    return runs.train_recipe(recipe, folder, epsilon=epsilon, delta=DELTA, seed=seed, **options)


@pytest.fixture
def run(recipe, tmp_path):
    """Train into a folder; returns metrics."""
    return lambda name="run", *arguments, **options: train(recipe, tmp_path / name, *arguments, **options)


@pytest.fixture(scope="module")
def seeded(tmp_path_factory):
    """A finished run of seed 0 at epsilon 3, for tests that look at one: (folder, metrics)."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patched:
        return folder, train(small_recipe(patched), folder)


@pytest.fixture
def finished(seeded, recipe, tmp_path):
    """A copy of it in ``tmp_path / "run"``; its metrics."""
    shutil.copytree(seeded[0], tmp_path / "run")
    return copy.deepcopy(seeded[1])


def weights(folder):
    return np.concatenate([array.ravel() for array in runs.load_model(folder / "model.keras").get_weights()])


def test_writes_a_run(finished, tmp_path):
    metrics = finished
    assert metrics == json.loads((tmp_path / "run" / "metrics.json").read_text())
    spent = gaussian.DpSgdRun(600, 100, metrics["noise_multiplier"], metrics["steps"])
    assert metrics["epsilon"] == gaussian.epsilon_after(spent, spent.steps, DELTA) <= 3.0
    statement = (tmp_path / "run" / "privacy_statement.txt").read_text()
    assert f"epsilon = {metrics['epsilon']:.4f}" in statement
    assert "SEEDED RUN" in statement
    assert "one example: one image with its label" in " ".join(statement.split())
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {"model.keras", "metrics.json", "privacy_statement.txt", "settings.json", ".lock"}


@pytest.mark.slow
def test_same_seed_same_weights_and_another_differs(finished, run, tmp_path):
    run("b"), run("c", seed=1)
    assert np.array_equal(weights(tmp_path / "run"), weights(tmp_path / "b"))
    assert not np.array_equal(weights(tmp_path / "run"), weights(tmp_path / "c"))


def test_secret_seeds_differ_and_leave_no_trace(run, tmp_path):
    assert run("a", seed=None)["seed"] is None
    run("b", seed=None)
    assert not np.array_equal(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert not (tmp_path / "a" / ".noise_seed").exists()
    assert "operating system" in (tmp_path / "a" / "privacy_statement.txt").read_text()


@pytest.mark.slow
def test_stopped_secret_run_draws_the_same_noise_again(run, tmp_path):
    def stop(record):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run("a", seed=None, on_epoch=stop)
    kept = (tmp_path / "a" / ".noise_seed").read_bytes()
    assert not (tmp_path / "a" / "metrics.json").exists()
    with pytest.raises(InputError, match="other settings \\(epsilon\\)"):
        run("a", seed=None, epsilon=8.0)
    # A copy of the folder, finished, is what the folder becomes when finished.
    (tmp_path / "b").mkdir()
    for name in (".noise_seed", "settings.json"):
        (tmp_path / "b" / name).write_bytes((tmp_path / "a" / name).read_bytes())
    run("a", seed=None), run("b", seed=None)
    assert kept
    assert np.array_equal(weights(tmp_path / "a"), weights(tmp_path / "b"))


def test_first_weights_do_not_depend_on_the_secret_seed(recipe, monkeypatch, tmp_path):
    """They are released: were they drawn from the noise's seed, they would give part of it away."""
    first = []

    def keep(model, *arguments, **options):
        first.append(model.get_weights())
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "train_model", keep)
    for name in "ab":
        with pytest.raises(KeyboardInterrupt):
            runs.train_recipe(recipe, tmp_path / name, epsilon=3.0, delta=DELTA, seed=None)
    assert all(np.array_equal(one, other) for one, other in zip(*first, strict=True))
    assert (tmp_path / "a" / ".noise_seed").read_bytes() != (tmp_path / "b" / ".noise_seed").read_bytes()


def test_a_finished_run_is_not_done_again_nor_overwritten(finished, run, tmp_path):
    before = (tmp_path / "run" / "model.keras").read_bytes()
    assert run() == finished
    for change in ({"epsilon": 1.0}, {"seed": 1}, {"epochs": 3}):
        with pytest.raises(InputError, match="other settings"):
            run(**change)
    assert (tmp_path / "run" / "model.keras").read_bytes() == before


def test_a_seed_left_by_a_kill_after_the_end_is_forgotten(run, tmp_path):
    metrics = run(seed=None)
    (tmp_path / "run" / ".noise_seed").write_text("7")
    assert run(seed=None) == metrics
    assert not (tmp_path / "run" / ".noise_seed").exists()


def test_impossible_budget_writes_nothing(run, tmp_path):
    with pytest.raises(InputError, match="epsilon"):
        run(epsilon=-1.0)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def ledger(recipe, tmp_path):
    """A budget of ε = 3 for the private set."""
    private = datasets.load_private()
    return Ledger.create(tmp_path / "ledger.db", dataset_digest(private.train, private.validation), 3.0, DELTA).path


def test_a_run_is_charged_before_it_draws_and_once(run, ledger, monkeypatch):
    def stop(record):
        raise KeyboardInterrupt

    first, add = [], GaussianNoise.add

    def noting(self, *arguments, **options):
        first.append([(entry.kind, entry.number) for entry in Ledger.open(ledger).entries()])
        assert Ledger.open(ledger).spent() == pytest.approx(2.0, abs=0.01)
        return add(self, *arguments, **options)

    monkeypatch.setattr(GaussianNoise, "add", noting)
    for _ in range(2):  # Stopped and gone on with, it draws the same noise: one charge.
        with pytest.raises(KeyboardInterrupt):
            run(epsilon=2.0, seed=None, ledger=ledger, on_epoch=stop)
    assert first
    assert all(known == [("register", 1)] for known in first)
    metrics = run(epsilon=2.0, seed=None, ledger=ledger)
    shown = Ledger.open(ledger).show()
    assert [one["finished"] for one in shown["runs"]] == [True]
    assert shown["spent"] == pytest.approx(metrics["epsilon"], rel=1e-6)


def test_a_run_that_would_overspend_is_refused_and_leaves_nothing(run, ledger, tmp_path):
    run("a", epsilon=2.0, ledger=ledger)
    for seed in (1, None):
        with pytest.raises(InputError, match=r"refuses run .*: spent epsilon=.*, above the total of epsilon=3"):
            run("b", epsilon=2.5, seed=seed, ledger=ledger)
        assert {path.name for path in (tmp_path / "b").iterdir()} == {".lock"}
    assert Ledger.open(ledger).show()["entries"] == 2  # The run, and its end.


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, None])
def test_a_finished_run_is_charged_to_a_ledger_that_does_not_know_it(run, ledger, seed):
    """Its noise is drawn, whoever counted it; and however often the command is given, it is drawn once."""
    metrics = run("a", epsilon=2.0, seed=seed)
    for _ in range(2):
        assert run("a", epsilon=2.0, seed=seed, ledger=ledger) == metrics
        shown = Ledger.open(ledger).show()
        assert [(one["run"], one["finished"]) for one in shown["runs"]] == [(metrics["run_name"], True)]
        assert shown["spent"] == pytest.approx(metrics["epsilon"], rel=1e-6)


def test_a_finished_run_without_a_name_is_known_by_its_weights(finished, run, recipe, tmp_path):
    """As runs were of before names went into metrics: charged once, or refused and kept."""
    private = datasets.load_private()
    digest = dataset_digest(private.train, private.validation)
    ample, scarce = (Ledger.create(tmp_path / f"{total}.db", digest, total, DELTA) for total in (10.0, 2.0))
    path = tmp_path / "run" / "metrics.json"
    older = json.loads(path.read_text())
    del older["run_name"]
    path.write_text(json.dumps(older))
    named = "seed-mlp-" + hashlib.sha256((tmp_path / "run" / "model.keras").read_bytes()).hexdigest()[:16]
    for _ in range(2):
        run(ledger=ample.path)
        assert [(one["run"], one["finished"]) for one in ample.show()["runs"]] == [(named, True)]
    with pytest.raises(InputError, match=f"refuses run '{named}'.*above the total"):
        run(ledger=scarce.path)
    assert not scarce.entries()
    assert (tmp_path / "run" / "model.keras").exists()


@pytest.mark.slow
def test_a_run_charged_before_is_not_charged_when_asked_again(run, ledger):
    metrics = run("a", epsilon=2.0, seed=None, ledger=ledger)
    assert run("a", epsilon=2.0, seed=None, ledger=ledger) == metrics
    assert Ledger.open(ledger).show()["entries"] == 2


def test_a_ledger_for_other_data_is_refused(run, tmp_path):
    Ledger.create(tmp_path / "other.db", "another data set".replace(" ", "-"), 3.0, DELTA)
    with pytest.raises(InputError, match="another-data-set"):
        run(ledger=tmp_path / "other.db")


@pytest.mark.slow
def test_engines_spend_the_same_and_both_learn(run, tmp_path):
    by_engine = [run(engine, epsilon=8.0, engine=engine) for engine in ("reference", "fast")]
    assert [metrics["engine"] for metrics in by_engine] == ["reference", "fast"]
    assert by_engine[0]["epsilon"] == by_engine[1]["epsilon"]
    assert min(metrics["test_accuracy"] for metrics in by_engine) > 0.5
    with pytest.raises(InputError, match="engine to be one of reference, fast, got engine='quick'"):
        run("c", engine="quick")


@pytest.mark.parametrize("epsilon", [1.0, 3.0])
def test_epsilon_follows_from_the_runs_own_log(finished, run, epsilon):
    """The log of events, rebuilt and accounted here by dp-accounting alone."""
    metrics = finished if epsilon == 3.0 else run("other", epsilon=epsilon)

    def rebuilt(node):
        node = {key: rebuilt(value) if key == "event" else value for key, value in node.items()}
        return getattr(dp_accounting, node.pop("type"))(**node)

    accountant = pld.PLDAccountant()
    for event in metrics["events"]:
        accountant.compose(rebuilt(event))
    assert accountant.get_epsilon(DELTA) == pytest.approx(metrics["epsilon"], rel=1e-6)


def test_the_twin_without_dp_is_the_runs_own_network(recipe, monkeypatch):
    seen = {}

    def note(model, examples, labels, *, epochs, seed):
        seen.update(name=model.name, epochs=epochs)
        return model

    monkeypatch.setattr(audits, "train_without_dp", note)
    tutorial = RECIPES["tutorial-cnn"]
    audits._twin(tutorial, architectures.WHOLE[tutorial.model](), datasets.load_private(), 0, 7)
    assert seen == {"name": "tutorial_cnn", "epochs": 7}


def test_audit_of_a_run(finished, tmp_path):
    metrics = audits.audit_run(tmp_path / "run", tmp_path / "audit")
    assert {"dp", "non_private", "positive_control"} == set(metrics["audit"])
    assert metrics["audit"]["dp"]["accounted"]["violation"] is False
    assert (tmp_path / "audit" / "roc.png").read_bytes().startswith(b"\x89PNG")
    full = json.loads((tmp_path / "audit" / "audit.json").read_text())
    assert "roc" in full["dp"]["attacks"]["loss_threshold"]
    assert "roc" not in metrics["audit"]["dp"]["attacks"]["loss_threshold"]


def test_audit_refuses_what_is_no_run(finished, tmp_path):
    path = tmp_path / "run" / "metrics.json"
    whole = json.loads(path.read_text())
    for change, naming in (
        ({"recipe": "finetune"}, "finetune"),
        ({"recipe": ["x"]}, "recipe"),
        ({"examples": 5}, "examples"),
        ({"epsilon": "high"}, "accounted_epsilon"),
    ):
        path.write_text(json.dumps(whole | change))
        with pytest.raises(InputError, match=naming):
            audits.audit_run(tmp_path / "run", tmp_path / "audit")
        assert not (tmp_path / "audit").exists()


def test_a_run_that_is_paid_for_is_stated_without_tf_privacy_too(monkeypatch):
    run = gaussian.DpSgdRun(1000, 100, 2.0, 10)
    recipe = RECIPES["seed-mlp"]
    with_figures = runs.run_statement(recipe, run, 1e-5, seeded=False)

    def absent(*_):
        raise MissingPackageError("tensorflow-privacy", "not here")

    monkeypatch.setattr(comparison, "tensorflow_privacy_figures", absent)
    without = runs.run_statement(recipe, run, 1e-5, seeded=False)
    assert "compute_dp_sgd_privacy" in with_figures
    assert "compute_dp_sgd_privacy" not in without
    assert set(without.splitlines()) <= set(with_figures.splitlines())
