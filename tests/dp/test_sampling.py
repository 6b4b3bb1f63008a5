"""Poisson batches: the distribution that the accountant assumes, and the layout that keeps it."""

import dataclasses
import functools
import itertools
import operator
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from tfprivacy_lab.checks import InputError
from tfprivacy_lab.dp import sampling
from tfprivacy_lab.dp.sampling import PoissonBatches, ShuffledBatches

EXAMPLES, BATCH, STEPS = 200, 30, 4_000
Q = BATCH / EXAMPLES
# A right sampler fails one test in a million; the seeds are fixed, so it fails never or always.
LEVEL = 1e-6


def membership(batches):
    """Steps × examples, 1 where the example is drawn."""
    drawn = np.zeros((batches.steps, batches.examples), np.int64)
    for step in range(batches.steps):
        drawn[step, batches.indices(step)] = 1
    return drawn


@pytest.fixture(scope="module")
def drawn():
    return membership(PoissonBatches(EXAMPLES, BATCH, STEPS, seed=20))


def fixed_size_batches():
    """What the sampler must not be: batches of exactly BATCH examples."""
    rng = np.random.default_rng(0)
    drawn = np.zeros((STEPS, EXAMPLES), np.int64)
    for row in drawn:
        row[rng.choice(EXAMPLES, BATCH, replace=False)] = 1
    return drawn


def is_binomial(successes, trials, q):
    return stats.binomtest(int(successes), trials, q).pvalue > LEVEL


def is_chi_square(statistic, degrees):
    return LEVEL / 2 < stats.chi2.sf(statistic, degrees) < 1 - LEVEL / 2


def test_every_example_joins_with_probability_q(drawn):
    assert is_binomial(drawn.sum(), drawn.size, Q)
    assert not is_binomial(drawn.sum(), drawn.size, 0.98 * Q)
    assert not is_binomial(drawn.sum(), drawn.size, 1.02 * Q)
    for q, right in ((Q, True), (0.9 * Q, False), (1.1 * Q, False)):
        deviations = (drawn.sum(axis=0) - STEPS * q) ** 2 / (STEPS * q * (1 - q))
        assert is_chi_square(deviations.sum(), EXAMPLES) == right


def sizes_are_binomial(drawn):
    """Dispersion of the batch sizes: that of independent examples, not of a fixed number."""
    deviations = (drawn.sum(axis=1) - EXAMPLES * Q) ** 2 / (EXAMPLES * Q * (1 - Q))
    return is_chi_square(deviations.sum(), len(drawn))


def test_sizes_vary_as_those_of_independent_examples(drawn):
    assert sizes_are_binomial(drawn)
    assert not sizes_are_binomial(fixed_size_batches())
    assert (
        stats.kstest(drawn.sum(axis=1) + np.random.default_rng(0).random(STEPS) - 0.5, jittered_binomial_cdf).pvalue
        > LEVEL
    )


def jittered_binomial_cdf(x):
    whole = np.floor(x + 0.5)
    return stats.binom.cdf(whole - 1, EXAMPLES, Q) + (x + 0.5 - whole) * stats.binom.pmf(whole, EXAMPLES, Q)


def pairs_are_independent(drawn):
    """Largest correlation over pairs of columns, against what chance gives."""
    trials = len(drawn)
    standard = (drawn - Q) / np.sqrt(Q * (1 - Q))
    correlation = standard.T @ standard / trials
    pairs = correlation[np.triu_indices(drawn.shape[1], 1)] * np.sqrt(trials)
    return np.abs(pairs).max() < stats.norm.isf(LEVEL / 2 / len(pairs)) and abs(pairs.mean()) < 5 / np.sqrt(len(pairs))


def test_examples_are_pairwise_independent(drawn):
    assert pairs_are_independent(drawn)
    assert not pairs_are_independent(fixed_size_batches())
    twins = drawn.copy()
    twins[:, 1] = twins[:, 0]
    assert not pairs_are_independent(twins)


