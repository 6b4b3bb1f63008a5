"""Evaluation keys as bytes, checked before the library sees them: SEAL 4.1 trusts what it loads.

SEAL writes a table of key-switching keys as a prefix of 48 bytes, the number of entries, and for each entry the number
of its parts and the parts, each a prefix of 113 bytes and residues. All but the residues is the same for every key of
the same parameters and steps, so it is compared with keys of a throw-away secret in a context of their own.
"""

from __future__ import annotations

import functools
import struct

import numpy as np

from tfprivacy_lab.he.messages.slot_keys import EvaluationKeys
from tfprivacy_lab.he.ring.network_parameters import NetworkParameters
from tfprivacy_lab.he.ring.seal_context import PREFIX_BYTES, seal_context

_TABLE_PREFIX_BYTES, _COUNT = 48, struct.Struct("<Q")


def check_evaluation_keys(keys: EvaluationKeys, parameters: NetworkParameters, steps: tuple, squares: bool) -> None:
    """Refuse bytes that are not keys of these parameters for exactly these steps.

    Raises:
        ValueError: saying which key, and what differs.
    """
    rotation, relinearisation = _templates(parameters, tuple(sorted(steps)), squares)
    _check("rotation", keys.rotation, rotation, parameters)
    if squares:
        _check("relinearisation", keys.relinearisation, relinearisation, parameters)


def _check(name: str, data, template: bytes, parameters: NetworkParameters) -> None:
    """One kind of key against its template."""
    if not isinstance(data, bytes) or len(data) != len(template):
        raise ValueError(f"the {name} keys are not {len(template)} bytes")
    primes, start = np.array(parameters.coeff_modulus, np.uint64)[:, np.newaxis], 0
    for first, last in _spans(template, parameters):
        if data[start:first] != template[start:first]:
            raise ValueError(f"the {name} keys are of another layout or other steps")
        residues = np.frombuffer(data[first:last], "<u8").reshape(2, len(primes), -1)
        if (residues >= primes).any():
            raise ValueError(f"a residue of the {name} keys is not below its prime")
        start = last
    if data[start:] != template[start:]:
        raise ValueError(f"the {name} keys are of another layout or other steps")


def _spans(template: bytes, parameters: NetworkParameters) -> list[tuple[int, int]]:
    """Where residues lie, by the counts in the template."""
    if not template:
        return []
    size = 2 * len(parameters.coeff_modulus) * parameters.poly_modulus_degree * 8
    place, spans = _TABLE_PREFIX_BYTES + _COUNT.size, []
    for _ in range(_COUNT.unpack_from(template, _TABLE_PREFIX_BYTES)[0]):
        (parts,) = _COUNT.unpack_from(template, place)
        place += _COUNT.size
        for _ in range(parts):
            spans.append((place + PREFIX_BYTES, place + PREFIX_BYTES + size))
            place = spans[-1][1]
    if place != len(template):
        raise RuntimeError("SEAL wrote evaluation keys in another layout: another version?")
    return spans


@functools.lru_cache(maxsize=4)
def _templates(parameters: NetworkParameters, steps: tuple, squares: bool) -> tuple[bytes, bytes]:
    """Keys of a throw-away secret."""
    library, rotation, relinearisation = seal_context(parameters), b"", b""
    library.keyGen()
    if steps:
        library.rotateKeyGen(rot_steps=list(steps))
        rotation = library.to_bytes_rotate_key("none")
    if squares:
        library.relinKeyGen()
        relinearisation = library.to_bytes_relin_key("none")
    return rotation, relinearisation
