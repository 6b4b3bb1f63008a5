"""What a message of a head says about its body; :mod:`.wire` has the format."""

from __future__ import annotations

import dataclasses
import math
import struct

from tfprivacy_lab.he.packing.batched import block_count
from tfprivacy_lab.he.ring.parameters import (
    Parameters,
)

MAGIC = b"TFPLABHE"
VERSION = 3
KEY, QUERY, REPLY = 1, 2, 3
ID_BYTES = 16
DIGEST_BYTES = 32
SECRET_KEY_PREFIX_BYTES = 88
PUBLIC_KEY_PREFIX_BYTES = 113
"""What SEAL 4 writes before the residues of a secret key, and of a public key or ciphertext."""

KINDS = {KEY: "private key file", QUERY: "query", REPLY: "reply"}
SETS = {"bfv": 1, "ckks": 2, "bfv-sanitized": 3, "ckks-sanitized": 4}
HEADER = struct.Struct("<8sHBBIIQQ16s16sQIidBBHI")
HEADER_BYTES = HEADER.size
STEP_BYTES = 2
NO_ID = bytes(ID_BYTES)


@dataclasses.dataclass(frozen=True)
class Header:
    """What a message says about its body."""

    kind: int
    parameters: Parameters
    key_id: bytes
    query_id: bytes = NO_ID
    samples: int = 0
    columns: int = 0
    step_exponent: int = 0
    weight_scale: float = 0.0
    packing: str = "batched"
    features: int = 0
    residue_bits: int = 64
    column_steps: tuple[int, ...] = ()

    @property
    def body_bytes(self) -> int:
        """Length of the body, from the parameters and the shape."""
        return self.expanded_bytes if self.kind == KEY else self.expanded_bytes // 64 * self.residue_bits

    @property
    def expanded_bytes(self) -> int:
        """Length of the body in residues of 64 bits: what it takes in memory."""
        if self.kind == KEY:
            residues = 3 * len(self.parameters.key_primes) * self.parameters.poly_modulus_degree
            return SECRET_KEY_PREFIX_BYTES + PUBLIC_KEY_PREFIX_BYTES + 8 * residues
        keys = 1 if self.kind == QUERY and self.parameters.sanitizes else 0
        return (math.prod(self.ciphertexts) + keys) * self.parameters.ciphertext_bytes

    @property
    def message_bytes(self) -> int:
        """Length of the whole message."""
        return HEADER_BYTES + self.body_bytes + STEP_BYTES * len(self.column_steps) + DIGEST_BYTES

    @property
    def ciphertexts(self) -> tuple[int, int]:
        """How many: (blocks, columns) if batched; else (samples, 1) in a query, (samples, products) in a reply."""
        if self.packing == "batched":
            return block_count(self.samples, self.parameters), self.columns
        products = 1 if self.kind == QUERY else self.parameters.products(self.features, self.columns)
        return self.samples, products

    @property
    def ciphertext_shape(self) -> tuple[int, int, int]:
        """Shape of a ciphertext's residues: (2, primes of q, N)."""
        return 2, len(self.parameters.coeff_modulus), self.parameters.poly_modulus_degree
