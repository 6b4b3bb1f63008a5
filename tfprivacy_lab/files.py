"""Files that are either whole or absent: written beside, synced, then renamed."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
import tempfile
from pathlib import Path

import numpy as np

from tfprivacy_lab.checks import InputError

_LONGEST_STEM, _LONGEST_SUFFIX = 160, 32
"""Bytes of a name that are repeated in a temporary one: with all around it, 255 are the most there may be."""


@contextlib.contextmanager
def replaced_atomically(path, mode: int = 0o644, *, overwrite: bool = True):
    """Yield a temporary path beside ``path``; rename it into place if the block succeeds.

    The temporary file is created with ``mode``, less the user's umask, before anything is written to it,
    so that a secret is never readable by others, and removed if the block fails. What is there and is no
    regular file (a device, a folder) is never replaced; a regular file only if ``overwrite``.
    """
    path, umask = Path(path), os.umask(0o077)
    os.umask(umask)
    mode &= ~umask
    handle, name = _partial(path)
    os.fchmod(handle, mode)
    os.close(handle)
    try:
        yield Path(name)
        os.chmod(name, mode)
        with open(name, "rb") as written:
            os.fsync(written.fileno())
        if overwrite:
            os.replace(name, path)
        else:
            os.link(name, path)
    except FileExistsError as error:
        raise InputError(f"Cannot write {path}: it is there already; delete it or name another.") from error
    except OSError as error:
        raise InputError(f"Cannot write {path}: {error.strerror or error}.") from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)


def check_writable(path) -> None:
    """Refuse, before long work, a path that could not be written after it; what is there stays as it is.

    Raises:
        InputError: naming the path and the reason.
    """
    handle, name = _partial(Path(path))
    os.close(handle)
    os.unlink(name)


def _partial(path: Path) -> tuple[int, str]:
    """A new file beside ``path``, open, and its name."""
    suffix = path.suffix if len(os.fsencode(path.suffix)) <= _LONGEST_SUFFIX else ""
    if os.path.exists(path) and not os.path.isfile(path):
        raise InputError(f"Cannot write {path}: it is there and is no regular file; name another.")
    try:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.lstat(path)  # A name may be too long.
        path.parent.mkdir(parents=True, exist_ok=True)
        return tempfile.mkstemp(prefix=f".{partial_stem(path)}.", suffix=f".partial{suffix}", dir=path.parent)
    except (OSError, ValueError) as error:
        raise InputError(f"Cannot write {path}: {getattr(error, 'strerror', None) or error}.") from error


def partial_stem(path) -> str:
    """What the name of a temporary file beside ``path`` begins with, after a dot: as much of its own as fits."""
    stem = Path(path).stem
    while len(os.fsencode(stem)) > _LONGEST_STEM:
        stem = stem[:-1]
    return stem


def write_bytes(path, data: bytes, mode: int = 0o644, *, overwrite: bool = True) -> None:
    """Write ``data`` to ``path`` so that a reader sees the old file or the new one."""
    with replaced_atomically(path, mode, overwrite=overwrite) as partial:
        partial.write_bytes(data)


def write_json(path, value, mode: int = 0o644) -> None:
    """Write ``value`` as indented JSON, atomically; NaN and infinity are refused."""
    write_bytes(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode(), mode)


def write_array(path, array: np.ndarray, mode: int = 0o644) -> None:
    """Write one array as ``.npy`` (no pickled objects), atomically."""
    with replaced_atomically(path, mode) as partial, open(partial, "wb") as stream:
        np.save(stream, array, allow_pickle=False)


def write_arrays(path, **arrays: np.ndarray) -> None:
    """Write named arrays as ``.npz`` (no pickled objects), atomically."""
    _write_arrays(path, 0o644, arrays)


def write_private_arrays(path, **arrays: np.ndarray) -> None:
    """Write named arrays as ``.npz`` (no pickled objects) that only its owner may read, atomically."""
    _write_arrays(path, 0o600, arrays)


def _write_arrays(path, mode: int, arrays) -> None:
    arrays = {name: np.asarray(array) for name, array in arrays.items()}
    for name, array in arrays.items():
        if array.dtype.hasobject:
            raise ValueError(f"Expected {name} to hold no Python objects, got dtype {array.dtype}.")
    with replaced_atomically(path, mode) as partial, open(partial, "wb") as stream:
        np.savez(stream, **arrays)


def read_bytes(path, what: str) -> bytes:
    """The contents of a file the user named.

    Raises:
        InputError: naming the file and what it should have been.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"Cannot read {what} {path}: {error.strerror or error}.") from error


