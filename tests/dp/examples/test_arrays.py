"""What is taken for examples, and what is refused: batches that pass as examples would make n and the unit wrong."""

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from scipy import sparse

from tfprivacy_lab.checks import InputError
from tfprivacy_lab.dp.examples import arrays, sources

layers = keras.layers
Dataset = tf.data.Dataset
X = np.random.default_rng(0).normal(size=(12, 5)).astype(np.float32)
Y = np.arange(12) % 3


def sequence_model():
    """Takes (n, time, 5): a batch of examples (n, 5) looks like one example of it."""
    return keras.Sequential([layers.Input((None, 5)), layers.Dense(3)])


def row_model():
    return keras.Sequential([layers.Input((5,)), layers.Dense(3)])


class Unbuilt(keras.Model):
    """Whose inputs nobody declared."""

    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(3)
        self.build((None, 5))

    def call(self, inputs):
        return self.dense(inputs)


def pairs(rows=4, last=12):
    return lambda: ((X[i : i + rows], Y[i : i + rows]) for i in range(0, last, rows))


def generated(shape, rows=4, last=12):
    specs = tf.TensorSpec((*shape, 5), tf.float32), tf.TensorSpec(shape, tf.int64)
    return Dataset.from_generator(pairs(rows, last), output_signature=specs)


BATCHED = {
    "batched": lambda: Dataset.from_tensor_slices((X, Y)).batch(4),
    "zip of batched parts": lambda: Dataset.zip(tuple(Dataset.from_tensor_slices(a).batch(4) for a in (X, Y))),
    "one batched part": lambda: Dataset.zip((Dataset.from_tensor_slices(X).batch(4), Dataset.from_tensor_slices(Y))),
    "zip, mapped and cached": lambda: (
        Dataset.zip(tuple(Dataset.from_tensor_slices(a).batch(4) for a in (X, Y))).map(lambda a, b: (a, b)).cache()
    ),
    "concatenated": lambda: (lambda d: d.concatenate(d))(Dataset.from_tensor_slices((X, Y)).batch(4)),
    "unbatched and batched again": lambda: Dataset.from_tensor_slices((X, Y)).batch(4).unbatch().batch(3),
    "padded batches": lambda: Dataset.from_tensor_slices((X, Y)).padded_batch(4),
    "sampled from batched ones": lambda: Dataset.sample_from_datasets(
        [Dataset.from_tensor_slices((X, Y)).batch(4)] * 2
    ),
    "buckets": lambda: Dataset.from_tensor_slices((X, Y)).bucket_by_sequence_length(lambda a, b: 5, [3], [4, 4]),
}


@pytest.mark.parametrize("model", [None, row_model, sequence_model])
@pytest.mark.parametrize("make", BATCHED.values(), ids=BATCHED.keys())
def test_a_batched_dataset_is_refused_however_it_was_made(make, model):
    with pytest.raises(InputError, match=r"batched one.*\.unbatch\(\)"):
        sources.from_dataset(make(), model and model())


@pytest.mark.parametrize("shape", [(None,), (4,)])
@pytest.mark.parametrize("model", [None, row_model, Unbuilt])
def test_batches_from_a_generator_are_refused(model, shape):
    with pytest.raises(InputError, match=r"Expected x to be a dataset of single examples.*\.unbatch\(\)"):
        sources.from_dataset(generated(shape), model and model())


def test_a_short_last_batch_is_no_traceback():
    with pytest.raises(InputError, match="of one shape"):
        sources.from_dataset(generated((None,), rows=5), row_model())


@pytest.mark.parametrize(
    ("dataset", "model", "shapes"),
    [
        (lambda: Dataset.from_tensor_slices((X, Y)), row_model, [(12, 5), (12,)]),
        (lambda: Dataset.from_tensor_slices((X, Y)).batch(5).unbatch(), row_model, [(12, 5), (12,)]),
        (lambda: Dataset.from_tensor_slices((X, Y)).batch(5).map(lambda *a: a).unbatch(), None, [(12, 5), (12,)]),
        (lambda: Dataset.from_tensor_slices((X[..., None], Y)), row_model, [(12, 5, 1), (12,)]),
        # Four time steps with a label each are one example of a model that takes sequences.
        (lambda: generated((4,)), sequence_model, [(3, 4, 5), (3, 4)]),
        (lambda: Dataset.from_tensor_slices((X, Y)).shuffle(12).prefetch(2), row_model, [(12, 5), (12,)]),
        (lambda: Dataset.from_tensor_slices(({"a": X}, Y, np.ones(12))), None, [(12, 5), (12,), (12,)]),
    ],
)  # fmt: skip
def test_single_examples_are_read_as_they_are(dataset, model, shapes):
    found = sources.from_dataset(dataset(), model and model())
    assert [array.shape for array in tf.nest.flatten(found)] == shapes


class Items(keras.utils.PyDataset):
    def __init__(self, *items):
        super().__init__()
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i]


class Counted(keras.utils.PyDataset):
    """As Keras' own message says to write one."""

    num_batches = 3

    def __getitem__(self, i):
        return X[4 * i : 4 * i + 4], Y[4 * i : 4 * i + 4]


class Broken(Counted):
    def __getitem__(self, i):
        raise TypeError("mine")


def test_sequences_say_their_length_in_either_way_and_their_own_errors():
    found = arrays.checked(Counted())
    np.testing.assert_array_equal(found[0], X)
    with pytest.raises(TypeError, match=r"^mine$"):
        arrays.checked(Broken())


class Unending(Counted):
    num_batches = None


class OfLength(Items):
    def __init__(self, length):
        super().__init__((X, Y))
        self.length = length

    def __len__(self):
        return self.length


