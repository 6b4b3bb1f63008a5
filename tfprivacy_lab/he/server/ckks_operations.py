"""Rotations, products and squares on one client's ciphertexts, with its evaluation keys and no secret one.

The library would make keys of a fresh secret where one is missing, and compute garbage. So the keys are held against
the plan before, byte by byte but for their residues, each step's key is used once before the first query, and a context
that has come to hold a secret key is refused.
"""

from __future__ import annotations

import numpy as np

from tfprivacy_lab.checks import InputError
from tfprivacy_lab.he.messages.evaluation_keys import check_evaluation_keys
from tfprivacy_lab.he.messages.slot_keys import EvaluationKeys
from tfprivacy_lab.he.ring.seal_context import PREFIX_BYTES, ciphertext_prefix, seal_context


class CkksOperations:
    """What :meth:`.Diagonals.evaluate` asks for, on SEAL's ciphertexts.

    Args:
        parameters: The ring.
        keys: A client's evaluation keys, which a :class:`~tfprivacy_lab.he.server.door.Door` has checked.
        steps: The rotations that will be used.
        squares: Whether a square will be, which takes the relinearisation key.

    Raises:
        InputError: as :class:`~tfprivacy_lab.he.server.slots.SlotServer`.
    """

    def __init__(self, parameters, keys: EvaluationKeys, steps, squares: bool = True):
        missing = sorted(set(steps) - set(keys.steps))
        self._rotates, self._squares = bool(steps), squares
        if missing or (squares and not keys.relinearisation):
            what = f"rotation by {missing}" if missing else "relinearisation"
            raise InputError(f"Expected evaluation keys for the plan's steps {tuple(steps)}, got none for {what}.")
        self._parameters, self._library = parameters, seal_context(parameters)
        self._prefix = ciphertext_prefix(parameters)
        try:
            check_evaluation_keys(keys, parameters, steps, squares)
            if steps:
                self._library.from_bytes_rotate_key(keys.rotation)
            if squares:
                self._library.from_bytes_relin_key(keys.relinearisation)
            self._check_keys(steps)
        except (ValueError, RuntimeError) as error:
            raise InputError(f"Expected evaluation keys of these parameters for the plan's steps: {error}.") from error

    def _check_keys(self, steps) -> None:
        """Use every key once, on a ciphertext of nothing in particular."""
        self._check_no_key_was_made()
        shape = (2, len(self._parameters.primes), self._parameters.poly_modulus_degree)
        anything = self.ciphertext(np.ones(shape, np.uint64), 1.0)
        for step in steps:
            self.rotate(anything, step)
        if self._squares:
            self.square(anything)
        self._check_no_key_was_made()

    def _check_no_key_was_made(self) -> None:
        library = self._library
        if (self._rotates and library.is_rotate_key_empty()) or (self._squares and library.is_relin_key_empty()):
            raise ValueError("one is empty")
        if not library.is_secret_key_empty():
            raise RuntimeError("SEAL made a secret key where none should be")

    def ciphertext(self, residues: np.ndarray, scale: float):
        """SEAL's ciphertext of residues already known to be below their primes."""
        from tfprivacy_lab.he.ring.seal import PyCtxt

        data = self._prefix + np.ascontiguousarray(residues, "<u8").tobytes()
        ciphertext = PyCtxt(pyfhel=self._library, bytestring=data, scheme="ckks")
        ciphertext.set_scale(scale)
        return ciphertext

    def residues(self, ciphertext) -> np.ndarray:
        """The residues of a ciphertext, uint64, flat."""
        return np.frombuffer(ciphertext.to_bytes("none")[PREFIX_BYTES:], "<u8")

    def encode(self, slots: np.ndarray, scale: float, level: int):
        """A plaintext ``level`` primes down.

        Where all would round to zero, which SEAL refuses as a factor, the constant polynomial 1 stands instead: it is
        off by 1 of the N/2 that the bounds allow for the encoder's rounding.
        """
        slots = np.ascontiguousarray(slots)
        plain = self._library.encodeFrac(slots, scale=scale)
        if not self._library.decodeFrac(plain).any():
            plain = self._library.encodeFrac(np.full_like(slots, 1 / scale), scale=scale)
        for _ in range(level):
            plain = self._library.mod_switch_to_next_ptxt(plain)
        return plain

    def rotate(self, ciphertext, step: int):
        """Slots moved down by ``step``, cyclically."""
        return self._library.rotate(ciphertext, step, in_new_ctxt=True)

    def add(self, first, second):
        """The sum."""
        return self._library.add(first, second, in_new_ctxt=True)

    def multiply(self, ciphertext, factor):
        """The product with a plaintext."""
        return self._library.multiply_plain(ciphertext, factor, in_new_ctxt=True)

    def rescale(self, ciphertext):
        """Divided by the last prime, in place."""
        self._library.rescale_to_next(ciphertext)
        return ciphertext

    def square(self, ciphertext):
        """The square, relinearised."""
        result = self._library.square(ciphertext, in_new_ctxt=True)
        self._library.relinearize(result)
        return result

    def add_bias(self, ciphertext, bias):
        """The sum with a plaintext."""
        return self._library.add_plain(ciphertext, bias, in_new_ctxt=True)
