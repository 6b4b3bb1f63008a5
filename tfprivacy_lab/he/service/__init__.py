"""A server on the network: admission, limits, metrics, and scoring of folders of queries."""

from __future__ import annotations

from tfprivacy_lab.lazy_exports import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "app": ("make_app",),
    },
)
