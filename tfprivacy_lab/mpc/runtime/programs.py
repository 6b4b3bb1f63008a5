"""A job as pure TensorFlow functions, compiled for the engine: no captured tensors, everything is an argument.

Programs work on named values that live on shares. ``assemble`` joins what the parties hold and cuts it into batches;
``step`` is forward pass, ``tf.GradientTape`` backward pass and update, weights in, weights out; ``predict`` is the
forward pass; ``sum`` adds vectors and noise. The order of all names is the job's: every party compiles the same.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import threading

import numpy as np
import tensorflow as tf

from tfprivacy_lab.mpc.jobs.job import Job
from tfprivacy_lab.mpc.jobs.ranges import Plan
from tfprivacy_lab.mpc.runtime.hlo import compiled
from tfprivacy_lab.mpc.runtime.library import libspu

_SECRET, _PUBLIC = libspu.Visibility.VIS_SECRET, libspu.Visibility.VIS_PUBLIC
# The tracer keeps global state; parties that are threads of one process compile one after the other.
_COMPILING = threading.Lock()


@dataclasses.dataclass(frozen=True)
class Program:
    """One compiled function: the engine's code, and the names of what it reads and writes."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    code: bytes

    def executable(self, renamed: dict[str, str] | None = None) -> libspu.Executable:
        """The engine's object, with some inputs read from other names."""
        renamed = renamed or {}
        return libspu.Executable(
            name=self.name,
            input_names=[renamed.get(name, name) for name in self.inputs],
            output_names=list(self.outputs),
            code=self.code,
        )


@dataclasses.dataclass(frozen=True)
class Programs:
    """Everything a job runs, by name, and one digest that all parties compare."""

    by_name: dict[str, Program]

    @property
    def digest(self) -> str:
        """SHA-256 over names and code, hexadecimal."""
        digest = hashlib.sha256()
        for name, program in sorted(self.by_name.items()):
            # The module's own name counts what the process has traced before.
            code = re.sub(rb"^module @\S+", b"module", program.code)
            digest.update(repr((name, program.inputs, program.outputs)).encode() + code)
        return digest.hexdigest()


def weight_names(job: Job) -> list[str]:
    """``kernel_0``, ``bias_0``, ``kernel_1``, … in the order of ``job.weight_shapes``."""
    return [f"{kind}_{number}" for number in range(len(job.layers)) for kind in ("kernel", "bias")]


def compile_job(job: Job, plan: Plan) -> Programs:
    """Compile all programs of a job."""
    with _COMPILING:
        if not job.layers:
            return Programs({"sum": _compile_sum(job)})
        found = {}
        if job.training is not None:
            found["assemble"] = _compile_assemble(job)
            found["step"] = _compile_step(job, plan)
        if job.query:
            found["predict"] = _compile_predict(job, plan)
        return Programs(found)


def forward(weights, x, job: Job, plan: Plan):
    """The model on tensors; returns (last argument, prediction)."""
    value = argument = x
    for number, layer in enumerate(job.layers):
        argument = tf.matmul(value, weights[2 * number]) + weights[2 * number + 1]
        if layer.activation == "sigmoid":
            value = _differentiable(plan.sigmoids[number])(argument)
        else:
            value = tf.nn.relu(argument) if layer.activation == "relu" else argument
    return argument, value


def _differentiable(sigmoid):
    @tf.custom_gradient
    def apply(argument):
        value = sigmoid(argument, clip=tf.clip_by_value)
        # The derivative of the sigmoid it stands for: that of the polynomial wiggles.
        return value, lambda upstream: upstream * value * (1 - value)

    return apply


def _loss(weights, x, y, job: Job, plan: Plan):
    """The loss summed over rows. Only its gradient is right for the logistic loss: logarithms are dear on shares."""
    argument, value = forward(weights, x, job, plan)
    if job.training.loss != "binary_crossentropy":
        return tf.reduce_sum((value - y) ** 2)

    @tf.custom_gradient
    def cross_entropy(argument):
        residual = plan.sigmoids[-1](argument, clip=tf.clip_by_value) - y
        return tf.reduce_sum(argument), lambda upstream: upstream * residual

    return cross_entropy(argument)


