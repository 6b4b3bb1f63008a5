"""The figures of a report, each from arrays and numbers to the bytes of a PNG.

Values that are missing or not finite are left out of a picture, never an error.
"""

from __future__ import annotations

import math

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from tfprivacy_lab.report.style import CONTROL, DP, FAINT, NON_PRIVATE, PUBLIC, SCHEMES, number, png

_MODELS = {
    "positive_control": ("positive control (made to leak)", CONTROL, "-."),
    "non_private": ("same head without DP", NON_PRIVATE, "-"),
    "dp": ("head trained with DP", DP, "-"),
}
_MARKERS = {"bfv": "o", "ckks": "s"}
_TILES = 10
_PIXELS = 28
_STRIDE = 33


def tpr_bound(epsilon: float, delta: float, fpr) -> np.ndarray:
    """The highest TPR that (ε, δ)-DP allows any attacker at a given FPR.

    :math:`\\min(e^\\varepsilon FPR + \\delta,\\; 1 - e^{-\\varepsilon}(1 - \\delta - FPR),\\; 1)`
    (Kairouz et al. 2015, Theorem 2.1).

    Args:
        epsilon: ε >= 0.
        delta: δ in [0, 1).
        fpr: False-positive rate(s) in [0, 1].

    Returns:
        float64, of the shape of ``fpr``; NaN if ε or δ is missing.
    """
    epsilon, delta, fpr = min(number(epsilon), 500.0), number(delta), np.asarray(fpr, np.float64)
    many, few = math.exp(epsilon) * fpr + delta, 1 - math.exp(-epsilon) * (1 - delta - fpr)
    return np.minimum(np.minimum(many, few), 1.0)


@png
def samples(public_images, public_labels, private_images, private_labels):
    """Public rendered digits above, private ones below, two rows each; images (k, 28, 28) uint8, labels (k,)."""
    figure = Figure(figsize=(7.2, 3.75), layout="constrained")
    halves = figure.subplots(2, 1)
    sides = (
        ("public: rendered, nobody's handwriting", PUBLIC, public_images, public_labels),
        ("private: handwritten by people", DP, private_images, private_labels),
    )
    for axes, (title, colour, images, labels) in zip(halves, sides, strict=True):
        ink = np.asarray(images[: 2 * _TILES], np.float64) / 255
        columns = math.ceil(len(ink) / 2)
        _tiles(axes, [ink[:columns], ink[columns:]])
        axes.set_title(title, color=colour, fontweight="bold")
        for place, label in enumerate(np.asarray(labels[: len(ink)]).tolist()):
            row, column = divmod(place, columns)
            axes.text(column * _STRIDE, row * _STRIDE + 8, f"{label}", color=colour, fontsize=8)
    return figure


@png
def reconstructions(original, noisy, reconstructed):
    """Three rows of digits (k, 28, 28) in [0, 1]: as drawn, with noise, and as the autoencoder gives them back."""
    rows = {"drawn": original, "with noise": noisy, "given back": reconstructed}
    figure = Figure(figsize=(7.2, 0.3 + 18.6 / max(6, min(_TILES, len(original)))), layout="constrained")
    axes = figure.subplots()
    _tiles(axes, [np.asarray(row[:_TILES], np.float64) for row in rows.values()])
    for place, name in enumerate(rows):
        axes.text(0, place * _STRIDE + _STRIDE / 2, name, ha="right", va="center")
    return figure


@png
def pretraining(probe: dict, chosen: str):
    """Accuracy of a public linear probe by pretraining task, the chosen task filled."""
    measured = {str(name): number(value) for name, value in (probe or {}).items()}
    bars = sorted((value, name) for name, value in measured.items() if math.isfinite(value))
    figure = Figure(figsize=(7.2, 0.9 + 0.42 * max(1, len(bars))), layout="constrained")
    axes = figure.subplots()
    for place, (value, name) in enumerate(bars):
        colour = CONTROL if name == "random" else PUBLIC
        axes.barh(place, value, 0.62, color=colour if name == chosen else f"{colour}40", edgecolor=colour)
        axes.text(value + 0.01, place, f"{100 * value:.1f} %", va="center")
    names = [{"random": "random weights"}.get(name, name) for _, name in bars]
    axes.set_yticks(range(len(bars)), [f"{label} (used)" if label == chosen else label for label in names])
    axes.set(xlim=(0, 1.12), xlabel="accuracy of a linear probe, ten public labels a class")
    axes.set_xticks(np.linspace(0, 1, 6))
    axes.xaxis.set_major_formatter(FuncFormatter(_percent))
    axes.grid(False, axis="y")
    return figure


