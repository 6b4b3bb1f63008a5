"""What every application has: a data card, and a split into public pilot, private train and test.

The *pilot* stands for records whose people agreed to publication. Scaling and hyperparameters come from it alone, so
that neither tells anything of the private rows, nor was chosen by looking at the test rows.
"""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np

from tfprivacy_lab.apps import evaluation
from tfprivacy_lab.checks import InputError

PILOT_SEED = 2024


@dataclasses.dataclass(frozen=True)
class Card:
    """What the data are: written down here, and checked when they are loaded.

    Attributes:
        name: Of the dataset.
        source: Who collected it, and the package that carries it.
        unit: What a row is: the record that differential privacy protects.
        rows: After rows with missing values are left out.
        left_out: How many those are.
        columns: Inputs of the model, in order.
        target: What label 1 means.
        positives: Rows with label 1.
        groups: Groups that gaps are shown for; never inputs.
        sha256: Of inputs and labels as float64, little endian.
        caution: What a reader must know before using the data.
    """

    name: str
    source: str
    unit: str
    rows: int
    left_out: int
    columns: tuple[str, ...]
    target: str
    positives: int
    groups: tuple[str, ...]
    sha256: str
    caution: str

    def check(self, x: np.ndarray, y: np.ndarray) -> None:
        """Refuse data that are not those of the card.

        Raises:
            InputError: naming what differs.
        """
        found = (*x.shape, int(y.sum()), digest(x, y))
        wanted = (self.rows, len(self.columns), self.positives, self.sha256)
        for name, mine, theirs in zip(("rows", "columns", "positives", "sha256"), wanted, found, strict=True):
            if mine != theirs:
                raise InputError(f"Expected {name} of {self.name} to be {mine}, got {theirs}; another version of it?")


def digest(x, y) -> str:
    """SHA-256 of inputs and labels to nine decimals, hexadecimal: readers of text differ in the last bit."""
    return hashlib.sha256(np.column_stack([x, y]).astype("<f8").round(9).tobytes()).hexdigest()


@dataclasses.dataclass(frozen=True)
class Part:
    """Some rows: inputs on the public scale, labels, and group membership by name."""

    x: np.ndarray
    y: np.ndarray
    groups: dict[str, np.ndarray]

    def take(self, rows) -> Part:
        """The rows of an index or slice."""
        return Part(self.x[rows], self.y[rows], {name: member[rows] for name, member in self.groups.items()})


@dataclasses.dataclass(frozen=True)
class Split:
    """Pilot: public, the same for every seed. Train: private. Test: never used but to be scored."""

    pilot: Part
    train: Part
    test: Part


def split(x, y, groups, blocks, *, pilot: int, test: int, seed: int) -> Split:
    r"""Split rows, and bring inputs to a public scale.

    Columns are standardised with the pilot's mean and deviation and clipped to ±3; the columns of each block (what one
    party holds) then are scaled together to norm at most 1: :math:`x \min(1, 1/\|x\|)`, after a public factor
    :math:`1/\sqrt{d}` of the d columns of a block.

    Args:
        x: (n, d).
        y: (n,).
        groups: Name to membership, (n,).
        blocks: Slices of columns, one a holder.
        pilot: Rows of the pilot.
        test: Rows of the test part; all others are for training.
        seed: Of train and test; the pilot never moves.
    """
    order = np.random.default_rng(PILOT_SEED).permutation(len(x))
    public, others = order[:pilot], np.random.default_rng(seed).permutation(order[pilot:])
    deviation = x[public].std(0)
    scaled = np.clip((x - x[public].mean(0)) / np.where(deviation > 0, deviation, 1), -3, 3)
    for block in blocks:
        scaled[:, block] /= np.sqrt(scaled[:, block].shape[1])
        scaled[:, block] /= np.maximum(np.linalg.norm(scaled[:, block], axis=1, keepdims=True), 1)
    everyone = Part(scaled, y.astype(np.int64), {name: np.asarray(member, bool) for name, member in groups.items()})
    return Split(*(everyone.take(rows) for rows in (public, others[test:], others[:test])))


def choose(candidates, pilot: Part, probability, *, halves: int = 4):
    """The candidate with the least Brier score on halves of the pilot that it was not trained on.

    Args:
        candidates: Settings to try, any objects.
        pilot: Public rows.
        probability: ``probability(candidate, train, x, seed)`` trains on a part, and returns probabilities of rows x.
        halves: How many random halves to try each on.
    """
    scores = np.zeros(len(candidates))
    for seed in range(halves):
        order = np.random.default_rng([PILOT_SEED, seed]).permutation(len(pilot.y))
        half, rest = pilot.take(order[: len(order) // 2]), pilot.take(order[len(order) // 2 :])
        for number, candidate in enumerate(candidates):
            found = evaluation.quality(probability(candidate, half, rest.x, seed), rest.y)
            scores[number] += found["brier"] / halves
    return candidates[int(scores.argmin())]
