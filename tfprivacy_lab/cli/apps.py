"""``mpc train`` and ``apps``: the applications as subcommands. They return figures; ``cli`` prints them."""

from __future__ import annotations

import dataclasses
import importlib
import time
from pathlib import Path

from tfprivacy_lab.apps import APPS
from tfprivacy_lab.checks import check_positive_int
from tfprivacy_lab.files import write_bytes, write_json


def _train(options) -> dict:
    from tfprivacy_lab import mpc

    start = time.perf_counter()
    app = importlib.import_module(f"tfprivacy_lab.apps.{options.app}")
    options.note(f"{app.CARD.name}: training on shares under {options.protocol}")
    world = app.WORLDS[options.protocol]
    run = mpc.launch if options.processes else mpc.simulate
    figures = app.train_on_shares(options.protocol, run=run)
    statement = figures["statement"]
    return {
        "app": options.app,
        "dataset": app.CARD.name,
        "holders": figures["holders"],
        "protocol": options.protocol,
        "parties": len(world.parties),
        "processes": bool(options.processes),
        "trust": world.trust(("alice", "bob")),
        **figures["settings"],
        "accuracy": figures["quality"]["accuracy"],
        "accuracy_of_plain_numpy": figures["plain_accuracy"],
        "weight_difference": figures["weight_difference"],
        **{name: statement[name] for name in ("epsilon", "delta", "accountant", "adjacency", "claimed_against")},
        "released": "the noised weights, to alice",
        **{name: figures[name] for name in ("clinic_on_shares", "clinic_encrypted") if name in figures},
        "not_protected": list(app.NOT_PROTECTED),
        "bytes_sent": figures["bytes_sent"],
        "rounds": figures["rounds"],
        "seconds": round(time.perf_counter() - start, 3),
    }


def run_apps(names, out, seeds: int, note) -> dict:
    """All runs of the applications; writes ``metrics.json`` and ``accuracy.png`` in ``out``.

    Args:
        names: Of :data:`tfprivacy_lab.apps.APPS`.
        out: A folder.
        seeds: Splits, starts and noises to try, at least three.
        note: Shows a line of progress.

    Returns:
        What ``metrics.json`` holds.

    Raises:
        InputError: naming the argument.
    """
    from tfprivacy_lab.apps import audits, tables
    from tfprivacy_lab.provenance import provenance

    seeds = check_positive_int("seeds", seeds, at_least=tables.LEAST_SEEDS)
    start, rows, apps = time.perf_counter(), [], {}
    for name in names:
        app = importlib.import_module(f"tfprivacy_lab.apps.{name}")
        note(f"{name}: {app.CARD.name}, {seeds} seeds")
        found = app.run(range(seeds))
        mine = tables.rows(name, found.pop("runs"))
        rows += mine
        control = audits.control(app.split(0), delta=app.DELTA)
        card = dataclasses.asdict(app.CARD)
        apps[name] = {"card": card, "not_protected": list(app.NOT_PROTECTED), "control": control, **found}
        note(tables.markdown(mine))
    metrics = {"rows": rows, "apps": apps, "seconds": round(time.perf_counter() - start, 1), **provenance()}
    out = Path(out)
    write_bytes(out / "accuracy.png", tables.picture(rows))
    write_json(out / "metrics.json", metrics)
    return metrics


def summary(metrics: dict) -> str:
    """The tables without gaps and lists, from what ``metrics.json`` holds."""
    from tfprivacy_lab.apps import education, tables

    apps = metrics["apps"]
    common = ", ".join(f"{name} {100 * max(p, 1 - p):.1f}" for name, p in _positives(apps))
    controls = ", ".join(f"{name} {app['control']['auc']:.2f}" for name, app in apps.items())
    parts = [
        tables.markdown(metrics["rows"]),
        "Means and 95 % intervals (Student) over seeds: splits, starts, noise, not other people's data. Lost: against "
        "the model without DP of the same seed. Always giving the commoner answer is right, in %: "
        f"{common}. The attack is the best of three, which lifts its AUC a little above a coin's 0.5; on a network "
        f"made to memorise 200 rows it reaches: {controls}. Settings were chosen on a public pilot; noise is seeded, "
        f"for a table that can be made again. {metrics['hardware']}.",
    ]
    for app in apps.values():
        parts += [tables.encrypted_line(app["encrypted"])] if "encrypted" in app else []
        if "statistics" in app:
            parts += [tables.statistics_markdown(app["statistics"], delta=education.DELTA)]
    return "\n\n".join(parts)


def _positives(apps: dict):
    return ((name, app["card"]["positives"] / app["card"]["rows"]) for name, app in apps.items())


def page(metrics: dict) -> str:
    """What ``table.md`` says: the summary, gaps between groups, and what is not protected."""
    from tfprivacy_lab.apps import tables

    parts = [summary(metrics)]
    if any(row["gaps"] for row in metrics["rows"]):
        parts += ["Gaps, in points: the group's figure less everybody else's.", tables.gaps_markdown(metrics["rows"])]
    for name, app in metrics["apps"].items():
        parts += [f"Not protected, {name}:", "\n".join(f"- {line}" for line in app["not_protected"])]
    return "\n\n".join(parts) + "\n"


def _run(options) -> dict:
    metrics = run_apps(options.app or APPS, options.out, options.seeds, options.note)
    write_bytes(Path(options.out) / "table.md", page(metrics).encode())
    if not options.json:
        return {"out": options.out, "rows": len(metrics["rows"]), "seconds": metrics["seconds"]}
    return metrics


def add(commands, mpc_group, command, note) -> None:
    """Register ``mpc train`` and ``apps``; arguments as :func:`tfprivacy_lab.cli.mpc.add`."""
    from tfprivacy_lab.cli.mpc import PROTOCOL_NAMES

    train = command(mpc_group, "train", _train, "an application's model, trained on shares and released with DP")
    train.add_argument("--app", required=True, choices=APPS)
    train.add_argument("--protocol", default="aby3", choices=PROTOCOL_NAMES, help="default aby3")
    train.add_argument("--processes", action="store_true", help="a process a party, over TCP on this machine")
    train.set_defaults(note=note)
    apps = command(commands, "apps", _run, "the applications' result tables, with and without DP, and attacked")
    apps.add_argument("--app", action="append", choices=APPS, help="one of them; may be repeated; default: all")
    apps.add_argument("--seeds", type=int, default=5, metavar="N", help="splits, starts and noises, >= 3 (5)")
    apps.add_argument("--out", default="results/apps", metavar="DIR")
    apps.set_defaults(note=note)
