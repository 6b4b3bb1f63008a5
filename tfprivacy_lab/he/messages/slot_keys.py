"""The keys that a server needs for one image: bytes, whose they are, and which rotations they are for."""

from __future__ import annotations

import dataclasses
import struct

from tfprivacy_lab import files
from tfprivacy_lab.checks import InputError, check_positive_int
from tfprivacy_lab.he.messages import envelopes
from tfprivacy_lab.he.messages.byte_views import byte_view

_NUMBER = struct.Struct("<Q")


@dataclasses.dataclass(frozen=True)
class EvaluationKeys:
    """Public keys of a client: they let anyone compute on its ciphertexts, and nobody decrypt.

    Attributes:
        steps: The rotations there is a key for.
        rotation: SEAL's Galois keys, uncompressed.
        relinearisation: SEAL's relinearisation keys, uncompressed.
        plan: Digest of the public plan that they are for.
        key_id: Of the client's key pair.
        digest: SHA-256 of all of it.
    """

    steps: tuple[int, ...]
    rotation: bytes
    relinearisation: bytes
    plan: bytes
    key_id: bytes
    digest: bytes = b""

    @property
    def bytes(self) -> int:
        """Length of both."""
        return len(self.rotation) + len(self.relinearisation)

    def sealed(self) -> EvaluationKeys:
        """The same with its digest; Raises: InputError, if a field is of another type."""
        self._check_fields()
        return dataclasses.replace(self, digest=envelopes.digest_of(*self._parts()))

    def check(self, plan) -> None:
        """Refuse keys for another plan, and keys that are not as they were sealed.

        Raises:
            InputError: naming what differs.
        """
        self._check_fields()
        if self.plan != plan:
            raise InputError(
                "Expected evaluation keys for this plan, got another's: a stale public plan, or another network; make "
                "keys for the server's public plan."
            )
        if self.digest != envelopes.digest_of(*self._parts()):
            raise InputError("Expected evaluation keys as they were sealed: they are damaged; send them again.")

    def to_bytes(self) -> bytes:
        """What is sent, once a client."""
        return b"".join([*self._parts(), self.digest])

    @classmethod
    def from_bytes(cls, data, name: str = "evaluation keys") -> EvaluationKeys:
        """What was sent.

        Raises:
            InputError: naming what differs.
        """
        header, body = envelopes.parse(data, "evaluation keys", name)
        numbers, count, place = [], _number(body, 0, name), 8
        if count > len(body) // 8:
            raise InputError(f"Expected {name} to hold as many steps as it says, got {count}; make them again.")
        for _ in range(count):
            numbers.append(_number(body, place, name))
            place += 8
        split = _number(body, place, name)
        rest = bytes(body[place + 8 :])
        if split > len(rest):
            raise InputError(f"Expected {name} to hold rotation keys of {split} bytes, got {len(rest)}.")
        digest = bytes(byte_view(data, name)[-envelopes.DIGEST_BYTES :])
        return cls(tuple(numbers), rest[:split], rest[split:], header.plan, header.key_id, digest)

    def save(self, path) -> None:
        """Write them, whole or not at all."""
        files.write_bytes(path, self.to_bytes())

    @classmethod
    def load(cls, path) -> EvaluationKeys:
        """Read them back; Raises: as :meth:`from_bytes`, naming the file."""
        return cls.from_bytes(files.read_bytes(path, "evaluation keys"), f"evaluation keys {path}")

    def _check_fields(self) -> None:
        if not isinstance(self.steps, tuple):
            raise InputError(f"Expected steps of evaluation keys as a tuple, got {type(self.steps).__name__}.")
        for step in self.steps:
            check_positive_int("steps of evaluation keys", step, at_least=0, at_most=2**63)
        for name in ("rotation", "relinearisation"):
            if not isinstance(getattr(self, name), bytes):
                found = type(getattr(self, name)).__name__
                raise InputError(f"Expected {name} keys as bytes, got {found}; make evaluation keys again.")
        envelopes.check_ids("evaluation keys", plan=self.plan, key_id=self.key_id)

    def _parts(self):
        head = envelopes.Header("evaluation keys", self.plan, self.key_id).to_bytes()
        numbers = len(self.steps), *self.steps, len(self.rotation)
        return head, b"".join([*map(_NUMBER.pack, numbers), self.rotation, self.relinearisation])


def checked_keys(keys) -> EvaluationKeys:
    """The keys, if they are evaluation keys with fields of the right types.

    Raises:
        InputError: with what they are.
    """
    if not isinstance(keys, EvaluationKeys):
        raise InputError(
            f"Expected evaluation keys as EvaluationKeys, got {type(keys).__name__}; see EvaluationKeys.from_bytes."
        )
    keys._check_fields()
    return keys


def _number(body, place: int, name: str) -> int:
    if len(body) < place + 8:
        raise InputError(f"Expected {name} to be whole, got {len(body)} bytes; make them again.")
    return _NUMBER.unpack_from(body, place)[0]
