"""IDX files are believed only if every byte is accounted for."""

import gzip
import hashlib
import os
import pickle
import struct

import numpy as np
import pytest

from tfprivacy_lab.checks import InputError
from tfprivacy_lab.data import idx

NAMES = {
    ("train", "images"): "train-images-idx3-ubyte",
    ("train", "labels"): "train-labels-idx1-ubyte",
    ("test", "images"): "t10k-images-idx3-ubyte",
    ("test", "labels"): "t10k-labels-idx1-ubyte",
}


def random_splits(train=30, test=10, seed=0):
    rng = np.random.default_rng(seed)
    return {
        split: (rng.integers(0, 256, (n, 28, 28), np.uint8), rng.integers(0, 10, n, np.uint8))
        for split, n in (("train", train), ("test", test))
    }


def raw_images(images):
    """The format by hand: magic 2051, count, rows, columns, big-endian, then the pixels row by row."""
    return struct.pack(">IIII", 2051, *images.shape) + bytes(images.ravel().tolist())


def raw_labels(labels):
    return struct.pack(">II", 2049, len(labels)) + bytes(labels.tolist())


def write_folder(folder, splits, rename=lambda name: name):
    folder.mkdir(exist_ok=True)
    for (split, kind), name in NAMES.items():
        images, labels = splits[split]
        content = raw_images(images) if kind == "images" else raw_labels(labels)
        path = folder / rename(name)
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return folder


RENAMES = {
    "raw": lambda name: name,
    "gz": lambda name: name + ".gz",
    "dotted": lambda name: name.replace("-idx", ".idx"),
    "dotted gz": lambda name: name.replace("-idx", ".idx") + ".gz",
    "mixed": lambda name: name + ".gz" if "labels" in name else name.replace("-idx", ".idx"),
}


@pytest.mark.parametrize("rename", RENAMES.values(), ids=RENAMES.keys())
def test_folder_is_read_under_every_name_in_use(tmp_path, rename):
    splits = random_splits()
    read = idx.read_folder(write_folder(tmp_path / "idx", splits, rename))
    for split in ("train", "test"):
        for array, expected in zip(read[split], splits[split], strict=True):
            assert array.dtype == np.uint8
            assert np.array_equal(array, expected)


def test_encode_is_the_format():
    images, labels = random_splits()["train"]
    assert idx.encode(images) == raw_images(images)
    assert idx.encode(labels) == raw_labels(labels)
    assert idx.encode(images[:, ::-1]) == raw_images(images[:, ::-1])
    for wrong in (images.astype(np.int64), images[0], images.astype(np.float32)):
        with pytest.raises(InputError, match="Expected a uint8 array of 1 or 3 axes"):
            idx.encode(wrong)


IMAGES = random_splits()["train"][0]
GOOD = raw_images(IMAGES)
DAMAGE = {
    "empty": (b"", "truncated: 0 bytes, expected a header of 16"),
    "half a header": (GOOD[:15], "truncated: 15 bytes"),
    "header only": (GOOD[:16], "23520 bytes after the header, but holds 0"),
    "one byte short": (GOOD[:-1], "23520 bytes after the header, but holds 23519"),
    "one byte more": (GOOD + b"\0", "23520 bytes after the header, but holds 23521"),
    "labels": (raw_labels(IMAGES.ravel()), "magic number 0x00000801, expected 0x00000803 for images"),
    "little-endian": (struct.pack("<IIII", 2051, 30, 28, 28) + GOOD[16:], "magic number 0x03080000"),
    "gzip without its name": (gzip.compress(GOOD), "magic number 0x1f8b"),
    "overflowing sizes": (struct.pack(">IIII", 2051, 2**31, 2**31, 4) + GOOD[16:], "holds 23520"),
}


@pytest.mark.parametrize(("content", "message"), DAMAGE.values(), ids=DAMAGE.keys())
def test_damaged_file_is_named_with_what_differs(tmp_path, content, message):
    folder = write_folder(tmp_path / "idx", random_splits())
    path = folder / NAMES["train", "images"]
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as refusal:
        idx.read_folder(folder)
    assert str(path) in str(refusal.value)


