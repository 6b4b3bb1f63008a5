"""Attack a released model with the scores it gives, and say what that proves.

The package takes arrays, never models, and loads TensorFlow and scikit-learn only when an attack runs.

Not covered: an audit can show that a guarantee is broken, never that it holds. See :mod:`.attacks`.
"""

from __future__ import annotations

import importlib

_HOMES = {
    "Scores": "attacks",
    "membership_inference": "attacks",
    "PrivacyViolationWarning": "bounds",
    "clopper_pearson": "bounds",
    "compare_with_accounted": "bounds",
    "epsilon_lower_bound": "bounds",
    "largest_provable_epsilon": "bounds",
    "auc_interval": "roc",
    "roc_points": "roc",
    "tpr_at_fpr": "roc",
}
_SUBMODULES = frozenset(_HOMES.values())


def __getattr__(name: str):
    if name in _SUBMODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES, *_SUBMODULES])
