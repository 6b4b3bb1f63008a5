"""The Laplace recipe: its public projection, and a small head that learns under a pure epsilon."""

import dataclasses

import numpy as np
import pytest

from tfprivacy_lab.checks import InputError
from tfprivacy_lab.data import datasets, rendered_digits
from tfprivacy_lab.dp import train_laplace
from tfprivacy_lab.dp.accounting import composition
from tfprivacy_lab.dp.ledger.ledger import Ledger, dataset_digest
from tfprivacy_lab.experiments import features, laplace_head, runs
from tfprivacy_lab.experiments.recipes import RECIPES
from tfprivacy_lab.models import architectures
from tfprivacy_lab.pretraining import tasks


def clusters(n, seed, classes=10, width=128):
    """Features in ten clusters whose centres span nine dimensions of 128."""
    centres = np.random.default_rng(0).normal(size=(classes, width))
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    return (centres[labels] + 0.3 * rng.normal(size=(n, width))).astype(np.float32), labels


def test_projection_is_the_principal_axes_of_the_public_features():
    public, _ = clusters(500, 1)
    private, _ = clusters(40, 2)
    projected = laplace_head.public_projection(public, 6)(private).numpy()
    values, vectors = np.linalg.eigh(np.cov(public.T.astype(float)))
    oracle = (private - public.mean(axis=0)) @ vectors[:, ::-1][:, :6]
    oracle /= np.linalg.norm(oracle, axis=1, keepdims=True)
    signs = np.sign((projected * oracle).sum(axis=0))
    np.testing.assert_allclose(projected * signs, oracle, atol=2e-4)
    assert values[-6] > 2 * values[-11]


def test_projector_is_frozen_and_depends_on_public_features_alone():
    projector = laplace_head.public_projection(clusters(100, 1)[0], 5)
    assert projector.trainable_weights == []
    np.testing.assert_allclose(np.linalg.norm(projector(clusters(20, 3)[0]), axis=1), 1.0, rtol=1e-5)


def test_extractor_and_head_are_one_model_that_saves_and_loads(tmp_path):
    images = np.random.default_rng(0).random((64, 28, 28, 1), np.float32)
    extractor = laplace_head.projected_backbone(architectures.freeze(architectures.backbone()), images, 8)
    features = architectures.embed(extractor, images)
    assert features.shape == (64, 8)
    head = architectures.dense_head(8)
    head.set_weights([np.random.default_rng(1).normal(size=shape) for shape in ((8, 10), (10,))])
    model = architectures.with_head(extractor, head)
    model.save(tmp_path / "model.keras")
    loaded = runs.load_model(tmp_path / "model.keras")
    expected = features @ head.get_weights()[0] + head.get_weights()[1]
    np.testing.assert_allclose(loaded.predict(images, verbose=0), expected, rtol=1e-4, atol=1e-4)


def trained_head(features, labels, epsilon, delta, epochs, **options):
    """A head trained by the recipe's plan, for a private set of this size; its run and records."""
    plan = dataclasses.replace(RECIPES["laplace-head"].plan, batch_size=len(labels), epochs=epochs)
    run = plan.calibrated(len(labels), epsilon, delta)
    head = architectures.dense_head(features.shape[1])
    return run, train_laplace(head, features, labels, plan=plan, run=run, delta=delta, seed=5, **options)


@pytest.mark.parametrize("secure", [False, True])
def test_head_learns_under_a_pure_epsilon(secure):
    projector = laplace_head.public_projection(clusters(300, 1)[0], 12)
    (train, labels), (test, wanted) = clusters(3_000, 2), clusters(500, 3)
    validation = (projector(test).numpy(), wanted)
    run, records = trained_head(projector(train).numpy(), labels, 4.0, 0, 6, secure_noise=secure, validation=validation)
    assert 3.999 < run.pure_epsilon <= 4.0
    assert records[-1].epsilon == run.pure_epsilon
    assert run.steps == 6 == len(records)
    assert run.sampling_probability == 1
    assert records[-1].validation_accuracy > 0.9


def test_the_recipe_end_to_end(monkeypatch, tmp_path):
    """Through ``train_recipe``, on a backbone that learnt nothing: what it writes, states and charges."""
    rng = np.random.default_rng(0)
    parts = [datasets.Split(rng.random((n, 28, 28, 1), np.float32), rng.integers(0, 10, n)) for n in (600, 50, 50)]
    private = datasets.PrivateData(*parts[:2], official=False)
    monkeypatch.setattr(datasets, "load_private", lambda *arguments, **options: private)
    monkeypatch.setattr(datasets, "load_test", lambda *arguments, **options: parts[2])
    learnt = tasks.Pretrained(architectures.freeze(architectures.backbone()), history={})
    monkeypatch.setattr(features, "pretrain_public", lambda *arguments, **options: learnt)
    digits = (255 * parts[0].images[..., 0]).astype(np.uint8)
    monkeypatch.setattr(rendered_digits, "render_digits", lambda count, seed: (digits, parts[0].labels))
    recipe = RECIPES["laplace-head"]
    recipe = dataclasses.replace(recipe, plan=dataclasses.replace(recipe.plan, batch_size=600, epochs=2))
    ledger = Ledger.create(tmp_path / "ledger", dataset_digest(*parts[:2]), 5.0, 1e-5)
    arguments = {"epsilon": 4.0, "delta": 1e-5, "seed": 0, "ledger": ledger.path}
    metrics = runs.train_recipe(recipe, tmp_path / "run", **arguments)
    assert 3.99 < metrics["epsilon_pure"] <= 4.0
    assert 0 < metrics["epsilon"] <= metrics["epsilon_pure"]
    assert metrics["mechanism"] == "laplace"
    assert {"l1_norm_clip", "features_seconds", "seconds", "test_accuracy"} <= metrics.keys()
    said = " ".join((tmp_path / "run" / "privacy_statement.txt").read_text().split())
    assert f"{metrics['epsilon_pure']:.4f}" in said
    assert "Laplace" in said
    assert ledger.spent() == pytest.approx(metrics["epsilon"], rel=1e-3)
    assert composition.pure_epsilon(ledger.entries()[0].event) == pytest.approx(metrics["epsilon_pure"], rel=1e-9)
    assert [entry.kind for entry in ledger.entries()] == ["register", "finish"]
    assert runs.load_model(tmp_path / "run" / "model.keras").predict(parts[2].images, verbose=0).shape == (50, 10)


def test_noise_is_what_limits_a_tiny_budget():
    """The same head at a budget that leaves nothing: the noise is really there."""
    projector = laplace_head.public_projection(clusters(300, 1)[0], 12)
    (train, labels), test = clusters(500, 2), clusters(500, 3)
    validation = (projector(test[0]).numpy(), test[1])
    _, records = trained_head(projector(train).numpy(), labels, 0.01, 1e-5, 3, validation=validation)
    assert records[-1].validation_accuracy < 0.5
    assert records[-1].epsilon <= 0.01


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: laplace_head.public_projection(np.zeros((5, 8)), 5), "more public features than dimension=5, got 5"),
        (lambda: laplace_head.public_projection(np.zeros((9, 8)), 9), "dimension=9"),
        (lambda: laplace_head.public_projection(np.full((9, 8), np.nan), 2), "public_features to be finite"),
        (lambda: laplace_head.public_projection(np.zeros(9), 2), r"array \(rows, columns\), got shape \(9,\)"),
    ],
)
def test_arguments_are_checked(call, message):
    with pytest.raises(InputError, match=message):
        call()
