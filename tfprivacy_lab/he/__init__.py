"""Encrypted evaluation of a frozen dense head: the client encrypts, the server computes, the client decrypts.

>>> from tfprivacy_lab import he
>>> client = he.Client.generate("bfv")                  # doctest: +SKIP
>>> query = client.encrypt(features)                    # doctest: +SKIP
>>> reply = he.Server(kernel, bias).evaluate(query)     # doctest: +SKIP
>>> logits = client.decrypt(reply, query)               # doctest: +SKIP

Client and server share nothing but these bytes. Names load on first use: importing this package
imports neither Pyfhel nor TensorFlow, and the server needs neither at all.
"""

from __future__ import annotations

import importlib

_EXPORTS = {
    "Choice": "choice",
    "NetworkChoice": "network_choice",
    "choose": "choice",
    "choose_network": "network_choice",
    "Client": "client",
    "Cost": "costs",
    "compare_packings": "costs",
    "Parameters": "parameters",
    "PARAMETERS": "parameters",
    "QuantizedHead": "quantize",
    "Server": "server",
    "integer_logits": "quantize",
    "quantize_features": "steps",
}
_SUBMODULES = frozenset(
    ["choice", "client", "coefficients", "messages", "ntt", "packing", "parameters", "quantize", "sanitize", "server"]
)

__all__ = [
    "PARAMETERS",
    "Choice",
    "Client",
    "Cost",
    "NetworkChoice",
    "Parameters",
    "QuantizedHead",
    "Server",
    "choose",
    "choose_network",
    "compare_packings",
    "integer_logits",
    "quantize_features",
]


def __getattr__(name: str):
    if name in _EXPORTS:
        return getattr(importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    if name in _SUBMODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS, *_SUBMODULES])
