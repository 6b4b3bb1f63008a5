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

from tfprivacy_lab import files
from tfprivacy_lab.checks import InputError
from tfprivacy_lab.mpc.jobs import job_checks
from tfprivacy_lab.mpc.jobs.fixed_point import FixedPoint
from tfprivacy_lab.mpc.jobs.models import Layer, Training
from tfprivacy_lab.mpc.jobs.noise_shares import NoiseClaim, NoiseShares
from tfprivacy_lab.mpc.jobs.protocols import World


@dataclasses.dataclass(frozen=True)
class Job:
    """What is computed, for whom.

    Attributes:
        world: Who computes and how.
        layers: The model; empty for a sum of the parties' vectors.
        features: Party to shape (rows, columns) of what it holds of the training set, or (1, columns) of its vector.
        split: ``columns``: everyone holds other columns of the same rows; ``rows``: other rows, same columns.
        labels: Who holds the labels, shape (rows, units): one party if columns are split, all holders if rows are.
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
        job_checks.check_fields(self)
        job_checks.check_names(self)
        job_checks.put_in_order(self)
        if not self.layers:
            job_checks.check_sum(self)
        job_checks.check_shapes(self)
        if self.layers:
            job_checks.check_model(self)
        job_checks.check_arithmetic(self)
        if self.noise is not None and self.noise.claim is not None:
            job_checks.check_claim(self)

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
            given["layers"] = tuple(Layer(**layer) for layer in given.get("layers") or ())
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
