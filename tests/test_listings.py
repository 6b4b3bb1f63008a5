"""docs/listings.md: every named block is run, in the page's order, and does what the page says."""

import contextlib
import hashlib
import io
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tfprivacy_lab.checks import MissingPackageError

PAGE = (Path(__file__).parents[1] / "docs" / "listings.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"^```python (\S+)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE))
ERRORS = dict(re.findall(r"^```text error of (\S+)\n(.*?)\n```$", PAGE, re.DOTALL | re.MULTILINE))
OUTPUTS = dict(re.findall(r"^```text output of (\S+)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE))
PRINTED = dict(re.findall(r"^```text (listing-\S+)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE))
NUMBER = re.compile(r"\d+\.\d+")


def small_mnist():
    """1,536 + 500 images in MNIST's format: ten random patterns under noise, easy to tell apart."""
    draw = np.random.default_rng(0)
    patterns = draw.random((10, 28, 28)) < 0.3
    labels = draw.integers(0, 10, 2036).astype(np.uint8)
    images = np.clip(200 * patterns[labels] + draw.normal(0, 40, (2036, 28, 28)), 0, 255).astype(np.uint8)
    return (images[:1536], labels[:1536]), (images[1536:], labels[1536:])


@pytest.fixture(scope="module")
def run():
    """Each block's printed text and the error that stopped it, and the names it left at its end."""
    import tensorflow as tf
    import tf_keras

    ended, names = {}, {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tf_keras.datasets.mnist, "load_data", small_mnist)
        tf_keras.utils.set_random_seed(0)
        for name, block in BLOCKS.items():
            if name == "listing-4.1":  # In this process TF Privacy may be loaded already, without its package.
                continue
            printed, stopped = io.StringIO(), None
            with contextlib.redirect_stdout(printed):
                try:
                    exec(compile(block, f"listings.md: {name}", "exec"), names)
                except MissingPackageError as error:
                    stopped = error
                except (AssertionError, ValueError, tf.errors.InvalidArgumentError) as error:
                    stopped = error
            ended[name] = printed.getvalue(), stopped, dict(names)
    return ended


def of(run, name):
    """What a block left; or the test is skipped for the package that it needs."""
    if isinstance(run[name][1], MissingPackageError):
        raise run[name][1]
    return run[name]


def test_page_has_the_blocks_this_file_speaks_of():
    assert list(BLOCKS) == [
        "listing-4.1",
        "imports-mended",
        "one-microbatch",
        "noise",
        "sensitivity",
        "mean-loss",
        "partial-batch",
        "batchnorm",
        "corrected",
        "corrected-epsilon",
        "accounting",
        "listing-4.2-on-shares",
    ]
    assert set(ERRORS) == {"listing-4.1", "imports-mended", "mean-loss", "partial-batch"}
    assert set(OUTPUTS) == {
        "noise",
        "sensitivity",
        "batchnorm",
        "corrected-epsilon",
        "accounting",
        "listing-4.2-on-shares",
    }
    assert set(PRINTED) == {"listing-4.2"}
    assert PAGE.count("```python") == len(BLOCKS)
    assert PAGE.count("```") == 2 * (len(BLOCKS) + len(ERRORS) + len(OUTPUTS) + len(PRINTED))


@pytest.mark.parametrize(
    ("block", "sha256"),
    [
        (BLOCKS["listing-4.1"], "df4ee116e91b681a37bf322e26c15fa92a309d7205105dd294e19f64682d8310"),
        (PRINTED.get("listing-4.2", ""), "8ba1519fa722bba8554b9af8bf9460d7c842108ded2c64d48496a01339bad592"),
    ],
    ids=["4.1", "4.2"],
)
def test_listings_are_the_documents_to_the_byte(block, sha256):
    assert hashlib.sha256(block.encode()).hexdigest() == sha256


def test_second_listing_runs_on_shares_though_its_own_code_does_not(run):
    """Oracle: ten steps of gradient descent on the sum of squares, from the weights that the job starts at."""
    rows, target = np.array([[0, 0, 1], [0, 1, 1], [1, 0, 1], [1, 1, 1]]), np.array([0, 0, 1, 1])
    weights = np.array([0.3, -0.2, 0.1])
    for _ in range(10):
        weights = weights - 0.1 * 2 * rows.T @ (rows @ weights - target)
    *_, names = of(run, "listing-4.2-on-shares")
    # Twenty bits behind the point, a few roundings a step.
    np.testing.assert_allclose([*names["w"].ravel(), *names["b"]], weights, atol=1e-5)
    np.testing.assert_allclose(names["prediction"], [[[0.5, 0.5, 1] @ weights]], atol=1e-5)
    shown = [
        [float(x) for x in re.findall(r"-?\d\.\d{4}", line)] for line in OUTPUTS["listing-4.2-on-shares"].splitlines()
    ]
    assert shown == [[*weights.round(4), ([0.5, 0.5, 1] @ weights).round(4)]] * 2


@pytest.mark.processes
@pytest.mark.slow
def test_first_listing_as_printed_stops_as_the_page_says():
    ended = subprocess.run([sys.executable, "-c", BLOCKS["listing-4.1"]], capture_output=True, text=True)
    assert ended.returncode == 1
    assert ERRORS["listing-4.1"] in ended.stderr


@pytest.mark.parametrize("name", list(BLOCKS)[1:])
def test_block_ends_as_the_page_says(run, name):
    _, stopped, _ = of(run, name)
    if name not in ERRORS:
        assert stopped is None
        return
    kind, message = ERRORS[name].split(": ", 1)
    assert type(stopped).__name__ == kind
    assert message in str(stopped)


@pytest.mark.parametrize("name", OUTPUTS)
def test_block_prints_what_the_page_shows(run, name):
    printed, shown = of(run, name)[0], OUTPUTS[name]
    assert NUMBER.sub("#", printed) == NUMBER.sub("#", shown)
    # Another processor rounds otherwise and may draw other noise; the text must be the same.
    assert [float(x) for x in NUMBER.findall(printed)] == pytest.approx(
        [float(x) for x in NUMBER.findall(shown)], rel=0.1, abs=0.01 if name == "batchnorm" else 0
    )


def test_one_microbatch_puts_the_noise_of_the_sum_on_the_mean(run):
    *_, names = run["noise"]
    assert names["as_in_b"] == pytest.approx(names["sigma"] * names["C"], rel=0.05)
    assert names["as_meant"] == pytest.approx(names["sigma"] * names["C"] / names["B"], rel=0.05)


def test_one_microbatch_does_not_bound_what_one_example_moves(run):
    *_, names = run["sensitivity"]
    assert names["per_example"] <= 2 * names["C"] / names["B"]
    assert 10 * 2 * names["C"] / names["B"] < names["per_batch"] <= 2 * names["C"]


def test_batch_normalisation_carries_one_example_into_anothers_gradient(run):
    *_, names = run["batchnorm"]
    gradient = names["gradient_of_last_example"]
    x, other = names["x"], names["other"]
    np.testing.assert_array_equal(x[1:], other[1:])
    without, with_batchnorm = (names["normalised_model"](flag) for flag in (False, True))
    np.testing.assert_allclose(gradient(without, x), gradient(without, other), atol=1e-6)
    assert np.abs(gradient(with_batchnorm, x) - gradient(with_batchnorm, other)).max() > 1e-2


def test_corrected_version_learns_where_one_microbatch_does_not(run):
    accuracy = {}
    for name in ("one-microbatch", "corrected"):
        *_, names = run[name]
        accuracy[name] = names["model"].evaluate(names["x_test"], names["y_test"], verbose=0)
    assert accuracy["corrected"][1] > 0.9
    assert accuracy["one-microbatch"][0] > 10 * accuracy["corrected"][0]


def test_corrected_version_has_one_microbatch_per_example_and_whole_batches(run):
    *_, names = run["corrected"]
    sizes = {len(labels) for _, labels in names["batches"]}
    assert sizes == {names["batch_size"]} == {names["optimizer"]._num_microbatches}
    per_example = names["model"].loss([0, 1], [[1.0, 0.0], [1.0, 0.0]]).numpy()
    np.testing.assert_allclose(per_example, [np.log1p(np.exp(-1)), np.log1p(np.exp(1))], rtol=1e-6)


def test_epsilons_agree_with_an_accountant_of_their_own():
    import dp_accounting

    def epsilon(noise_multiplier, sampled, count):
        event = dp_accounting.GaussianDpEvent(noise_multiplier)
        if sampled:
            event = dp_accounting.PoissonSampledDpEvent(256 / 60_000, event)
        accountant = dp_accounting.rdp.RdpAccountant()
        return accountant.compose(event, count).get_epsilon(1e-5)

    steps = -(-60 * 60_000 // 256)
    assert [float(x) for x in NUMBER.findall(OUTPUTS["accounting"])] == pytest.approx(
        [epsilon(1.1, True, steps), epsilon(0.55, True, steps), epsilon(1.1, True, steps)], abs=0.01
    )
    assert [float(x) for x in NUMBER.findall(OUTPUTS["corrected-epsilon"])] == pytest.approx(
        [epsilon(1.1, False, 5), epsilon(1.1, True, -(-5 * 60_000 // 256))], abs=0.01
    )
