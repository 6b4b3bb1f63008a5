"""What the notebooks say of privacy, held against what is true: their functions are run, their outputs are read."""

import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
from scipy import stats

from tfprivacy_lab.dp import DpSgdRun, GaussianMechanism, LaplaceMechanism, check_neighbours, largest_tpr
from tfprivacy_lab.dp.accounting import budget, gaussian

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"


def code_cell(name, text):
    """The one code cell of a notebook that holds ``text``."""
    cells = nbformat.read(next(NOTEBOOKS.glob(f"{name}_*.ipynb")), as_version=4).cells
    (found,) = [cell for cell in cells if cell.cell_type == "code" and text in cell.source]
    return found


def printed(cell):
    """All that a cell printed when it was committed."""
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


def verdict(mean, first, second, runs=40_000):
    """Of the claim of 0.5 for ``mean(values, seed)`` on two datasets, each ``runs`` times."""
    outputs = [mean(np.tile(values, (runs, 1)), seed) for seed, values in ((1, first), (2, second))]
    return check_neighbours(*outputs, epsilon=0.5)


def test_the_mean_of_02_keeps_its_epsilon_and_the_check_would_see_if_not():
    names = {"np": np, "LaplaceMechanism": LaplaceMechanism}
    source = code_cell("02", "mean age").source
    exec(source.split("\n\n\n")[0], names)
    mean = names["private_mean"]
    # Neighbours of a public n: one value replaced, by the worst there is; values beyond the bounds are clipped.
    for first, second in (([0, 50], [100, 50]), ([0], [100]), ([-900, 0, 0], [900, 0, 0])):
        found = verdict(lambda values, seed: mean(values, 0, 100, 0.5, seed), first, second)
        assert found.verdict == "consistent"
        assert found.epsilon_estimate > 0.3  # no noise is wasted
    # What it must not be used for: another n.
    assert verdict(lambda values, seed: mean(values, 0, 100, 0.5, seed), [0], [0, 100]).epsilon_interval[0] > 1.5
    # And the check sees noise that is too small.
    assert verdict(lambda values, seed: mean(values, 0, 100, 1.2, seed), [0, 50], [100, 50]).verdict == "violated"


def test_delta_is_told_from_the_probability_of_a_larger_loss():
    said = re.search(r"Pr\[L > 1\] = (\S+), delta = .* = (\S+): (\d+) times", printed(code_cell("02", "def beyond")))
    above, delta, times = map(float, said.groups())
    sigma = GaussianMechanism.calibrated(1.0, 1.0, 1e-5).stddev
    exact = stats.norm.sf((1 - 0.5 / sigma**2) * sigma)  # L is N(1 / (2σ²), 1 / σ²)
    assert above == pytest.approx(exact, rel=0.05)
    assert delta == pytest.approx(1e-5, rel=0.01)
    assert times == pytest.approx(exact / 1e-5, abs=1)


@pytest.mark.parametrize("name", ["01", "04"])
def test_figures_stand_beside_the_adjacency_for_which_they_hold(name):
    lines = [line.split() for line in printed(code_cell(name, "epsilon_no_amplification_exact")).splitlines()]
    adjacency = {line[0]: line[-1] for line in lines if line[0].startswith("epsilon")}
    assert adjacency == {
        "epsilon": "add_or_remove_one",
        "epsilon_rdp": "add_or_remove_one",
        "epsilon_no_amplification": "zero_out",
        "epsilon_no_amplification_exact": "zero_out",
    }


def test_shuffling_under_add_or_remove_costs_what_shifted_batches_cost():
    """Alternating gradients at the places where batches begin: one record more in front, and every sum moves by 2C."""
    examples, batch = 60_000, 256
    gradients = np.zeros(examples + 1)
    gradients[::batch] = (-1.0) ** np.arange(len(gradients[::batch]))
    starts = np.arange(0, examples, batch)
    without, joined = (np.add.reduceat(order, starts) for order in (gradients[1:], gradients[:-1]))
    moved = np.abs(joined - without)
    assert np.all(moved[:-1] == 2)
    said = float(re.search(r"add or remove one\s+([\d.]+)", printed(code_cell("04", "halved ="))).group(1))
    steps = gaussian.steps_for(examples, batch, 60)
    passes = steps / len(starts)
    assert said >= gaussian.gaussian_epsilon(1.1 / np.sqrt(passes * np.sum(moved**2)), 1e-5)
    assert said == pytest.approx(gaussian.gaussian_epsilon(1.1 / (2 * np.sqrt(steps)), 1e-5), abs=1e-3)


def test_what_exceeds_epsilon_is_likelier_than_delta_in_04():
    rows = [line.split() for line in printed(code_cell("04", "probability_beyond")).splitlines() if line.endswith("%")]
    assert [float(row[0]) for row in rows] == [0.5, 1, 3, 8]
    assert all(float(row[2]) > 5 * float(row[1]) for row in rows)
    steps = gaussian.steps_for(60_000, 256, 60)
    noise = budget.calibrate_noise_multiplier(60_000, 256, steps, 3.0, 1e-5)
    power = float(largest_tpr(DpSgdRun(60_000, 256, noise, steps), 0.01))
    assert rows[2][3] == f"{power:.1%}"


def test_clipping_the_batch_lets_one_example_move_more():
    said = printed(code_cell("03", "def gradients"))
    (batch, bound, noise), (each, less, quiet) = (
        map(float, re.search(r"moves by ([\d.]+) of 2C(?:/B)? = ([\d.]+); noise ([\d.]+)", line).groups())
        for line in said.splitlines()
    )
    assert 0.5 * bound < batch <= bound
    assert 0.5 * less < each <= less
    assert batch > 10 * each
    assert (bound, noise) == (2, 1.1)
    assert (less, quiet) == pytest.approx((2 / 64, 1.1 / 64), abs=1e-4)


def test_a_wild_example_moves_the_clipped_sum_by_the_norm():
    said = re.search(r"the sum moves by ([\d.]+), and C is 1", printed(code_cell("03", "wild as it likes"))).group(1)
    assert float(said) == pytest.approx(1, abs=1e-5)
    shuffled = printed(code_cell("03", '("poisson", "shuffled")')).splitlines()
    assert [line.split()[-1] for line in shuffled] == ["add_or_remove_one", "zero_out"]
