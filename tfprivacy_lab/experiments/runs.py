"""One run of a recipe, from data to a folder with model, metrics and privacy statement."""

from __future__ import annotations

import dataclasses
import functools
import time
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from tfprivacy_lab import files
from tfprivacy_lab.checks import InputError, MissingPackageError, check_choice
from tfprivacy_lab.data import datasets, rendered_digits
from tfprivacy_lab.dp import plan
from tfprivacy_lab.dp.accounting import comparison, events, gaussian, laplace, statement
from tfprivacy_lab.dp.accounting.statement import laplace_statement
from tfprivacy_lab.dp.ledger.ledger import Ledger
from tfprivacy_lab.dp.training import laplace_sgd, planned
from tfprivacy_lab.experiments import charges, claims, features, laplace_head
from tfprivacy_lab.experiments.recipes import Pretraining, Recipe
from tfprivacy_lab.models import architectures
from tfprivacy_lab.provenance import provenance

NOT_COVERED = (
    "validation accuracy, computed from private examples outside training",
    "audit figures, computed from private training examples for the owner of the data",
    "the model's answers about anyone in particular: DP bounds what training adds, not what is true",
)


@dataclasses.dataclass(frozen=True)
class Trained:
    """What DP training made: images to logits, what it cost, and how it went."""

    model: keras.Model
    run: gaussian.DpSgdRun | laplace.LaplaceRun
    records: list[plan.EpochRecord]


def use_determinism() -> None:
    """Same seed, same bits: what tests, teaching and resumed runs rely on."""
    tf.config.experimental.enable_op_determinism()


def train_head(features: np.ndarray, labels: np.ndarray, **settings) -> Trained:
    """Train a dense head on frozen features (n, d) under DP; see :func:`train_model`."""
    return train_model(architectures.dense_head(features.shape[1]), features, labels, **settings)


def train_whole(train: datasets.Split, *, recipe: Recipe, public_seed: int, **settings) -> Trained:
    """Train all of a recipe's model on images under DP; its first weights come from a public seed."""
    keras.utils.set_random_seed(public_seed % 2**32)
    return train_model(architectures.WHOLE[recipe.model](), train.images, train.labels, recipe=recipe, **settings)


def train_model(
    model: keras.Model, examples, labels, *, recipe: Recipe, epsilon: float, delta: float, seed: int, **options
) -> Trained:
    """Calibrate the noise to (ε, δ), train, and hold the run against its budget.

    Raises:
        InputError: if the budget cannot be met or the arguments do not fit.
    """
    run = recipe.plan.calibrated(len(labels), epsilon, delta)
    train = planned.train
    if _is_laplace(recipe):
        check_choice("engine", options.pop("engine", "reference"), ("reference",))
        train = laplace_sgd.train_laplace
    records = train(model, examples, labels, plan=recipe.plan, run=run, delta=delta, seed=seed, **options)
    if records[-1].epsilon > epsilon or records[-1].steps != run.steps:
        raise RuntimeError(f"the run spent epsilon={records[-1].epsilon} of {epsilon} in {records[-1].steps} steps")
    return Trained(model, run, records)


def _is_laplace(recipe: Recipe) -> bool:
    return isinstance(recipe.plan, laplace.LaplacePlan)


