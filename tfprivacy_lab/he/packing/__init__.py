"""Where samples and weights stand in a ciphertext: in slots by sample, in coefficients, along diagonals."""

from __future__ import annotations

from tfprivacy_lab.lazy_exports import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "batched": (
            "add_modular",
            "bias_residues",
            "block_count",
            "block_samples",
            "block_slots",
            "matmul_scratch_bytes",
            "modular_matmul",
        ),
    },
)
