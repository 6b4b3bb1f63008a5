"""SEAL's context under a network's parameters, and the layout of its ciphertexts: what both sides need."""

from __future__ import annotations

import functools
import struct

import numpy as np

from tfprivacy_lab.he.ring.network_parameters import NetworkParameters

PREFIX_BYTES = 113
"""What SEAL 4 writes before the residues of a ciphertext."""

_SIZE, _SCALE = struct.Struct("<Q"), struct.Struct("<d")
_SIZE_OFFSET, _PRIMES_OFFSET, _SCALE_OFFSET = 49, 65, 73


def seal_context(parameters: NetworkParameters):
    """Pyfhel with exactly these parameters and no key."""
    pinned = parameters
    return make_context(pinned.scheme, pinned.poly_modulus_degree, pinned.coeff_modulus, pinned.plaintext_modulus)


def make_context(scheme: str, degree: int, primes: tuple[int, ...], plaintext_modulus: int, scale: float = 2.0):
    """Pyfhel with exactly these moduli, checked afterwards: it replaces some silently.

    Raises:
        RuntimeError: if the library refuses them, which it only says, or has made others.
    """
    from tfprivacy_lab.he.ring.seal import Pyfhel

    library = Pyfhel()
    chosen = {"t": plaintext_modulus} if scheme == "bfv" else {"scale": scale}
    status = str(library.contextGen(scheme=scheme, n=degree, qi=list(primes), **chosen))
    if not status.startswith("success"):
        raise RuntimeError(f"SEAL made another context than asked for: none, but {status}.")
    made = library.n, tuple(library.qi), library.t if scheme == "bfv" else 0
    if made != (degree, primes, plaintext_modulus):
        raise RuntimeError(f"SEAL made another context than asked for: {status}, {made}.")
    return library


@functools.cache
def ciphertext_prefix(parameters: NetworkParameters, size: int = 2, level: int = 0) -> bytes:
    """What SEAL writes before the residues of ``size`` polynomials under all but the last ``level`` primes, scale 1.

    The layout is taken from a fresh ciphertext under a throw-away key of a context of its own, so that another
    version of the library is noticed.
    """
    library = seal_context(parameters)
    library.keyGen()
    encoded = (
        library.encodeInt(np.zeros(1, np.int64)) if parameters.scheme == "bfv" else library.encodeFrac(np.zeros(1))
    )
    ciphertext = library.encryptPtxt(encoded)
    for _ in range(level):
        library.mod_switch_to_next(ciphertext)
    data = ciphertext.to_bytes("none")
    primes = len(parameters.primes) - level
    count = primes * parameters.poly_modulus_degree
    prefix = bytearray(data[: -2 * count * 8])
    fields = [_SIZE.unpack_from(prefix, offset)[0] for offset in (_SIZE_OFFSET, _PRIMES_OFFSET, 8, 97, 105)]
    if len(prefix) != PREFIX_BYTES or fields != [2, primes, len(data), len(data) - 89, 2 * count]:
        raise RuntimeError(f"SEAL wrote a ciphertext of {len(data)} bytes in another layout: another version?")
    length = PREFIX_BYTES + size * count * 8
    for offset, value in ((_SIZE_OFFSET, size), (8, length), (97, length - 89), (105, size * count)):
        _SIZE.pack_into(prefix, offset, value)
    if parameters.scheme == "ckks":
        _SCALE.pack_into(prefix, _SCALE_OFFSET, 1.0)
    return bytes(prefix)
