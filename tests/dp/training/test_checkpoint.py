"""A private fit that is put down and taken up again: its state, its cost, its noise, and files that are refused."""

import io
import json
import os
import stat
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from tests.dp.training.test_planned import WIDTH
from tests.dp.training.test_private_model import (
    LOSS,
    OPTIMIZERS,
    B,
    N,
    dataset,
    independent_epsilon,
    linear,
    private,
    weights_of,
)
from tfprivacy_lab.checks import InputError
from tfprivacy_lab.dp import LedgerCallback, PrivateModel, QuantileClip, SaveCheckpoint, StopBeforeBudget
from tfprivacy_lab.dp.accounting.gaussian import DpSgdRun, epsilon_after
from tfprivacy_lab.dp.accounting.phases import Phase, epsilon_of
from tfprivacy_lab.dp.ledger.ledger import Ledger
from tfprivacy_lab.dp.training import checkpoint

DELTA = 1e-3
X, Y = dataset(N)


def model(seed, **options):
    return private(**{"noise_multiplier": 2.0, "delta": DELTA, "seed": seed} | options)


def resumed(path, seed=None, **options):
    """A new PrivateModel around a new model, that goes on from a file."""
    wrapped = model(seed, **options)
    wrapped.restore_checkpoint(path)
    return wrapped


@pytest.mark.slow_but("Adam")
@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_a_resumed_run_goes_where_an_uninterrupted_one_goes(optimizer, tmp_path):
    """Every example in every batch, and no noise: nothing depends on the seed."""
    whole, first = (model(3, noise_multiplier=0.0, optimizer=optimizer()) for _ in range(2))
    first.model.set_weights(whole.model.get_weights())
    slower = keras.callbacks.LearningRateScheduler(lambda epoch: 0.3 / (epoch + 1))
    callbacks = [] if isinstance(optimizer().get_config()["learning_rate"], dict) else [slower]
    for wrapped, epochs in ((whole, 5), (first, 3)):
        wrapped.fit(X, Y, N, epochs=epochs, callbacks=callbacks, verbose=0)
    first.save_checkpoint(tmp_path / "run.npz")
    second = resumed(tmp_path / "run.npz", noise_multiplier=0.0, optimizer=optimizer())
    assert np.array_equal(weights_of(second.model), weights_of(first.model))
    assert second.optimizer.iterations == 3
    assert checkpoint._learning_rate(second.optimizer) == checkpoint._learning_rate(first.optimizer)
    second.fit(X, Y, N, epochs=5, initial_epoch=3, callbacks=callbacks, verbose=0)
    np.testing.assert_allclose(weights_of(second.model), weights_of(whole.model), atol=1e-6)


def test_epsilon_goes_on_over_several_resumes_and_samplings(tmp_path):
    path, done = tmp_path / "run.npz", []
    for seed, sampling in ((3, "poisson"), (4, "shuffled"), (5, "poisson")):
        wrapped = resumed(path, seed) if done else model(seed)
        assert wrapped.phases() == done
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            shown = wrapped.fit(X, Y, B + len(done), steps_per_epoch=4, sampling=sampling, verbose=0)
        done.append(Phase(N, B + len(done), 2.0, sampling, 4))
        assert wrapped.phases() == done
        assert shown.history["epsilon"] == [pytest.approx(independent_epsilon(done, DELTA), rel=1e-3)]
        wrapped.save_checkpoint(path)
    said = resumed(path).privacy()
    assert (said["adjacency"], said["steps"]) == ("zero_out", 12)
    assert said["epsilon"] == epsilon_of(done, DELTA)


def test_budgets_count_what_was_done_before(tmp_path):
    first = model(3)
    first.fit(X, Y, B, epochs=1, verbose=0)
    first.save_checkpoint(tmp_path / "run.npz")
    second = resumed(tmp_path / "run.npz")
    second.fit(X, Y, B, epochs=50, callbacks=[StopBeforeBudget(4.0)], verbose=0)
    (before, last) = second.phases()
    assert before.steps == 5
    assert second.epsilon() <= 4.0 < epsilon_after(DpSgdRun(N, B, 2.0, 1), 5 + last.steps + 1, DELTA)
    second.save_checkpoint(tmp_path / "run.npz")
    third = resumed(tmp_path / "run.npz")
    with pytest.raises(InputError, match="leaves no step"):
        third.fit(X, Y, B, callbacks=[StopBeforeBudget(4.0)], verbose=0)


