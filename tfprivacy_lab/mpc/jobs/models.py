"""The model that parties train, and how: dense layers, a loss, plain gradient descent."""

from __future__ import annotations

import dataclasses

from tfprivacy_lab.checks import check_choice, check_finite_number, check_positive_int, settle

ACTIVATIONS = ("linear", "sigmoid", "relu")
LOSSES = ("sum_of_squares", "mean_squared_error", "binary_crossentropy")
LARGEST_AXIS, _LARGEST_STEPS = 10**7, 10**5


@dataclasses.dataclass(frozen=True)
class Layer:
    """A dense layer: ``units`` outputs, then an activation of :data:`ACTIVATIONS`."""

    units: int
    activation: str = "linear"

    def __post_init__(self):
        settle(self, units=check_positive_int("units", self.units, at_most=LARGEST_AXIS))
        check_choice("activation", self.activation, ACTIVATIONS)


@dataclasses.dataclass(frozen=True)
class Training:
    """Gradient descent on shares.

    Attributes:
        loss: One of :data:`LOSSES`. ``sum_of_squares`` sums over rows, the other two take the mean.
        learning_rate: > 0.
        steps: Number of gradient steps; batches are taken in the order of the rows, again and again.
        batch_size: Rows of a step, a divisor of all rows; None for all of them.
        row_norm: Bound on the L2 norm of what one holder has of a row of features (each checks its own), or None.
    """

    loss: str
    learning_rate: float
    steps: int
    batch_size: int | None = None
    row_norm: float | None = None

    def __post_init__(self):
        check_choice("loss", self.loss, LOSSES)
        settle(self, learning_rate=check_finite_number("learning_rate", self.learning_rate, above=0))
        settle(self, steps=check_positive_int("steps", self.steps, at_most=_LARGEST_STEPS))
        if self.batch_size is not None:
            settle(self, batch_size=check_positive_int("batch_size", self.batch_size))
        if self.row_norm is not None:
            settle(self, row_norm=check_finite_number("row_norm", self.row_norm, above=0))
