"""The stages in order, each done once: interrupted or killed, the same command goes on.

Every stage reads files, writes files, and last of all writes its mark ``state/marks/NAME.json``, atomically.
A stage without its mark is done again from its start, from the same seeds: what it draws is what it drew
before, noise included, so the privacy spent is that of one run however often it was killed.
"""

from __future__ import annotations

import time
from pathlib import Path

from tfprivacy_lab import files
from tfprivacy_lab.checks import InputError
from tfprivacy_lab.dp.ledger.ledger import Ledger
from tfprivacy_lab.experiments import claims
from tfprivacy_lab.walkthrough.settings import Settings, settings_for


def walk(out, *, fast: bool = False, seed: int | None = 0, data_dir=None, ledger=None, on_progress=None) -> dict:
    """Do what is missing of a walkthrough.

    Args:
        out: Folder of the walkthrough: ``report.html``, ``metrics.json``, the model and its card.
        fast: The small run, under a minute.
        seed: Whole number, or None for secret noise from the operating system.
        data_dir: Where prepared datasets lie.
        ledger: File of a :class:`.Ledger` of the data set, to charge instead of one that is made
            in the folder, and knows of nothing else.
        on_progress: Called with a line of text as stages begin and end; long parts then show on stderr how far they
            are.

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

        work = stages.Work(out, settings, data_dir, note, ledger, progress=on_progress is not None)
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