@pytest.mark.parametrize("charged", [False, True])
def test_a_ledger_is_charged_once_for_every_step(charged, tmp_path):
    ledger = Ledger.create(tmp_path / "ledger", "digits", epsilon=9.0, delta=DELTA)
    first = model(3)
    first.fit(X, Y, B, callbacks=[LedgerCallback(ledger, "first")] if charged else [], verbose=0)
    first.save_checkpoint(tmp_path / "run.npz")
    second = resumed(tmp_path / "run.npz", 4)
    second.fit(X, Y, B, callbacks=[LedgerCallback(ledger, "second")], verbose=0)
    assert [entry.run for entry in ledger.entries()] == (["first", "second"] if charged else ["second"])
    assert ledger.spent() == pytest.approx(epsilon_after(DpSgdRun(N, B, 2.0, 1), 10, DELTA), rel=1e-6)
    second.save_checkpoint(tmp_path / "run.npz")
    third = resumed(tmp_path / "run.npz", 5)
    third.fit(X, Y, B, callbacks=[LedgerCallback(ledger, "third")], verbose=0)
    assert ledger.spent() == pytest.approx(third.epsilon(), rel=1e-6)


def test_no_noise_and_no_sample_comes_again(tmp_path):
    """The same step numbers, from the same weights: what was drawn before, after one resume, and after another."""
    width, path, moves = 3000, tmp_path / "run.npz", []
    x, y = np.ones((N, width), np.float32), np.zeros(N, int)

    def moved(wrapped):
        before = weights_of(wrapped.model).astype(float)
        wrapped.fit(x, y, B, steps_per_epoch=2, sample_weight=np.zeros(N), verbose=0)
        moves.append(weights_of(wrapped.model) - before)
        return wrapped

    given = {"model": linear(width), "noise_multiplier": 1.0}
    wrapped = model(3, **given)
    wrapped.save_checkpoint(path)
    moved(wrapped)
    with pytest.raises(InputError, match=r"run\.npz was drawn by this PrivateModel's very seed"):
        resumed(path, 3, model=linear(width))
    for _ in range(2):
        moved(resumed(path, model=linear(width), noise_multiplier=1.0))
    assert min(np.std(move) for move in moves) > 0.01
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert stats.pearsonr(moves[one], moves[other]).pvalue > 1e-3


def test_an_adaptive_norm_goes_on(tmp_path):
    clip = QuantileClip(0.8, B, 5.0, learning_rate=0.5)
    first = model(3, l2_norm_clip=clip)
    first.fit(X, Y, B, epochs=2, verbose=0)
    assert abs(first.l2_norm_clip - 0.8) > 0.01
    first.save_checkpoint(tmp_path / "run.npz")
    assert resumed(tmp_path / "run.npz", l2_norm_clip=clip).l2_norm_clip == first.l2_norm_clip
    with pytest.raises(InputError, match=r"run\.npz is of an adaptive l2_norm_clip"):
        resumed(tmp_path / "run.npz")


