"""``he explain``: which parameters and packing a head or a network needs, and why."""

from __future__ import annotations

import dataclasses

from tfprivacy_lab.cli.he_options import RANGE_HELP, SCHEMES, feature_range_of


def add(group, command, note) -> None:
    """Register the subcommand, as :func:`tfprivacy_lab.cli.he.add` does."""
    explain = command(group, "explain", _explain, "which parameters and packing a head or network needs, and why")
    what = explain.add_mutually_exclusive_group(required=True)
    what.add_argument("--head", metavar="HEAD.npz", help="kernel (d, c), bias (c,)")
    what.add_argument("--network", metavar="MODEL.keras", help="Dense and Conv2D layers, a Square between each two")
    explain.add_argument("--samples", type=int, default=1, metavar="N", help="of a query (default 1)")
    explain.add_argument("--scheme", choices=SCHEMES[:2], help="default: whichever sends less")
    explain.add_argument("--packing", choices=("coefficient", "batched"), help="default: whichever sends less")
    explain.add_argument("--sanitized", action="store_true", help="replies must tell the logits and nothing else")
    explain.add_argument("--feature-range", default="1", metavar="R", help=f"{RANGE_HELP} (default 1)")
    explain.add_argument(
        "--input-range",
        type=float,
        nargs=2,
        default=(0.0, 1.0),
        metavar=("LOW", "HIGH"),
        help="of a network's inputs (default 0 1)",
    )
    explain.add_argument("--max-error", type=float, metavar="X", help="of a logit, for any features in range")
    explain.add_argument("--likely", action="store_true", help="decide --max-error of a network by the likely bound")
    explain.set_defaults(note=note)


def _explain(options) -> dict:
    if options.likely and (options.network is None or options.max_error is None):
        from tfprivacy_lab.checks import InputError

        raise InputError(
            "--likely says by which bound --max-error of a --network is decided; give both, or leave it out."
        )
    return _explain_head(options) if options.network is None else _explain_network(options)


def _explain_network(options) -> dict:
    from tfprivacy_lab import he
    from tfprivacy_lab.experiments import runs
    from tfprivacy_lab.he.plans.layers import Network

    choice = he.choose_network(
        Network.from_keras(runs.load_model(options.network)),
        samples=options.samples,
        scheme=options.scheme,
        input_range=tuple(options.input_range),
        max_error=options.max_error,
        likely=options.likely,
    )
    for line in choice.explain():
        options.note(line)
    return {**choice.summary, "samples": choice.samples, "reasons": choice.explain()}


def _explain_head(options) -> dict:
    from tfprivacy_lab import files, he

    head = files.read_arrays(options.head, "head", ("kernel", "bias"))
    bounds = feature_range_of(options.feature_range)
    choice = he.choose(
        head["kernel"],
        head["bias"],
        samples=options.samples,
        scheme=options.scheme,
        packing=options.packing,
        sanitized=options.sanitized,
        feature_range=bounds,
        max_error=options.max_error,
    )
    compared = he.compare_packings(head["kernel"], head["bias"], samples=options.samples, feature_range=bounds)
    for line in [*choice.explain(), *(f"compared: {cost}" for cost in compared)]:
        options.note(line)
    return {
        "scheme": choice.parameters.name,
        "packing": choice.packing,
        "error_bound": choice.error_bound,
        "query_bytes": choice.query_bytes,
        "reply_bytes": choice.reply_bytes,
        "key_bytes": 0,
        "products": choice.products,
        "noise_bits_left": choice.bits_left,
        "reasons": choice.explain(),
        "packings": [dataclasses.asdict(cost) for cost in compared],
    }
