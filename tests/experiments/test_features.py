"""Cached features: made once, made again when data or settings change or a file is damaged, and private."""

import dataclasses

import numpy as np
import pytest

from tfprivacy_lab.data import datasets
from tfprivacy_lab.data.rendered_digits import render_digits
from tfprivacy_lab.experiments import features, runs
from tfprivacy_lab.experiments.recipes import RECIPES, Pretraining, Recipe, Scattering
from tfprivacy_lab.models import architectures

PARTS = (Scattering(dimension=8, images=60), Pretraining("supervised", images=512, epochs=1, network="deep_backbone"))


def split(count, seed):
    images, labels = render_digits(count, seed)
    return datasets.Split(images[..., None].astype(np.float32) / 255, labels.astype(np.int64))


def shrunk(name: str) -> Recipe:
    """A recipe for a few hundred examples and a second; its kind of features and model as they are."""
    recipe = RECIPES[name]
    plan = dataclasses.replace(recipe.plan, batch_size=100, epochs=1)
    parts = PARTS if recipe.pretraining is None and len(recipe.features) > 1 else recipe.features
    pretraining = recipe.pretraining and dataclasses.replace(recipe.pretraining, images=512, epochs=1)
    return dataclasses.replace(recipe, plan=plan, plans=(), features=parts, pretraining=pretraining)


@pytest.fixture(scope="module")
def extractor_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def cache(extractor_cache, monkeypatch):
    monkeypatch.setenv("TFPRIVACY_LAB_CACHE", str(extractor_cache))
    private = datasets.PrivateData(split(300, 1), split(50, 2), official=False)
    monkeypatch.setattr(datasets, "load_private", lambda *arguments, **options: private)
    monkeypatch.setattr(datasets, "load_test", lambda *arguments, **options: split(100, 3))
    return extractor_cache


def stored(cache):
    return {path.name for path in cache.iterdir() if path.suffix == ".features"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        pytest.param("scatter-finetune", marks=pytest.mark.long),
        "scatter-linear",
        "tutorial-cnn",
        "seed-mlp",
        "finetune",
    ],
)
def test_every_recipe_trains_and_states_its_guarantee(name, cache, tmp_path):
    metrics = runs.train_recipe(shrunk(name), tmp_path / "run", epsilon=8.0, delta=1e-4, seed=0)
    assert metrics["epsilon"] <= 8.0
    assert metrics["engine"] == RECIPES[name].engine
    assert metrics["steps"] == 3
    assert f"epsilon = {metrics['epsilon']:.4f}" in (tmp_path / "run" / "privacy_statement.txt").read_text()
    released = runs.load_model(tmp_path / "run" / "model.keras")
    test = split(100, 3)
    again = np.mean(released.predict(test.images, verbose=0).argmax(1) == test.labels)
    assert again == pytest.approx(metrics["test_accuracy"], abs=0.011)


@pytest.mark.slow
def test_features_are_made_once_and_again_for_other_images(cache, monkeypatch):
    recipe = shrunk("scatter-finetune")
    extractor = features.public_extractor(recipe)
    images, others = split(40, 5).images, split(40, 6).images
    first, before = features.embedded(recipe, extractor, images), stored(cache)
    np.testing.assert_array_equal(first, architectures.embed(extractor, images))
    with monkeypatch.context() as patched:
        patched.setattr(architectures, "embed", lambda *_: pytest.fail("computed twice"))
        np.testing.assert_array_equal(features.embedded(recipe, extractor, images), first)
    assert not np.array_equal(features.embedded(recipe, extractor, others), first)
    assert len(stored(cache) - before) == 1
    for name in stored(cache):
        assert (cache / name).stat().st_mode & 0o077 == 0


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["cut", "changed", "emptied"])
def test_damaged_features_are_made_again(cache, damage):
    recipe = shrunk("scatter-finetune")
    extractor, before = features.public_extractor(recipe), stored(cache)
    images = split(30, {"cut": 10, "changed": 11, "emptied": 12}[damage]).images
    found = features.embedded(recipe, extractor, images)
    (path,) = (cache / name for name in stored(cache) - before)
    whole = path.read_bytes()
    changed = whole[:200] + bytes([whole[200] ^ 1]) + whole[201:]
    path.write_bytes({"cut": whole[:-5], "changed": changed, "emptied": b""}[damage])
    np.testing.assert_array_equal(features.embedded(recipe, extractor, images), found)
    assert path.read_bytes() == whole


@pytest.mark.long
def test_a_damaged_extractor_is_made_again(cache):
    recipe = dataclasses.replace(shrunk("scatter-finetune"), features=(Scattering(dimension=4, images=50),))
    before = {path.name for path in cache.iterdir()}
    images = split(20, 8).images
    found = architectures.embed(features.public_extractor(recipe), images)
    (path,) = (path for path in cache.iterdir() if path.name not in before)
    path.write_bytes(path.read_bytes()[:1000])
    np.testing.assert_allclose(architectures.embed(features.public_extractor(recipe), images), found, atol=1e-4)
    assert path.stat().st_size > 1000


def test_the_plan_follows_the_budget():
    recipe = RECIPES["scatter-linear"]
    assert recipe.for_budget(1.0).plan == recipe.plan
    assert recipe.for_budget(1.5).plan == recipe.for_budget(8.0).plan == recipe.plans[0][1]
    assert RECIPES["finetune"].for_budget(8.0).plan == RECIPES["finetune"].plan
