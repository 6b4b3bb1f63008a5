"""Datasets: MNIST and others through TFDS, IDX files, and digits rendered from fonts, which are public."""

from __future__ import annotations

from tfprivacy_lab.lazy_exports import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "datasets": (
            "CLASSES",
            "DATASETS",
            "PrivateData",
            "SOURCES",
            "Split",
            "UNIT",
            "count_train",
            "data_directory",
            "load_private",
            "load_test",
            "prepare",
        ),
        "mnist": ("packaged_mnist",),
    },
)
