"""Several parties compute together on data that none of them shows: secret sharing on a real engine (SPU).

>>> from tfprivacy_lab import mpc
>>> world = mpc.World("semi2k", parties=("carol", "alice", "bob"), dealer="carol")
>>> model = mpc.SharedModel([mpc.Layer(1)], world)                                           # doctest: +SKIP
>>> model.compile(loss="binary_crossentropy", learning_rate=0.5)                             # doctest: +SKIP
>>> model.fit({"alice": her_columns, "bob": his_columns}, {"bob": labels}, steps=20)         # doctest: +SKIP

Names load on first use: importing this package imports neither TensorFlow nor the engine.
"""

from __future__ import annotations

import importlib

_EXPORTS = {
    "FixedPoint": "fixed_point",
    "Job": "jobs",
    "Layer": "models",
    "NoiseClaim": "noise_shares",
    "NoiseShares": "noise_shares",
    "Outcome": "execution",
    "PartyError": "peers",
    "PROTOCOLS": "protocols",
    "SharedModel": "training",
    "Training": "models",
    "World": "protocols",
    "launch": "processes",
    "plan": "ranges",
    "protocol_table": "protocols",
    "run_party": "parties",
    "shared_sum": "computations",
    "simulate": "parties",
}
_SUBMODULES = frozenset(
    [
        *(
            "beaver",
            "certificates",
            "engine",
            "entrance",
            "execution",
            "fixed_point",
            "job_checks",
            "jobs",
            "links",
            "models",
        ),
        *("noise_shares", "parties", "peers", "processes", "programs", "protocols", "ranges", "relay", "row_ids"),
        *("share_headers", "sigmoid", "training"),
    ]
)


def __getattr__(name: str):
    if name in _EXPORTS:
        return getattr(importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    if name in _SUBMODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS, *_SUBMODULES])
