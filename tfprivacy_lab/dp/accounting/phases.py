"""What a model's training has spent so far: its phases as events, and their ε together."""

from __future__ import annotations

import dataclasses
import math

import dp_accounting

from tfprivacy_lab.checks import InputError
from tfprivacy_lab.dp.accounting import adjacency, budget, composition
from tfprivacy_lab.dp.accounting.gaussian import SMALLEST_NOISE

SAMPLINGS = ("poisson", "shuffled")


@dataclasses.dataclass(frozen=True)
class Phase:
    """Steps of one kind.

    Attributes:
        examples: Number n of private examples.
        batch_size: Expected (poisson) or largest (shuffled) size of a batch.
        noise_multiplier: Noise standard deviation over the clipping norm.
        sampling: One of :data:`SAMPLINGS`.
        steps: Number of steps.
    """

    examples: int
    batch_size: int
    noise_multiplier: float
    sampling: str
    steps: int

    def event(self) -> dp_accounting.DpEvent:
        """The phase as dp_accounting understands it, in a ZeroOutOneDpEvent if it was shuffled.

        Shuffled batches get no amplification: an example is in one batch a pass, at a place that an
        adversary may know (Chua et al. 2024, "How private are DP-SGD implementations?"). The event then
        holds for neighbours in which one example's gradient becomes zero and its place stays (zero-out
        adjacency): one example more would shift all later ones. Composition, logs and ledgers see that.
        """
        if self.steps == 0:
            return dp_accounting.NoOpDpEvent()
        if self.noise_multiplier == 0:
            return dp_accounting.NonPrivateDpEvent()
        gaussian = dp_accounting.GaussianDpEvent(self.noise_multiplier)
        if self.sampling == "poisson":
            step = dp_accounting.PoissonSampledDpEvent(self.batch_size / self.examples, gaussian)
            return dp_accounting.SelfComposedDpEvent(step, self.steps)
        return adjacency.ZeroOutOneDpEvent(dp_accounting.SelfComposedDpEvent(gaussian, self.passes))

    @property
    def passes(self) -> int:
        """Passes over shuffled examples that the steps begin: each uses an example at most once."""
        return math.ceil(self.steps / math.ceil(self.examples / self.batch_size))


def epsilon_of(phases: list[Phase], delta: float) -> float:
    """ε of all phases together by PLD; infinite where there is no noise, or too little to compute it.

    Poisson phases hold for zero-out adjacency too: an example whose gradient is zero moves the sum as one that is
    not there. So phases of both samplings together hold for zero-out.

    Args:
        phases: In any order, of one model; all touch the same examples.
        delta: δ in (0, 1).
    """
    events = [phase.event() for phase in phases if phase.steps]
    if not events:
        return 0.0
    if any(phase.steps and phase.noise_multiplier < SMALLEST_NOISE for phase in phases):
        return math.inf
    try:
        return composition.epsilon_of_all(events, delta)
    except InputError:
        return math.inf  # too large to compute


def extended(phases: list[Phase], steps: int) -> list[Phase]:
    """The phases with ``steps`` more of the last one's kind."""
    return [*phases[:-1], dataclasses.replace(phases[-1], steps=phases[-1].steps + steps)]


def further_steps_within(phases: list[Phase], epsilon: float, delta: float, at_most: int) -> int:
    """The largest number of further steps, up to ``at_most``, that keeps (ε, δ); exact, by a search.

    Returns:
        -1 if the budget is passed already.
    """
    if epsilon_of(phases, delta) > epsilon:
        return -1

    def spent_after(steps):
        more = extended(phases, steps)
        return math.inf if _is_hopeless(more, epsilon) else epsilon_of(more, delta)

    # Whoever plans within a budget asks for no more than it allows: often one look is enough.
    if at_most and spent_after(at_most) <= epsilon:
        return at_most
    return budget.largest_count(spent_after, epsilon, at_most)


def _is_hopeless(phases, epsilon) -> bool:
    if any(phase.steps and phase.noise_multiplier < SMALLEST_NOISE for phase in phases):
        return True
    events = [phase.event() for phase in phases if phase.steps]
    try:
        mechanisms = composition.sum_of_mechanisms(map(composition.mechanisms_of, events))
    except InputError:
        return True  # more steps than can be counted
    return budget.is_hopeless(mechanisms, epsilon)
