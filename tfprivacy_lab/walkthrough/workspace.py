"""What the stages of a walkthrough share: its folder, its settings, its data and its ledger."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path

import keras
import numpy as np

from tfprivacy_lab import files
from tfprivacy_lab.data import datasets
from tfprivacy_lab.dp.accounting.gaussian import DpSgdRun
from tfprivacy_lab.models import architectures
from tfprivacy_lab.walkthrough.settings import Settings


@dataclasses.dataclass(frozen=True)
class Work:
    """A walkthrough's folder, its settings, whom to tell, and the ledger to charge if it is not the folder's own.

    Attributes:
        out: The folder.
        settings: What is done.
        data_dir: Where prepared datasets lie.
        note: Called with a line of text.
        shared_ledger: The ledger to charge.
        progress: Whether long parts show on stderr how far they are.
    """

    out: Path
    settings: Settings
    data_dir: str | None
    note: object
    shared_ledger: str | None = None
    progress: bool = False

    def whole(self) -> datasets.PrivateData:
        """All of the private set, read once: what a ledger stands for."""
        return self._whole

    @functools.cached_property
    def _whole(self) -> datasets.PrivateData:
        settings = self.settings
        return datasets.load_private(
            settings.dataset, self.data_dir, validation=settings.recipe.validation, seed=settings.split_seed
        )

    def private(self) -> datasets.PrivateData:
        """The private splits, cut to the setting's size."""
        whole = self.whole()
        return dataclasses.replace(whole, train=whole.train.take(slice(self.settings.train_limit)))

    @property
    def ledger(self) -> Path:
        """The ledger that is charged."""
        return Path(self.shared_ledger or self.out / "ledger.sqlite")

    def ledger_covers(self) -> str:
        """What the ledger's total is a bound on."""
        if self.shared_ledger:
            return "every run charged to the ledger that was given, on this data set"
        return (
            "this folder only: the walkthrough made the ledger itself, and other runs on the same data spend beside "
            "it; --ledger FILE charges one that outlives the folder"
        )

    def run(self) -> DpSgdRun:
        """What training the head does to the private set."""
        settings = self.settings
        return settings.recipe.plan.calibrated(len(self.private().train), settings.epsilon, settings.delta)

    def decided(self) -> dict:
        """What a ledger binds the noise's seed to."""
        settings = self.settings
        decided = {"epsilon": settings.epsilon, "delta": settings.delta, "walkthrough": settings.described()}
        return json.loads(json.dumps(decided))

    def state(self, name: str) -> Path:
        """A file that stages hand to each other."""
        return self.out / "state" / name

    def mark(self, stage: str) -> Path:
        """The file whose presence says that a stage is done."""
        return self.state("marks") / f"{stage}.json"

    def result(self, stage: str) -> dict:
        """What an earlier stage found."""
        return files.read_json(self.mark(stage), f"mark of stage {stage}")["result"]

    def features(self, *names: str) -> list[np.ndarray]:
        """Arrays of the embedded private set."""
        arrays = files.read_arrays(self.state("features.npz"), "features", names)
        return [arrays[name] for name in names]

    def head(self, path: Path) -> keras.Model:
        """A dense head from its kernel and bias."""
        weights = files.read_arrays(path, "head", ("kernel", "bias"))
        head = architectures.dense_head(*weights["kernel"].shape)
        head.set_weights([weights["kernel"], weights["bias"]])
        return head
