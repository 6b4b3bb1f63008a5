"""The ``he`` subcommands: what they take and what they call. They return figures; ``cli`` prints them."""

from __future__ import annotations

from tfprivacy_lab.cli import he_explain
from tfprivacy_lab.cli.he_options import RANGE_HELP, SCHEMES, feature_range_of


def _keygen(options) -> dict:
    from tfprivacy_lab import he

    client = he.Client.generate(options.scheme)
    client.save(options.out)
    return {"scheme": options.scheme, "keys": options.out, "note": "holds the secret key: never give it away"}


def _encrypt(options) -> dict:
    from tfprivacy_lab import files, he
    from tfprivacy_lab.he.messages import wire

    client = he.Client.load(options.keys)
    features = files.read_array(options.features, "features")
    query = client.encrypt(
        features,
        feature_range=feature_range_of(options.feature_range),
        packing=options.packing,
        compress=options.compress,
    )
    files.write_bytes(options.out, query)
    shown = {"scheme": client.scheme, "samples": len(features), "query": options.out, "bytes": len(query)}
    return shown | _noted(options.keys, wire.parse_header(query, wire.QUERY, "query").query_id.hex())


def _evaluate(options) -> dict:
    from tfprivacy_lab import files, he

    head = files.read_arrays(options.head, "head", ("kernel", "bias"))
    server = he.Server(head["kernel"], head["bias"], replies=options.replies)
    query = files.read_bytes(options.query, "query")
    reply = server.evaluate(query, max_error=options.max_error)
    bound = float(server.head_for(query).error_bound().max())
    files.write_bytes(options.out, reply)
    return {"reply": options.out, "bytes": len(reply), "error_bound": bound}


def _decrypt(options) -> dict:
    from tfprivacy_lab import files, he

    query = None if options.query is None else files.read_bytes(options.query, "query")
    client, reply = he.Client.load(options.keys), files.read_bytes(options.reply, "reply")
    logits = client.decrypt(reply, query, max_error=options.max_error)
    if query is None:
        _check_query_id(options, reply)
    return _write_logits(options.out, logits, client.error_bound(reply))


def _noted(keys, query_id: str) -> dict:
    """Note beside the keys which query was the last, for a decryption that names none."""
    from tfprivacy_lab import files
    from tfprivacy_lab.checks import InputError

    try:
        files.write_json(f"{keys}{_LAST_QUERY}", {"query_id": query_id}, mode=0o600)
    except InputError as error:
        return {"query_id": query_id, "note": f"{error} Decrypt with --query."}
    return {"query_id": query_id}


def _check_query_id(options, reply: bytes) -> None:
    """Refuse a reply to another query than the one named by its id, or than the last one of these keys."""
    import os

    from tfprivacy_lab import files
    from tfprivacy_lab.checks import InputError
    from tfprivacy_lab.he.messages import wire

    wanted, note = options.query_id, f"{options.keys}{_LAST_QUERY}"
    if wanted is None:
        if not os.path.lexists(note):
            raise InputError(f"Expected --query, the query that the reply answers: no {note} tells which was the last.")
        wanted = files.read_json(note, "note of the last query").get("query_id")
    got = wire.parse_header(reply, wire.REPLY, "reply").query_id.hex()
    if got != str(wanted).strip().lower():
        which = f"query_id={options.query_id}" if options.query_id else f"the last query of {options.keys}"
        raise InputError(
            f"Expected reply to answer {which}, got one to {got}: name the query that you mean by --query."
        )


def _serve(options) -> dict:
    from tfprivacy_lab import files
    from tfprivacy_lab.he.service.admission import Limits

    given = {name: getattr(options, name) for name in _LIMITS if getattr(options, name) is not None}
    limits = Limits(**given)
    head = files.read_arrays(options.head, "head", ("kernel", "bias"))
    from tfprivacy_lab.he.service.listener import serve

    return serve(
        head["kernel"],
        head["bias"],
        host=options.host,
        port=options.port,
        limits=limits,
        certificate=options.certificate,
        private_key=options.private_key,
        replies=options.replies,
        feature_range=feature_range_of(options.feature_range),
        on_ready=lambda url: options.note(f"listening on {url}"),
    )


