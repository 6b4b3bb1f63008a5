"""TF Privacy, loaded where it is used: its optimizer, its accountants and its attacks are what ours are held against.

TF Privacy 0.9.0 is of Keras 2. Its package imports, first of all, modules of TensorFlow 1 and Keras 2 that are gone,
unless ``sys.skip_tf_privacy_import`` is set; its parts load by themselves, and its optimizers derive from whatever
legacy optimizer they are given: here that of ``tf_keras``.
"""

from __future__ import annotations

import functools
import importlib
import sys
import warnings

from tfprivacy_lab.checks import MissingPackageError

_ABSENT = (
    "needs {package}, which does not load here ({error}): `make setup` installs it; elsewhere, as what it asks for is "
    "of 2023, pip install --no-deps --ignore-requires-python {package}."
)
# Of a package of their own.
_ATTACKS = "privacy_tests"


def load(module: str, what: str):
    """A module of ``tensorflow_privacy.privacy``.

    Args:
        module: Its name within.
        what: What it is needed for, to begin an error with.

    Raises:
        MissingPackageError: if it is not there.
    """
    sys.skip_tf_privacy_import = True
    try:
        with warnings.catch_warnings():  # it warns of itself
            warnings.simplefilter("ignore")
            return importlib.import_module(f"tensorflow_privacy.privacy.{module}")
    except ImportError as error:
        raise _missing(
            "tensorflow-empirical-privacy" if module.startswith(_ATTACKS) else "tensorflow-privacy", what, error
        ) from error


@functools.cache
def sgd_classes(what: str) -> tuple:
    """(DPKerasSGDOptimizer, its generic kind that takes any query), of legacy SGD.

    Args:
        what: As for :func:`load`.

    Raises:
        MissingPackageError: if TF Privacy, or tf_keras, is not there.
    """
    made = load("optimizers.dp_optimizer_keras", what)
    try:
        from tf_keras.optimizers.legacy import SGD
    except ImportError as error:
        raise _missing("tf-keras", what, error) from error
    generic = made.make_keras_generic_optimizer_class(SGD)
    return made.make_gaussian_query_optimizer_class(generic), generic


def _missing(package, what, error):
    return MissingPackageError(package, f"{what} {_ABSENT.format(package=package, error=error)}")


def create_slots(optimizer, variables: list) -> None:
    """Make an optimizer's iterations and slots now, where a graph that is being traced could not."""
    optimizer._create_all_weights(variables)
