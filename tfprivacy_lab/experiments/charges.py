"""Charging a recipe's run to the ledger of its data: before it draws noise, or after the fact."""

from __future__ import annotations

import hashlib
from pathlib import Path

from tfprivacy_lab import files
from tfprivacy_lab.data import datasets
from tfprivacy_lab.dp.ledger.ledger import Ledger, Reservation, dataset_digest, run_name
from tfprivacy_lab.experiments.recipes import Recipe


def name_of(recipe: Recipe, settings: dict, noise_seed: int) -> str:
    """The run's name in a ledger; by a hash, so that it gives nothing of a secret seed away."""
    return run_name(recipe.name, noise_seed=noise_seed, settings=settings)


def charge(ledger, recipe: Recipe, private: datasets.PrivateData, run, settings: dict, noise_seed: int) -> Reservation:
    """Charge a run to the ledger of its data, or find it charged: a resumed run draws the same noise again.

    Args:
        ledger: The ledger's file.
        recipe: What runs.
        private: The whole private set that the ledger stands for; the run may use a part of it.
        run: What the run will do.
        settings: JSON-ready; everything that decides the run.
        noise_seed: Of sampling and noise.

    Raises:
        InputError: if it would overspend, or the ledger is for other data.
    """
    book = Ledger.open(ledger, dataset_digest(private.train, private.validation))
    name = name_of(recipe, settings, noise_seed)
    return book.register(name, run.event(), noise_seed=noise_seed, settings=settings)


def charge_finished(ledger, private: datasets.PrivateData, run, name: str, settings: dict, seed: int | None) -> None:
    """Charge a run that drew its noise without this ledger, if its name is not there: it is spent all the same.

    A secret seed is deleted by now and cannot be bound; a published one is.

    Args:
        ledger: As for :func:`charge`.
        private: As for :func:`charge`.
        run: What the run did.
        name: What :func:`name_of` gave when it ran, or :func:`name_of_model`.
        settings: As for :func:`charge`.
        seed: The published seed, or None.

    Raises:
        InputError: if it would overspend: the ledger cannot vouch for a result that is there, which must go.
    """
    book = Ledger.open(ledger, dataset_digest(private.train, private.validation))
    if not any(entry.run == name for entry in book.entries()):
        book.register(name, run.event(), noise_seed=seed, settings=settings)
    book.finish(name)


def name_of_model(recipe: Recipe, path: Path) -> str:
    """A name for a run that noted none: noise makes its weights like no other's."""
    return f"{recipe.name}-{hashlib.sha256(files.read_bytes(path, 'model')).hexdigest()[:16]}"
