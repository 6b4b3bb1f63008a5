"""Pyfhel, loaded so that a process that used it ends well. Whatever needs Pyfhel imports it from here.

As Pyfhel happens to be linked, each of its extension modules may hold a copy of SEAL, beside that of ``libAfhel.so``,
the library that they need. Where such a module loads that library, the library's memory pool is bound to the module's:
both set up that *one* pool, and both destroy it when the process ends. That is a use of freed memory, which may abort a
process that has done its work ("free(): corrupted unsorted chunks"). A library that is loaded first has a pool of its
own.
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
        if path.exists() and _sets_up_no_pool(ctypes.CDLL(str(path))):
            warnings.warn(
                "Pyfhel was imported before tfprivacy_lab.he.ring.seal: two of its copies of SEAL will destroy one "
                "memory pool when this process ends, which may abort then. Import tfprivacy_lab.he.ring.seal first.",
                RuntimeWarning,
                stacklevel=3,
            )


def _sets_up_no_pool(library: ctypes.CDLL) -> bool:
    """Whether a library's own pool is left empty, as another's was bound in its place."""
    try:
        return not ctypes.c_void_p.in_dll(library, POOL)
    except ValueError:  # Another SEAL, with no pool of this name.
        return False


_load_apart()

from Pyfhel import PyCtxt, Pyfhel  # noqa: E402 - after the library beside it

__all__ = ["PyCtxt", "Pyfhel"]
