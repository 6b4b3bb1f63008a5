"""Model privacy in TensorFlow/Keras: train with DP, account, audit, evaluate encrypted.

Submodules load on first use, so that ``import tfprivacy_lab`` costs nothing and TensorFlow is
imported only by the parts that need it.
"""

from __future__ import annotations

import atexit
import os
import sys

from tfprivacy_lab.lazy_exports import lazy_exports
from tfprivacy_lab.start_up import QuietTensorFlow

__version__ = "0.1.0"

__getattr__, __dir__, _ = lazy_exports(
    __name__,
    {},
    {
        "evaluation": "apps.evaluation",
        "leakage": "experiments.audits",
        "logistic": "apps.logistic",
        "recipes": "experiments.recipes",
        "runs": "experiments.runs",
        "shared_noise": "distributed_noise",
        "synthetic": "data.rendered_digits",
    },
)
__all__ = ["__version__"]

# TensorFlow reports its optional GPU libraries as errors when it is imported without a GPU. Whoever sets another level
# wants to see what it writes.
if os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3") == "3" and "tensorflow" not in sys.modules:
    sys.meta_path.insert(0, QuietTensorFlow())


@atexit.register
def _silence_tensorflow_at_exit() -> None:
    """TensorFlow frees functions after the modules they use are gone, and prints a traceback for each."""
    module = sys.modules.get("tensorflow.python.eager.polymorphic_function.atomic_function")
    if module is not None:
        module.AtomicFunction.__del__ = lambda self: None