def test_a_fit_that_is_killed_is_taken_up_at_its_last_epoch(tmp_path):
    path = tmp_path / "run.npz"

    def kill(batch, logs):
        if int(first.optimizer.iterations) == 12:
            raise KeyboardInterrupt

    first = model(3)
    killing = keras.callbacks.LambdaCallback(on_train_batch_end=kill)
    with pytest.raises(KeyboardInterrupt):
        first.fit(X, Y, B, epochs=4, callbacks=[SaveCheckpoint(path), killing], verbose=0)
    assert [phase.steps for phase in first.phases()] == [12]
    with pytest.warns(UserWarning, match="up to 10 steps may have been done after it"):
        second = resumed(path)
    assert [phase.steps for phase in second.phases()] == [10]
    assert any("10 steps" in text for text in second.privacy()["not_covered"])
    second.fit(X, Y, B, epochs=4, initial_epoch=2, callbacks=[SaveCheckpoint(path)], verbose=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        third = resumed(path)
    assert sum(phase.steps for phase in third.phases()) == 20
    assert any("10 steps" in text for text in third.privacy()["not_covered"])


def test_a_save_that_is_killed_leaves_the_former_file(tmp_path, monkeypatch):
    path = tmp_path / "run.npz"
    wrapped = model(3)
    wrapped.fit(X, Y, B, verbose=0)
    wrapped.save_checkpoint(path)
    former = path.read_bytes()

    def killed(stream, **arrays):
        stream.write(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", killed)
        with pytest.raises(KeyboardInterrupt):
            wrapped.save_checkpoint(path)
    assert path.read_bytes() == former
    assert os.listdir(tmp_path) == ["run.npz"]
    assert resumed(path).phases() == wrapped.phases()


def test_the_file_is_its_owners_and_holds_no_seed(tmp_path):
    seed = 2**100 + 98765
    wrapped = model(seed)
    wrapped.fit(X, Y, B, verbose=0)
    wrapped.save_checkpoint(tmp_path / "run.npz")
    assert stat.S_IMODE(os.stat(tmp_path / "run.npz").st_mode) == 0o600
    content = (tmp_path / "run.npz").read_bytes()
    state = np.random.SeedSequence(seed, spawn_key=(0,)).generate_state(3, np.uint64)
    for secret in (*state, np.uint64(seed % 2**64)):
        assert secret.tobytes() not in content
        assert str(secret).encode() not in content
    assert str(seed).encode() not in content


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """The bytes of a checkpoint."""
    path = tmp_path_factory.mktemp("checkpoint") / "run.npz"
    wrapped = model(3)
    wrapped.fit(X, Y, B, verbose=0)
    wrapped.save_checkpoint(path)
    return path.read_bytes()


def rewritten(content, *, forged=True, arrays=(), **changes):
    """A checkpoint with another record or other arrays; with a digest made anew, or the former one."""
    with np.load(io.BytesIO(content)) as former:
        held = {name: former[name] for name in former.files} | dict(arrays)
    record = json.loads(held["record"].tobytes()) | changes
    held["record"] = np.frombuffer(json.dumps(record).encode(), np.uint8)
    if forged:
        del held["digest"]
        held["digest"] = checkpoint._digest(held)
    written = io.BytesIO()
    np.savez(written, **held)
    return written.getvalue()


PHASE = {"examples": N, "batch_size": B, "noise_multiplier": 2.0, "sampling": "poisson", "steps": 5}
DAMAGED = {
    "no file": (None, "No such file"),
    "empty": (lambda content: b"", "not a .npz file"),
    "cut": (lambda content: content[:-200], "not a .npz file"),
    "half of it": (lambda content: content[: len(content) // 2], "not a .npz file"),
    "another file": (lambda content: _npz(kernel=np.ones(3)), "it is no checkpoint of a PrivateModel"),
    "fewer steps": (lambda c: rewritten(c, forged=False, phases=[PHASE | {"steps": 1}]), "its digest does not hold"),
    "other weights": (
        lambda c: rewritten(c, forged=False, arrays={"weight_1": np.ones(3, np.float32)}),
        "its digest does not hold",
    ),
    "negative steps": (lambda c: rewritten(c, phases=[PHASE | {"steps": -5}]), "steps to be a whole number"),
    "no phases": (lambda c: rewritten(c, phases=None), "Cannot read the checkpoint"),
    "no such sampling": (lambda c: rewritten(c, phases=[PHASE | {"sampling": "sorted"}]), "sampling to be one of"),
    "another format": (lambda c: rewritten(c, format="2"), "of format '2'"),
    "streams of no kind": (lambda c: rewritten(c, streams=[3]), "Cannot read the checkpoint"),
    "a norm of text": (lambda c: rewritten(c, adaptive_clip="wide"), "adaptive_clip to be"),
    "unnumbered": (lambda c: rewritten(c, arrays={"weight_x": np.ones(1)}), "Cannot read the checkpoint"),
}


def _npz(**arrays):
    written = io.BytesIO()
    np.savez(written, **arrays)
    return written.getvalue()


@pytest.mark.parametrize(("change", "message"), DAMAGED.values(), ids=DAMAGED.keys())
def test_files_that_are_damaged_or_changed_are_refused_by_name(change, message, file, tmp_path):
    path = tmp_path / "run.npz"
    if change is not None:
        path.write_bytes(change(file))
    assert_refused(model(4), path, rf"run\.npz.*{message}|{message}.*run\.npz")


def assert_refused(wrapped, path, message):
    """In a line that names the file, with nothing changed."""
    before = weights_of(wrapped.model)
    with pytest.raises(InputError, match=message) as refusal:
        wrapped.restore_checkpoint(path)
    assert str(path) in str(refusal.value)
    assert len(str(refusal.value).splitlines()) == 1
    assert np.array_equal(weights_of(wrapped.model), before)
    assert (wrapped.phases(), int(wrapped.optimizer.iterations)) == ([], 0)


def test_pickled_objects_are_not_read(tmp_path):
    np.savez(tmp_path / "run.npz", record=np.array([{}], dtype=object), digest=np.zeros(32, np.uint8))
    assert_refused(model(4), tmp_path / "run.npz", "damaged")


OTHERS = {
    "wider": ({"model": lambda: linear(WIDTH + 1)}, "weights that do not fit"),
    "deeper": (
        {"model": lambda: keras.Sequential([*linear().layers, keras.layers.Dense(3)])},
        "holds 2 weights, and this model has 4",
    ),
    "another optimizer": ({"optimizer": lambda: keras.optimizers.Adam(0.1)}, "is of the optimizer SGD, got Adam"),
    "an average": (
        {"optimizer": lambda: keras.optimizers.SGD(0.5, use_ema=True)},
        "holds 1 variables of SGD, and this model has 3",
    ),
}


@pytest.mark.parametrize(("other", "message"), OTHERS.values(), ids=OTHERS.keys())
def test_files_of_another_model_or_optimizer_are_refused(other, message, file, tmp_path):
    (tmp_path / "run.npz").write_bytes(file)
    made = {name: make() for name, make in other.items()}
    if "model" in made:
        made["model"](np.zeros((1, *(made["model"].input_shape[1:] if made["model"].built else (WIDTH,)))))
    assert_refused(model(4, **made), tmp_path / "run.npz", message)


def test_a_checkpoint_is_for_a_new_compiled_model_of_the_fast_engine(file, tmp_path):
    path = tmp_path / "run.npz"
    path.write_bytes(file)
    uncompiled = PrivateModel(linear(), l2_norm_clip=1.0, noise_multiplier=1.0)
    reference = model(4, engine="reference")
    for call in ("save_checkpoint", "restore_checkpoint"):
        with pytest.raises(InputError, match=f"before {call}"):
            getattr(uncompiled, call)(path)
        with pytest.raises(InputError, match=f"{call} is for engine='fast'"):
            getattr(reference, call)(path)
    fitted = model(4)
    fitted.fit(X, Y, B, verbose=0)
    with pytest.raises(InputError, match="before the first fit"):
        fitted.restore_checkpoint(path)
    again = resumed(path)
    with pytest.raises(InputError, match="before the first fit"):
        again.restore_checkpoint(path)
    assert path.read_bytes() == file


def test_a_model_that_a_checkpoint_replaces_counts_what_the_checkpoint_says(file, tmp_path):
    """Its own past goes with its weights: nothing is counted twice, and nothing of the file's is left out."""
    (tmp_path / "run.npz").write_bytes(file)
    inner = linear()
    first = model(6, model=inner)
    first.fit(X, Y, B, steps_per_epoch=2, verbose=0)
    with pytest.warns(UserWarning, match="before, for 2 steps"):
        second = model(7, model=inner)
    second.restore_checkpoint(tmp_path / "run.npz")
    assert [phase.steps for phase in second.phases()] == [5]
    second.fit(X, Y, B, verbose=0)
    assert [phase.steps for phase in second.phases()] == [5, 5]


def test_compiling_again_keeps_the_record(file, tmp_path):
    (tmp_path / "run.npz").write_bytes(file)
    wrapped = resumed(tmp_path / "run.npz")
    wrapped.compile("sgd", LOSS)
    wrapped.fit(X, Y, B, verbose=0)
    assert [phase.steps for phase in wrapped.phases()] == [5, 5]


def test_a_checkpoint_goes_on_under_a_strategy(tmp_path):
    strategy, path = tf.distribute.MirroredStrategy(["/cpu:0"]), tmp_path / "run.npz"
    made = []
    for seed in (3, 4):
        with strategy.scope():
            made.append(model(seed, optimizer=keras.optimizers.Adam(0.1)))
        if seed == 4:
            made[1].restore_checkpoint(path)
            assert np.array_equal(weights_of(made[1].model), weights_of(made[0].model))
        made[-1].fit(X, Y, B, verbose=0)
        made[-1].save_checkpoint(path)
    assert [phase.steps for phase in made[1].phases()] == [5, 5]
    assert made[1].optimizer.iterations == 10


def with_a_head(base):
    return keras.Sequential([keras.Input((WIDTH,)), base, keras.layers.Dense(3)])


def test_layers_that_are_frozen_on_resuming_keep_their_past(tmp_path):
    """They were trained under DP where the checkpoint came from; another head on them begins from that."""

    def stacked(trainable):
        base = keras.Sequential([keras.Input((WIDTH,)), keras.layers.Dense(4, trainable=trainable)])
        return base, with_a_head(base)

    _, both = stacked(True)
    first = model(3, model=both, optimizer=keras.optimizers.SGD(0.1))
    first.fit(X, Y, B, verbose=0)
    first.save_checkpoint(tmp_path / "run.npz")
    base, head = stacked(False)
    resumed(tmp_path / "run.npz", model=head, optimizer=keras.optimizers.SGD(0.1))
    with pytest.warns(UserWarning, match="was fitted under differential privacy before"):
        other = model(5, model=with_a_head(base))
    assert other.phases() == first.phases()
