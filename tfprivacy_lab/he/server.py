"""The server: evaluates a dense head on ciphertexts, with the public bytes of the query and nothing else.

It holds no key, needs no homomorphic library, loads nothing that the client chose but checked residues,
and pins its parameters.
"""

from __future__ import annotations

import functools

import numpy as np

from tfprivacy_lab.checks import InputError
from tfprivacy_lab.he import messages
from tfprivacy_lab.he.packing import add_modular, bias_residues, modular_matmul
from tfprivacy_lab.he.parameters import PARAMETERS
from tfprivacy_lab.he.quantize import QuantizedHead, check_head

_CACHED_HEADS = 4


class Server:
    """A frozen dense head that answers encrypted queries.

    :math:`reply_j = \\sum_i W_{ij}\\, query_i + B_j \\pmod q` on the ciphertexts' residues.

    Args:
        kernel: Finite, shape (d, c), Keras convention, d <= 2048, c <= 1000.
        bias: Finite, shape (c,), or None for zeros.

    Raises:
        InputError: naming the kernel or the bias.

    Guarantee: the server, even if curious, learns of the features only the number of samples, their
        width and the quantisation step, while the encryption stands (see
        :mod:`tfprivacy_lab.he.parameters`). BFV's replies decrypt to the exact integer result.

    Not covered: a server that does not use this head, or answers wrongly (nothing proves what it
        computed). The head's secrecy from the holder of the key: replies are not sanitised, their c1 and
        their noise depend on the weights, so one reply can give the weights away, and a linear head falls
        to about d + 1 chosen queries whatever the encryption. What logits tell about training data is the
        matter of differential privacy. Never let a client's decrypted CKKS values come back to the server
        (Li and Micciancio 2021).
    """

    def __init__(self, kernel, bias=None):
        self._kernel, self._bias = check_head(kernel, bias)
        self._prepared = functools.lru_cache(maxsize=_CACHED_HEADS)(self._prepare)

    def __repr__(self) -> str:
        return f"Server(features={self._kernel.shape[0]}, classes={self._kernel.shape[1]})"

    def evaluate(self, query: bytes, name: str = "query") -> bytes:
        """Answer one query.

        Args:
            query: What :meth:`Client.encrypt <tfprivacy_lab.he.client.Client.encrypt>` returned.
            name: What to call it in an error.

        Returns:
            The reply, for :meth:`Client.decrypt <tfprivacy_lab.he.client.Client.decrypt>`.

        Raises:
            InputError: if the query is damaged, of another kind, width or parameter set, or the head
                could overflow at the query's step.
        """
        header, body = messages.parse(query, messages.QUERY, name)
        features, classes = self._kernel.shape
        if header.columns != features:
            raise InputError(f"Expected {name} of {features} features, as the head's kernel has, got {header.columns}.")
        parameters = header.parameters
        messages.check_size(header.samples, classes, parameters, name)
        residues = messages.residues(header, body, name)
        head, weights, offsets = self._prepared(parameters.scheme, header.step_exponent)
        degree = parameters.poly_modulus_degree
        reply = np.empty((len(residues), classes, 2, degree), dtype="<u8")
        for block, result in zip(residues, reply, strict=True):
            result[:] = modular_matmul(weights, block.reshape(features, -1), parameters.modulus).reshape(result.shape)
            add_modular(result[:, 0], offsets, parameters.modulus)
        answer = messages.Header(
            messages.REPLY,
            parameters,
            header.key_id,
            header.query_id,
            header.samples,
            classes,
            header.step_exponent,
            head.weight_scale,
        )
        return messages.pack(answer, reply)

    def quantized_head(self, scheme: str, step_exponent: int) -> QuantizedHead:
        """The integer head that answers queries of this scheme and step, with its error bound."""
        return self._prepared(scheme, step_exponent)[0]

    def _prepare(self, scheme: str, step_exponent: int):
        """The integer head, its weights as the product wants them, and its bias as residues."""
        parameters = PARAMETERS[scheme]
        head = QuantizedHead.from_float(self._kernel, self._bias, parameters, step_exponent)
        weights = np.ascontiguousarray(head.kernel.T, dtype=np.float64)
        return head, weights, bias_residues(head.bias, parameters)
