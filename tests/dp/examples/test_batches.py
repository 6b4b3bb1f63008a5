"""The batches that a fit is given: the samples, in order, once, over blocks and replicas."""

import threading
import time

import numpy as np
import pytest
import tensorflow as tf

from tests.dp.training.test_private_model import B, N, dataset, private
from tfprivacy_lab.dp.examples import batches as example_batches
from tfprivacy_lab.dp.examples.batches import pipeline
from tfprivacy_lab.dp.sampling import PoissonBatches, PoissonSample
from tfprivacy_lab.dp.training import planned

FIRST, SAMPLER = 5, PoissonSample(N, B / N, 3)
WEIGHTS = (1 + np.arange(N) % 3).astype(np.float32)


@pytest.fixture(autouse=True)
def blocks_of_four(monkeypatch):
    monkeypatch.setattr(example_batches, "_STEPS_AT_ONCE", 4)


def made(steps, parts=1, rows=4, sampler=SAMPLER):
    examples = *map(tf.constant, dataset(N)), tf.constant(WEIGHTS)
    return pipeline(sampler, examples, FIRST, FIRST + steps, rows=rows, parts=parts)


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize(
    ("steps", "sampler"), [*((steps, SAMPLER) for steps in (0, 1, 4, 11)), (11, PoissonSample(N, 1 / N, 3))]
)
def test_batches_are_the_samples_in_their_order(steps, sampler, parts):
    x, y = dataset(N)
    wanted = [sampler.indices(FIRST + step)[part::parts] for step in range(steps) for part in range(parts)]
    assert sampler is SAMPLER or 0 in map(len, wanted)
    found = list(made(steps, parts, sampler=sampler))
    assert len(found) == len(wanted)
    for (features, labels, weights, count), drawn in zip(found, wanted, strict=True):
        assert count == drawn.size
        assert len(weights) == len(labels) == len(features) == max(1, -(-drawn.size // 4)) * 4
        np.testing.assert_array_equal(features[:count], x[drawn])
        np.testing.assert_array_equal(labels[:count], y[drawn])
        np.testing.assert_array_equal(weights[:count], WEIGHTS[drawn])
        assert not np.any(weights[count:])


def test_no_sample_comes_twice_and_whoever_asks_again_disturbs_nobody():
    batches = made(40)
    one = iter(batches)
    next(one)
    with pytest.raises(tf.errors.OpError, match="drawn already"):
        next(iter(batches))
    assert len([*one]) == 39


def test_whoever_goes_on_after_the_error_gets_none_of_it():
    """tf.data asks for the next element after one that failed, and its prefetching does before anyone else does."""
    batches = made(40)
    one, other = iter(batches), iter(batches)
    next(one)
    for _ in range(3):
        with pytest.raises((tf.errors.OpError, StopIteration)):
            next(other)
    time.sleep(0.2)
    assert len([*one]) == 39


class Slow:
    """A sampler that takes its time."""

    def indices(self, step):
        time.sleep(0.02)
        return SAMPLER.indices(step)


def test_whoever_asks_at_the_same_time_gets_none_of_it():
    batches, found = made(40, sampler=Slow()), []

    def ask():
        try:
            found.append(len(list(batches)))
        except tf.errors.OpError:
            found.append(0)

    askers = [threading.Thread(target=ask) for _ in range(3)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    assert sorted(found) == [0, 0, 40]


def test_no_generator_sets_the_allocator_of_the_whole_process(monkeypatch):
    """from_generator's operation lowers the trim threshold of malloc, and every later step fetches its memory anew."""
    monkeypatch.setattr(tf.data.Dataset, "from_generator", None)
    assert len(list(made(2))) == 2
    x, y = dataset(N)
    assert len(list(planned.physical_batches(PoissonBatches(N, B, 2, 60, seed=2), x, y, 0, 2))) == 2
    private(engine="reference", noise_multiplier=1.0).fit(x, y, B, verbose=0)


def test_tf_data_rewrites_no_pipeline_that_holds_the_examples():
    assert made(1).options().experimental_optimization.apply_default_optimizations is False


@pytest.mark.parametrize("physical", [5, 12, 60])
def test_physical_batches_hold_every_sample(physical):
    x, y = dataset(N)
    batches = PoissonBatches(N, B, 7, physical, seed=2)
    found = list(planned.physical_batches(batches, x, y.astype(np.int64), 2, 7))
    assert len(found) == 5 * batches.accumulation_steps
    for step in range(5):
        parts = found[step * batches.accumulation_steps : (step + 1) * batches.accumulation_steps]
        features, labels, weights = (np.concatenate(column) for column in zip(*parts, strict=True))
        assert {part[0].shape for part in parts} == {(batches.rows, x.shape[1])}
        drawn = batches.indices(step + 2)
        np.testing.assert_array_equal(features[weights == 1], x[drawn])
        np.testing.assert_array_equal(labels[weights == 1], y[drawn])
        assert np.sum(weights) == drawn.size