def _compile_step(job: Job, plan: Plan) -> Program:
    names, count = weight_names(job), len(job.weight_shapes)
    noised = job.noise is not None

    def step(*arguments):
        weights, (x, y, shift, rate), noise = arguments[:count], arguments[count : count + 4], arguments[count + 4 :]
        with tf.GradientTape() as tape:
            tape.watch(weights)
            loss = _loss(weights, x, y, job, plan)
        gradients = tape.gradient(loss, weights)
        if noised:
            gradients = [g + n for g, n in zip(gradients, _cut(noise[0], job), strict=True)]
        # Two factors, because one may be too small for fixed point.
        moved = [w - g * shift * rate for w, g in zip(weights, gradients, strict=True)]
        if job.weight_range is None:
            return moved
        return [tf.clip_by_value(w, -job.weight_range, job.weight_range) for w in moved]

    shapes = [*job.weight_shapes, (job.batch_rows, job.width), (job.batch_rows, job.layers[-1].units), (), ()]
    inputs = [*names, "x", "y", "shift", "rate"] + ["noise"] * noised
    visible = [_SECRET] * (count + 2) + [_PUBLIC] * 2 + [_SECRET] * noised
    return _compile("step", step, shapes + [(job.parameters,)] * noised, inputs, visible, names)


def _cut(flat, job: Job):
    """One vector as tensors of the weights' shapes."""
    sizes = [int(np.prod(shape)) for shape in job.weight_shapes]
    parts = tf.split(flat, sizes)
    return [tf.reshape(part, shape) for part, shape in zip(parts, job.weight_shapes, strict=True)]


def _compile_assemble(job: Job) -> Program:
    axis = 1 if job.split == "columns" else 0
    holders, labels = list(job.features), list(job.labels)
    noisy = list(job.noise.parties) if job.noise else []
    batches = job.rows // job.batch_rows

    def assemble(*parts):
        x, y = parts[: len(holders)], parts[len(holders) : len(holders) + len(labels)]
        outputs = [*tf.split(tf.concat(x, axis), batches), *tf.split(tf.concat(y, 0), batches)]
        if noisy:
            total = tf.add_n(parts[len(holders) + len(labels) :])
            outputs += [tf.reshape(row, [-1]) for row in tf.split(total, job.training.steps)]
        return outputs

    units = job.layers[-1].units
    label_rows = [job.rows if job.split == "columns" else job.features[party][0] for party in labels]
    shapes = [job.features[party] for party in holders] + [(rows, units) for rows in label_rows]
    shapes += [(job.training.steps, job.parameters)] * len(noisy)
    inputs = [f"x.{party}" for party in holders] + [f"y.{party}" for party in labels]
    inputs += [f"noise.{party}" for party in noisy]
    outputs = [f"x#{n}" for n in range(batches)] + [f"y#{n}" for n in range(batches)]
    outputs += [f"noise#{n}" for n in range(job.training.steps)] if noisy else []
    return _compile("assemble", assemble, shapes, inputs, [_SECRET] * len(inputs), outputs)


def _compile_predict(job: Job, plan: Plan) -> Program:
    names, count = weight_names(job), len(job.weight_shapes)

    def predict(*arguments):
        return forward(arguments[:count], tf.concat(arguments[count:], 1), job, plan)[1]

    inputs = [*names, *(f"query.{party}" for party in job.query)]
    shapes = [*job.weight_shapes, *job.query.values()]
    return _compile("predict", predict, shapes, inputs, [_SECRET] * len(inputs), ["predictions"])


def _compile_sum(job: Job) -> Program:
    inputs = [f"x.{party}" for party in job.features]
    inputs += [f"noise.{party}" for party in job.noise.parties] if job.noise else []

    def total(*parts):
        return tf.add_n(parts)

    shapes = [(1, job.parameters)] * len(inputs)
    return _compile("sum", total, shapes, inputs, [_SECRET] * len(inputs), ["predictions"])


def _compile(name, function, shapes, inputs, visibilities, outputs) -> Program:
    examples = [tf.zeros(shape, tf.float64) for shape in shapes]
    options = libspu.CompilerOptions()
    # It would multiply public factors first, and round their product, which may be too small for fixed point.
    options.disable_reduce_truncation_optimization = True
    return Program(name, tuple(inputs), tuple(outputs), compiled(function, examples, visibilities, options))
