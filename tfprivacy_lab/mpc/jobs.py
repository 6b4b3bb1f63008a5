"""A job: everything the parties must agree on before they compute, and nothing that any of them keeps secret.

It says who holds what shape of what, the model, the training, the public ranges, and what is revealed to whom. Every
party has the same job, checks its own data against it, and refuses to compute with a party whose job differs.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math

import numpy as np

from tfprivacy_lab import files
from tfprivacy_lab.checks import InputError, check_choice, check_finite_number, check_positive_int
from tfprivacy_lab.mpc.protocols import World

ACTIVATIONS = ("linear", "sigmoid", "relu")
LOSSES = ("sum_of_squares", "mean_squared_error", "binary_crossentropy")
SPLITS = ("columns", "rows")
_LARGEST_AXIS, _LARGEST_STEPS = 10**7, 10**5


@dataclasses.dataclass(frozen=True)
class Layer:
    """A dense layer: ``units`` outputs, then an activation of :data:`ACTIVATIONS`."""

    units: int
    activation: str = "linear"

    def __post_init__(self):
        check_positive_int("units", self.units, at_most=_LARGEST_AXIS)
        check_choice("activation", self.activation, ACTIVATIONS)


@dataclasses.dataclass(frozen=True)
class Training:
    """Gradient descent on shares.

    Attributes:
        loss: One of :data:`LOSSES`. ``sum_of_squares`` sums over rows, the other two take the mean.
        learning_rate: > 0.
        steps: Number of gradient steps; batches are taken in the order of the rows, again and again.
        batch_size: Rows of a step, a divisor of all rows; None for all of them.
        row_norm: Bound on the L2 norm of a row of features (every holder checks its own), or None.
    """

    loss: str
    learning_rate: float
    steps: int
    batch_size: int | None = None
    row_norm: float | None = None

    def __post_init__(self):
        check_choice("loss", self.loss, LOSSES)
        check_finite_number("learning_rate", self.learning_rate, above=0)
        check_positive_int("steps", self.steps, at_most=_LARGEST_STEPS)
        if self.batch_size is not None:
            check_positive_int("batch_size", self.batch_size)
        if self.row_norm is not None:
            check_finite_number("row_norm", self.row_norm, above=0)


@dataclasses.dataclass(frozen=True)
class NoiseShares:
    """Noise that parties contribute inside the protocol, added to every gradient sum, or to the sum of a statistic.

    Attributes:
        parties: Who contributes; each draws its own, and nobody sees the total.
        stddev: Standard deviation of one party's contribution, in the unit of what is noised.
        fraction_bits: The noise is a multiple of :math:`2^{-f}`, and so is the arithmetic.
    """

    parties: tuple[str, ...]
    stddev: float
    fraction_bits: int

    def __post_init__(self):
        object.__setattr__(self, "parties", tuple(self.parties))
        check_finite_number("stddev", self.stddev, above=0)
        check_positive_int("fraction_bits", self.fraction_bits, at_least=8, at_most=40)

    @property
    def largest(self) -> float:
        """No contribution may pass 16 standard deviations; one in 10^57 would."""
        return 16 * self.stddev


@dataclasses.dataclass(frozen=True)
class Job:
    """What is computed, for whom.

    Attributes:
        world: Who computes and how.
        layers: The model; empty for a sum of the parties' vectors.
        features: Party to shape (rows, columns) of what it holds of the training set, or (1, columns) of its vector.
        split: ``columns``: everyone holds other columns of the same rows; ``rows``: other rows, same columns.
        labels: Who holds the labels, shape (rows, 1): one party if columns are split, all holders if rows are.
        initial: Where weights come from: ``public`` (then ``weights`` holds them), a party's name, or ``shares``.
        weights: Public weights: kernel, bias of each layer in turn, as nested lists.
        training: How to train, or None.
        query: Party to shape of what it holds of the rows to predict; columns are split.
        reveal_weights: Who learns the weights.
        reveal_predictions: Who learns the predictions, or the sum.
        feature_range: Public bound on the magnitude of every feature; holders check their own.
        label_range: The same for labels.
        weight_range: Public bound on weights: clips them every training step, and bounds a party's own.
        sigmoid_error: Wanted bound on the error of the sigmoid's approximation.
        noise: Noise the parties contribute, or None.
    """

    world: World
    layers: tuple[Layer, ...] = ()
    features: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    split: str = "columns"
    labels: tuple[str, ...] = ()
    initial: str = "public"
    weights: list | None = None
    training: Training | None = None
    query: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    reveal_weights: tuple[str, ...] = ()
    reveal_predictions: tuple[str, ...] = ()
    feature_range: float = 1.0
    label_range: float = 1.0
    weight_range: float | None = None
    sigmoid_error: float = 1e-3
    noise: NoiseShares | None = None

    def __post_init__(self):
        for name in ("layers", "labels", "reveal_weights", "reveal_predictions"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in ("features", "query"):
            shapes = {party: tuple(shape) for party, shape in getattr(self, name).items()}
            object.__setattr__(self, name, shapes)
        check_choice("split", self.split, SPLITS)
        check_finite_number("feature_range", self.feature_range, above=0)
        check_finite_number("label_range", self.label_range, above=0)
        check_finite_number("sigmoid_error", self.sigmoid_error, at_least=1e-6, at_most=0.1)
        if self.weight_range is not None:
            check_finite_number("weight_range", self.weight_range, above=0)
        self._check_names()
        self._check_shapes()
        if self.layers:
            self._check_model()

    def _check_names(self):
        named = {"features": self.features, "query": self.query, "labels": self.labels}
        named |= {"reveal_weights": self.reveal_weights, "reveal_predictions": self.reveal_predictions}
        named["noise"] = self.noise.parties if self.noise else ()
        if self.initial not in ("public", "shares"):
            named["initial"] = (self.initial,)
        for argument, parties in named.items():
            for party in parties:
                if party not in self.world.parties:
                    known = ", ".join(self.world.parties)
                    raise InputError(f"Expected {argument} to name parties ({known}), got {party!r}.")

    def _check_shapes(self):
        for argument in ("features", "query"):
            shapes = getattr(self, argument)
            for shape in shapes.values():
                if len(shape) != 2:
                    raise InputError(f"Expected {argument} to hold shapes (rows, columns), got {shape!r}.")
                for length in shape:
                    check_positive_int(argument, length, at_most=_LARGEST_AXIS)
            same = 1 if argument == "features" and (self.split == "rows" or not self.layers) else 0
            if len({shape[same] for shape in shapes.values()}) > 1:
                axis = ("rows", "columns")[same]
                raise InputError(f"Expected every party's {argument} to have as many {axis}, got {shapes}.")
        if not self.layers and (not self.features or any(shape[0] != 1 for shape in self.features.values())):
            raise InputError("Expected features of shape (1, columns) for a sum of the parties' vectors.")

    def _check_model(self):
        if self.training is not None:
            holders = tuple(self.features)
            right = len(self.labels) == 1 if self.split == "columns" else set(self.labels) == set(holders)
            if not holders or not right:
                raise InputError(
                    "Expected features, and labels from one party (split by columns) or from every holder of "
                    f"features (split by rows), got labels={self.labels!r}."
                )
            rows, batch = self.rows, self.training.batch_size or self.rows
            if rows % batch:
                raise InputError(f"Expected batch_size to divide the {rows} rows, got batch_size={batch}.")
            logistic = self.training.loss == "binary_crossentropy"
            if logistic != (self.layers[-1].activation == "sigmoid") or self.layers[-1].activation == "relu":
                raise InputError("Expected binary_crossentropy with a last sigmoid, or squares with a last linear.")
            if logistic and self.label_range != 1:
                raise InputError(f"Expected label_range=1 for binary_crossentropy, got {self.label_range:g}.")
        if self.query and self.features and sum(c for _, c in self.query.values()) != self.width:
            raise InputError(f"Expected queries of {self.width} columns in all, got {self.query}.")
        if self.initial == "public":
            wanted = self.weight_shapes
            given = [np.shape(one) for one in self.weights or ()]
            if given != wanted or not all(np.isfinite(np.asarray(one, float)).all() for one in self.weights):
                raise InputError(f"Expected public weights, finite, of shapes {wanted}, got {given}.")
        elif self.weight_range is None:
            raise InputError("Expected weight_range, the public bound on weights that are secret from the start.")

    @property
    def rows(self) -> int:
        """Rows of the training set."""
        lengths = [shape[0] for shape in self.features.values()]
        return lengths[0] if self.split == "columns" else sum(lengths)

    @property
    def width(self) -> int:
        """Columns of the model's input."""
        if self.features and self.split == "rows":
            return next(iter(self.features.values()))[1]
        return sum(columns for _, columns in (self.features or self.query).values())

    @property
    def batch_rows(self) -> int:
        """Rows of a training step."""
        return self.training.batch_size or self.rows

    @property
    def weight_shapes(self) -> list[tuple[int, ...]]:
        """Shapes of kernel and bias of each layer in turn."""
        widths = [self.width, *(layer.units for layer in self.layers)]
        return [shape for before, after in itertools.pairwise(widths) for shape in ((before, after), (after,))]

    @property
    def parameters(self) -> int:
        """Number of weights; of a sum, its length."""
        if not self.layers:
            return next(iter(self.features.values()))[1]
        return sum(math.prod(shape) for shape in self.weight_shapes)

    def to_json(self) -> str:
        """The job as canonical JSON."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True, allow_nan=False)

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON, hexadecimal."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @classmethod
    def from_dict(cls, value: dict) -> Job:
        """The job that ``value`` describes.

        Raises:
            InputError: naming what is wrong.
        """
        try:
            given = dict(value)
            given["world"] = World(**given["world"])
            given["layers"] = tuple(Layer(**layer) for layer in given["layers"])
            for name, kind in (("training", Training), ("noise", NoiseShares)):
                given[name] = None if given[name] is None else kind(**given[name])
            return cls(**given)
        except InputError:
            raise
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise InputError(f"Cannot read the job: {type(error).__name__} {error}.") from error

    @classmethod
    def load(cls, path) -> Job:
        """The job in a JSON file.

        Raises:
            InputError: naming the file or the field.
        """
        return cls.from_dict(files.read_json(path, "job"))

    def save(self, path) -> None:
        """Write the job as JSON."""
        files.write_bytes(path, self.to_json().encode() + b"\n")


def difference(mine: dict, theirs: dict, prefix: str = "") -> str | None:
    """The first field in which two jobs differ, as ``name is X there and Y here``; None if they are equal."""
    for name in sorted(set(mine) | set(theirs)):
        here, there = mine.get(name), theirs.get(name)
        if isinstance(here, dict) and isinstance(there, dict):
            found = difference(here, there, f"{prefix}{name}.")
            if found:
                return found
        elif here != there:
            return f"{prefix}{name} is {json.dumps(there)[:80]} there and {json.dumps(here)[:80]} here"
    return None
