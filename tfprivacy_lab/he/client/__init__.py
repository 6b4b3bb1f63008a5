"""The side that holds the secret key: it makes keys, encrypts features and decrypts replies."""

from __future__ import annotations

from tfprivacy_lab.lazy_exports import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "head": ("Client",),
        "network": ("NetworkClient",),
        "slots": ("SingleImageClient", "SlotHeadClient"),
    },
)
