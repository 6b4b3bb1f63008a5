"""Tests of per-example gradients run on the compiled operations, and, slow ones, again on TensorFlow's."""

import pytest
import tensorflow as tf

from tfprivacy_lab.dp import native


@pytest.fixture(scope="session")
def compiled():
    """The compiled operations, compiled here if they are not yet."""
    return tf.load_op_library(str(native.compile_operations()))


@pytest.fixture(scope="module", params=["compiled", pytest.param("TensorFlow", marks=pytest.mark.slow)])
def operations(request):
    """What the engine computes with while a module's tests run."""
    found = request.getfixturevalue("compiled") if request.param == "compiled" else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "operations", lambda: found)
        yield found
