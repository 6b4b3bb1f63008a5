"""Residues in as many bits as their largest prime has, for messages on slow networks.

Residues of a ciphertext are uniform as far as anyone can tell, so that a general compressor finds nothing in them but
the zero bits above their prime. Without those, residues of 53 bits take 17 % fewer bytes, and residues of 45 bits 30 %.

Residue i of a row of 64 takes bits ``bits * i`` to ``bits * (i + 1) - 1`` of the row, bit 0 the lowest of its first
byte. Polynomials have a multiple of 64 residues, so nothing is padded.
"""

from __future__ import annotations

import numpy as np

ROW = 64
"""Residues that are packed together into ``bits`` words of 64 bits."""
CHUNK_ROWS = 2**13
"""Rows that are packed at a time, so that what it takes in memory beside the result does not grow: 4 MiB."""


def compressed(residues: np.ndarray, bits: int) -> np.ndarray:
    """Residues without the bits above ``bits``.

    Args:
        residues: uint64 below 2**bits, any shape of a multiple of 64 residues.
        bits: 1 to 63.

    Returns:
        Little-endian uint64, shape (bits * residues.size / 64,).
    """
    rows = residues.reshape(-1, ROW)
    words = np.empty((len(rows), bits), "<u8")
    for start in range(0, len(rows), CHUNK_ROWS):
        words[start : start + CHUNK_ROWS] = _compressed(rows[start : start + CHUNK_ROWS], bits)
    return words.ravel()


def _compressed(rows: np.ndarray, bits: int) -> np.ndarray:
    """Some rows of 64 residues as rows of ``bits`` words."""
    rows = np.ascontiguousarray(rows.T, np.uint64)
    words = np.zeros((bits, rows.shape[1]), np.uint64)
    for number, values in enumerate(rows):
        word, offset = divmod(bits * number, 64)
        words[word] |= values << np.uint64(offset)
        if offset + bits > 64:
            words[word + 1] |= values >> np.uint64(64 - offset)
    return words.T


def expanded(data, bits: int) -> np.ndarray:
    """:func:`compressed` undone: uint64 below 2**bits, flat, whatever the bytes.

    Args:
        data: Bytes-like, a multiple of ``8 * bits`` bytes.
        bits: 1 to 63.
    """
    words = np.frombuffer(data, "<u8").reshape(-1, bits)
    rows = np.empty((len(words), ROW), np.uint64)
    for start in range(0, len(words), CHUNK_ROWS):
        rows[start : start + CHUNK_ROWS] = _expanded(words[start : start + CHUNK_ROWS], bits)
    return rows.ravel()


def _expanded(words: np.ndarray, bits: int) -> np.ndarray:
    """Some rows of ``bits`` words as rows of 64 residues."""
    words = np.ascontiguousarray(words.T, np.uint64)
    rows, mask = np.empty((ROW, words.shape[1]), np.uint64), np.uint64(2**bits - 1)
    for number, values in enumerate(rows):
        word, offset = divmod(bits * number, 64)
        np.right_shift(words[word], np.uint64(offset), out=values)
        if offset + bits > 64:
            values |= words[word + 1] << np.uint64(64 - offset)
        values &= mask
    return rows.T
