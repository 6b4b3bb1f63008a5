"""Which parameter set and packing fit a head or a network, and what each costs."""

from __future__ import annotations

from tfprivacy_lab.lazy_exports import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "head": ("SCHEMES", "Choice", "choose"),
        "network": ("NetworkChoice", "choose_network"),
        "costs": ("Cost", "compare_packings"),
    },
)
