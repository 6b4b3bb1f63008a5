"""The compiled operations against a double-precision oracle, TensorFlow's own draw, and inputs they must refuse."""

import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tfprivacy_lab.dp import native
from tfprivacy_lab.dp.training.noise import GaussianNoise, standard_normal

PLAIN = {"kernel_size": [1, 1], "strides": [1, 1], "dilations": [1, 1], "padding": [0, 0]}


def products(x, g, window):
    """J of every example, (batch, d, p), float64: patch entry by patch entry."""
    (height, width), (rows, columns) = x.shape[1:3], g.shape[1:3]
    (kh, kw), (sh, sw), (dh, dw), (top, left) = window.values()
    reach = (rows - 1) * sh + (kh - 1) * dh + 1, (columns - 1) * sw + (kw - 1) * dw + 1
    padded = np.zeros((len(x), max(reach[0], top + height), max(reach[1], left + width), x.shape[3]))
    padded[:, top : top + height, left : left + width] = x
    found = [
        np.einsum(
            "bhwc,bhwp->bcp",
            padded[:, i * dh : i * dh + (rows - 1) * sh + 1 : sh, j * dw : j * dw + (columns - 1) * sw + 1 : sw],
            g.astype(np.float64),
        )
        for i in range(kh)
        for j in range(kw)
    ]
    return np.concatenate(found, 1)


