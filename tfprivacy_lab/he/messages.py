"""The bytes that client and server exchange, and the checks they must pass before anything uses them.

All integers little-endian, no padding, no pickle. Byte by byte:

======  =====  ==========================================================================
offset  bytes  field
======  =====  ==========================================================================
0       8      magic, ``TFPLABHE``
8       2      format version, 1
10      1      kind: 1 private key, 2 query, 3 reply
11      1      scheme: 1 BFV, 2 CKKS
12      4      poly_modulus_degree N
16      4      feature_bits
20      8      coeff_modulus q
28      8      plaintext_modulus t, 0 for CKKS
36      16     key id, random with the key pair
52      16     query id, random with the query and repeated in its reply; 0 in a key
68      8      samples; 0 in a key
76      4      columns: features of a query, classes of a reply; 0 in a key
80      4      step exponent e, signed: an integer feature of 1 stands for 2**e; 0 in a key
84      8      weight scale s, float64: a reply's integers stand for 2**e / s; 0 in key and query
92      ...    body
-32     32     SHA-256 of everything before
======  =====  ==========================================================================

Body of a query or reply: uint64 residues, shape (blocks, columns, 2, N), ``blocks = ceil(samples / N)``:
one ciphertext (c0, c1) a block and column, coefficients for BFV, SEAL's number-theoretic transform for
CKKS. Body of a key file: the secret key, then the public key, as SEAL 4 writes them uncompressed.

Guarantee: ``parse`` returns only whole, undamaged bytes of the wanted kind under the pinned parameters,
and compares the announced length with the actual one before it allocates anything.

Not covered: authenticity. The digest finds damage, not forgery: anybody can compute it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import struct

import numpy as np

from tfprivacy_lab.checks import InputError
from tfprivacy_lab.he.packing import block_count
from tfprivacy_lab.he.parameters import MAX_CLASSES, MAX_FEATURES, MAX_MESSAGE_BYTES, PARAMETERS, Parameters
from tfprivacy_lab.he.quantize import MAX_RANGE_EXPONENT

MAGIC = b"TFPLABHE"
VERSION = 1
KEY, QUERY, REPLY = 1, 2, 3
ID_BYTES = 16
DIGEST_BYTES = 32
SECRET_KEY_PREFIX_BYTES = 88
PUBLIC_KEY_PREFIX_BYTES = 113
"""What SEAL 4 writes before the residues of a secret key, and of a public key or ciphertext."""

_KINDS = {KEY: "private key file", QUERY: "query", REPLY: "reply"}
_SCHEMES = {"bfv": 1, "ckks": 2}
_HEADER = struct.Struct("<8sHBBIIQQ16s16sQIid")
_NO_ID = bytes(ID_BYTES)


@dataclasses.dataclass(frozen=True)
class Header:
    """What a message says about its body (module docstring)."""

    kind: int
    parameters: Parameters
    key_id: bytes
    query_id: bytes = _NO_ID
    samples: int = 0
    columns: int = 0
    step_exponent: int = 0
    weight_scale: float = 0.0

    @property
    def body_bytes(self) -> int:
        """Length of the body, from the parameters and the shape."""
        if self.kind == KEY:
            return SECRET_KEY_PREFIX_BYTES + PUBLIC_KEY_PREFIX_BYTES + self.parameters.ciphertext_bytes * 3 // 2
        return block_count(self.samples, self.parameters) * self.columns * self.parameters.ciphertext_bytes

    @property
    def residues_shape(self) -> tuple[int, int, int, int]:
        """Shape of the body's residues: (blocks, columns, 2, N)."""
        blocks = block_count(self.samples, self.parameters)
        return blocks, self.columns, 2, self.parameters.poly_modulus_degree


def pack(header: Header, body) -> bytes:
    """One message: header, body, digest.

    Args:
        header: Kind, parameters, ids and shape.
        body: A contiguous bytes-like object or array of ``header.body_bytes`` bytes.

    Returns:
        The bytes.
    """
    pinned = header.parameters
    head = _HEADER.pack(
        MAGIC,
        VERSION,
        header.kind,
        _SCHEMES[pinned.scheme],
        pinned.poly_modulus_degree,
        pinned.feature_bits,
        pinned.modulus,
        pinned.plaintext_modulus,
        header.key_id,
        header.query_id,
        header.samples,
        header.columns,
        header.step_exponent,
        header.weight_scale,
    )
    view = memoryview(body).cast("B")
    digest = hashlib.sha256(head)
    digest.update(view)
    return b"".join([head, view, digest.digest()])


