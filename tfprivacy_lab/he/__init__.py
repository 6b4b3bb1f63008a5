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

from tfprivacy_lab.lazy_exports import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "choice": ("Choice", "choose"),
        "network_choice": ("NetworkChoice", "choose_network"),
        "client": ("Client",),
        "costs": ("Cost", "compare_packings"),
        "parameters": ("PARAMETERS", "Parameters"),
        "quantize": ("QuantizedHead", "integer_logits"),
        "server": ("Server",),
        "steps": ("quantize_features",),
    },
)
