"""A network's inputs: checked against the plan's range, and as BFV's integers."""

from __future__ import annotations

import math

import numpy as np

from tfprivacy_lab.checks import InputError, check_all_finite, check_array
from tfprivacy_lab.he.plans.network import PublicPlan


def check_inputs(inputs, public) -> np.ndarray:
    """The inputs as float64 (samples, inputs), finite and within the plan's range.

    Raises:
        InputError: naming shape, dtype or value received.
    """
    array = check_array("inputs", inputs)
    if array.dtype.kind not in "fiub":
        raise InputError(f"Expected inputs to hold real numbers, got dtype {array.dtype}.")
    if array.ndim < 2 or len(array) == 0 or math.prod(array.shape[1:]) != public.inputs:
        raise InputError(
            f"Expected inputs of shape (samples, {public.inputs}) or one that flattens to it, got {array.shape}."
        )
    check_all_finite("inputs", array)
    array = array.reshape(len(array), -1).astype(np.float64)
    (low, high), least, most = public.input_range, array.min(), array.max()
    if least < low or most > high:
        worst = least if least < low else most
        raise InputError(f"Expected inputs within input_range={low:g}..{high:g}, got {worst:g}; rescale them.")
    return array


def quantise(inputs: np.ndarray, public: PublicPlan) -> np.ndarray:
    """BFV's integers of inputs in range: ``rint(x * 2**input_bits)``, int64."""
    return np.rint(np.ldexp(inputs, public.input_bits)).astype(np.int64)
