"""Large groups, which live off the far tails of the privacy curve, against tight and exact figures."""

import dp_accounting
import pytest

from tests.dp.accounting.test_composition import LAPLACE, TUTORIAL
from tfprivacy_lab.checks import InputError
from tfprivacy_lab.dp.accounting import composition
from tfprivacy_lab.dp.accounting.group import group_epsilon, group_epsilon_gaussian, group_epsilon_sampled

# group_epsilon_sampled(TUTORIAL, size, 1e-5), which takes twenty seconds each.
TIGHT = {10: 40.92816515, 20: 114.56147719}


@pytest.mark.long
@pytest.mark.parametrize("size", TIGHT)
def test_tight_figures_of_large_groups(size):
    assert group_epsilon_sampled(TUTORIAL, size, 1e-5) == pytest.approx(TIGHT[size], rel=1e-8)


def test_group_by_conversion_is_never_below_the_tight_figure():
    """Large groups live off tails of the privacy curve far below what FFTs leave of it: rounding must not pass."""
    assert TIGHT[10] <= group_epsilon(TUTORIAL, 10, 1e-5) < 5 * TIGHT[10]
    with pytest.raises(InputError, match=r"size=20 .*group_epsilon_sampled"):
        group_epsilon(TUTORIAL, 20, 1e-5)


@pytest.mark.parametrize("size", [2, 10, 20, 40])
@pytest.mark.parametrize("sigma", [2.0, 20.0])
def test_group_by_conversion_is_never_below_the_exact_gaussian(size, sigma):
    generic = group_epsilon(dp_accounting.GaussianDpEvent(sigma), size, 1e-6)
    assert generic >= group_epsilon_gaussian(sigma, 1, size, 1e-6)


def test_group_under_laplace_noise_is_pure_at_most():
    for size in (2, 10, 50):
        assert group_epsilon(LAPLACE, size, 1e-5) <= size * composition.pure_epsilon(LAPLACE) * (1 + 1e-9)
