"""A fit that is charged to a ledger before its first draw, or refused."""

import keras
import numpy as np
import pytest

from tests.dp.training.test_private_model import B, N, dataset, private, weights_of
from tfprivacy_lab.checks import InputError
from tfprivacy_lab.dp import LedgerCallback, StopBeforeBudget
from tfprivacy_lab.dp.accounting.gaussian import DpSgdRun, epsilon_after
from tfprivacy_lab.dp.ledger.ledger import Ledger
from tfprivacy_lab.dp.training.noise import GaussianNoise

DELTA = 1e-3


@pytest.fixture
def ledger(tmp_path):
    return Ledger.create(tmp_path / "ledger", "digits", epsilon=4.0, delta=DELTA)


def cost(steps):
    """ε of so many steps of the model below."""
    return epsilon_after(DpSgdRun(N, B, 2.0, max(steps, 1)), steps, DELTA)


def model(**options):
    return private(noise_multiplier=2.0, delta=DELTA, **options)


def test_a_fit_is_charged_before_its_first_draw_and_wholly(ledger, monkeypatch):
    seen, add = [], GaussianNoise.add

    def noting(self, *arguments, **options):
        seen.append(Ledger.open(ledger.path).spent())
        return add(self, *arguments, **options)

    monkeypatch.setattr(GaussianNoise, "add", noting)
    wrapped = model()
    wrapped.fit(*dataset(N), B, epochs=2, callbacks=[LedgerCallback(ledger, "run")], verbose=0)
    assert seen
    assert seen[0] == ledger.spent() == pytest.approx(cost(10), rel=1e-6)
    assert ledger.spent() == pytest.approx(wrapped.epsilon(), rel=1e-6)


def test_further_fits_are_further_parts_and_uncharged_ones_are_caught_up(ledger):
    x, y = dataset(N)
    wrapped, callback = model(), LedgerCallback(ledger.path, "run")
    wrapped.fit(x, y, B, verbose=0)
    wrapped.fit(x, y, B, callbacks=[callback], verbose=0)
    assert ledger.spent() == pytest.approx(cost(10), rel=1e-6)
    wrapped.fit(x, y, B, callbacks=[callback], verbose=0)
    assert callback.reservation.part == 1
    wrapped.fit(x, y, B, steps_per_epoch=2, verbose=0)
    wrapped.fit(x, y, B, steps_per_epoch=1, callbacks=[LedgerCallback(ledger, "run")], verbose=0)
    assert ledger.spent() == pytest.approx(cost(18), rel=1e-6)
    assert [entry.part for entry in ledger.entries()] == [0, 1, 2]


def test_what_would_overspend_is_refused_before_a_step(ledger):
    wrapped = model()
    before = weights_of(wrapped.model)
    with pytest.raises(InputError, match=r"refuses run 'run'.*above the total of epsilon=4"):
        wrapped.fit(*dataset(N), B, epochs=100, callbacks=[LedgerCallback(ledger, "run")], verbose=0)
    assert np.array_equal(weights_of(wrapped.model), before)
    assert wrapped.phases()[-1].steps == 0
    assert ledger.entries() == ()
    # Cut to a budget first, the same call is granted, and no step passes what was charged.
    limits = [StopBeforeBudget(3.9), LedgerCallback(ledger, "run")]
    wrapped.fit(*dataset(N), B, epochs=100, callbacks=limits, verbose=0)
    assert 3.7 < wrapped.epsilon() == pytest.approx(ledger.spent(), rel=1e-6)
    assert ledger.spent() <= 3.9


def test_a_fit_that_is_stopped_keeps_its_charge(ledger):
    def stop(batch, logs):
        raise KeyboardInterrupt

    wrapped = model()
    stopper = keras.callbacks.LambdaCallback(on_train_batch_end=stop)
    with pytest.raises(KeyboardInterrupt):
        wrapped.fit(*dataset(N), B, callbacks=[LedgerCallback(ledger, "run"), stopper], verbose=0)
    assert wrapped.phases()[0].steps == 1
    wrapped.fit(*dataset(N), B, callbacks=[LedgerCallback(ledger, "run")], verbose=0)
    assert ledger.spent() == pytest.approx(cost(10), rel=1e-6)
    assert wrapped.epsilon() == pytest.approx(cost(6), rel=1e-6)


def test_the_same_seed_or_name_is_refused_to_another_model(ledger):
    model().fit(*dataset(N), B, callbacks=[LedgerCallback(ledger, "run")], verbose=0)
    for name, seed, message in (("run", 4, "another noise seed"), ("other", 3, "same noise seed"), ("run", 3, "other")):
        with pytest.raises(InputError, match=message):
            model(seed=seed).fit(*dataset(N), B, callbacks=[LedgerCallback(ledger, name)], verbose=0)
    assert len(ledger.entries()) == 1


def test_shuffled_and_noiseless_fits_are_refused(ledger):
    with pytest.raises(InputError, match="zero_out"):
        model().fit(*dataset(N), B, sampling="shuffled", callbacks=[LedgerCallback(ledger, "run")], verbose=0)
    with pytest.raises(InputError, match="no noise"):
        private().fit(*dataset(N), B, callbacks=[LedgerCallback(ledger, "run")], verbose=0)
    assert ledger.entries() == ()


def test_an_empty_fit_costs_nothing(ledger):
    limits = [StopBeforeBudget(3.0), LedgerCallback(ledger, "run")]
    model().fit(*dataset(N), B, epochs=1, initial_epoch=1, callbacks=limits, verbose=0)
    assert ledger.entries() == ()


def test_no_steps_beyond_the_plan(ledger):
    """Whatever Keras is made to do, what was charged bounds what is drawn."""
    wrapped = model(compiled={"steps_per_execution": 3})
    wrapped.fit(*dataset(N), B, epochs=3, callbacks=[LedgerCallback(ledger, "run")], verbose=0)
    assert wrapped.phases()[0].steps == 15
