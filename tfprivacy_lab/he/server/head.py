"""The server: evaluates a dense head on ciphertexts, with the public bytes of the query and nothing else.

It holds no key, needs no homomorphic library, loads nothing that the client chose but checked residues,
and pins its parameters.
"""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from typing import NamedTuple

import numpy as np

from tfprivacy_lab.checks import InputError, PrecisionWarning, check_choice
from tfprivacy_lab.he.messages import wire
from tfprivacy_lab.he.messages.compression import CHUNK_ROWS, ROW
from tfprivacy_lab.he.messages.error_bounds import check_error_bound
from tfprivacy_lab.he.packing.batched import add_modular, bias_residues, matmul_scratch_bytes, modular_matmul
from tfprivacy_lab.he.packing.coefficient import PreparedHead
from tfprivacy_lab.he.quantization.heads import QuantizedHead, check_head
from tfprivacy_lab.he.quantization.steps import check_feature_range, steps_of_range
from tfprivacy_lab.he.ring.parameters import PARAMETERS
from tfprivacy_lab.he.server.prepared import PreparedHeads
from tfprivacy_lab.he.server.sanitize import Sanitizer

REPLIES = ("any", "sanitized")
_SMALL_BYTES = 2**20


class _Batched(NamedTuple):
    """A head as the matrix product wants it."""

    head: QuantizedHead
    weights: np.ndarray
    offsets: np.ndarray

    @property
    def nbytes(self) -> int:
        return self.head.kernel.nbytes + self.weights.nbytes + self.offsets.nbytes


