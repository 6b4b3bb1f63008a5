"""Pyfhel, loaded so that a process that used it ends well. Whatever needs Pyfhel imports it from here.

Pyfhel's extension module and the library beside it, ``libAfhel.so``, hold a copy of SEAL each. Loaded together, both
set up *one* global memory pool, and both destroy it when the process ends: a use of freed memory, which may abort a
process that has done its work ("free(): corrupted unsorted chunks"). A library that is loaded by itself binds its SEAL
to itself; so it is loaded first.
"""

import ctypes
import importlib.util
import pathlib
import warnings

BESIDE = "libAfhel.so"
POOL = "_ZN4seal4util16global_variables18global_memory_poolE"


def _load_apart() -> None:
    """Load the library beside Pyfhel's before Pyfhel does; warn where it is too late."""
    found = importlib.util.find_spec("Pyfhel")
    for folder in found.submodule_search_locations or () if found else ():
        path = pathlib.Path(folder) / BESIDE
        if path.exists() and not ctypes.c_void_p.in_dll(ctypes.CDLL(str(path)), POOL):
            warnings.warn(
                "Pyfhel was imported before tfprivacy_lab.he.seal_library: its two copies of SEAL will destroy one "
                "memory pool when this process ends, which may abort then. Import tfprivacy_lab.he.seal_library first.",
                RuntimeWarning,
                stacklevel=3,
            )


_load_apart()

from Pyfhel import PyCtxt, Pyfhel  # noqa: E402 - after the library beside it

__all__ = ["PyCtxt", "Pyfhel"]
