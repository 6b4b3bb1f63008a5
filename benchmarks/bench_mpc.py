"""``make bench-mpc``: a frozen head on shares beside encryption, and training on shares, in one table.

Heads: the walkthrough's, trained under DP, on the features of its first test images; the owner of the features learns
the logits, and they are held against those in the clear. On shares, each party is a process and the
link is TCP on loopback without TLS; a network adds its latency once a round. Times are of one run, without imports and
compiling (of encryption: medians of three); bytes are payload of all parties together. An interrupted run goes on
where it stopped.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))

import pages
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator
from sklearn.datasets import load_breast_cancer

from tfprivacy_lab import files, he, mpc
from tfprivacy_lab.cli.mpc import _NAMES
from tfprivacy_lab.mpc.computations import shared_head
from tfprivacy_lab.provenance import place, provenance
from tfprivacy_lab.report import style

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results" / "mpc" / "metrics.json"
UNFINISHED = RESULTS.with_name("unfinished.json")
SCHEMES = ("bfv-sanitized", "ckks-sanitized")
# README's rows.
SHOWN = (
    {"case": "DP head 128-10", "route": "aby3", "samples": 100},
    {"case": "DP head 128-10", "route": "cheetah", "samples": 100},
    {"case": "DP head 128-10", "route": "he bfv-sanitized", "samples": 100},
    {"case": "logistic regression 30-1, 20 steps", "route": "aby3"},
)
WALKTHROUGH = ROOT / "runs" / "walkthrough"
ROUNDS = 3
HE_TRUST = "nobody but the holder of the secret key; the server follows the protocol"


def main() -> None:
    """Measure, check every answer, and write results/mpc/metrics.json."""
    kernel, bias, features = walkthrough_head()
    worlds = {name: mpc.World(name, *_NAMES[name]) for name in mpc.PROTOCOLS}
    cases = []
    for samples in (1, 100):
        part = features[:samples]
        cases += [(f"head {name} {samples}", head_row, (world, kernel, bias, part)) for name, world in worlds.items()]
        cases += [(f"head {name} {samples}", he_row, (name, kernel, bias, part)) for name in SCHEMES]
    for name, world in worlds.items():
        cases += [(f"{model} {name}", training_row, (world, layers, model)) for model, layers in MODELS.items()]
    done = files.read_json(UNFINISHED, "unfinished figures") if UNFINISHED.exists() else {}
    for case, function, arguments in cases:
        if case not in done:
            done[case] = function(*arguments)
            files.write_json(UNFINISHED, done)
    rows = [done[case] for case, _, _ in cases]
    UNFINISHED.unlink()
    metrics = {"rows": rows, "protocols": mpc.protocol_table(), **provenance()}
    files.write_json(RESULTS, metrics)
    publish(metrics)
    for row in rows:
        print(" ".join(f"{key}={value}" for key, value in row.items() if key != "trust"))


def publish(metrics: dict) -> None:
    """The figure and the tables."""
    files.write_bytes(RESULTS.with_name("costs.png"), figure(metrics["rows"]))
    pages.write(parts(metrics))


def parts(metrics: dict) -> list[pages.Part]:
    """The tables and where they stand."""
    marks, few = pages.marks("mpc results", "bench-mpc"), pages.select(metrics["rows"], SHOWN)
    notes = f"Loopback; a network adds its latency once a round. Beside encryption: {HE_TRUST}.\n{place(metrics)}."
    return [
        pages.Part(pages.README, marks, table(few, what=f"loopback, {place(metrics)}")),
        pages.Part(pages.RESULT_PAGES / "shares.md", marks, f"{table(metrics['rows'])}\n\n{notes}"),
    ]


def walkthrough_head() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Kernel (128, 10), bias (10,) and features (100, 128) of the walkthrough."""
    from tfprivacy_lab import data, models
    from tfprivacy_lab.experiments import runs

    missing = [name for name in ("head.npz", "backbone.keras") if not (WALKTHROUGH / name).exists()]
    if missing:
        raise SystemExit(f"{WALKTHROUGH / missing[0]} is not there; make it by: make walkthrough")
    with np.load(WALKTHROUGH / "head.npz", allow_pickle=False) as head:
        kernel, bias = head["kernel"].astype(float), head["bias"].astype(float)
    features = models.embed(runs.load_model(WALKTHROUGH / "backbone.keras"), data.load_test().images[:100])
    return kernel, bias, features.astype(float)


MODELS = {
    "logistic regression 30-1, 20 steps": [mpc.Layer(1, "sigmoid")],
    "network 30-16-1, 20 steps": [mpc.Layer(16, "sigmoid"), mpc.Layer(1, "sigmoid")],
}


