"""Keras models of the lab, and Keras models as a graph of layers."""

from __future__ import annotations

from tfprivacy_lab.lazy_exports import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "architectures": (
            "BACKBONES",
            "CLASSES",
            "FEATURES",
            "IMAGE_SHAPE",
            "Square",
            "WHOLE",
            "autoencoder",
            "backbone",
            "check_images",
            "cryptonet",
            "deep_backbone",
            "dense_head",
            "document_mlp",
            "embed",
            "freeze",
            "outputs",
            "square_mlp",
            "tutorial_cnn",
            "with_head",
        ),
    },
)
