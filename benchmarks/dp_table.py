"""The DP benchmark's rows as a table, a figure, and one line of progress each."""

from __future__ import annotations

import io

import matplotlib.style
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from tfprivacy_lab.report.style import CONTROL, DP, DPI

_TITLES = {"document_mlp": "MLP 784-128-10", "tutorial_cnn": "tutorial CNN"}
_BASELINES = {"keras": "Keras 3", "tf_keras": "Keras 2", "pytorch": "PyTorch", "jax": "JAX"}
_LABELS = {
    "fast": "tfprivacy_lab",
    "fast, TensorFlow's operations": "tfprivacy_lab, TensorFlow's operations",
    **_BASELINES,
}
_COLUMNS = (
    "path", "ms a step", "× its own framework (quartiles)", "bare step, ms", "bare step, ×", "peak, MB", "peak, ×",
    "first fit, s",
)  # fmt: skip


def label(path: str) -> str:
    """A path's name in tables and figures."""
    if path in _BASELINES:
        return f"{_BASELINES[path]}, no privacy"
    prefix = "TF Privacy " if path.startswith(("DP", "Vectorized")) else ""
    return prefix + _LABELS.get(path, path)


def summary(row: dict) -> str:
    """One row in a few words."""
    peak = f", peak {row['peak_mb']:.0f} MB" if "peak_mb" in row else ""
    if "missing" in row:
        return row["missing"] + peak
    if "ratio" not in row:
        return peak.removeprefix(", ")
    low, high = row["ratio_quartiles"]
    times = f"{row['ms']:.3g} ms against {row['baseline_ms']:.3g}"
    return f"{times}: {row['ratio']:.2f}x [{low:.2f}, {high:.2f}], {row['rounds']} rounds{peak}"


def table(metrics: dict) -> str:
    """Markdown: a table a case, and how to read it."""
    lines = ["# What a DP step costs", ""]
    for model, batch in cases(metrics["rows"]):
        lines += [f"## {_TITLES[model]}, batch {batch:,}", "", "| " + " | ".join(_COLUMNS) + " |"]
        lines.append("|---|" + "---:|" * (len(_COLUMNS) - 1))
        lines += [line(row) for row in metrics["rows"] if (row["model"], row["batch"]) == (model, batch)] + [""]
    lines += notes(metrics)
    return "\n".join(lines) + "\n"


def line(row: dict) -> str:
    """A row of the table."""
    spread = ""
    if "ratio_quartiles" in row:
        spread = " ({:.2f}–{:.2f})".format(*row["ratio_quartiles"])
    what = row.get("missing") or f"{number(row.get('ms'))} | {number(row.get('ratio'), '.2f')}{spread}"
    if "missing" in row:
        what += " | –"
    cells = [label(row["path"]) + (f" ({row['note']})" if "note" in row else ""), what]
    cells += [number(row.get("step_ms")), number(row.get("step_ratio"), ".2f")]
    cells += [
        number(row.get("peak_mb"), ".0f"),
        number(row.get("peak_ratio"), ".2f"),
        number(row.get("first_s"), ".2f"),
    ]
    return "| " + " | ".join(cells) + " |"


def number(value: float | None, form: str = ".3g") -> str:
    """A number, or a dash."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if form == ".3g" and value >= 1000 else format(value, form)


def notes(metrics: dict) -> list[str]:
    """What was measured, how, and on what."""
    versions = {**metrics["versions"], **metrics["peers_versions"]}
    return [
        f"A step is a logical batch of {metrics['examples']:,} examples in MNIST's shapes, plain SGD, C = "
        f"{metrics['l2_norm_clip']:g}, σ = {metrics['noise_multiplier']:g}, one example a microbatch. *ms a step* is "
        "the wall time of the epochs of `fit`, sampling, shuffling and the input pipeline included, over its steps. "
        "tfprivacy_lab draws Poisson batches; the others shuffle. PyTorch and JAX, which have no `fit`, run a loop "
        "on shuffled arrays in memory. *Bare step* is the compiled step alone on a batch that never changes, left "
        "out where a step takes seconds. Each path ran in a process of its own, in blocks that alternate with its "
        "own framework's step without privacy; ratios are medians over rounds, and comparable although the machine "
        "is shared. *Peak* is the process's largest resident memory in its first call of `fit`: interpreter, framework "
        "and data included, over that of a process with the baseline alone. *First fit* is that call's time, of 20 "
        "steps (TF Privacy's DPKerasSGDOptimizer: 1, JAX-Privacy's clipped_grad: 2), in a process that has built the "
        "model and computed little else.",
        "",
        f"{metrics['hardware']}; " + ", ".join(f"{name} {version}" for name, version in versions.items()) + ".",
    ]


def cases(rows: list[dict]) -> list[tuple[str, int]]:
    """Model and batch size of every case, in order."""
    return list(dict.fromkeys((row["model"], row["batch"]) for row in rows))


def figure(metrics: dict) -> bytes:
    """Bars of the ratio to the own framework's step, log axis, a panel a case; PNG."""
    rows = [row for row in metrics["rows"] if row["path"] != row["baseline"]]
    found = cases(rows)
    names = list(dict.fromkeys(row["path"] for row in rows))
    largest = max((row["ratio"] for row in rows if "ratio" in row), default=10.0)
    with matplotlib.style.context({"font.family": "DejaVu Sans", "font.size": 10, "text.parse_math": False}):
        picture = Figure(figsize=(11, 0.9 + 0.36 * len(names) * ((len(found) + 1) // 2) + 0.9), layout="constrained")
        panels = picture.subplots((len(found) + 1) // 2, 2, sharex=True, sharey=True, squeeze=False)
        for panel, case in zip(panels.flat, found, strict=False):
            draw(panel, case, [row for row in rows if (row["model"], row["batch"]) == case], names)
            panel.set_xlim(0.5, largest * 6)
        picture.supxlabel("time of a step over that of the same framework's without privacy (log)", fontsize="medium")
        stream = io.BytesIO()
        picture.savefig(stream, format="png", dpi=DPI)
    return stream.getvalue()


def draw(panel, case, rows, names) -> None:
    """One panel: a bar and its number a path; words where there is no number."""
    panel.set_xscale("log")
    panel.set_title(f"{_TITLES[case[0]]}, batch {case[1]:,}", loc="left", fontsize="medium")
    for row in rows:
        height = names.index(row["path"])
        if "ratio" not in row:
            panel.text(1.1, height, row["missing"].split(":")[0], va="center", color=CONTROL, fontsize="small")
            continue
        colour = DP if row["path"] == "fast" else "#B5B5B5"
        panel.barh(height, row["ratio"] - 0.5, left=0.5, color=colour, height=0.7)
        panel.text(row["ratio"] * 1.08, height, f"{number(row['ratio'])}×", va="center", fontsize="small")
    panel.axvline(1.0, color="black", linewidth=1)
    panel.set_yticks(range(len(names)), [label(name) for name in names])
    panel.set_ylim(len(names) - 0.4, -0.6)
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.grid(axis="x", color="#E4E4E4")
    panel.set_axisbelow(True)
    for side in ("right", "top"):
        panel.spines[side].set_visible(False)
