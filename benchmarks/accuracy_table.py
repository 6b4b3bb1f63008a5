"""The DP accuracy table: published points, Markdown, and a figure of accuracy against ε."""

from __future__ import annotations

import io

import matplotlib.style
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from tfprivacy_lab.provenance import place
from tfprivacy_lab.report.style import CONTROL, DP, DPI, NON_PRIVATE, PUBLIC

# MNIST at δ = 1e-5: (ε, test accuracy in %). Nobody's numbers but the authors'.
PUBLISHED = {
    "TF Privacy tutorial, CNN": ((1.19, 95.0), (3.01, 96.6), (7.10, 97.0)),
    "Opacus example, CNN": ((1.16, 94.6), (2.91, 96.8), (6.86, 97.1)),
    "Tramèr & Boneh 2021, end-to-end CNN": ((3.0, 98.1),),
    "Tramèr & Boneh 2021, scattering + linear": ((3.0, 98.7),),
    "Tramèr & Boneh 2021, scattering + CNN": ((3.0, 98.7),),
}
# Which published line a recipe is held against, at the published ε nearest to the recipe's.
AGAINST = {
    "scatter-finetune": "Tramèr & Boneh 2021, scattering + CNN",
    "finetune": "Tramèr & Boneh 2021, scattering + CNN",
    "scatter-linear": "Tramèr & Boneh 2021, scattering + linear",
    "tutorial-cnn": "TF Privacy tutorial, CNN",
    "seed-mlp": "TF Privacy tutorial, CNN",
}
REASONS = {
    "scatter-finetune": "features from public rendered digits beside scattering; the head alone pays for privacy",
    "finetune": "the head is small and its features know digits, so little of the budget buys much",
    "scatter-linear": "the same features; one set of hyperparameters for all seeds, Poisson sampling, PLD accounting",
    "tutorial-cnn": "tanh, small clip, large batches, momentum and averaging, and PLD instead of an old RDP conversion",
    "seed-mlp": "a dense network without convolutions; ReLU and dropout as in the article",
}
_LOOK = {
    "scatter-finetune": (DP, "o"),
    "finetune": ("#56B4E9", "s"),
    "scatter-linear": (PUBLIC, "^"),
    "tutorial-cnn": (NON_PRIVATE, "D"),
    "seed-mlp": ("#CC79A7", "v"),
}


def nearest(recipe: str, epsilon: float) -> tuple[str, float, float] | None:
    """(method, ε, accuracy in %) of the published point a row is held against; None if none is near."""
    method = AGAINST[recipe]
    at, accuracy = min(PUBLISHED[method], key=lambda point: abs(point[0] - epsilon))
    return (method, at, accuracy) if 0.8 <= at / epsilon <= 1.25 else None


def percent(row: dict) -> str:
    """Mean and standard deviation over seeds."""
    spread = f" ± {100 * row['accuracy_sd']:.2f}" if row["seeds"] > 1 else ""
    return f"{100 * row['accuracy_mean']:.2f}{spread}"


def seconds(row: dict) -> str:
    """Of the slowest seed, without what builds features; an upper bound where that was not told apart."""
    known = row.get("features_seconds") is not None
    return f"{'' if known else '≤ '}{row['seconds']:.0f}"


def matrix(metrics: dict, recipes: tuple[str, ...]) -> str:
    """One line a recipe, one column an ε, for the README."""
    rows = metrics["rows"]
    budgets = sorted({row["epsilon"] for row in rows})
    what = f"test accuracy in %, δ = {metrics['delta']:g}, {_seeds(rows)} seeds"
    lines = [f"| {what} | " + " | ".join(f"ε = {epsilon:g}" for epsilon in budgets) + " |"]
    lines.append("|---|" + "---|" * len(budgets))
    for recipe in recipes:
        cells = {row["epsilon"]: percent(row) for row in rows if row["recipe"] == recipe}
        lines.append(f"| {recipe} | " + " | ".join(cells.get(epsilon, "–") for epsilon in budgets) + " |")
    return "\n".join(lines)


def caption(metrics: dict) -> str:
    """How to read the long table, and where its figures are of."""
    return (
        f"Test accuracy in %, mean ± standard deviation of {_seeds(metrics['rows'])} seeds; "
        f"δ = {metrics['delta']:g}, {metrics['accountant']}, {metrics['sampling']}. {place(metrics)}."
    )


def _seeds(rows: list[dict]) -> str:
    """How many seeds a row is of."""
    return " or ".join(map(str, sorted({row["seeds"] for row in rows})))


def detailed(metrics: dict) -> str:
    """Every row with the published value, the gap, its reason and its command."""
    lines = ["| recipe | ε | ours, % | seconds | published, % | gap | reason |", "|---|---|---|---|---|---|---|"]
    for row in metrics["rows"]:
        found = nearest(row["recipe"], row["epsilon"])
        paper, gap = "–", "–"
        if found is not None:
            paper = f"{found[2]:.1f} at ε = {found[1]:g} ({found[0]})"
            gap = f"{100 * row['accuracy_mean'] - found[2]:+.2f}"
        reason = REASONS[row["recipe"]] if found is not None else ""
        cells = (row["recipe"], f"{row['epsilon']:g}", percent(row), seconds(row), paper, gap, reason)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def figure(metrics: dict) -> bytes:
    """Accuracy against ε: recipes as lines with error bars, published results as grey marks; PNG."""
    with matplotlib.style.context({"font.family": "DejaVu Sans", "font.size": 10, "text.parse_math": False}):
        picture = Figure(figsize=(8.2, 4.8), layout="constrained")
        axes = picture.subplots()
        for recipe, (colour, marker) in _LOOK.items():
            rows = [row for row in metrics["rows"] if row["recipe"] == recipe]
            if rows:
                x, y, spread = zip(
                    *((r["epsilon"], 100 * r["accuracy_mean"], 100 * r["accuracy_sd"]) for r in rows), strict=True
                )
                axes.errorbar(x, y, spread, color=colour, marker=marker, capsize=3, label=recipe, zorder=3)
        for (name, points), marker in zip(PUBLISHED.items(), "xP*1+", strict=True):
            x, y = zip(*points, strict=True)
            axes.plot(x, y, marker, color=CONTROL, markersize=8, label=name)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator([1, 2, 3, 5, 8]))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_xlabel(f"ε (δ = {metrics['delta']:g}; ours by PLD, Poisson sampling)")
        axes.set_ylabel("test accuracy, %")
        axes.set_title(
            "MNIST under differential privacy: ours in colour, published in grey", loc="left", fontsize="medium"
        )
        axes.grid(color="#E4E4E4")
        axes.set_axisbelow(True)
        for side in ("right", "top"):
            axes.spines[side].set_visible(False)
        axes.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
        stream = io.BytesIO()
        picture.savefig(stream, format="png", dpi=DPI, metadata={"Software": None})
    return stream.getvalue()
