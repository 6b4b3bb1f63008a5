"""Properties of any head and any network: results against an oracle, and limits that no input can pass."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from tests.he.networks import aligned_inputs, answered, dense_network
from tests.he.server.test_head import _check_packing
from tfprivacy_lab import he
from tfprivacy_lab.checks import InputError
from tfprivacy_lab.he.client.network import NetworkClient
from tfprivacy_lab.he.plans.layers import Affine, Network
from tfprivacy_lab.he.plans.network import BatchedPlan
from tfprivacy_lab.he.quantization import limits
from tfprivacy_lab.he.quantization.heads import MIN_WEIGHT, QuantizedHead
from tfprivacy_lab.he.ring import network_parameters
from tfprivacy_lab.he.ring.network_parameters import NetworkParameters
from tfprivacy_lab.he.ring.parameters import MAX_COEFF_MODULUS_BITS, PARAMETERS, Parameters
from tfprivacy_lab.he.server.network import NetworkServer

CLIENTS = {}


def client_of(name):
    """One client a set, whatever example asks."""
    if name not in CLIENTS:
        CLIENTS[name] = he.Client.generate(name)
    return CLIENTS[name]


def refusal(function, *arguments):
    """What it is refused with, or None."""
    try:
        function(*arguments)
    except InputError as error:
        return str(error)
    return None


def adversarial(rng, kernel, features):
    """Random features, and those at the ends of their range that make the first columns as large as they get."""
    signs = np.where(kernel.T[:1] >= 0, 1.0, -1.0)
    return np.concatenate([rng.uniform(-1, 1, (1, features)), signs, -signs])


@given(
    st.sampled_from(sorted(PARAMETERS)),
    st.integers(1, 300),
    st.integers(1, 40),
    st.floats(-20, 20),
    st.floats(0, 3),
    st.integers(0, 2**32 - 1),
)
def test_heads_decrypt_to_their_oracle(name, features, classes, log2_size, bias_size, seed):
    """BFV to the exact integers, CKKS within the proved bound; weights of any size, heavy tails, zero columns."""
    rng, client = np.random.default_rng(seed), client_of(name)
    kernel = rng.standard_t(2, size=(features, classes)) * 2.0**log2_size
    kernel[:, rng.random(classes) < 0.1] = 0
    bias = rng.normal(size=classes) * bias_size * 2.0**log2_size
    samples = adversarial(rng, kernel, features)
    for packing in client.parameters.packings:
        refused = refusal(_check_packing, packing, client, kernel, bias, samples, 1.0)
        # A bias beside which the kernel has no bits is refused; nothing else is, and nothing is wrong.
        assert refused is None or (bias_size > 0 and "could overflow" in refused)


@given(
    st.sampled_from(sorted(PARAMETERS)),
    st.integers(1, 2048),
    st.integers(1, 60),
    st.floats(0, 8),
    st.integers(0, 2**32),
)
@example("bfv", 1, 1, 2.0, 1022)  # a bias beside which the kernel has no bits
def test_no_features_in_range_leave_the_integer_range(name, features, classes, bias_size, seed):
    """A head is within the limits, or refused where it would not be with a kernel of 4 bits."""
    rng, pinned = np.random.default_rng(seed), PARAMETERS[name]
    kernel, bias = (
        rng.standard_t(2, size=(features, classes)),
        rng.normal(size=classes) * bias_size * math.sqrt(features),
    )
    for packing in pinned.packings:
        try:
            head = QuantizedHead.from_float(kernel, bias, pinned, -pinned.feature_bits, packing)
        except InputError:
            scale = MIN_WEIGHT / np.abs(kernel).max()
            unit_bias = bias * 2.0 ** (pinned.feature_bits - pinned.bias_shift)
            coarse = np.rint(kernel * scale).astype(np.int64)
            assert not within_limits(pinned, packing, coarse, [round(number) for number in unit_bias * scale])
        else:
            assert within_limits(pinned, packing, head.kernel, head.bias)


def within_limits(pinned, packing, kernel, bias):
    """In Python's integers: the worst features of each column, with the worst of every rounding and of the noise."""
    holds, (features, classes) = [], kernel.shape
    for column, offset, noise in zip(kernel.T, bias, limits.noise_bound(pinned, kernel, packing), strict=True):
        products = sum(abs(int(weight)) for weight in column) * pinned.max_feature
        shift = abs(int(offset)) << pinned.bias_shift
        flood = limits.flooding(pinned, features, classes)
        if pinned.scheme == "bfv":
            holds.append(2 * (products + shift) <= pinned.plaintext_modulus - 1)
            holds.append(2 * pinned.plaintext_modulus * (math.ceil(noise) + flood) <= pinned.modulus)
        else:
            # Batched, two samples share a complex slot; the bias is the same in each, and real coefficients.
            corner = 1 if packing == "coefficient" else math.sqrt(2)
            holds.append(2 * (corner * products + shift + noise + flood) <= pinned.modulus)
        if pinned.sanitizes:
            holds.append(2**limits.FLOODING_BITS * classes * noise <= flood * (1 + 1e-12))
    return all(holds)