class _Coefficient(NamedTuple):
    """A head as polynomials, and what sanitises its replies, or None."""

    head: QuantizedHead
    prepared: PreparedHead
    sanitizer: Sanitizer | None

    @property
    def nbytes(self) -> int:
        return self.head.kernel.nbytes + self.prepared.nbytes


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a query takes, as its header tells.

    Args:
        samples: How many it holds.
        reply_bytes: Length of its reply.
        working_bytes: What its evaluation holds at most beside the query's bytes, the reply included.
        key: Which prepared head it meets.
    """

    samples: int
    reply_bytes: int
    working_bytes: int
    key: tuple = ()


class Server:
    """A frozen dense head that answers encrypted queries.

    :math:`reply_j = \\sum_i W_{ij}\\, query_i + B_j \\pmod q` on the ciphertexts' residues.

    Args:
        kernel: Finite, shape (d, c), Keras convention, d <= 2048, c <= 1000.
        bias: Finite, shape (c,), or None for zeros.
        replies: "sanitized" refuses queries whose replies cannot be (those under the sets bfv and ckks); "any"
            answers them too. Queries under a sanitising set always get sanitised replies.
        feature_range: The one public range that queries must be encrypted with, a number > 0 or one a column; None
            answers any. A head is prepared for every range that is asked for, which takes seconds if it is large.

    Raises:
        InputError: naming the argument.

    Guarantee: the server, even if curious, learns of the features only the number of samples, their
        width and the quantisation step, while the encryption stands (see
        :mod:`tfprivacy_lab.he.ring.parameters`). BFV's replies decrypt to the exact integer result. A sanitised reply
        tells an honest-but-curious holder of the key the logits and nothing else of the head
        (:mod:`tfprivacy_lab.he.server.sanitize`).

    Not covered: a server that does not use this head, or answers wrongly (nothing proves what it
        computed). Replies that are not sanitised: their c1, unused coefficients and noise depend on the weights, so
        one reply can give them away. A linear head falls to d + 1 chosen samples whatever the encryption, and to
        d / 2 + 1 where a logit has room for two weights: one query may hold them all. What logits tell about training
        data is the matter of differential privacy. Nothing that a client decrypts, under any set, may come back to the
        server: a malicious one learns the secret key from it.
    """

    def __init__(self, kernel, bias=None, replies: str = "any", feature_range=None):
        # Copies: heads are made from them as queries ask, and arrays of the caller's may change meanwhile.
        self._kernel, self._bias = (part.copy() for part in check_head(kernel, bias))
        features = self._kernel.shape[0]
        self._bounds = None if feature_range is None else check_feature_range(feature_range, features)
        self._replies = check_choice("replies", replies, REPLIES)
        self._prepared = PreparedHeads(self._prepare)

    def __repr__(self) -> str:
        return f"Server(features={self._kernel.shape[0]}, classes={self._kernel.shape[1]})"

    def evaluate(
        self, query: bytes, name: str = "query", max_error: float | None = None, prepared: object = None
    ) -> bytes:
        """Answer one query.

        Args:
            query: What :meth:`Client.encrypt <tfprivacy_lab.he.client.head.Client.encrypt>` returned.
            name: What to call it in an error.
            max_error: Refuse if the proved bound on a logit's error, :meth:`.QuantizedHead.error_bound`
                over the whole range, is above; None: never.
            prepared: What :meth:`prepared` gave for this query; None: it is looked up, or made.

        Returns:
            The reply, compressed if the query is, for :meth:`.Client.decrypt`.

        Raises:
            InputError: if the query is damaged, of another kind, width or parameter set, or the head
                could overflow at the query's step.

        Warns:
            PrecisionWarning: if rows of the kernel round to nothing at the query's steps.
        """
        header, body = wire.parse(query, wire.QUERY, name)
        answer = self._answer(header, name)
        self._check_steps(header, name)
        residues, public_key = wire.residues(header, body, name)
        prepared = prepared or self._for_query(header, name)
        if prepared.head.rounded_away:
            warnings.warn(
                f"{prepared.head.rounded_away} of {len(self._kernel)} rows of the kernel round to nothing beside the "
                "others: encrypt with feature_range as one bound a column, or rescale features and kernel; results may "
                "be wrong",
                PrecisionWarning,
                stacklevel=2,
            )
        if max_error is not None:
            check_error_bound(float(prepared.head.error_bound().max()), max_error)
        answer = dataclasses.replace(answer, weight_scale=prepared.head.weight_scale)
        if header.packing == "batched":
            return wire.pack_pieces(answer, (_answer_batched(block, prepared) for block in residues))
        factors = [] if public_key is None else _factors(public_key, prepared)
        return wire.pack_pieces(answer, (_answer_coefficients(sample[0], factors, prepared) for sample in residues))

    def cost(self, start: bytes, length: int, name: str = "query") -> Cost:
        """What a query will take, before it is there.

        Args:
            start: Its first ``messages.HEADER_BYTES`` bytes.
            length: How many it will have.
            name: What to call it in an error.

        Raises:
            InputError: if it could not be answered whatever follows.
        """
        header = wire.parse_header(start, wire.QUERY, name)
        wire.check_length(header, length, name)
        answer = self._answer(header, name)
        if self._bounds is not None:  # that there are steps of columns is known; which they are is at the query's end
            columns = steps_of_range(self._bounds, header.parameters).columns or header.column_steps
            self._check_steps(dataclasses.replace(header, column_steps=header.column_steps and columns), name)
        piece = answer.expanded_bytes // answer.ciphertexts[0]
        working, beside = answer.message_bytes + _SMALL_BYTES, piece
        if header.residue_bits != 64:
            working += header.expanded_bytes + 3 * min(8 * ROW * CHUNK_ROWS, max(header.expanded_bytes, piece))
            beside *= 2
        if header.packing == "batched":
            beside += matmul_scratch_bytes(self._kernel.T.shape, piece // (8 * answer.columns))
        working += max(beside, answer.message_bytes)
        return Cost(header.samples, answer.message_bytes, working, _key(header))

    def key(self, query, name: str = "query") -> tuple:
        """Which prepared head a whole query meets: what its header says, and the steps of its columns at its end.

        Raises:
            InputError: if the header or the steps are of no query.
        """
        header = wire.with_column_steps(wire.parse_header(query, wire.QUERY, name), query, name)
        self._check_steps(header, name)
        return _key(header)

    def is_prepared(self, cost: Cost) -> bool:
        """Whether the head is there in the form that a query of this cost meets, or known to have none."""
        return cost.key in self._prepared

    def prepare(self, cost: Cost) -> None:
        """Make it, so that queries of this cost are answered without delay; a head that has no such form is noted."""
        with contextlib.suppress(InputError):
            self._prepared.get(cost.key)

    def prepared(self, cost: Cost, name: str = "query"):
        """The head in the form that a query of this cost meets, if it is kept at the moment; else None.

        Raises:
            InputError: if it is known to have none.
        """
        try:
            return self._prepared.kept(cost.key)
        except InputError:
            raise self._refusal(cost.key[1], name) from None

    def _answer(self, header: wire.Header, name: str) -> wire.Header:
        """The header of a query's reply, but for the weight scale, if this server answers it."""
        features, classes = self._kernel.shape
        if header.columns != features:
            raise InputError(f"Expected {name} of {features} features, as the head's kernel has, got {header.columns}.")
        parameters = header.parameters
        if self._replies == "sanitized" and not parameters.sanitizes:
            raise InputError(
                f"Expected {name} under a set whose replies are sanitised, as this server asks, got {parameters.name}; "
                "make keys with a sanitized scheme."
            )
        answer = wire.Header(
            wire.REPLY,
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
        wire.check_size(answer, name)
        return answer

    def _check_steps(self, header: wire.Header, name: str) -> None:
        """Refuse a query of another range than the one that this server takes."""
        if self._bounds is None:
            return
        if (header.step_exponent, header.column_steps) != steps_of_range(self._bounds, header.parameters):
            one = f"={float(self._bounds[0])!r}" if (self._bounds == self._bounds[0]).all() else ", one bound a column"
            raise InputError(
                f"Expected {name} of the feature_range that this server takes; encrypt with its feature_range{one}."
            )

    def head_for(self, query: bytes, name: str = "query") -> QuantizedHead:
        """The integer head that answers this query, with its error bound; Raises: as :meth:`evaluate`."""
        header, _ = wire.parse(query, wire.QUERY, name)
        self._answer(header, name)
        self._check_steps(header, name)
        return self._for_query(header, name).head

    def _for_query(self, header: wire.Header, name: str):
        """The head prepared for a query; whoever sent it does not learn the magnitudes that a refusal is about."""
        try:
            return self._prepared.get(_key(header))
        except InputError:
            raise self._refusal(header.step_exponent, name) from None

    @staticmethod
    def _refusal(step_exponent: int, name: str) -> InputError:
        return InputError(
            f"Expected {name} of features in a larger range: at a step of 2**{step_exponent} the head could "
            "overflow; encrypt with a larger feature_range."
        )

    def quantized_head(
        self, scheme: str, step_exponent: int, packing: str = "batched", column_steps: tuple[int, ...] = ()
    ) -> QuantizedHead:
        """The integer head that answers queries of this parameter set, step and packing, with its error bound."""
        return self._prepared.get((scheme, step_exponent, packing, column_steps)).head

    def _prepare(self, scheme: str, step_exponent: int, packing: str, column_steps: tuple[int, ...]):
        """The integer head as its packing wants it."""
        parameters = PARAMETERS[scheme]
        head = QuantizedHead.from_float(self._kernel, self._bias, parameters, step_exponent, packing, column_steps)
        if packing == "batched":
            weights = np.ascontiguousarray(head.kernel.T, dtype=np.float64)
            return _Batched(head, weights, bias_residues(head.bias, parameters))
        prepared = PreparedHead(head)
        return _Coefficient(head, prepared, Sanitizer(prepared) if parameters.sanitizes else None)


def _key(header: wire.Header) -> tuple:
    """Which prepared head a query meets."""
    return header.parameters.name, header.step_exponent, header.packing, header.column_steps


def _factors(public_key: np.ndarray, prepared: _Coefficient) -> list:
    """A client's public key (2, primes, N) as factors, for every prime."""
    return [way.factor(public_key[:, k]) for k, way in enumerate(prepared.prepared.transforms)]


def _answer_batched(block: np.ndarray, prepared: _Batched) -> np.ndarray:
    """A block (d, 2, 1, N) times the head: (c, 2, 1, N)."""
    modulus = prepared.head.parameters.modulus
    result = modular_matmul(prepared.weights, block.reshape(len(block), -1), modulus).reshape(-1, *block.shape[1:])
    add_modular(result[:, 0, 0], prepared.offsets, modulus)
    return result


def _answer_coefficients(ciphertext: np.ndarray, factors: list, prepared: _Coefficient) -> np.ndarray:
    """A sample (2, primes, N) times the head: (products, 2, primes, N)."""
    result = prepared.prepared.products_of(ciphertext)
    if prepared.sanitizer is None:
        prepared.prepared.add_bias(result)
    else:
        prepared.sanitizer.add_to(result, factors)
    return result
