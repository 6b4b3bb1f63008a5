"""Noise from a cryptographic generator, and from seeds for tests and teaching.

A guarantee is as good as the generator under it. The operating system's (on Linux: ChaCha20, keyed with
entropy, through ``os.urandom``) cannot be predicted from its past output; NumPy's and TensorFlow's can.

**Floating point.** The noise that reaches memory is a double, not a real, and that leaks:

- Mironov 2012: the doubles that an inverse-CDF Laplace sampler can return have gaps, so the low bits of
  f(D) + noise can exclude one of two neighbours outright. Box-Muller has the same fault (Jin et al. 2022).
- Mitigation here (Holohan and Braghin 2021): a sample is the scaled sum of several independent draws.
  The number of ways to reach an output then grows beyond what an attacker can enumerate.
- Not mitigated by it: rounding in the addition itself, whose grid depends on the size of the sum (Haney
  et al. 2022, precision-based attacks). Only noise on a fixed grid is free of it:
  :class:`tfprivacy_lab.dp.mechanisms.discrete.GridGaussian`.

Gradients are no exception: Jin et al. recover from one noisy DP-SGD gradient which of two batches it came from.
No TensorFlow is imported here.
"""

from __future__ import annotations

import math
import os

import numpy as np

from tfprivacy_lab.checks import InputError, check_finite_number, check_positive_int

# Draws that make a Gaussian sample; Holohan and Braghin's recommendation for doubles.
_DRAWS = 4
_LARGEST_SCALE = {np.dtype(np.float32): 1e30, np.dtype(np.float64): 1e100}
# Samples computed at once: bounds memory and keeps the work in the cache.
_CHUNK = 1 << 12


def random_words(count: int) -> np.ndarray:
    """``count`` random 64-bit words from the operating system, uint64."""
    return np.frombuffer(os.urandom(8 * count), np.uint64)


def seeded_generator(seed: int) -> np.random.Generator:
    """A NumPy generator keyed by the whole seed, for tests and teaching: its noise can be subtracted.

    Raises:
        InputError: if ``seed`` is no whole number >= 0.
    """
    seed = check_positive_int("seed", seed, at_least=0)
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed)))


def secure_uniform(shape) -> np.ndarray:
    """Uniforms in the open interval (0, 1), float64, multiples of 2^-53: never 0 nor 1.

    Raises:
        InputError: if ``shape`` is no whole number >= 0, nor a tuple of such.
    """
    shape = _check_shape(shape)
    # Odd multiples of 2^-53: exact in a double, and symmetric about one half.
    return ((random_words(math.prod(shape)) >> np.uint64(12)) + 0.5).reshape(shape) * 2.0**-52


def secure_normal(shape, stddev: float, dtype=np.float32) -> np.ndarray:
    r"""Gaussian noise from the operating system's generator.

    :math:`\sigma (g_1 + g_2 + g_3 + g_4) / 2`, four Box-Muller draws from four different pairs of uniforms.
    A training step may call it through ``tf.numpy_function(lambda: secure_normal(shape, stddev), [],
    tf.float32)``: it keeps no state, is safe in threads, and two calls never return the same noise.

    Args:
        shape: Whole number >= 0, or a tuple of such.
        stddev: Standard deviation σ >= 0, in the unit of what is noised.
        dtype: np.float32 or np.float64; everything is computed in float64.

    Returns:
        An array of that shape and dtype. No sample lies beyond 18σ (the smallest uniform is 2^-53).

    Raises:
        InputError: naming the argument.

    Guarantee: unpredictable without the kernel's state. Not covered: floating point, see the module.
    """
    shape, dtype = _check_shape(shape), _check_dtype(dtype)
    stddev = _check_scale("stddev", stddev, dtype)
    count = math.prod(shape)
    result = np.empty(count, dtype)
    for start in range(0, count, _CHUNK):
        part = result[start : start + _CHUNK]
        part[:] = _sum_of_draws(len(part)) * (stddev / math.sqrt(_DRAWS))
    return result.reshape(shape)


def _sum_of_draws(count: int) -> np.ndarray:
    """``count`` sums of _DRAWS standard Gaussians, no two draws of one sum from the same pair."""
    # A pair's cosine and sine are independent. Laid out cosines first, a sum takes neighbours in one half,
    # so its draws come from different pairs; a single sum would not, hence at least two.
    pairs = _DRAWS * max(count, 2) // 2
    uniforms = secure_uniform((2, pairs))
    radius, angle = np.sqrt(-2 * np.log(uniforms[0])), 2 * math.pi * uniforms[1]
    draws = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
    return draws.reshape(-1, _DRAWS).sum(axis=1)[:count]


def secure_laplace(shape, scale: float, dtype=np.float64) -> np.ndarray:
    r"""Laplace noise from the operating system's generator.

    :math:`b (\ln u_1 \cos \pi u_2 + \ln u_3 \cos \pi u_4)`: each product has characteristic function
    :math:`(1 + b^2 t^2)^{-1/2}`, so the sum of two is Laplace, and four uniforms hide in it.

    Args:
        shape: Whole number >= 0, or a tuple of such.
        scale: Scale b >= 0; the standard deviation is :math:`\sqrt{2} b`.
        dtype: np.float32 or np.float64; everything is computed in float64.

    Returns:
        An array of that shape and dtype.

    Raises:
        InputError: naming the argument.

    Guarantee and what is not covered: as :func:`secure_normal`. Source: Holohan and Braghin 2021.
    """
    shape, dtype = _check_shape(shape), _check_dtype(dtype)
    scale = _check_scale("scale", scale, dtype)
    count = math.prod(shape)
    result = np.empty(count, dtype)
    for start in range(0, count, _CHUNK):
        part = result[start : start + _CHUNK]
        uniforms = secure_uniform((4, len(part)))
        part[:] = scale * (np.log(uniforms[:2]) * np.cos(math.pi * uniforms[2:])).sum(axis=0)
    return result.reshape(shape)


def _check_shape(shape) -> tuple[int, ...]:
    axes = shape if isinstance(shape, (tuple, list, np.ndarray)) else (shape,)
    return tuple(check_positive_int("shape", axis, at_least=0) for axis in axes)


def _check_dtype(dtype) -> np.dtype:
    try:
        dtype = np.dtype(dtype)
    except TypeError as error:
        raise InputError(f"Expected dtype to be float32 or float64, got dtype={dtype!r}.") from error
    if dtype not in _LARGEST_SCALE:
        raise InputError(f"Expected dtype to be float32 or float64, got dtype={dtype}.")
    return dtype


def _check_scale(name: str, value, dtype: np.dtype) -> float:
    return check_finite_number(name, value, at_least=0, at_most=_LARGEST_SCALE[dtype])