def test_steps_are_independent(drawn):
    """The same test with steps for examples; a sampler that repeats a batch fails it."""
    blocks = drawn.reshape(STEPS // 50, 50, EXAMPLES).transpose(0, 2, 1).reshape(-1, 50)
    assert pairs_are_independent(blocks)
    repeated = blocks.copy()
    repeated[:, 7] = repeated[:, 6]
    assert not pairs_are_independent(repeated)


def test_seeds_are_independent():
    """Neighbouring seeds and steps share nothing: (s, t + 1) is not (s + 1, t)."""
    columns = [PoissonBatches(20_000, 3_000, 4, seed=seed).indices(step) for seed in range(6) for step in range(4)]
    drawn = np.zeros((20_000, len(columns)), np.int64)
    for column, indices in enumerate(columns):
        drawn[indices, column] = 1
    assert pairs_are_independent(drawn)


def test_draws_depend_on_seed_and_step_alone():
    batches = PoissonBatches(EXAMPLES, BATCH, 9, physical_batch_size=7, seed=3)
    backwards = {step: batches.indices(step) for step in reversed(range(9))}
    again = dataclasses.replace(batches, physical_batch_size=64, steps=500)
    for step in range(9):
        assert np.array_equal(backwards[step], again.indices(step))
        assert np.all(np.diff(backwards[step]) > 0)
        assert backwards[step].dtype == np.int64


@pytest.mark.processes
def test_draws_are_the_same_in_another_process_and_release():
    """Golden draw: a resumed run must meet the batches it met before."""
    batches = PoissonBatches(1_000, 8, 3, seed=2**62 + 1)
    code = (
        "from tfprivacy_lab.dp.sampling import PoissonBatches as P; "
        "print(P(1_000, 8, 3, seed=2**62 + 1).indices(2).tolist())"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence(2**62 + 1, spawn_key=(2, 0, 2))))
    size = generator.binomial(1_000, 0.008)
    expected = sorted(generator.choice(1_000, size, replace=False, shuffle=False).tolist())
    assert expected == [225, 275, 717]
    assert batches.indices(2).tolist() == expected
    assert other.strip() == str(expected)


@pytest.mark.parametrize("seed", [0, 3, 2**63 - 1, 2**100 + 7, 2**128 - 1])
def test_sampling_shares_no_stream_with_noise_dropout_or_another_worker(seed):
    """First words of every generator of a run; noise is keyed by spawn keys 0 and 3, dropout by 1."""
    others = [np.random.SeedSequence(seed, spawn_key=(key,)).generate_state(2, np.uint64) for key in (0, 1, 3)]
    streams = [sampling._generator(seed, step, worker) for step in range(6) for worker in range(3)]
    keys = {tuple(stream.bit_generator.state["state"]["key"].tolist()) for stream in streams}
    assert len(keys) == len(streams)
    assert not keys & {tuple(other.tolist()) for other in others}


def test_whole_batch_takes_everyone():
    batches = PoissonBatches(10, 10, 3, physical_batch_size=4)
    assert batches.indices(1).tolist() == list(range(10))
    assert (batches.accumulation_steps, batches.rows) == (3, 4)


@pytest.mark.parametrize("physical", [1, 7, 16, 31, 1_000])
def test_layout_holds_each_drawn_example_once_and_padding_weighs_nothing(physical):
    batches = PoissonBatches(EXAMPLES, 12, 60, physical_batch_size=physical, seed=5)
    assert batches.rows <= physical
    largest = max(batches.indices(step).size for step in range(60))
    slots = batches.accumulation_steps * batches.rows
    assert largest <= slots < largest + batches.accumulation_steps
    for step in range(60):
        indices, weights = batches.layout(step)
        assert indices.shape == weights.shape == (batches.accumulation_steps, batches.rows)
        assert (indices.dtype, weights.dtype) == (np.int64, np.float32)
        assert set(np.unique(weights)) <= {0.0, 1.0}
        assert sorted(indices[weights == 1]) == batches.indices(step).tolist()
        assert np.all(indices[weights == 0] == 0)


