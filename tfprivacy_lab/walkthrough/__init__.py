"""The whole path on MNIST in stages, from data to a report."""

from __future__ import annotations

from tfprivacy_lab.lazy_exports import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "settings": ("Settings", "settings_for"),
        "whole_path": ("check_size", "walk"),
    },
)
