r"""Before anything is shared: how large can values become, what arithmetic holds them, how far from float it ends.

The public ranges of features, labels and weights go through the forward pass, the backward pass and every update by
interval arithmetic, what the arithmetic itself rounds included, and every update before it is clipped. The worst case
is far above what happens, but it is certain: whatever the data, nothing wraps.

For models of one layer the loss is convex, and a step of gradient descent with :math:`\eta L \le 2` moves no two
weight vectors apart (Nesterov 2004, Thm 2.1.14); errors of the steps then add up, and the sum is reported. For deeper
networks no useful bound is known; they are compared with float in the tests.
"""

from __future__ import annotations

import dataclasses
import math

from tfprivacy_lab.checks import InputError
from tfprivacy_lab.mpc.jobs.fixed_point import FixedPoint, candidates, choose_fixed_point
from tfprivacy_lab.mpc.jobs.job import Job
from tfprivacy_lab.mpc.jobs.sigmoid import Sigmoid, choose_sigmoid

# A factor below this would be rounded by more than one part in 2^8 on the coarsest grid.
_LEAST_RATE = 2.0**-8


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a job is computed with. Every party derives the same one.

    Attributes:
        arithmetic: Field and fraction bits.
        sigmoids: One a layer, None where there is none.
        largest: No intermediate value passes this, whatever the data within the ranges.
        shift: A gradient sum is first multiplied by 2^-shift,
        rate: and then by this: learning rate, over the rows if the loss is a mean, times 2^shift. One factor alone
            would be too small to stand for in fixed point.
        weight_error: Bound on the L2 distance of the trained weights from those of float arithmetic; None if there
            is none (a network of several layers, a learning rate above twice the inverse of the largest curvature
            that the ranges allow), or nothing is trained.
        prediction_error: Bound on the distance of a prediction from float arithmetic's, given the same weights.
    """

    arithmetic: FixedPoint
    sigmoids: tuple[Sigmoid | None, ...]
    largest: float
    shift: int
    rate: float
    weight_error: float | None
    prediction_error: float | None


def plan(job: Job) -> Plan:
    """Choose arithmetic and sigmoids for a job, or refuse it.

    Raises:
        InputError: if values could overflow even 128 bits, or if the learning rate or a sigmoid's error is finer than
            the arithmetic.
    """
    if not job.layers:
        noise = job.noise.largest * len(job.noise.parties) if job.noise else 0.0
        largest = (job.feature_range + _unit(job)) * len(job.features) + noise
        arithmetic = choose_fixed_point(largest, _arithmetics(job))
        return Plan(arithmetic, (), largest, 0, 1.0, None, len(job.features) * arithmetic.resolution)
    bounds = _all_steps(job)
    arithmetic, sigmoids = _fitting(job, bounds)
    shift, rate = _rate(job, arithmetic)
    draft = Plan(arithmetic, sigmoids, bounds.largest, shift, rate, None, None)
    return dataclasses.replace(
        draft,
        weight_error=_weight_error(job, draft, bounds.weights),
        prediction_error=_prediction_error(job, draft, bounds.weights) if job.query else None,
    )


def weight_bound(job: Job) -> float:
    """The largest magnitude that a weight of the job can reach."""
    return max(_all_steps(job).weights)


def _fitting(job: Job, bounds: _Bounds) -> tuple[FixedPoint, tuple[Sigmoid | None, ...]]:
    """The first arithmetic that holds all values and is fine enough for the sigmoids."""
    choose_fixed_point(bounds.largest, _arithmetics(job))
    fits = [one for one in _arithmetics(job) if bounds.largest < one.largest]
    for arithmetic in fits:
        try:
            sigmoids = tuple(
                choose_sigmoid(min(bound, 1e300), job.sigmoid_error, arithmetic.resolution)
                if layer.activation == "sigmoid"
                else None
                for layer, bound in zip(job.layers, bounds.arguments, strict=True)
            )
        except InputError:
            if arithmetic is fits[-1]:
                raise
            continue
        if all(8.0 * len(one.coefficients) ** 2 < arithmetic.largest for one in sigmoids if one):
            return arithmetic, sigmoids
    raise InputError(f"Overflow risk: the sigmoid does not fit fraction_bits={fits[-1].fraction_bits}; lower it.")


@dataclasses.dataclass(frozen=True)
class _Bounds:
    """Bounds over all steps: on each weight array, on the argument of each layer's activation, and on any value."""

    weights: list[float]
    arguments: list[float]
    largest: float


