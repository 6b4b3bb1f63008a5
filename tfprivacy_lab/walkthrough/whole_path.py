"""The stages in order, each done once: interrupted or killed, the same command goes on.

Every stage reads files, writes files, and last of all writes its mark ``state/marks/NAME.json``, atomically.
A stage without its mark is done again from its start, from the same seeds: what it draws is what it drew
before, noise included, so the privacy spent is that of one run however often it was killed.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

from tfprivacy_lab import files, provenance
from tfprivacy_lab.checks import InputError
from tfprivacy_lab.dp.ledger.ledger import Ledger
from tfprivacy_lab.experiments import claims
from tfprivacy_lab.experiments.recipes import RECIPES, Pretraining, Recipe


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a walkthrough does; a folder holds the run of one setting.

    Attributes:
        seed: Of split, sampling and noise; None for secret noise from the operating system.
        fast: Whether it is the small run.
        recipe: The recipe, its sizes included.
        epsilon: Budget ε.
        delta: Budget δ.
        train_limit: Private examples to use, or None for all.
        test_limit: Test examples to use, or None for all.
        compared: Pretraining tasks to show side by side, each with its epochs on ``compared_images`` public
            images. The autoencoder learns more slowly and gets more.
    """

    seed: int | None
    fast: bool
    recipe: Recipe
    epsilon: float = 3.0
    delta: float = 1e-5
    dataset: str = "mnist"
    train_limit: int | None = None
    test_limit: int | None = None
    compared: tuple[tuple[str, int], ...] = (
        ("autoencoder", 8),
        ("contrastive", 3),
        ("supervised", 3),
        ("supervised+contrastive", 3),
    )
    compared_images: int = 10_000

    @property
    def split_seed(self) -> int:
        """Decides which private examples are held out; public, as the audit needs it."""
        return claims.public_seed(self.seed)

    def described(self) -> dict:
        """What decides a result, the software's versions included; JSON-ready."""
        recipe = dataclasses.asdict(self.recipe)
        for prose in ("summary", "tuning"):
            del recipe[prose]
        return {**dataclasses.asdict(self), "recipe": recipe, "versions": provenance.versions()}


def settings_for(*, fast: bool = False, seed: int | None = 0) -> Settings:
    """The full walkthrough, or the small one: real MNIST, real noise, real encryption, fewer examples."""
    recipe = RECIPES["finetune"].with_public_seed(claims.public_seed(seed))
    if not fast:
        return Settings(seed, fast, recipe)
    plan = dataclasses.replace(recipe.plan, batch_size=512, epochs=4)
    pretraining = Pretraining(recipe.pretraining.task, images=4_000, epochs=2, seed=recipe.pretraining.seed)
    small = dataclasses.replace(recipe, plan=plan, pretraining=pretraining, validation=1_000)
    return Settings(seed, fast, small, train_limit=8_000, test_limit=1_000, compared_images=768)


def walk(out, *, fast: bool = False, seed: int | None = 0, data_dir=None, ledger=None, on_progress=None) -> dict:
    """Do what is missing of a walkthrough.

    Args:
        out: Folder of the walkthrough: ``report.html``, ``metrics.json``, the model and its card.
        fast: The small run, under a minute.
        seed: Whole number, or None for secret noise from the operating system.
        data_dir: Where prepared datasets lie.
        ledger: File of a :class:`.Ledger` of the data set, to charge instead of one that is made
            in the folder, and knows of nothing else.
        on_progress: Called with a line of text as stages begin and end.

    Returns:
        What ``metrics.json`` holds.

    Raises:
        InputError: if the folder holds another run, one is being written by another process, the data are too few, or
            the ledger refuses.

    Guarantee: ``metrics.json`` states the ε of every noise draw that touched private data; see
    :mod:`tfprivacy_lab.dp.training.planned` for what it covers.
    """
    out, settings = Path(out), settings_for(fast=fast, seed=seed)
    if ledger is not None:
        Ledger.open(ledger)  # Refused now, not when the head is to be trained.
    note = on_progress or (lambda line: None)
    state = out / "state"
    if not state.exists():
        check_size(settings, data_dir)  # Refused now, with nothing written.
    _make_private(state)
    with claims.only_one(state):
        claims.claim(state, settings.described())
        from tfprivacy_lab.walkthrough import stages

        work = stages.Work(out, settings, data_dir, note, ledger)
        for number, (name, stage) in enumerate(stages.STAGES.items(), start=1):
            title = f"[{number}/{len(stages.STAGES)}] {stage.__doc__.splitlines()[0].rstrip('.')}"
            mark = work.mark(name)
            if mark.exists():
                note(f"{title}: done before")
                if name == "train":
                    stages.charge_finished(work)
            else:
                note(title)
                start = time.perf_counter()
                result = stage(work)
                files.write_json(mark, {"seconds": round(time.perf_counter() - start, 2), "result": result})
                note(f"{' ' * len(title[:5])} {time.perf_counter() - start:.1f} s")
            if name == "train":
                claims.forget_noise_seed(state)
    return files.read_json(out / "metrics.json", "metrics")


def check_size(settings: Settings, data_dir=None) -> None:
    """Hold the data set against what a walkthrough takes out of it: what is held out, and a batch to train on.

    Which digits are there, in the train or the test part, does not matter.

    Raises:
        InputError: naming both sizes, the folder and the remedy.
    """
    from tfprivacy_lab.data import datasets

    found, folder = datasets.count_train(settings.dataset, data_dir), datasets.data_directory(data_dir)
    held_out, batch = settings.recipe.validation, settings.recipe.plan.batch_size
    if found < held_out + batch:
        smaller = "" if settings.fast else ", or add --fast, which takes fewer"
        raise InputError(
            f"Expected at least {held_out + batch} train images in --data-dir {folder} ({held_out} to hold out, "
            f"{batch} in a batch), got {found}; prepare more by 'data prepare --from-idx DIR'{smaller}."
        )


def _make_private(folder: Path) -> None:
    """Make the folder that will hold features of private examples, for its owner only."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"Cannot write to {folder}: {error.strerror}; name another folder with --out.") from error
