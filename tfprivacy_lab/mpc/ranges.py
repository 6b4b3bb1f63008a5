r"""Before anything is shared: how large can values become, what arithmetic holds them, how far from float it ends.

The public ranges of features, labels and weights go through the forward pass, the backward pass and every update by
interval arithmetic. The worst case is far above what happens, but it is certain: whatever the data, nothing wraps.

For models of one layer the loss is convex, and a step of gradient descent with :math:`\eta L \le 2` moves no two
weight vectors apart (Nesterov 2004, Thm 2.1.14); errors of the steps then add up, and the sum is reported. For deeper
networks no useful bound is known; they are compared with float in the tests.
"""

from __future__ import annotations

import dataclasses
import math

from tfprivacy_lab.checks import InputError
from tfprivacy_lab.mpc.fixed_point import FixedPoint, choose_fixed_point
from tfprivacy_lab.mpc.jobs import Job
from tfprivacy_lab.mpc.sigmoid import Sigmoid, choose_sigmoid


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
        InputError: if values could overflow even 128 bits, or the noise does not fit the arithmetic.
    """
    if not job.layers:
        noise = job.noise.largest * len(job.noise.parties) if job.noise else 0.0
        largest = job.feature_range * len(job.features) + noise
        arithmetic = _arithmetic(job, largest)
        rounding = len(job.features) * arithmetic.resolution
        return Plan(arithmetic, (), largest, 0, 1.0, None, rounding)
    weights, largest, arguments = _all_steps(job)
    sigmoids = tuple(
        choose_sigmoid(min(bound, 1e300), job.sigmoid_error) if layer.activation == "sigmoid" else None
        for layer, bound in zip(job.layers, arguments, strict=True)
    )
    largest = max([largest, *(8.0 * len(one.coefficients) ** 2 for one in sigmoids if one)])
    arithmetic = _arithmetic(job, largest)
    shift, rate = _rate(job)
    draft = Plan(arithmetic, sigmoids, largest, shift, rate, None, None)
    return dataclasses.replace(
        draft,
        weight_error=_weight_error(job, draft, weights),
        prediction_error=_prediction_error(job, draft, weights) if job.query else None,
    )


def weight_bound(job: Job) -> float:
    """The largest magnitude that a weight of the job can reach."""
    return max(_all_steps(job)[0])


def _all_steps(job: Job) -> tuple[list[float], float, list[float]]:
    """Bounds on the final weights, on any value on the way, and on the argument of each layer's activation."""
    weights, steps = _initial_bounds(job), job.training.steps if job.training else 0
    largest, arguments = max(1.0, job.feature_range, job.label_range), [0.0] * len(job.layers)
    for step in range(steps + 1):
        passed = _forward(job, weights)
        arguments = [max(pair) for pair in zip(arguments, passed.arguments, strict=True)]
        largest = max(largest, passed.largest)
        if step < steps:
            gradients, reached = _backward(job, weights, passed)
            largest, weights = max(largest, reached), _updated(job, weights, gradients)
        if not math.isfinite(largest):
            break
    return weights, largest, arguments


@dataclasses.dataclass(frozen=True)
class _Pass:
    """Bounds of a forward pass, one a layer."""

    inputs: list[float]
    arguments: list[float]
    largest: float


def _initial_bounds(job: Job) -> list[float]:
    if job.initial != "public":
        return [job.weight_range] * len(job.weight_shapes)
    return [max((abs(float(v)) for v in _flat(one)), default=0.0) for one in job.weights]


def _flat(nested):
    for one in nested:
        yield from _flat(one) if isinstance(one, list | tuple) else (one,)


def _forward(job: Job, weights: list[float]) -> _Pass:
    inputs, arguments = [], []
    bound = job.feature_range
    for number, layer in enumerate(job.layers):
        kernel, bias = weights[2 * number : 2 * number + 2]
        inputs.append(bound)
        arguments.append(job.weight_shapes[2 * number][0] * kernel * bound + bias)
        bound = 1 + job.sigmoid_error if layer.activation == "sigmoid" else arguments[-1]
    return _Pass(inputs, arguments, max(arguments))


def _backward(job: Job, weights: list[float], passed: _Pass) -> tuple[list[float], float]:
    """Bounds of the gradient sums, kernel and bias of each layer in turn, and the largest value on the way."""
    logistic = job.training.loss == "binary_crossentropy"
    delta = 1 + job.sigmoid_error if logistic else 2 * (passed.arguments[-1] + job.label_range)
    gradients, largest = [], delta
    for number in reversed(range(len(job.layers))):
        gradients[:0] = [job.batch_rows * passed.inputs[number] * delta, job.batch_rows * delta]
        delta *= job.layers[number].units * weights[2 * number]
        largest = max(largest, delta, *gradients[:2])
    noise = job.noise.largest * len(job.noise.parties) if job.noise else 0.0
    return [bound + noise for bound in gradients], largest + noise


def _updated(job: Job, weights: list[float], gradients: list[float]) -> list[float]:
    step = _step_size(job)
    moved = [weight + step * gradient for weight, gradient in zip(weights, gradients, strict=True)]
    return moved if job.weight_range is None else [min(bound, job.weight_range) for bound in moved]


def _step_size(job: Job) -> float:
    """Learning rate, over the rows of a step if the loss is a mean."""
    rows = 1 if job.training.loss == "sum_of_squares" else job.batch_rows
    return job.training.learning_rate / rows


def _rate(job: Job) -> tuple[int, float]:
    if job.training is None:
        return 0, 1.0
    step = _step_size(job)
    shift = max(0, -math.frexp(step)[1])
    return shift, step * 2.0**shift


def _arithmetic(job: Job, largest: float) -> FixedPoint:
    if job.noise is None:
        return choose_fixed_point(largest)
    for field_bits in (64, 128):
        fraction_bits = job.noise.fraction_bits
        if fraction_bits <= field_bits // 2 - 8 and largest < FixedPoint(field_bits, fraction_bits).largest:
            return FixedPoint(field_bits, fraction_bits)
    raise InputError(
        f"Overflow risk: values up to {largest:.3g} do not fit beside noise of fraction_bits="
        f"{job.noise.fraction_bits}; set weight_range, or lower fraction_bits, steps or feature_range."
    )


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
    gradient = rows * max(reach, 1.0) * residual
    gradient_error = rows * (max(reach, 1.0) * residual_error + u * residual) + 2 * u
    scaled = step * gradient_error + draft.rate * u + 2.0**-draft.shift * gradient * u + 2 * u
    one = scaled * math.sqrt(job.parameters)
    squared_norm = width * reach**2 if job.training.row_norm is None else job.training.row_norm**2
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
