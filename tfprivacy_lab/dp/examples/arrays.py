"""What ``fit`` is given as private examples, as tensors with one row per example."""

from __future__ import annotations

import collections.abc

import keras
import numpy as np
import tensorflow as tf

from tfprivacy_lab.checks import InputError, check_all_finite, check_finite_number
from tfprivacy_lab.dp.examples import sources


def checked(x, y=None, sample_weight=None, class_weight=None, model: keras.Model | None = None) -> tuple:
    """Inputs, labels and sample weights as tensors with one first axis, all finite.

    Lists are tuples from here on, as in Keras' own ``fit``: TensorFlow's data sets would make one tensor of a list.

    Args:
        x: An array, (n, ...); a list, tuple or dict of such, nested as the model takes it; or a ``tf.data.Dataset`` or
            ``keras.utils.Sequence``, which brings labels and weights itself.
        y: One array, (n, ...), or a list of numbers.
        sample_weight: (n,), >= 0.
        class_weight: {class: weight}, for classes 0..k-1.
        model: Whose inputs tell an example from a batch.

    Raises:
        InputError: naming the argument.
    """
    if isinstance(x, tf.data.Dataset | keras.utils.PyDataset):
        for name, value in (("y", y), ("sample_weight", sample_weight)):
            if value is not None:
                raise InputError(f"{name} is given beside x, a {type(x).__name__}, which brings its own; leave it out.")
        read = sources.from_sequence(x, model) if isinstance(x, keras.utils.PyDataset) else None
        x, y, sample_weight = (*(read or sources.from_dataset(x, model)), None)[:3]
    x = structured("x", x)
    if y is None:
        raise InputError("Expected y, the labels, got None; fit(x, y), or a dataset of (example, label).")
    y = structured("y", y)
    if not tf.is_tensor(y):
        alone = tf.nest.flatten(y)
        if len(alone) != 1:
            raise InputError(f"Expected y to be one array, got {len(alone)}; models of several outputs are refused.")
        (y,) = alone
    counts = {len(a) for a in tf.nest.flatten((x, y))}
    if len(counts) != 1 or 0 in counts or not tf.nest.flatten(x):
        raise InputError(
            f"Expected x and y to have one and the same number of examples, got {sorted(counts)}; a list or tuple is "
            "one array per input of the model (np.stack makes one array of a list of rows)."
        )
    weights = tf.ones(len(y)) if sample_weight is None else _sample_weights(sample_weight, len(y))
    return x, y, weights if class_weight is None else weights * _weights_of_classes(class_weight, y.numpy())


def structured(name: str, value):
    """The arrays of a structure as tensors; lists as tuples, but for those of numbers, which are arrays.

    Args:
        name: What to call it in an error.
        value: Array-like, or a list, tuple or mapping of structures.

    Raises:
        InputError: if a leaf is no dense array of numbers.
    """
    if isinstance(value, collections.abc.Mapping):
        return {key: structured(f"{name}[{key!r}]", part) for key, part in value.items()}
    if isinstance(value, list | tuple) and not _holds_numbers(value):
        parts = [structured(f"{name}[{i}]", part) for i, part in enumerate(value)]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return _tensor(name, value)


def _holds_numbers(value) -> bool:
    """Whether a list is a table of numbers, by its first entry."""
    while isinstance(value, list | tuple) and value:
        value = value[0]
    return isinstance(value, bool | int | float | np.generic)


def _tensor(name, value):
    if isinstance(value, tf.RaggedTensor):
        raise InputError(f"Expected {name} to be dense, got a RaggedTensor; pad it ({name}.to_tensor()) and mask.")
    if isinstance(value, tf.SparseTensor) or hasattr(value, "tocsr"):
        raise InputError(f"Expected {name} to be dense, got a {type(value).__name__}; make it a dense array.")
    if isinstance(value, collections.abc.Iterator):
        raise InputError(
            f"Expected {name} to be arrays or a tf.data.Dataset of single examples, got a {type(value).__name__}: "
            "batches are drawn at random from all examples; read it into arrays."
        )
    try:
        array = value.numpy() if tf.is_tensor(value) else np.asarray(value)
    except (ValueError, TypeError) as error:
        raise InputError(f"Expected {name} to be an array, got rows of different lengths; pad them.") from error
    if array.dtype.kind not in "fiub" or array.ndim == 0:
        raise InputError(f"Expected {name} to be an array of numbers, got dtype {array.dtype}, shape {array.shape}.")
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):
            array = array.astype(np.float32, copy=False)
        check_all_finite(name, array)
    # A tensor that is fit is not copied: fit may be called once an epoch.
    return value if tf.is_tensor(value) and value.dtype == array.dtype else tf.convert_to_tensor(array)


def _sample_weights(value, n):
    weights = tf.cast(_tensor("sample_weight", value), tf.float32)
    if weights.shape != (n,):
        raise InputError(f"Expected sample_weight to have shape ({n},), got {tuple(weights.shape)}.")
    if np.any(weights.numpy() < 0):
        raise InputError(f"Expected sample_weight to be >= 0, got {weights.numpy().min()}.")
    return weights


def _weights_of_classes(class_weight, labels):
    """The weight of each example's class, (n,); labels as class indices, (n,) or (n, 1), or one-hot, (n, k)."""
    if not isinstance(class_weight, dict) or set(class_weight) != set(range(len(class_weight))):
        raise InputError(f"Expected class_weight to be a dict with keys from 0 to k - 1, got {class_weight!r}.")
    table = [check_finite_number(f"class_weight[{i}]", class_weight[i], at_least=0) for i in range(len(class_weight))]
    if labels.ndim > 2:
        raise InputError(f"class_weight is for one label per example, got y of shape {labels.shape}.")
    classes = labels.argmax(1) if labels.ndim == 2 and labels.shape[1] > 1 else labels.reshape(-1)
    wrong = classes[(classes < 0) | (classes >= len(table)) | (classes != np.floor(classes))]
    if wrong.size:
        raise InputError(f"Expected class_weight to have a weight for each class of y, got none for {wrong[0]}.")
    return tf.constant(table, tf.float32).numpy()[classes.astype(np.int64)]
