"""Many uses of one mechanism: the same distribution as dp_accounting's own, whatever it is made of."""

import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution as pld

from tfprivacy_lab.dp import accounting
from tfprivacy_lab.dp.repetition import self_compose

LOSSES = {
    "Poisson": lambda: accounting.step_privacy_loss(1.1, 0.03),
    "little noise": lambda: accounting.step_privacy_loss(0.6, 0.2),
    "much noise": lambda: accounting.step_privacy_loss(30.0, 0.5),
    "not sampled": lambda: accounting.step_privacy_loss(2.0, 1.0),
    "Laplace": lambda: pld.from_laplace_mechanism(3.0, value_discretization_interval=1e-3),
    "sampled Laplace": lambda: pld.from_laplace_mechanism(2.0, sampling_prob=0.1, value_discretization_interval=1e-3),
    "sparse": lambda: pld.from_randomized_response(0.4, 3),
    "infinite": lambda: pld.from_privacy_parameters(pld.common.DifferentialPrivacyParameters(0.5, 1e-4)),
}


@pytest.mark.parametrize("count", [1, 2, 7, 300])
@pytest.mark.parametrize("name", LOSSES)
def test_it_is_the_library_s_own_self_composition(name, count):
    loss = LOSSES[name]()
    ours, theirs = self_compose(loss, count), loss.self_compose(count)
    for epsilon in (0.0, 0.1, 1.0, 3.0, 10.0):
        # The two transforms round differently: relative to 1, at the level of their own noise.
        assert ours.get_delta_for_epsilon(epsilon) == pytest.approx(theirs.get_delta_for_epsilon(epsilon), abs=3e-12)
    deltas = np.array([1e-3, 1e-5, 1e-8])
    found = [(ours.get_epsilon_for_delta(d), theirs.get_epsilon_for_delta(d)) for d in deltas]
    for one, other in found:
        assert one == pytest.approx(other, rel=1e-5, abs=1e-7)


def test_both_directions_are_composed():
    """Under sampling they differ, and the larger one counts at either end."""
    loss = accounting.step_privacy_loss(0.8, 0.1)
    composed = self_compose(loss, 5)
    for ours, one in ((composed._pmf_remove, loss._pmf_remove), (composed._pmf_add, loss._pmf_add)):
        assert ours.get_delta_for_epsilon(1.0) == pytest.approx(
            one.self_compose(5).get_delta_for_epsilon(1.0), abs=1e-12
        )
    assert composed._pmf_add.get_delta_for_epsilon(1.0) != composed._pmf_remove.get_delta_for_epsilon(1.0)
