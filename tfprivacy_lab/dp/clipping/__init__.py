"""Per-example gradients clipped without being made: norms and weighted sums, by a rule a layer (ghost clipping)."""

from __future__ import annotations

from tfprivacy_lab.lazy_exports import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "adaptive": ("QuantileClip",),
        "rule": ("ExampleGradientsRule", "Rule"),
        "rule_check": ("check_rule",),
        "rules": ("register_rule",),
        "ghost": (
            "BookKeeping",
            "ExampleGradients",
            "METHODS",
            "UnknownLayerError",
            "check_layers_keep_examples_apart",
            "check_no_batch_normalization",
            "clip_factors",
            "clipped_sum_example_by_example",
            "regularisation",
        ),
    },
)
