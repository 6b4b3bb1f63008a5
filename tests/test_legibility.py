"""The check of figures objects to what was found in notebooks once, and to nothing in a figure that is right."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tests.legibility import complaints


@pytest.fixture
def axes():
    figure = Figure(figsize=(5.5, 3))
    FigureCanvasAgg(figure)
    return figure.subplots()


def test_minor_labels_of_a_logarithmic_axis_between_ones_own(axes):
    grid = (0.5, 1, 2, 4, 8)
    axes.plot(grid, grid)
    axes.set_xscale("log")
    axes.set_xticks(grid, grid)
    found = complaints(axes.figure)
    assert found
    assert all("x labels" in one and "overlap" in one for one in found)
    axes.minorticks_off()
    assert complaints(axes.figure) == []


def test_labels_that_are_too_long_for_their_places(axes):
    axes.plot(range(6))
    axes.set_xticks(range(6), ["a rather long label"] * 6)
    assert "overlap" in complaints(axes.figure)[0]


DRAWN = {
    "line": lambda axes: axes.plot([0, 1], [0, 1], label="line"),
    "error bar": lambda axes: axes.errorbar([0, 1], [0, 0.5], [0.1, 0.5], fmt="o", label="bar"),
    "points": lambda axes: axes.scatter([0, 0.95], [0, 0.95], label="points"),
    "bar": lambda axes: axes.bar([0, 1], [0.1, 1], label="bar"),
}


@pytest.mark.parametrize("draw", DRAWN.values(), ids=DRAWN)
def test_a_legend_over_what_it_explains(axes, draw):
    draw(axes)
    axes.set_ylim(0, 1)
    axes.legend(loc="upper right")
    assert any("legend covers" in one for one in complaints(axes.figure))
    axes.get_legend().remove()
    axes.figure.legend(loc="outside upper center")
    assert complaints(axes.figure) == []


def test_a_legend_beside_what_it_explains(axes):
    axes.errorbar(np.arange(3), [0.1, 0.2, 0.1], 0.05, fmt="o-", label="low")
    axes.bar([0, 1, 2], [0.1, 0.2, 0.1])
    axes.scatter([0, 1, 2], [0.1, 0.2, 0.1])
    axes.axvspan(1, 2, color="whitesmoke")
    axes.set_ylim(0, 2)
    axes.legend(loc="upper right")
    assert complaints(axes.figure) == []
