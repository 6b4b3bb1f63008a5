"""What a reply tells the holder of the key: attacks that work on plain replies, and fail on sanitised ones."""

import math

import numpy as np
import pytest
from scipy import stats

from tfprivacy_lab import he
from tfprivacy_lab.he.messages import wire
from tfprivacy_lab.he.messages.header import SECRET_KEY_PREFIX_BYTES
from tfprivacy_lab.he.packing import coefficient
from tfprivacy_lab.he.quantization import limits
from tfprivacy_lab.he.quantization.heads import QuantizedHead
from tfprivacy_lab.he.quantization.steps import quantize_features
from tfprivacy_lab.he.ring.ntt import transform
from tfprivacy_lab.he.ring.parameters import PARAMETERS
from tfprivacy_lab.he.server import sanitize

D, C = 24, 3
KERNEL = np.random.default_rng(0).normal(size=(D, C))
FEATURES = np.random.default_rng(1).uniform(-1, 1, size=(1, D))


def residues_of(message, kind):
    header, body = wire.parse(message, kind, "message")
    return wire.residues(header, body, "message")[0]


def secret_key(client):
    """The secret key's transforms, uint64 (primes, N): what only its holder knows."""
    key = client._library.to_bytes_secret_key("none")[SECRET_KEY_PREFIX_BYTES:]
    primes = client.parameters.coeff_modulus
    return np.frombuffer(key, "<u8").reshape(-1, client.parameters.poly_modulus_degree)[: len(primes)]