def _all_steps(job: Job) -> _Bounds:
    weights, steps = _initial_bounds(job), job.training.steps if job.training else 0
    found = _Bounds(weights, [0.0] * len(job.layers), max(1.0, _stored(job, job.feature_range), job.label_range + 1))
    for step in range(steps + 1):
        passed = _forward(job, weights)
        reached = [passed.largest, *weights]
        if step < steps:
            gradients, on_the_way = _backward(job, weights, passed)
            weights, moved = _updated(job, weights, gradients)
            reached += [on_the_way, *moved, _rate(job)[1]]
        found = _Bounds(
            [max(pair) for pair in zip(found.weights, weights, strict=True)],
            [max(pair) for pair in zip(found.arguments, passed.arguments, strict=True)],
            max(found.largest, *reached),
        )
        if not math.isfinite(found.largest):
            break
    return found


def _arithmetics(job: Job) -> list[FixedPoint]:
    """What may be chosen: the one that the job names, those of its noise's grid, or any."""
    if job.arithmetic is not None:
        return [job.arithmetic]
    return candidates(None if job.noise is None else job.noise.fraction_bits)


def _unit(job: Job) -> float:
    """No arithmetic that may be chosen has a coarser resolution."""
    return max(one.resolution for one in _arithmetics(job))


def _stored(job: Job, bound: float) -> float:
    """A bound on what stands for a value on the grid, or for a product after truncation."""
    return bound + 2 * _unit(job)


@dataclasses.dataclass(frozen=True)
class _Pass:
    """Bounds of a forward pass, one a layer."""

    inputs: list[float]
    arguments: list[float]
    largest: float


def _initial_bounds(job: Job) -> list[float]:
    if job.initial != "public":
        return [_stored(job, job.weight_range)] * len(job.weight_shapes)
    return [_stored(job, max((abs(float(v)) for v in _flat(one)), default=0.0)) for one in job.weights]


def _flat(nested):
    for one in nested:
        yield from _flat(one) if isinstance(one, list | tuple) else (one,)


def _forward(job: Job, weights: list[float]) -> _Pass:
    inputs, arguments = [], []
    bound = _stored(job, job.feature_range)
    for number, layer in enumerate(job.layers):
        kernel, bias = weights[2 * number : 2 * number + 2]
        inputs.append(bound)
        arguments.append(_stored(job, job.weight_shapes[2 * number][0] * kernel * bound + bias))
        bound = 1 + job.sigmoid_error if layer.activation == "sigmoid" else arguments[-1]
    return _Pass(inputs, arguments, max(arguments))


def _backward(job: Job, weights: list[float], passed: _Pass) -> tuple[list[float], float]:
    """Bounds of the gradient sums, kernel and bias of each layer in turn, and the largest value on the way."""
    logistic, label = job.training.loss == "binary_crossentropy", _stored(job, job.label_range)
    delta = 1 + job.sigmoid_error + label - job.label_range if logistic else 2 * (passed.arguments[-1] + label)
    gradients, largest = [], delta
    for number in reversed(range(len(job.layers))):
        if number < len(job.layers) - 1 and job.layers[number].activation == "sigmoid":
            # Upstream times value times (1 - value), one after the other.
            delta = _stored(job, delta * (1 + job.sigmoid_error) ** 2)
        gradients[:0] = [_stored(job, job.batch_rows * passed.inputs[number] * delta), job.batch_rows * delta]
        largest = max(largest, delta, *gradients[:2])
        delta = _stored(job, delta * job.layers[number].units * weights[2 * number])
    # The derivative by the features is not asked for.
    noise = job.noise.largest * len(job.noise.parties) if job.noise else 0.0
    return [bound + noise for bound in gradients], largest + noise


