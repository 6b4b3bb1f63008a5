r"""The public steps in which features are counted: one for all columns, or one a column, and what they lose.

An integer feature of column i stands for :math:`2^{e + k_i}`, with e the exponent of the coarsest column and
:math:`k_i \le 0`. The server folds :math:`2^{k_i}` into row i of its kernel, so that columns of unlike size (an age, an
income) lose no more than columns of one size. Both are in the query, in the open.

**What is lost.** BFV rounds to a step, an error of standard deviation :math:`1/\sqrt{12}`; CKKS' encryption adds noise,
which is counted as the step of that deviation, or under a sanitising set the flooding, over weights of one size. A
value of fewer than :data:`FEW_STEPS` steps has lost most of what it says. How much that matters is for the weights to
say, which the client does not know: what the reply's error bound leaves open is told when it is decrypted.
"""

from __future__ import annotations

import math
import warnings
from typing import NamedTuple

import numpy as np

from tfprivacy_lab.checks import (
    InputError,
    PrecisionWarning,
    check_all_finite,
    check_finite_number,
    check_matrix,
    check_unmasked,
)
from tfprivacy_lab.he.quantization import limits
from tfprivacy_lab.he.ring.parameters import MAX_FEATURES, Parameters

MAX_RANGE_EXPONENT = 256
"""Features lie within 2**-256 .. 2**256 in magnitude, so that no product leaves float64."""

FEW_STEPS = 4
FEW_STEPS_OF_A_ROW = 16
"""A column whose typical value, a row whose largest is below these many steps is spoiled."""

_ENOUGH_VALUES = 8
_SHOWN = 4


class Steps(NamedTuple):
    """Exponents of the steps.

    Attributes:
        exponent: e, of the coarsest column.
        columns: k of every column, none above 0; empty if all are 0.
    """

    exponent: int
    columns: tuple[int, ...] = ()

    def exponents(self, width: int) -> np.ndarray:
        """e + k of every column, int64 (width,)."""
        return self.exponent + (np.array(self.columns, np.int64) if self.columns else np.zeros(width, np.int64))


def check_features(features) -> np.ndarray:
    """The features as a finite, contiguous float64 array of at most ``MAX_FEATURES`` columns."""
    array = check_matrix("features", features)
    check_all_finite("features", array)  # an extended float may overflow on its way to float64
    if array.shape[1] > MAX_FEATURES:
        raise InputError(f"Expected features to have at most {MAX_FEATURES} columns, got {array.shape[1]}.")
    return array


def check_feature_range(feature_range, columns: int) -> np.ndarray:
    """A public range as one bound for every column, float64 (columns,).

    Args:
        feature_range: A number > 0, or one for each column.
        columns: How many there are.

    Raises:
        InputError: naming the bound that is none.
    """
    if not isinstance(feature_range, list | tuple) and np.ndim(feature_range) == 0:
        return np.full(columns, check_finite_number("feature_range", feature_range, above=0))
    check_unmasked("feature_range", feature_range)
    try:
        shape = np.shape(feature_range)
    except ValueError:
        shape = "of parts of different lengths"
    if shape != (columns,):
        raise InputError(
            f"Expected feature_range to be one number, or one for each of {columns} columns, got shape {shape}."
        )
    return np.array(
        [check_finite_number(f"feature_range[{i}]", bound, above=0) for i, bound in enumerate(feature_range)]
    )


def steps_of_range(bounds: np.ndarray, parameters: Parameters) -> Steps:
    """The finest steps at which features within public bounds take ``feature_bits``.

    Args:
        bounds: Largest magnitude of every column, > 0.
        parameters: The scheme's set.

    Raises:
        InputError: if a bound is out of all range.
    """
    mantissas, exponents = np.frexp(bounds)
    exponents = exponents.astype(np.int64) - (mantissas == 0.5)
    if np.abs(exponents).max() > MAX_RANGE_EXPONENT:
        wrong = bounds[int(np.abs(exponents).argmax())]
        raise InputError(
            f"Expected features of magnitude 2**-{MAX_RANGE_EXPONENT} to 2**{MAX_RANGE_EXPONENT}, "
            f"got {wrong:g}; rescale the features."
        )
    top = int(exponents.max())
    columns = tuple((exponents - top).tolist())
    return Steps(top - parameters.feature_bits, columns if any(columns) else ())


def feature_steps(features: np.ndarray, parameters: Parameters, feature_range=None, packing: str = "batched") -> Steps:
    """The steps with which features are quantised.

    Args:
        features: Finite array (samples, features).
        parameters: The scheme's set.
        feature_range: A public bound R on all magnitudes, or one a column, or None to take the batch's largest one.
        packing: How they will be encrypted, on which CKKS' noise depends.

    Returns:
        For every column the smallest exponent with ``R <= 2**(exponent + feature_bits)``.

    Raises:
        InputError: if a feature is beyond ``feature_range``, the magnitudes are out of range, or, without
            ``feature_range``, the largest magnitude leaves a column or most rows too few steps.

    Warns:
        PrecisionWarning: if a stated range leaves a column or a row too few steps, or the largest magnitude leaves
            them to a few columns of few values, which may be small by chance.

    Guarantee: with ``feature_range`` the steps depend on these constants alone. Without it the one step,
        which the server sees, tells the order of magnitude of the batch's largest feature.
    """
    magnitudes = np.abs(features)
    if feature_range is None:
        bounds = np.full(features.shape[1], float(magnitudes.max()) or 1.0)
    else:
        bounds = check_feature_range(feature_range, features.shape[1])
        if (magnitudes > bounds).any():
            row, column = (int(i) for i in np.argwhere(magnitudes > bounds)[0])
            raise InputError(
                f"Expected features within feature_range={bounds[column]:g}, got a magnitude of "
                f"{magnitudes[row, column]:g} in row {row}, column {column}; clip or drop that row, give a larger "
                "feature_range, or rescale the features."
            )
    steps = steps_of_range(bounds, parameters)
    _check_precision(magnitudes, steps, parameters, packing, stated=feature_range is not None)
    return steps


