"""Random networks for the tests of encrypted networks."""

import itertools

import numpy as np

from tfprivacy_lab.he.messages.envelopes import Envelope
from tfprivacy_lab.he.plans.layers import Affine, Network


def resealed(envelope, residues):
    """Other residues under the same words and a digest that fits: what a forger would send."""
    return Envelope.sealed(
        envelope.kind, envelope.plan, envelope.key_id, envelope.query_id, envelope.samples, np.asanyarray(residues)
    )


def answered(client, server, inputs):
    """What the client decrypts of the server's reply to a query of these."""
    query = client.encrypt(inputs)
    return client.decrypt(server.evaluate(query), query)


def dense(rng, inputs, outputs):
    """A dense layer whose outputs keep its inputs' size."""
    kernel = rng.normal(size=(inputs, outputs)) / np.sqrt(inputs)
    return Affine(kernel, rng.normal(size=outputs) * 0.2, np.arange(inputs)[np.newaxis], inputs)


def dense_network(seed, *widths):
    """Dense layers of these widths, a square between each two."""
    rng = np.random.default_rng(seed)
    return Network(tuple(dense(rng, *pair) for pair in itertools.pairwise(widths)))


def aligned_inputs(network, low, high):
    """Inputs at the ends of their range that make each first-layer output, and its negative, as large as can be."""
    signs = np.where(network.layers[0].dense_kernel().T >= 0, high, low)
    ends = np.repeat([[high], [low]], network.inputs, axis=1)
    return np.concatenate([signs, low + high - signs, ends])
