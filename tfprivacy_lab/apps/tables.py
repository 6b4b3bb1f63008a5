"""Result rows of the applications, DP beside non-DP: means and intervals over seeds, as JSON, Markdown and picture."""

from __future__ import annotations

import json
from pathlib import Path

from matplotlib.figure import Figure

from tfprivacy_lab.apps.evaluation import mean_interval
from tfprivacy_lab.checks import InputError
from tfprivacy_lab.report.style import CONTROL, DP, NON_PRIVATE, png

LEAST_SEEDS = 3
# Of the repository that this package lies in, wherever the caller is.
RECORDED = Path(__file__).resolve().parents[2] / "results" / "apps" / "metrics.json"
QUALITY = ("accuracy", "auc", "brier", "calibration_error")


def recorded(path: Path = RECORDED) -> dict:
    """What ``make apps`` found last: ``rows``, and ``apps`` by name.

    Raises:
        InputError: if the package lies in no repository with results.
    """
    if not path.is_file():
        raise InputError(f"Expected results of the applications in {path}: run `make apps` in a clone of the project.")
    return json.loads(path.read_text(encoding="utf-8"))


def rows(app: str, runs: list[dict]) -> list[dict]:
    """One row an ε from one dict a seed and ε.

    Args:
        app: The application.
        runs: Each ``epsilon`` (None without DP), ``delta``, ``accountant``, ``seed``, ``quality``, ``attack``, and
            ``gaps`` by group, or an empty dict.

    Returns:
        Rows in the order of first appearance; every figure with mean and interval over seeds. ``accuracy_loss`` is that
        of the same seed without DP less this one's. ``attack`` holds the mean AUC and advantage, and the largest lower
        bound on ε of any seed.
    """
    baseline = {run["seed"]: run["quality"]["accuracy"] for run in runs if run["epsilon"] is None}
    result = []
    for epsilon in dict.fromkeys(run["epsilon"] for run in runs):
        mine = [run for run in runs if run["epsilon"] == epsilon]
        row = {name: mine[0][name] for name in ("epsilon", "delta", "accountant")}
        row = {"app": app, **row, "seeds": len(mine)}
        row |= {name: mean_interval([run["quality"][name] for run in mine]) for name in QUALITY}
        row["accuracy_loss"] = mean_interval([baseline[run["seed"]] - run["quality"]["accuracy"] for run in mine])
        row["attack"] = {
            **{name: mean_interval([run["attack"][name] for run in mine]) for name in ("auc", "advantage")},
            "advantage_without_leak": mine[0]["attack"]["advantage_without_leak"],
            "epsilon_lower_bound": max(run["attack"]["epsilon_lower_bound"] for run in mine),
            "contradicts_claim": any(run["attack"]["contradicts_claim"] for run in mine),
        }
        row["gaps"] = {
            group: {name: mean_interval([run["gaps"][group][name] for run in mine]) for name in mine[0]["gaps"][group]}
            for group in mine[0]["gaps"]
        }
        result.append(row)
    return result


def shown(figure: dict, digits: int = 1, *, scale: float = 100) -> str:
    """Mean and half-width, in percent unless ``scale`` says otherwise."""
    half = scale * (figure["high"] - figure["low"]) / 2
    return f"{scale * figure['mean']:.{digits}f} ± {half:.{digits}f}"


def budget(row: dict) -> str:
    """A row's ε, with the δ without which it says nothing; or that it has none."""
    return "no DP" if row["epsilon"] is None else f"{row['epsilon']:g} (δ = {row['delta']:.0e})"


def markdown(found: list[dict]) -> str:
    """A row for each application and ε."""
    head = "| application | ε | accuracy, % | lost to DP, points | Brier score | attack's AUC | seeds |"
    lines = [head, "|---|---|---|---|---|---|---|"]
    for row in found:
        private = row["epsilon"] is not None
        figures = [
            row["app"],
            budget(row),
            shown(row["accuracy"]),
            shown(row["accuracy_loss"]) if private else "",
            shown(row["brier"], 3, scale=1),
            shown(row["attack"]["auc"], 3, scale=1),
            str(row["seeds"]),
        ]
        lines.append(f"| {' | '.join(figures)} |")
    return "\n".join(lines)


