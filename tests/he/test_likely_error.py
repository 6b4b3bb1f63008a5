"""Likely bounds of one image: above what happens, far below the worst case, and decided by when asked."""

import numpy as np
import pytest

from tests.he.networks import aligned_inputs, dense_network
from tfprivacy_lab import he
from tfprivacy_lab.checks import InputError
from tfprivacy_lab.he.coefficients import ckks_slots
from tfprivacy_lab.he.deep_image import DeepPlan
from tfprivacy_lab.he.deep_server import DeepImageServer
from tfprivacy_lab.he.likely_error import Sources
from tfprivacy_lab.he.network_parameters import SINGLE
from tfprivacy_lab.he.single_client import SingleImageClient
from tfprivacy_lab.he.single_image import SinglePlan
from tfprivacy_lab.he.single_server import SingleImageServer


@pytest.mark.parametrize("widths", [(4, 3, 2), (200, 30, 7), (20, 8, 5, 3)])
@pytest.mark.parametrize("input_range", [(0.0, 1.0), (-2.0, 1.0)])
def test_what_happens_is_within_the_likely_bound(widths, input_range):
    network = dense_network(sum(widths), *widths)
    make, serve = (SinglePlan, SingleImageServer) if len(widths) == 3 else (DeepPlan, DeepImageServer)
    plan = make.make(network, input_range)
    likely = plan.likely_error_bound()
    assert likely < plan.public.error_bound / 20
    client = SingleImageClient(plan.public)
    server = serve(plan, client.evaluation_keys())
    images = np.concatenate(
        [np.random.default_rng(0).uniform(*input_range, (2, widths[0])), aligned_inputs(network, *input_range)[:3]]
    )
    for image, expected in zip(images, network.evaluate(images), strict=True):
        assert np.abs(client.decrypt(server.evaluate(client.encrypt(image))) - expected).max() <= likely


def test_the_lemma_on_sums_over_slots():
    """Over uniform coefficients the variance of a sum over slots is N/24 times the squares of its weights."""
    rng, degree = np.random.default_rng(1), SINGLE.poly_modulus_degree
    weights = np.where(rng.random(degree // 2) < 0.01, rng.normal(size=degree // 2), 0.0)
    sums = [(weights * ckks_slots(rng.uniform(-0.5, 0.5, degree), SINGLE)).sum().real for _ in range(400)]
    ratio = np.var(sums) / (degree / 24 * np.square(weights).sum())
    assert 0.75 < ratio < 1.3  # five standard deviations of a variance of 400 draws: 0.35


def test_digits_of_a_key_switching_are_within_their_bound_by_slot():
    sources, degree = Sources(SINGLE), SINGLE.poly_modulus_degree
    rng = np.random.default_rng(2)
    drawn = [np.abs(ckks_slots(rng.random(degree), SINGLE)) for _ in range(20)]
    assert (np.max(drawn, axis=0) <= sources._digits).all()
    assert np.max(drawn, axis=0).max() > sources._digits.max() / 2  # the mean part is there


def test_a_wanted_error_is_decided_by_the_likely_bound_when_asked():
    network = dense_network(0, 200, 30, 7)
    plan = SinglePlan.make(network)
    wanted = 2 * plan.likely_error_bound()
    assert wanted < plan.public.error_bound
    with pytest.raises(InputError, match=r"decide by the likely bound"):
        he.choose_network(network, max_error=wanted)
    choice = he.choose_network(network, max_error=wanted, likely=True)
    assert choice.summary["packing"] == "single"
    assert any("2^-56 an image" in line for line in choice.explain())
