"""The IDX format of the MNIST family: reading, checking, and knowing MNIST when we see it."""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import struct
import typing
import zlib
from pathlib import Path

import numpy as np

from tfprivacy_lab.checks import InputError

# SHA-256 of MNIST's four files, raw (not gzipped).
MNIST_SHA256 = {
    "train images": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train labels": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "test images": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "test labels": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
# Digests of MNIST whatever the order of its examples; see content_digest.
MNIST_CONTENT = {
    "train": "54e1ab866c9484947dd4821c52bb7a43938f555d6b046be6af55247f8e6ffc64",
    "test": "97b756d55950f1841ebd48df7379b9b2fc87a10d63e08d6213dad41d564e8508",
}

_NAMES = {
    ("train", "images"): "train-images-idx3-ubyte",
    ("train", "labels"): "train-labels-idx1-ubyte",
    ("test", "images"): "t10k-images-idx3-ubyte",
    ("test", "labels"): "t10k-labels-idx1-ubyte",
}
_MAGIC = {"images": 0x00000803, "labels": 0x00000801}
_LARGEST_FILE = 1 << 30


def encode(array: np.ndarray) -> bytes:
    """A uint8 array of one or three axes as raw IDX bytes."""
    if array.dtype != np.uint8 or array.ndim not in (1, 3):
        raise InputError(f"Expected a uint8 array of 1 or 3 axes, got {array.dtype} of shape {array.shape}.")
    return struct.pack(f">{1 + array.ndim}I", 0x0800 | array.ndim, *array.shape) + array.tobytes()


def read_folder(folder) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The four IDX files of an MNIST-like set, gzipped or raw, checked.

    Returns:
        ``{"train": (images, labels), "test": (images, labels)}``, uint8, images (n, 28, 28).

    Raises:
        InputError: naming the file that is missing, damaged, or does not fit the others.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"Expected --from-idx to be a folder with four IDX files, got {str(folder)!r}.")
    splits = {}
    for split in ("train", "test"):
        images, labels = (read_file(_find(folder, _NAMES[split, kind]), kind) for kind in ("images", "labels"))
        check_images_and_labels(images, labels, f"{split} split in {folder}")
        splits[split] = images, labels
    return splits


def read_file(path: Path, kind: str) -> np.ndarray:
    """One IDX file of ``kind`` "images" (n, rows, columns) or "labels" (n,), uint8.

    Raises:
        InputError: naming the file and what differs: magic number, sizes, length.
    """
    data = _decompressed(path)
    axes = 3 if kind == "images" else 1
    header = 4 * (1 + axes)
    if len(data) < header:
        raise InputError(f"{path} is truncated: {len(data)} bytes, expected a header of {header}.")
    magic, *shape = struct.unpack(f">{1 + axes}I", data[:header])
    if magic != _MAGIC[kind]:
        raise InputError(f"{path} has magic number {magic:#010x}, expected {_MAGIC[kind]:#010x} for {kind}.")
    size = int(np.prod([int(length) for length in shape], dtype=object))
    if len(data) - header != size:
        raise InputError(
            f"{path} says shape {tuple(shape)}, {size} bytes after the header, but holds {len(data) - header}."
        )
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


def check_images_and_labels(images: np.ndarray, labels: np.ndarray, where: str) -> None:
    """Images (n, 28, 28) and as many labels in 0..9, n > 0.

    Raises:
        InputError: naming what differs.
    """
    if images.ndim != 3 or images.shape[1:] != (28, 28) or not len(images):
        raise InputError(f"Expected 28 x 28 images in {where}, got shape {images.shape}.")
    if labels.shape != (len(images),):
        raise InputError(f"Expected one label an image in {where}, got {len(images)} images, {len(labels)} labels.")
    if labels.max() > 9:
        place = int(np.argmax(labels > 9))
        raise InputError(
            f"Expected labels 0 to 9 in {where}, got {int(labels[place])} at position {place}; leave such images out, "
            "or number their classes from 0 to 9."
        )


def check_official_mnist(splits, where: str) -> None:
    """The arrays, written as raw IDX, must have the hashes of MNIST's own files.

    Raises:
        InputError: naming the array that differs and both hashes.
    """
    for split, arrays in splits.items():
        for kind, array in zip(("images", "labels"), arrays, strict=True):
            digest, expected = hashlib.sha256(encode(array)).hexdigest(), MNIST_SHA256[f"{split} {kind}"]
            if digest != expected:
                raise InputError(f"The {split} {kind} in {where} are not MNIST's: SHA-256 {digest}, not {expected}.")


def content_digest(images: np.ndarray, labels: np.ndarray) -> str:
    """SHA-256 over the sorted SHA-256 of (image, label) pairs: the same in whatever order they come."""
    rows = np.concatenate([images.reshape(len(images), -1), labels.astype(np.uint8)[:, np.newaxis]], axis=1)
    return hashlib.sha256(b"".join(sorted(hashlib.sha256(row.tobytes()).digest() for row in rows))).hexdigest()


# What makes an empty array to be filled; NumPy 2 writes another name into pickles than NumPy 1 did.
_RECONSTRUCT = np.empty(0).__reduce__()[0]


class _ArraysOnly(pickle.Unpickler):
    """Builds NumPy arrays and plain containers, and nothing else."""

    _ALLOWED: typing.ClassVar = {
        ("numpy", "dtype"): np.dtype,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
        ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    }

    def find_class(self, module, name):
        try:
            return self._ALLOWED[module, name]
        except KeyError:
            raise InputError(f"Refused to unpickle {module}.{name}: only NumPy arrays are allowed.") from None


def load_arrays_only(data: bytes):
    """Unpickle NumPy arrays in plain containers.

    Raises:
        InputError: if the pickle names anything else.
    """
    return _ArraysOnly(io.BytesIO(data), encoding="latin1").load()


def _find(folder: Path, name: str) -> Path:
    names = [name, name + ".gz", name.replace("-idx", ".idx"), name.replace("-idx", ".idx") + ".gz"]
    for candidate in names:
        if (folder / candidate).is_file():
            return folder / candidate
    raise InputError(f"No {name} or {name}.gz in {folder}.")


def _decompressed(path: Path) -> bytes:
    try:
        if path.suffix != ".gz":
            with open(path, "rb") as stream:
                data = stream.read(_LARGEST_FILE + 1)
        else:
            with gzip.open(path) as stream:
                data = stream.read(_LARGEST_FILE + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"Cannot read {path}: {error}.") from error
    if len(data) > _LARGEST_FILE:
        raise InputError(f"{path} holds more than {_LARGEST_FILE} bytes; that is no MNIST-like set.")
    return data
