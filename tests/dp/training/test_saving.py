"""What leaves a private fit in files: weights of the wrapped model, an optimizer's state, metadata, nothing else."""

import copy
import csv
import io
import json
import pickle
import zipfile

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow.core.util import event_pb2

from tests.dp.training.test_planned import CLASSES, WIDTH
from tests.dp.training.test_private_model import B, N, dataset, linear, private, weights_of
from tfprivacy_lab.checks import InputError
from tfprivacy_lab.dp import SaveCheckpoint
from tfprivacy_lab.models.keras_internals import layers_of, seed_states

layers = keras.layers
callbacks_of_keras = keras.callbacks


@keras.saving.register_keras_serializable("tests")
class Watching(layers.Layer):
    """Keeps two running figures of what it sees, as metrics: one that Keras shows, one of its own."""

    def __init__(self, **options):
        super().__init__(**options)
        self.largest, self.own = keras.metrics.Mean("largest"), [keras.metrics.Mean("own")]

    def call(self, inputs):
        self.own[0].update_state(tf.reduce_max(inputs))
        self.largest.update_state(tf.reduce_max(inputs))
        return inputs


def watched():
    return keras.Sequential(
        [layers.Input((WIDTH,)), Watching(), layers.Dense(6, "tanh"), layers.Dropout(0.1), layers.Dense(CLASSES)]
    )


class Subclassed(keras.Model):
    """A model whose attributes Keras searches."""

    def __init__(self):
        super().__init__()
        self.watching, self.dense = Watching(), layers.Dense(CLASSES)

    def call(self, inputs):
        return self.dense(self.watching(inputs))


def subclassed():
    model = Subclassed()
    model(np.ones((1, WIDTH), np.float32))
    return model


def fitted(model, optimizer=None, **options):
    """A PrivateModel after an epoch."""
    wrapped = private(model, optimizer or keras.optimizers.Adam(0.1), metrics=["accuracy"], **options)
    wrapped.fit(*dataset(N), B, epochs=1, verbose=0)
    return wrapped


FIGURE = 7.25  # What a running figure of private rows is, in these tests, when something is saved.


def with_figures(wrapped):
    """The PrivateModel with figures in every metric of its own and of its layers, as while a fit runs."""
    of_layers = [metric for layer in layers_of(wrapped.model) for metric in layer.metrics]
    given = [one for metric in [*wrapped.metrics, *of_layers] for one in getattr(metric, "metrics", [metric])]
    metrics = {id(metric): metric for metric in given}.values()
    assert {metric.name for metric in metrics} == {"loss", "accuracy", "largest", "own"}
    for variable in (variable for metric in metrics for variable in metric.variables):
        variable.assign(FIGURE)
    return wrapped


@pytest.fixture(scope="module")
def fits():
    """A fitted PrivateModel of either kind."""
    return {build.__name__: fitted(build(), noise_multiplier=1.0) for build in (watched, subclassed)}


WAYS = {
    "save .keras": lambda p, at: p.save(at / "model.keras"),
    "save .h5": lambda p, at: p.save(at / "model.h5"),
    "save_weights .weights.h5": lambda p, at: p.save_weights(at / "w.weights.h5"),
    "Checkpoint": lambda p, at: tf.train.Checkpoint(model=p).save(str(at / "c")),
    "Checkpoint of the root": lambda p, at: tf.train.Checkpoint(p).write(str(at / "c")),
    "CheckpointManager": lambda p, at: tf.train.CheckpointManager(tf.train.Checkpoint(model=p), str(at), 2).save(),
    "export": lambda p, at: p.export(at / "export"),
    "save_checkpoint": lambda p, at: p.save_checkpoint(at / "run.npz"),
}
WAYS_OF_SUBCLASSED = [way for way in WAYS if way != "save .h5"]


