"""What networks' queries and replies travel in: whose they are, for which plan, in answer to what, and undamaged.

All integers little-endian, no padding, no pickle:

======  =====  =======================================================================
offset  bytes  field
======  =====  =======================================================================
0       8      magic, ``TFPLABNW``
8       2      format version, 1
10      1      kind: 1 query, 2 reply, 3 evaluation keys, 4 private key file
11      1      bytes of a residue, 4 or 8; 0 in keys
12      32     digest of the public plan (:func:`plan_digest`)
44      16     key id, random with the key pair
60      16     query id, random with the query and repeated in its reply; 0 in keys
76      8      samples; 0 in keys
84      20     five sizes of the array of residues, the first ones 1 where there are fewer; 0 in keys
104     ...    body
-32     32     SHA-256 of everything before
======  =====  =======================================================================

Guarantee: a query or reply of another plan, key or query, of another number of samples, or with a changed byte is
    refused in one line, by the objects in one process as by the bytes.

Not covered: authenticity. The digest finds damage, not forgery.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import numbers
import struct

import numpy as np

from tfprivacy_lab import files
from tfprivacy_lab.checks import InputError, check_choice, check_positive_int, check_unmasked
from tfprivacy_lab.he.messages.byte_views import byte_view

MAGIC = b"TFPLABNW"
VERSION = 1
ID_BYTES, DIGEST_BYTES = 16, 32
NO_ID = bytes(ID_BYTES)
KINDS = ("query", "reply", "evaluation keys", "private key file")
_HEADER = struct.Struct("<8sHBB32s16s16sQ5I")


def plan_digest(public) -> bytes:
    """SHA-256 of all that a public plan says: client and server of the same plan, and only they, agree on it."""
    return hashlib.sha256(json.dumps(_facts(public)).encode()).digest()


def _facts(value):
    """Names and values of an object's own fields; sums of floats differ in the last bits between processors."""
    if isinstance(value, bool | str | None):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return f"{float(value):.9g}"
    if isinstance(value, tuple | list):
        return [_facts(item) for item in value]
    derived = {name for name in dir(type(value)) if isinstance(getattr(type(value), name), functools.cached_property)}
    own = {name: _facts(item) for name, item in sorted(vars(value).items()) if name not in derived}
    return [type(value).__name__, own]


@dataclasses.dataclass(frozen=True)
class Header:
    """What is said of a body (module docstring)."""

    kind: str
    plan: bytes
    key_id: bytes
    query_id: bytes = NO_ID
    samples: int = 0
    residue_bytes: int = 0
    sizes: tuple[int, ...] = (0,) * 5

    def to_bytes(self) -> bytes:
        """The first 104 bytes."""
        kind = KINDS.index(self.kind) + 1
        ids = self.plan, self.key_id, self.query_id
        return _HEADER.pack(MAGIC, VERSION, kind, self.residue_bytes, *ids, self.samples, *self.sizes)


def pack(header: Header, body) -> bytes:
    """Header, body and digest."""
    head = header.to_bytes()
    return b"".join([head, body, digest_of(head, body)])


def digest_of(head: bytes, body) -> bytes:
    """SHA-256 over both."""
    digest = hashlib.sha256(head)
    digest.update(body)
    return digest.digest()


def parse(data, kind: str, name: str) -> tuple[Header, memoryview]:
    """A header and its body, if they are whole, undamaged and of this kind.

    Raises:
        InputError: one line with the name, what differs, and the remedy.
    """
    data = byte_view(data, name)
    if len(data) < _HEADER.size + DIGEST_BYTES or bytes(data[:8]) != MAGIC:
        raise InputError(f"Expected {name} to be {_named(kind)} of a network, got other bytes, or truncated ones.")
    _, version, number, residue_bytes, plan, key_id, query_id, samples, *sizes = _HEADER.unpack(data[: _HEADER.size])
    if version != VERSION:
        raise InputError(f"Expected {name} in format version {VERSION}, got version {version}; make it again.")
    if not 1 <= number <= len(KINDS) or KINDS[number - 1] != kind:
        found = _named(KINDS[number - 1]) if 1 <= number <= len(KINDS) else f"kind {number}"
        secret = ": keep it secret, never send it" if number == KINDS.index("private key file") + 1 else ""
        raise InputError(f"Expected {name} to be {_named(kind)}, got {found}{secret}.")
    if digest_of(data[:-DIGEST_BYTES], b"") != data[-DIGEST_BYTES:]:
        raise InputError(f"Expected {name} to match its SHA-256 digest: it is damaged; make or copy it again.")
    header = Header(kind, plan, key_id, query_id, samples, residue_bytes, tuple(sizes))
    return header, data[_HEADER.size : -DIGEST_BYTES]


