"""What a release costs: (ε, δ) of mechanisms, of their composition, for groups, and what it means.

No TensorFlow is loaded here.
"""

from __future__ import annotations

from tfprivacy_lab.lazy_exports import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "composition": ("compose", "compose_parallel", "epsilon_shuffled"),
        "budget": ("calibrate_noise_multiplier", "steps_within"),
        "comparison": ("tensorflow_privacy_figures",),
        "group": ("group_epsilon", "group_epsilon_gaussian", "group_epsilon_sampled"),
        "tradeoff": ("largest_belief", "largest_tpr", "probability_beyond"),
        "selection": ("Repetitions", "epsilon_tuned", "pure_epsilon_tuned"),
        "privacy_loss.analytic_gaussian": ("gaussian_epsilon",),
        "gaussian": (
            "ADJACENCY",
            "DpSgdRun",
            "SAMPLING",
            "SMALLEST_NOISE",
            "account",
            "accountant_name",
            "check_delta",
            "delta_warning",
            "epsilon_after",
            "finite",
            "settle_sizes",
            "steps_for",
            "warn_of_large_delta",
        ),
        "statement": ("laplace_statement", "privacy_statement"),
        "laplace": ("LaplacePlan", "LaplaceRun", "account_laplace", "laplace_epsilon_after"),
    },
)
