"""Which rows of the data a trial takes, and in which company it puts a row: real rows, never invented values.

An id in a table, a token, a category: a layer looks each up, and a value that no example has may have no place there.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

TRIED = 8
# Where differing rows are looked for.
_LOOKED_AT = 64


def rows_to_try(examples, count: int = TRIED):
    """A few rows that differ: the one of largest values, the one of smallest, and others spread over the set.

    Args:
        examples: Structure of tensors, (n, ...); inputs first where it is a tuple with labels.
        count: How many rows at most.

    Returns:
        The structure with at most ``count`` rows, in their order; fewer only if there are no more. Rows that equal one
        that is taken come last.
    """
    n = len(tf.nest.flatten(examples)[0])
    if n <= count:
        return examples
    spread = np.unique(np.linspace(0, n - 1, min(n, _LOOKED_AT)).astype(int))
    sizes = magnitudes(examples)
    order = [int(np.argmax(sizes)), int(np.argmin(sizes)), *spread[_far_apart(len(spread))]]
    candidates = list(dict.fromkeys(int(row) for row in order))
    seen, first, later = set(), [], []
    for row, content in zip(candidates, contents(gathered(examples, candidates)), strict=True):
        (later if content in seen else first).append(row)
        seen.add(content)
    return gathered(examples, sorted([*first, *later][:count]))


def contents(examples) -> list[bytes]:
    """What each row holds, to be compared."""
    columns = [np.asarray(a) for a in tf.nest.flatten(examples)]
    return [
        b"|".join(
            column[row].tobytes() if column.dtype != object else repr(column[row].tolist()).encode()
            for column in columns
        )
        for row in range(len(columns[0]))
    ]


def magnitudes(examples) -> np.ndarray:
    """The largest absolute real number of each row, (n,); whole numbers and text may be names and count for nothing."""
    found = np.zeros(len(tf.nest.flatten(examples)[0]))
    for array in tf.nest.flatten(examples):
        if array.dtype.is_floating and len(array.shape) > 0:
            found = np.maximum(found, tf.reduce_max(tf.abs(tf.reshape(array, (len(array), -1))), 1).numpy())
    return found


def gathered(examples, rows):
    """The structure with those rows, in that order."""
    return tf.nest.map_structure(lambda a: tf.gather(a, rows), examples)


def _far_apart(count: int) -> np.ndarray:
    """0..count-1, so ordered that each beginning is spread over the whole: last, first, middle, quarters, …"""
    places = [count - 1, 0]
    parts = 2
    while len(places) < 2 * count + 2:
        places += [count * part // parts for part in range(1, parts, 2)]
        parts *= 2
    return np.array(list(dict.fromkeys(place for place in places if 0 <= place < count)), int)


def companies(row: int, place: int, among: list[int], height: int) -> list[list[int]]:
    """Batches of ``height`` rows in which ``row`` stands at ``place`` and every other place holds another row.

    Args:
        row: The row whose gradient is looked at.
        place: Where it stands, < height.
        among: Rows that may stand beside it, the one of smallest magnitude first, that of largest last.
        height: Rows of a batch.

    Returns:
        The others in one order and in another, and the two extremes in turn.
    """
    others = [one for one in among if one != row] or [row]
    found = []
    for beside in (others, others[::-1], [others[-1], others[0]]):
        batch = [beside[i % len(beside)] for i in range(height)]
        batch[place] = row
        found.append(batch)
    return found


def other_places(place: int, batch: list[int]) -> list[tuple[list[int], int]]:
    """The same rows in another order, and where the row at ``place`` stands then."""
    return [(batch[::-1], len(batch) - 1 - place)]


def other_numbers(row: int, place: int, batch: list[int], *, moved: bool) -> list[tuple[list[int], int]]:
    """Fewer rows and more, with the row and its place: left out behind it, repeated, and ``row`` alone.

    With ``moved``, the place may be another: left out before it, too.
    """
    found = [([*batch, *3 * batch[::-1]], place)]
    if place + 1 < len(batch):
        found.append((batch[: place + 1], place))
    if moved and place > 0:
        found.append((batch[1:], place - 1))
    return [*found, ([row], 0)] if moved or place == 0 else found