@dataclasses.dataclass(frozen=True, eq=False)
class Envelope:
    """Residues of a query or reply, and what they are; made by :meth:`sealed`.

    Attributes:
        kind: "query" or "reply".
        plan: Digest of the public plan.
        key_id: Of the client's keys.
        query_id: Of the query, or of what is answered.
        samples: How many are inside.
        residues: The ciphertexts.
        digest: SHA-256 of all of it.
    """

    kind: str
    plan: bytes
    key_id: bytes
    query_id: bytes
    samples: int
    residues: np.ndarray
    digest: bytes

    @classmethod
    def sealed(cls, kind: str, plan: bytes, key_id: bytes, query_id: bytes, samples: int, residues) -> Envelope:
        """An envelope with its digest; Raises: InputError, if something is of another type."""
        check_unmasked(f"residues of {kind}", residues)
        made = cls(kind, plan, key_id, query_id, samples, np.ascontiguousarray(residues), b"")
        made.check_fields()
        return dataclasses.replace(made, digest=made._digest())

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the residues."""
        return self.residues.shape

    @property
    def nbytes(self) -> int:
        """Of the residues."""
        return self.residues.nbytes

    def to_bytes(self) -> bytes:
        """What is sent."""
        return b"".join([self._header().to_bytes(), _view(self.residues), self.digest])

    @classmethod
    def from_bytes(cls, data, kind: str = "query", name: str | None = None) -> Envelope:
        """What was sent.

        Args:
            data: Bytes-like.
            kind: "query" or "reply".
            name: What to call it in an error.

        Raises:
            InputError: naming what differs.
        """
        name = name or kind
        header, body = parse(data, kind, name)
        size = math.prod(header.sizes)
        if header.residue_bytes not in (4, 8) or size == 0 or size * header.residue_bytes != len(body):
            raise InputError(f"Expected {name} to hold as many residues as its header says; make it again.")
        residues = np.frombuffer(body, f"<u{header.residue_bytes}").reshape(header.sizes)
        digest = bytes(byte_view(data, name)[-DIGEST_BYTES:])
        return cls(kind, header.plan, header.key_id, header.query_id, header.samples, residues, digest)

    def save(self, path) -> None:
        """Write it, whole or not at all."""
        files.write_bytes(path, self.to_bytes())

    @classmethod
    def load(cls, path, kind: str = "query") -> Envelope:
        """Read it back; Raises: as :meth:`from_bytes`, naming the file."""
        return cls.from_bytes(files.read_bytes(path, kind), kind, f"{kind} {path}")

    def check_fields(self) -> None:
        """Refuse what a header has no place for.

        Raises:
            InputError: naming the field.
        """
        check_choice("kind of an envelope", self.kind, KINDS[:2])
        check_ids(self.kind, plan=self.plan, key_id=self.key_id, query_id=self.query_id)
        check_positive_int(f"samples of {self.kind}", self.samples, at_most=2**64 - 1)
        what, residues = f"residues of {self.kind}", self.residues
        check_unmasked(what, residues)
        if not isinstance(residues, np.ndarray):
            raise InputError(f"Expected {what} as an array, got {type(residues).__name__}.")
        if residues.dtype.kind != "u" or residues.dtype.itemsize not in (4, 8):
            raise InputError(f"Expected {what} of dtype uint32 or uint64, got dtype {residues.dtype}.")
        if not 1 <= residues.ndim <= 5 or residues.size == 0:
            raise InputError(f"Expected {what} of shape (blocks, ...), 1 to 5 sizes, none 0, got {residues.shape}.")

    def _header(self) -> Header:
        sizes = (1,) * (5 - self.residues.ndim) + self.residues.shape
        ids = self.plan, self.key_id, self.query_id
        return Header(self.kind, *ids, self.samples, self.residues.dtype.itemsize, sizes)

    def _digest(self) -> bytes:
        return digest_of(self._header().to_bytes(), _view(self.residues))


def opened(envelope, kind: str, plan: bytes, key_id: bytes | None = None) -> Envelope:
    """The envelope, if it is one of this kind, for this plan and key, as it was sealed.

    Raises:
        InputError: naming what differs.
    """
    if not isinstance(envelope, Envelope):
        raise InputError(f"Expected {kind} as an Envelope, got {type(envelope).__name__}; see Envelope.from_bytes.")
    envelope.check_fields()
    if envelope.kind != kind:
        raise InputError(f"Expected a {kind}, got a {envelope.kind}.")
    if envelope.plan != plan:
        raise InputError(
            f"Expected a {kind} for this plan, got one for another: a stale public plan, or another network; take the "
            "server's public plan, and encrypt again."
        )
    if key_id is not None and envelope.key_id != key_id:
        raise InputError(
            f"Expected a {kind} under key {key_id.hex()}, got one under {envelope.key_id.hex()}: another client's."
        )
    if envelope.digest != envelope._digest():
        raise InputError(f"Expected the residues of {kind} as they were sealed: they are damaged; send it again.")
    return envelope


def check_ids(what: str, plan, **ids) -> None:
    """Refuse a plan digest or ids of another type or length.

    Raises:
        InputError: naming it.
    """
    for name, value, length in [("plan", plan, DIGEST_BYTES), *((name, ids[name], ID_BYTES) for name in ids)]:
        if not isinstance(value, bytes) or len(value) != length:
            raise InputError(f"Expected {name} of {what} as {length} bytes, got {value!r:.80}.")


def _named(kind: str) -> str:
    """A kind with its article."""
    return kind if kind == "evaluation keys" else f"a {kind}"


def _view(residues: np.ndarray) -> memoryview:
    return memoryview(np.ascontiguousarray(residues).reshape(-1).view(np.uint8))
