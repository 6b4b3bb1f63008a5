"""How parties reach each other: certificates, who may come in, control messages, the engine's bytes."""

from __future__ import annotations

from tfprivacy_lab.lazy_exports import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "certificates": ("Credentials", "make_certificates"),
        "links": ("Control",),
        "peers": ("PartyError",),
        "relay": ("Relay",),
    },
)
