"""The server of batched networks: arithmetic on the residues of ciphertexts, with no key of any kind.

CKKS needs no homomorphic library. A ciphertext's polynomials are held by their values (SEAL's number-theoretic
transform) modulo each prime, where sums and products of polynomials are pointwise: a layer is a matrix product, a
square takes :math:`(c_0, c_1)` to :math:`(c_0^2, 2 c_0 c_1, c_1^2)`, and the next one to five polynomials. The client
decrypts what it gets; nothing is relinearised.

BFV's layers are the same products; its scaled square is SEAL's, in worker processes that hold a context without keys.

Guarantee: the server learns of the inputs only the number of samples, while the encryption stands.

Not covered: a server that uses another network; the weights' secrecy from the holder of the key (replies are not
    sanitised); decrypted values that come back, from which a malicious server reads the key.
"""

from __future__ import annotations

import concurrent.futures
import os
from collections.abc import Iterator

import numpy as np

from tfprivacy_lab.checks import InputError, check_positive_int
from tfprivacy_lab.he.messages import envelopes
from tfprivacy_lab.he.messages.envelopes import Envelope
from tfprivacy_lab.he.messages.residues import bfv_constants, bfv_layer, check_residues, evaluate_residues
from tfprivacy_lab.he.plans.network import BatchedPlan
from tfprivacy_lab.he.server import bfv_square
from tfprivacy_lab.he.server.door import checked_plan

_CHUNK_BYTES = 2**24


class NetworkServer:
    """Evaluates a planned network on batches of encrypted inputs.

    Args:
        plan: The integer network.
        processes: Workers, >= 1: threads for CKKS, processes for BFV. None takes one a core.

    Raises:
        InputError: naming ``processes``.
    """

    def __init__(self, plan: BatchedPlan, processes: int | None = None):
        processes = os.cpu_count() or 1 if processes is None else processes
        self._plan, self._workers = checked_plan(plan, BatchedPlan), check_positive_int("processes", processes)
        self._pool, self._digest = None, envelopes.plan_digest(plan.public)

    def __enter__(self) -> NetworkServer:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """End the worker processes, if there are any."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None

    def evaluate(self, query: Envelope) -> Envelope:
        """The network on a query.

        Args:
            query: Residues, shape (blocks, inputs, 2, primes, N), of the parameters' ``residue_dtype``, as
                :meth:`NetworkClient.encrypt <tfprivacy_lab.he.client.network.NetworkClient.encrypt>` seals them.

        Returns:
            The reply; its residues are of shape (blocks, outputs, polynomials, primes, N).

        Raises:
            InputError: if the query is another plan's or damaged, or shape, dtype or range are not these.
        """
        public, sealed = self._plan.public, envelopes.opened(query, "query", self._digest)
        query, samples = sealed.residues, check_positive_int("samples of query", sealed.samples)
        check_residues("query", query, public.parameters, public.query_shape(1), fresh=True)
        if len(query) != public.blocks(samples):
            raise InputError(f"Expected a query of {public.blocks(samples)} blocks for {samples}, got {len(query)}.")
        reply = np.empty((len(query), *public.reply_shape(1)[1:]), public.parameters.residue_dtype)
        for block, result in zip(query, reply, strict=True):
            (self._evaluate_ckks if public.parameters.scheme == "ckks" else self._evaluate_bfv)(block, result)
        return Envelope.sealed("reply", self._digest, sealed.key_id, sealed.query_id, samples, reply)

    def _evaluate_ckks(self, block: np.ndarray, result: np.ndarray) -> None:
        """One block, chunk by chunk of each prime's positions."""

        def run(chunk):
            prime, places = chunk
            modulus = self._plan.public.parameters.primes[prime]
            result[:, :, prime, places] = evaluate_residues(self._plan.layers, block[:, :, prime, places], modulus)

        with concurrent.futures.ThreadPoolExecutor(self._workers) as pool:
            list(pool.map(run, self._chunks()))

    def _chunks(self) -> Iterator[tuple[int, slice]]:
        """Prime and positions of each chunk, whose intermediate values fit the cache or nearly so."""
        parameters, width = self._plan.public.parameters, 1
        for number, layer in enumerate(self._plan.layers):
            polynomials = 2 if number == 0 else 2**number + 1
            width = max(width, polynomials * max(layer.outputs, layer.windows.size))
        step = max(64, _CHUNK_BYTES // (8 * width) // 64 * 64)
        for prime in range(len(parameters.primes)):
            for start in range(0, parameters.poly_modulus_degree, step):
                yield prime, slice(start, min(start + step, parameters.poly_modulus_degree))

    def _evaluate_bfv(self, block: np.ndarray, result: np.ndarray) -> None:
        """One block: residues for the layers, SEAL for the square between."""
        parameters = self._plan.public.parameters
        if self._pool is None:
            self._pool = bfv_square.pool(parameters, self._workers)
        first, second = self._plan.layers
        hidden = bfv_layer(first, block, parameters)
        # A unit without weights is a constant, which SEAL refuses to square: "transparent".
        alive = first.dense_kernel().any(axis=0)
        squared = bfv_constants(first.full_bias() ** 2 * ~alive, (len(hidden), 3, *hidden.shape[2:]), parameters)
        if alive.any():
            parts = np.array_split(hidden[alive], min(alive.sum(), 4 * self._workers))
            squared[alive] = np.concatenate(list(self._pool.map(bfv_square.square_ciphertexts, parts)))
        result[:] = bfv_layer(second, squared, parameters)