def parse(data, kind: int, name: str) -> tuple[Header, memoryview]:
    """A message's header and body, after every check that needs no ciphertext arithmetic.

    Args:
        data: Bytes-like.
        kind: ``KEY``, ``QUERY`` or ``REPLY``.
        name: What to call it in an error, such as ``"query"`` or ``"reply file r.bin"``.

    Returns:
        The header and a view of the body.

    Raises:
        InputError: one line with the name, what differs, and the remedy.
    """
    if not isinstance(data, bytes | bytearray | memoryview):
        raise InputError(f"Expected {name} as bytes, got {type(data).__name__}.")
    data = memoryview(data).cast("B")
    _check_magic_and_kind(data, kind, name)
    fields = _HEADER.unpack(data[: _HEADER.size])
    header = Header(kind, _check_parameters(fields[3:8], name), *fields[8:])
    _check_shape(header, name)
    expected = _HEADER.size + header.body_bytes + DIGEST_BYTES
    if len(data) != expected:
        raise InputError(
            f"Expected {name} to be {expected} bytes as its header says, got {len(data)}: truncated or damaged; "
            "make or copy it again."
        )
    if hashlib.sha256(data[:-DIGEST_BYTES]).digest() != data[-DIGEST_BYTES:]:
        raise InputError(f"Expected {name} to match its SHA-256 digest: it is damaged; make or copy it again.")
    return header, data[_HEADER.size : -DIGEST_BYTES]


def residues(header: Header, body, name: str) -> np.ndarray:
    """The body as residues, each below q.

    Returns:
        uint64, shape (blocks, columns, 2, N), a read-only view of the body.

    Raises:
        InputError: if a residue is not below the modulus.
    """
    array = np.frombuffer(body, dtype="<u8").reshape(header.residues_shape)
    if int(array.max()) >= header.parameters.modulus:
        raise InputError(f"Expected the residues of {name} below coeff_modulus={header.parameters.modulus}, got more.")
    return array


def check_size(samples: int, columns: int, parameters: Parameters, what: str) -> None:
    """Refuse a query or reply whose body would pass ``MAX_MESSAGE_BYTES``, with the batch that fits."""
    per_block = columns * parameters.ciphertext_bytes
    blocks = MAX_MESSAGE_BYTES // per_block
    if block_count(samples, parameters) > blocks:
        raise InputError(
            f"Expected {what} of at most {blocks * parameters.samples_per_block} samples for {columns} columns, "
            f"got {samples}; encrypt in several queries."
        )


def _check_magic_and_kind(data: memoryview, kind: int, name: str) -> None:
    """The twelve first bytes, and that there are enough for a header."""
    wanted = _KINDS[kind]
    if bytes(data[: len(MAGIC)]) != MAGIC[: len(data)] or len(data) == 0:
        raise InputError(f"Expected {name} to be a {wanted} of this package, got other bytes (no {MAGIC.decode()}).")
    if len(data) < _HEADER.size + DIGEST_BYTES:
        raise InputError(f"Expected {name} to hold a header, got {len(data)} bytes: truncated; make or copy it again.")
    version, got = struct.unpack_from("<HB", data, len(MAGIC))
    if version != VERSION:
        raise InputError(f"Expected {name} in format version {VERSION}, got version {version}; make it again.")
    if got == KEY and kind != KEY:
        raise InputError(
            f"Expected {name} to be a {wanted}, got a private key file: keep it secret, never send it; "
            f"give the file that {'encrypt' if kind == QUERY else 'evaluate'} wrote."
        )
    if got != kind:
        raise InputError(f"Expected {name} to be a {wanted}, got a {_KINDS.get(got, f'message of kind {got}')}.")


def _check_parameters(fields, name: str) -> Parameters:
    """The pinned set that the header names, if it is exactly that."""
    code, degree, feature_bits, modulus, plaintext_modulus = fields
    scheme = next((scheme for scheme, number in _SCHEMES.items() if number == code), None)
    if scheme is None:
        raise InputError(f"Expected {name} to use bfv or ckks, got scheme number {code}.")
    pinned = PARAMETERS[scheme]
    wanted = (pinned.poly_modulus_degree, pinned.feature_bits, pinned.modulus, pinned.plaintext_modulus)
    names = ("poly_modulus_degree", "feature_bits", "coeff_modulus", "plaintext_modulus")
    for field, want, got in zip(names, wanted, (degree, feature_bits, modulus, plaintext_modulus), strict=True):
        if want != got:
            raise InputError(
                f"Expected {name} under the pinned {scheme} parameter {field}={want}, got {got}; "
                "make keys and query with this version."
            )
    return pinned


def _check_shape(header: Header, name: str) -> None:
    """Caps on what the header announces, and zeros where a kind has no such field."""
    if header.kind == KEY:
        if header != Header(KEY, header.parameters, header.key_id):
            raise InputError(f"Expected {name} to have no query fields in its header: it is damaged; make it again.")
        return
    limit = MAX_FEATURES if header.kind == QUERY else MAX_CLASSES
    if not 1 <= header.columns <= limit:
        raise InputError(f"Expected {name} to have 1 to {limit} columns, got {header.columns}.")
    if header.samples < 1:
        raise InputError(f"Expected {name} to hold at least one sample, got samples={header.samples}.")
    check_size(header.samples, header.columns, header.parameters, name)
    if abs(header.step_exponent + header.parameters.feature_bits) > MAX_RANGE_EXPONENT:
        raise InputError(f"Expected {name} to have a step within float64, got step exponent {header.step_exponent}.")
    scale = header.weight_scale
    if scale != 0 if header.kind == QUERY else not 0 < scale < math.inf:
        raise InputError(f"Expected {name} to have a weight scale that fits its kind, got {scale}.")