@png
def training(history: list[dict], epsilon, nonprivate_accuracy):
    """Validation accuracy and ε spent by epoch, one panel each over the same epochs."""
    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    epochs, accuracy, spent = (
        [number(record.get(key)) for record in history] for key in ("epoch", "validation_accuracy", "epsilon")
    )
    above.plot(epochs, accuracy, "-o", color=DP, markersize=4, label="with DP, on private validation")
    if math.isfinite(number(nonprivate_accuracy)):
        above.axhline(
            number(nonprivate_accuracy), color=NON_PRIVATE, linestyle="--", label="without DP, final, on test"
        )
    above.set_title("accuracy")
    above.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g} %"))
    above.legend(loc="lower right")
    below.plot(epochs, spent, "-o", color=DP, markersize=4, label="spent so far")
    if math.isfinite(number(epsilon)):
        below.axhline(number(epsilon), color="black", linestyle=":", label=f"whole run: {number(epsilon):.4f}")
    below.set_title("privacy spent, ε")
    below.set_ylim(bottom=0)
    below.set_xlabel("epoch (expected pass over the private examples)")
    below.xaxis.set_major_locator(MaxNLocator(integer=True))
    below.legend(loc="lower right")
    return figure


@png
def roc(results: dict, epsilon, delta, bound=None):
    """ROC of the best attack on each model on log axes, beside guessing and what the guarantee allows.

    Args:
        results: By model ("dp", "non_private", "positive_control"), each as
            :func:`tfprivacy_lab.audit.membership_inference` returns it, curves included.
        epsilon: ε accounted for the DP model, or None.
        delta: Its δ.
        bound: From FPRs to the largest TPRs that the whole run allows; None: what the point (ε, δ) does, which is more.
    """
    figure = Figure(figsize=(6.4, 5.4), layout="constrained")
    axes = figure.subplots()
    counts = [number((result or {}).get("nonmembers")) for result in results.values()]
    floor = 0.5 / max((count for count in counts if count > 0), default=1000.0)
    rates = np.geomspace(floor, 1, 400)
    allowed = tpr_bound(epsilon, delta, rates) if bound is None else bound(rates)
    if np.isfinite(allowed).all():
        label = f"most that {'this run' if bound else 'the point'} allows (ε = {number(epsilon):.4f})"
        axes.plot(rates, allowed, color=DP, linestyle="--", linewidth=1.4, label=label)
        axes.fill_between(rates, allowed, 1, color=DP, alpha=0.08, linewidth=0)
    axes.plot(rates, rates, color="black", linestyle=":", linewidth=1.2, label="guessing")
    for name, (label, colour, line) in _MODELS.items():
        attack = _best_attack(results.get(name))
        fpr, tpr = (np.array([number(rate) for rate in attack.get(key, [])]) for key in ("fpr", "tpr"))
        if fpr.size:
            # A rate of zero has no place on a log axis: it is drawn at the edge.
            axes.plot(np.maximum(fpr, floor), np.maximum(tpr, floor), color=colour, linestyle=line, label=label)
    axes.set(xscale="log", yscale="log", xlim=(floor, 1.05), ylim=(floor, 1.3))
    axes.set_xlabel("false positives: non-members called members")
    axes.set_ylabel("true positives: members called members")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(_percent))
        axis.set_minor_formatter(NullFormatter())
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


