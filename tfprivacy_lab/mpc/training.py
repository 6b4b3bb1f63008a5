"""Train and predict on shares the way Keras does it: ``compile``, ``fit``, ``predict``.

A :class:`SharedModel` writes the job that all parties agree on and has it run: by a simulation in this process
(:func:`tfprivacy_lab.mpc.parties.simulate`, for notebooks), or by processes
(:func:`tfprivacy_lab.mpc.processes.launch`).
Between ``fit`` and ``predict`` the weights stay where they are: on shares, one a party.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from tfprivacy_lab.checks import InputError, check_array, check_matrix
from tfprivacy_lab.models.chains import chain_of, is_from, is_of_keras
from tfprivacy_lab.mpc.jobs import row_ids
from tfprivacy_lab.mpc.jobs.fixed_point import FixedPoint
from tfprivacy_lab.mpc.jobs.job import Job
from tfprivacy_lab.mpc.jobs.models import Layer, Training
from tfprivacy_lab.mpc.jobs.noise_shares import NoiseShares
from tfprivacy_lab.mpc.jobs.protocols import World, check_world, listed

_INSTEAD = {
    "Dense": "leave use_bias as it is",
    "Dropout": "leave it out: on shares nothing is dropped",
    "Flatten": "give features as rows of numbers",
    "BatchNormalization": "scale the features before, by public constants",
    "Normalization": "scale the features before, by public constants",
    "Rescaling": "scale the features before, by public constants",
    "Activation": "name the activation in the Dense layer before",
    "ReLU": "name the activation in the Dense layer before",
}
_TRAINED_BY_KERAS = tuple(f"{what}_{kind}" for kind in ("constraint", "regularizer") for what in ("kernel", "bias"))
_TRAINED_BY_KERAS += ("activity_regularizer",)


class SharedModel:
    """A dense network whose weights, inputs and labels stay on shares.

    Args:
        layers: :class:`Layer` objects, or a built Keras model, a chain of Dense layers (linear, sigmoid or relu),
            whose weights then are the public start.
        world: Who computes, by which protocol.
        feature_range: Public bound on features; every holder's are checked.
        label_range: Public bound on labels.
        weight_range: Clips the weights every step, and makes long training of networks provably free of overflow.
        sigmoid_error: Wanted bound on the sigmoid's error.
        seed: Of the public random start, if layers are given.

    Guarantee: no party learns more than what ``fit`` and ``predict`` are told to reveal to it, and what every party
    may know: shapes, ranges, the model's layers, the number of steps. Under the trust of ``world.trust()``.
    Not covered: what revealed weights and predictions tell about the data; parties who do not follow the protocol.
    """

    def __init__(
        self,
        layers,
        world: World,
        *,
        feature_range: float = 1.0,
        label_range: float = 1.0,
        weight_range: float | None = None,
        sigmoid_error: float = 1e-3,
        seed: int = 0,
    ):
        self.world, self._seed = check_world(world), seed
        found, self._start = _layers_of(layers)
        self.layers = listed("layers", found, Layer)
        if not self.layers:
            raise InputError("Expected layers to hold at least one layer, got none.")
        self._ranges = {"feature_range": feature_range, "label_range": label_range}
        self._ranges |= {"weight_range": weight_range, "sigmoid_error": sigmoid_error}
        self._compiled: dict | None = None
        self._shares: dict[str, dict[str, np.ndarray]] | None = None
        self.job: Job | None = None
        self._fitted: Job | None = None
        self._arithmetic: FixedPoint | None = None
        self.outcomes = None

    def compile(
        self, loss: str, learning_rate: float, *, batch_size: int | None = None, row_norm: float | None = None
    ) -> None:
        """Say how to train: a loss of ``models.LOSSES`` and plain gradient descent.

        Raises:
            InputError: naming the argument.
        """
        Training(loss, learning_rate, 1, batch_size, row_norm)
        self._compiled = {"loss": loss, "learning_rate": learning_rate}
        self._compiled |= {"batch_size": batch_size, "row_norm": row_norm}

    def fit(
        self,
        x: dict[str, np.ndarray],
        y: dict[str, np.ndarray],
        *,
        steps: int,
        split: str = "columns",
        reveal_weights: tuple[str, ...] = (),
        noise: NoiseShares | None = None,
        noise_steps: dict[str, np.ndarray] | None = None,
        ids: dict[str, np.ndarray] | None = None,
        run: Callable | None = None,
    ):
        """Train on what the parties hold.

        Args:
            x: Party to features, shape (rows, columns). Their order here is that in which columns, or rows, are put
                side by side, and stands in the job as a list; labels and queries follow by name.
            y: Party to labels, shape (rows,) or (rows, units); one party if columns are split.
            steps: Gradient steps.
            split: ``columns`` or ``rows``.
            reveal_weights: Who learns the trained weights; nobody by default.
            noise: Noise for every gradient sum, with
            noise_steps: party to whole numbers (steps, parameters), drawn by the caller, see
                :mod:`tfprivacy_lab.distributed_noise`.
            ids: Party to the ids of its rows, texts or whole numbers, each once, where columns are split: whether they
                are the same, in the same order, is compared before anything is shared. Without, a
                :class:`~tfprivacy_lab.checks.RowOrderWarning` says that it was not.
            run: :func:`~tfprivacy_lab.mpc.parties.simulate` (default) or
                :func:`~tfprivacy_lab.mpc.processes.launch`.

        Returns:
            Outcomes by party, a :class:`~tfprivacy_lab.mpc.parties.Run`.

        Raises:
            InputError: if data or ranges do not fit, or values might overflow.
        """
        if self._compiled is None:
            raise InputError("Call compile before fit.")
        if not self._of_parties("x", x):
            raise InputError("Expected x to hold the features of at least one party, got none.")
        data = {party: {"x": check_matrix("x", value)} for party, value in x.items()}
        for party, value in self._of_parties("y", y).items():
            data.setdefault(party, {})["y"] = _column(value)
        for party, value in self._of_parties("noise_steps", noise_steps or {}).items():
            data.setdefault(party, {})["noise"] = check_array("noise_steps", value)
        features = {party: data[party]["x"].shape for party in x}
        width = next(iter(features.values()))[1] if split == "rows" else sum(c for _, c in features.values())
        self.job = Job(
            world=self.world,
            layers=self.layers,
            features=features,
            split=split,
            labels=tuple(y),
            weights=self._start or _glorot(width, self.layers, self._seed),
            training=Training(steps=steps, **self._compiled),
            reveal_weights=reveal_weights,
            noise=noise,
            **self._ranges,
        )
        for party, value in row_ids.of_parties("ids", ids or {}, row_ids.holders_of_training_rows(self.job)).items():
            data[party]["ids"] = check_array("ids", value)
        found = self._run(self.job, data, run)
        self._fitted, self._arithmetic = self.job, found.plan.arithmetic
        self._shares = {party: outcome.shares for party, outcome in found.outcomes.items()}
        return found

    def predict(
        self,
        query: dict[str, np.ndarray],
        *,
        reveal: tuple[str, ...],
        ids: dict[str, np.ndarray] | None = None,
        run: Callable | None = None,
    ) -> np.ndarray:
        """Predict rows whose columns the parties of ``query`` hold, and open the result to ``reveal`` only.

        Args:
            query: Party to the columns that it has in ``fit``, of the rows to predict, in any order of names; or one
                party without features in ``fit`` to all columns, in the order of ``fit``. Where ``fit`` had rows
                split, or one holder, any one party to all columns.
            reveal: Who learns the predictions.
            ids: As in :meth:`fit`.
            run: As in :meth:`fit`.

        Returns:
            float64, (rows, units), as its receivers have it.

        Raises:
            InputError: before ``fit``, or if the query is not of the parties and columns of ``fit``.
        """
        if self._shares is None:
            raise InputError("Call fit before predict.")
        if not self._of_parties("query", query):
            raise InputError("Expected query to hold columns of at least one party, got none.")
        query = self._in_order({party: check_matrix("query", value) for party, value in query.items()})
        data = {party: dict(shares) for party, shares in self._shares.items()}
        for party, value in query.items():
            data[party]["query"] = value
        for party, value in row_ids.of_parties("ids", ids or {}, tuple(query) if len(query) > 1 else ()).items():
            data[party]["query_ids"] = check_array("ids", value)
        ranges = dict(self._ranges)
        if ranges["weight_range"] is None:
            from tfprivacy_lab.mpc.jobs.ranges import weight_bound

            ranges["weight_range"] = weight_bound(self._fitted)
        job = Job(
            world=self.world,
            layers=self.layers,
            query={party: value.shape for party, value in query.items()},
            holders=tuple(query),
            initial="shares",
            arithmetic=self._arithmetic,
            reveal_predictions=reveal,
            **ranges,
        )
        done = self._run(job, data, run)
        return next(
            (outcome.predictions for outcome in done.outcomes.values() if outcome.predictions is not None), None
        )

    def _in_order(self, query: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The query with the parties, widths and order of ``fit``."""
        # The job itself says which queries it takes.
        job = dataclasses.replace(self._fitted, query={party: value.shape for party, value in query.items()})
        return {party: query[party] for party in job.query}

    def _of_parties(self, argument: str, given) -> dict:
        return row_ids.of_parties(argument, given, self.world.parties)

    def _run(self, job: Job, data, run):
        if run is None:
            from tfprivacy_lab.mpc.parties import simulate as run
        self.outcomes = run(job, data)
        return self.outcomes


