"""Several parties compute together on data that none of them shows: secret sharing on a real engine (SPU).

>>> from tfprivacy_lab import mpc
>>> world = mpc.World("semi2k", parties=("carol", "alice", "bob"), dealer="carol")
>>> model = mpc.SharedModel([mpc.Layer(1)], world)                                           # doctest: +SKIP
>>> model.compile(loss="binary_crossentropy", learning_rate=0.5)                             # doctest: +SKIP
>>> model.fit({"alice": her_columns, "bob": his_columns}, {"bob": labels}, steps=20)         # doctest: +SKIP

Names load on first use: importing this package imports neither TensorFlow nor the engine.
"""

from __future__ import annotations

from tfprivacy_lab.lazy_exports import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "jobs.fixed_point": ("FixedPoint",),
        "jobs.job": ("Job",),
        "jobs.models": ("Layer", "Training"),
        "jobs.noise_shares": ("NoiseClaim", "NoiseShares"),
        "runtime.execution": ("Outcome",),
        "transport.peers": ("PartyError",),
        "jobs.protocols": ("PROTOCOLS", "World", "protocol_table"),
        "training": ("SharedModel",),
        "processes": ("launch",),
        "jobs.ranges": ("plan",),
        "parties": ("run_party", "simulate"),
        "computations": ("shared_sum",),
    },
    {
        "certificates": "transport.certificates",
        "engine": "runtime.engine",
        "entrance": "transport.entrance",
        "execution": "runtime.execution",
        "fixed_point": "jobs.fixed_point",
        "hlo": "runtime.hlo",
        "job_checks": "jobs.job_checks",
        "library": "runtime.library",
        "links": "transport.links",
        "models": "jobs.models",
        "noise_shares": "jobs.noise_shares",
        "peers": "transport.peers",
        "programs": "runtime.programs",
        "protocols": "jobs.protocols",
        "ranges": "jobs.ranges",
        "relay": "transport.relay",
        "row_ids": "jobs.row_ids",
        "share_headers": "jobs.share_headers",
        "sigmoid": "jobs.sigmoid",
    },
)
