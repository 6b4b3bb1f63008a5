"""The client of batched networks: it holds the secret key, encrypts inputs and decrypts logits.

CKKS puts one sample in a real slot, so a block has N/2; its encoder multiplies by the plan's input scale. BFV puts
one sample in each of N slots, rounded to integers. Replies hold three or five polynomials
:math:`c_0 + c_1 s + c_2 s^2 + \\ldots`: SEAL decrypts any number, by the powers of the secret key.
"""

from __future__ import annotations

import math

import numpy as np

from tfprivacy_lab.checks import InputError, check_positive_int
from tfprivacy_lab.he.client.inputs import check_inputs, quantise
from tfprivacy_lab.he.client.network_keys import KeyHolder
from tfprivacy_lab.he.messages.envelopes import Envelope
from tfprivacy_lab.he.messages.residues import check_residues
from tfprivacy_lab.he.plans.network import PublicPlan
from tfprivacy_lab.he.ring.seal_context import PREFIX_BYTES, ciphertext_prefix


class NetworkClient(KeyHolder):
    """A key pair for the parameters of a public plan.

    Args:
        public: What the server says of its plan; it holds no weights.

    Guarantee: what ``encrypt`` returns hides the inputs from anyone without this object's key, at 128-bit security,
        but for the number of samples.

    Not covered: who reads this process's memory; whether the server used the right network; what a decrypted value
        tells once it is passed on (never to the server: a malicious one reads the secret key from it).
    """

    public: PublicPlan

    def encrypt(self, inputs) -> Envelope:
        """Encrypt a batch.

        Args:
            inputs: Finite real numbers within the plan's ``input_range``, shape (samples, ...), flattening to
                (samples, inputs).

        Returns:
            The query; its residues are of the parameters' ``residue_dtype``, shape (blocks, inputs, 2, primes, N).

        Raises:
            InputError: naming what is wrong with the inputs.
        """
        values = check_inputs(inputs, self.public)
        query = np.empty(self.public.query_shape(len(values)), self.public.parameters.residue_dtype)
        size = self.public.parameters.samples_per_block
        for block, first in zip(query, range(0, len(values), size), strict=True):
            for target, column in zip(block, values[first : first + size].T, strict=True):
                target[:] = self._encrypt_slots(column)
        return self._seal(len(values), query)

    def decrypt(self, reply: Envelope, query: Envelope | str, samples: int | None = None) -> np.ndarray:
        """The logits in a reply.

        Args:
            reply: What :meth:`~tfprivacy_lab.he.server.network.NetworkServer.evaluate` returned.
            query: The query that it should answer, or "any" for any of these keys: then a replayed reply passes.
            samples: How many samples it should hold, or None.

        Returns:
            float64, shape (samples, outputs).

        Raises:
            InputError: if the reply is another plan's, key's or query's, damaged, or of another number of samples.
        """
        return self._decrypt(reply, query, samples) / self.public.output_scale

    def decrypt_integers(self, reply: Envelope, query: Envelope | str, samples: int | None = None) -> np.ndarray:
        """BFV's exact integers, int64 (samples, outputs); logits are these over ``output_scale``.

        Raises:
            InputError: as :meth:`decrypt`; also for CKKS, which has no exact integers.
        """
        if self.public.parameters.scheme != "bfv":
            raise InputError("Expected a bfv client for exact integers, got scheme='ckks'; use decrypt.")
        return self._decrypt(reply, query, samples)

    def _encrypt_slots(self, values: np.ndarray) -> np.ndarray:
        """One fresh ciphertext's residues, (2, primes, N)."""
        parameters, library = self.public.parameters, self._library
        slots = np.zeros(parameters.samples_per_block)
        slots[: len(values)] = values
        if parameters.scheme == "bfv":
            plain = library.encodeInt(quantise(slots, self.public))
        else:
            plain = library.encodeFrac(slots, scale=math.ldexp(1.0, self.public.input_bits))
        data = library.encryptPtxt(plain).to_bytes("none")
        return np.frombuffer(data[PREFIX_BYTES:], "<u8").reshape(self.public.query_shape(1)[2:])

    def _decrypt(self, reply, query, samples: int | None) -> np.ndarray:
        """Slots of a checked reply as (samples, outputs)."""
        from tfprivacy_lab.he.ring.seal import PyCtxt

        envelope, public = self._open(reply, query, samples), self.public
        reply, samples = envelope.residues, check_positive_int("samples", envelope.samples)
        check_residues("reply", reply, public.parameters, public.reply_shape(samples))
        if len(reply) != public.blocks(samples):
            raise InputError(
                f"Expected a reply of {public.blocks(samples)} blocks for {samples} samples, got {len(reply)}."
            )
        scheme, size = public.parameters.scheme, public.parameters.samples_per_block
        prefix = ciphertext_prefix(public.parameters, public.reply_size)
        decrypt = self._library.decryptInt if scheme == "bfv" else self._library.decryptFrac
        values = np.empty((samples, public.outputs), np.int64 if scheme == "bfv" else np.float64)
        for block, ciphertexts in enumerate(reply):
            rows = values[block * size : (block + 1) * size]
            for column, residues in enumerate(ciphertexts):
                data = prefix + residues.astype("<u8").tobytes()
                ciphertext = PyCtxt(pyfhel=self._library, bytestring=data, scheme=scheme)
                rows[:, column] = decrypt(ciphertext)[: len(rows)]
        return values