@given(
    st.sampled_from([("ckks", 2), ("ckks", 3), ("bfv", 2)]),
    st.lists(st.integers(1, 9), min_size=4, max_size=4),
    st.sampled_from([(0.0, 1.0), (-1.0, 1.0), (-3.0, 0.5), (2.0, 2.5)]),
    st.floats(-4, 4),
    st.integers(0, 1000),
)
def test_networks_stay_within_their_bounds(kind, widths, input_range, log2_size, seed):
    scheme, layers = kind
    network = dense_network(seed, *widths[: layers + 1])
    first = network.layers[0]
    scaled = Affine(first.kernel * 2.0**log2_size, first.bias, first.windows, first.inputs)
    network = Network((scaled, *network.layers[1:]))
    refused = refusal(BatchedPlan.make, network, scheme, input_range)
    assert refused is None or "could overflow" in refused
    assume(refused is None)
    plan = BatchedPlan.make(network, scheme, input_range)
    inputs = aligned_inputs(network, *input_range)
    values = np.rint(np.ldexp(inputs, plan.public.input_bits)).astype(np.int64).astype(object).T
    for number, layer in enumerate(plan.layers):
        values = values if number == 0 else values * values
        values = layer.kernel.T.astype(object) @ values + layer.bias[:, np.newaxis]
    parameters = plan.public.parameters
    assert 2 * int(np.abs(values).max()) < (parameters.plaintext_modulus or parameters.modulus)
    client = NetworkClient(plan.public)
    with NetworkServer(plan, processes=1) as server:
        if scheme == "bfv":
            return  # worker processes an example would take minutes; test_network_batched evaluates BFV
        logits = answered(client, server, inputs)
    assert np.abs(logits - network.evaluate(inputs)).max() <= plan.public.error_bound


def every_set():
    """All parameter sets that the package pins, wherever they are."""
    found = list(PARAMETERS.values())
    for value in vars(network_parameters).values():
        items = value.values() if isinstance(value, dict) else [value]
        found += [item for item in items if isinstance(item, NetworkParameters)]
    return found


def test_every_set_is_within_the_table_with_all_its_primes():
    assert len(every_set()) >= 9
    for pinned in every_set():
        primes = pinned.key_primes if isinstance(pinned, Parameters) else pinned.coeff_modulus
        assert math.prod(primes).bit_length() <= MAX_COEFF_MODULUS_BITS[pinned.poly_modulus_degree]
        assert len(set(primes)) == len(primes)


@pytest.mark.parametrize("pinned", every_set(), ids=str)
def test_sets_of_one_bit_more_are_refused(pinned):
    """The table is a limit, not a comment."""
    limit = MAX_COEFF_MODULUS_BITS[pinned.poly_modulus_degree]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MAX_COEFF_MODULUS_BITS, pinned.poly_modulus_degree, pinned.coeff_modulus_bits - 1)
        with pytest.raises(InputError, match="128-bit security"):
            dataclasses.replace(pinned)
    assert MAX_COEFF_MODULUS_BITS[pinned.poly_modulus_degree] == limit
