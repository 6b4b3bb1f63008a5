"""Callbacks of a private fit: none is steered by figures of training examples, and validation is said once."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.dp.training.test_private_model import B, N, dataset, private, weights_of
from tfprivacy_lab.checks import InputError
from tfprivacy_lab.dp import StopBeforeBudget
from tfprivacy_lab.dp.training import noise

callbacks_of_keras = keras.callbacks
PUBLIC = dataset(20, seed=5)


def fit(*callbacks, wrapped=None, given=None, **options):
    wrapped = wrapped or private(noise_multiplier=1.0, metrics=["accuracy"])
    options = {"epochs": 2, "steps_per_epoch": 1, "verbose": 0} | options
    history = wrapped.fit(*dataset(N), B, callbacks=list(callbacks) if given is None else given, **options)
    return wrapped, history


class OfAUser(callbacks_of_keras.Callback):
    """Says what it goes by as Keras' callbacks do."""

    def __init__(self, monitor):
        super().__init__()
        self.monitor = monitor


TRAINING = "training figures are computed from private rows without noise.*use monitor='epsilon'"
REFUSED = {
    "stopping by loss": (lambda at: callbacks_of_keras.EarlyStopping(monitor="loss"), TRAINING),
    "stopping by accuracy": (lambda at: callbacks_of_keras.EarlyStopping(monitor="accuracy"), TRAINING),
    "rate by loss": (lambda at: callbacks_of_keras.ReduceLROnPlateau(monitor="loss"), TRAINING),
    "best by accuracy": (
        lambda at: callbacks_of_keras.ModelCheckpoint(str(at / "m.keras"), monitor="accuracy", save_best_only=True),
        "ModelCheckpoint goes by 'accuracy'",
    ),
    "best weights by loss": (
        lambda at: callbacks_of_keras.ModelCheckpoint(
            at / "w.weights.h5", monitor="loss", save_best_only=True, save_weights_only=True
        ),
        "ModelCheckpoint goes by 'loss'",
    ),
    "loss in a file's name": (
        lambda at: callbacks_of_keras.ModelCheckpoint(str(at / "{epoch}-{loss:.3f}.keras")),
        "ModelCheckpoint goes by 'loss'",
    ),
    "a user's": (lambda at: OfAUser("loss"), "OfAUser goes by 'loss'"),
    "end at NaN": (lambda at: callbacks_of_keras.TerminateOnNaN(), "TerminateOnNaN stops by the training loss"),
    "profile with that graph": (
        lambda at: callbacks_of_keras.TensorBoard(at, write_graph=False, profile_batch=(1, 2)),
        "pass profile_batch=0",
    ),
    "figures of batches": (
        lambda at: callbacks_of_keras.TensorBoard(at, write_graph=False, update_freq="batch"),
        "pass update_freq='epoch'",
    ),
    "stopping by what is not there": (
        lambda at: callbacks_of_keras.EarlyStopping(),
        "EarlyStopping goes by 'val_loss', and fit has no validation_data",
    ),
    "rate by what is not there": (lambda at: callbacks_of_keras.ReduceLROnPlateau(), "no validation_data"),
    "best by what is not there": (
        lambda at: callbacks_of_keras.ModelCheckpoint(str(at / "m.keras"), save_best_only=True),
        "no validation_data",
    ),
}


GIVEN = {
    "alone": lambda callback: callback,
    "nested": lambda callback: [[callback]],
    "CallbackList": lambda callback: callbacks_of_keras.CallbackList([callback]),
}


@pytest.mark.parametrize(
    ("refused", "given"),
    [
        *((name, lambda callback: [callback]) for name in REFUSED),
        *(("stopping by loss", way) for way in GIVEN.values()),
    ],
)
def test_callbacks_that_private_figures_would_steer_are_refused(refused, given, tmp_path):
    make, message = REFUSED[refused]
    given = given(make(tmp_path))
    wrapped = private(noise_multiplier=1.0, metrics=["accuracy"])
    before = weights_of(wrapped.model)
    with pytest.raises(InputError, match=message) as refusal:
        fit(wrapped=wrapped, given=given)
    assert len(str(refusal.value).splitlines()) == 1
    assert np.array_equal(weights_of(wrapped.model), before)
    assert wrapped.phases() == []
    assert not list(tmp_path.iterdir())


