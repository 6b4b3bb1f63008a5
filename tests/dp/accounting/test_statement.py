"""The privacy statement says what was done, with the accountant's own numbers."""

import re

import pytest

from tfprivacy_lab.checks import InputError
from tfprivacy_lab.dp.accounting.comparison import tensorflow_privacy_figures
from tfprivacy_lab.dp.accounting.gaussian import DpSgdRun, account
from tfprivacy_lab.dp.accounting.laplace import LaplaceRun
from tfprivacy_lab.dp.accounting.statement import laplace_statement, privacy_statement

RUN = DpSgdRun(examples=60_000, batch_size=256, noise_multiplier=1.1, steps=14_063)
ARGUMENTS = {"released": "all weights", "l2_norm_clip": 0.75, "tuning": "on public digits", "seeded": False}


SMALL = DpSgdRun(examples=100, batch_size=10, noise_multiplier=8.0, steps=10)


def statement(run=SMALL, delta=1e-5, **changes):
    return privacy_statement(run, delta, **(ARGUMENTS | changes))


def fields(text):
    """Name to text, lines joined."""
    rows, name = {}, None
    for line in text.splitlines():
        if line[:24].strip() and len(line) > 24 and line[23] == " " and not line.startswith(" "):
            name, rows[line[:24].strip()] = line[:24].strip(), line[24:]
        elif name and line.startswith(" " * 24):
            rows[name] += " " + line.strip()
        else:
            name = None
    return rows


def test_numbers_are_the_accountants():
    rows = fields(statement(RUN))
    # The tutorial's run: 2.382 by PLD, 2.597 by RDP, 56.950 without amplification.
    assert rows["Guarantee"] == "(epsilon = 2.3818, delta = 1e-05)-differential privacy"
    assert float(rows["RDP, Poisson"].removeprefix("epsilon = ")) == pytest.approx(2.597, abs=5e-4)
    plain = account(RUN, 1e-5)
    assert f"epsilon = {plain['epsilon_no_amplification_exact']:.4f} exactly, 56.9" in rows["No amplification"]
    assert "for zero-out neighbours" in rows["No amplification"]
    assert "not for add-or-remove" in rows["No amplification"]
    assert f"probability {256 / 60_000:.6g}" in rows["Sampling"]
    assert rows["Sampling"].startswith("Poisson")
    assert rows["Adjacency"] == "add or remove one example"
    assert re.match(r"PLD \(dp-accounting \d+\.\d+", rows["Accountant"])
    assert rows["Mechanism"] == "14063 steps of a sum clipped to L2 norm 0.75 under Gaussian noise"
    assert rows["Noise multiplier"] == "1.1"
    assert rows["Private examples"] == "60000, 256 expected in a batch"


def test_epsilon_moves_with_the_run():
    small = DpSgdRun(1_000, 100, 3.0, 512)
    assert fields(statement(small, 1e-6))["Guarantee"].startswith("(epsilon = 3.7")


def test_words_are_the_callers():
    rows = fields(statement(released="the head " * 30, tuning="none", not_covered=("accuracy", "audit")))
    assert rows["Released"] == ("the head " * 30).strip()
    assert rows["Tuning"] == "none"
    assert rows["Not covered"] == "accuracy; audit"
    assert fields(statement())["Not covered"] == "nothing further was computed"


def test_unit_is_the_callers_and_no_kind_of_data_by_itself():
    assert fields(statement())["Unit of privacy"] == "one example: one row of x with its label"
    patient = "one example: all visits of one patient"
    assert fields(statement(unit=patient))["Unit of privacy"] == patient
    run = LaplaceRun(examples=100, batch_size=10, noise_multiplier=8.0, steps=10)
    arguments = {"released": "w", "l1_norm_clip": 1.0, "tuning": "none", "seeded": False}
    assert (
        fields(laplace_statement(run, 1e-5, **arguments))["Unit of privacy"] == fields(statement())["Unit of privacy"]
    )
    assert fields(laplace_statement(run, 1e-5, **arguments, unit=patient))["Unit of privacy"] == patient


def test_randomness_is_told_apart():
    seeded, secret = (fields(statement(seeded=seeded))["Randomness"] for seeded in (True, False))
    assert seeded.startswith("SEEDED RUN")
    assert "Whoever knows the seed can subtract the noise" in seeded
    assert "SEEDED" not in secret
    assert "128 bits from the operating system" in secret
    assert "not cryptographic" in secret


@pytest.mark.parametrize(("delta", "warned"), [(0.01, True), (0.02, True), (0.0099, False)])
def test_delta_that_allows_publishing_a_record_is_warned_of(delta, warned):
    rows = fields(statement(SMALL, delta))
    assert ("Warning" in rows) == warned
    if warned:
        assert "publishing one record outright" in rows["Warning"]


def test_delta_out_of_range_is_refused():
    with pytest.raises(InputError, match="delta"):
        statement(delta=1.0)


def test_tensorflow_privacy_stands_beside_with_its_assumptions():
    figures = {"compute_dp_sgd_privacy": 2.5968, "statement": "DP-SGD performed over 60000 examples\n  epsilon: 2.597"}
    text = statement(tensorflow_privacy=figures)
    assert "epsilon = 2.5968 (deprecated" in fields(text)["compute_dp_sgd_privacy"]
    assert "    DP-SGD performed over 60000 examples\n      epsilon: 2.597" in text
    assert "compute_dp_sgd_privacy" not in statement()
    assert text.startswith(statement().rstrip("\n"))


def test_real_figures_fit_and_lines_are_short():
    run = DpSgdRun(600, 60, 1.5, 20)
    text = statement(run, 1e-4, tensorflow_privacy=tensorflow_privacy_figures(run, 1e-4), released="weights " * 40)
    assert "Poisson sampling" in text
    assert max(map(len, text.splitlines())) <= 100
    assert text.endswith("\n")
    assert not text.endswith("\n\n")
