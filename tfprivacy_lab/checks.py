"""Argument checks that name the argument, echo the value and say the remedy."""

from __future__ import annotations

import math
import operator

import numpy as np

# What float() or index() would take, and a user cannot have meant as a number.
_NO_NUMBERS = (bool, np.bool_, str, bytes, bytearray)


class InputError(ValueError):
    """Something the user gave cannot be used; the message is one line they can act on."""


class MissingPackageError(InputError):
    """A package that is needed for this is not installed, or not to be had for this Python.

    Attributes:
        package: Its name.
    """

    def __init__(self, package: str, message: str):
        super().__init__(message)
        self.package = package


class LargeDeltaWarning(UserWarning):
    """δ is so large that the guarantee says little; the message is one line."""


class ModelReadingWarning(UserWarning):
    """Something of a model was left out, and the user has to do it; the message is one line."""


class PrecisionWarning(UserWarning):
    """Rounding leaves next to nothing of some numbers; the message is one line with the remedy."""


class RowOrderWarning(UserWarning):
    """Nobody compared whether parties hold their rows in the same order; the message is one line with the remedy."""


def check_finite_number(name: str, value, *, above=None, at_least=None, below=None, at_most=None) -> float:
    """Return ``value`` as a float if it is finite and inside the named limits.

    Raises:
        InputError: naming the argument and echoing the value.
    """
    limits = [
        (above, operator.gt, ">"),
        (at_least, operator.ge, ">="),
        (below, operator.lt, "<"),
        (at_most, operator.le, "<="),
    ]
    wanted = " and ".join(f"{sign} {limit:g}" for limit, _, sign in limits if limit is not None)
    try:
        number = math.nan if isinstance(value, _NO_NUMBERS) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    inside = all(test(number, limit) for limit, test, _ in limits if limit is not None)
    if not math.isfinite(number) or not inside:
        raise InputError(f"Expected {name} to be a finite number {wanted}".rstrip() + f", got {name}={value!r}.")
    return number


def check_positive_int(name: str, value, *, at_least: int = 1, at_most: int | None = None) -> int:
    """Return ``value`` as an int if it is a whole number in [at_least, at_most].

    Raises:
        InputError: naming the argument and echoing the value.
    """
    try:
        number = None if isinstance(value, _NO_NUMBERS) else operator.index(value)
    except TypeError:
        number = None
    too_large = number is not None and at_most is not None and number > at_most
    if number is None or number < at_least or too_large:
        limit = f" and <= {at_most}" if at_most is not None else ""
        raise InputError(f"Expected {name} to be a whole number >= {at_least}{limit}, got {name}={value!r}.")
    return number


def settle(instance, **values) -> None:
    """Keep in a frozen dataclass what checks gave back, so that no array of one number or the like goes on from it."""
    for name, value in values.items():
        object.__setattr__(instance, name, value)


def check_choice(name: str, value, choices) -> str:
    """Return ``value`` if it is one of ``choices``.

    Raises:
        InputError: listing the choices.
    """
    if not np.isscalar(value) or value not in choices:
        raise InputError(f"Expected {name} to be one of {', '.join(map(str, choices))}, got {name}={value!r}.")
    return value


def check_matrix(name: str, value, *, columns: int | None = None, dtype=np.float64) -> np.ndarray:
    """Return ``value`` as a finite, C-contiguous, non-empty (rows, columns) array.

    Args:
        name: What to call it in an error.
        value: Array-like of real numbers, two axes.
        columns: The wanted length of the second axis, or None for any.
        dtype: The floating dtype of the result.

    Raises:
        InputError: if it is not numeric, not two-dimensional, empty, of another width, not finite, or partly masked.
    """
    check_unmasked(name, value)
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise InputError(f"Expected {name} to be an array (rows, columns), got rows of different lengths.") from error
    if array.dtype.kind not in "fiub":
        raise InputError(f"Expected {name} to hold real numbers, got dtype {array.dtype}.")
    if array.ndim != 2 or 0 in array.shape:
        raise InputError(f"Expected {name} to be a non-empty array (rows, columns), got shape {array.shape}.")
    if columns is not None and array.shape[1] != columns:
        raise InputError(f"Expected {name} to have {columns} columns, got {array.shape[1]} (shape {array.shape}).")
    check_all_finite(name, array)
    with np.errstate(over="ignore"):
        array = np.ascontiguousarray(array, dtype=dtype)
    check_all_finite(name, array)
    return array


def check_array(name: str, value) -> np.ndarray:
    """Return ``value`` as an array of whatever shape and type it is.

    Raises:
        InputError: naming the array, if its rows have different lengths, or if anything is masked.
    """
    check_unmasked(name, value)
    try:
        return np.asarray(value)
    except ValueError as error:
        raise InputError(f"Expected {name} to be an array, got rows of different lengths.") from error


def check_unmasked(name: str, value) -> None:
    """Refuse a masked array of which anything is masked: as an ordinary array it would show what lies under the mask.

    Raises:
        InputError: naming the array.
    """
    if isinstance(value, list | tuple):
        for one in value:
            if isinstance(one, list | tuple | np.ma.MaskedArray) or one is np.ma.masked:
                check_unmasked(name, one)
    elif np.ma.is_masked(value):
        raise InputError(
            f"Expected {name} without masked values, got a masked array with {np.ma.count_masked(value)}; "
            "remove or impute such values."
        )


def check_numbers(name: str, value) -> np.ndarray:
    """Return ``value`` as a finite, C-contiguous float64 array of whatever shape it is.

    Raises:
        InputError: if it is not numeric, ragged, not finite, or partly masked.
    """
    array = check_array(name, value)
    if array.dtype.kind not in "fiub":
        raise InputError(f"Expected {name} to hold real numbers, got dtype {array.dtype}.")
    check_all_finite(name, array)
    with np.errstate(over="ignore"):
        array = np.asarray(array, np.float64, order="C")
    check_all_finite(name, array)
    return array


def check_all_finite(name: str, array: np.ndarray) -> None:
    """Refuse NaN and infinity, naming the first place.

    Raises:
        InputError: with the index and value of the first element that is not finite.
    """
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        where = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
        raise InputError(
            f"Expected {name} to be finite, got {array[where]} at index {where}; remove or impute such values."
        )