def _updated(job: Job, weights: list[float], gradients: list[float]) -> tuple[list[float], list[float]]:
    """Bounds of the weights after a step, and before they are clipped."""
    shift, rate = _rate(job)
    pairs = zip(weights, gradients, strict=True)
    # One rounding of the factor, one of the product before it, one of its own.
    moved = [w + (g * 2.0**-shift + _unit(job)) * (rate + _unit(job)) + 2 * _unit(job) for w, g in pairs]
    if job.weight_range is None:
        return moved, moved
    return [min(bound, _stored(job, job.weight_range)) for bound in moved], moved


def _step_size(job: Job) -> float:
    """Learning rate, over the rows of a step if the loss is a mean."""
    rows = 1 if job.training.loss == "sum_of_squares" else job.batch_rows
    return job.training.learning_rate / rows


def _rate(job: Job, arithmetic: FixedPoint | None = None) -> tuple[int, float]:
    """(shift, rate): the step's size as a power of two, which fixed point holds exactly, and a factor."""
    if job.training is None:
        return 0, 1.0
    step = _step_size(job)
    shift = max(0, -math.frexp(step)[1])
    if arithmetic is not None:
        shift = min(shift, arithmetic.fraction_bits)
        if math.ldexp(step, shift) < _LEAST_RATE:
            raise InputError(
                f"Expected a step (learning_rate, over the rows for a mean) of at least "
                f"{_LEAST_RATE * arithmetic.resolution:.3g}, the finest that this arithmetic takes, got {step:.3g}; "
                "raise learning_rate, or lower the batch size or the ranges, for finer arithmetic."
            )
    return shift, math.ldexp(step, shift)


def _weight_error(job: Job, draft: Plan, weights: list[float]) -> float | None:
    if job.training is None or len(job.layers) > 1 or job.initial != "public":
        return None
    u, rows, step = draft.arithmetic.resolution, job.batch_rows, _step_size(job)
    width, reach = job.width, job.feature_range
    argument_error = width * weights[0] * u + 2 * u
    if job.training.loss == "binary_crossentropy":
        sigmoid = draft.sigmoids[0]
        residual, curvature = 1 + sigmoid.error, 0.25
        residual_error = sigmoid.error + sigmoid.rounding_error(u) + argument_error / 4 + u
    else:
        residual, curvature = 2 * (width * weights[0] * reach + weights[1] + job.label_range), 2.0
        residual_error = 2 * argument_error + 4 * u
    noise = job.noise.largest * len(job.noise.parties) if job.noise else 0.0
    gradient = rows * max(reach, 1.0) * residual + noise
    gradient_error = rows * (max(reach, 1.0) * residual_error + u * residual) + 2 * u
    scaled = step * gradient_error + draft.rate * u + 2.0**-draft.shift * gradient * u + 2 * u
    one = scaled * math.sqrt(job.parameters)
    # Every holder bounds the norm of its own columns, and rounds them.
    squared_norm = (job.row_norm + u * math.sqrt(width)) ** 2
    lipschitz = step * curvature * rows * (squared_norm + 1)
    total = u * math.sqrt(job.parameters)
    for _ in range(job.training.steps):
        total = total * (1.0 if lipschitz <= 2 else 1 + lipschitz) + one
    # Where a step may expand, errors grow exponentially in the worst case: a bound that says nothing is none.
    return total if lipschitz <= 2 or total < 1 else None


def _prediction_error(job: Job, draft: Plan, weights: list[float]) -> float:
    u, passed = draft.arithmetic.resolution, _forward(job, weights)
    error = u
    for number, sigmoid in enumerate(draft.sigmoids):
        width = job.weight_shapes[2 * number][0]
        error = width * (weights[2 * number] * error + (passed.inputs[number] + error) * u) + 3 * u
        if sigmoid is not None:
            error = error / 4 + sigmoid.error + sigmoid.rounding_error(u)
    return error
