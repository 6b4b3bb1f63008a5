"""The client: the only module that holds a secret key. It encrypts features and decrypts logits.

SEAL, through Pyfhel, makes the keys, encrypts and decrypts. Its ciphertexts are, uncompressed, a fixed
prefix and the residues uint64 [2, N]; the prefix is compared at run time, so that another version of the
library is noticed. Bytes from elsewhere reach SEAL only as residues below q behind our own prefix.
"""

from __future__ import annotations

import dataclasses
import itertools
import secrets

import numpy as np

from tfprivacy_lab import files
from tfprivacy_lab.checks import InputError, check_choice
from tfprivacy_lab.he.client.key_bytes import key_bytes, make_library, split_keys
from tfprivacy_lab.he.messages import wire
from tfprivacy_lab.he.messages.error_bounds import check_error_bound, reply_error_bound
from tfprivacy_lab.he.messages.header import ID_BYTES, PUBLIC_KEY_PREFIX_BYTES
from tfprivacy_lab.he.packing.codecs import BatchedCodec, choose_packing, codec_of
from tfprivacy_lab.he.quantization.heads import dequantize_logits
from tfprivacy_lab.he.quantization.steps import Steps, check_features, feature_steps
from tfprivacy_lab.he.ring.parameters import PARAMETERS, Parameters


