"""The rows that a trial takes: real, differing, the extremes among them, and a row in company of every kind."""

import numpy as np
import pytest
import tensorflow as tf

from tfprivacy_lab.dp.trials.rows import companies, other_numbers, other_places, rows_to_try


def table(n=500):
    x = np.random.default_rng(0).normal(size=(n, 3)).astype(np.float32)
    x[317], x[44] = 9e5, 0.0
    return x, np.arange(n)


def test_rows_are_those_of_the_data_with_the_largest_and_the_smallest():
    x, y = table()
    rows, labels = rows_to_try((tf.constant(x), tf.constant(y)))
    assert len(labels) == 8
    assert np.array_equal(rows, x[labels.numpy()])
    assert {317, 44, 0, 499} <= set(labels.numpy())
    assert np.all(np.diff(labels) > 0)


def test_rows_that_differ_come_before_those_that_do_not():
    x = np.zeros((100, 2), np.float32)
    x[[3, 57, 98]] = [[1, 2], [3, 4], [5, 6]]
    (rows,) = rows_to_try((tf.constant(x),))
    assert len(rows) == 8
    assert len(np.unique(rows, axis=0)) >= 3
    few = tf.constant(x[:5])
    assert np.array_equal(rows_to_try(few), few)


def test_structures_and_text_are_taken():
    given = ({"words": tf.constant([["a"], ["b"]] * 20), "ids": tf.range(40)}, tf.range(40))
    found, labels = rows_to_try(given)
    assert found["words"].shape == (8, 1)
    assert np.array_equal(found["ids"], labels)


@pytest.mark.parametrize("place", [0, 3, 7])
def test_a_row_keeps_its_place_among_others_and_is_followed_elsewhere(place):
    among = list(range(8))
    for batch in companies(place, place, among, 8):
        assert len(batch) == 8
        assert batch[place] == place
        assert place not in [*batch[:place], *batch[place + 1 :]]
        moved = [*other_places(place, batch), *other_numbers(place, place, batch, moved=True)]
        for rows, at in moved:
            assert rows[at] == place
        assert {1, 8, 32} < {len(rows) for rows, _ in moved} or place == 0
        assert {at for _, at in moved} > {place} or place == 0
    fixed = other_numbers(place, place, batch, moved=False)
    assert all(at == place for _, at in fixed)


def test_a_row_alone_has_copies_for_company():
    assert companies(0, 0, [0], 4) == [[0] * 4] * 3
