"""The client of what is packed into the slots of one ciphertext: it holds the secret key and makes the others."""

from __future__ import annotations

import math

import numpy as np

from tfprivacy_lab.checks import InputError, check_array
from tfprivacy_lab.he.client.inputs import check_inputs
from tfprivacy_lab.he.client.network_keys import KeyHolder
from tfprivacy_lab.he.messages.envelopes import Envelope
from tfprivacy_lab.he.messages.slot_keys import EvaluationKeys
from tfprivacy_lab.he.plans.slots import PublicSlotPlan
from tfprivacy_lab.he.ring.seal_context import PREFIX_BYTES, ciphertext_prefix


class SlotClient(KeyHolder):
    """A key pair for one sample a query.

    Args:
        public: What the server says of its plan; it holds no weights.

    Guarantee: the query hides the sample, also from who holds the evaluation keys, at 128-bit security.

    Not covered: who reads this process's memory; whether the server used the right network; decrypted values that
        are passed on (never to the server: a malicious one reads the secret key from them).
    """

    public: PublicSlotPlan

    def evaluation_keys(self) -> EvaluationKeys:
        """Keys for the rotations that the plan uses, and for relinearisation if it squares; no other; not secret."""
        steps, rotation, relinearisation = self.public.layout.steps, b"", b""
        if steps:  # the library makes keys for every step where it is asked for none
            self._library.rotateKeyGen(rot_steps=list(steps))
            rotation = self._library.to_bytes_rotate_key("none")
        if self.public.relinearises:
            self._library.relinKeyGen()
            relinearisation = self._library.to_bytes_relin_key("none")
        return EvaluationKeys(steps, rotation, relinearisation, self._plan, self.key_id).sealed()

    def encrypt(self, sample) -> Envelope:
        """Encrypt one sample.

        Args:
            sample: Finite real numbers within ``input_range``, of any shape that flattens to (inputs,).

        Returns:
            The query; its residues are uint64, shape (2, primes, N).

        Raises:
            InputError: naming what is wrong with the sample.
        """
        values = check_inputs(check_array("sample", sample)[np.newaxis], self.public)[0]
        slots = np.ascontiguousarray(self.public.layout.pack(values))
        plain = self._library.encodeFrac(slots, scale=math.ldexp(1.0, self.public.input_bits))
        data = self._library.encryptPtxt(plain).to_bytes("none")
        return self._seal(1, np.frombuffer(data[PREFIX_BYTES:], "<u8").reshape(self.public.query_shape))

    def decrypt(self, reply: Envelope, query: Envelope | str) -> np.ndarray:
        """The logits of a reply, float64 (outputs,).

        Args:
            reply: What the server's ``evaluate`` returned: residues uint64 below the primes left, of the plan's
                ``reply_shape``.
            query: The query that it should answer, or "any" for any of these keys: then a replayed reply passes.

        Raises:
            InputError: if the reply is something else, another plan's, key's or query's, or damaged.
        """
        from tfprivacy_lab.he.ring.seal import PyCtxt

        public, reply = self.public, self._open(reply, query, 1).residues
        reply = reply.reshape(public.reply_shape) if reply.size == math.prod(public.reply_shape) else reply
        if reply.dtype != np.uint64 or reply.shape != public.reply_shape:
            found = f"{reply.dtype} of shape {reply.shape}"
            raise InputError(f"Expected reply of dtype uint64 and shape {public.reply_shape}, got {found}.")
        for index, prime in enumerate(public.parameters.primes[: public.reply_shape[2]]):
            if int(reply[:, :, index].max()) >= prime:
                raise InputError(
                    f"Expected residues of reply below their prime {prime}, got {reply[:, :, index].max()}."
                )
        prefix, slots = ciphertext_prefix(public.parameters, level=public.levels), []
        for residues in reply:
            data = prefix + np.ascontiguousarray(residues, "<u8").tobytes()
            slots.append(self._library.decryptFrac(PyCtxt(pyfhel=self._library, bytestring=data, scheme="ckks")))
        return public.layout.logits(np.array(slots)) / public.output_scale


class SingleImageClient(SlotClient):
    """The client of a whole network on one image (:mod:`tfprivacy_lab.he.plans.single_image`)."""


class SlotHeadClient(SlotClient):
    """The client of a head in slots (:mod:`tfprivacy_lab.he.plans.slot_head`)."""
