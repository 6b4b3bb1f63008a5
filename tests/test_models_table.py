"""docs/models.md is what ``make models`` writes: paths, errors and reasons are derived again, row by row."""

import sys
from pathlib import Path

import keras
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import example_loop  # noqa: E402
import models_table  # noqa: E402
from model_catalogue import CASES  # noqa: E402
from model_catalogue.case import EXAMPLES, mlp, numbers  # noqa: E402

from tfprivacy_lab.checks import InputError  # noqa: E402
from tfprivacy_lab.dp.clipping import ghost  # noqa: E402

PAGE = models_table.PAGE.read_text(encoding="utf-8")
LINES = dict(zip(CASES, [line for line in PAGE.splitlines() if line.startswith("| ")][1:], strict=False))
ONE = next(case for case in CASES if case.model == "two layers, logits")


@pytest.mark.long
@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in CASES])
def test_row_is_derived_again(case):
    found = models_table.row(case)
    assert found.path != "FAULT", found.note
    assert models_table.line(found) == LINES[case]
    assert (found.error is None) == (found.path == "refused" or case.not_compared is not None)
    assert found.error is None or (found.error < models_table.BOUND and 0 < found.clipped < EXAMPLES)


def test_page_is_what_the_command_writes_and_names_no_fault():
    lines = [line for line in PAGE.splitlines() if line.startswith("| ")][1:]
    assert models_table.page(lines) == PAGE
    assert len(lines) == len(CASES)
    for case, line in zip(CASES, lines, strict=True):
        assert line.startswith(f"| {case.family} | {case.model} | {case.inputs} | ")
    assert "FAULT" not in PAGE
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.slow_but("1.001")
@pytest.mark.parametrize("wrong", [0.5, 1.001, np.inf])
def test_step_with_another_clipping_norm_is_a_fault(monkeypatch, wrong):
    right = ghost.clip_factors
    monkeypatch.setattr(ghost, "clip_factors", lambda norms, clip, method="flat": right(norms, wrong * clip, method))
    found = models_table.row(ONE)
    assert found.path == "FAULT"
    assert not found.error < models_table.BOUND
    assert "FAULT" in models_table.line(found)


@pytest.mark.slow_but("error0-*", "error3-*")
@pytest.mark.parametrize(
    ("error", "path"),
    [
        (RuntimeError("deep down"), "FAULT"),
        (ValueError("a ValueError that is no InputError"), "FAULT"),
        (InputError("two\nlines"), "FAULT"),
        (InputError("one line"), "refused"),
    ],
)
def test_only_one_line_refuses(monkeypatch, error, path):
    def fit(*_, **__):
        raise error

    monkeypatch.setattr(models_table.PrivateModel, "fit", fit)
    found = models_table.row(ONE)
    assert (found.path, found.error) == (path, None)
    assert str(error).splitlines()[-1] in models_table.line(found)


def test_loop_by_hand():
    """The square loss of a line, and each gradient scaled to the clipping norm."""
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False)])
    model.set_weights([np.array([[0.5], [-1.0]], np.float32)])
    x, y, weights = numbers(2), numbers(1), np.linspace(0, 2, EXAMPLES)
    found = example_loop.gradients(model, x, y, weights, "mse")
    by_hand = 2 * weights[:, None] * (x @ [[0.5], [-1.0]] - y) * x
    np.testing.assert_allclose(found, by_hand, rtol=1e-4, atol=1e-6)
    clip = example_loop.clip_between(found)
    norms = np.linalg.norm(by_hand, axis=1)
    assert np.sum(norms > clip) == (EXAMPLES + 1) // 2
    expected = sum(g if size <= clip else g * clip / size for g, size in zip(by_hand, norms, strict=True))
    np.testing.assert_allclose(example_loop.clipped_sum(found, clip), expected, rtol=1e-4)


def test_draws_that_are_alike_are_the_same_alone_and_among_others():
    model = mlp(keras.layers.Dropout(0.5), keras.layers.GaussianNoise(1.0), keras.layers.Dense(3))
    x = numbers(5)
    assert not np.allclose(model(x, training=True)[:1], model(x[:1], training=True))
    example_loop.draw_alike(model)
    np.testing.assert_allclose(model(x, training=True)[-1:], model(x[-1:], training=True), rtol=1e-5)
    assert not np.allclose(model(x, training=True), model(x, training=False))
