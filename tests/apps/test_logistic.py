"""The NumPy oracle against Keras' gradient descent, and its noise by hand."""

import numpy as np
import pytest

from tfprivacy_lab.apps import logistic


def test_fit_is_keras_gradient_descent():
    import keras

    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(50, 3)), rng.integers(0, 2, 50)
    model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(1, "sigmoid", kernel_initializer="zeros")])
    model.compile(keras.optimizers.SGD(0.7), "binary_crossentropy")
    model.fit(x, y, batch_size=50, epochs=6, shuffle=False, verbose=0)
    kernel, bias = logistic.fit(x, y, learning_rate=0.7, steps=6)
    assert kernel == pytest.approx(model.get_weights()[0], abs=1e-5)
    assert bias == pytest.approx(model.get_weights()[1], abs=1e-5)


def test_noise_is_added_to_the_sum_and_logits_are_two_a_row():
    x, y, noise = np.array([[1.0], [-1.0]]), np.array([1, 0]), np.array([[0.4, -0.2]])
    kernel, bias = logistic.fit(x, y, learning_rate=2.0, steps=1, noise=noise)
    assert kernel == pytest.approx(np.array([[1.0 - 0.4]]))
    assert bias == pytest.approx(np.array([0.2]))
    assert logistic.logits(x, kernel, bias) == pytest.approx(np.array([[0, 0.8], [0, -0.4]]))
