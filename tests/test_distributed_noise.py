"""DP noise from shares: its scale, what colluding parties leave of it, and the figure that is claimed."""

import dataclasses
import math

import numpy as np
import pytest
from scipy import stats

from tfprivacy_lab import mpc
from tfprivacy_lab.checks import InputError
from tfprivacy_lab.distributed_noise import SharedGaussian, gradient_norm
from tfprivacy_lab.dp.mechanisms.additive import GaussianMechanism

PARTIES = ("alice", "bob", "carol")
ABY3 = mpc.World("aby3", PARTIES)


def has_stddev(sample, stddev):
    """Two-sided chi-squared test at one in a million: the noise is the operating system's, and has no seed."""
    statistic = np.sum(np.square(sample)) / stddev**2
    return 5e-7 < stats.chi2.cdf(statistic, len(sample)) < 1 - 5e-7


def test_numbers_are_kept_as_numbers():
    plain = SharedGaussian(PARTIES, 1.5, 4000, 2.0, colluding=1, fraction_bits=18, releases=3, roundings=2)
    given = [np.array(value) for value in (1.5, 4000, 2, 1, 18, 3, 2)]
    kept = SharedGaussian(list(PARTIES), *given)
    assert kept == plain
    assert dataclasses.astuple(kept)[1:] == dataclasses.astuple(plain)[1:]
    assert [type(value) for value in dataclasses.astuple(kept)] == [tuple, float, int, float, *[int] * 4]
    assert kept.epsilon(1e-6) == plain.epsilon(1e-6)


def test_revealed_sum_carries_the_claimed_noise_and_collusion_leaves_the_stated_rest():
    noise = SharedGaussian(PARTIES, 1.0, 4000, 2.0, colluding=1)
    rng = np.random.default_rng(0)
    vectors = {party: rng.uniform(-50, 50, 4000) for party in ("alice", "bob")}
    steps = {party: noise.draw() for party in PARTIES}
    run = mpc.shared_sum(vectors, ABY3, reveal=("alice",), value_range=64, noise=noise.noise(), noise_steps=steps)
    error = run.outcomes["alice"].predictions - vectors["alice"] - vectors["bob"]
    assert run.outcomes["bob"].predictions is None
    assert has_stddev(error, noise.stddev())
    assert not has_stddev(error, noise.stddev() * 2 / 3)
    assert not has_stddev(error, noise.stddev() * 3 / 2)
    # Bob knows what he contributed.
    rest = error - steps["bob"][0] * 2.0**-noise.fraction_bits
    assert has_stddev(rest, noise.stddev(known=1))
    assert not has_stddev(rest, noise.stddev())
    assert noise.stddev(known=1) >= noise.noise_multiplier * noise.sensitivity


def test_what_is_revealed_is_the_rounded_sum_plus_exactly_the_noise():
    noise = SharedGaussian(PARTIES, 1.0, 50, 3.0)
    rng = np.random.default_rng(1)
    vectors = {party: rng.uniform(-1, 1, 50) for party in ("alice", "bob")}
    steps = {party: noise.draw() for party in PARTIES}
    run = mpc.shared_sum(vectors, ABY3, reveal=("alice",), value_range=1, noise=noise.noise(), noise_steps=steps)
    grid = 2.0**-noise.fraction_bits
    revealed = run.outcomes["alice"].predictions / grid
    assert np.array_equal(revealed, np.rint(revealed))
    rest = (revealed - sum(steps.values())[0]) * grid - sum(vectors.values())
    assert np.abs(rest).max() <= 2 * grid  # Two vectors, each rounded to the grid.


def test_claim_is_the_gaussian_mechanisms_within_the_conversion_and_falls_with_collusion():
    noise = SharedGaussian(PARTIES, 1.0, 10, 2.0, colluding=1)
    statement = noise.statement(1e-5)
    exact = [GaussianMechanism(noise.sensitivity, stddev).epsilon(1e-5) for stddev in statement["stddev_by_known"]]
    for claimed, tight in zip(statement["epsilon_by_known"], exact, strict=True):
        assert tight <= claimed <= 1.15 * tight
    assert statement["epsilon"] == statement["epsilon_by_known"][1]
    assert statement["epsilon_by_known"] == sorted(statement["epsilon_by_known"])