def graphs_of(run):
    """All graphs of tf.function that are traced meanwhile, a step's among them, as whoever exports one would have them.

    Those of the input pipeline are none: they hold the examples as its memory does, and are run by nobody else.
    """
    made, plain = [], tf.function

    def spied(function=None, **options):
        if function is None:
            return lambda later: spied(later, **options)
        found = plain(function, **options)
        made.append(found)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tf, "function", spied)
        run()
    traced = [one for function in made for one in function._list_all_concrete_functions()]
    assert any("AssignAddVariableOp" in operations(one) for one in traced), "no step was traced"
    return b"".join(one.graph.as_graph_def().SerializeToString() for one in traced)


def operations(function):
    graph = function.graph.as_graph_def()
    return {node.op for body in (graph.node, *(one.node_def for one in graph.library.function)) for node in body}


def words_in(graphs, seed):
    words = np.random.SeedSequence(seed, spawn_key=(0,)).generate_state(3, np.uint64)
    return [word for word in words if word.tobytes() in graphs or varint(int(word)) in graphs]


@pytest.mark.parametrize("engine", ["fast", "reference"])
def test_the_key_of_the_noise_is_not_in_the_graph_of_a_step(engine, monkeypatch):
    """Graphs are written by summaries of a trace, and by whoever exports a step."""
    seed = 2**100 + 9
    wrapped = private(noise_multiplier=1.0, seed=seed, engine=engine)
    assert words_in(graphs_of(lambda: fit(wrapped=wrapped)), seed) == []
    if engine == "fast":  # The look finds a key that is there: TensorFlow writes so few words into a graph.
        monkeypatch.setattr(noise, "_HELD_BY_REFERENCE", 3)
        wrapped = private(noise_multiplier=1.0, seed=seed, engine=engine)
        assert words_in(graphs_of(lambda: fit(wrapped=wrapped)), seed)


@pytest.mark.parametrize(("engine", "sampling"), [("fast", "poisson"), ("fast", "shuffled"), ("reference", "poisson")])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_no_example_is_in_the_graph_of_a_step(engine, sampling):
    """So few that TensorFlow would copy them into a graph that captured them."""
    x, y = np.random.default_rng(0).normal(size=(12, 5)).astype(np.float32), np.arange(12) % 3
    assert x.size <= 128
    wrapped = private(noise_multiplier=1.0, engine=engine)
    graphs = graphs_of(lambda: wrapped.fit(x, y, 4, sampling=sampling, verbose=0))
    assert not any(value.tobytes() in graphs for value in x.ravel())

    def capturing():  # The look finds examples that are there.
        kept, held = tf.Variable(0.0), tf.constant(x)
        tf.function(lambda: kept.assign_add(tf.reduce_sum(held)))()

    assert all(value.tobytes() in graphs_of(capturing) for value in x.ravel())


def varint(number):
    """As protocol buffers write a whole number in a list of few."""
    digits = []
    while number >= 128:
        digits.append(number % 128 + 128)
        number //= 128
    return bytes([*digits, number])


class Looking(callbacks_of_keras.Callback):
    """Writes down what each event brings."""

    def __init__(self):
        super().__init__()
        self.seen, self.added = {}, {}

    def on_train_batch_end(self, batch, logs=None):
        self.seen["batch"] = dict(logs)

    def on_epoch_end(self, epoch, logs=None):
        self.seen["epoch"] = dict(logs)
        logs["noted"] = 2.5

    def on_train_end(self, logs=None):
        self.seen["end"] = dict(logs)

    def on_test_end(self, logs=None):
        self.seen["test"] = dict(logs)


