"""The hyperparameters of a DP-SGD run, apart from what it costs and from what runs it."""

from __future__ import annotations

import dataclasses

from tfprivacy_lab.checks import check_finite_number, check_positive_int, settle
from tfprivacy_lab.dp.accounting.budget import calibrate_noise_multiplier
from tfprivacy_lab.dp.accounting.gaussian import DpSgdRun, steps_for


@dataclasses.dataclass(frozen=True)
class TrainingPlan:
    """Hyperparameters of a DP-SGD run; none may be chosen by looking at test data.

    Attributes:
        batch_size: Expected Poisson batch size.
        epochs: Passes in expectation; steps are ceil(epochs · n / batch_size).
        l2_norm_clip: Bound C on one example's gradient norm, > 0.
        learning_rate: Step size on the mean clipped gradient, > 0.
        momentum: Heavy-ball momentum in [0, 1).
        average_last: Fraction of the epochs, counted from the end, whose final weights are averaged
            into the result; 0 keeps the last iterate. Post-processing: it costs no privacy.
        physical_batch_size: Rows computed at once; memory and speed only.
    """

    batch_size: int
    epochs: int
    l2_norm_clip: float
    learning_rate: float
    momentum: float = 0.9
    average_last: float = 0.0
    physical_batch_size: int = 128

    def __post_init__(self):
        for name in ("batch_size", "epochs", "physical_batch_size"):
            settle(self, **{name: check_positive_int(name, getattr(self, name))})
        settle(self, l2_norm_clip=check_finite_number("l2_norm_clip", self.l2_norm_clip, above=0))
        settle(self, learning_rate=check_finite_number("learning_rate", self.learning_rate, above=0))
        settle(self, momentum=check_finite_number("momentum", self.momentum, at_least=0, below=1))
        settle(self, average_last=check_finite_number("average_last", self.average_last, at_least=0, at_most=1))

    def calibrated(self, examples: int, epsilon: float, delta: float) -> DpSgdRun:
        """The run that spends (ε, δ) on ``examples`` private examples.

        Raises:
            InputError: naming the argument, or if no noise meets the budget.
        """
        steps = steps_for(examples, self.batch_size, self.epochs)
        noise_multiplier = calibrate_noise_multiplier(examples, self.batch_size, steps, epsilon, delta)
        return DpSgdRun(examples, self.batch_size, noise_multiplier, steps)


@dataclasses.dataclass(frozen=True)
class EpochRecord:
    """What is known after an epoch: ε spent so far, and accuracy on held-out examples if given."""

    epoch: int
    steps: int
    epsilon: float
    validation_accuracy: float | None
    seconds: float
