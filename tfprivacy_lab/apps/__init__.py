"""Medicine, finance and education: a question each, on real data, answered with what the lab has.

Adapters and questions, no algorithms: every method comes from ``dp``, ``he``, ``mpc`` and ``audit``. Modules load on
first use.
"""

from __future__ import annotations

import importlib

APPS = ("medical", "finance", "education")
_SUBMODULES = frozenset([*APPS, "audits", "cases", "heads", "sharing", "tables"])


def __getattr__(name: str):
    if name in _SUBMODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_SUBMODULES])
