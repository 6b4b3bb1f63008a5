"""BFV's scaled square, by SEAL, in worker processes that hold a context and no key at all.

Pyfhel holds the interpreter's lock, so that only processes run beside each other. They are spawned, not forked: a
worker shares no memory with whoever started it, and gets residues only. Nor does it run the caller's script again, as
Python's own spawned processes do to find functions there: ours are in this module, and a script needs no guard.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import multiprocessing.context
import sys
import threading
import types

import numpy as np

from tfprivacy_lab.he.messages.residues import refusing_transparent
from tfprivacy_lab.he.ring.network_parameters import NetworkParameters
from tfprivacy_lab.he.ring.seal_context import ciphertext_prefix, seal_context

_parameters: NetworkParameters | None = None


_starting = threading.Lock()


class _Process(multiprocessing.context.SpawnProcess):
    """A spawned process that does not import what its parent runs as ``__main__``."""

    @staticmethod
    def _Popen(process):  # noqa: N802 - the name is Python's
        with _no_main():
            return multiprocessing.context.SpawnProcess._Popen(process)


class _Context(multiprocessing.context.SpawnContext):
    Process = _Process


@contextlib.contextmanager
def _no_main():
    """What a spawned process is told to import is read from ``__main__``: for so long, an empty module."""
    with _starting:
        main = sys.modules["__main__"]
        sys.modules["__main__"] = types.ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = main


def pool(parameters: NetworkParameters, processes: int) -> concurrent.futures.ProcessPoolExecutor:
    """Worker processes for :func:`square_ciphertexts` under these parameters."""
    return concurrent.futures.ProcessPoolExecutor(
        processes, _Context(), initializer=_initialise, initargs=(parameters,)
    )


def _initialise(parameters: NetworkParameters) -> None:
    global _parameters
    _parameters = parameters


_library = functools.cache(seal_context)


def square_ciphertexts(residues: np.ndarray) -> np.ndarray:
    """Squares, not relinearised: (n, 2, primes, N) to (n, 3, primes, N), uint64. Runs in a worker.

    Raises:
        InputError: if SEAL refuses a ciphertext that hides nothing.
    """
    from tfprivacy_lab.he.ring.seal import PyCtxt

    parameters = _parameters
    library, count = _library(parameters), len(parameters.primes) * parameters.poly_modulus_degree
    prefix = ciphertext_prefix(parameters)
    result = np.empty((len(residues), 3, *residues.shape[2:]), "<u8")
    for source, target in zip(residues, result, strict=True):
        data = prefix + np.ascontiguousarray(source, "<u8").tobytes()
        ciphertext = PyCtxt(pyfhel=library, bytestring=data, scheme="bfv")
        with refusing_transparent("query"):
            library.square(ciphertext, in_new_ctxt=False)
        data = ciphertext.to_bytes("none")
        target[:] = np.frombuffer(data[-3 * 8 * count :], "<u8").reshape(target.shape)
    if not (library.is_secret_key_empty() and library.is_relin_key_empty()):
        raise RuntimeError("SEAL made a key in a process that must hold none")
    return result
