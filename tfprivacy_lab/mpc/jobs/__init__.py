"""What all parties agree on: protocol, model, inputs, and arithmetic that holds every value. No engine loads."""

from __future__ import annotations

from tfprivacy_lab.lazy_exports import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "fixed_point": ("FixedPoint",),
        "job": ("Job",),
        "models": ("Layer", "Training"),
        "noise_shares": ("NoiseClaim", "NoiseShares"),
        "protocols": ("PROTOCOLS", "World", "protocol_table"),
        "ranges": ("plan",),
    },
)