@pytest.mark.parametrize("kind", ["truncated", "flipped", "no gzip", "garbage behind"])
def test_corrupt_gzip_is_refused(tmp_path, kind):
    folder = write_folder(tmp_path / "idx", random_splits(), RENAMES["gz"])
    path = folder / (NAMES["test", "images"] + ".gz")
    good = path.read_bytes()
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 0x10
    path.write_bytes(
        {"truncated": good[:-9], "flipped": bytes(flipped), "no gzip": GOOD, "garbage behind": good + b"x" * 9}[kind]
    )
    with pytest.raises(InputError, match=f"Cannot read {path}: "):
        idx.read_folder(folder)


def test_missing_folder_and_file(tmp_path):
    with pytest.raises(InputError, match="Expected --from-idx to be a folder with four IDX files"):
        idx.read_folder(tmp_path / "gone")
    folder = write_folder(tmp_path / "idx", random_splits())
    (folder / NAMES["test", "labels"]).unlink()
    with pytest.raises(InputError, match=f"No t10k-labels-idx1-ubyte or t10k-labels-idx1-ubyte.gz in {folder}"):
        idx.read_folder(folder)
    (folder / NAMES["test", "labels"]).mkdir()
    with pytest.raises(InputError, match="No t10k-labels"):
        idx.read_folder(folder)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((4, 28, 27), np.uint8), np.zeros(4, np.uint8), r"28 x 28 images .* got shape \(4, 28, 27\)"),
        (np.zeros((4, 32, 32), np.uint8), np.zeros(4, np.uint8), "28 x 28 images"),
        (np.zeros((0, 28, 28), np.uint8), np.zeros(0, np.uint8), r"got shape \(0, 28, 28\)"),
        (np.zeros((4, 28, 28), np.uint8), np.zeros(5, np.uint8), "got 4 images, 5 labels"),
        (np.zeros((4, 28, 28), np.uint8), np.array([9, 0, 10, 9], np.uint8), "got 10 at position 2"),
    ],
)
def test_sets_that_do_not_fit_are_refused(tmp_path, images, labels, message):
    folder = write_folder(tmp_path / "idx", random_splits() | {"test": (images, labels)})
    with pytest.raises(InputError, match=message) as refusal:
        idx.read_folder(folder)
    assert f"test split in {folder}" in str(refusal.value)


def test_a_file_larger_than_any_such_set_is_refused(tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "idx", random_splits(), RENAMES["mixed"])
    monkeypatch.setattr(idx, "_LARGEST_FILE", 20_000)
    with pytest.raises(InputError, match="holds more than 20000 bytes"):
        idx.read_folder(folder)


def test_digest_ignores_order_and_nothing_else():
    train = images, labels = random_splits()["train"]
    digest = idx.content_digest(images, labels)
    order = np.random.default_rng(1).permutation(len(labels))
    assert idx.content_digest(images[order], labels[order].astype(np.int64)) == digest
    rows = sorted(
        hashlib.sha256(image.tobytes() + bytes([label])).digest() for image, label in zip(*train, strict=True)
    )
    assert digest == hashlib.sha256(b"".join(rows)).hexdigest()
    changed = images.copy()
    changed[3, 5, 7] ^= 1
    moved = labels.copy()
    moved[0] = (moved[0] + 1) % 10
    doubled = np.concatenate([images[:-1], images[:1]]), np.concatenate([labels[:-1], labels[:1]])
    for other in ((changed, labels), (images, moved), doubled, (images[1:], labels[1:])):
        assert idx.content_digest(*other) != digest


def test_other_arrays_are_not_mnist():
    with pytest.raises(InputError, match="The train images in here are not MNIST's: SHA-256 "):
        idx.check_official_mnist(random_splits(), "here")


def test_unpickler_builds_arrays():
    array = np.random.default_rng(0).random((3, 4)).astype(np.float32)
    for protocol in (3, 4):
        loaded = idx.load_arrays_only(pickle.dumps([(array, {"labels": np.arange(3)})], protocol))
        assert np.array_equal(loaded[0][0], array)


class Calls:
    """Pickles as a call of ``function`` with ``arguments``."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_unpickler_refuses_calls(tmp_path, protocol):
    trap = str(tmp_path / "sprung")
    calls = [(os.system, f"mkdir {trap}"), (os.mkdir, trap), (eval, f"__import__('os').mkdir({trap!r})"), (getattr,)]
    for call in [*calls, (np.load, trap), (np.frombuffer, b"x"), (bytearray, 3)]:
        with pytest.raises(InputError, match=r"Refused to unpickle .*: only NumPy arrays are allowed"):
            idx.load_arrays_only(pickle.dumps((np.zeros(2), Calls(*call)), protocol))
    assert os.listdir(tmp_path) == []
