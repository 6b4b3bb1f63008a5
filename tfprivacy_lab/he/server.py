"""The server: evaluates a dense head on ciphertexts, with the public bytes of the query and nothing else.

It holds no key, needs no homomorphic library, loads nothing that the client chose but checked residues,
and pins its parameters.
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
from typing import NamedTuple

import numpy as np

from tfprivacy_lab.checks import InputError, PrecisionWarning, check_choice
from tfprivacy_lab.he import messages
from tfprivacy_lab.he.coefficients import PreparedHead
from tfprivacy_lab.he.error_bounds import check_error_bound
from tfprivacy_lab.he.packing import add_modular, bias_residues, modular_matmul
from tfprivacy_lab.he.parameters import PARAMETERS
from tfprivacy_lab.he.quantize import QuantizedHead, check_head
from tfprivacy_lab.he.sanitize import Sanitizer

REPLIES = ("any", "sanitized")
_CACHED_HEADS = 8


class _Batched(NamedTuple):
    """A head as the matrix product wants it."""

    head: QuantizedHead
    weights: np.ndarray
    offsets: np.ndarray


class _Coefficient(NamedTuple):
    """A head as polynomials, and what sanitises its replies, or None."""

    head: QuantizedHead
    prepared: PreparedHead
    sanitizer: Sanitizer | None


class Server:
    """A frozen dense head that answers encrypted queries.

    :math:`reply_j = \\sum_i W_{ij}\\, query_i + B_j \\pmod q` on the ciphertexts' residues.

    Args:
        kernel: Finite, shape (d, c), Keras convention, d <= 2048, c <= 1000.
        bias: Finite, shape (c,), or None for zeros.
        replies: "sanitized" refuses queries whose replies cannot be (those under the sets bfv and ckks); "any"
            answers them too. Queries under a sanitising set always get sanitised replies.

    Raises:
        InputError: naming the argument.

    Guarantee: the server, even if curious, learns of the features only the number of samples, their
        width and the quantisation step, while the encryption stands (see
        :mod:`tfprivacy_lab.he.parameters`). BFV's replies decrypt to the exact integer result. A sanitised reply
        tells an honest-but-curious holder of the key the logits and nothing else of the head
        (:mod:`tfprivacy_lab.he.sanitize`).

    Not covered: a server that does not use this head, or answers wrongly (nothing proves what it
        computed). Replies that are not sanitised: their c1, unused coefficients and noise depend on the weights, so
        one reply can give them away. A linear head falls to about d + 1 chosen queries whatever the encryption. What
        logits tell about training data is the matter of differential privacy. Never let a client's decrypted CKKS
        values come back to the server (Li and Micciancio 2021).
    """

    def __init__(self, kernel, bias=None, replies: str = "any"):
        self._kernel, self._bias = check_head(kernel, bias)
        self._replies = check_choice("replies", replies, REPLIES)
        self._prepared = functools.lru_cache(maxsize=_CACHED_HEADS)(self._prepare)

    def __repr__(self) -> str:
        return f"Server(features={self._kernel.shape[0]}, classes={self._kernel.shape[1]})"

    def evaluate(self, query: bytes, name: str = "query", max_error: float | None = None) -> bytes:
        """Answer one query.

        Args:
            query: What :meth:`Client.encrypt <tfprivacy_lab.he.client.Client.encrypt>` returned.
            name: What to call it in an error.
            max_error: Refuse if the proved bound on a logit's error, :meth:`QuantizedHead.error_bound
                <tfprivacy_lab.he.quantize.QuantizedHead.error_bound>` over the whole range, is above; None: never.

        Returns:
            The reply, compressed if the query is, for :meth:`Client.decrypt <tfprivacy_lab.he.client.Client.decrypt>`.

        Raises:
            InputError: if the query is damaged, of another kind, width or parameter set, or the head
                could overflow at the query's step.

        Warns:
            PrecisionWarning: if rows of the kernel round to nothing at the query's steps.
        """
        header, body = self._read(query, name)
        features, classes = self._kernel.shape
        parameters = header.parameters
        if self._replies == "sanitized" and not parameters.sanitizes:
            raise InputError(
                f"Expected {name} under a set whose replies are sanitised, as this server asks, got {parameters.name}; "
                "make keys with a sanitized scheme."
            )
        answer = messages.Header(
            messages.REPLY,
            parameters,
            header.key_id,
            header.query_id,
            header.samples,
            classes,
            header.step_exponent,
            1.0,
            header.packing,
            features,
            header.residue_bits,
        )
        messages.check_size(answer, name)
        residues, public_key = messages.residues(header, body, name)
        prepared = self._for_query(header, name)
        if max_error is not None:
            check_error_bound(float(prepared.head.error_bound().max()), max_error)
        reply = np.empty((*answer.ciphertexts, *answer.ciphertext_shape), dtype="<u8")
        if header.packing == "batched":
            _answer_batched(residues, prepared, reply)
        else:
            _answer_coefficients(residues, public_key, prepared, reply)
        return messages.pack(dataclasses.replace(answer, weight_scale=prepared.head.weight_scale), reply)

    def _read(self, query: bytes, name: str):
        """A query's header and body, if it is as wide as the head."""
        header, body = messages.parse(query, messages.QUERY, name)
        if header.columns != len(self._kernel):
            raise InputError(
                f"Expected {name} of {len(self._kernel)} features, as the head's kernel has, got {header.columns}."
            )
        return header, body

    def _for_query(self, header: messages.Header, name: str):
        """The head prepared for a query; whoever sent it does not learn the magnitudes that a refusal is about."""
        try:
            return self._prepared(header.parameters.name, header.step_exponent, header.packing, header.column_steps)
        except InputError:
            raise InputError(
                f"Expected {name} of features in a larger range: at a step of 2**{header.step_exponent} the head could "
                "overflow; encrypt with a larger feature_range."
            ) from None

    def quantized_head(
        self, scheme: str, step_exponent: int, packing: str = "batched", column_steps: tuple[int, ...] = ()
    ) -> QuantizedHead:
        """The integer head that answers queries of this parameter set, step and packing, with its error bound."""
        return self._prepared(scheme, step_exponent, packing, column_steps).head

    def head_for(self, query: bytes, name: str = "query") -> QuantizedHead:
        """The integer head that answers this query, with its error bound; Raises: as :meth:`evaluate`."""
        return self._for_query(self._read(query, name)[0], name).head

    def _prepare(self, scheme: str, step_exponent: int, packing: str, column_steps: tuple[int, ...]):
        """The integer head as its packing wants it."""
        parameters = PARAMETERS[scheme]
        head = QuantizedHead.from_float(self._kernel, self._bias, parameters, step_exponent, packing, column_steps)
        if head.rounded_away:
            warnings.warn(
                f"{head.rounded_away} of {len(head.kernel)} rows of the kernel round to nothing beside the others: "
                "encrypt with feature_range as one bound a column, or rescale features and kernel; results may be "
                "wrong",
                PrecisionWarning,
                stacklevel=2,
            )
        if packing == "batched":
            weights = np.ascontiguousarray(head.kernel.T, dtype=np.float64)
            return _Batched(head, weights, bias_residues(head.bias, parameters))
        prepared = PreparedHead(head)
        return _Coefficient(head, prepared, Sanitizer(prepared) if parameters.sanitizes else None)


def _answer_batched(residues: np.ndarray, prepared: _Batched, reply: np.ndarray) -> None:
    """Blocks (blocks, d, 2, 1, N) times the head, into the reply (blocks, c, 2, 1, N)."""
    modulus = prepared.head.parameters.modulus
    for block, result in zip(residues, reply, strict=True):
        result[:] = modular_matmul(prepared.weights, block.reshape(len(block), -1), modulus).reshape(result.shape)
        add_modular(result[:, 0, 0], prepared.offsets, modulus)


def _answer_coefficients(residues: np.ndarray, public_key, prepared: _Coefficient, reply: np.ndarray) -> None:
    """Samples (samples, 1, 2, primes, N) times the head, into the reply (samples, products, 2, primes, N)."""
    head = prepared.prepared
    if prepared.sanitizer is not None:
        factors = [way.factor(public_key[:, k]) for k, way in enumerate(head.transforms)]
    for ciphertext, result in zip(residues, reply, strict=True):
        result[:] = head.products_of(ciphertext[0])
        if prepared.sanitizer is None:
            head.add_bias(result)
        else:
            prepared.sanitizer.add_to(result, factors)
