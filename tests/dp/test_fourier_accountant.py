"""ε of many uses, found without writing their distribution out: the figure that writing it out gives."""

import math

import pytest
from dp_accounting.pld import privacy_loss_distribution as pld

from tfprivacy_lab.dp import accounting, fourier_accountant
from tfprivacy_lab.dp.fourier_accountant import epsilon_of_uses
from tfprivacy_lab.dp.hockey_stick import epsilon_for_delta
from tfprivacy_lab.dp.repetition import self_compose, spectrum

step = accounting.step_privacy_loss


def block_sizes(loss, count):
    """How many losses go into a block, of either direction."""
    return [fourier_accountant._block_size(spectrum(pmf, count)) for pmf in (loss._pmf_remove, loss._pmf_add)]


@pytest.mark.parametrize(
    ("sigma", "q", "counts"),
    [
        (0.6, 0.001, (1, 2000, 20_000)),
        (1.1, 0.03, (1, 2, 30, 1000, 20_000)),
        (3.0, 0.2, (2, 30, 1000)),
        (20.0, 0.5, (30, 1000, 20_000)),
        (40.0, 1.0, (30, 1000)),
    ],
)
def test_it_is_the_composed_distribution_s(sigma, q, counts):
    """δ stays where the transform's rounding is out of sight."""
    assert min(block_sizes(step(sigma, q), counts[-1])) > 1
    for count in counts:
        composed = self_compose(step(sigma, q), count)
        for delta in (1e-2, 1e-4, 1e-6):
            expected = epsilon_for_delta(composed, delta)
            found = epsilon_of_uses(step(sigma, q), count, delta)
            assert found == pytest.approx(expected, rel=3e-6, abs=3e-8), (count, delta)


def test_rounding_never_takes_from_epsilon():
    """Against the closed form, down to a δ that doubles no longer hold; there, no figure is given."""
    for count in (1000, 30_000):
        for delta in (1e-8, 1e-9, 1e-10, 1e-11):
            exact = accounting.gaussian_epsilon(50.0 / math.sqrt(count), delta)
            assert exact * (1 - 2e-6) < epsilon_of_uses(step(50.0, 1.0), count, delta)
    assert epsilon_of_uses(step(50.0, 1.0), 30_000, 1e-12) == math.inf


def test_blocks_of_any_size_say_the_same(monkeypatch):
    """The shortest transform that holds the frequencies, longer ones, and one of every loss."""
    loss, sizes, found = step(1.1, 0.03), [], []
    block_size = fourier_accountant._block_size
    monkeypatch.setattr(fourier_accountant, "_block_size", lambda one: sizes.append(block_size(one)) or sizes[-1])
    for fewest in (2, 500, 30_000, 10**7):
        monkeypatch.setattr(fourier_accountant, "_FEWEST_BLOCKS", fewest)
        found.append([epsilon_of_uses(loss, 900, delta) for delta in (1e-8, 1e-5, 0.1)])
    assert len(set(sizes)) >= 4
    assert min(sizes) == 1
    for others in found[1:]:
        assert others == pytest.approx(found[0], rel=1e-6)


@pytest.mark.parametrize(("loss", "count"), [
    pytest.param(lambda: pld.from_laplace_mechanism(9.0, sampling_prob=0.1), 3000, id="Laplace"),
    pytest.param(lambda: pld.from_laplace_mechanism(4.0, value_discretization_interval=1e-3), 900, id="atoms"),
    pytest.param(lambda: pld.from_randomized_response(0.9, 3), 3000, id="few losses"),
])  # fmt: skip
def test_losses_of_other_shapes(loss, count):
    one = loss()
    assert max(block_sizes(one, count)) > 1
    for delta in (1e-3, 1e-5):
        expected = epsilon_for_delta(self_compose(one, count), delta)
        assert epsilon_of_uses(one, count, delta) == pytest.approx(expected, rel=1e-6)


def test_gaussians_in_closed_form():
    """1,000 uses of noise σ are one of σ/√1000; discretised losses are rounded upwards, so never less."""
    for delta in (1e-3, 1e-5):
        exact = accounting.gaussian_epsilon(30.0 / math.sqrt(1000), delta)
        assert exact * (1 - 1e-6) < epsilon_of_uses(step(30.0, 1.0), 1000, delta) < exact * 1.001


def test_the_worse_direction_counts():
    loss = step(0.8, 0.1)
    one_sided = [pld.PrivacyLossDistribution(pmf, None) for pmf in (loss._pmf_remove, loss._pmf_add)]
    for count in (20, 400):
        remove, add = (epsilon_of_uses(one, count, 1e-5) for one in one_sided)
        assert remove != pytest.approx(add, rel=1e-3)
        assert epsilon_of_uses(loss, count, 1e-5) == max(remove, add)
        swapped = pld.PrivacyLossDistribution(loss._pmf_add, loss._pmf_remove)
        assert epsilon_of_uses(swapped, count, 1e-5) == max(remove, add)


def test_nothing_to_lose_and_everything():
    assert epsilon_of_uses(step(90.0, 0.001), 100, 0.1) == 0.0
    leaking = pld.from_privacy_parameters(pld.common.DifferentialPrivacyParameters(0.5, 1e-4))
    assert epsilon_of_uses(leaking, 2000, 1e-3) == math.inf
    assert math.isfinite(epsilon_of_uses(leaking, 5, 1e-3))
    certain = pld.from_privacy_parameters(pld.common.DifferentialPrivacyParameters(0.5, 0.5))
    assert epsilon_of_uses(certain, 200, 1e-3) == math.inf


def test_losses_beyond_a_float_s_exponential_take_the_long_way(monkeypatch):
    called = []
    monkeypatch.setattr(fourier_accountant, "self_compose", lambda *a: called.append(a) or self_compose(*a))
    found = epsilon_of_uses(step(0.5, 1.0), 400, 1e-5)
    assert called
    assert found == pytest.approx(accounting.gaussian_epsilon(0.5 / 20, 1e-5), rel=2e-3)