def train_recipe(
    recipe: Recipe,
    out,
    *,
    epsilon: float,
    delta: float,
    seed: int | None = None,
    dataset: str = "mnist",
    data_dir=None,
    epochs: int | None = None,
    engine: str | None = None,
    ledger=None,
    on_epoch=None,
) -> dict:
    """Run a recipe and write ``model.keras``, ``metrics.json`` and ``privacy_statement.txt``.

    Args:
        recipe: What to run.
        out: Folder of the results. If it holds this very run, finished, nothing is done again.
        epsilon: Budget ε > 0.
        delta: Budget δ in (0, 1).
        seed: Whole number, for tests and teaching; None takes noise from a fresh secret seed.
        dataset: One of :data:`tfprivacy_lab.data.datasets.DATASETS`.
        data_dir: Where prepared datasets lie.
        epochs: Instead of the recipe's.
        engine: "reference" or "fast", see :func:`tfprivacy_lab.dp.training.planned.train`; None takes the recipe's.
        ledger: File of the :class:`tfprivacy_lab.dp.ledger.ledger.Ledger` that is charged before any noise is drawn; a
            finished run that it does not know is charged too, before its metrics are returned.
        on_epoch: Called with each EpochRecord.

    Returns:
        What ``metrics.json`` holds.

    Raises:
        InputError: naming the argument, before anything is computed; or if the folder holds another run.
    """
    out, public_seed = Path(out), claims.public_seed(seed)
    recipe = recipe.for_budget(epsilon).with_public_seed(public_seed)
    if epochs is not None:
        recipe = dataclasses.replace(recipe, plan=dataclasses.replace(recipe.plan, epochs=epochs))
    private = datasets.load_private(dataset, data_dir, validation=recipe.validation, seed=public_seed)
    # Fails here, before anything is written, if the budget cannot be met.
    run = recipe.plan.calibrated(len(private.train), epsilon, delta)
    settings = {
        "recipe": recipe.name,
        "plan": dataclasses.asdict(recipe.plan),
        "epsilon": epsilon,
        "delta": delta,
        "seed": seed,
        "dataset": dataset,
        "data": private.digest(),
        "engine": check_choice("engine", engine or recipe.engine, planned.ENGINES),
    }
    with claims.only_one(out):
        new = claims.claim(out, settings)
        if (out / "metrics.json").exists():
            # Killed between the two, a finished run would otherwise keep its seed for good.
            claims.forget_noise_seed(out)
            metrics = files.read_json(out / "metrics.json", "metrics")
            if ledger is not None:
                name = metrics.get("run_name") or charges.name_of_model(recipe, out / "model.keras")
                charges.charge_finished(ledger, private, run, name, settings, seed)
            return metrics
        if ledger is None:
            return _train_recipe(recipe, out, private, settings, data_dir, on_epoch)
        try:
            charged = charges.charge(ledger, recipe, private, run, settings, claims.noise_seed(out, seed))
        except InputError:
            if new:
                claims.release(out)
            raise
        metrics = _train_recipe(recipe, out, private, settings, data_dir, on_epoch)
        Ledger.open(ledger).finish(charged.run)
        return metrics


def _train_recipe(recipe, out, private, settings, data_dir, on_epoch):
    """Train, test once, write."""
    start, seed, delta = time.perf_counter(), settings["seed"], settings["delta"]
    use_determinism()
    budget = {
        "engine": settings["engine"],
        "recipe": recipe,
        "epsilon": settings["epsilon"],
        "delta": delta,
        "seed": claims.noise_seed(out, seed),
        "on_epoch": on_epoch,
    }
    features_seconds, name = 0.0, charges.name_of(recipe, settings, budget["seed"])
    if recipe.trained == "head":
        extractor, embed = _extractor(recipe, out, progress=on_epoch is not None)
        train, held_out = (embed(part.images) for part in (private.train, private.validation))
        features_seconds = time.perf_counter() - start
        validation = (held_out, private.validation.labels)
        trained = train_head(train, private.train.labels, validation=validation, **budget)
        model = architectures.with_head(extractor, trained.model)
    else:
        validation = (private.validation.images, private.validation.labels)
        trained = train_whole(private.train, public_seed=claims.public_seed(seed), validation=validation, **budget)
        model = trained.model
    test = datasets.load_test(settings["dataset"], data_dir)
    metrics = {
        **run_metrics(recipe, trained, delta, seed=seed, engine=settings["engine"]),
        "dataset": settings["dataset"],
        "official_mnist": private.official,
        "test_accuracy": planned.evaluate_accuracy(model, test.images, test.labels),
        "run_name": name,
        "features_seconds": round(features_seconds, 1),
        "seconds": round(time.perf_counter() - start - features_seconds, 1),
        **provenance(),
    }
    write_run(out, model, metrics, run_statement(recipe, trained.run, delta, seeded=seed is not None))
    claims.forget_noise_seed(out)
    return metrics