def test_empty_draws_have_a_shape():
    batches = PoissonBatches(50, 1, 40, seed=0)
    sizes = [batches.indices(step).size for step in range(40)]
    assert min(sizes) == 0
    indices, weights = batches.layout(sizes.index(0))
    assert indices.size == batches.largest == max(sizes)
    assert not weights.any()
    nobody = next(
        batches for seed in range(100) if not (batches := PoissonBatches(50, 1, 1, seed=seed)).indices(0).size
    )
    assert (nobody.largest, nobody.accumulation_steps, nobody.rows) == (1, 1, 1)
    assert nobody.layout(0)[1].tolist() == [[0.0]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"examples": 0}, "examples to be a whole number >= 1, got examples=0"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 2.5}, "batch_size=2.5"),
        ({"batch_size": 201}, "Expected batch_size <= examples, got batch_size=201 for examples=200"),
        ({"steps": 0}, "steps"),
        ({"physical_batch_size": 0}, "physical_batch_size"),
        ({"seed": -1}, "seed to be a whole number >= 0"),
        ({"seed": None}, "seed"),
    ],
)
def test_arguments_are_checked(change, message):
    arguments = {"examples": 200, "batch_size": 30, "steps": 5} | change
    with pytest.raises(InputError, match=message):
        PoissonBatches(**arguments)


@pytest.mark.parametrize("step", [-1, 5, 1.0])
def test_a_step_that_is_not_accounted_is_refused(step):
    with pytest.raises(InputError, match="step to be a whole number >= 0 and <= 4"):
        PoissonBatches(200, 30, 5).indices(step)


@pytest.mark.parametrize("first_step", [0, 5])
def test_shuffled_batches_of_a_pass_hold_everyone_once(first_step):
    batches = ShuffledBatches(50, 12, seed=3, first_step=first_step)
    passes = [[batches.indices(first_step + 5 * epoch + place) for place in range(5)] for epoch in range(3)]
    for one in passes:
        assert [part.size for part in one] == [12, 12, 12, 12, 2]
        assert sorted(np.concatenate(one)) == list(range(50))
    for one, other in itertools.pairwise(passes):
        assert not any(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_fit_of_shuffled_batches_begins_a_pass_of_its_own():
    """After two of five batches of a pass; the new one holds everyone again, in an order of its own."""
    earlier, later = ShuffledBatches(50, 10, seed=3), ShuffledBatches(50, 10, seed=3, first_step=2)
    assert sorted(np.concatenate([later.indices(step) for step in range(2, 7)])) == list(range(50))
    assert not np.array_equal(later.indices(2), earlier.indices(0))
    assert not np.array_equal(later.indices(2), earlier.indices(2))


def test_places_in_a_shuffled_pass_are_uniform():
    """Each example is in each of five batches with probability 1/5, over many passes."""
    batches = ShuffledBatches(50, 10, seed=8)
    counts = np.zeros((5, 50))
    for step in range(5 * 400):
        counts[step % 5, batches.indices(step)] += 1
    statistic = np.sum((counts - 80) ** 2 / (400 * 0.2 * 0.8))
    # Correlated within an example and within a batch, so by the mean and not by a chi-square's tail.
    assert 0.8 * counts.size < statistic < 1.2 * counts.size


def test_fresh_seed_comes_from_the_operating_system(monkeypatch):
    np.random.seed(0)
    seeds = {sampling.fresh_seed() for _ in range(200)}
    assert len(seeds) == 200
    assert max(seeds) < 2**128
    # Every one of the 128 bits is used: the chance that one of them never shows is 128 · 2^-200.
    assert functools.reduce(operator.or_, seeds) == 2**128 - 1
    asked = []
    monkeypatch.setattr("secrets.randbits", lambda bits: asked.append(bits) or 7)
    assert sampling.fresh_seed() == 7
    assert asked == [128]
