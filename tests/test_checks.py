"""Argument checks: what passes, what is refused, and what the refusal says."""

import math
from fractions import Fraction

import numpy as np
import pytest

from tfprivacy_lab.checks import (
    InputError,
    check_all_finite,
    check_choice,
    check_finite_number,
    check_matrix,
    check_positive_int,
)

NOT_NUMBERS = [True, np.True_, None, "3", b"3", "", [3], {}, 3 + 0j, object(), np.array([1.0, 2.0])]


@pytest.mark.parametrize("value", [3, 3.0, np.float32(3), np.int8(3), Fraction(3), np.array(3.0)])
def test_finite_number_accepts_every_real_scalar(value):
    number = check_finite_number("sigma", value, above=2, at_most=3)
    assert type(number) is float
    assert number == 3.0


@pytest.mark.parametrize("value", [*NOT_NUMBERS, math.nan, math.inf, -math.inf, np.float64("nan"), 10**400])
def test_finite_number_refuses(value):
    with pytest.raises(InputError, match="Expected sigma to be a finite number, got sigma="):
        check_finite_number("sigma", value)


@pytest.mark.parametrize(
    ("limit", "inside", "outside", "sign"),
    [
        ({"above": 1}, math.nextafter(1, 2), 1, "> 1"),
        ({"at_least": 1}, 1, math.nextafter(1, 0), ">= 1"),
        ({"below": 1}, math.nextafter(1, 0), 1, "< 1"),
        ({"at_most": 1}, 1, math.nextafter(1, 2), "<= 1"),
    ],
)
def test_finite_number_limits_are_sharp(limit, inside, outside, sign):
    assert check_finite_number("q", inside, **limit) == inside
    with pytest.raises(InputError) as refusal:
        check_finite_number("q", outside, **limit)
    assert str(refusal.value) == f"Expected q to be a finite number {sign}, got q={outside!r}."


@pytest.mark.parametrize("value", [2, np.int64(2), np.uint8(2), np.array(2)])
def test_positive_int_accepts_whole_numbers(value):
    number = check_positive_int("epochs", value, at_least=2, at_most=2)
    assert type(number) is int
    assert number == 2


@pytest.mark.parametrize("value", [*NOT_NUMBERS, 2.0, np.float64(2), 0, -1, 11, math.nan, np.int64(0)])
def test_positive_int_refuses(value):
    with pytest.raises(InputError, match=r"Expected epochs to be a whole number >= 1 and <= 10, got epochs="):
        check_positive_int("epochs", value, at_most=10)


def test_choice_lists_the_choices():
    assert check_choice("scheme", "bfv", {"bfv": 1, "ckks": 2}) == "bfv"
    with pytest.raises(InputError) as refusal:
        check_choice("scheme", "BFV", ("bfv", "ckks"))
    assert str(refusal.value) == "Expected scheme to be one of bfv, ckks, got scheme='BFV'."


@pytest.mark.parametrize("value", [None, ["bfv"], {}, np.array(["bfv", "bfv"]), ("bfv",)])
@pytest.mark.parametrize("choices", [("bfv", "ckks"), {"bfv": 1, "ckks": 2}])
def test_choice_refuses_what_cannot_be_looked_up(value, choices):
    with pytest.raises(InputError, match="Expected scheme to be one of bfv, ckks"):
        check_choice("scheme", value, choices)


@pytest.mark.parametrize(
    "value",
    [[[1, 2], [3, 4]], np.array([[1, 2], [3, 4]], np.uint8), np.array([[1, 3], [2, 4]], np.float16).T],
)
def test_matrix_is_contiguous_and_of_the_wanted_type(value):
    array = check_matrix("features", value, columns=2, dtype=np.float32)
    assert array.dtype == np.float32
    assert array.flags.c_contiguous
    assert array.tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1.0, 2.0], r"non-empty array \(rows, columns\), got shape \(2,\)"),
        (3.0, r"got shape \(\)"),
        (np.zeros((1, 2, 1)), r"got shape \(1, 2, 1\)"),
        (np.zeros((0, 2)), r"got shape \(0, 2\)"),
        (np.zeros((2, 0)), r"got shape \(2, 0\)"),
        (np.zeros((4, 3)), r"to have 2 columns, got 3 \(shape \(4, 3\)\)"),
        ([["1", "2"]], "hold real numbers, got dtype <U1"),
        (np.array([[1, None]], object), "hold real numbers, got dtype object"),
        ([[1j, 2]], "hold real numbers, got dtype complex128"),
        (None, "hold real numbers"),
        ([[1, 2], [3]], "rows of different lengths"),
        ([[0, 1], [np.nan, 2]], r"to be finite, got nan at index \(1, 0\)"),
        ([[0, -np.inf]], r"to be finite, got -inf at index \(0, 1\)"),
    ],
)
def test_matrix_refuses(value, message):
    with pytest.raises(InputError, match=f"^Expected features .*{message}"):
        check_matrix("features", value, columns=2)


def test_matrix_refuses_what_overflows_the_wanted_type():
    huge = [[1.0, 1e300]]
    assert check_matrix("features", huge).tolist() == huge
    with pytest.raises(InputError, match=r"finite, got inf at index \(0, 1\)"):
        check_matrix("features", huge, dtype=np.float32)


def test_all_finite_names_the_first_place_and_takes_any_shape():
    check_all_finite("images", np.zeros((0, 3)))
    check_all_finite("images", np.array([2**63 - 1]))
    array = np.zeros((2, 3, 2))
    array[1, 2, 0], array[1, 2, 1] = np.inf, np.nan
    with pytest.raises(InputError, match=r"Expected images to be finite, got inf at index \(1, 2, 0\)"):
        check_all_finite("images", array)


def test_refusals_are_one_line():
    with pytest.raises(InputError) as refusal:
        check_finite_number("sigma", "a\nb")
    assert len(str(refusal.value).splitlines()) == 1
    assert issubclass(InputError, ValueError)
