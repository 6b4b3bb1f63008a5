"""How every plot looks, and how it becomes a file.

Colours are Okabe & Ito's (2008), which colour-blind readers tell apart, and one thing has one colour in every figure.
"""

from __future__ import annotations

import functools
import io
import math

import matplotlib.style

DPI = 110
PUBLIC, DP, NON_PRIVATE, CONTROL = "#009E73", "#0072B2", "#D55E00", "#5A5A5A"
SCHEMES = {"bfv": "#CC79A7", "ckks": "#E69F00"}
FAINT = "#BBBBBB"
_STYLE = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.axisbelow": True,
    "axes.titlelocation": "left",
    "axes.titlesize": "medium",
    "font.family": "DejaVu Sans",
    "font.size": 10.5,
    "grid.color": "#E4E4E4",
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "lines.linewidth": 1.8,
    "text.parse_math": False,
}


def number(value) -> float:
    """``value`` as a float, NaN if it is missing or no number."""
    if isinstance(value, bool):
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def png(draw):
    """A function that draws and returns a Figure, made to return PNG bytes that depend on its inputs alone."""

    @functools.wraps(draw)
    def drawn(*arguments, **named) -> bytes:
        with matplotlib.style.context(["default", _STYLE]):
            stream = io.BytesIO()
            figure = draw(*arguments, **named)
            figure.savefig(stream, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
        return stream.getvalue()

    return drawn
