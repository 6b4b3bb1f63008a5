"""What a run under Laplace noise costs: a pure ε, with δ = 0, and a smaller ε at a δ above zero.

Each step draws a Poisson sample of the private set and releases the sum of gradients, each clipped to **L1**
norm C, under Laplace noise of scale noise_multiplier · C on every coordinate. A step without sampling is
ε₀-DP with ε₀ = 1 / noise_multiplier. No TensorFlow is imported here.
"""

from __future__ import annotations

import dataclasses
import math

import dp_accounting

from tfprivacy_lab.checks import InputError, check_finite_number, check_positive_int, settle
from tfprivacy_lab.dp.accounting.adjacency import ZERO_OUT
from tfprivacy_lab.dp.accounting.gaussian import (
    ADJACENCY,
    SAMPLING,
    accountant_name,
    check_delta,
    settle_sizes,
    steps_for,
)
from tfprivacy_lab.dp.accounting.privacy_loss.mechanisms import PoissonSampledLaplace, canonical
from tfprivacy_lab.dp.accounting.privacy_loss.pld import epsilon_of_counts

# Within these the discretised privacy loss has at most some 10^5 points a step.
_SMALLEST_NOISE, _LARGEST_NOISE = 0.05, 1e7
_MOST_STEPS, _LARGEST_EPSILON = 10**6, 100.0


@dataclasses.dataclass(frozen=True)
class LaplaceRun:
    r"""What one run of SGD under Laplace noise does to a private set.

    Attributes:
        examples: Number n of private examples.
        batch_size: Expected size of a Poisson batch; the sampling probability is q = batch_size / n.
        noise_multiplier: Scale of the Laplace noise over the L1 clipping norm, in [0.05, 1e7].
        steps: Number T of noisy sums released, at most 10^6.

    Raises:
        InputError: naming the argument that is out of range.

    Guarantee: add-or-remove-one adjacency on examples, all T noisy sums released: pure
    :attr:`pure_epsilon`-DP. Not covered: what was done with the private set outside the run.
    """

    examples: int
    batch_size: int
    noise_multiplier: float
    steps: int

    def __post_init__(self):
        settle_sizes(self, most_steps=_MOST_STEPS)
        limits = {"at_least": _SMALLEST_NOISE, "at_most": _LARGEST_NOISE}
        settle(self, noise_multiplier=check_finite_number("noise_multiplier", self.noise_multiplier, **limits))

    @property
    def sampling_probability(self) -> float:
        """Probability with which an example joins a step."""
        return self.batch_size / self.examples

    @property
    def epochs(self) -> float:
        """Expected number of times an example is used."""
        return self.steps * self.sampling_probability

    @property
    def step_epsilon(self) -> float:
        r"""Pure ε of one step, :math:`\ln(1 + q (e^{\varepsilon_0} - 1))`.

        Source: Li, Qardaji and Su 2012, Thm 1. It is reached: by outputs beyond the clipped gradient.
        """
        return math.log1p(self.sampling_probability * math.expm1(1 / self.noise_multiplier))

    @property
    def pure_epsilon(self) -> float:
        """Pure ε of the run, T times a step's: with δ = 0 no composition is better, since losses add up."""
        return self.steps * self.step_epsilon

    @property
    def step(self) -> PoissonSampledLaplace:
        """What one step releases."""
        return PoissonSampledLaplace(self.sampling_probability, self.noise_multiplier)

    def event(self) -> dp_accounting.DpEvent:
        """The run as dp_accounting understands it: T-fold Poisson-sampled Laplace."""
        step = dp_accounting.PoissonSampledDpEvent(
            self.sampling_probability, dp_accounting.LaplaceDpEvent(self.noise_multiplier)
        )
        return dp_accounting.SelfComposedDpEvent(step, self.steps)