@st.composite
def convolutions(draw):
    pair = lambda low, high: [draw(st.integers(low, high)), draw(st.integers(low, high))]  # noqa: E731
    window = {"kernel_size": pair(1, 5), "strides": pair(1, 3), "dilations": pair(1, 3), "padding": pair(0, 3)}
    window = PLAIN if draw(st.booleans()) and draw(st.booleans()) else window
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    batch, channels, filters = draw(st.integers(1, 20)), draw(st.integers(1, 20)), draw(st.integers(1, 50))
    x = rng.normal(size=(batch, *pair(1, 12), channels)).astype(np.float32)
    window["padding"] = [
        min(pad, (kernel - 1) * dilation) for kernel, _, dilation, pad in zip(*window.values(), strict=True)
    ]
    sizes = [
        max(1, (size + 2 * pad - (kernel - 1) * dilation - 1) // stride + 1)
        for size, kernel, stride, dilation, pad in zip(x.shape[1:3], *window.values(), strict=True)
    ]
    g = rng.normal(size=(batch, *sizes, filters)).astype(np.float32)
    return x, g, rng.uniform(0, 2, batch).astype(np.float32), window


@given(convolutions(), st.booleans(), st.booleans())
@settings(max_examples=200, deadline=None)
def test_norms_sums_and_products(compiled, drawn, keep, bias):
    check_products(compiled, *drawn, keep, bias)


@pytest.mark.parametrize("shape", [(12, 12), (13, 12), (12, 15), (14, 13)])
@pytest.mark.parametrize(("kernel", "dilations"), [([4, 4], [1, 1]), ([2, 4], [3, 1]), ([4, 2], [1, 3])])
@pytest.mark.parametrize("strides", [[2, 2], [1, 2], [2, 1]])
def test_patches_within_an_input_are_read_where_they_lie(compiled, shape, kernel, dilations, strides):
    """Also where the input goes on beyond the last patch, below and on the right."""
    window = {"kernel_size": kernel, "strides": strides, "dilations": dilations, "padding": [0, 0]}
    rng, outputs = np.random.default_rng(0), [8 // stride + 1 for stride in strides]
    x, g = (rng.normal(size=size).astype(np.float32) for size in ((3, *shape, 16), (3, *outputs, 33)))
    check_products(compiled, x, g, np.float32([0.5, 0.0, 2.0]), window, True, True)


def check_products(compiled, x, g, factors, window, keep, bias):
    """Norms, sums over positions, products and their weighted sum, against doubles."""
    exact = products(x, g, window)
    sums = g.astype(np.float64).sum((1, 2))
    norms = (exact**2).sum((1, 2)) + bias * (sums**2).sum(1)
    found = compiled.tfprivacy_lab_example_products(x, g, keep=keep, bias=bias, **window)
    # Relative to what is added up, as positions may cancel.
    size = np.sqrt((x.astype(np.float64) ** 2).sum() * (g.astype(np.float64) ** 2).sum()) + 1
    np.testing.assert_allclose(np.sqrt(found.squared_norms), np.sqrt(norms), rtol=1e-6, atol=1e-6 * size)
    np.testing.assert_allclose(found.sums, sums, rtol=1e-5, atol=1e-6 * size)
    assert found.products.shape == (len(x) if keep else 0, *exact.shape[1:])
    if keep:
        np.testing.assert_allclose(found.products, exact, rtol=1e-5, atol=1e-6 * size)
    weighted = compiled.tfprivacy_lab_weighted_products(x, g, factors, **window)
    np.testing.assert_allclose(weighted, np.tensordot(factors, exact, 1), rtol=1e-5, atol=1e-6 * size)


@pytest.mark.parametrize("window", [PLAIN, {**PLAIN, "kernel_size": [3, 2], "strides": [1, 2]}])
@pytest.mark.parametrize(("channels", "filters"), [(8, 16), (5, 40), (16, 33)])
def test_what_is_summed_is_what_was_measured_to_the_bit(compiled, channels, filters, window):
    """Positions that cancel leave floats rounding: the norm is of that rounding, and so is the sum."""
    rng, kernel = np.random.default_rng(0), window["kernel_size"]
    x = rng.normal(size=(6, 40, 12, channels)).astype(np.float32)
    g = (1e6 * rng.normal(size=(6, 41 - kernel[0], (12 - kernel[1]) // window["strides"][1] + 1, filters))).astype("f")
    g -= g.mean((1, 2), keepdims=True)
    x[:3] = 1.0
    found = compiled.tfprivacy_lab_example_products(x, g, keep=True, bias=False, **window)
    for b, product in enumerate(found.products.numpy()):
        alone = compiled.tfprivacy_lab_weighted_products(x, g, np.eye(6, dtype=np.float32)[b], **window)
        np.testing.assert_array_equal(alone, product)
        norm = np.linalg.norm(product.astype(np.float64))
        np.testing.assert_allclose(np.sqrt(found.squared_norms[b]), norm, rtol=5e-7)
    assert np.abs(found.products[:3]).max() < 1e-4 * np.abs(found.products[3:]).max()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("d", "p"), [(1, 1), (784, 128), (1027, 3)])
def test_norms_of_outer_products(compiled, d, p, bias):
    rng = np.random.default_rng(d)
    x, g = (rng.normal(size=(37, size)).astype(np.float32) for size in (d, p))
    found = compiled.tfprivacy_lab_outer_product_norms(x, g, bias=bias)
    squares = [(a.astype(np.float64) ** 2).sum(1) for a in (x, g)]
    np.testing.assert_allclose(found, (squares[0] + bias) * squares[1], rtol=2e-7)


def test_an_example_of_factor_zero_takes_no_part_whatever_it_holds(compiled):
    rng = np.random.default_rng(0)
    x, g = rng.normal(size=(3, 6, 6, 2)).astype(np.float32), rng.normal(size=(3, 4, 4, 7)).astype(np.float32)
    window = {**PLAIN, "kernel_size": [3, 3]}
    expected = compiled.tfprivacy_lab_weighted_products(x[[0, 2]], g[[0, 2]], [0.5, 2.0], **window)
    x[1], g[1] = np.nan, np.inf
    found = compiled.tfprivacy_lab_weighted_products(x, g, [0.5, 0.0, 2.0], **window)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    norms = compiled.tfprivacy_lab_example_products(x, g, keep=False, bias=True, **window).squared_norms
    assert list(np.isfinite(norms)) == [True, False, True]


def test_no_example(compiled):
    x, g = np.zeros((0, 5, 5, 2), np.float32), np.zeros((0, 5, 5, 3), np.float32)
    assert compiled.tfprivacy_lab_example_products(x, g, keep=True, bias=True, **PLAIN)[0].shape == (0,)
    np.testing.assert_array_equal(
        compiled.tfprivacy_lab_weighted_products(x, g, np.zeros(0, np.float32), **PLAIN), np.zeros((2, 3))
    )


@pytest.mark.parametrize(
    ("x", "g", "window"),
    [
        ((2, 5, 5, 1), (3, 5, 5, 1), {}),
        ((2, 5, 5), (2, 5, 5), {}),
        ((2, 0, 5, 1), (2, 5, 5, 1), {}),
        ((2, 5, 5, 1), (2, 1, 1, 1), {"padding": [3, 0]}),
        ((2, 5, 5, 1), (2, 9, 9, 1), {}),
        ((1, 4, 4, 1), (1, 3, 1, 1), {"strides": [2**31 - 1, 1], "kernel_size": [3, 1]}),
        ((1, 4, 4, 1), (1, 5, 1, 1), {"strides": [2**30, 1]}),
        ((0, 5, 5, 0), (0, 5, 5, 3), {}),
        ((0, 5, 5, 2), (0, 5, 5, 0), {}),
        ((2, 5, 5, 1), (2, 5, 5, 1), {"strides": [0, 1]}),
        ((2, 5, 5, 1), (2, 5, 5, 1), {"kernel_size": [1]}),
        ((2, 5, 5, 1), (2, 5, 5, 1), {"padding": [-1, 0]}),
    ],
)
def test_shapes_that_do_not_fit_are_refused(compiled, x, g, window):
    with pytest.raises(tf.errors.InvalidArgumentError):
        compiled.tfprivacy_lab_weighted_products(
            np.zeros(x, np.float32), np.zeros(g, np.float32), np.zeros(x[0], np.float32), **{**PLAIN, **window}
        )
    with pytest.raises(tf.errors.InvalidArgumentError):
        compiled.tfprivacy_lab_outer_product_norms(
            np.zeros((2, 3), np.float32), np.zeros((1, 3), np.float32), bias=True
        )


DIGEST = """
import hashlib, sys, keras, numpy as np, tensorflow as tf
tf.config.threading.set_intra_op_parallelism_threads(int(sys.argv[2]))
operations, rng = tf.load_op_library(sys.argv[1]), np.random.default_rng(0)
x, g = rng.normal(size=(300, 13, 13, 16)).astype("f"), rng.normal(size=(300, 5, 5, 32)).astype("f")
window = {"kernel_size": [4, 4], "strides": [2, 2], "dilations": [1, 1], "padding": [0, 0]}
norms = operations.tfprivacy_lab_example_products(x, g, keep=True, bias=True, **window)
total = operations.tfprivacy_lab_weighted_products(x, g, rng.random(300).astype("f"), **window)
key, counter = np.array([7], np.uint64), np.array([1, 2], np.uint64)
noisy = operations.tfprivacy_lab_add_normal_noise([tf.zeros(30001), tf.ones(7)], [1.0, 2.0], key, counter)
print(hashlib.sha256(b"".join(a.numpy().tobytes() for a in [*norms, total, *noisy])).hexdigest())
"""


@pytest.mark.processes
@pytest.mark.slow
def test_the_number_of_threads_moves_no_bit():
    command = [sys.executable, "-c", DIGEST, str(native.compile_operations())]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    found = {
        subprocess.run([*command, threads], capture_output=True, text=True, env=environment, check=True).stdout
        for threads in ("1", "2", "7")
    }
    assert len(found) == 1


@pytest.mark.parametrize("counter", [(11, 3), (2**64 - 20, 7), (2**64 - 1, 2**64 - 1)])
@pytest.mark.parametrize("size", [1, 2, 7, 1025, 30_001])
def test_the_noise_is_that_of_tensorflow_s_words(compiled, size, counter):
    """Through the carries of the counter, for odd sizes, and cut anywhere."""
    key, counter = np.array([0x123456789ABCDEF0], np.uint64), np.array(counter, np.uint64)
    expected = standard_normal(size, key, tf.constant(counter)).numpy()
    rng = np.random.default_rng(size)
    values = rng.normal(size=size).astype(np.float32)
    parts, stddevs = np.split(values, [size // 3, size // 3, size // 2]), [1.0, 9.0, 0.25, 3.0]
    before = values.copy()
    found = compiled.tfprivacy_lab_add_normal_noise(parts, stddevs, key, counter)
    np.testing.assert_array_equal(values, before)
    scales = np.concatenate([np.full(len(part), stddev) for part, stddev in zip(parts, stddevs, strict=True)])
    np.testing.assert_allclose(np.concatenate(found), values + scales * expected, atol=2e-5)


def test_a_step_s_noise_is_the_same_on_either_route(monkeypatch, compiled):
    noise, step = GaussianNoise(5), tf.constant(4, tf.int64)
    values = [tf.ones((40, 30)), tf.zeros(17), tf.zeros(())]
    found = []
    for operations in (compiled, None):
        monkeypatch.setattr(native, "operations", lambda operations=operations: operations)
        found.append(noise.add(values, [1.0, tf.constant(2.0), 0.0], step, 3))
    for one, other in zip(*found, strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, atol=1e-5)
    assert float(found[0][2]) == 0.0
    assert np.std(found[0][1]) > 0.5


def test_a_scale_for_another_number_of_tensors_is_refused(compiled):
    with pytest.raises(tf.errors.InvalidArgumentError):
        compiled.tfprivacy_lab_add_normal_noise(
            [tf.zeros(3)], [1.0, 2.0], np.zeros(1, np.uint64), np.zeros(2, np.uint64)
        )


def test_rows_are_counted_against_a_number_or_the_first_tensor(compiled):
    def check(*lengths, rows=-1, names=("a",)):
        compiled.tfprivacy_lab_assert_rows([tf.zeros((n, 2)) for n in lengths], mark="m", rows=rows, names=list(names))

    check(3, 3)
    check(0, 0)
    check(3, rows=3)
    for arguments, options, said in (
        ((3, 2), {}, r"\[m\] \[3\] \[a\] \[2\]"),
        ((2,), {"rows": 3}, r"\[m\] \[3\] \[a\] \[2\]"),
        ((3, 3, 0), {"names": ("a", "b")}, r"\[m\] \[3\] \[b\] \[0\]"),
        ((3, 3), {"names": ()}, "a name a tensor"),
        ((3,), {}, "a name a tensor"),
    ):
        with pytest.raises(tf.errors.InvalidArgumentError, match=said):
            check(*arguments, **options)
    with pytest.raises(tf.errors.InvalidArgumentError, match="first axis"):
        compiled.tfprivacy_lab_assert_rows([tf.zeros(()), tf.zeros(3)], mark="m", rows=-1, names=["a"])


@pytest.mark.processes
@pytest.mark.slow
def test_without_a_compiler_set_up_says_what_is_lost_and_goes_on(tmp_path):
    code = """
import os, runpy, sys
from pathlib import Path
from tfprivacy_lab.dp import native
native.library = lambda: Path(sys.argv[1]) / "operations.so"
for compiler in sys.argv[2:]:
    os.environ["CXX"] = compiler
    runpy.run_module("tfprivacy_lab.dp.native.__main__", run_name="__main__")
    native.operations.cache_clear()
    assert native.operations() is None
    print("--", file=sys.stderr)
"""
    command = [sys.executable, "-c", code, str(tmp_path), "no-such-compiler", "false"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    without, failing, _ = done.stderr.split("--\n")
    for said, what in ((without, "No operations were compiled"), (failing, "C++ compiler failed")):
        assert what in said
        assert "DP training works without them" in said
        assert "TFPRIVACY_LAB_NO_NATIVE=1 leaves them out" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.processes
@pytest.mark.slow
def test_they_are_compiled_at_their_first_use(tmp_path):
    code = """
import sys
from pathlib import Path
from tfprivacy_lab.dp import native
native.library = lambda: Path(sys.argv[1]) / "made" / "operations.so"
print(sorted(name for name in dir(native.operations()) if name == "tfprivacy_lab_add_normal_noise"))
"""
    for said in ("compiling operations for this processor, once", ""):
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
        assert done.stdout == "['tfprivacy_lab_add_normal_noise']\n"
        assert said in done.stderr if said else done.stderr == ""


@pytest.mark.processes
def test_the_switch_leaves_them_out_and_a_broken_library_is_named(tmp_path):
    broken = tmp_path / "operations.so"
    broken.write_bytes(b"not a library")
    code = """
import os, sys
from pathlib import Path
from tfprivacy_lab.dp import native
print(native.operations())
print("--", file=sys.stderr)
del os.environ[native.SWITCH]
native.operations.cache_clear()
native.library = lambda: Path(sys.argv[1])
print(native.operations())
"""
    environment = {**os.environ, native.SWITCH: "1"}
    command = [sys.executable, "-c", code, str(broken)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == "None\nNone\n"
    switched_off, of_broken = done.stderr.split("--\n")
    assert switched_off == ""
    assert f"{broken} cannot be loaded" in of_broken
