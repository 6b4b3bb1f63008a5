"""The side that sees ciphertexts and weights, and never a secret key."""

from __future__ import annotations

from tfprivacy_lab.lazy_exports import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "head": ("Cost", "REPLIES", "Server"),
        "network": ("NetworkServer",),
        "slots": ("DeepImageServer", "SingleImageServer", "SlotHeadServer"),
    },
    {"single_image": "slots", "deep_image": "slots", "slot_head": "slots"},
)