class HalfABatch(Counted):
    num_batches = 0.5


class Endless(keras.utils.PyDataset):
    def __getitem__(self, i):
        return X, Y


def rows():
    yield X[:4], Y[:4]


REFUSED = {
    "y beside a dataset": ((Dataset.from_tensor_slices((X, Y)), Y), "y is given beside x"),
    "y beside a Sequence": ((Items((X, Y)), Y), "y is given beside x"),
    "weights beside a dataset": ((Dataset.from_tensor_slices((X, Y)), None, np.ones(12)), "sample_weight is given"),
    "an endless dataset": ((Dataset.from_tensor_slices((X, Y)).repeat(),), "endless"),
    "an empty dataset": ((Dataset.from_tensor_slices((X[:0], Y[:0])),), "empty"),
    "no labels in a dataset": ((Dataset.from_tensor_slices(X),), r"\(example, label\)"),
    "a ragged dataset": ((Dataset.from_tensor_slices((tf.ragged.constant([[1.0], [1.0, 2.0]]), [0, 1])),), "Ragged"),
    "an empty Sequence": ((Items(),), "empty Sequence"),
    "a Sequence without end": ((Unending(),), "Sequence of known length, got Unending"),
    "a Sequence of a broken length": (
        (OfLength(2.0),),
        r"got OfLength: 'float' object cannot be interpreted",
    ),
    "a Sequence of half a batch": (
        (HalfABatch(),),
        r"the number of batches of HalfABatch to be .*0\.5",
    ),
    "a Sequence of unknown length": ((Endless(),), "Sequence of known length, got Endless"),
    "a Sequence of inputs alone": ((Items(X, X),), r"\(x, y\)"),
    "a Sequence of unequal parts": ((Items((X, Y[:3])),), "one row per example, got lengths"),
    "a Sequence of several shapes": ((Items((X, Y), (X[:, :2], Y)),), "one shape"),
    "a generator": ((rows(),), "got a generator"),
    "an iterator of a dataset": ((iter(Dataset.from_tensor_slices((X, Y))),), "Iterator"),
    "a ragged tensor": ((tf.ragged.constant([[1.0], [1.0, 2.0]]), [0, 1]), r"RaggedTensor; pad it \(x.to_tensor"),
    "a sparse tensor": ((tf.sparse.from_dense(X), Y), "got a SparseTensor"),
    "a sparse matrix": ((sparse.csr_matrix(X), Y), "got a csr_matrix"),
    "rows of several lengths": (([[1.0, 2.0], [3.0]], [0, 1]), "rows of different lengths"),
    "rows in a list": ((list(X), Y), "np.stack makes one array"),
    "an object in a dict": (({"a": X, "b": np.array(["u"] * 12)}, Y), r"Expected x\['b'\] to be an array of numbers"),
    "two labels": ((X, [Y, Y]), "Expected y to be one array, got 2"),
    "no labels": ((X,), "Expected y, the labels, got None"),
    "nothing": (([], []), "Expected y to be one array"),
    "a set": (({1, 2}, Y), "array of numbers"),
    "complex numbers": ((X.astype(complex), Y), "complex"),
    "a table of words": ((pd.DataFrame({"a": ["u", "v"]}), [0, 1]), "array of numbers"),
}


@pytest.mark.parametrize(("given", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_no_array_of_examples_is_refused_by_name(given, said):
    with pytest.raises(InputError, match=said):
        arrays.checked(*given)


@pytest.mark.parametrize(
    ("class_weight", "labels", "said"),
    [
        ({0: 1.0, 2: 1.0}, Y, "keys from 0 to k - 1"),
        ([1.0, 1.0, 1.0], Y, "keys from 0 to k - 1"),
        ({0: 1.0, 1: 1.0}, Y, "none for 2"),
        ({0: 1.0, 1: 1.0, 2: -1.0}, Y, r"class_weight\[2\]"),
        ({0: 1.0, 1: float("nan"), 2: 1.0}, Y, r"class_weight\[1\]"),
        ({0: 1.0, 1: 1.0, 2: 1.0}, Y + 0.5, "none for 0.5"),
        ({0: 1.0, 1: 1.0, 2: 1.0}, np.zeros((12, 3, 2)), "one label per example"),
    ],
)
def test_class_weights_that_say_nothing_of_a_class_are_refused(class_weight, labels, said):
    with pytest.raises(InputError, match=said):
        arrays.checked(X, labels, class_weight=class_weight)


def test_structures_keep_their_shape_and_lists_are_tuples():
    x, _, _ = arrays.checked({"a": [X, (X, X)], "b": X}, Y)
    assert tf.nest.map_structure(lambda a: tuple(a.shape), x) == {"a": ((12, 5), ((12, 5), (12, 5))), "b": (12, 5)}


@pytest.mark.parametrize("weights", [(), (None,)])
def test_single_examples_of_a_sequence_are_told_by_the_models_inputs(weights):
    """Tokens with a label each: twelve examples of five tokens, not sixty examples."""
    tokens, labels = X.astype(np.int64) % 7, X.astype(np.int64) % 3
    model = keras.Sequential([layers.Input((5,)), layers.Embedding(7, 2), layers.Dense(3)])
    single = Items(*((t, one, *weights) for t, one in zip(tokens, labels, strict=True)))
    batches = Items((tokens[:7], labels[:7], *weights), (tokens[7:], labels[7:], *weights))
    for sequence in (single, batches):
        x, y, _ = arrays.checked(sequence, model=model)
        assert np.array_equal(x, tokens)
        assert np.array_equal(y, labels)