def arrays_in(folder):
    """Every array in every file of a folder, as (file, name, array)."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        for name, array in READERS[path.suffix](path):
            yield path.name, name, np.asarray(array)


def _of_h5(file):
    with h5py.File(file) as opened:
        found = [*opened.attrs.items()]
        opened.visititems(lambda name, at: found.extend((f"{name} {key}", value) for key, value in at.attrs.items()))
        opened.visititems(lambda name, at: found.append((name, at[()])) if isinstance(at, h5py.Dataset) else None)
    return found


def _of_zip(path):
    if not path.stat().st_size:  # Opened by Keras, before it asked.
        return
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.endswith(".h5"):
                yield from _of_h5(io.BytesIO(archive.read(name)))
            else:
                yield name, json.dumps(json.loads(archive.read(name)))


def _of_index(path):
    reader = tf.train.load_checkpoint(str(path.with_suffix("")))
    return [(name, reader.get_tensor(name)) for name in reader.get_variable_to_shape_map()]


def _of_graph(path):
    """Constants in the graphs of a SavedModel that are more than a setting."""
    saved = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    for graph in (meta.graph_def for meta in saved.meta_graphs):
        for node in [*graph.node, *(node for function in graph.library.function for node in function.node_def)]:
            if node.op == "Const" and node.attr["dtype"].type in (tf.float32.as_datatype_enum, 23):
                array = tf.make_ndarray(node.attr["value"].tensor)
                if array.size > 1:
                    yield node.name, array


def _of_npz(path):
    with np.load(path, allow_pickle=False) as arrays:
        return [(name, arrays[name]) for name in arrays.files]


READERS = {
    ".h5": _of_h5,
    ".keras": _of_zip,
    ".index": _of_index,
    ".npz": _of_npz,
    ".pb": lambda path: _of_graph(path) if path.name == "saved_model.pb" else [],
    # The bytes behind an index, and the name of the newest.
    ".data-00000-of-00001": lambda path: [],
    "": lambda path: [] if path.name == "checkpoint" else [("unknown", 1.5)],
}
# Of a file's format: an object graph, a count of checkpoints, the record and digest of one of ours.
METADATA = ("save_counter", "_CHECKPOINTABLE_OBJECT_GRAPH", "record", "digest")


def _is_seed_state(array, wrapped):
    """A seed of dropout, and a count that follows from the number of steps alone."""
    steps = sum(phase.steps for phase in wrapped.phases())
    return array.shape == (2,) and array.dtype.kind in "iu" and array[1] in (0, 4096 * steps)


def strangers(folder, wrapped):
    """The arrays in a folder that are no weight, no optimizer's state, no metadata, and hold something."""
    known = [v.numpy() for v in [*wrapped.model.weights, *wrapped.optimizer.variables]]

    def is_known(name, array):
        return (
            array.dtype.kind in "OSU"
            or not np.any(array)
            or name.split("/")[0] in METADATA
            or _is_seed_state(array, wrapped)
            or any(array.shape == one.shape and np.array_equal(array, one) for one in known)
        )

    return [(file, name, array) for file, name, array in arrays_in(folder) if not is_known(name, array)]


def weights_found(folder, wrapped):
    """How many of the wrapped model's weights a folder holds."""
    arrays = [array for _, _, array in arrays_in(folder)]
    return sum(any(np.array_equal(weight, array) for array in arrays) for weight in wrapped.model.get_weights())


