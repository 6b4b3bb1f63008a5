"""A model that was fitted under DP before: whoever wraps it next counts what that cost."""

import gc
import warnings
import weakref

import keras
import numpy as np
import pytest

from tests.dp.training.test_planned import CLASSES, WIDTH
from tests.dp.training.test_private_model import B, N, dataset, linear, private
from tfprivacy_lab.checks import InputError
from tfprivacy_lab.dp import (
    DpSgdRun,
    LaplacePlan,
    LaplaceRun,
    LedgerCallback,
    StopBeforeBudget,
    TrainingPlan,
    train,
    train_laplace,
)
from tfprivacy_lab.dp.accounting.gaussian import epsilon_after
from tfprivacy_lab.dp.ledger.ledger import Ledger

layers = keras.layers
DELTA = 1e-3
X, Y = dataset(N)
AGAIN = "was fitted under differential privacy before, for 5 steps"


def wrap(model, seed=None):
    return private(model, noise_multiplier=2.0, delta=DELTA, seed=seed)


def fitted(model):
    wrapped = wrap(model)
    wrapped.fit(X, Y, B, verbose=0)
    return wrapped


def cost(steps):
    return epsilon_after(DpSgdRun(N, B, 2.0, max(steps, 1)), steps, DELTA)


def test_wrapping_a_fitted_model_goes_on_from_its_epsilon():
    model = linear()
    first = fitted(model)
    with pytest.warns(UserWarning, match=AGAIN):
        second = wrap(model)
    assert second.epsilon() == first.epsilon() == pytest.approx(cost(5), rel=1e-6)
    assert second.fit(X, Y, B, verbose=0).history["epsilon"] == [pytest.approx(cost(10), rel=1e-6)]
    # Both are of the same weights.
    assert first.epsilon() == second.epsilon() == second.privacy()["epsilon"]
    first.fit(X, Y, B, steps_per_epoch=1, verbose=0)
    assert second.privacy()["steps"] == 11
    with pytest.raises(InputError, match="leaves no step"):
        second.fit(X, Y, B, callbacks=[StopBeforeBudget(cost(11))], verbose=0)


SHARED = {
    "nested": (lambda model: keras.Sequential([layers.Input((WIDTH,)), model, layers.Dense(3)]), True),
    "its layer": (lambda model: keras.Sequential([layers.Input((WIDTH,)), model.layers[0]]), True),
    "functional": (lambda model: keras.Model(model.inputs, layers.Dense(2)(model.outputs[0])), True),
    "a copy": (keras.models.clone_model, False),
    "its input alone": (lambda model: keras.Model(model.inputs, layers.Dense(2)(model.inputs[0])), False),
}


@pytest.mark.parametrize(("build", "shares"), SHARED.values(), ids=SHARED.keys())
def test_the_past_is_that_of_the_layers(build, shares):
    model = linear()
    fitted(model)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        again = wrap(build(model))
    assert any(AGAIN in str(one.message) for one in said) == shares
    assert again.epsilon() == (pytest.approx(cost(5), rel=1e-6) if shares else 0)


def test_layers_that_were_frozen_have_no_past():
    backbone = keras.Sequential([layers.Input((WIDTH,)), layers.Dense(4)])
    backbone.trainable = False
    heads = [keras.Sequential([layers.Input((WIDTH,)), backbone, layers.Dense(CLASSES)]) for _ in range(2)]
    fitted(heads[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert wrap(heads[1]).epsilon() == 0


def test_the_same_noise_is_refused_to_the_same_model():
    model = linear()
    first = wrap(model, seed=3)
    wrap(model, seed=3)  # Nothing was drawn yet.
    first.fit(X, Y, B, verbose=0)
    with pytest.raises(InputError, match="with this very seed"):
        wrap(model, seed=3)


def test_a_ledger_is_charged_once_for_what_others_did(tmp_path):
    ledger, model = Ledger.create(tmp_path / "ledger", "digits", epsilon=9.0, delta=DELTA), linear()
    fitted(model)
    with pytest.warns(UserWarning, match=AGAIN):
        second = wrap(model)
    for steps in (10, 15):
        second.fit(X, Y, B, callbacks=[LedgerCallback(ledger, "second")], verbose=0)
        assert ledger.spent() == pytest.approx(cost(steps), rel=1e-6)


@pytest.mark.parametrize("engine", ["reference", "fast"])
def test_training_by_a_plan_is_a_past_too(engine):
    model, plan = linear(), TrainingPlan(B, 1, 1.0, 0.1)
    run = DpSgdRun(N, B, 2.0, 5)
    train(model, X, Y, plan=plan, run=run, delta=DELTA, seed=8, engine=engine)
    with pytest.warns(UserWarning, match=AGAIN):
        again = wrap(model)
    assert again.epsilon() == pytest.approx(cost(5), rel=1e-6)
    with pytest.raises(InputError, match="with this very seed"):
        wrap(model, seed=8)
    # Nor is a mean loss of private rows left in the model, that would be saved with it.
    assert not any(np.any(variable) for metric in model.metrics for variable in metric.variables)


def test_laplace_training_is_said_and_stated():
    model, plan = linear(), LaplacePlan(B, 1, 1.0, 0.1)
    train_laplace(model, X, Y, plan=plan, run=LaplaceRun(N, B, 2.0, 5), delta=0, seed=8)
    with pytest.warns(UserWarning, match=r"5 steps under Laplace noise.*epsilon\(\) does not count it"):
        again = wrap(model)
    assert again.epsilon() == 0
    assert any("Laplace" in text for text in again.privacy()["not_covered"])
    assert not any(np.any(variable) for metric in model.metrics for variable in metric.variables)


def test_a_past_keeps_no_model_alive():
    model = linear()
    fitted(model)
    gone = weakref.ref(model)
    del model
    keras.backend.clear_session()
    gc.collect()
    assert gone() is None
    assert np.isfinite(cost(5))
