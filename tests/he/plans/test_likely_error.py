"""Likely bounds of one image: above what happens, far below the worst case, and decided by when asked."""

import numpy as np
import pytest

from tests.he.networks import aligned_inputs, answered, dense_network
from tfprivacy_lab import he
from tfprivacy_lab.checks import InputError
from tfprivacy_lab.he.client.network import NetworkClient
from tfprivacy_lab.he.client.slots import SingleImageClient, SlotHeadClient
from tfprivacy_lab.he.packing.coefficient import ckks_slots
from tfprivacy_lab.he.plans.deep_image import DeepPlan
from tfprivacy_lab.he.plans.likely_error import Sources
from tfprivacy_lab.he.plans.network import BatchedPlan
from tfprivacy_lab.he.plans.single_image import SinglePlan
from tfprivacy_lab.he.plans.slot_head import SlotHead
from tfprivacy_lab.he.ring.network_parameters import DEEP, SINGLE, SLOTS
from tfprivacy_lab.he.ring.seal_context import seal_context
from tfprivacy_lab.he.server.network import NetworkServer
from tfprivacy_lab.he.server.slots import DeepImageServer, SingleImageServer, SlotHeadServer

PLANS = {1: (SinglePlan, SingleImageServer), 2: (DeepPlan, DeepImageServer)}


def largest_error(client, server, samples, expected):
    """The largest error of any logit that is seen."""
    return np.abs(np.stack([answered(client, server, sample) for sample in samples]) - expected).max()


@pytest.mark.slow_but("input_range0-*")
@pytest.mark.parametrize(
    ("widths", "least"), [((4, 3, 2), 500), ((200, 30, 7), 500), ((784, 32, 10), 500), ((20, 8, 5, 3), 5000)]
)
@pytest.mark.parametrize("input_range", [(0.0, 1.0), (-2.0, 1.0)])
def test_what_happens_is_within_the_likely_bound_and_not_far_below(widths, least, input_range):
    network = dense_network(sum(widths), *widths)
    make, serve = PLANS[network.squares]
    plan = make.make(network, input_range)
    likely = plan.likely_error_bound()
    assert likely < plan.public.error_bound / least
    client = SingleImageClient(plan.public)
    server = serve(plan, client.evaluation_keys())
    drawn = np.random.default_rng(0).uniform(*input_range, (2, widths[0]))
    images = np.concatenate([drawn, aligned_inputs(network, *input_range)[:3]])
    assert largest_error(client, server, drawn, network.evaluate(drawn)) < likely
    assert likely / 1e4 < largest_error(client, server, images, network.evaluate(images)) <= likely


def test_two_squares_that_are_off_by_millionths_are_accepted_where_an_error_of_one_is_wanted():
    network = dense_network(1, 64, 32, 16, 5)
    with pytest.raises(InputError, match=r"decide by the likely bound"):
        he.choose_network(network, max_error=1)
    choice = he.choose_network(network, max_error=1, likely=True)
    likely, worst = choice.summary["likely_error_bound"], choice.summary["error_bound"]
    assert choice.summary["packing"] == "single"
    assert likely < 0.01 < 100 < worst
    client = SingleImageClient(choice.plan.public)
    server = DeepImageServer(choice.plan, client.evaluation_keys())
    images = np.random.default_rng(0).uniform(size=(3, 64))
    seen = largest_error(client, server, images, network.evaluate(images))
    assert likely / 1e4 < seen <= likely


@pytest.mark.parametrize(("widths", "scheme"), [((20, 8, 3), "ckks"), ((20, 8, 3), "bfv"), ((20, 8, 5, 3), "ckks")])
def test_the_only_bound_of_batches_is_not_far_above_what_happens(widths, scheme):
    network = dense_network(sum(widths), *widths)
    plan = BatchedPlan.make(network, scheme)
    inputs = np.concatenate([np.random.default_rng(0).uniform(size=(20, 20)), aligned_inputs(network, 0.0, 1.0)])
    client = NetworkClient(plan.public)
    with NetworkServer(plan, processes=1) as server:
        seen = np.abs(answered(client, server, inputs) - network.evaluate(inputs)).max()
    assert plan.public.error_bound / 1e3 < seen <= plan.public.error_bound


@pytest.mark.parametrize("packing", ["naive", "diagonal"])
@pytest.mark.parametrize(("inputs", "size"), [(5, 1e-3), (100, 1.0), (784, 100.0)])
def test_heads_in_slots_have_a_likely_bound(packing, inputs, size):
    rng = np.random.default_rng(inputs)
    kernel, bias = rng.normal(size=(inputs, 3)) * size / np.sqrt(inputs), rng.normal(size=3) * size
    plan = SlotHead.make(kernel, bias, packing)
    likely = plan.likely_error_bound()
    assert likely < plan.public.error_bound / 3
    client = SlotHeadClient(plan.public)
    server = SlotHeadServer(plan, client.evaluation_keys())
    samples = np.concatenate([rng.uniform(-1, 1, (3, inputs)), np.sign(kernel.T[:2])])
    assert likely / 1e4 < largest_error(client, server, samples, samples @ kernel + bias) <= likely


@pytest.mark.parametrize(("ring", "bits"), [(SINGLE, 24), (SINGLE, 30), (DEEP, 32), (SLOTS, 40)])
def test_roundings_of_plaintexts_are_those_of_the_library(ring, bits):
    library, slots = seal_context(ring), np.random.default_rng(bits).normal(size=ring.poly_modulus_degree // 2) / 16
    for row in (slots, slots * (np.arange(len(slots)) < 32)):
        off, unsure = Sources(ring).rounding(row, 2.0**bits)
        found = (np.array(library.decodeFrac(library.encodeFrac(row, scale=2.0**bits))) - row) * 2.0**bits
        assert np.abs(found - off).max() <= unsure + 2.0 ** (bits - 44)  # what decoding is off by
        assert unsure < np.abs(off).max() * (1 if bits == 40 else 0.1)


def test_a_plaintext_that_rounds_to_zero_is_the_constant_one():
    off, unsure = Sources(SINGLE).rounding(np.full(SINGLE.poly_modulus_degree // 2, 1e-9), 2.0**24)
    np.testing.assert_allclose(off, 1 - 1e-9 * 2.0**24, rtol=1e-9)
    assert unsure < 1e-9


def test_the_lemma_on_sums_over_slots():
    """Over uniform coefficients the variance of a sum over slots is N/24 times the squares of its weights."""
    rng, degree = np.random.default_rng(1), SINGLE.poly_modulus_degree
    weights = np.where(rng.random(degree // 2) < 0.01, rng.normal(size=degree // 2), 0.0)
    sums = [(weights * ckks_slots(rng.uniform(-0.5, 0.5, degree), SINGLE)).sum().real for _ in range(400)]
    ratio = np.var(sums) / (degree / 24 * np.square(weights).sum())
    assert 0.75 < ratio < 1.3  # by 3.5 standard deviations of a variance of 400 draws


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
