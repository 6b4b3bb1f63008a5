"""What every party does with a job: check its own data, share, train, predict, open to whom it is due.

The same function runs in a thread of a simulation and in a process of its own. The order of shares, runs and openings
is the job's; a party that left it would wait for messages that never come.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

import numpy as np

from tfprivacy_lab.checks import InputError, check_array, check_matrix
from tfprivacy_lab.mpc.jobs import share_headers
from tfprivacy_lab.mpc.jobs.job import Job
from tfprivacy_lab.mpc.jobs.ranges import Plan, weight_bound
from tfprivacy_lab.mpc.runtime.engine import Engine, Traffic
from tfprivacy_lab.mpc.runtime.programs import Programs, weight_names


@dataclasses.dataclass
class Outcome:
    """What a party has after a job.

    Attributes:
        weights: Kernel, bias of each layer in turn, where the job reveals them; else None.
        predictions: Predictions, shape (rows, units), or the sum, shape (columns,); where revealed, else None.
        shares: This party's own shares of the weights, by name: worth nothing alone.
        seconds: Of sharing, running and opening; compiling is not in it.
        step_seconds: Of each training step.
        traffic: Shares sent, before the engine's own traffic is added.
    """

    weights: list[np.ndarray] | None = None
    predictions: np.ndarray | None = None
    shares: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0
    step_seconds: list[float] = dataclasses.field(default_factory=list)
    traffic: Traffic = dataclasses.field(default_factory=Traffic)


def check_data(job: Job, me: str, data: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """This party's own data, if it is what the job says it holds, within the public ranges.

    Args:
        job: What was agreed.
        me: Which party this is.
        data: ``x`` features, ``y`` labels, ``query``, ``noise`` (whole numbers, in steps of the grid), and
            ``kernel_0``, ``bias_0``, … weights or shares of them; whatever of these the job gives this party to hold.

    Returns:
        The arrays needed, float64 (shares stay bytes).

    Raises:
        InputError: naming the array. Values are not echoed: they are secret.
    """
    checked = {}
    if me in job.features:
        checked["x"] = _matrix("x", data, job.features[me], job.feature_range)
        _check_row_norms(job, checked["x"])
    if job.training is not None and me in job.labels:
        rows = job.rows if job.split == "columns" else job.features[me][0]
        checked["y"] = _matrix("y", data, (rows, job.layers[-1].units), job.label_range)
        if job.training.loss == "binary_crossentropy" and not np.isin(checked["y"], (0, 1)).all():
            raise InputError("Expected y to hold 0 and 1 only.")
    if me in job.query:
        checked["query"] = _matrix("query", data, job.query[me], job.feature_range)
    if job.noise is not None and me in job.noise.parties:
        checked["noise"] = _noise(job, data)
    if job.layers and job.initial in (me, "shares"):
        for name, shape in zip(weight_names(job), job.weight_shapes, strict=True):
            checked[name] = _weight(name, data, shape, job, me)
        if job.initial == "shares":
            _check_one_run(checked, weight_names(job))
    return checked


def _matrix(name, data, shape, largest) -> np.ndarray:
    if data.get(name) is None:
        raise InputError(f"Expected an array {name} of shape {tuple(shape)}, got none.")
    array = check_matrix(name, data[name])
    if array.shape != tuple(shape):
        raise InputError(f"Expected {name} of shape {tuple(shape)} as agreed, got {array.shape}.")
    if np.abs(array).max() > largest:
        raise InputError(f"Expected {name} within the agreed range of {largest:g}; clip or rescale it.")
    return array


def _check_row_norms(job: Job, x: np.ndarray) -> None:
    bound = job.training.row_norm if job.training else None
    # A hair above: rows are scaled to the bound in floating point.
    if bound is not None and np.linalg.norm(x, axis=1).max() > bound * (1 + 1e-9):
        raise InputError(f"Expected rows of x of norm at most row_norm={bound:g}; scale them down.")


def _noise(job: Job, data) -> np.ndarray:
    shape = (job.training.steps if job.training else 1, job.parameters)
    steps = check_array("noise", data.get("noise"))
    if steps.dtype.kind not in "iu" or steps.shape != shape:
        raise InputError(f"Expected noise to hold whole numbers, shape {shape}, got {steps.dtype} {steps.shape}.")
    noise = steps * 2.0**-job.noise.fraction_bits
    if np.abs(noise).max() > job.noise.largest:
        raise InputError(f"Expected noise within 16 standard deviations ({job.noise.largest:g}); draw it anew.")
    return noise


def _weight(name, data, shape, job: Job, me: str) -> np.ndarray:
    if data.get(name) is None:
        raise InputError(f"Expected an array {name} for the weights, got none.")
    if job.initial == "shares":
        share_headers.check(name, data[name], job, me)
        return np.asarray(data[name])
    weight = check_array(name, data[name])
    if weight.dtype.kind not in "fiu" or weight.shape != shape or not np.isfinite(weight).all():
        raise InputError(f"Expected {name} finite and of shape {shape}, got {weight.dtype} {weight.shape}.")
    if np.abs(weight).max() > job.weight_range:
        raise InputError(f"Expected {name} within weight_range={job.weight_range:g}.")
    return weight.astype(np.float64)


def _check_one_run(data, names) -> None:
    """A party's own shares must be of one run; that the others' are too is compared when they meet."""
    runs = {share_headers.parsed(name, data[name])[0].run for name in names}
    if len(runs) > 1:
        raise InputError(f"Expected {', '.join(names)} to be shares that one run left, got shares of {len(runs)} runs.")


def execute(
    job: Job,
    plan: Plan,
    programs: Programs,
    engine: Engine,
    data: dict[str, np.ndarray],
    run: str,
    on_step: Callable[[int], None] | None = None,
) -> Outcome:
    """Run a job as one party.

    Args:
        job: What was agreed, and
        plan: what all derived from it, and
        programs: compiled.
        engine: Connected to the other parties'.
        data: What :func:`check_data` returned.
        run: This run's own name, the same at every party.
        on_step: Called with the number of each finished training step.
    """
    start, outcome = time.perf_counter(), Outcome()
    for party, shape in job.features.items():
        engine.share(f"x.{party}", party, data.get("x"), shape)
    if job.layers:
        _put_weights(job, engine, data)
        if job.training is not None:
            _train(job, plan, programs, engine, data, outcome, on_step)
        _predict(job, programs, engine, data, outcome)
        names = zip(weight_names(job), job.weight_shapes, strict=True)
        opened = [engine.open(name, job.reveal_weights, shape) for name, shape in names]
        outcome.weights = opened if engine.me in job.reveal_weights else None
        outcome.shares = _shares(job, plan, engine, data, run)
    else:
        _share_noise(job, engine, data)
        engine.run(programs.by_name["sum"].executable())
        total = engine.open("predictions", job.reveal_predictions, (1, job.parameters))
        outcome.predictions = None if total is None else total[0]
    outcome.seconds, outcome.traffic = time.perf_counter() - start, engine.shared
    return outcome


def _shares(job, plan, engine, data, run) -> dict[str, np.ndarray]:
    """This party's shares of the weights; those that came in and were not trained stay what they were."""
    if job.initial == "shares" and job.training is None:
        return {name: data[name] for name in weight_names(job)}
    largest = float(weight_bound(job) if job.weight_range is None else job.weight_range)
    header = share_headers.of_run(job, plan.arithmetic, engine.me, data, largest, run)
    return {name: header(name).before(engine.keep_share(name)) for name in weight_names(job)}


