"""A job: everything the parties must agree on before they compute, and nothing that any of them keeps secret.

It says who holds what shape of what, the model, the training, the public ranges, and what is revealed to whom. Every
party has the same job, checks its own data against it, and refuses to compute with a party whose job differs.

No meaning hangs on the order in which a mapping names parties. The one order that counts, in which what the holders
have is put side by side, is a list: ``holders``. Features, labels and queries are looked up by name and follow it.
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
from tfprivacy_lab.mpc.fixed_point import FixedPoint
from tfprivacy_lab.mpc.models import LARGEST_AXIS, Layer, Training
from tfprivacy_lab.mpc.noise_shares import NoiseClaim, NoiseShares, logistic_gradient_norm
from tfprivacy_lab.mpc.protocols import World

SPLITS = ("columns", "rows")


@dataclasses.dataclass(frozen=True)
class Job:
    """What is computed, for whom.

    Attributes:
        world: Who computes and how.
        layers: The model; empty for a sum of the parties' vectors.
        features: Party to shape (rows, columns) of what it holds of the training set, or (1, columns) of its vector.
        split: ``columns``: everyone holds other columns of the same rows; ``rows``: other rows, same columns.
        labels: Who holds the labels, shape (rows, 1): one party if columns are split, all holders if rows are.
        holders: The order in which columns, or rows, are put side by side: every party of ``features``, or else of
            ``query``, once. Left out, it is the order in which they are given here; a file must say it.
        initial: Where weights come from: ``public`` (then ``weights`` holds them), a party's name, or ``shares``.
        weights: Public weights: kernel, bias of each layer in turn, as nested lists.
        training: How to train, or None.
        query: Party to shape of what it holds of the rows to predict: the columns it has in ``features``; or all
            columns, in the order of ``holders``, from one party that has no features. Where rows are split, or one
            party has all features, all columns from any one party.
        reveal_weights: Who learns the weights.
        reveal_predictions: Who learns the predictions, or the sum.
        feature_range: Public bound on the magnitude of every feature; holders check their own.
        label_range: The same for labels.
        weight_range: Public bound on weights: clips them every training step, and bounds a party's own.
        sigmoid_error: Wanted bound on the error of the sigmoid's approximation.
        noise: Noise the parties contribute, or None.
        arithmetic: Field and fraction bits; None for the finest that holds all values. For shares it is theirs, and
            must be given.
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
    holders: tuple[str, ...] = ()
    arithmetic: FixedPoint | None = None

    def __post_init__(self):
        for name in ("layers", "labels", "reveal_weights", "reveal_predictions", "holders"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not self.holders:
            object.__setattr__(self, "holders", tuple(self.features or self.query))
        self._check_names()
        self._put_in_order()
        check_choice("split", self.split, SPLITS)
        check_finite_number("feature_range", self.feature_range, above=0)
        check_finite_number("label_range", self.label_range, above=0)
        check_finite_number("sigmoid_error", self.sigmoid_error, at_least=1e-6, at_most=0.1)
        if self.weight_range is not None:
            check_finite_number("weight_range", self.weight_range, above=0)
        self._check_shapes()
        if self.layers:
            self._check_model()
        if self.noise is not None and self.noise.claim is not None:
            self._check_claim()

    def _put_in_order(self):
        """Whatever order a mapping or a list of parties was given in, it now is that of ``holders``."""
        place = {party: number for number, party in enumerate(self.holders)}
        for name in ("features", "query"):
            given = getattr(self, name)
            shapes = {party: tuple(given[party]) for party in sorted(given, key=lambda party: place.get(party, 0))}
            object.__setattr__(self, name, shapes)
        object.__setattr__(self, "labels", tuple(sorted(self.labels, key=lambda party: place.get(party, 0))))

    def _check_names(self):
        named = {"features": self.features, "query": self.query, "labels": self.labels}
        named |= {"reveal_weights": self.reveal_weights, "reveal_predictions": self.reveal_predictions}
        named["noise"] = self.noise.parties if self.noise else ()
        if self.initial not in ("public", "shares"):
            named["initial"] = (self.initial,)
        for argument, parties in named.items():
            if len(set(parties)) != len(parties):
                raise InputError(f"Expected {argument} to name each party once, got {tuple(parties)!r}.")
            for party in parties:
                if party not in self.world.parties:
                    known = ", ".join(self.world.parties)
                    raise InputError(f"Expected {argument} to name parties ({known}), got {party!r}.")
        beside = self.features or self.query
        if sorted(self.holders) != sorted(beside):
            raise InputError(
                f"Expected holders to name every party of {'features' if self.features else 'query'} once, in the "
                f"order of their columns or rows ({', '.join(sorted(beside))}), got {self.holders!r}."
            )

    def _check_shapes(self):
        for argument in ("features", "query"):
            shapes = getattr(self, argument)
            for shape in shapes.values():
                if len(shape) != 2:
                    raise InputError(f"Expected {argument} to hold shapes (rows, columns), got {shape!r}.")
                for length in shape:
                    check_positive_int(argument, length, at_most=LARGEST_AXIS)
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
        self._check_query()
        if self.initial == "public":
            wanted = self.weight_shapes
            given = [np.shape(one) for one in self.weights or ()]
            if given != wanted or not all(np.isfinite(np.asarray(one, float)).all() for one in self.weights):
                raise InputError(f"Expected public weights, finite, of shapes {wanted}, got {given}.")
        elif self.weight_range is None:
            raise InputError("Expected weight_range, the public bound on weights that are secret from the start.")
        if self.initial == "shares" and self.arithmetic is None:
            raise InputError(
                "Expected arithmetic, the field_bits and fraction_bits of the shares: those of the plan of the run "
                "that left them, which 'mpc party' prints."
            )
        if self.noise and self.arithmetic and self.noise.fraction_bits != self.arithmetic.fraction_bits:
            raise InputError(
                f"Expected noise of the arithmetic's fraction_bits={self.arithmetic.fraction_bits}, got "
                f"fraction_bits={self.noise.fraction_bits}."
            )

    def _check_query(self):
        """A query has the columns of the features, each of the party that has it there, or all of one that has none."""
        given = {party: columns for party, (_, columns) in self.query.items()}
        if not given or not self.features:
            return
        one_has_all = self.split == "rows" or len(self.features) == 1
        wanted = {party: columns for party, (_, columns) in self.features.items()}
        has_all = list(given.values()) == [self.width] and (one_has_all or not set(given) & set(wanted))
        if not has_all and (one_has_all or given != wanted):
            whom = f"all {self.width} columns from one party"
            if not one_has_all:
                whom = f"{wanted}, or {whom} without features, in the order of {', '.join(self.holders)}"
            raise InputError(f"Expected a query of the features' columns, {whom}, got {given}.")

    def _check_claim(self):
        """What is claimed of the noise must follow from the job: the clip from the data's bounds, ε from the stddev."""
        claim = self.noise.claim
        if self.layers:
            bounded = (
                self.training is not None and self.training.loss == "binary_crossentropy" and len(self.layers) == 1
            )
            if not bounded or self.training.row_norm is None:
                raise InputError(
                    "Expected a claim of epsilon for a sum, or for one layer trained by binary_crossentropy with "
                    "row_norm: of other models no bound on a row's gradient is known; leave noise.claim out."
                )
            least = logistic_gradient_norm(self.row_norm, self.sigmoid_error, self.layers[0].units)
            if claim.l2_norm_clip < least * (1 - 1e-9) or claim.roundings < 2:
                raise InputError(
                    f"Expected noise.claim of l2_norm_clip >= {least:.6g}, a row's gradient under row_norm, and of "
                    f"roundings >= 2, got l2_norm_clip={claim.l2_norm_clip:g}, roundings={claim.roundings}."
                )
        self.noise.check_worth(self.parameters, self.training.steps if self.training else 1)

    @property
    def row_norm(self) -> float:
        """Bound on the L2 norm of a whole row of features, of all holders' columns."""
        ranges = self.feature_range * math.sqrt(self.width)
        if self.training is None or self.training.row_norm is None:
            return ranges
        parts = len(self.features) if self.split == "columns" else 1
        return min(ranges, self.training.row_norm * math.sqrt(parts))

    @property
    def columns(self) -> list[list]:
        """[party, columns] of who holds which, in their order; one pair without a name where one party has them all."""
        shapes = self.features or self.query
        if len(shapes) == 1 or (self.features and self.split == "rows"):
            return [["", self.width]]
        return [[party, shape[1]] for party, shape in shapes.items()]

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
            if given.get("training") is not None:
                given["training"] = Training(**given["training"])
            if given.get("arithmetic") is not None:
                given["arithmetic"] = FixedPoint(**given["arithmetic"])
            if given.get("noise") is not None:
                claim = given["noise"].get("claim")
                claim = None if claim is None else NoiseClaim(**claim)
                given["noise"] = NoiseShares(**{**given["noise"], "claim": claim})
            several = len(given.get("features") or given.get("query") or ()) > 1
            if several and not given.get("holders"):
                raise InputError(
                    "Expected holders, a list of who holds features (or queries) in the order of their columns or "
                    "rows: the order of names in a file means nothing."
                )
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