def _extractor(recipe: Recipe, out: Path, *, progress: bool):
    """What the head stands on, public and frozen, and a function that embeds private images by it."""
    if recipe.features:
        extractor = features.public_extractor(recipe, progress=progress)
        return extractor, functools.partial(features.embedded, recipe, extractor)
    backbone = _backbone(recipe.pretraining, out / "backbone.keras", progress=progress)
    if recipe.projection is not None:
        public_images, _ = rendered_digits.render_digits(10_000, recipe.pretraining.seed)
        backbone = laplace_head.projected_backbone(backbone, public_images, recipe.projection)
    return backbone, functools.partial(architectures.embed, backbone)


def _backbone(settings: Pretraining, path: Path, *, progress: bool) -> keras.Model:
    """The public backbone: read if it is there, else learnt and written."""
    if not path.exists():
        learnt = features.pretrain_public(settings, progress)
        with files.replaced_atomically(path) as partial:
            learnt.backbone.save(partial)
    return architectures.freeze(load_model(path))


def run_metrics(recipe: Recipe, trained: Trained, delta: float, *, seed: int | None, engine: str = "reference") -> dict:
    """What ``metrics.json`` says of a DP run, but for accuracy, data and provenance."""
    account = laplace.account_laplace if _is_laplace(recipe) else gaussian.account
    clip = "l1_norm_clip" if _is_laplace(recipe) else "l2_norm_clip"
    return {
        "recipe": recipe.name,
        "seed": seed,
        "split_seed": claims.public_seed(seed),
        **account(trained.run, delta),
        clip: getattr(recipe.plan, clip),
        "learning_rate": recipe.plan.learning_rate,
        "momentum": recipe.plan.momentum,
        "examples": trained.run.examples,
        "batch_size": recipe.plan.batch_size,
        "epochs": recipe.plan.epochs,
        "engine": engine,
        "trained_weights": sum(int(np.prod(weight.shape)) for weight in trained.model.trainable_weights),
        "events": [events.to_json(trained.run.event())],
        "history": [
            {key: value for key, value in dataclasses.asdict(record).items() if key != "seconds"}
            for record in trained.records
        ],
    }


def run_statement(recipe: Recipe, run: gaussian.DpSgdRun, delta: float, *, seeded: bool) -> str:
    """The privacy statement of a recipe's run."""
    released = {
        "head": "the dense head (kernel and bias) at every step; what it stands on saw public data only",
        "model": "all weights of the model, at every step",
    }[recipe.trained]
    if _is_laplace(recipe):
        return laplace_statement(
            run,
            delta,
            released=released,
            l1_norm_clip=recipe.plan.l1_norm_clip,
            tuning=recipe.tuning,
            seeded=seeded,
            unit=datasets.UNIT,
            not_covered=NOT_COVERED,
        )
    return statement.privacy_statement(
        run,
        delta,
        released=released,
        l2_norm_clip=recipe.plan.l2_norm_clip,
        tuning=recipe.tuning,
        seeded=seeded,
        unit=datasets.UNIT,
        not_covered=NOT_COVERED,
        tensorflow_privacy=_figures_beside(run, delta),
    )


def _figures_beside(run, delta: float) -> dict | None:
    """TF Privacy's own figures, or None where it is not installed: a run that is paid for is written all the same."""
    try:
        return comparison.tensorflow_privacy_figures(run, delta)
    except MissingPackageError:
        return None


def write_run(out: Path, model: keras.Model, metrics: dict, text: str) -> None:
    """The three files of a run; ``metrics.json`` last, so that its presence means the run is whole."""
    # Without the optimizer: its slots are of no use to a reader, and TF Privacy's do not load back.
    bare = keras.models.clone_model(model)
    bare.set_weights(model.get_weights())
    with files.replaced_atomically(out / "model.keras") as partial:
        bare.save(partial)
    files.write_bytes(out / "privacy_statement.txt", text.encode())
    files.write_json(out / "metrics.json", metrics)


def load_model(path) -> keras.Model:
    """A saved model, without running code from the file.

    Raises:
        InputError: naming the file.
    """
    if not Path(path).is_file():
        raise InputError(f"Cannot read model {path}: no such file.")
    try:
        return keras.models.load_model(path, compile=False, safe_mode=True)
    except Exception as error:
        raise InputError(f"Cannot read model {path}: {str(error).splitlines()[0][:200]}.") from error