@dataclasses.dataclass(frozen=True)
class LaplacePlan:
    """Hyperparameters of a run under Laplace noise; none may be chosen by looking at test data.

    Attributes:
        batch_size: Expected Poisson batch size. Pure ε grows with epochs alone, however they are cut, and
            the noise of a step with it: large batches and few steps pay.
        epochs: Passes in expectation; steps are ceil(epochs · n / batch_size).
        l1_norm_clip: Bound C on the L1 norm of one example's gradient, > 0.
        learning_rate: Step size on the mean clipped gradient, > 0.
        momentum: Heavy-ball momentum in [0, 1).
        average_last: Fraction of the epochs, counted from the end, whose final weights are averaged into
            the result; 0 keeps the last iterate. Post-processing: it costs no privacy.
        physical_batch_size: Rows computed at once; memory and speed only.
    """

    batch_size: int
    epochs: int
    l1_norm_clip: float
    learning_rate: float
    momentum: float = 0.0
    average_last: float = 0.0
    physical_batch_size: int = 128

    def __post_init__(self):
        for name in ("batch_size", "epochs", "physical_batch_size"):
            settle(self, **{name: check_positive_int(name, getattr(self, name))})
        settle(self, l1_norm_clip=check_finite_number("l1_norm_clip", self.l1_norm_clip, above=0))
        settle(self, learning_rate=check_finite_number("learning_rate", self.learning_rate, above=0))
        settle(self, momentum=check_finite_number("momentum", self.momentum, at_least=0, below=1))
        settle(self, average_last=check_finite_number("average_last", self.average_last, at_least=0, at_most=1))

    def calibrated(self, examples: int, epsilon: float, delta: float = 0.0) -> LaplaceRun:
        r"""The run that spends a pure ε on ``examples`` private examples; a pure ε holds at any ``delta``.

        :math:`1 / \ln(1 + (e^{\varepsilon / T} - 1) / q)`, rounded up to six decimals.

        Raises:
            InputError: naming the argument, or if the noise would lie outside [0.05, 1e7].
        """
        epsilon = check_finite_number("epsilon", epsilon, above=0, at_most=_LARGEST_EPSILON)
        check_finite_number("delta", delta, at_least=0, below=1)
        steps = steps_for(examples, self.batch_size, self.epochs)
        noise_multiplier = 1 / math.log1p(math.expm1(epsilon / steps) * examples / self.batch_size)
        if not _SMALLEST_NOISE <= noise_multiplier <= _LARGEST_NOISE:
            raise InputError(
                f"Expected a budget that needs a noise multiplier in [{_SMALLEST_NOISE:g}, {_LARGEST_NOISE:g}], got "
                f"epsilon={epsilon:g} for {steps} steps, which needs {noise_multiplier:.3g}."
            )
        run = LaplaceRun(examples, self.batch_size, math.ceil(noise_multiplier * 1e6) / 1e6, steps)
        while run.pure_epsilon > epsilon:  # by rounding
            run = dataclasses.replace(run, noise_multiplier=round(run.noise_multiplier * (1 + 1e-12) + 1e-6, 6))
        return run


def laplace_epsilon_after(run: LaplaceRun, steps: int, delta: float) -> float:
    """ε at δ by PLD after the first ``steps`` steps of ``run``, or its pure ε if that is less or δ is 0.

    The distribution is that of one number of sensitivity C. It covers vectors of L1 sensitivity C too: one
    coordinate is the worst case, see :meth:`tfprivacy_lab.dp.mechanisms.additive.LaplaceMechanism.delta`.

    Args:
        run: The run; its own ``steps`` is ignored.
        steps: Steps made so far, >= 0. Zero steps cost nothing.
        delta: Target δ in [0, 1).

    Returns:
        ε under Poisson sampling and add-or-remove-one adjacency.

    Raises:
        InputError: naming the argument.
    """
    steps = check_positive_int("steps", steps, at_least=0)
    check_finite_number("delta", delta, at_least=0, below=1)
    pure = steps * run.step_epsilon
    if delta == 0 or steps == 0:
        return pure
    return min(pure, epsilon_of_counts(canonical({run.step: steps}), float(delta)))


def account_laplace(run: LaplaceRun, delta: float) -> dict:
    """Every ε of a run under Laplace noise, with the assumptions that make each true.

    Args:
        run: The run.
        delta: Target δ in (0, 1) of the approximate figure.

    Returns:
        A JSON-ready dict: ``epsilon_pure`` (δ = 0), ``epsilon`` (PLD at ``delta``),
        ``epsilon_no_amplification`` (pure; every example once a pass, batches cut from a fixed order), which holds for
        ``epsilon_no_amplification_adjacency`` = ``zero_out``: under add-or-remove one example more would shift all
        later batches; and ``accountant``, ``sampling``, ``adjacency`` (of all else), ``mechanism``, ``delta``,
        ``steps``, ``noise_multiplier``.

    Raises:
        InputError: if δ is out of range.
    """
    check_delta(delta)
    passes = math.ceil(run.steps / math.ceil(run.examples / run.batch_size))
    return {
        "epsilon_pure": run.pure_epsilon,
        "epsilon": laplace_epsilon_after(run, run.steps, delta),
        "epsilon_no_amplification": passes / run.noise_multiplier,
        "epsilon_no_amplification_adjacency": ZERO_OUT,
        "accountant": accountant_name(),
        "sampling": SAMPLING,
        "adjacency": ADJACENCY,
        "mechanism": "laplace",
        "delta": float(delta),
        "steps": run.steps,
        "noise_multiplier": float(run.noise_multiplier),
    }
