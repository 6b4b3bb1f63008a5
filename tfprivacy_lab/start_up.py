"""TensorFlow's notices at start-up, kept from users who have no use for them: GPUs that are not there, and the like.

TensorFlow 2.21 writes them before its own log level counts. So the import of TensorFlow itself, whoever asks for it,
runs with standard error held back; what was written is then passed on, but for those notices.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import sys
import tempfile

_NOTICES = re.compile(
    rb"WARNING: All log messages before absl::InitializeLog"
    rb"|[IW]0000 .*(cuda|oneDNN|cpu_feature_guard|computation_placer)"
    rb"|To enable the following instructions:"
)


class _Quietly:
    """A loader that runs another with standard error held back."""

    def __init__(self, loader, finder):
        self._loader, self._finder = loader, finder

    def __getattr__(self, name):
        return getattr(self._loader, name)

    def create_module(self, spec):
        """As the other does."""
        return self._loader.create_module(spec)

    def exec_module(self, module):
        """As the other does, but for notices."""
        module.__spec__.loader = module.__loader__ = self._loader
        with without_notices():
            self._loader.exec_module(module)
        with contextlib.suppress(ValueError):
            sys.meta_path.remove(self._finder)


class QuietTensorFlow:
    """A finder that has TensorFlow, and nothing else, loaded without notices; it goes once that is done.

    Whoever only asks whether there is a TensorFlow leaves it in place.
    """

    def __init__(self):
        self._asks_others = False

    def find_spec(self, name, path=None, target=None):
        """The spec that the other finders find."""
        if name != "tensorflow" or self._asks_others:
            return None
        self._asks_others = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self._asks_others = False
        if spec is not None and spec.loader is not None:
            spec.loader = _Quietly(spec.loader, self)
        return spec


@contextlib.contextmanager
def without_notices():
    """Pass on what is written to standard error meanwhile, but for notices."""
    if sys.stderr is not None:
        sys.stderr.flush()
    try:
        held = tempfile.TemporaryFile()  # noqa: SIM115
    except OSError:  # There is nowhere to hold it.
        yield
        return
    with held:
        try:
            kept = os.dup(2)
        except OSError:  # There is no standard error.
            yield
            return
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            if sys.stderr is not None:
                sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            held.seek(0)
            for line in held:
                if not _NOTICES.match(line):
                    os.write(2, line)
