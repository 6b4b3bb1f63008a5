"""What is computed on ciphertexts, in which order, with which parameters and how large an error."""

from __future__ import annotations

from tfprivacy_lab.lazy_exports import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "deep_image": ("DeepPlan",),
        "layers": ("Network",),
        "network": ("BatchedPlan",),
        "single_image": ("SinglePlan",),
        "slot_head": ("SlotHead",),
    },
)