def _put_weights(job, engine, data) -> None:
    for number, (name, shape) in enumerate(zip(weight_names(job), job.weight_shapes, strict=True)):
        if job.initial == "shares":
            engine.put_share(name, share_headers.parsed(name, data[name])[1], shape)
        elif job.initial == "public":
            # Public at the start, secret from the first step on: one party shares what all know.
            first = engine.world.ranks[0]
            value = np.asarray(job.weights[number], np.float64) if engine.me == first else None
            engine.share(name, first, value, shape)
        else:
            engine.share(name, job.initial, data.get(name), shape)


def _share_noise(job, engine, data) -> None:
    if job.noise is not None:
        for party in job.noise.parties:
            rows = job.training.steps if job.training else 1
            engine.share(f"noise.{party}", party, data.get("noise"), (rows, job.parameters))


def _train(job, plan, programs, engine, data, outcome, on_step) -> None:
    for party in job.labels:
        rows = job.rows if job.split == "columns" else job.features[party][0]
        engine.share(f"y.{party}", party, data.get("y"), (rows, job.layers[-1].units))
    _share_noise(job, engine, data)
    engine.put_public("shift", 2.0**-plan.shift)
    engine.put_public("rate", plan.rate)
    engine.run(programs.by_name["assemble"].executable())
    step, batches = programs.by_name["step"], job.rows // job.batch_rows
    for number in range(job.training.steps):
        begun = time.perf_counter()
        batch = number % batches
        engine.run(step.executable({"x": f"x#{batch}", "y": f"y#{batch}", "noise": f"noise#{number}"}))
        outcome.step_seconds.append(time.perf_counter() - begun)
        if on_step is not None:
            on_step(number + 1)


def _predict(job, programs, engine, data, outcome) -> None:
    if not job.query:
        return
    for party, shape in job.query.items():
        engine.share(f"query.{party}", party, data.get("query"), shape)
    engine.run(programs.by_name["predict"].executable())
    rows = next(iter(job.query.values()))[0]
    outcome.predictions = engine.open("predictions", job.reveal_predictions, (rows, job.layers[-1].units))
