"""What TF Privacy's own functions say of a run, beside our figures. They load TensorFlow when they are called."""

from __future__ import annotations

import contextlib
import functools
import math
import threading

from tfprivacy_lab import tf_privacy
from tfprivacy_lab.dp.accounting.gaussian import DpSgdRun, check_delta, steps_for


def tensorflow_privacy_figures(run: DpSgdRun, delta: float) -> dict:
    """What TF Privacy's own two functions say of the run, and what each assumes.

    Loads TensorFlow. Both are kept because people quote them: neither is the figure to publish.

    Returns:
        ``compute_dp_sgd_privacy``: ε (deprecated; RDP, Poisson, no factor for microbatches).
        ``statement``: the text of compute_dp_sgd_privacy_statement without microbatching, and
        ``statement_default``: with its default ``used_microbatching=True``, which doubles the
        sensitivity, wrong for one microbatch an example.
    """
    # Whole epochs if they give the same steps: the statement rounds them up to count passes.
    whole = math.floor(run.epochs)
    same = whole > 0 and steps_for(run.examples, run.batch_size, whole) == run.steps
    epochs = whole if same else run.epochs
    return dict(_figures(run.examples, run.batch_size, epochs, run.noise_multiplier, check_delta(delta)))


@functools.lru_cache(64)
def _figures(n, batch_size, epochs, noise_multiplier, delta):
    """TF Privacy's figures and texts; remembered, for its accounting by real orders takes a second or two."""
    tfp = tf_privacy.load("analysis.compute_dp_sgd_privacy_lib", "A figure of TF Privacy's own")
    arguments = (n, batch_size, epochs, noise_multiplier, delta)
    # The deprecation is told beside the figure; orders that do not converge, or are rounded below zero, are left out.
    with errors_only():
        return {
            "compute_dp_sgd_privacy": float(
                tfp.compute_dp_sgd_privacy(n, batch_size, noise_multiplier, epochs, delta)[0]
            ),
            "statement": tfp.compute_dp_sgd_privacy_statement(*arguments, used_microbatching=False),
            "statement_default": tfp.compute_dp_sgd_privacy_statement(*arguments),
        }


# How much the libraries say is a setting of the whole process.
_VERBOSITY = threading.RLock()


@contextlib.contextmanager
def errors_only():
    """Keep the warnings of libraries that log through absl from the user."""
    from absl import logging

    with _VERBOSITY:
        verbosity = logging.get_verbosity()
        logging.set_verbosity(logging.ERROR)
        try:
            yield
        finally:
            logging.set_verbosity(verbosity)