def read_regular(path, what: str, most: int) -> bytes:
    """The contents of a file that somebody else may have put there: regular, no link, of ``most`` bytes at most.

    Raises:
        InputError: naming the file and what is wrong with it; a pipe or a device is never waited for.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno == errno.ELOOP:
            raise InputError(f"Cannot read {what} {path}: a link; give the file itself.") from error
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"Cannot read {what} {path}: {reason}.") from error
    with open(handle, "rb") as stream:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"Cannot read {what} {path}: no regular file.")
        if status.st_size > most:
            raise InputError(f"Cannot read {what} {path}: {status.st_size} bytes, more than the {most} of any {what}.")
        try:
            content = stream.read(status.st_size + 1)
        except OSError as error:
            raise InputError(f"Cannot read {what} {path}: {error.strerror or error}.") from error
    if len(content) > status.st_size:
        raise InputError(f"Cannot read {what} {path}: it grows while it is read; give it when it is whole.")
    return content


def read_json_value(path, what: str):
    """Any JSON value from a file the user named.

    Raises:
        InputError: if it cannot be read or is not JSON.
    """
    content = read_bytes(path, what)
    try:
        return json.loads(content, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise InputError(f"Cannot read {what} {path}: not valid JSON ({error}).") from error


def read_json(path, what: str) -> dict:
    """A JSON object from a file the user named.

    Raises:
        InputError: if it cannot be read or is not a JSON object.
    """
    value = read_json_value(path, what)
    if not isinstance(value, dict):
        raise InputError(f"Cannot read {what} {path}: expected a JSON object, got {type(value).__name__}.")
    return value


def read_array(path, what: str) -> np.ndarray:
    """One ``.npy`` array from a file the user named; pickled objects are refused.

    Raises:
        InputError: if it cannot be read as an array.
    """
    return _load(path, what, np.ndarray, ".npy")


def read_arrays(path, what: str, names=None) -> dict[str, np.ndarray]:
    """Named arrays, all if none are named, from an ``.npz`` file the user named; pickled objects are refused.

    Raises:
        InputError: if it cannot be read, or an array is missing.
    """
    loaded = _load(path, what, np.lib.npyio.NpzFile, ".npz")
    with loaded:
        names = loaded.files if names is None else names
        missing = [name for name in names if name not in loaded.files]
        if missing:
            raise InputError(f"Cannot read {what} {path}: no array {missing[0]!r}, it holds {loaded.files}.")
        try:
            return {name: loaded[name] for name in names}
        except Exception as error:
            raise InputError(f"Cannot read {what} {path}: damaged ({error}).") from error


def _refuse_constant(name):
    """NaN and Infinity are JavaScript, not JSON."""
    raise ValueError(f"{name} is not a JSON value")


def _load(path, what, kind, suffix):
    """np.load without pickles, every failure as one line; a pipe or a device is never waited for."""
    try:
        mode = os.stat(path).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise InputError(f"Cannot read {what} {path}: no regular file.")
        loaded = np.load(path, allow_pickle=False)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"Cannot read {what} {path}: {error.strerror or error}.") from error
    except Exception as error:
        raise InputError(f"Cannot read {what} {path}: not a {suffix} file without pickled objects.") from error
    if not isinstance(loaded, kind):
        raise InputError(f"Cannot read {what} {path}: expected a {suffix} file.")
    return loaded
