"""The privacy statement of a run under Laplace noise says what holds, and nothing that does not."""

import re

import pytest

from tfprivacy_lab.checks import InputError
from tfprivacy_lab.dp.accounting.laplace import LaplaceRun, account_laplace
from tfprivacy_lab.dp.accounting.statement import laplace_statement

RUN = LaplaceRun(1_000, 100, 2.0, 25)
WORDS = {"released": "a head", "l1_norm_clip": 0.5, "tuning": "on public data"}


def test_statement_holds_every_figure_of_the_account():
    text, figures = (
        laplace_statement(RUN, 1e-5, **WORDS, seeded=False, not_covered=("one", "two")),
        account_laplace(RUN, 1e-5),
    )
    flat = re.sub(r"\s+", " ", text)
    for part in (
        f"pure epsilon = {figures['epsilon_pure']:.4f}, delta = 0",
        f"epsilon = {figures['epsilon']:.4f}, delta = 1e-05",
        "for zero-out neighbours",
        f"pure epsilon = {figures['epsilon_no_amplification']:.4f}: batches cut",
        "25 steps of a sum clipped to L1 norm 0.5 under Laplace noise",
        "probability 0.1", "1000, 100 expected", "add or remove one example", "a head", "on public data", "one; two",
    ):  # fmt: skip
        assert part in flat
    assert max(map(len, text.splitlines())) <= 100


def test_statement_tells_where_the_noise_came_from():
    seeded, fresh = (laplace_statement(RUN, 1e-5, **WORDS, seeded=seeded) for seeded in (True, False))
    secure = laplace_statement(RUN, 1e-5, **WORDS, seeded=False, secure_noise=True)
    assert "SEEDED RUN" in seeded
    assert "SEEDED RUN" not in fresh + secure
    assert "Philox" in fresh
    assert "cryptographic generator; sampling" in re.sub(r"\s+", " ", secure)


def test_delta_is_checked():
    with pytest.raises(InputError, match="Expected delta"):
        laplace_statement(RUN, 1.5, **WORDS, seeded=True)
