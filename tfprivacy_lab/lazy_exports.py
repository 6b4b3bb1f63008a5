"""A package's public names, each loaded from its module when it is first asked for.

A package of the lab imports nothing by itself, so that whoever wants its accountant does not wait for TensorFlow.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import sys
import warnings
from collections.abc import Callable, Collection, Mapping


def lazy_exports(
    package: str, homes: Mapping[str, Collection[str]], moved: Mapping[str, str] | None = None
) -> tuple[Callable[[str], object], Callable[[], list[str]], list[str]]:
    """What a package's ``__getattr__``, ``__dir__`` and ``__all__`` are.

    Args:
        package: The package's ``__name__``.
        homes: The public names by the module, relative to the package, that defines them.
        moved: Old names and what they are now, relative to the package: a module, or ``module:name``. They work for one
            version more, with a ``DeprecationWarning``.

    Modules of the package are found without being listed.
    """
    home_of = {name: home for home, names in homes.items() for name in names}
    moved = dict(moved or {})

    def load(name: str) -> object:
        if name in home_of:
            return getattr(importlib.import_module(f"{package}.{home_of[name]}"), name)
        if name in moved:
            home, _, new = f"{package}.{moved[name]}".partition(":")
            told = ".".join(filter(None, (home, new)))
            warnings.warn(
                f"{package}.{name} is now {told}; the old name goes after this version", DeprecationWarning, 2
            )
            found = importlib.import_module(home)
            return getattr(found, new) if new else found
        if name.isidentifier() and not name.startswith("_") and importlib.util.find_spec(f"{package}.{name}"):
            return importlib.import_module(f"{package}.{name}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    def listed() -> list[str]:
        modules = {module.name for module in pkgutil.iter_modules(sys.modules[package].__path__)}
        return sorted({*vars(sys.modules[package]), *home_of, *(name for name in modules if name[0] != "_")})

    return load, listed, sorted(home_of)