@png
def logits(plain, decrypted: dict, bounds: dict):
    """Decrypted logits against plaintext ones above, and how far off they are below, by scheme.

    Args:
        plain: (n, c) from the float head.
        decrypted: By scheme, (n, c).
        bounds: By scheme, the proved error bound, or None.
    """
    figure = Figure(figsize=(7.2, 6.2), layout="constrained")
    panels = figure.subplots(2, len(decrypted), squeeze=False, height_ratios=(1.35, 1))
    plain = np.asarray(plain, np.float64)
    errors = {scheme: _finite(np.abs(np.asarray(values, np.float64) - plain)) for scheme, values in decrypted.items()}
    bins = _error_bins(errors.values(), bounds.values())
    rows = slice(None, None, max(1, len(plain) // 2000))
    for (above, below), (scheme, values) in zip(panels.T, decrypted.items(), strict=True):
        colour = SCHEMES.get(scheme, CONTROL)
        above.plot(plain[rows].ravel(), np.asarray(values)[rows].ravel(), ".", color=colour, markersize=3)
        low, high = (_finite(plain).min(), _finite(plain).max()) if _finite(plain).size else (0, 1)
        above.plot([low, high], [low, high], color="black", linewidth=0.8, linestyle=":")
        above.set_title(f"{scheme.upper()}: decrypted against plain")
        above.set_xlabel("logit in plain")
        below.hist(np.clip(errors[scheme], bins[0], bins[-1]), bins=bins, color=colour)
        bound = number(bounds.get(scheme))
        if bound > 0:
            below.axvline(bound, color="black", linestyle="--", linewidth=1.2)
            below.text(bound, 0.97, "proved bound ", transform=below.get_xaxis_transform(), ha="right", va="top",
                       rotation=90, fontsize=9)  # fmt: skip
        below.set(xscale="log", xlim=(bins[0], bins[-1]), xlabel="|decrypted − plain|")
        below.xaxis.set_major_locator(LogLocator(numticks=6))
        below.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}".replace("e-0", "e-")))
        below.xaxis.set_minor_locator(NullLocator())
    panels[0, 0].set_ylabel("logit decrypted")
    panels[1, 0].set_ylabel("number of logits")
    return figure


@png
def encrypted_cost(schemes: dict):
    """Bytes and milliseconds by stage, all samples (filled) and one sample (hollow), log axes.

    Args:
        schemes: By scheme, ``bytes`` and ``seconds`` by stage, and under ``one`` the same for one sample.
    """
    figure = Figure(figsize=(7.2, 5.2), layout="constrained")
    panels = figure.subplots(2, 1, height_ratios=(3, 4))
    kinds = (
        ("bytes", ("keys", "query", "reply"), 1, "bytes"),
        ("seconds", ("keygen", "encrypt", "evaluate", "decrypt"), 1000, "milliseconds"),
    )
    for axes, (kind, stages, factor, unit) in zip(panels, kinds, strict=True):
        some = False
        for scheme, found in schemes.items():
            # Schemes side by side: many of their figures are equal and would cover each other.
            heights = np.arange(len(stages)) + (-0.15 if scheme == "bfv" else 0.15)
            looks = {"color": SCHEMES.get(scheme, CONTROL), "marker": _MARKERS.get(scheme, "^"), "linestyle": "none"}
            alone = {"markerfacecolor": "white", "markersize": 11}
            sizes = ((found.get("one") or {}, "one sample", alone), (found, "all samples", {"markersize": 6}))
            for sized, label, size in sizes:
                values = [factor * number((sized.get(kind) or {}).get(stage)) for stage in stages]
                values = [value if value > 0 else math.nan for value in values]
                some = some or any(map(math.isfinite, values))
                axes.plot(values, heights, **looks, **size, label=f"{scheme.upper()}, {label}")
        if not some:
            axes.set_xlim(1, 1000)
        axes.set_yticks(range(len(stages)), stages)
        axes.set(xscale="log", ylim=(len(stages) - 0.5, -0.5), xlabel=unit)
        axes.xaxis.set_major_formatter(FuncFormatter(_quantity))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.hlines(np.arange(1, len(stages)) - 0.5, 0, 1, transform=axes.get_yaxis_transform(), color=FAINT, lw=0.6)
        axes.grid(False, axis="y")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=9)
    return figure


def _tiles(axes, rows):
    """Digits side by side in rows, ink dark on white, each with room for its label at the left."""
    gap = _STRIDE - _PIXELS
    canvas = np.zeros((len(rows) * _STRIDE, max(map(len, rows)) * _STRIDE))
    for place, row in enumerate(rows):
        for column, image in enumerate(row):
            top, left = place * _STRIDE + gap // 2, column * _STRIDE + gap
            canvas[top : top + _PIXELS, left : left + _PIXELS] = np.nan_to_num(image)
    axes.imshow(canvas, cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
    axes.set_axis_off()


def _best_attack(result):
    """The ROC of the attack of largest AUC, {} if there is none."""
    attacks = (result or {}).get("attacks") or {}
    best = ((result or {}).get("best") or {}).get("auc_attack")
    return (attacks.get(best) or next(iter(attacks.values()), {})).get("roc") or {}


def _error_bins(errors, bounds):
    """Bins on a log axis from a thousandth of the smallest scheme's largest error to beyond the bounds."""
    largest = np.array([found.max() for found in errors if found.size and found.max() > 0])
    ends = np.concatenate([largest / 1e3, largest, [bound for bound in map(number, bounds) if bound > 0]])
    low, high = (ends.min(), ends.max()) if ends.size else (1e-9, 1e-3)
    return np.logspace(math.floor(math.log10(low)), math.ceil(math.log10(high) + 0.1), 81)


def _finite(values):
    values = np.asarray(values, np.float64)
    return values[np.isfinite(values)]


def _percent(value, _):
    return f"{100 * value:g} %"


def _quantity(value, _):
    """1 to 999 as they are, then k and M."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g} {letter}"
    return f"{value:g}"
