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
        "choice.head": ("Choice", "choose"),
        "choice.network": ("NetworkChoice", "choose_network"),
        "client.head": ("Client",),
        "client.network": ("NetworkClient",),
        "client.slots": ("SingleImageClient", "SlotHeadClient"),
        "choice.costs": ("Cost", "compare_packings"),
        "ring.parameters": ("PARAMETERS", "Parameters"),
        "quantization.heads": ("QuantizedHead", "integer_logits"),
        "server.head": ("Server",),
        "server.network": ("NetworkServer",),
        "server.slots": ("DeepImageServer", "SingleImageServer", "SlotHeadServer"),
        "plans.layers": ("Network",),
        "plans.network": ("BatchedPlan",),
        "plans.single_image": ("SinglePlan",),
        "plans.deep_image": ("DeepPlan",),
        "plans.slot_head": ("SlotHead",),
        "quantization.steps": ("quantize_features",),
    },
    {
        "ntt": "ring.ntt",
        "parameters": "ring.parameters",
        "quantize": "quantization.heads",
        "coefficients": "packing.coefficient",
        "sanitize": "server.sanitize",
    },
)
