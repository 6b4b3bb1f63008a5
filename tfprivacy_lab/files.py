"""Files that are either whole or absent: written beside, synced, then renamed."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from pathlib import Path

import numpy as np

from tfprivacy_lab.checks import InputError


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
    if path.exists() and not path.is_file():
        raise InputError(f"Cannot write {path}: it is there and is no regular file; name another.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=f".partial{path.suffix}", dir=path.parent)
    except OSError as error:
        raise InputError(f"Cannot write {path}: {error.strerror or error}.") from error
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


def write_bytes(path, data: bytes, mode: int = 0o644, *, overwrite: bool = True) -> None:
    """Write ``data`` to ``path`` so that a reader sees the old file or the new one."""
    with replaced_atomically(path, mode, overwrite=overwrite) as partial:
        partial.write_bytes(data)


def write_json(path, value, mode: int = 0o644) -> None:
    """Write ``value`` as indented JSON, atomically; NaN and infinity are refused."""
    write_bytes(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode(), mode)


def write_array(path, array: np.ndarray) -> None:
    """Write one array as ``.npy`` (no pickled objects), atomically."""
    with replaced_atomically(path) as partial, open(partial, "wb") as stream:
        np.save(stream, array, allow_pickle=False)


def write_arrays(path, **arrays: np.ndarray) -> None:
    """Write named arrays as ``.npz`` (no pickled objects), atomically."""
    for name, array in arrays.items():
        if np.asarray(array).dtype.hasobject:
            raise ValueError(f"Expected {name} to hold no Python objects, got dtype {np.asarray(array).dtype}.")
    with replaced_atomically(path) as partial, open(partial, "wb") as stream:
        np.savez(stream, **arrays)


def write_private_arrays(path, **arrays: np.ndarray) -> None:
    """Write named arrays as ``.npz`` that only its owner may read."""
    with replaced_atomically(path, 0o600) as partial, open(partial, "wb") as stream:
        np.savez(stream, **{name: np.asarray(array) for name, array in arrays.items()})


def read_bytes(path, what: str) -> bytes:
    """The contents of a file the user named.

    Raises:
        InputError: naming the file and what it should have been.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"Cannot read {what} {path}: {error.strerror or error}.") from error


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


def read_arrays(path, what: str, names) -> dict[str, np.ndarray]:
    """Named arrays from an ``.npz`` file the user named; pickled objects are refused.

    Raises:
        InputError: if it cannot be read, or an array is missing.
    """
    loaded = _load(path, what, np.lib.npyio.NpzFile, ".npz")
    with loaded:
        missing = [name for name in names if name not in loaded.files]
        if missing:
            raise InputError(f"Cannot read {what} {path}: no array {missing[0]!r}, it holds {loaded.files}.")
        try:
            return {name: loaded[name] for name in names}
        except Exception as error:
            raise InputError(f"Cannot read {what} {path}: damaged ({error}).") from error


def read_all_arrays(path, what: str) -> dict[str, np.ndarray]:
    """All named arrays of an ``.npz`` file the user named; pickled objects are refused.

    Raises:
        InputError: if it cannot be read.
    """
    with _load(path, what, np.lib.npyio.NpzFile, ".npz") as loaded:
        try:
            return {name: loaded[name] for name in loaded.files}
        except Exception as error:
            raise InputError(f"Cannot read {what} {path}: damaged ({error}).") from error


def _refuse_constant(name):
    """NaN and Infinity are JavaScript, not JSON."""
    raise ValueError(f"{name} is not a JSON value")


def _load(path, what, kind, suffix):
    """np.load without pickles, every failure as one line."""
    try:
        loaded = np.load(path, allow_pickle=False)
    except OSError as error:
        raise InputError(f"Cannot read {what} {path}: {error.strerror or error}.") from error
    except Exception as error:
        raise InputError(f"Cannot read {what} {path}: not a {suffix} file without pickled objects.") from error
    if not isinstance(loaded, kind):
        raise InputError(f"Cannot read {what} {path}: expected a {suffix} file.")
    return loaded
