"""What a DP-SGD run costs: run → DpEvent → ε.

The run is described once, as frozen data; every ε is a function of that description. The event says
what the code does: each step draws a Poisson sample of the private set (every example joins
independently with probability batch_size / examples) and releases the sum of gradients, each clipped
to norm C, under Gaussian noise of standard deviation noise_multiplier · C.

No TensorFlow is imported here.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import math
import warnings

import dp_accounting
from dp_accounting import rdp

from tfprivacy_lab.checks import InputError, LargeDeltaWarning, check_finite_number, check_positive_int, settle
from tfprivacy_lab.dp.accounting.adjacency import ADD_OR_REMOVE_ONE, ZERO_OUT
from tfprivacy_lab.dp.accounting.privacy_loss.analytic_gaussian import gaussian_epsilon
from tfprivacy_lab.dp.accounting.privacy_loss.mechanisms import PoissonSampledGaussian, canonical
from tfprivacy_lab.dp.accounting.privacy_loss.pld import epsilon_of_counts

SAMPLING = "poisson"
ADJACENCY = ADD_OR_REMOVE_ONE

# Beyond these the discretised distribution no longer fits, or rounding eats the answer.
SMALLEST_NOISE, LARGEST_NOISE = 0.1, 1e5
_MOST_EXAMPLES, _MOST_STEPS = 10**12, 10**8


def settle_sizes(run, *, most_steps: int) -> None:
    """Keep examples, batch_size and steps of a run, under whatever noise, as whole numbers.

    Raises:
        InputError: naming the argument that is out of range.
    """
    settle(
        run,
        examples=check_positive_int("examples", run.examples, at_most=_MOST_EXAMPLES),
        batch_size=check_positive_int("batch_size", run.batch_size),
        steps=check_positive_int("steps", run.steps, at_most=most_steps),
    )
    if run.batch_size > run.examples:
        raise InputError(
            f"Expected batch_size <= examples, got batch_size={run.batch_size} for "
            f"examples={run.examples}; use a smaller batch."
        )


@dataclasses.dataclass(frozen=True)
class DpSgdRun:
    r"""What one run of DP-SGD does to a private set.

    Attributes:
        examples: Number n of private examples.
        batch_size: Expected size of a Poisson batch; the sampling probability is batch_size / n.
        noise_multiplier: Noise standard deviation over the clipping norm, dimensionless, in (0, 1e5].
        steps: Number T of noisy sums released, at most 1e8.

    Raises:
        InputError: naming the argument that is out of range.

    Guarantee: add-or-remove-one adjacency on examples, all T noisy sums released (Abadi et al. 2016,
    Alg. 1). Not covered: what was done with the private set outside the run.
    """

    examples: int
    batch_size: int
    noise_multiplier: float
    steps: int

    def __post_init__(self):
        settle_sizes(self, most_steps=_MOST_STEPS)
        noise_multiplier = check_finite_number(
            "noise_multiplier", self.noise_multiplier, above=0, at_most=LARGEST_NOISE
        )
        settle(self, noise_multiplier=noise_multiplier)

    @property
    def sampling_probability(self) -> float:
        """Probability with which an example joins a step."""
        return self.batch_size / self.examples

    @property
    def epochs(self) -> float:
        """Expected number of times an example is used."""
        return self.steps * self.sampling_probability

    @property
    def step(self) -> PoissonSampledGaussian:
        """What one step releases."""
        return PoissonSampledGaussian(self.sampling_probability, self.noise_multiplier)

    def event(self) -> dp_accounting.DpEvent:
        """The run as dp_accounting understands it: T-fold Poisson-sampled Gaussian."""
        step = dp_accounting.PoissonSampledDpEvent(
            self.sampling_probability, dp_accounting.GaussianDpEvent(self.noise_multiplier)
        )
        return dp_accounting.SelfComposedDpEvent(step, self.steps)

    def event_without_amplification(self) -> dp_accounting.DpEvent:
        """The same noise with no credit for random sampling.

        Batches cut from a fixed order, ceil(n / batch_size) a pass: every example once a pass. Its cost holds for
        zero-out neighbours, one example's gradient becoming zero while its place stays, and for no others.
        """
        step = dp_accounting.GaussianDpEvent(self.noise_multiplier)
        passes = math.ceil(self.steps / math.ceil(self.examples / self.batch_size))
        return dp_accounting.SelfComposedDpEvent(step, passes)


def steps_for(examples: int, batch_size: int, epochs: float) -> int:
    """Steps of a run: :math:`T = \\lceil epochs \\cdot n / batch\\_size \\rceil`, as TF Privacy counts.

    Raises:
        InputError: naming the argument that is out of range.
    """
    check_positive_int("examples", examples, at_most=_MOST_EXAMPLES)
    check_positive_int("batch_size", batch_size)
    check_finite_number("epochs", epochs, above=0)
    if batch_size > examples:
        raise InputError(
            f"Expected batch_size <= examples, got batch_size={batch_size} for examples={examples}; "
            "use a smaller batch."
        )
    steps = math.ceil(round(epochs * examples / batch_size, 9))
    if steps > _MOST_STEPS:
        raise InputError(f"Expected at most {_MOST_STEPS} steps, got {steps} from epochs={epochs:g}; use fewer epochs.")
    return steps


def check_delta(delta: float) -> float:
    """δ strictly between 0 and 1.

    Raises:
        InputError: echoing the value.
    """
    return check_finite_number("delta", delta, above=0, below=1)


def delta_warning(delta: float, examples: int) -> str | None:
    """One line if δ is so large that releasing a random whole record would satisfy it."""
    if delta < 1 / examples:
        return None
    return (
        f"delta={delta:g} is not below 1/examples = {1 / examples:.3g}: such a guarantee would allow "
        "publishing one record outright; use a smaller delta."
    )


def warn_of_large_delta(delta: float, examples: int, stacklevel: int = 3) -> None:
    """Warn once, by :class:`~tfprivacy_lab.checks.LargeDeltaWarning`, where :func:`delta_warning` has a line.

    Args:
        delta: δ in (0, 1).
        examples: Number n of private examples.
        stacklevel: As for ``warnings.warn``; 3 names the line that called the caller.
    """
    if text := delta_warning(delta, examples):
        warnings.warn(text, LargeDeltaWarning, stacklevel=stacklevel)


def epsilon_after(run: DpSgdRun, steps: int, delta: float) -> float:
    """ε by PLD after the first ``steps`` steps of ``run``: the curve that training shows.

    Args:
        run: The run; its own ``steps`` is ignored.
        steps: Steps made so far, >= 0. Zero steps cost nothing.
        delta: Target δ.

    Returns:
        ε under Poisson sampling and add-or-remove-one adjacency.

    Raises:
        InputError: if δ or the noise (at least 0.1 here) is too small for a finite figure.
    """
    steps = check_positive_int("steps", steps, at_least=0)
    delta = check_delta(delta)
    if steps == 0:
        return 0.0
    check_finite_number("noise_multiplier", run.noise_multiplier, at_least=SMALLEST_NOISE)
    return finite(epsilon_of_counts(canonical({run.step: steps}), delta), delta)


def finite(epsilon: float, delta: float) -> float:
    """The same ε.

    Raises:
        InputError: if it is infinite: losses so rare that they are not looked at are not that rare at this δ.
    """
    if not math.isfinite(epsilon):
        raise InputError(f"No finite epsilon can be computed at delta={delta:g}; use a larger delta.")
    return epsilon


def account(run: DpSgdRun, delta: float) -> dict:
    """Every ε of a run, with the assumptions that make each true.

    Args:
        run: The run.
        delta: Target δ in (0, 1).

    Returns:
        A JSON-ready dict: ``epsilon`` (PLD, Poisson), ``epsilon_rdp`` (RDP, Poisson),
        ``epsilon_no_amplification`` (RDP, each example once an epoch, as TF Privacy's statement
        prints it), ``epsilon_no_amplification_exact`` (the same, exactly), which hold for
        ``epsilon_no_amplification_adjacency`` = ``zero_out`` and not for add-or-remove, under which one example
        more would shift all later batches; and ``accountant``, ``sampling``, ``adjacency`` (of ``epsilon`` and
        ``epsilon_rdp``), ``delta``, ``steps``, ``noise_multiplier``.

    Raises:
        InputError: if δ is out of range.

    Warns:
        LargeDeltaWarning: if δ is not below 1 / examples.

    Source: PLD: Koskela et al. 2020, Doroshenko et al. 2022 (connect the dots). RDP: Mironov, Talwar
    and Zhang 2019, converted as Canonne, Kamath and Steinke 2020, Prop. 12. Exact: Balle and Wang 2018,
    Thm 8; k Gaussian steps are one of noise multiplier σ/√k.
    """
    check_delta(delta)
    warn_of_large_delta(delta, run.examples)
    epsilon = epsilon_after(run, run.steps, delta)
    plain = run.event_without_amplification()
    return {
        "epsilon": epsilon,
        "epsilon_rdp": float(rdp.RdpAccountant().compose(run.event()).get_epsilon(delta)),
        "epsilon_no_amplification": float(rdp.RdpAccountant().compose(plain).get_epsilon(delta)),
        "epsilon_no_amplification_exact": gaussian_epsilon(run.noise_multiplier / math.sqrt(plain.count), delta),
        "epsilon_no_amplification_adjacency": ZERO_OUT,
        "accountant": accountant_name(),
        "sampling": SAMPLING,
        "adjacency": ADJACENCY,
        "delta": float(delta),
        "steps": run.steps,
        "noise_multiplier": float(run.noise_multiplier),
    }


def accountant_name() -> str:
    """The accountant of the headline ε, with its version."""
    return f"PLD (dp-accounting {importlib.metadata.version('dp-accounting')})"
