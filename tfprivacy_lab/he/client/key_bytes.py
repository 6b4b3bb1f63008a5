"""Keys as the library makes and writes them: for the client alone, as the secret one is among them."""

from __future__ import annotations

import math

import numpy as np

from tfprivacy_lab.he.messages.header import PUBLIC_KEY_PREFIX_BYTES, SECRET_KEY_PREFIX_BYTES
from tfprivacy_lab.he.ring.parameters import Parameters
from tfprivacy_lab.he.ring.seal_context import make_context


def make_library(parameters: Parameters):
    """Pyfhel with exactly these parameters."""
    scale = math.ldexp(1.0, parameters.feature_bits)
    moduli = parameters.key_primes, parameters.plaintext_modulus
    return make_context(parameters.scheme, parameters.poly_modulus_degree, *moduli, scale)


def key_bytes(library) -> tuple[bytes, bytes]:
    """The secret and the public key as SEAL writes them, uncompressed."""
    return library.to_bytes_secret_key("none"), library.to_bytes_public_key("none")


def split_keys(body: bytes, template: tuple[bytes, bytes], parameters: Parameters) -> list[bytes]:
    """The two keys in a key file's body, their prefixes as in other keys of this library, residues below q."""
    keys = [body[: len(template[0])], body[len(template[0]) :]]
    primes = parameters.key_primes
    prefixes = SECRET_KEY_PREFIX_BYTES, PUBLIC_KEY_PREFIX_BYTES
    for key, other, prefix in zip(keys, template, prefixes, strict=True):
        if key[:prefix] != other[:prefix] or len(key) != len(other):
            raise ValueError("written by another version of the library")
        residues = np.frombuffer(key[prefix:], "<u8").reshape(-1, len(primes), parameters.poly_modulus_degree)
        if any((residues[:, k] >= prime).any() for k, prime in enumerate(primes)):
            raise ValueError("a residue is beyond coeff_modulus")
    return keys
