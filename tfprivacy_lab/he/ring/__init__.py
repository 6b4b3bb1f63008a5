"""The ring that ciphertexts live in: its transform, parameter sets with their security, and the door to SEAL."""

from __future__ import annotations

from tfprivacy_lab.lazy_exports import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "ntt": ("transform",),
        "parameters": ("MAX_COEFF_MODULUS_BITS", "PARAMETERS", "Parameters"),
        "seal": ("Pyfhel",),
    },
)
