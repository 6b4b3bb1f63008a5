"""What every client of a network is: a key pair for one public plan, that is saved, loaded, and never copied."""

from __future__ import annotations

import secrets

import numpy as np

from tfprivacy_lab import files
from tfprivacy_lab.checks import InputError, check_positive_int
from tfprivacy_lab.he.client.key_bytes import key_bytes, split_keys
from tfprivacy_lab.he.messages import envelopes
from tfprivacy_lab.he.messages.envelopes import Envelope
from tfprivacy_lab.he.ring.seal_context import seal_context

ANY_QUERY = "any"
"""In place of a query: its reply may be to any."""


class KeyHolder:
    """A key pair for the parameters of a public plan.

    Args:
        public: What the server says of its plan; it holds no weights.
    """

    def __init__(self, public):
        if not hasattr(public, "parameters") or not hasattr(public, "input_range"):
            raise InputError(f"Expected public as a public plan, got {type(public).__name__}; give plan.public.")
        self.public, self.key_id = public, secrets.token_bytes(envelopes.ID_BYTES)
        self._plan, self._library = envelopes.plan_digest(public), seal_context(public.parameters)
        self._library.keyGen()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.public.parameters.scheme}, key_id={self.key_id.hex()})"

    def __reduce__(self):
        raise TypeError(f"A {type(self).__name__} holds a secret key and is not pickled or copied; use save and load.")

    def to_bytes(self) -> bytes:
        """The private key file: both keys, **secret**."""
        header = envelopes.Header("private key file", self._plan, self.key_id)
        return envelopes.pack(header, b"".join(key_bytes(self._library)))

    @classmethod
    def from_bytes(cls, data: bytes, public, name: str = "keys"):
        """The client that wrote these bytes, for the plan it was made for.

        Raises:
            InputError: if they are damaged, of another plan, or not a pair of keys.
        """
        header, body = envelopes.parse(data, "private key file", name)
        if header.plan != envelopes.plan_digest(public):
            raise InputError(f"Expected {name} to be for this public plan, got another's; make keys again.")
        client = cls(public)
        client.key_id = header.key_id
        try:
            secret, both = split_keys(bytes(body), key_bytes(client._library), public.parameters)
            client._library = seal_context(public.parameters)
            client._library.from_bytes_secret_key(secret)
            client._library.from_bytes_public_key(both)
            client._check_pair()
        except (ValueError, RuntimeError) as error:
            raise InputError(f"Expected {name} to hold a pair of keys that fit: {error}; make keys again.") from error
        return client

    def save(self, path) -> None:
        """Write the private key file, readable by its owner only, whole or not at all; never over another."""
        files.write_bytes(path, self.to_bytes(), mode=0o600, overwrite=False)

    @classmethod
    def load(cls, path, public):
        """The client whose private key file this is; Raises: as :meth:`from_bytes`."""
        return cls.from_bytes(files.read_bytes(path, "private key file"), public, f"private key file {path}")

    def _seal(self, samples: int, residues: np.ndarray) -> Envelope:
        """A new query."""
        return Envelope.sealed(
            "query", self._plan, self.key_id, secrets.token_bytes(envelopes.ID_BYTES), samples, residues
        )

    def _open(self, reply, query, samples: int | None = None) -> Envelope:
        """A reply to this query of these keys, or to any if that is asked for."""
        if query is None:
            raise InputError(
                "Expected query, the one that the reply should answer, got None; give what encrypt returned, or 'any' "
                "to take a reply to any query of these keys, a replayed one, too."
            )
        reply = envelopes.opened(reply, "reply", self._plan, self.key_id)
        if not (isinstance(query, str) and query == ANY_QUERY):
            sent = envelopes.opened(query, "query", self._plan, self.key_id)
            if (sent.query_id, sent.samples) != (reply.query_id, reply.samples):
                raise InputError("Expected the reply to this query, got another query's.")
        if samples is not None and check_positive_int("samples", samples) != reply.samples:
            raise InputError(f"Expected a reply of {samples} samples, got one of {reply.samples}.")
        return reply

    def _check_pair(self) -> None:
        """Encrypt and decrypt a few numbers."""
        library, numbers = self._library, np.arange(1, 9)
        if self.public.parameters.scheme == "bfv":
            found = library.decryptInt(library.encryptPtxt(library.encodeInt(numbers)))[:8]
        else:
            encoded = library.encodeFrac(numbers.astype(np.float64), scale=2.0**30)
            found = library.decryptFrac(library.encryptPtxt(encoded))[:8]
        if not np.allclose(found, numbers, rtol=0, atol=0.1):
            raise RuntimeError("the keys do not decrypt what they encrypt")