def phase(client, ciphertext):
    """c0 + c1 s modulo q as Python's integers of least magnitude, (N,): message and noise together."""
    pinned, total = client.parameters, 0
    for k, prime in enumerate(pinned.coeff_modulus):
        way = transform(prime, pinned.poly_modulus_degree)
        value = way.sum(
            np.ascontiguousarray(ciphertext[0, k]),
            way.multiply(np.ascontiguousarray(ciphertext[1, k]), way.factor(secret_key(client)[k])),
        )
        others = pinned.modulus // prime
        total = total + way.inverse(value).astype(object) * (others * pow(others, -1, prime))
    total %= pinned.modulus
    return np.where(total > pinned.modulus // 2, total - pinned.modulus, total)


def quotient(client, reply, query):
    """The reply's c1 over the query's, as a polynomial modulo the first prime: the weights, if nothing was added."""
    prime = client.parameters.coeff_modulus[0]
    way = transform(prime, client.parameters.poly_modulus_degree)
    inverse = np.array([pow(int(value), -1, prime) for value in query[1, 0]], np.uint64)
    return way.centred(way.inverse(way.multiply(np.ascontiguousarray(reply[1, 0]), way.factor(inverse))))


def exchange(client, server, features=FEATURES):
    query = client.encrypt(features, 1.0, "coefficient")
    reply = server.evaluate(query)
    return residues_of(query, wire.QUERY)[0, 0], residues_of(reply, wire.REPLY)[0, 0]


def weights_of(client, server):
    head = server.quantized_head(client.parameters.name, -client.parameters.feature_bits, "coefficient")
    return coefficient.weight_polynomials(head.kernel, client.parameters)[0]


def correlation(a, b):
    return abs(np.corrcoef(np.asarray(a, float), np.asarray(b, float))[0, 1])


def test_dividing_c1_gives_plain_weights_away(client):
    server = he.Server(KERNEL)
    query, reply = exchange(client, server)
    assert np.array_equal(quotient(client, reply, query), weights_of(client, server))


def test_dividing_c1_of_a_sanitised_reply_gives_nothing(sanitized_client):
    server = he.Server(KERNEL)
    query, reply = exchange(sanitized_client, server)
    weights, found = weights_of(sanitized_client, server), quotient(sanitized_client, reply, query)
    assert correlation(found, weights) < 0.1
    # The quotient is uniform: residues over p are within what chance allows.
    prime = sanitized_client.parameters.coeff_modulus[0]
    assert stats.kstest(found / prime + 0.5, "uniform").pvalue > 1e-6
    again = quotient(sanitized_client, exchange(sanitized_client, server)[1], query)
    assert correlation(found, again) < 0.1


def second_polynomial(client, reply):
    """c1 of a reply as coefficients modulo the first prime, signed."""
    way = transform(client.parameters.coeff_modulus[0], client.parameters.poly_modulus_degree)
    return way.centred(way.inverse(np.ascontiguousarray(reply[1, 0])))


def test_c1_of_two_replies_to_one_query_is_fresh(sanitized_client):
    """Small errors alone would hide c1 from a division, and not from an average over replies to the same query."""
    server, query = he.Server(KERNEL), sanitized_client.encrypt(FEATURES, 1.0, "coefficient")
    prime = sanitized_client.parameters.coeff_modulus[0]
    first, second = (
        second_polynomial(sanitized_client, residues_of(server.evaluate(query), wire.REPLY)[0, 0]) for _ in range(2)
    )
    difference = (first - second) % prime / prime
    assert stats.kstest(difference, "uniform").pvalue > 1e-6


def test_c1_has_errors_of_its_own(sanitized_client):
    """Without them the public a divides out, and what is left of two replies to one query is small: their ternary u."""
    server, query = he.Server(KERNEL), sanitized_client.encrypt(FEATURES, 1.0, "coefficient")
    prime, degree = sanitized_client.parameters.coeff_modulus[0], sanitized_client.parameters.poly_modulus_degree
    way, public = transform(prime, degree), sanitized_client._public_key()[1, 0]
    first, second = (residues_of(server.evaluate(query), wire.REPLY)[0, 0][1, 0] for _ in range(2))
    difference = np.ascontiguousarray(way.sum(first, np.uint64(prime) - second))
    inverse = np.array([pow(int(value), -1, prime) for value in public], np.uint64)
    left = way.centred(way.inverse(way.multiply(difference, way.factor(inverse))))
    assert stats.kstest(left / prime + 0.5, "uniform").pvalue > 1e-6


def unused(client):
    ends = coefficient.logit_positions(D, C, client.parameters)[0]
    return np.setdiff1d(np.arange(client.parameters.poly_modulus_degree), ends)


def products(client, server):
    """All coefficients of features times weights."""
    integers, _ = quantize_features(FEATURES, client.parameters, 1.0)
    return np.convolve(weights_of(client, server), integers[0])[: client.parameters.poly_modulus_degree]


def test_unused_coefficients_of_a_plain_reply_hold_partial_products(bfv_client):
    server = he.Server(KERNEL)
    _, reply = exchange(bfv_client, server)
    step = bfv_client.parameters.modulus / bfv_client.parameters.plaintext_modulus
    found = np.rint((phase(bfv_client, reply) / step).astype(float))
    rest = unused(bfv_client)
    assert np.array_equal(found[rest], products(bfv_client, server)[rest])


def test_unused_coefficients_of_a_sanitised_reply_are_uniform(sanitized_client):
    server, modulus = he.Server(KERNEL), sanitized_client.parameters.modulus
    rest = unused(sanitized_client)
    first, second = (phase(sanitized_client, exchange(sanitized_client, server)[1])[rest] for _ in range(2))
    assert stats.kstest((first / modulus).astype(float) + 0.5, "uniform").pvalue > 1e-6
    wanted = products(sanitized_client, server)[rest] if sanitized_client.scheme == "bfv" else second
    held = wanted != 0
    # Of what has nothing in common, once in ten thousand million; of the partial products themselves it is 1.
    assert correlation(first[held], wanted[held]) < 6.5 / math.sqrt(held.sum()) < 0.7
    assert correlation(first, second) < 0.1


def noise(client, ciphertext, integers):
    """What a BFV ciphertext's phase is beside the message q m / t, rounded: (N,)."""
    pinned = client.parameters
    whole = phase(client, ciphertext) * pinned.plaintext_modulus - integers.astype(object) * pinned.modulus
    span = pinned.modulus * pinned.plaintext_modulus
    whole = (whole + span // 2) % span - span // 2
    return (whole // pinned.plaintext_modulus).astype(object)


def regressed(client, rounds):
    """All weights of the product regressed on the noise of its logits in many replies.

    The attacker holds the secret key, so it knows the noise of its own queries, and which of it each weight met.

    Returns:
        The correlation of what is found with the weights, and the p-value of there being nothing to find.
    """
    server, pinned = he.Server(KERNEL), client.parameters
    integers, _ = quantize_features(FEATURES, pinned, 1.0)
    message = np.zeros(pinned.poly_modulus_degree, np.int64)
    message[:D] = integers[0]
    answer, rows, targets = products(client, server), [], []
    ends = coefficient.logit_positions(D, C, pinned)[0]
    for _ in range(rounds):
        query, reply = exchange(client, server)
        fresh, seen = noise(client, query, message).astype(float), noise(client, reply, answer).astype(float)
        turned = np.concatenate([-fresh, fresh])  # coefficient i of X^N = -1, for i from -N on
        for end in ends:
            rows.append(turned[len(fresh) + end - np.arange(D * C)])
            targets.append(seen[end])
    rows, targets = np.array(rows), np.array(targets)
    found, rest = np.linalg.lstsq(rows, targets, rcond=None)[:2]
    free = len(targets) - D * C
    ratio = (np.sum(targets**2) - rest[0]) / (D * C) / (rest[0] / free)
    return correlation(found, weights_of(client, server)[: D * C]), stats.f.sf(ratio, D * C, free)


def test_noise_of_plain_replies_gives_the_weights_away(bfv_client):
    found, chance = regressed(bfv_client, 60)
    assert found > 0.99
    assert chance < 1e-6


def test_noise_of_sanitised_replies_gives_nothing_away(bfv_sanitized_client):
    found, chance = regressed(bfv_sanitized_client, 150)
    assert found < 4.5 / math.sqrt(D * C)
    assert chance > 1e-6


def test_without_flooding_the_same_regression_gives_the_weights_away(bfv_sanitized_client, monkeypatch):
    """The encryption of zero and the masks do not hide what the weights did to the noise: flooding does."""
    monkeypatch.setattr(sanitize, "flooding", lambda *_: 0)
    found, chance = regressed(bfv_sanitized_client, 150)
    assert found > 0.9
    assert chance < 1e-6


def two_heads_of_equal_logits(client):
    """Servers of one scale, and features whose integer logits are the same under both: c of them, exact.

    The features are zero but for one; in the rows of the others the second head is 1.7 times as large.
    """
    pinned, features = client.parameters, np.eye(D)[:1]
    rest = np.random.default_rng(5).choice([-1.0, 1.0], size=(D - 1, C))
    for size in 2.0 ** np.arange(0, 1, 0.05):
        kernels = [np.vstack([[0.5, -0.25, 0.125], size * rest * factor]) for factor in (1.0, 1.7)]
        servers = [he.Server(kernel) for kernel in kernels]
        heads = [server.quantized_head(pinned.name, -pinned.feature_bits, "coefficient") for server in servers]
        if heads[0].weight_scale == heads[1].weight_scale:
            break
    assert np.array_equal(heads[0].kernel[0], heads[1].kernel[0])
    assert heads[1].l2_norms.min() > 1.6 * heads[0].l2_norms.max()
    return servers, features, heads[0].kernel[0].astype(object) * pinned.max_feature


def logit_noise(client, server, features, logits, rounds):
    """What the key holder sees beside the logits in many replies to the same features, integers (rounds, C)."""
    pinned, found = client.parameters, []
    ends = coefficient.logit_positions(D, C, pinned)[0]
    for _ in range(rounds):
        seen = phase(client, exchange(client, server, features)[1])[ends]
        found.append(
            seen - logits * pinned.modulus // pinned.plaintext_modulus if client.scheme == "bfv" else seen - logits
        )
    return np.array(found, dtype=object)


def test_replies_of_two_heads_with_equal_logits_look_alike(sanitized_client):
    servers, features, logits = two_heads_of_equal_logits(sanitized_client)
    magnitude = limits.flooding(sanitized_client.parameters, D, C)
    drawn = [
        (logit_noise(sanitized_client, server, features, logits, 100) / magnitude).astype(float) for server in servers
    ]
    for one, other in zip(*(sample.T for sample in drawn), strict=True):
        assert stats.ks_2samp(one, other).pvalue > 1e-6
        assert stats.ks_2samp(np.abs(one), np.abs(other)).pvalue > 1e-6
    for sample in drawn:
        assert stats.kstest(sample.ravel() / 2 + 0.5, "uniform").pvalue > 1e-6
        assert np.abs(sample).max() <= 1 + 2.0**-30


def test_what_flooding_hides_tells_two_heads_apart_and_is_within_the_stated_distance(sanitized_client, monkeypatch):
    magnitude = limits.flooding(sanitized_client.parameters, D, C)
    monkeypatch.setattr(sanitize, "flooding", lambda *_: 0)
    servers, features, logits = two_heads_of_equal_logits(sanitized_client)
    drawn = [
        np.abs(logit_noise(sanitized_client, server, features, logits, 250).astype(float)).ravel() for server in servers
    ]
    assert stats.ks_2samp(*drawn).pvalue < 1e-4
    # A shift by s moves a uniform integer of 2 F + 1 values by the statistical distance s / (2 F + 1).
    furthest = drawn[0].max() + drawn[1].max()
    assert 0 < C * furthest / (2 * magnitude + 1) <= 2.0**-limits.FLOODING_BITS


@pytest.mark.parametrize("name", ["bfv-sanitized", "ckks-sanitized"])
def test_flooding_and_scale_tell_the_shape_and_a_power_of_two(name):
    """The flooding's spread, which a key holder sees, is the same for all heads of a shape."""
    pinned, made = PARAMETERS[name], []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        kernel, bias = rng.normal(size=(D, C)) * rng.uniform(0.5, 2), rng.normal(size=C)
        head = QuantizedHead.from_float(kernel, bias, pinned, -pinned.feature_bits, "coefficient")
        assert math.frexp(head.weight_scale)[0] == 0.5
        made.append((sanitize.Sanitizer(coefficient.PreparedHead(head)).flooding, head.weight_scale))
    assert len({magnitude for magnitude, _ in made}) == 1
    assert 1 < len({scale for _, scale in made}) <= 5


def test_queries_of_the_sanitising_ckks_set_hold_their_integers_and_nothing_else(ckks_sanitized_client):
    """CKKS' encoder would leave its float64 rounding, 2**20 and more, at every coefficient."""
    pinned = ckks_sanitized_client.parameters
    query, _ = exchange(ckks_sanitized_client, he.Server(KERNEL))
    message = np.zeros(pinned.poly_modulus_degree, object)
    message[:D] = [int(value) for value in np.rint(np.ldexp(FEATURES[0], pinned.feature_bits))]
    assert np.abs(phase(ckks_sanitized_client, query) - message).max() <= pinned.coefficient_noise_bound()


@pytest.mark.parametrize("prime", [97, 40961, 35184371884033])
def test_masks_are_uniform(prime):
    drawn = sanitize.uniform(prime, 20_000)
    assert drawn.max() < prime
    counts = np.bincount((drawn.astype(object) * 10 // prime).astype(int), minlength=10)
    expected = np.bincount([i * 10 // prime for i in range(prime)], minlength=10) / prime if prime < 1000 else None
    assert stats.chisquare(counts, None if expected is None else expected * len(drawn)).pvalue > 1e-6


def test_secrets_of_an_encryption_of_zero_have_their_laws():
    chosen, errors = sanitize.ternary(60_000), sanitize.centred_binomial(60_000)
    assert stats.chisquare(np.bincount(chosen + 1)).pvalue > 1e-6
    assert set(np.unique(chosen)) == {-1, 0, 1}
    law = stats.binom(42, 0.5)
    counts = np.bincount(errors + 21, minlength=43)
    groups = [counts[:15].sum(), *counts[15:28], counts[28:].sum()]
    expected = [law.cdf(14), *law.pmf(np.arange(15, 28)), law.sf(27)]
    assert stats.chisquare(groups, np.array(expected) * len(errors)).pvalue > 1e-6
    assert abs(errors.var() - 10.5) < 0.3


def test_extraction_by_chosen_queries_works_whatever_is_sanitised(ckks_sanitized_client):
    """d + 1 queries give a linear head away: no encryption is against it."""
    bias = np.array([0.3, -0.2, 0.1])
    server = he.Server(KERNEL, bias)
    queries = np.concatenate([np.zeros((1, D)), np.eye(D)])
    logits = ckks_sanitized_client.decrypt(server.evaluate(ckks_sanitized_client.encrypt(queries, 1.0)))
    np.testing.assert_allclose(logits[0], bias, atol=1e-3)
    np.testing.assert_allclose(logits[1:] - logits[0], KERNEL, atol=1e-3)
