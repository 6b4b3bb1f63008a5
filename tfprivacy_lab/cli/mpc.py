"""The ``mpc`` subcommands: what they take and what they call. They return figures; ``cli`` prints them."""

from __future__ import annotations

import time

from tfprivacy_lab.checks import InputError

_NAMES = {
    "semi2k": (("carol", "alice", "bob"), "carol"),
    "aby3": (("alice", "bob", "carol"), None),
    "cheetah": (("alice", "bob"), None),
}
PROTOCOL_NAMES = tuple(_NAMES)


def _listing(options) -> dict:
    from tfprivacy_lab import mpc

    if options.tls and not options.processes:
        raise InputError("Expected --processes with --tls: within one process there is no connection to protect.")
    start = time.perf_counter()
    names, dealer = _NAMES[options.protocol]
    world = mpc.World(options.protocol, names, dealer)
    job, data = listing_job(world)
    run = mpc.launch(job, data, tls=options.tls) if options.processes else mpc.simulate(job, data)
    alice = run.outcomes["alice"]
    return {
        "kernel": alice.weights[0].tolist(),
        "bias": alice.weights[1].tolist(),
        "prediction": float(alice.predictions[0, 0]),
        "protocol": options.protocol,
        "parties": len(names),
        "processes": bool(options.processes),
        "tls": bool(options.tls),
        "trust": world.trust(("alice", "bob")),
        "fraction_bits": run.plan.arithmetic.fraction_bits,
        "bytes_sent": run.bytes_sent,
        "rounds": run.rounds,
        "seconds": round(time.perf_counter() - start, 3),
    }


def listing_job(world):
    """The document's listing 4.2 as a job, and each party's data.

    Alice holds the first column, Bob the second and the targets; both learn the weights and the prediction.
    """
    import numpy as np

    from tfprivacy_lab import mpc

    examples = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], float)
    # The rows are of one table.
    ids = {"ids": np.arange(4), "query_ids": np.arange(1)}
    data = {"alice": {"x": examples[:, :1], "query": np.array([[0.5]]), **ids}}
    data["bob"] = {"x": examples[:, 1:], "y": np.array([[0], [0], [1], [1]], float), "query": np.array([[0.5]]), **ids}
    job = mpc.Job(
        world=world,
        layers=(mpc.Layer(1),),
        features={"alice": (4, 1), "bob": (4, 1)},
        labels=("bob",),
        weights=[[[0.3], [-0.2]], [0.1]],
        training=mpc.Training("sum_of_squares", 0.1, 10),
        query={"alice": (1, 1), "bob": (1, 1)},
        reveal_weights=("alice", "bob"),
        reveal_predictions=("alice", "bob"),
    )
    return job, data


def _certificates(options) -> dict:
    from tfprivacy_lab.mpc.transport import certificates

    folders = certificates.make_certificates(tuple(options.parties), options.out, days=options.days)
    return {"folders": folders, "days": options.days, "note": "give each party its own folder, and no other"}


def _party(options) -> dict:
    from tfprivacy_lab import files, mpc
    from tfprivacy_lab.mpc import parties, processes
    from tfprivacy_lab.mpc.jobs import row_ids
    from tfprivacy_lab.mpc.transport.certificates import Credentials

    job = mpc.Job.load(options.job)
    files.check_writable(options.out)
    credentials = None if options.certificates is None else Credentials.of_folder(options.certificates)
    data = files.read_arrays(options.data, "data")
    job.world.rank(options.me)
    try:
        without = [what for what, ids in row_ids.of_party(job, options.me, data).items() if ids is None]
    except InputError:
        without = []  # The party refuses them too, and the others hear of it.
    unmatched = f"not compared: no ids of the {' and '.join(without)}; give ids (query_ids) to have it done"
    if without and not options.json:
        options.note(f"order of rows {unmatched}")
    outcome, chosen = parties.run_party(
        job,
        options.me,
        data,
        _addresses(options.addresses),
        credentials=credentials,
        listen=None if options.listen is None else _address("listen", options.listen),
        join_seconds=options.join_seconds,
        wait_seconds=options.wait_seconds,
        on_step=None if options.json else lambda step: options.note(f"step {step} of {job.training.steps}"),
    )
    processes.write_outcome(options.out, outcome)
    return {
        "out": options.out,
        "trust": job.world.trust(tuple(job.features)),
        "order_of_rows": unmatched if without else "compared by ids, or one party's own",
        "fraction_bits": chosen.arithmetic.fraction_bits,
        "field_bits": chosen.arithmetic.field_bits,
        "bytes_sent": outcome.traffic.bytes_sent,
        "rounds": outcome.traffic.rounds,
        "seconds": outcome.seconds,
        "step_seconds": outcome.step_seconds,
    }


def _addresses(text: str) -> dict[str, tuple[str, int]]:
    found = {}
    for part in text.split(","):
        name, _, address = part.partition("=")
        name = name.strip()
        if not name or name in found:
            raise InputError(f"Expected addresses as NAME=HOST:PORT,..., each name once, got {part!r}.")
        found[name] = _address("addresses", address)
    return found


def _address(argument: str, text: str) -> tuple[str, int]:
    """HOST:PORT, or [HOST]:PORT for an IPv6 address."""
    host, _, port = text.strip().rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    if not host or not (port.isascii() and port.isdigit()) or not 0 < int(port) < 65536:
        raise InputError(f"Expected {argument} to have HOST:PORT (or [HOST]:PORT), got {text!r}.")
    return host, int(port)


def add(commands, command, note):
    """Register the subcommands; returns the group, for those of the applications.

    Args:
        commands: What argparse's ``add_subparsers`` returned.
        command: Makes one: ``command(commands, name, function, text)``.
        note: Shows a line of progress.
    """
    group = commands.add_parser("mpc", help="several parties compute on data that none shows").add_subparsers(
        required=True, metavar="COMMAND"
    )
    listing = command(group, "listing", _listing, "the document's listing 4.2: train and predict on shares")
    listing.add_argument("--protocol", default="semi2k", choices=tuple(_NAMES), help="default semi2k, carol deals")
    listing.add_argument("--processes", action="store_true", help="a process a party, over TCP on this machine")
    listing.add_argument("--tls", action="store_true", help="with --processes: TLS between them")
    certificates = command(group, "certificates", _certificates, "a certificate and key for each party")
    certificates.add_argument("--parties", required=True, nargs="+", metavar="NAME")
    certificates.add_argument("--out", required=True, metavar="DIR", help="a folder a party is made in it")
    certificates.add_argument("--days", type=int, default=30, metavar="N", help="valid for so long (30)")
    party = command(group, "party", _party, "one party of a job: meets the others, computes, writes what it learns")
    party.add_argument("--job", required=True, metavar="JOB.json", help="the same at every party")
    party.add_argument("--me", required=True, metavar="NAME")
    party.add_argument("--data", required=True, metavar="X.npz", help="this party's own arrays")
    party.add_argument("--addresses", required=True, metavar="NAME=HOST:PORT,...", help="every party's")
    party.add_argument("--listen", metavar="HOST:PORT", help="bind here, if not at this party's address")
    party.add_argument("--certificates", metavar="DIR", help="this party's folder; needed beyond this machine")
    party.add_argument("--join-seconds", type=float, default=60.0, metavar="S", help="wait so long for others (60)")
    party.add_argument(
        "--wait-seconds", type=float, default=600.0, metavar="S", help="for a message of a party that is there (600)"
    )
    party.add_argument("--out", required=True, metavar="OUT.npz", help="what it learns, and its shares; mode 0600")
    party.set_defaults(note=note)
    return group