class Client:
    """A key pair, and what it encrypts and decrypts. Make one with ``generate``, ``load`` or ``from_bytes``.

    Guarantee: what ``encrypt`` returns hides the features from anyone without the key file, at 128-bit
        security (:mod:`tfprivacy_lab.he.ring.parameters`), but for the number of samples, their width, and the
        quantisation step: with ``feature_range`` a public constant, without it the order of magnitude of
        the batch's largest feature.

    Not covered: who reads the key file or this process's memory; whether the server used the right head;
        what a decrypted value tells once it is passed on. Never to the server, under any scheme: a
        malicious one makes a reply whose decryption, label or effect tells it the secret key.
    """

    def __init__(self, parameters: Parameters, key_id: bytes, library):
        self._parameters, self._key_id, self._library = parameters, key_id, library
        self._prefix = b""
        self._prefix = self._check_library()

    def __repr__(self) -> str:
        return f"Client(scheme={self.scheme!r}, key_id={self._key_id.hex()})"

    def __reduce__(self):
        raise TypeError("A Client holds a secret key and is not pickled or copied; use save and load.")

    @property
    def scheme(self) -> str:
        """``"bfv"`` or ``"ckks"``."""
        return self._parameters.scheme

    @property
    def parameters(self) -> Parameters:
        """The parameter set of the keys."""
        return self._parameters

    @classmethod
    def generate(cls, scheme: str) -> Client:
        """A client with a new key pair.

        Args:
            scheme: ``"bfv"`` (exact integers) or ``"ckks"`` (approximate, finer); with ``"-sanitized"`` behind it,
                larger keys and messages for replies that tell nothing of the head but the logits.

        Raises:
            InputError: if the scheme is another.
        """
        parameters = PARAMETERS[check_choice("scheme", scheme, PARAMETERS)]
        library = make_library(parameters)
        library.keyGen()
        return cls(parameters, secrets.token_bytes(ID_BYTES), library)

    def to_bytes(self) -> bytes:
        """The private key file: both keys, **secret**."""
        body = b"".join(key_bytes(self._library))
        header = wire.Header(wire.KEY, self._parameters, self._key_id)
        if len(body) != header.body_bytes:
            raise RuntimeError(f"SEAL wrote keys of {len(body)} bytes, not {header.body_bytes}: another version?")
        return wire.pack(header, body)

    @classmethod
    def from_bytes(cls, data: bytes, name: str = "keys") -> Client:
        """The client that wrote these bytes.

        Args:
            data: What :meth:`to_bytes` returned.
            name: What to call it in an error.

        Raises:
            InputError: if they are damaged, no private key file, or not a pair of keys.
        """
        header, body = wire.parse(data, wire.KEY, name)
        parameters, library = header.parameters, make_library(header.parameters)
        template = make_library(parameters)
        template.keyGen()
        try:
            secret, public = split_keys(bytes(body), key_bytes(template), parameters)
            library.from_bytes_secret_key(secret)
            library.from_bytes_public_key(public)
            return cls(parameters, header.key_id, library)
        except (ValueError, RuntimeError) as error:
            raise InputError(f"Expected {name} to hold a pair of keys that fit: {error}; make keys again.") from error

    def save(self, path) -> None:
        """Write the private key file, readable by its owner only, whole or not at all.

        Raises:
            InputError: if the file is there already: without its key, what it encrypted is lost.
        """
        files.write_bytes(path, self.to_bytes(), mode=0o600, overwrite=False)

    @classmethod
    def load(cls, path) -> Client:
        """The client whose private key file this is.

        Raises:
            InputError: naming the file.
        """
        return cls.from_bytes(files.read_bytes(path, "private key file"), f"private key file {path}")

    def encrypt(self, features, feature_range=None, packing: str = "auto", compress: bool = False) -> bytes:
        """Encrypt a batch of feature vectors.

        Args:
            features: Finite real numbers, shape (samples, d), d <= 2048, any layout.
            feature_range: A public bound on all magnitudes (1.0 for unit-normalised features), or one a column, for
                columns of unlike size: then the query's steps tell nothing about these features. None takes the
                batch's largest.
            packing: "coefficient", a ciphertext a sample; "batched", a ciphertext a feature and 2,048 samples; or
                "auto", for bfv coefficient for up to half as many samples as features: a query is then half the size
                or less; for ckks, whose noise in slots is larger, up to as many times more. Replies of many classes
                count too: :func:`tfprivacy_lab.he.choice.head.choose` weighs them.
            compress: Leave out the zero bits of residues, and have the server do so in its reply: a sixth fewer bytes,
                three tenths under a sanitising set, for some time (:mod:`tfprivacy_lab.he.messages.compression`).

        Returns:
            The query.

        Raises:
            InputError: naming what is wrong with the features; without ``feature_range`` also where the largest
                magnitude leaves too little of other columns or rows (:func:`.feature_steps`).

        Warns:
            PrecisionWarning: where the range leaves some column or row too few steps, and encryption goes on.
        """
        features = check_features(features)
        samples, columns = features.shape
        packing = choose_packing(packing, samples, columns, self._parameters)
        header = wire.Header(
            wire.QUERY,
            self._parameters,
            self._key_id,
            secrets.token_bytes(ID_BYTES),
            samples,
            columns,
            packing=packing,
            residue_bits=self._parameters.residue_bits if compress else 64,
        )
        wire.check_size(header, "features")
        steps = feature_steps(features, self._parameters, feature_range, packing)
        header = dataclasses.replace(header, step_exponent=steps.exponent, column_steps=steps.columns)
        codec = codec_of(packing, self._parameters)
        plaintexts = codec.encode(features, steps)
        ciphertexts = (codec.sent(self._encrypt_slots(plain.slots), plain) for plain in plaintexts)
        public_key = [self._public_key()] if self._parameters.sanitizes else []
        return wire.pack_pieces(header, itertools.chain(ciphertexts, public_key))

    def decrypt(
        self, reply: bytes, query: bytes | None = None, name: str = "reply", max_error: float | None = None
    ) -> np.ndarray:
        """The logits in a reply.

        Args:
            reply: What :meth:`Server.evaluate <tfprivacy_lab.he.server.head.Server.evaluate>` returned.
            query: The query it should answer, to be checked, or None.
            name: What to call the reply in an error.
            max_error: Refuse if the bound on a logit's error that follows from the reply
                (:func:`~tfprivacy_lab.he.messages.error_bounds.reply_error_bound`) is above; None: never.

        Returns:
            float64, shape (samples, classes).

        Raises:
            InputError: if the reply is damaged, for another key or query, or not finite as float64.
        """
        if max_error is not None:
            check_error_bound(self.error_bound(reply, name), max_error)
        header, values = self._decode(reply, query, name)
        with np.errstate(over="ignore"):
            logits = dequantize_logits(values, header.step_exponent, header.weight_scale)
        if not np.isfinite(logits).all():
            raise InputError(f"Expected the logits of {name} to be finite in float64; rescale features or head.")
        return logits

    def error_bound(self, reply: bytes, name: str = "reply") -> float:
        """Bound on the error of any logit in a reply, whatever the head, by what the reply says.

        Args, Raises: as :meth:`decrypt`.
        """
        return reply_error_bound(wire.parse(reply, wire.REPLY, name)[0])

    def decrypt_integers(self, reply: bytes, query: bytes | None = None, name: str = "reply"):
        """BFV's exact integers: ``(integers, step_exponent, weight_scale)``, logits ``Y 2**e / s``.

        Args, Raises: as :meth:`decrypt`; also InputError for CKKS, which has no exact integers.
        """
        if self.scheme != "bfv":
            raise InputError(f"Expected a bfv client for exact integers, got scheme={self.scheme!r}; use decrypt.")
        header, values = self._decode(reply, query, name)
        return values, header.step_exponent, header.weight_scale

    def _decode(self, reply, query, name):
        """A checked reply's header and its logits, counted in steps, shape (samples, classes)."""
        header, body = wire.parse(reply, wire.REPLY, name)
        self._check_answers(header, query, name)
        ciphertexts, _ = wire.residues(header, body, name)
        codec = codec_of(header.packing, self._parameters)
        plaintexts = ((self._decrypt_slots(codec.received(one)) for one in row) for row in ciphertexts)
        return header, codec.decode(plaintexts, header.samples, header.features, header.columns)

    def _check_answers(self, header: wire.Header, query, name: str) -> None:
        """Refuse a reply of other keys, or to another query if there is one."""
        if header.parameters != self._parameters:
            made, wanted = header.parameters.name, self._parameters.name
            raise InputError(f"Expected {name} under the set {wanted}, as the keys are, got {made}.")
        if header.key_id != self._key_id:
            raise InputError(f"Expected {name} to answer a query of these keys ({self!r}), got another key's.")
        if query is None:
            return
        sent, _ = wire.parse(query, wire.QUERY, "query")
        if any(
            getattr(sent, field) != getattr(header, field)
            for field in ("query_id", "samples", "step_exponent", "packing", "residue_bits")
        ):
            raise InputError(f"Expected {name} to answer this query, got another query's.")
        if header.features != sent.columns:
            raise InputError(f"Expected {name} to {sent.columns} features, got one to {header.features}.")

    def _encrypt_slots(self, slots: np.ndarray) -> np.ndarray:
        """The residues of one fresh ciphertext, uint64 (2, primes, N), read-only."""
        # The library reads the buffer as if it were contiguous, whatever the strides.
        slots = np.ascontiguousarray(slots)
        encode = self._library.encodeInt if self.scheme == "bfv" else self._library.encodeComplex
        data = self._library.encryptPtxt(encode(slots)).to_bytes("none")
        prefix = data[: -self._parameters.ciphertext_bytes]
        if len(prefix) != PUBLIC_KEY_PREFIX_BYTES or (self._prefix and prefix != self._prefix):
            raise RuntimeError(f"SEAL wrote a ciphertext of {len(data)} bytes in another layout: another version?")
        self._prefix = prefix
        return self._residues(data[len(prefix) :], self._parameters.coeff_modulus)

    def _decrypt_slots(self, residues: np.ndarray) -> np.ndarray:
        """One ciphertext's slots: int64 (N,) for BFV, complex128 (N/2,) for CKKS."""
        decrypt = self._library.decryptInt if self.scheme == "bfv" else self._library.decryptComplex
        return decrypt(self._ciphertext(residues))

    def _ciphertext(self, residues: np.ndarray):
        """The library's ciphertext of residues (2, primes, N) already known to be below q."""
        from tfprivacy_lab.he.ring.seal import PyCtxt

        return PyCtxt(pyfhel=self._library, bytestring=self._prefix + residues.tobytes(), scheme=self.scheme)

    def _public_key(self) -> np.ndarray:
        """(b, a) modulo q, transformed, uint64 (2, primes, N): the key as SEAL made it, without the special prime."""
        residues = self._residues(key_bytes(self._library)[1][PUBLIC_KEY_PREFIX_BYTES:], self._parameters.key_primes)
        return np.ascontiguousarray(residues[:, : len(self._parameters.coeff_modulus)])

    def _residues(self, data: bytes, primes: tuple[int, ...]) -> np.ndarray:
        """Two polynomials' residues in the library's bytes, uint64 (2, primes, N)."""
        return np.frombuffer(data, "<u8").reshape(2, len(primes), self._parameters.poly_modulus_degree)

    def _check_library(self) -> bytes:
        """Encrypt and decrypt one known block: the keys are a pair and the layout is as stated."""
        codec = BatchedCodec(self._parameters)
        pattern = np.linspace(-1, 1, self._parameters.samples_per_block)[:, np.newaxis]
        (plaintext,) = codec.encode(pattern, Steps(-self._parameters.feature_bits))
        residues = self._encrypt_slots(plaintext.slots)
        values = codec.decode([[self._decrypt_slots(residues)]], len(pattern), 1, 1) / self._parameters.max_feature
        below = all((residues[:, k] < prime).all() for k, prime in enumerate(self._parameters.coeff_modulus))
        if not below or not np.allclose(values, pattern, rtol=0, atol=1e-3):
            raise RuntimeError("the keys do not decrypt what they encrypt")
        return self._prefix
