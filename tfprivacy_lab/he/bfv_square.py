"""BFV's scaled square, by SEAL, in worker processes that hold a context and no key at all.

Pyfhel holds the interpreter's lock, so that only processes run beside each other. They are spawned, not forked: a
worker shares no memory with whoever started it, and gets residues only.
"""

from __future__ import annotations

import concurrent.futures
import functools
import multiprocessing

import numpy as np

from tfprivacy_lab.he.network_parameters import NetworkParameters
from tfprivacy_lab.he.seal_context import ciphertext_prefix, seal_context

_parameters: NetworkParameters | None = None


def pool(parameters: NetworkParameters, processes: int) -> concurrent.futures.ProcessPoolExecutor:
    """Worker processes for :func:`square_ciphertexts` under these parameters."""
    return concurrent.futures.ProcessPoolExecutor(
        processes, multiprocessing.get_context("spawn"), initializer=_initialise, initargs=(parameters,)
    )


def _initialise(parameters: NetworkParameters) -> None:
    global _parameters
    _parameters = parameters


_library = functools.cache(seal_context)


def square_ciphertexts(residues: np.ndarray) -> np.ndarray:
    """Squares, not relinearised: (n, 2, primes, N) to (n, 3, primes, N), uint64. Runs in a worker."""
    from Pyfhel import PyCtxt

    parameters = _parameters
    library, count = _library(parameters), len(parameters.primes) * parameters.poly_modulus_degree
    prefix = ciphertext_prefix(parameters)
    result = np.empty((len(residues), 3, *residues.shape[2:]), "<u8")
    for source, target in zip(residues, result, strict=True):
        data = prefix + np.ascontiguousarray(source, "<u8").tobytes()
        ciphertext = PyCtxt(pyfhel=library, bytestring=data, scheme="bfv")
        library.square(ciphertext, in_new_ctxt=False)
        data = ciphertext.to_bytes("none")
        target[:] = np.frombuffer(data[-3 * 8 * count :], "<u8").reshape(target.shape)
    if not (library.is_secret_key_empty() and library.is_relin_key_empty()):
        raise RuntimeError("SEAL made a key in a process that must hold none")
    return result
