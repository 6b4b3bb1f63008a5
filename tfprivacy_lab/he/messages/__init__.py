"""The bytes between client and server: formats, and what a receiver checks before anything is loaded."""

from __future__ import annotations

from tfprivacy_lab.lazy_exports import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "header": (
            "DIGEST_BYTES",
            "HEADER_BYTES",
            "Header",
            "ID_BYTES",
            "KEY",
            "MAGIC",
            "PUBLIC_KEY_PREFIX_BYTES",
            "QUERY",
            "REPLY",
            "SECRET_KEY_PREFIX_BYTES",
            "VERSION",
        ),
        "wire": (
            "check_length",
            "check_size",
            "pack",
            "pack_pieces",
            "parse",
            "parse_header",
            "with_column_steps",
        ),
    },
)
