"""What ``PrivateModel.fit`` takes beside the examples."""

from __future__ import annotations

from tfprivacy_lab.checks import InputError, check_choice, check_positive_int
from tfprivacy_lab.dp.accounting.phases import SAMPLINGS

_KERAS_OPTIONS = {"initial_epoch", "validation_batch_size", "validation_freq", "validation_steps"}


def check(
    options: dict, batch_size, sampling: str, physical_batch_size, engine: str, epochs=1, steps_per_epoch=None
) -> None:
    """Refuse what ``fit`` does not take, or not under differential privacy.

    Args:
        options: Further keyword arguments.
        batch_size: Expected size of a logical batch, >= 1.
        sampling: One of :data:`tfprivacy_lab.dp.accounting.phases.SAMPLINGS`.
        physical_batch_size: Rows computed at a time, >= 1, or None.
        engine: "fast" or "reference".
        epochs: Number of epochs, >= 1; ``initial_epoch`` among the options is not above it.
        steps_per_epoch: Logical batches an epoch, >= 1, or None.

    Raises:
        InputError: naming the argument.
    """
    unknown = sorted(set(options) - _KERAS_OPTIONS)
    if unknown:
        raise InputError(f"fit does not take {unknown[0]!r} under differential privacy.")
    if batch_size is None:
        raise InputError("Expected batch_size, the expected size of a logical batch: epsilon depends on it.")
    check_positive_int("batch_size", batch_size)
    check_positive_int("epochs", epochs)
    check_positive_int("initial_epoch", options.get("initial_epoch", 0), at_least=0, at_most=epochs)
    if steps_per_epoch is not None:
        check_positive_int("steps_per_epoch", steps_per_epoch)
    check_choice("sampling", sampling, SAMPLINGS)
    if engine == "reference" and sampling != "poisson":
        raise InputError(f"engine='reference' is for sampling='poisson', got sampling={sampling!r}.")
    if physical_batch_size is not None:
        check_positive_int("physical_batch_size", physical_batch_size)
