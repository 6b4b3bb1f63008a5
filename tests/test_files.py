"""Files are whole or absent, as secret as asked, and refused in one line when they are damaged."""

import contextlib
import json
import os
import pickle
import stat

import numpy as np
import pytest

from tfprivacy_lab import files
from tfprivacy_lab.checks import InputError


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def permissions(path):
    return stat.S_IMODE(os.stat(path).st_mode)


@pytest.fixture
def umask():
    """Sets the umask for one test."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


def test_failing_block_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text("old")
    for failure in (KeyboardInterrupt, ValueError):
        with contextlib.suppress(failure), files.replaced_atomically(path) as partial:
            partial.write_text("half")
            raise failure
    assert path.read_text() == "old"
    assert names(tmp_path) == ["metrics.json"]


def test_reader_sees_the_old_file_until_the_block_ends(tmp_path):
    path = tmp_path / "a" / "b.txt"
    with files.replaced_atomically(path) as partial:
        partial.write_text("new")
        assert not path.exists()
        assert partial.parent == path.parent
        assert partial.suffix == path.suffix
    assert path.read_text() == "new"
    with files.replaced_atomically(path) as partial:
        partial.write_text("newer")
        assert path.read_text() == "new"
    assert path.read_text() == "newer"
    assert names(path.parent) == ["b.txt"]


def test_writers_at_once_do_not_share_a_partial_file(tmp_path):
    path = tmp_path / "x.json"
    with files.replaced_atomically(path) as one, files.replaced_atomically(path) as other:
        one.write_text("one")
        other.write_text("other")
        assert one != other
    assert path.read_text() == "one"
    assert names(tmp_path) == ["x.json"]


@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_mode_holds_before_content_is_written_and_after(tmp_path, umask, mode):
    path = tmp_path / "keys"
    path.write_text("old")
    path.chmod(0o666)
    with files.replaced_atomically(path, mode) as partial:
        assert permissions(partial) == mode
        assert partial.stat().st_size == 0
        partial.write_text("secret")
        partial.chmod(0o666)
    assert permissions(path) == mode


def test_a_block_that_recreates_the_file_keeps_the_mode(tmp_path, umask):
    with files.replaced_atomically(tmp_path / "model.keras", 0o600) as partial:
        partial.unlink()
        partial.write_text("saved by a library")
    assert permissions(tmp_path / "model.keras") == 0o600


def test_umask_is_respected_and_restored(tmp_path, umask):
    umask(0o077)
    files.write_json(tmp_path / "x.json", {})
    assert permissions(tmp_path / "x.json") == 0o600
    assert os.umask(0o077) == 0o077


def test_a_path_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    reasons = "File exists|Not a directory|it is there and is no regular file; name another"
    for path in (tmp_path / "file" / "x.json", tmp_path / "folder"):
        with pytest.raises(InputError, match=f"^Cannot write {path}: ({reasons}).$"):
            files.write_json(path, {})
    assert names(tmp_path) == ["file", "folder"]


def test_json_round_trip_and_what_json_cannot_hold(tmp_path):
    path = tmp_path / "x.json"
    value = {"epsilon": 2.5, "rows": [1, None, "ε"]}
    files.write_json(path, value)
    assert files.read_json(path, "metrics") == value
    assert path.read_bytes().endswith(b"}\n")
    for bad in (float("nan"), float("inf"), np.float32(1), {1, 2}):
        with pytest.raises((ValueError, TypeError)):
            files.write_json(path, {"epsilon": bad})
    assert files.read_json(path, "metrics") == value
    assert names(tmp_path) == ["x.json"]


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b'{"a": NaN}', b'{"a": -Infinity}', b"\xff\xfe{}", b"[" * 200_000, b"{} {}"],
    ids=["empty", "open", "nan", "infinity", "not utf-8", "deep", "two"],
)
def test_damaged_json_is_refused(tmp_path, content):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"^Cannot read state {path}: not valid JSON"):
        files.read_json_value(path, "state")


def test_json_object_is_wanted(tmp_path):
    files.write_json(tmp_path / "x.json", [1])
    assert files.read_json_value(tmp_path / "x.json", "state") == [1]
    with pytest.raises(InputError, match="expected a JSON object, got list"):
        files.read_json(tmp_path / "x.json", "state")


READERS = {
    "bytes": lambda path: files.read_bytes(path, "query"),
    "json": lambda path: files.read_json(path, "query"),
    "array": lambda path: files.read_array(path, "query"),
    "arrays": lambda path: files.read_arrays(path, "query", ("kernel",)),
}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS.keys())
def test_missing_file_and_folder_are_named_once(tmp_path, read):
    path = tmp_path / "gone"
    with pytest.raises(InputError) as refusal:
        read(path)
    assert str(refusal.value) == f"Cannot read query {path}: No such file or directory."
    with pytest.raises(InputError, match=f"^Cannot read query {tmp_path}: Is a directory.$"):
        read(tmp_path)


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("read", [READERS["array"], READERS["arrays"]], ids=["array", "arrays"])
def test_pickles_are_refused_unread(tmp_path, read):
    trap = tmp_path / "sprung"
    bare, held, zipped = tmp_path / "a.npy", tmp_path / "b.npy", tmp_path / "c.npz"
    bare.write_bytes(pickle.dumps(Bomb(trap)))
    np.save(held, np.array([Bomb(trap)], object), allow_pickle=True)
    np.savez(zipped, kernel=np.array([Bomb(trap)], object))
    for path in (bare, held, zipped):
        with pytest.raises(InputError, match=f"^Cannot read query {path}: "):
            read(path)
    assert not trap.exists()


def test_arrays_round_trip(tmp_path):
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    files.write_array(tmp_path / "x.npy", array)
    files.write_arrays(tmp_path / "x.npz", kernel=array, bias=array[0])
    assert np.array_equal(files.read_array(tmp_path / "x.npy", "features"), array)
    loaded = files.read_arrays(tmp_path / "x.npz", "head", ("bias", "kernel"))
    assert list(loaded) == ["bias", "kernel"]
    assert np.array_equal(loaded["kernel"], array)
    assert loaded["kernel"].dtype == np.float32
    assert names(tmp_path) == ["x.npy", "x.npz"]


def test_objects_are_not_written(tmp_path):
    for write in (
        lambda: files.write_array(tmp_path / "x.npy", np.array([{}], object)),
        lambda: files.write_arrays(tmp_path / "x.npz", kernel=np.zeros(2), bias=np.array([{}], object)),
        lambda: files.write_private_arrays(tmp_path / "x.npz", kernel=np.zeros(2), bias=[{}]),
    ):
        with pytest.raises(ValueError, match=r"[Oo]bject"):
            write()
    assert names(tmp_path) == []


def test_wrong_kind_missing_array_and_damage_are_named(tmp_path):
    npy, npz = tmp_path / "x.npy", tmp_path / "x.npz"
    files.write_array(npy, np.zeros(3))
    files.write_arrays(npz, kernel=np.arange(500.0))
    with pytest.raises(InputError, match=r"expected a \.npz file"):
        files.read_arrays(npy, "head", ("kernel",))
    with pytest.raises(InputError, match=r"expected a \.npy file"):
        files.read_array(npz, "features")
    with pytest.raises(InputError, match=r"no array 'bias', it holds \['kernel'\]"):
        files.read_arrays(npz, "head", ("kernel", "bias"))
    content = bytearray(npz.read_bytes())
    content[1000] ^= 1
    npz.write_bytes(content)
    with pytest.raises(InputError, match=f"^Cannot read head {npz}: damaged"):
        files.read_arrays(npz, "head", ("kernel",))
    for path, read in ((npy, READERS["array"]), (npz, READERS["arrays"])):
        path.write_bytes(path.read_bytes()[:-20])
        with pytest.raises(InputError, match=f"^Cannot read query {path}: "):
            read(path)


def test_json_is_utf8_text(tmp_path):
    files.write_json(tmp_path / "x.json", {"a": 1})
    assert json.loads((tmp_path / "x.json").read_text("utf-8")) == {"a": 1}


def test_arrays_are_read_from_regular_files_only_and_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.npz")
    for path in (tmp_path / "pipe.npz", "/dev/zero"):
        for read in (files.read_array, files.read_arrays, lambda *given: files.read_arrays(*given, ["x"])):
            with pytest.raises(InputError, match=f"^Cannot read data {path}: no regular file.$"):
                read(path, "data")
    files.write_arrays(tmp_path / "x.npz", x=np.zeros(1))
    (tmp_path / "link.npz").symlink_to("x.npz")
    assert list(files.read_arrays(tmp_path / "link.npz", "data")) == ["x"]


def test_whether_a_path_can_be_written_is_known_beforehand_and_changes_nothing(tmp_path):
    (tmp_path / "file").write_text("old")
    files.check_writable(tmp_path / "file")
    files.check_writable(tmp_path / "new")
    for path in (tmp_path, tmp_path / "file" / "below", tmp_path / ("n" * 300), tmp_path / "a\0b", "/proc/none/out"):
        with pytest.raises(InputError, match=r"^Cannot write "):
            files.check_writable(path)
    assert names(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "old"
