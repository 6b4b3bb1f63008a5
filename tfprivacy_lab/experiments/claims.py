"""A folder belongs to one run: which one, by whom, and with which secret seed.

A run without a published seed draws one from the operating system and keeps it until its noise is drawn,
so that a run that is killed and started again draws the same noise again: it would otherwise have spent
its budget twice. The kept seed is tied to everything the run does. The same seed under another budget or
on other data would give noise that cancels; such a folder is refused.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
from pathlib import Path

from tfprivacy_lab import files
from tfprivacy_lab.checks import InputError, check_positive_int
from tfprivacy_lab.dp.sampling import fresh_seed


@contextlib.contextmanager
def only_one(folder):
    """Hold ``folder``, made if need be, for this process; the lock goes with the process, however it ends.

    Raises:
        InputError: if another process holds it, or it cannot be written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / ".lock", "w")  # noqa: SIM115
    except OSError as error:
        raise InputError(f"Cannot write to {folder}: {error.strerror}; name another folder with --out.") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f"Another run is writing to {folder}; wait for it, or use another --out.") from None
        yield


def claim(folder, settings: dict) -> bool:
    """Note which run a folder is for, or check that it is for this one.

    Args:
        folder: The run's folder.
        settings: JSON-ready; everything that decides the run.

    Returns:
        Whether the folder was nobody's before.

    Raises:
        InputError: naming the settings that differ from those of the run that is there.
    """
    path, mine = Path(folder) / "settings.json", json.loads(json.dumps(settings))
    if not path.exists():
        files.write_json(path, mine)
        return True
    theirs = files.read_json(path, "settings")
    changed = sorted(key for key in mine.keys() | theirs.keys() if theirs.get(key) != mine.get(key))
    if changed:
        raise InputError(
            f"{folder} holds a run with other settings ({', '.join(changed)}); name another folder with --out, "
            "or delete it."
        )
    return False


def release(folder) -> None:
    """Give a folder up whose run was refused before it drew any noise."""
    forget_noise_seed(folder)
    (Path(folder) / "settings.json").unlink(missing_ok=True)


def noise_seed(folder, seed: int | None) -> int:
    """The seed of sampling and noise: the published one, or a secret one that is kept in ``folder``.

    Call :func:`claim` first: it ties the seed to the run. The file has mode 0600; :func:`forget_noise_seed`
    deletes it as soon as all noise is drawn.
    """
    if seed is not None:
        return check_seed(seed)
    path = _seed_file(folder)
    if not path.exists():
        files.write_json(path, fresh_seed(), mode=0o600)
    return check_positive_int("kept seed", files.read_json_value(path, "kept seed"), at_least=0)


def forget_noise_seed(folder) -> None:
    """Delete the kept seed: the noise is drawn, and nobody may ever draw it again."""
    _seed_file(folder).unlink(missing_ok=True)


def check_seed(seed: int) -> int:
    """A published seed: a whole number of at most 63 bits.

    Raises:
        InputError: echoing the value.
    """
    return check_positive_int("seed", seed, at_least=0, at_most=2**63 - 1)


def public_seed(seed: int | None) -> int:
    """What decides splits, first weights and public work; never derived from a secret seed."""
    return 0 if seed is None else check_seed(seed)


def _seed_file(folder) -> Path:
    return Path(folder) / ".noise_seed"
