"""What a reply tells the holder of the key: attacks that work on plain replies, and fail on sanitised ones."""

import math

import numpy as np
import pytest
from scipy import stats

from tfprivacy_lab import he
from tfprivacy_lab.he import coefficients, messages, sanitize
from tfprivacy_lab.he.ntt import transform
from tfprivacy_lab.he.quantize import quantize_features

D, C = 24, 3
KERNEL = np.random.default_rng(0).normal(size=(D, C))
FEATURES = np.random.default_rng(1).uniform(-1, 1, size=(1, D))


def residues_of(message, kind):
    header, body = messages.parse(message, kind, "message")
    return messages.residues(header, body, "message")[0]


def secret_key(client):
    """The secret key's transforms, uint64 (primes, N): what only its holder knows."""
    key = client._library.to_bytes_secret_key("none")[messages.SECRET_KEY_PREFIX_BYTES :]
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
    return residues_of(query, messages.QUERY)[0, 0], residues_of(reply, messages.REPLY)[0, 0]


def weights_of(client, server):
    head = server.quantized_head(client.parameters.name, -client.parameters.feature_bits, "coefficient")
    return coefficients.weight_polynomials(head.kernel, client.parameters)[0]


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


def unused(client):
    ends = coefficients.logit_positions(D, C, client.parameters)[0]
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
    assert correlation(first[held], wanted[held]) < 0.25
    assert correlation(first, second) < 0.1


def noise(client, ciphertext, integers):
    """What a BFV ciphertext's phase is beside the message q m / t, rounded: (N,)."""
    pinned = client.parameters
    whole = phase(client, ciphertext) * pinned.plaintext_modulus - integers.astype(object) * pinned.modulus
    span = pinned.modulus * pinned.plaintext_modulus
    whole = (whole + span // 2) % span - span // 2
    return (whole // pinned.plaintext_modulus).astype(object)


def regressed(client, rounds):
    """Weights regressed on the noise of logit 0 in many replies, by somebody who knows the queries' own noise."""
    server, pinned = he.Server(KERNEL), client.parameters
    integers, _ = quantize_features(FEATURES, pinned, 1.0)
    message = np.zeros(pinned.poly_modulus_degree, np.int64)
    message[:D] = integers[0]
    answer, rows, targets = products(client, server), [], []
    end = D - 1
    for _ in range(rounds):
        query, reply = exchange(client, server)
        fresh = noise(client, query, message).astype(float)
        rows.append(fresh[end::-1][:D])
        targets.append(float(noise(client, reply, answer)[end]))
    rows, targets = np.array(rows), np.array(targets)
    found = np.linalg.lstsq(rows, targets - targets.mean(), rcond=None)[0]
    return correlation(found, weights_of(client, server)[:D])


def test_noise_of_plain_replies_gives_the_weights_away(bfv_client):
    # The other classes' weights act as noise of the regression, which many replies average out.
    assert regressed(bfv_client, 400) > 0.5


def test_noise_of_sanitised_replies_gives_nothing_away(bfv_sanitized_client):
    assert regressed(bfv_sanitized_client, 150) < 4 / math.sqrt(D)


def logit_noise(client, server, rounds):
    """The noise of the logits in many replies to one and the same features."""
    answer = products(client, server)
    ends = coefficients.logit_positions(D, C, client.parameters)[0]
    return np.concatenate(
        [noise(client, exchange(client, server)[1], answer)[ends].astype(float) for _ in range(rounds)]
    )


def two_heads_of_equal_logits():
    """The second is far larger, but for a direction in which the features have nothing."""
    rng = np.random.default_rng(5)
    away = rng.normal(size=(D, C)) * 20
    away -= FEATURES.T @ (FEATURES @ away) / np.sum(FEATURES**2)
    return KERNEL, KERNEL + away


def test_replies_of_two_heads_with_equal_logits_look_alike(bfv_sanitized_client):
    """Same scale of flooding, so the only difference left could be the noise that the weights made."""
    small, large = (he.Server(kernel / 30) for kernel in two_heads_of_equal_logits())
    largest = max(
        server._prepared("bfv-sanitized", -10, "coefficient").sanitizer.flooding[0] for server in (small, large)
    )
    for server in (small, large):
        server._prepared("bfv-sanitized", -10, "coefficient").sanitizer.flooding[0] = largest
    drawn = [logit_noise(bfv_sanitized_client, server, 60) / largest for server in (small, large)]
    assert stats.ks_2samp(*drawn).pvalue > 1e-4
    assert all(stats.kstest(sample / 2 + 0.5, "uniform").pvalue > 1e-4 for sample in drawn)
    assert max(np.abs(sample).max() for sample in drawn) <= 1 + 2.0**-30


def test_without_flooding_the_same_test_tells_them_apart(bfv_sanitized_client):
    drawn = []
    for kernel in two_heads_of_equal_logits():
        server = he.Server(kernel / 30)
        prepared = server._prepared("bfv-sanitized", -10, "coefficient")
        prepared.sanitizer.flooding[0] = 0
        scale = np.linalg.norm(prepared.head.kernel / prepared.head.weight_scale)
        drawn.append(logit_noise(bfv_sanitized_client, server, 60) * scale / np.linalg.norm(prepared.head.kernel))
    assert stats.ks_2samp(*drawn).pvalue < 1e-6


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