def head_row(world, kernel, bias, features) -> dict:
    """A head on shares, each party a process."""
    run = shared_head(
        kernel, bias, world, owner="bob", features_of="alice", features=features, feature_range=1.0, run=mpc.launch
    )
    logits, expected = run.outcomes["alice"].predictions, features @ kernel + bias
    return {
        "case": "DP head 128-10",
        "route": world.protocol,
        "samples": len(features),
        "parties": len(world.parties),
        "seconds": round(run.seconds, 4),
        "bytes": run.bytes_sent,
        "rounds": run.rounds,
        "largest_error": float(np.abs(logits - expected).max()),
        "error_bound": run.plan.prediction_error,
        "agreement": float((logits.argmax(1) == expected.argmax(1)).mean()),
        "trust": world.trust(("alice", "bob")),
    }


def he_row(scheme, kernel, bias, features) -> dict:
    """The same head on encrypted features, client and server in one process."""
    client, server, seconds = he.Client.generate(scheme), he.Server(kernel, bias), []
    for _ in range(ROUNDS + 1):
        start = time.perf_counter()
        query = client.encrypt(features, 1.0)
        reply = server.evaluate(query)
        logits = client.decrypt(reply, query)
        seconds.append(time.perf_counter() - start)
    expected = features @ kernel + bias
    return {
        "case": "DP head 128-10",
        "route": f"he {scheme}",
        "samples": len(features),
        "parties": 2,
        "seconds": round(statistics.median(seconds[1:]), 4),
        "bytes": len(query) + len(reply),
        "rounds": 2,
        "largest_error": float(np.abs(logits - expected).max()),
        "error_bound": None,
        "agreement": float((logits.argmax(1) == expected.argmax(1)).mean()),
        "trust": HE_TRUST,
    }


def training_row(world, layers, name) -> dict:
    """Training on breast cancer, columns of two parties, each party a process."""
    x, y = load_breast_cancer(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    train, test = order[:455], order[455:]
    x = np.clip((x - x[train].mean(0)) / x[train].std(0), -4, 4)
    model = mpc.SharedModel(layers, world, feature_range=4, weight_range=None if len(layers) == 1 else 4)
    model.compile("binary_crossentropy", 0.5)
    parts = {"alice": x[train][:, :15], "bob": x[train][:, 15:]}
    run = model.fit(parts, {"bob": y[train]}, steps=20, reveal_weights=("alice", "bob"), run=mpc.launch)
    value = x[test]
    for kernel, bias in zip(run.outcomes["bob"].weights[::2], run.outcomes["bob"].weights[1::2], strict=True):
        value = 1 / (1 + np.exp(-(value @ kernel + bias)))
    return {
        "case": name,
        "route": world.protocol,
        "samples": len(train),
        "parties": len(world.parties),
        "seconds": round(run.seconds, 3),
        "bytes": run.bytes_sent,
        "rounds": run.rounds,
        "accuracy": float(((value[:, 0] > 0.5) == y[test]).mean()),
        "trust": world.trust(("alice", "bob")),
    }


def table(rows: list[dict], what: str = "what") -> str:
    """A row for each that was measured; ``what`` heads the first column."""
    lines = [
        f"| {what} | route | samples | time | bytes | rounds | parties | result |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        seconds = f"{row['seconds']:.2f} s" if row["seconds"] >= 1 else f"{1e3 * row['seconds']:.3g} ms"
        size = f"{row['bytes'] / 1e6:,.1f} MB" if row["bytes"] >= 1e6 else f"{row['bytes'] / 1e3:,.1f} kB"
        what = f"{row['case']} | {row['route']} | {row['samples']}"
        found = (
            f"{row['agreement']:.0%} of classes as in the clear"
            if "agreement" in row
            else f"{row['accuracy']:.1%} right"
        )
        lines.append(f"| {what} | {seconds} | {size} | {row['rounds']} | {row['parties']} | {found} |")
    return "\n".join(lines)


LOOK = {
    "semi2k": ("semi2k", "o", style.CONTROL),
    "aby3": ("aby3", "s", style.DP),
    "cheetah": ("cheetah", "^", style.NON_PRIVATE),
    "he bfv-sanitized": ("encrypted, BFV", "D", style.SCHEMES["bfv"]),
    "he ckks-sanitized": ("encrypted, CKKS", "v", style.SCHEMES["ckks"]),
}


@style.png
def figure(rows: list[dict]):
    """Time and bytes of every case, a mark a route."""
    cases = list(dict.fromkeys((row["case"], row["samples"]) for row in rows))
    names = [f"{case}\n{samples} {'sample' if samples == 1 else 'samples'}" for case, samples in cases]
    picture = Figure(figsize=(9.2, 3.6), layout="constrained")
    panels = zip(
        picture.subplots(1, 2, sharey=True), ("seconds", "bytes"), ("seconds", "MB sent"), (1, 1e6), strict=True
    )
    for axes, key, label, unit in panels:
        for route, (name, marker, colour) in LOOK.items():
            mine = [row for row in rows if row["route"] == route]
            heights = [cases.index((row["case"], row["samples"])) for row in mine]
            axes.plot([row[key] / unit for row in mine], heights, marker, color=colour, label=name, alpha=0.85)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel(label)
    axes.set_yticks(range(len(cases)), names)
    axes.set_ylim(len(cases) - 0.5, -0.5)
    picture.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=len(LOOK))
    return picture


if __name__ == "__main__":
    main()