def test_a_sum_of_discrete_gaussians_is_within_the_accountants_factor():
    """Brute force at the smallest σ that is allowed: the pointwise ratio is below e^τ."""
    sigma, span = 2, np.arange(-60, 61)
    one = np.exp(-(span**2) / (2 * sigma**2))
    one /= one.sum()
    total = np.convolve(one, one)
    wide = np.arange(-120, 121)
    ideal = np.exp(-(wide**2) / (4 * sigma**2))
    ideal /= ideal.sum()
    middle = np.abs(wide) < 25
    tau = 10 * math.exp(-2 * math.pi**2 * sigma**2 / 2)
    assert np.abs(np.log(total[middle] / ideal[middle])).max() <= tau + 1e-12


def test_noised_training_moves_as_plain_training_with_that_noise():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(60, 3))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    y = (x[:, 0] > 0).astype(float)
    clip = gradient_norm(1.0, 1e-3)
    noise = SharedGaussian(PARTIES, clip, 4, 1.5, releases=5, roundings=2)
    steps = {party: noise.draw() for party in PARTIES}
    model = mpc.SharedModel([mpc.Layer(1, "sigmoid")], ABY3)
    model.compile("binary_crossentropy", 0.5, row_norm=1.0)
    parts, labels = {"alice": x[:30], "bob": x[30:]}, {"alice": y[:30], "bob": y[30:]}
    run = model.fit(
        parts, labels, steps=5, split="rows", reveal_weights=("bob",), noise=noise.noise(), noise_steps=steps
    )
    kernel, bias = (np.array(one) for one in model.job.weights)
    total = sum(steps.values()) * 2.0**-noise.fraction_bits
    for step in range(5):
        residual = 1 / (1 + np.exp(-(x @ kernel + bias))) - y[:, None]
        kernel = kernel - 0.5 / 60 * (x.T @ residual + total[step, :3, None])
        bias = bias - 0.5 / 60 * (residual.sum(0) + total[step, 3:])
    assert run.outcomes["bob"].weights[0] == pytest.approx(kernel, abs=2e-3)
    assert run.outcomes["bob"].weights[1] == pytest.approx(bias, abs=2e-3)
    with pytest.raises(InputError, match=r"alice: .*row_norm"):
        model.fit({"alice": x[:30], "bob": x[30:]} | {"alice": np.full((30, 3), 0.9)}, labels, steps=5, split="rows")


def test_one_row_moves_a_gradient_sum_by_no_more_than_claimed():
    """Neighbours: all rows but one, worst residuals included."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(200, 6))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    residual = np.where(rng.random((200, 1)) < 0.5, -1.001, 1.001)
    contributions = residual * np.hstack([x, np.ones((200, 1))])
    largest = np.linalg.norm(contributions, axis=1).max()
    assert largest == pytest.approx(gradient_norm(1.0, 1e-3), rel=1e-9)


def test_one_row_moves_the_gradients_of_several_outputs_by_no_more_than_claimed():
    import tensorflow as tf

    x, wrong = np.full((1, 4), 0.5), np.array([[0.0, 1.0, 0.0]])
    kernel = tf.Variable(np.sign(0.5 - wrong) * np.full((4, 3), 50.0))
    bias = tf.Variable(np.zeros(3))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.nn.sigmoid_cross_entropy_with_logits(wrong, x @ kernel + bias))
    gradients = tape.gradient(loss, [kernel, bias])
    norm = np.sqrt(sum(np.sum(np.square(one)) for one in gradients))
    assert norm == pytest.approx(gradient_norm(1.0, 0.0, units=3), rel=1e-9)
    assert norm > 1.7 * gradient_norm(1.0, 0.0)


@pytest.mark.parametrize(
    ("changes", "naming"),
    [
        ({"parties": ()}, "parties"),
        ({"colluding": 3}, "colluding"),
        ({"noise_multiplier": 0}, "noise_multiplier"),
        ({"noise_multiplier": 1e-6}, "grid steps"),
        ({"l2_norm_clip": float("nan")}, "l2_norm_clip"),
        ({"releases": 0}, "releases"),
    ],
)
def test_bad_arguments_are_refused(changes, naming):
    with pytest.raises(InputError, match=naming):
        SharedGaussian(**{"parties": PARTIES, "l2_norm_clip": 1.0, "dimension": 3, "noise_multiplier": 1.0, **changes})


@pytest.mark.usefixtures("engine")
def test_noise_of_the_wrong_kind_is_refused():
    noise = SharedGaussian(PARTIES, 1.0, 3, 2.0).noise()
    steps = {party: np.zeros((1, 3)) for party in PARTIES}
    with pytest.raises(InputError, match=r"alice: .*whole numbers"):
        mpc.shared_sum({"alice": np.zeros(3)}, ABY3, reveal=("bob",), value_range=1, noise=noise, noise_steps=steps)