def test_callbacks_see_no_training_figure_and_history_does():
    looking, after = Looking(), []
    later = callbacks_of_keras.LambdaCallback(on_epoch_end=lambda epoch, logs: after.append(dict(logs)))
    wrapped, history = fit(looking, later, validation_data=PUBLIC)
    assert looking.seen["batch"] == {}
    assert set(looking.seen["epoch"]) == {"epsilon", "val_loss", "val_accuracy"}
    assert set(looking.seen["end"]) <= {"epsilon", "val_loss", "val_accuracy"}
    assert set(looking.seen["test"]) == {"loss", "accuracy"}
    assert looking.seen["test"]["loss"] == pytest.approx(history.history["val_loss"][-1])
    # What a callback adds is there for those after it, and in the history.
    assert after[0]["noted"] == 2.5
    assert set(history.history) == {"loss", "accuracy", "val_loss", "val_accuracy", "epsilon", "noted"}
    assert looking.model is wrapped
    assert looking.params["steps"] == 1


def test_a_metric_of_training_by_a_validation_figures_name_is_kept_back():
    looking = Looking()
    wrapped = private(noise_multiplier=1.0, metrics=[keras.metrics.SparseCategoricalAccuracy("val_private")])
    _, history = fit(looking, wrapped=wrapped)
    assert "val_private" in history.history
    assert set(looking.seen["epoch"]) == {"epsilon"}


def test_reaching_for_a_training_figure_says_why_it_is_not_there():
    reaching = callbacks_of_keras.LambdaCallback(on_epoch_end=lambda epoch, logs: logs["loss"])
    with pytest.raises(InputError, match=r"logs\['loss'\] is not for callbacks of a private fit"):
        fit(reaching)


def test_what_public_figures_steer_goes_on_working():
    stopping = callbacks_of_keras.EarlyStopping(monitor="epsilon", mode="min", patience=1)
    _, history = fit(stopping, epochs=9)
    assert len(history.history["loss"]) == 2
    _, history = fit(callbacks_of_keras.ReduceLROnPlateau(monitor="val_loss"), validation_data=PUBLIC)
    assert history.history["learning_rate"] == pytest.approx([0.5, 0.5])
    _, history = fit(StopBeforeBudget(1e3), callbacks_of_keras.LearningRateScheduler(lambda epoch: 0.25))
    assert history.history["learning_rate"] == [0.25, 0.25]


def test_users_history_and_progress_bar_show_all(capsys):
    own = callbacks_of_keras.History()
    _, history = fit(own, callbacks_of_keras.ProgbarLogger(), verbose=2)
    assert set(own.history) == set(history.history) == {"loss", "accuracy", "epsilon"}
    assert "loss" in capsys.readouterr().out


def test_validation_figures_are_said_once_and_stated():
    stopping = callbacks_of_keras.EarlyStopping(patience=5)
    wrapped = private(noise_multiplier=1.0)
    with pytest.warns(UserWarning, match="EarlyStopping goes by val_ figures.*outside epsilon unless") as said:
        fit(stopping, wrapped=wrapped, validation_data=PUBLIC)
    assert sum("val_" in str(one.message) for one in said) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        fit(stopping, wrapped=wrapped, validation_data=PUBLIC)
        unsteered, _ = fit(validation_data=PUBLIC)
    assert sum("validation" in text for text in wrapped.privacy()["not_covered"]) == 1
    assert not any("validation" in text for text in unsteered.privacy()["not_covered"])
    assert any("loss and metrics of training" in text for text in unsteered.privacy()["not_covered"])


def test_no_figure_is_left_in_the_model_after_a_fit_even_one_that_ends_in_an_error():
    def stop(batch, logs):
        raise KeyboardInterrupt

    wrapped = private(noise_multiplier=1.0, metrics=["accuracy"])
    with pytest.raises(KeyboardInterrupt):
        fit(callbacks_of_keras.LambdaCallback(on_train_batch_end=stop), wrapped=wrapped)
    assert len(wrapped.metrics) == 2
    assert all(not np.any(variable) for metric in wrapped.metrics for variable in metric.variables)
