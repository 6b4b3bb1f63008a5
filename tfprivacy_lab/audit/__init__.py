"""Attack a released model with the scores it gives, and say what that proves.

The package takes arrays, never models, and loads TensorFlow and scikit-learn only when an attack runs.

Not covered: an audit can show that a guarantee is broken, never that it holds. See :mod:`.attacks`.
"""

from __future__ import annotations

from tfprivacy_lab.lazy_exports import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "attacks": ("Scores", "membership_inference"),
        "bounds": (
            "PrivacyViolationWarning",
            "clopper_pearson",
            "compare_with_accounted",
            "epsilon_lower_bound",
            "largest_provable_epsilon",
        ),
        "roc": ("auc_interval", "roc_points", "tpr_at_fpr"),
    },
)
