"""``make bench-he``: an encrypted head of 128 inputs and 10 classes, ours by packing, plain Keras, and other libraries.

Times are medians over rounds that go through all cases in turn; the server's time is that of ``Server.evaluate``,
bytes to bytes, after a first call. The networks' rows are those of ``benchmarks/he_networks.py``. Other libraries run
in an environment of their own (``benchmarks/he_peers.py``).
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))

import pages
from he_peers import head_rows

from tfprivacy_lab import files, he
from tfprivacy_lab.he import SlotHead, SlotHeadClient, SlotHeadServer
from tfprivacy_lab.provenance import place, provenance

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results" / "bench_he" / "metrics.json"
NETWORKS = ROOT / "results" / "he_networks" / "metrics.json"
FEATURES, CLASSES, ROUNDS, ENOUGH_IMAGES = 128, 10, 15, 100
CASES = (
    ("bfv", "coefficient", 1),
    ("ckks", "coefficient", 1),
    ("bfv-sanitized", "coefficient", 1),
    ("ckks-sanitized", "coefficient", 1),
    ("bfv", "coefficient", 16),
    ("ckks", "coefficient", 16),
    ("bfv", "batched", 2048),
    ("ckks", "batched", 2048),
)
# README's rows.
SHOWN = (
    {"case": "head 128-10", "scheme": "bfv", "sanitized": True, "samples": 1},
    {"case": "head 128-10", "peer": "Keras, not encrypted", "samples": 1},
    {"case": "cryptonet", "scheme": "ckks", "samples": 1},
    {"case": "cryptonet", "scheme": "ckks", "samples": 10_000},
)
# Figures of papers and pages, on their machines: never compared as if they had run here.
PUBLISHED = (
    ("CryptoNets 2016", "convolutional network, up to 4,096 images together", "250 s a batch", "Xeon E5-1620, 4 cores"),
    ("LoLa 2019", "convolutional network, one image", "2.2 s", "Azure B8ms, 8 virtual cores"),
    ("nGraph-HE2 2019", "convolutional network, batched", "1,998 images a second", "Xeon Platinum 8180, 112 threads"),
    (
        "HomomorphicEncryption.org's reference for ML inference",
        "dense network on MNIST, one image, with OpenFHE",
        "11-12 s, 1.4 GB of keys",
        "not stated",
    ),
)


def main() -> None:
    """Measure, check every answer, and write results/bench_he/metrics.json."""
    rng = np.random.default_rng(0)
    kernel, bias = rng.normal(size=(FEATURES, CLASSES)) * 0.2, rng.normal(size=CLASSES) * 0.1
    features = np.maximum(rng.normal(size=(2048, FEATURES)), 0)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    rows = measured(kernel, bias, features)
    rows += [plain_row(kernel, bias, features[:count]) for count in (1, 16, 2048)]
    rows += slot_rows(kernel, bias, features)
    rows += head_rows(kernel, bias, features[0])
    ours = min(row["server_ms"] for row in rows if row["samples"] == 1 and row["peer"] == "ours")
    for row in rows:
        if row["peer"] in ("TenSEAL", "DESILO") and "server_ms" in row:
            row["times_ours"] = round(row["server_ms"] / ours, 1)
    if NETWORKS.exists():
        rows += [{"peer": "ours", **row} for row in files.read_json(NETWORKS, "networks' figures")["rows"]]
    published = [dict(zip(("source", "case", "figure", "hardware"), one, strict=True)) for one in PUBLISHED]
    metrics = {"rows": rows, "published": published, **provenance()}
    files.write_json(RESULTS, metrics)
    if any(row["peer"] == "ours" and row["case"] != "head 128-10" for row in rows):
        publish(metrics)
    for row in rows:
        print(" ".join(f"{key}={value}" for key, value in row.items() if key not in ("plan", "note")))


def publish(metrics: dict) -> None:
    """The tables."""
    pages.write(parts(metrics))


def parts(metrics: dict) -> list[pages.Part]:
    """The tables and where they stand."""
    marks, few = pages.marks("he results", "bench-he"), pages.select(metrics["rows"], SHOWN)
    return [
        pages.Part(pages.README, marks, table(few, what=place(metrics))),
        pages.Part(pages.RESULT_PAGES / "encrypted.md", marks, page(metrics)),
    ]


def table(rows: list[dict], what: str = "what") -> str:
    """A row for each that was measured; ``what`` heads the first column."""
    lines = [
        f"| {what} | packing | samples | server | client | up | down | evaluation keys | accuracy |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if "server_ms" in row:
            who = "" if row["peer"] == "ours" else f" ({row['peer']})"
            scheme = row["scheme"].upper() + (" sanitised" if row.get("sanitized") else "")
            scheme = "" if scheme == "NONE" else f" {scheme}"
            sizes = " | ".join(size(row[key]) for key in ("up_bytes", "down_bytes", "key_bytes"))
            times = f"{time_of(row['server_ms'])} | {time_of(row['client_ms'])}"
            what = f"{row['case']}{scheme}{who} | {row['packing']} | {row['samples']:,}"
            lines.append(f"| {what} | {times} | {sizes} | {accuracy_of(row)} |")
    return "\n".join(lines)


def page(metrics: dict) -> str:
    """All rows, what could not be measured, and what others have published."""
    rows, published = metrics["rows"], metrics["published"]
    lines = [table(rows), "", f"Medians; every answer checked. {place(metrics)}."]
    notes = [f"{row['peer']}: {row['note']}." for row in rows if row.get("note", "").startswith("not measured")]
    lines += [" ".join(notes)] if notes else []
    lines += [
        "",
        "Published figures, on their machines:",
        "",
        "| source | what | figure | hardware |",
        "|---|---|---|---|",
    ]
    lines += [
        "| " + " | ".join(one[key] for key in ("source", "case", "figure", "hardware")) + " |" for one in published
    ]
    return "\n".join(lines)


def accuracy_of(row: dict) -> str:
    """Encrypted and plain accuracy on the images evaluated, in percent, where they are enough for one."""
    if "accuracy_encrypted" not in row or row.get("images", row["samples"]) < ENOUGH_IMAGES:
        return ""
    if row["scheme"] == "none":
        return f"{100 * row['accuracy_plain']:.2f} %"
    encrypted, plain = (f"{100 * row[f'accuracy_{how}']:.2f}" for how in ("encrypted", "plain"))
    return f"{encrypted} % ({plain} % plain)"


def size(count: int) -> str:
    """Bytes in a unit that suits them."""
    return f"{count / 1e6:,.1f} MB" if count >= 1e6 else f"{count / 1e3:,.1f} kB" if count >= 1e3 else f"{count} B"


def time_of(milliseconds: float) -> str:
    """Milliseconds in a unit that suits them."""
    return f"{milliseconds / 1e3:.2f} s" if milliseconds >= 1e3 else f"{milliseconds:.3g} ms"


def measured(kernel, bias, features) -> list[dict]:
    """A row for each of our cases."""
    server, clients = he.Server(kernel, bias), {name: he.Client.generate(name) for name, _, _ in CASES}
    times = {case: {"server": [], "client": []} for case in CASES}
    sizes, errors = {}, {}
    for number in range(ROUNDS + 1):
        for case in CASES:
            name, packing, samples = case
            start = time.perf_counter()
            query = clients[name].encrypt(features[:samples], 1.0, packing)
            sent = time.perf_counter()
            reply = server.evaluate(query)
            answered = time.perf_counter()
            logits = clients[name].decrypt(reply, query)
            if number:
                times[case]["server"].append(answered - sent)
                times[case]["client"].append(sent - start + time.perf_counter() - answered)
            error = np.abs(logits - features[:samples] @ kernel - bias).max()
            sizes[case], errors[case] = (len(query), len(reply)), max(float(error), errors.get(case, 0.0))
    return [
        {
            "case": "head 128-10",
            "packing": packing,
            "scheme": name.split("-")[0],
            "sanitized": name.endswith("sanitized"),
            "samples": samples,
            "server_ms": round(1e3 * statistics.median(times[name, packing, samples]["server"]), 4),
            "client_ms": round(1e3 * statistics.median(times[name, packing, samples]["client"]), 3),
            "up_bytes": sizes[name, packing, samples][0],
            "down_bytes": sizes[name, packing, samples][1],
            "key_bytes": 0,
            "largest_error": errors[name, packing, samples],
            "peer": "ours",
        }
        for name, packing, samples in CASES
    ]


def slot_rows(kernel, bias, features) -> list[dict]:
    """The packings of textbooks, with keys and rotations (:mod:`tfprivacy_lab.he.plans.slot_head`)."""
    rows = []
    for packing in ("diagonal", "naive"):
        plan = SlotHead.make(kernel, bias, packing)
        client = SlotHeadClient(plan.public)
        keys = client.evaluation_keys()
        server, times, error = SlotHeadServer(plan, keys), {"server": [], "client": []}, 0.0
        for sample in features[: ROUNDS + 1]:
            start = time.perf_counter()
            query = client.encrypt(sample)
            sent = time.perf_counter()
            reply = server.evaluate(query)
            answered = time.perf_counter()
            logits = client.decrypt(reply, query)
            times["server"].append(answered - sent)
            times["client"].append(sent - start + time.perf_counter() - answered)
            error = max(error, float(np.abs(logits - sample @ kernel - bias).max()))
        rows.append(
            {
                "case": "head 128-10",
                "packing": packing,
                "scheme": "ckks",
                "sanitized": False,
                "samples": 1,
                **{f"{who}_ms": round(1e3 * statistics.median(times[who][1:]), 3) for who in times},
                "up_bytes": query.nbytes,
                "down_bytes": reply.nbytes,
                "key_bytes": keys.bytes,
                "largest_error": error,
                "peer": "ours",
            }
        )
    return rows


def plain_row(kernel, bias, features) -> dict:
    """The same head in Keras, on numbers that anyone can read: what encryption costs is a ratio to this."""
    import keras
    import tensorflow as tf

    layer = keras.layers.Dense(CLASSES)
    layer.build((None, FEATURES))
    layer.set_weights([kernel, bias])
    call, batch, times = tf.function(layer), tf.constant(features, tf.float32), []
    for _ in range(200):
        start = time.perf_counter()
        call(batch).numpy()
        times.append(time.perf_counter() - start)
    return {
        "case": "head 128-10",
        "packing": "none",
        "scheme": "none",
        "sanitized": False,
        "samples": len(features),
        "server_ms": round(1e3 * statistics.median(times), 4),
        "client_ms": 0.0,
        "up_bytes": 4 * features.size,
        "down_bytes": 4 * len(features) * CLASSES,
        "key_bytes": 0,
        "peer": "Keras, not encrypted",
    }


if __name__ == "__main__":
    main()
