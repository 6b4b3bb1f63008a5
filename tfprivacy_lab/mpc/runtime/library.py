"""The engine's Python package, or one line that says how to get it."""

from __future__ import annotations

from tfprivacy_lab.checks import MissingPackageError

try:
    import spu
    from spu import api, libspu
except ImportError as error:
    raise MissingPackageError(
        "spu",
        f"Computing on shares needs the engine SPU, which is not installed ({error}): it has wheels for Python 3.11, "
        "where `make setup` installs it.",
    ) from error

__all__ = ["api", "libspu", "spu"]
