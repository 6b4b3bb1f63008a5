"""The bytes that client and server exchange, and the checks they must pass before anything uses them.

All integers little-endian, no padding, no pickle. Byte by byte:

======  =====  ==========================================================================
offset  bytes  field
======  =====  ==========================================================================
0       8      magic, ``TFPLABHE``
8       2      format version, 3
10      1      kind: 1 private key, 2 query, 3 reply
11      1      parameter set: 1 bfv, 2 ckks, 3 bfv-sanitized, 4 ckks-sanitized
12      4      poly_modulus_degree N
16      4      feature_bits
20      8      first prime of coeff_modulus q
28      8      plaintext_modulus t, 0 for CKKS
36      16     key id, random with the key pair
52      16     query id, random with the query and repeated in its reply; 0 in a key
68      8      samples; 0 in a key
76      4      columns: features of a query, classes of a reply; 0 in a key
80      4      step exponent e, signed: an integer feature of 1 stands for 2**e; 0 in a key
84      8      weight scale s, float64: a reply's integers stand for 2**e / s; 0 in key and query
92      1      packing: 0 batched, 1 coefficient; 0 in a key
93      1      1 if a query names a step for every column; 0 otherwise
94      2      bits of a residue in the body: 64, or, compressed, those of q's largest prime; 64 in a key
96      4      features of the query that a reply answers; 0 in key and query
100     ...    body
-32     32     SHA-256 of everything before
======  =====  ==========================================================================

Body of a query or reply: ciphertexts (c0, c1) of residues of 64 bits, or fewer in the order of
:mod:`~tfprivacy_lab.he.messages.compression`, shape (..., 2, primes of q, N). Batched: one a
block of N samples and column, ``ceil(samples / N)`` blocks; coefficients for BFV, SEAL's number-theoretic transform
for CKKS. Coefficient packing: one a sample in a query, one a sample and product in a reply, both transformed. A query
under a sanitising set ends with the client's public key (b, a), transformed, shape (2, primes of q, N).
A query with a step for every column has, between body and digest, int16 k a column: an integer feature of column i
stands for 2**(e + k_i), the largest k being 0.
Body of a key file: the secret key, then the public key, as SEAL 4 writes them uncompressed.

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
from tfprivacy_lab.he.messages.byte_views import byte_view
from tfprivacy_lab.he.messages.compression import compressed, expanded
from tfprivacy_lab.he.messages.header import (
    DIGEST_BYTES,
    HEADER,
    HEADER_BYTES,
    KEY,
    KINDS,
    MAGIC,
    QUERY,
    SETS,
    VERSION,
    Header,
)
from tfprivacy_lab.he.messages.header import (
    REPLY as REPLY,
)
from tfprivacy_lab.he.quantization.steps import MAX_RANGE_EXPONENT
from tfprivacy_lab.he.ring.parameters import (
    MAX_CLASSES,
    MAX_FEATURES,
    MAX_MESSAGE_BYTES,
    PACKINGS,
    PARAMETERS,
    Parameters,
)


def pack(header: Header, body) -> bytes:
    """One message: header, body, digest.

    Args, Returns: as :func:`pack_pieces`, of one piece.
    """
    return pack_pieces(header, [body])


def pack_pieces(header: Header, pieces) -> bytes:
    """One message of a body that comes in pieces, each of whole polynomials; no two of them are held at a time.

    Args:
        header: Kind, parameters, ids and shape.
        pieces: Contiguous bytes-like objects or arrays, ``header.expanded_bytes`` bytes together.

    Returns:
        The bytes.
    """
    pinned, message = header.parameters, bytearray(header.message_bytes)
    message[:HEADER_BYTES] = HEADER.pack(
        MAGIC,
        VERSION,
        header.kind,
        SETS[pinned.name],
        pinned.poly_modulus_degree,
        pinned.feature_bits,
        pinned.coeff_modulus[0],
        pinned.plaintext_modulus,
        header.key_id,
        header.query_id,
        header.samples,
        header.columns,
        header.step_exponent,
        header.weight_scale,
        PACKINGS.index(header.packing),
        bool(header.column_steps),
        header.residue_bits,
        header.features,
    )
    end = HEADER_BYTES
    for piece in pieces:
        if header.residue_bits != 64:
            piece = compressed(np.frombuffer(piece, "<u8"), header.residue_bits)
        view = memoryview(piece).cast("B")
        message[end : end + len(view)] = view
        end += len(view)
        del piece, view
    if end != HEADER_BYTES + header.body_bytes:
        raise ValueError(f"Expected a body of {header.body_bytes} bytes, got {end - HEADER_BYTES}.")
    message[end:-DIGEST_BYTES] = np.array(header.column_steps, "<i2").tobytes()
    message[-DIGEST_BYTES:] = hashlib.sha256(memoryview(message)[:-DIGEST_BYTES]).digest()
    return bytes(message)


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
    header = parse_header(data, kind, name)
    data = byte_view(data, name)
    check_length(header, len(data), name)
    if hashlib.sha256(data[:-DIGEST_BYTES]).digest() != data[-DIGEST_BYTES:]:
        raise InputError(f"Expected {name} to match its SHA-256 digest: it is damaged; make or copy it again.")
    return with_column_steps(header, data, name), data[HEADER_BYTES : HEADER_BYTES + header.body_bytes]


def parse_header(data, kind: int, name: str) -> Header:
    """What a message says of itself in its first ``HEADER_BYTES`` bytes; nothing tells yet that it is undamaged.

    Steps of columns are 0 until :func:`with_column_steps` has read them.

    Args, Raises: as :func:`parse`.
    """
    data = byte_view(data, name)
    _check_magic_and_kind(data, kind, name)
    fields = HEADER.unpack(data[:HEADER_BYTES])
    packing, stepped, residue_bits, features = fields[14:]
    if packing >= len(PACKINGS):
        raise InputError(f"Expected {name} to be batched (0) or of coefficients (1), got packing {packing}.")
    if stepped > (kind == QUERY):
        raise InputError(f"Expected {name} to have one step, or a query one for every column, got flag {stepped}.")
    parameters = _check_parameters(fields[3:8], name)
    header = Header(kind, parameters, *fields[8:14], PACKINGS[packing], features, residue_bits)
    _check_shape(header, name)
    return dataclasses.replace(header, column_steps=(0,) * header.columns) if stepped else header


def check_length(header: Header, length: int, name: str) -> None:
    """Refuse a message of another length than its header says."""
    if length != header.message_bytes:
        raise InputError(
            f"Expected {name} to be {header.message_bytes} bytes as its header says, got {length}: truncated or "
            "damaged; make or copy it again."
        )


def with_column_steps(header: Header, data, name: str) -> Header:
    """The header with the exponents that a whole message names, one for every column, if it does.

    Raises:
        InputError: if the largest is not 0, all are, or one is beyond float64.
    """
    if not header.column_steps:
        return header
    steps = tuple(np.frombuffer(data, "<i2", header.columns, HEADER_BYTES + header.body_bytes).tolist())
    lowest = header.step_exponent + header.parameters.feature_bits + min(steps)
    if max(steps) != 0 or min(steps) == 0 or lowest < -MAX_RANGE_EXPONENT:
        raise InputError(
            f"Expected {name} to have steps within float64, the coarsest its own, got exponents {min(steps)} to "
            f"{max(steps)} beside {header.step_exponent}."
        )
    return dataclasses.replace(header, column_steps=steps)


def residues(header: Header, body, name: str) -> tuple[np.ndarray, np.ndarray | None]:
    """The body as residues, each below its prime.

    Returns:
        uint64, a read-only view of a body that is not compressed, shape (*header.ciphertexts, 2, primes, N); and the
        public key that a query under a sanitising set ends with, (2, primes, N), or None.

    Raises:
        InputError: if a residue is not below its prime.
    """
    array = np.frombuffer(body, "<u8") if header.residue_bits == 64 else expanded(body, header.residue_bits)
    array = array.reshape(-1, *header.ciphertext_shape)
    for k, prime in enumerate(header.parameters.coeff_modulus):
        if int(array[:, :, k].max()) >= prime:
            raise InputError(f"Expected the residues of {name} below the coeff_modulus {prime}, got more.")
    count = math.prod(header.ciphertexts)
    ciphertexts = array[:count].reshape(*header.ciphertexts, *header.ciphertext_shape)
    return ciphertexts, array[count] if len(array) > count else None


def check_size(header: Header, what: str) -> None:
    """Refuse a query or reply whose body would pass ``MAX_MESSAGE_BYTES``, with the batch that fits."""
    if header.expanded_bytes <= MAX_MESSAGE_BYTES:
        return
    step = header.parameters.samples_per_block if header.packing == "batched" else 1
    one = dataclasses.replace(header, samples=1).expanded_bytes
    raise InputError(
        f"Expected {what} of at most {MAX_MESSAGE_BYTES // one * step} samples for {header.columns} columns, "
        f"got {header.samples}; encrypt in several queries."
    )


def _check_magic_and_kind(data: memoryview, kind: int, name: str) -> None:
    """The twelve first bytes, and that there are enough for a header."""
    wanted = KINDS[kind]
    if bytes(data[: len(MAGIC)]) != MAGIC[: len(data)] or len(data) == 0:
        raise InputError(f"Expected {name} to be a {wanted} of this package, got other bytes (no {MAGIC.decode()}).")
    if len(data) < HEADER_BYTES:
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
        raise InputError(f"Expected {name} to be a {wanted}, got a {KINDS.get(got, f'message of kind {got}')}.")


def _check_parameters(fields, name: str) -> Parameters:
    """The pinned set that the header names, if it is exactly that."""
    code, degree, feature_bits, modulus, plaintext_modulus = fields
    scheme = next((scheme for scheme, number in SETS.items() if number == code), None)
    if scheme is None:
        raise InputError(f"Expected {name} to use {', '.join(SETS)}, got scheme number {code}.")
    pinned = PARAMETERS[scheme]
    wanted = (pinned.poly_modulus_degree, pinned.feature_bits, pinned.coeff_modulus[0], pinned.plaintext_modulus)
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
    if header.residue_bits not in (64, header.parameters.residue_bits):
        raise InputError(
            f"Expected {name} to have residues of 64 bits, or of {header.parameters.residue_bits} if compressed, got "
            f"{header.residue_bits}."
        )
    if header.packing not in header.parameters.packings:
        raise InputError(f"Expected {name} under {header.parameters.name} to have coefficient packing, got batched.")
    if not (header.features == 0 if header.kind == QUERY else 1 <= header.features <= MAX_FEATURES):
        raise InputError(f"Expected {name} to name the features that fit its kind, got {header.features}.")
    limit = MAX_FEATURES if header.kind == QUERY else MAX_CLASSES
    if not 1 <= header.columns <= limit:
        raise InputError(f"Expected {name} to have 1 to {limit} columns, got {header.columns}.")
    if header.samples < 1:
        raise InputError(f"Expected {name} to hold at least one sample, got samples={header.samples}.")
    check_size(header, name)
    if abs(header.step_exponent + header.parameters.feature_bits) > MAX_RANGE_EXPONENT:
        raise InputError(f"Expected {name} to have a step within float64, got step exponent {header.step_exponent}.")
    scale = header.weight_scale
    if scale != 0 if header.kind == QUERY else not 0 < scale < math.inf:
        raise InputError(f"Expected {name} to have a weight scale that fits its kind, got {scale}.")
