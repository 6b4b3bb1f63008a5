"""Bytes that came from outside, as one flat view of them."""

from __future__ import annotations

from tfprivacy_lab.checks import InputError


def byte_view(data, name: str) -> memoryview:
    """A flat view of bytes, without a copy.

    Raises:
        InputError: if ``data`` is something else, or a view that skips bytes.
    """
    if not isinstance(data, bytes | bytearray | memoryview):
        raise InputError(f"Expected {name} as bytes, got {type(data).__name__}.")
    view = memoryview(data)
    if not view.c_contiguous or 0 in (view.shape or ()):
        found = f"a memoryview of shape {view.shape} and strides {view.strides}"
        if view.nbytes:
            raise InputError(f"Expected {name} as bytes in a row, got {found}; give bytes(...) of it.")
        return memoryview(b"")
    return view.cast("B")