def _predict(options) -> dict:
    from tfprivacy_lab import files, he
    from tfprivacy_lab.he.client import remote

    service = remote.Service(options.url, options.certificate_authority, options.seconds, options.note)
    client = he.Client.load(options.keys)
    features = files.read_array(options.features, "features")
    bounds = feature_range_of(options.feature_range)
    logits, bound = remote.predict_with_bound(client, service, features, bounds, options.compress, options.max_error)
    return _write_logits(options.out, logits, bound)


def _score(options) -> dict:
    from tfprivacy_lab.he.service import batch

    queries = options.queries[0] if len(options.queries) == 1 else options.queries
    outcome = batch.score(
        options.head,
        queries,
        options.out,
        jobs=options.jobs,
        cluster=options.cluster,
        replies=options.replies,
        on_progress=options.note,
    )
    outcome.check()
    return {"replies": options.out, "scored": outcome.scored, "finished_before": outcome.finished}


def _write_logits(path, logits, bound: float) -> dict:
    """Write logits that are off by no more than a finite bound, and tell it, and what it leaves open."""
    import math

    from tfprivacy_lab import files
    from tfprivacy_lab.checks import InputError
    from tfprivacy_lab.he.messages.error_bounds import labels_in_doubt

    if not math.isfinite(bound):
        raise InputError("Expected a reply with a bound on its error, but its scale allows any: it tells nothing.")
    doubtful = labels_in_doubt(logits, bound)
    files.write_array(path, logits, mode=0o600)
    shown = {"logits": path, "samples": logits.shape[0], "classes": logits.shape[1]}
    return shown | {"error_bound": bound, "labels_in_doubt": doubtful}


_REPLIES = "default sanitized: refuse queries whose replies would give the head away; any: answer them too"
_LAST_QUERY = ".last-query"
_ERROR_HELP = "refuse if a logit may be off by more"
_LIMITS = {
    "max_body_bytes": (int, "largest query (64 MiB)"),
    "max_reply_bytes": (int, "largest reply (64 MiB)"),
    "max_samples": (int, "most samples in a query (4096)"),
    "max_bytes": (int, "what queries hold at a time, evaluation and replies included (512 MiB)"),
    "max_requests": (int, "queries in flight (64)"),
    "max_connections": (int, "open connections (512)"),
    "workers": (int, "threads that evaluate (one a processor)"),
    "header_seconds": (float, "for the TLS handshake and a request's head (10)"),
    "body_seconds": (float, "for a query's body (30)"),
    "queue_seconds": (float, "longest wait for a worker (10)"),
    "evaluate_seconds": (float, "longest wait for an evaluation (120)"),
    "send_seconds": (float, "for the client to read a reply (60)"),
    "shutdown_seconds": (float, "for what is in flight after SIGTERM (30)"),
}


def add(commands, command, note) -> None:
    """Register the subcommands.

    Args:
        commands: What argparse's ``add_subparsers`` returned.
        command: Makes one: ``command(commands, name, function, text)``.
        note: Shows a line of progress.
    """
    group = commands.add_parser("he", help="a dense head on encrypted features").add_subparsers(
        required=True, metavar="COMMAND"
    )
    _add_files(group, command)
    _add_service(group, command, note)
    he_explain.add(group, command, note)
    score = command(group, "score", _score, "server: a folder of queries to a folder of replies")
    score.add_argument("--head", required=True, metavar="HEAD.npz", help="kernel (d, c), bias (c,)")
    score.add_argument("--queries", required=True, nargs="+", metavar="PATH", help="a folder, or files")
    score.add_argument("--out", required=True, metavar="DIR", help="replies, NAME.reply; an earlier run's goes on")
    score.add_argument("--replies", default="sanitized", choices=("any", "sanitized"), help=_REPLIES)
    where = score.add_mutually_exclusive_group()
    where.add_argument("--jobs", type=int, default=0, metavar="N", help="processes (default: one a processor)")
    where.add_argument("--cluster", metavar="tcp://HOST:PORT", help="a Dask scheduler of yours; files are shared")
    score.set_defaults(note=note)


