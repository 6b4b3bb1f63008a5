"""Attacks on trained runs: the glue between models and :mod:`tfprivacy_lab.audit`, which takes arrays.

Three models are attacked, because an attack that finds nothing proves nothing: a positive control that
is made to overfit (the attack must find it out), the twin of the private model trained without DP on
the same examples, and the private model itself.
"""

from __future__ import annotations

import dataclasses
import time
import warnings
from pathlib import Path

import keras
import numpy as np

from tfprivacy_lab import audit, files
from tfprivacy_lab.checks import InputError
from tfprivacy_lab.data import datasets
from tfprivacy_lab.experiments import runs
from tfprivacy_lab.experiments.recipes import recipe as recipe_named
from tfprivacy_lab.models import architectures
from tfprivacy_lab.pretraining.progress import Progress
from tfprivacy_lab.provenance import provenance
from tfprivacy_lab.report import guarantee

MEMBERS = 5_000


@dataclasses.dataclass(frozen=True)
class Target:
    """Inputs and labels that a model was trained on, and held-out ones of the same distribution."""

    member_inputs: np.ndarray
    member_labels: np.ndarray
    nonmember_inputs: np.ndarray
    nonmember_labels: np.ndarray

    @classmethod
    def sample(cls, train, held_out, seed: int, members: int = MEMBERS) -> Target:
        """Draw ``members`` training examples at random; each side is (inputs, labels)."""
        count = min(members, len(train[1]))
        chosen = np.sort(np.random.default_rng([seed, 7]).choice(len(train[1]), count, replace=False))
        return cls(train[0][chosen], train[1][chosen], *held_out)


def attack(model: keras.Model, target: Target, *, delta: float, seed: int, epsilon: float | None = None) -> dict:
    """Membership inference on one model; see :func:`tfprivacy_lab.audit.membership_inference`."""
    member, nonmember = (
        audit.Scores(architectures.outputs(model, inputs), labels)
        for inputs, labels in (
            (target.member_inputs, target.member_labels),
            (target.nonmember_inputs, target.nonmember_labels),
        )
    )
    with warnings.catch_warnings():
        # The verdict in the result says it; the callers print it.
        warnings.simplefilter("ignore", audit.PrivacyViolationWarning)
        return audit.membership_inference(member, nonmember, delta, seed % 2**32, accounted_epsilon=epsilon)


def train_without_dp(
    model: keras.Model,
    examples,
    labels,
    *,
    epochs: int,
    seed: int,
    learning_rate: float = 1e-3,
    progress: str | None = None,
) -> keras.Model:
    """The same model without clipping and noise: Adam on shuffled batches of 128; ``progress`` is what to call it."""
    keras.utils.set_random_seed(seed % 2**32)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    # The same steps: Keras only comes back to Python after so many.
    model.compile(optimizer=keras.optimizers.Adam(learning_rate), loss=loss, steps_per_execution=32)
    order = np.random.default_rng([seed, 8]).permutation(len(labels))
    with Progress(f"      {progress}", epochs, shown=progress is not None) as shown:
        after = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: shown.advance())
        model.fit(examples[order], labels[order], batch_size=128, epochs=epochs, verbose=0, callbacks=[after])
    return model


def head_without_dp(features: np.ndarray, labels: np.ndarray, seed: int, *, progress: str | None = None) -> keras.Model:
    """A dense head on the same frozen features, without DP; unit-norm features want larger steps."""
    head = architectures.dense_head(features.shape[1])
    return train_without_dp(head, features, labels, epochs=20, seed=seed, learning_rate=1e-2, progress=progress)


def positive_control(
    private: datasets.PrivateData, *, delta: float, seed: int, examples: int = 1_000, progress: str | None = None
) -> dict:
    """Attack the document's network after 60 epochs on few examples: a leak that must be found."""
    rows = slice(0, min(examples, len(private.train), len(private.validation)))
    few, held_out = private.train.take(rows), private.validation.take(rows)
    model = train_without_dp(
        architectures.document_mlp(), few.images, few.labels, epochs=60, seed=seed, progress=progress
    )
    target = Target(few.images, few.labels, held_out.images, held_out.labels)
    return attack(model, target, delta=delta, seed=seed)