def gaps_markdown(found: list[dict]) -> str:
    """Gaps between groups: the group's figure less everybody else's, in points."""
    lines = [
        "| application | group (test rows) | ε | accuracy | said yes | yes when right | calibration |",
        "|---" * 7 + "|",
    ]
    for row in found:
        for group, gap in row["gaps"].items():
            names = ("accuracy", "positive_rate", "true_positive_rate", "calibration")
            cells = " | ".join(shown(gap[name]) for name in names)
            lines.append(f"| {row['app']} | {group} ({gap['rows']['mean']:.0f}) | {budget(row)} | {cells} |")
    return "\n".join(lines)


def statistics_markdown(released: dict[str, list[dict]], *, delta: float, epsilon: float = 1.0) -> str:
    """Statistics of both school types, by both mechanisms, with intervals; ``delta`` is that of Gauss."""
    lines = ["| schools | statistic | Laplace, a curator sums | Gauss, from shares |", "|---|---|---|---|"]
    for laplace, gauss in zip(released["laplace"], released["gaussian"], strict=True):
        digits = 3 if laplace["statistic"] == "graduated" else 1
        cells = [
            f"{r['estimate']:.{digits}f} [{r['low']:.{digits}f}, {r['high']:.{digits}f}]" for r in (laplace, gauss)
        ]
        lines.append(f"| {laplace['schools']} | {laplace['statistic']} | {' | '.join(cells)} |")
    note = (
        f"Education: means of the pupils at hand. A column costs a pupil, all together, ε = {epsilon:g}: Laplace with "
        f"δ = 0, Gauss with δ = {delta:.0e}, also against a district that knows its own noise; both columns cost the "
        "sum. 95 % intervals for the noise."
    )
    return "\n".join([note, "", *lines])


def encrypted_line(found: dict) -> str:
    """What scoring encrypted applications cost, and whether it decides alike."""
    return (
        f"Finance, encrypted ({found['scheme']}): {found['same_decision']:.1%} of {found['applications']} decisions as "
        f"in the clear, logits within {found['largest_error']:.1g}; an application: {found['milliseconds']:.0f} ms, "
        f"{found['bytes_up'] / 1e3:.0f} kB up and {found['bytes_down'] / 1e3:.0f} kB down."
    )


@png
def picture(found: list[dict]):
    """Accuracy and the attack's AUC by ε, a panel an application, with intervals over seeds."""
    apps = list(dict.fromkeys(row["app"] for row in found))
    figure = Figure(figsize=(3.1 * len(apps), 4.6), layout="constrained")
    axes = figure.subplots(2, len(apps), squeeze=False, sharex="col")
    for column, app in enumerate(apps):
        mine = [row for row in found if row["app"] == app]
        for line, label in enumerate(("test accuracy", "AUC of membership inference")):
            for place, row in enumerate(mine):
                value = row["accuracy"] if line == 0 else row["attack"]["auc"]
                reach = [[value["mean"] - value["low"]], [value["high"] - value["mean"]]]
                colour = NON_PRIVATE if row["epsilon"] is None else DP
                axes[line, column].errorbar(place, value["mean"], reach, fmt="o", color=colour, capsize=4)
            axes[line, column].set_xlim(-0.5, len(mine) - 0.5)
            if column == 0:
                axes[line, 0].set_ylabel(label)
        axes[0, column].set_title(app)
        axes[1, column].axhline(0.5, color=CONTROL, linestyle=":")
        names = ["no DP" if row["epsilon"] is None else f"ε = {row['epsilon']:g}" for row in mine]
        axes[1, column].set_xticks(range(len(mine)), names)
    return figure
