"""Keras models and kinds of input that people use, by family: the rows of ``docs/models.md``."""

from __future__ import annotations

from . import (
    attention,
    convolutions,
    dense,
    embeddings,
    inputs,
    losses,
    normalisations,
    preprocessing,
    recurrent,
    structures,
    transfer,
)

_FAMILIES = (
    dense, convolutions, normalisations, embeddings, recurrent, attention, structures, inputs, preprocessing, losses,
    transfer,
)  # fmt: skip
CASES = tuple(case for family in _FAMILIES for case in family.CASES)