def quantize_features(features, parameters: Parameters, feature_range=None):
    """Features as integers of a power-of-two step.

    :math:`X = rint(x / 2^e)`

    Args:
        features: Array-like of finite real numbers, shape (samples, features), any layout.
        parameters: The scheme's set.
        feature_range: A public bound R on all magnitudes, or one a column, or None (see :func:`feature_steps`).

    Returns:
        ``(integers, step_exponent)``: int64 of the shape of ``features``, at most ``2**feature_bits`` in
        magnitude; and e, an int, or int64 (features,) where columns differ.

    Raises:
        InputError: naming what is wrong with the features.
    """
    array = check_features(features)
    steps = feature_steps(array, parameters, feature_range)
    exponents = steps.exponents(array.shape[1])
    integers = np.rint(np.ldexp(array, -exponents)).astype(np.int64)
    return integers, exponents if steps.columns else steps.exponent


def _check_precision(magnitudes, steps: Steps, parameters: Parameters, packing: str, stated: bool) -> None:
    """Refuse, or where the range is a stated one warn of, columns and rows that the steps leave next to nothing."""
    counted = np.ldexp(magnitudes, -steps.exponents(magnitudes.shape[1])) / _fineness(
        parameters, packing, magnitudes.shape[1]
    )
    # The median of what is not zero: one outlier in the column itself does not hide what it does to the others.
    columns = _spoiled_columns(counted)
    largest, used = counted.max(axis=1), counted.any(axis=1)
    rows = np.flatnonzero(used & (largest < FEW_STEPS_OF_A_ROW))
    sure = any(np.count_nonzero(counted[:, column]) >= _ENOUGH_VALUES for column in columns)
    sure = sure or 4 * len(columns) >= np.count_nonzero(counted.any(axis=0))
    sure = sure or 2 * len(rows) >= max(1, used.sum())
    if not len(columns) and not len(rows):
        return
    row, column = (int(i) for i in np.unravel_index(magnitudes.argmax(), magnitudes.shape))
    worst = f"{_listed('column', columns) if len(columns) else _listed('row', rows)} of features"
    because = "the stated feature_range" if stated else f"the magnitude {magnitudes[row, column]:g} in row {row}, "
    because += "" if stated else f"column {column}"
    line = (
        f"{worst} would be rounded to a few steps or none, by {because}: give feature_range as one bound a column, and "
        "clip or drop rows with outliers"
    )
    if sure and not stated:
        raise InputError(f"{line[0].upper()}{line[1:]}.")
    warnings.warn(f"{line}; results may be wrong", PrecisionWarning, stacklevel=4)


def _spoiled_columns(counted: np.ndarray) -> np.ndarray:
    """Columns of which most is lost: of many values the median few steps, or of few values all of them.

    Few values may be small by chance, so that it takes a quarter of the columns; or an eighth, rounded to nothing.
    """
    found, small, nothing = [], [], []
    for column, values in enumerate(counted.T):
        values = values[values > 0]
        if len(values) >= _ENOUGH_VALUES and np.median(values) < FEW_STEPS:
            found.append(column)
        elif 0 < len(values) < _ENOUGH_VALUES and values.max() < FEW_STEPS:
            small.append(column)
            nothing += [column] * bool(values.max() < 0.5)
    used = np.count_nonzero(counted.any(axis=0))
    found += small if 4 * len(small) >= used else nothing if 8 * len(nothing) >= used else []
    return np.array(sorted(found), np.int64)


def _fineness(parameters: Parameters, packing: str, width: int) -> float:
    """The step, or what CKKS' noise is worth in a feature in units of it, if that is larger."""
    if parameters.scheme == "bfv":
        return 1.0
    if parameters.sanitizes:
        weight = parameters.modulus / 2 / parameters.max_feature / width
        return max(1.0, limits.flooding(parameters, width, 1) / weight)
    half = parameters.poly_modulus_degree / 2 if packing == "batched" else 1.0
    return max(1.0, math.sqrt(12 * parameters.fresh_variance * half) / parameters.special_modulus)


def _listed(what: str, places: np.ndarray) -> str:
    """``columns 4, 5, 6, 7 and 9 more``."""
    shown = ", ".join(map(str, places[:_SHOWN].tolist()))
    more = f" and {len(places) - _SHOWN} more" if len(places) > _SHOWN else ""
    return f"{what}{'s' * (len(places) > 1)} {shown}{more}"
