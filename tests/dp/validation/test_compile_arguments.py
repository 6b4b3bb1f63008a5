"""What Keras users hand to compile and fit: taken where it is right, else refused by one line that says the way on."""

import warnings

import keras
import numpy as np
import pytest
import tf_keras

from tests.dp.training.test_private_model import LOSS, B, N, dataset, linear, private, weights_of
from tfprivacy_lab import tf_privacy
from tfprivacy_lab.checks import InputError
from tfprivacy_lab.dp import PrivateModel, StopBeforeBudget

_PLAIN, _VECTORIZED = (
    tf_privacy.load(f"optimizers.{name}", "this test")
    for name in ("dp_optimizer_keras", "dp_optimizer_keras_vectorized")
)
DPKerasSGDOptimizer = tf_privacy.sgd_classes("this test")[0]
DPKerasAdamOptimizer = _PLAIN.make_gaussian_query_optimizer_class(
    _PLAIN.make_keras_generic_optimizer_class(tf_keras.optimizers.legacy.Adam)
)
VectorizedDPKerasSGDOptimizer = _VECTORIZED.make_vectorized_keras_optimizer_class(tf_keras.optimizers.legacy.SGD)

REFUSED = {
    "a DP optimizer": ({"optimizer": DPKerasSGDOptimizer(1.0, 1.0, 1)}, "PrivateModel clips and adds the noise itself"),
    "DP Adam": ({"optimizer": DPKerasAdamOptimizer(1.0, 1.0, 1)}, "PrivateModel clips and adds the noise itself"),
    "vectorized": ({"optimizer": VectorizedDPKerasSGDOptimizer(1.0, 1.0, 1)}, "PrivateModel clips and adds the noise"),
    "an unknown name": ({"optimizer": "sgdd"}, "name of one .*got 'sgdd'"),
    "no optimizer": ({"optimizer": 7}, "got 7"),
    "an optimizer of Keras 2": ({"optimizer": tf_keras.optimizers.SGD(0.1)}, "SGD"),
    "a scaled optimizer": ({"optimizer": keras.optimizers.SGD(loss_scale_factor=8.0)}, "without loss_scale_factor"),
    "a scaled loss": (
        {"optimizer": keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD())},
        "LossScaleOptimizer",
    ),
    "an unknown metric": ({"metrics": ["accuracy", "acuracy"]}, "metrics to be .*got 'acuracy'"),
    "a metric that is none": ({"metrics": [3]}, "metrics to be .*got 3"),
    "an unknown weighted metric": ({"compiled": {"weighted_metrics": ["acuracy"]}}, "weighted_metrics .*'acuracy'"),
}


@pytest.mark.parametrize(("options", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_compile_refuses_by_one_line(options, said):
    with pytest.raises(InputError, match=said) as caught:
        private(**options)
    assert "\n" not in str(caught.value)


def test_a_batch_of_ones_own_choice_is_refused():
    with pytest.raises(InputError, match="call fit"):
        private().train_on_batch(*dataset(B))


def test_a_batch_is_tested_and_predicted():
    x, y = dataset(B)
    wrapped = private(metrics=["accuracy"])
    labels = wrapped.predict_on_batch(x).argmax(1)
    assert wrapped.test_on_batch(x, labels, return_dict=True)["accuracy"] == 1.0
    assert wrapped.test_on_batch(x, y, return_dict=True)["loss"] == pytest.approx(wrapped.evaluate(x, y, verbose=0)[0])


def test_one_callback_needs_no_list():
    seen = []
    wrapped = private()
    wrapped.fit(*dataset(N), B, callbacks=keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: seen.append(1)))
    assert seen == [1]
    with pytest.raises(InputError, match="Keras callbacks, got 3"):
        wrapped.fit(*dataset(N), B, callbacks=[3], verbose=0)


@pytest.mark.parametrize("at_a_time", [3, 4, 7, 100])
def test_steps_at_a_time_end_within_the_budget(at_a_time):
    x, y = dataset(N)
    found = []
    for compiled in ({}, {"steps_per_execution": at_a_time}):
        wrapped = private(noise_multiplier=2.0, delta=1e-3, compiled=compiled)
        wrapped.model.set_weights([np.zeros_like(w) for w in wrapped.model.get_weights()])
        wrapped.fit(x, y, B, epochs=50, callbacks=[StopBeforeBudget(1.5)], verbose=0)
        found.append((wrapped.phases(), weights_of(wrapped.model)))
        assert 0 < wrapped.epsilon() <= 1.5
    assert found[0][0] == found[1][0]
    assert found[0][0][0].steps % at_a_time  # the last execution is a short one
    np.testing.assert_allclose(found[0][1], found[1][1], atol=1e-5)


def test_a_delta_that_allows_publishing_a_record_is_told():
    x, y = dataset(N)
    with pytest.warns(UserWarning, match=f"delta=0.02 is not below 1/examples = {1 / N:.3g}"):
        private(noise_multiplier=1.0, delta=0.02).fit(x, y, B, verbose=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        private(noise_multiplier=1.0, delta=1e-3).fit(x, y, B, verbose=0)


class OwnStep(keras.Model):
    def train_step(self, data):
        return {}


class OwnLoss(keras.Model):
    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None):
        return 0.0


@pytest.mark.parametrize(("kind", "name"), [(OwnStep, "train_step"), (OwnLoss, "compute_loss")])
def test_a_model_with_a_step_of_its_own_is_refused(kind, name):
    inner = linear()
    with pytest.raises(InputError, match=f"has a {name} of its own"):
        PrivateModel(kind(inner.inputs, inner.outputs), l2_norm_clip=1.0, noise_multiplier=1.0)


def test_a_private_model_is_not_wrapped_again():
    with pytest.raises(InputError, match="of its own"):
        PrivateModel(private(loss=LOSS), l2_norm_clip=1.0, noise_multiplier=1.0)