@pytest.mark.parametrize(
    ("way", "build"),
    [*((way, watched) for way in WAYS), *((way, subclassed) for way in WAYS_OF_SUBCLASSED)],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_every_array_of_every_way_out_is_a_weight_or_state_of_the_optimizer(way, build, fits, tmp_path):
    wrapped = with_figures(fits[build.__name__])
    WAYS[way](wrapped, tmp_path)
    assert strangers(tmp_path, wrapped) == []
    assert weights_found(tmp_path, wrapped) == len(wrapped.model.get_weights())


def test_the_wrapped_model_may_be_saved_by_itself_once_a_fit_is_over(tmp_path):
    wrapped = fitted(subclassed(), noise_multiplier=1.0)
    wrapped.model.save(tmp_path / "model.keras")
    wrapped.model.save_weights(tmp_path / "w.weights.h5")
    tf.train.Checkpoint(model=wrapped.model).save(str(tmp_path / "c"))
    assert strangers(tmp_path, wrapped) == []


def test_what_is_looked_for_is_found(tmp_path):
    """The reader of the test above sees a mean, or what an optimizer keeps, in each kind of file that has it."""
    model = watched()
    model.compile("adam", "mse")
    model.fit(np.ones((8, WIDTH), np.float32), np.ones((8, CLASSES), np.float32), verbose=0)
    wrapped = private(linear())
    for number, save in enumerate(
        (
            lambda at: model.save(at / "m.keras"),
            lambda at: model.save(at / "m.h5"),
            lambda at: model.export(at / "m"),
            lambda at: tf.train.Checkpoint(largest=model.layers[0].largest.variables[0]).save(str(at / "c")),
        )
    ):
        (tmp_path / str(number)).mkdir()
        save(tmp_path / str(number))
        found = [(name, array) for _, name, array in strangers(tmp_path / str(number), wrapped)]
        hidden = ("kernel", "bias", "vars/0")
        assert any(np.any(array) and not name.endswith(hidden) for name, array in found), number


def test_what_callbacks_write_while_a_fit_runs(tmp_path):
    """Between the steps the figures are there to be written; afterwards they are reset."""
    best = {"monitor": "val_loss", "save_best_only": True}
    # All at the same epoch: the weights in the files are those of the end.
    checkpoints = [
        callbacks_of_keras.ModelCheckpoint(str(tmp_path / name), **options)
        for name, options in {
            "a.weights.h5": {"save_weights_only": True},
            "b.h5": {},
            "c.{epoch}.weights.h5": {"save_weights_only": True},
            "d.keras": {},
            "e.{epoch}-{epsilon:.2f}.keras": best,
            "f.h5": best,
        }.items()
    ]
    checkpoints.append(SaveCheckpoint(tmp_path / "g.npz"))
    wrapped = private(watched(), keras.optimizers.Adam(0.1), metrics=["accuracy"], noise_multiplier=1.0)
    with pytest.warns(UserWarning, match="val_ figures"):
        wrapped.fit(*dataset(N), B, callbacks=checkpoints, validation_data=dataset(20, seed=5), verbose=0)
    assert strangers(tmp_path, wrapped) == []
    assert {path.name.split(".")[0] for path in tmp_path.iterdir()} - {"checkpoint"} == set("abcdefg")


def test_what_callbacks_log_while_a_fit_runs(tmp_path):
    """A table and TensorBoard's events: epsilon, the learning rate, validation figures and weights."""

    class Summarising(layers.Layer):
        """Summarises its inputs."""

        def call(self, inputs):
            tf.summary.histogram("seen", inputs, step=0)
            return inputs

    model = keras.Sequential([layers.Input((WIDTH,)), Summarising(), Watching(), layers.Dense(CLASSES)])
    wrapped = private(model, metrics=["accuracy"], noise_multiplier=1.0)
    logging = [
        callbacks_of_keras.CSVLogger(tmp_path / "log.csv"),
        callbacks_of_keras.TensorBoard(tmp_path / "board", histogram_freq=1),
        callbacks_of_keras.LearningRateScheduler(lambda epoch, rate: rate),
    ]
    writer = tf.summary.create_file_writer(str(tmp_path / "default"))
    with writer.as_default(step=0), pytest.warns(UserWarning, match="CSVLogger goes by val_ figures"):
        history = wrapped.fit(*dataset(N), B, epochs=2, callbacks=logging, validation_data=dataset(20), verbose=0)
    writer.close()
    assert {"loss", "accuracy", "largest", "learning_rate"} < set(history.history)
    with open(tmp_path / "log.csv") as file:
        assert set(next(csv.reader(file))) == {"epoch", "epsilon", "val_loss", "val_accuracy", "val_largest", "val_own"}
    tags = {
        (path.parent.name, value.tag)
        for path in tmp_path.rglob("events*")
        for record in tf.data.TFRecordDataset(str(path))
        for value in event_pb2.Event.FromString(record.numpy()).summary.value
    }
    of_training = {tag for folder, tag in tags if folder == "train"}
    scalars = {tag for tag in of_training if tag.startswith("epoch_")}
    assert "epoch_epsilon" in scalars <= {"epoch_epsilon", "epoch_learning_rate"}
    assert of_training - scalars == {f"{weight.path.replace(':', '_')}/histogram" for weight in model.weights}
    # What validation data are is their owner's word; no batch of training leaves by a writer that is there by default.
    assert not [tag for folder, tag in tags if folder == "default"]


REFUSED = {
    "save_model .keras": lambda p, at: keras.models.save_model(p, at / "m.keras"),
    "save_model .h5": lambda p, at: keras.models.save_model(p, at / "m.h5"),
    "saved_model.save": lambda p, at: tf.saved_model.save(p, str(at / "m")),
    "pickle": lambda p, at: pickle.dumps(p),
    "copy": lambda p, at: copy.copy(p),
    "deepcopy": lambda p, at: copy.deepcopy(p),
    "to_json": lambda p, at: p.to_json(),
    "clone_model": lambda p, at: keras.models.clone_model(p),
    "another model's .keras": lambda p, at: outer(p).save(at / "m.keras"),
    "another model's weights": lambda p, at: outer(p).save_weights(at / "w.weights.h5"),
}


def outer(wrapped):
    return keras.Sequential([layers.Input((WIDTH,)), wrapped, layers.Softmax()])


@pytest.fixture(scope="module")
def refusing():
    """A PrivateModel that was called."""
    called = private(noise_multiplier=1.0, metrics=["accuracy"])
    called.fit(*dataset(N), B, steps_per_epoch=1, verbose=0)
    called.predict(dataset(N)[0], verbose=0)
    assert called.built
    return called


@pytest.mark.parametrize("way", ["pickle", "copy", "deepcopy", "to_json", "clone_model"])
def test_a_model_that_was_not_called_yet_is_not_copied_either(way, tmp_path):
    """Keras pickles and copies it by its attributes, seed and all."""
    wrapped = private(noise_multiplier=1.0)
    with pytest.raises(InputError, match=r"A PrivateModel .*; "):
        REFUSED[way](wrapped, tmp_path)


@pytest.mark.parametrize("way", REFUSED.values(), ids=REFUSED.keys())
def test_other_ways_out_are_refused_in_a_line(way, refusing, tmp_path):
    wrapped = refusing
    with pytest.raises(InputError, match=r"A PrivateModel .*; ") as refusal:
        way(wrapped, tmp_path)
    assert len(str(refusal.value).splitlines()) == 1
    # At most a file that Keras opened before it asked: with nothing in it.
    assert strangers(tmp_path, wrapped) == []


def restored(model, path):
    tf.train.Checkpoint(model=model).restore(path).assert_existing_objects_matched()


LOADED = {
    "w.weights.h5": ("save_weights .weights.h5", lambda model, at: model.load_weights(at / "w.weights.h5")),
    ".keras": ("save .keras", lambda model, at: model.load_weights(at / "model.keras")),
    "Checkpoint": ("Checkpoint", lambda model, at: restored(model, tf.train.latest_checkpoint(str(at)))),
    "set_weights": ("save .h5", lambda model, at: model.set_weights(loaded(at / "model.h5").get_weights())),
}


def loaded(path):
    return keras.models.load_model(path, compile=False)


@pytest.mark.parametrize(("way", "load"), LOADED.values(), ids=LOADED.keys())
def test_what_is_saved_loads_into_a_plain_model_and_into_a_private_one(way, load, fits, tmp_path):
    wrapped = fits["watched"]
    WAYS[way](wrapped, tmp_path)
    plain, again = watched(), private(watched(), seed=4, noise_multiplier=1.0)
    for model in (plain, again):
        load(model, tmp_path)
        for array, weight in zip(model.get_weights(), wrapped.get_weights(), strict=True):
            np.testing.assert_array_equal(array, weight)
    assert np.array_equal(weights_of(again.model), weights_of(wrapped.model))


def test_loaded_weights_are_stated_since_their_cost_is_unknown(tmp_path):
    wrapped = private(noise_multiplier=1.0)
    private(linear()).save_weights(tmp_path / "other.weights.h5")
    assert not any("other.weights.h5" in text for text in wrapped.privacy()["not_covered"])
    wrapped.load_weights(tmp_path / "other.weights.h5")
    assert sum("other.weights.h5" in text for text in wrapped.privacy()["not_covered"]) == 1
    for _ in range(2):
        wrapped.set_weights(wrapped.get_weights())
    assert sum("given to set_weights" in text for text in wrapped.privacy()["not_covered"]) == 1


@pytest.mark.parametrize("engine", ["fast", "reference"])
def test_no_checkpoint_holds_the_state_of_the_noise(engine, tmp_path):
    """The reference engine's generator is a Trackable: its state is the key."""
    wrapped = fitted(linear(), keras.optimizers.SGD(0.1, 0.9), engine=engine, noise_multiplier=1.0)
    tf.train.Checkpoint(model=wrapped).save(str(tmp_path / "c"))
    names = [name for name, _ in tf.train.list_variables(tf.train.latest_checkpoint(str(tmp_path)))]
    held = {name.split("/")[-3] for name in names if "VARIABLE_VALUE" in name and "save" not in name}
    assert held == {"bias", "_kernel"}


@pytest.mark.parametrize("build", [watched, subclassed])
def test_a_compiled_model_is_saved_without_what_it_was_compiled_with(build, tmp_path):
    """The caller compiled the model and trained it before it was wrapped."""
    model = build()
    model.compile("adam", "mse", metrics=["mae"])
    model.fit(dataset(N)[0], np.eye(CLASSES)[dataset(N)[1]], verbose=0)
    for state in seed_states(model):  # how often it drew then is the caller's affair
        state.assign([state[0], 0])
    wrapped = private(model, noise_multiplier=1.0)
    before = model.get_weights()
    ways = WAYS if build is watched else WAYS_OF_SUBCLASSED
    for way in ("save .keras", "save_weights .weights.h5", "save .h5", "export", "Checkpoint"):
        if way not in ways:
            continue
        (tmp_path / way).mkdir()
        WAYS[way](wrapped, tmp_path / way)
        assert strangers(tmp_path / way, wrapped) == []
        assert weights_found(tmp_path / way, wrapped) == len(before)


@pytest.mark.parametrize("rows", [None, 2, 7])
def test_seed_generators_do_not_count_how_many_examples_were_drawn(rows):
    """Keras saves how often a layer drew, which is once for every so many rows."""
    model = watched()
    (before,) = (state.numpy() for state in seed_states(model))
    wrapped = private(model, noise_multiplier=1.0)
    for _ in range(2):
        wrapped.fit(*dataset(N), B, physical_batch_size=rows, steps_per_epoch=3, verbose=0)
    (state,) = seed_states(model)
    assert state.numpy().tolist() == [before[0], 6 * 4096]