def _add_files(group, command) -> None:
    """Keys, query, reply and logits as files."""
    keygen = command(group, "keygen", _keygen, "client: make keys (one secret file)")
    keygen.add_argument(
        "--scheme", required=True, choices=SCHEMES, help="-sanitized: replies tell the logits and nothing else"
    )
    encrypt = command(group, "encrypt", _encrypt, "client: features (samples, d) to a query")
    encrypt.add_argument("--keys", required=True, metavar="KEYS")
    encrypt.add_argument("--features", required=True, metavar="X.npy")
    encrypt.add_argument("--feature-range", metavar="R", help=RANGE_HELP)
    encrypt.add_argument(
        "--packing",
        default="auto",
        choices=("auto", "coefficient", "batched"),
        help="default: by the size of the query",
    )
    encrypt.add_argument("--compress", action="store_true", help="query and reply without the zero bits of residues")
    evaluate = command(group, "evaluate", _evaluate, "server: query to reply")
    evaluate.add_argument("--head", required=True, metavar="HEAD.npz", help="kernel (d, c), bias (c,)")
    evaluate.add_argument("--query", required=True, metavar="QUERY")
    evaluate.add_argument(
        "--replies", default="any", choices=("any", "sanitized"), help="sanitized: refuse queries without"
    )
    decrypt = command(group, "decrypt", _decrypt, "client: reply to logits (samples, c)")
    decrypt.add_argument("--keys", required=True, metavar="KEYS")
    decrypt.add_argument("--reply", required=True, metavar="REPLY")
    which = decrypt.add_mutually_exclusive_group()
    which.add_argument("--query", metavar="QUERY", help="what the reply must answer (default: the keys' last query)")
    which.add_argument("--query-id", metavar="HEX", help="the same by its id, which encrypt shows")
    for parser in (evaluate, decrypt):
        parser.add_argument("--max-error", type=float, metavar="X", help=_ERROR_HELP)
    for parser, out in ((keygen, "KEYS"), (encrypt, "QUERY"), (evaluate, "REPLY"), (decrypt, "LOGITS.npy")):
        parser.add_argument("--out", required=True, metavar=out)


def _add_service(group, command, note) -> None:
    """The service and its client."""
    serve = command(group, "serve", _serve, "server: answer queries over HTTP (docs/service.md)")
    serve.add_argument("--head", required=True, metavar="HEAD.npz", help="kernel (d, c), bias (c,)")
    serve.add_argument("--host", default="127.0.0.1", metavar="HOST", help="default: this machine only")
    serve.add_argument("--port", type=int, default=8000, metavar="P", help="default 8000; 0: a free one")
    serve.add_argument("--certificate", metavar="PEM", help="serve TLS with this chain")
    serve.add_argument("--private-key", metavar="PEM", help="its key, unless the chain's file holds it")
    for name, (kind, text) in _LIMITS.items():
        serve.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar="N", help=text)
    serve.add_argument("--replies", default="sanitized", choices=("any", "sanitized"), help=_REPLIES)
    serve.add_argument("--feature-range", metavar="R", help=f"take queries of this range only; {RANGE_HELP}")
    serve.set_defaults(note=note)
    predict = command(group, "predict", _predict, "client: features to logits, by a service")
    predict.add_argument("--url", required=True, metavar="URL", help="http://HOST:PORT or https://...")
    predict.add_argument("--keys", required=True, metavar="KEYS")
    predict.add_argument("--features", required=True, metavar="X.npy")
    predict.add_argument("--feature-range", metavar="R", help=RANGE_HELP)
    predict.add_argument("--max-error", type=float, metavar="X", help=_ERROR_HELP)
    predict.add_argument("--compress", action="store_true", help="fewer bytes each way, for some time")
    predict.add_argument("--out", required=True, metavar="LOGITS.npy")
    predict.add_argument("--certificate-authority", metavar="PEM", help="trust these instead of the system's")
    predict.add_argument("--seconds", type=float, default=60.0, metavar="S", help="for everything, retries too (60)")
    predict.set_defaults(note=note)
