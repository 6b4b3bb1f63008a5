"""Noise that is added to a released number: Laplace and Gaussian, discrete forms, and what noised sums still say.

No TensorFlow is loaded here.
"""

from __future__ import annotations

from tfprivacy_lab.lazy_exports import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "additive": ("GaussianMechanism", "LaplaceMechanism"),
        "discrete": ("GridGaussian",),
        "empirical_check": ("check_neighbours",),
        "private_scale": ("PrivateScale",),
        "intervals": ("noise_quantile", "ratio_interval"),
    },
)