def without_curves(result: dict) -> dict:
    """An attack's result without its ROC points: what ``metrics.json`` holds."""
    attacks = {
        name: {key: value for key, value in figures_of.items() if key != "roc"}
        for name, figures_of in result["attacks"].items()
    }
    return {**result, "attacks": attacks}


def audit_run(run, out, *, data_dir=None) -> dict:
    """Attack what ``train`` wrote, and its twin without DP, on the run's own private split.

    Args:
        run: Folder with ``model.keras`` and ``metrics.json``.
        out: Folder for ``metrics.json``, ``audit.json`` (with the curves) and ``roc.png``.
        data_dir: Where prepared datasets lie.

    Returns:
        What was written to ``metrics.json``: the run's figures, and the attacks under ``audit``.

    Raises:
        InputError: if the folder does not hold a run.
    """
    from tfprivacy_lab.report import figures

    start, run, out = time.perf_counter(), Path(run), Path(out)
    described = files.read_json(run / "metrics.json", "metrics of the run")
    for key in ("recipe", "dataset", "split_seed", "epsilon", "delta", "examples", "epochs"):
        if key not in described:
            raise InputError(f"Cannot audit {run}: its metrics.json has no {key!r}; is it what train wrote?")
    recipe = recipe_named(described["recipe"])
    model = runs.load_model(run / "model.keras")
    if (len(model.layers) == 2) != (recipe.trained == "head"):
        raise InputError(f"Cannot audit {run}: its model is not one of recipe {recipe.name!r}.")
    runs.use_determinism()
    seed, delta = described["split_seed"], described["delta"]
    private = datasets.load_private(described["dataset"], data_dir, validation=recipe.validation, seed=seed)
    if len(private.train) != described["examples"]:
        raise InputError(
            f"Cannot audit {run}: it was trained on {described['examples']} examples, the dataset gives "
            f"{len(private.train)}; another dataset folder?"
        )
    twin, train, held_out, attacked = _twin(recipe, model, private, seed, described["epochs"])
    target = Target.sample(train, held_out, seed)
    results = {
        "dp": attack(attacked, target, delta=delta, seed=seed, epsilon=described["epsilon"]),
        "non_private": attack(twin, target, delta=delta, seed=seed),
        "positive_control": positive_control(private, delta=delta, seed=seed),
    }
    metrics = {
        **{key: value for key, value in described.items() if key != "history"},
        "audit": {name: without_curves(result) for name, result in results.items()},
        "seconds": round(time.perf_counter() - start, 1),
        **provenance(),
    }
    files.write_json(out / "audit.json", results)
    bound = guarantee.bound_of(described)
    files.write_bytes(out / "roc.png", figures.roc(results, described["epsilon"], delta, bound))
    files.write_json(out / "metrics.json", metrics)
    return {**_summary(results), **metrics}


def _twin(recipe, model, private, seed, epochs):
    """(twin, train, held out, attacked): for a head, on features that are computed once."""
    if recipe.trained == "head":
        backbone, head = model.layers[-2:]
        parts = [
            (architectures.embed(backbone, part.images), part.labels) for part in (private.train, private.validation)
        ]
        return head_without_dp(*parts[0], seed), *parts, head
    parts = [(part.images, part.labels) for part in (private.train, private.validation)]
    twin = train_without_dp(architectures.WHOLE[recipe.model](), *parts[0], epochs=epochs, seed=seed)
    return twin, *parts, model


def _summary(results: dict) -> dict:
    """A line a model for people."""
    lines = {}
    for name, result in results.items():
        best = result["best"]
        lines[f"{name} auc"] = best["auc"]
        lines[f"{name} advantage"] = best["advantage"]
        lines[f"{name} epsilon_lower_bound"] = best["epsilon_lower_bound"]
    return {**lines, "verdict": results["dp"]["accounted"]["verdict"]}