def _layers_of(layers) -> tuple[tuple[Layer, ...], list | None]:
    """Layers and start of what the caller gave; Keras is asked only if it is Keras'."""
    if isinstance(layers, list | tuple):
        return tuple(layers), None
    if not getattr(layers, "built", False):
        raise InputError(
            "Expected a built model, whose weights are the start: call model.build((None, columns)) first."
        )
    found, start = [], []
    for layer, shape in chain_of(layers):
        kind, activation = type(layer).__name__, getattr(layer, "activation", None)
        if kind != "Dense" or not is_of_keras(layer) or not layer.use_bias:
            advice = _INSTEAD.get(kind, "use Dense layers, one after the other")
            raise InputError(f"Expected Dense layers with a bias, got {kind} {layer.name!r}; {advice}.")
        if len(shape) != 1:
            raise InputError(
                f"Expected layers of rows of numbers, got {layer.name!r} of shape {shape}, where Dense works along the "
                "last axis; give features as rows of numbers."
            )
        bound = [name for name in _TRAINED_BY_KERAS if getattr(layer, name, None) is not None]
        if bound:
            raise InputError(
                f"Expected Dense layers without {' and '.join(bound)}, which training on shares would leave out, got "
                f"layer {layer.name!r}; build the model without (weight_range clips weights)."
            )
        if not hasattr(activation, "__name__"):
            raise InputError(
                f"Expected activations of Keras by name, as activation='relu', got a {type(activation).__name__} "
                f"in layer {layer.name!r}; name the function."
            )
        if not is_from(activation, "keras", "tensorflow"):
            raise InputError(f"Expected activations of Keras, got a function of yours in layer {layer.name!r}.")
        found.append(Layer(layer.units, activation.__name__))
        start += [np.asarray(weight, np.float64).tolist() for weight in layer.get_weights()]
    return tuple(found), start


def _glorot(width: int, layers: tuple[Layer, ...], seed: int) -> list:
    """Keras' default start, public: uniform kernels (Glorot and Bengio 2010), zero biases."""
    rng, start = np.random.default_rng(seed), []
    for layer in layers:
        limit = np.sqrt(6 / (width + layer.units))
        start += [rng.uniform(-limit, limit, (width, layer.units)).tolist(), [0.0] * layer.units]
        width = layer.units
    return start


def _column(value) -> np.ndarray:
    array = check_array("y", value)
    return check_matrix("y", array[:, None] if array.ndim == 1 else array)
