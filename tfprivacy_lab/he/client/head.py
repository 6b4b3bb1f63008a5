"""The client: the only module that holds a secret key. It encrypts features and decrypts logits.

SEAL, through Pyfhel, makes the keys, encrypts and decrypts. Its ciphertexts are, uncompressed, a fixed
prefix and the residues uint64 [2, N]; the prefix is compared at run time, so that another version of the
library is noticed. Bytes from elsewhere reach SEAL only as residues below q behind our own prefix.
"""

from __future__ import annotations

import dataclasses
import secrets

import numpy as np

from tfprivacy_lab import files
from tfprivacy_lab.checks import InputError, check_choice
from tfprivacy_lab.he.client.key_bytes import key_bytes, make_library, split_keys
from tfprivacy_lab.he.messages import wire
from tfprivacy_lab.he.messages.error_bounds import check_error_bound, reply_error_bound
from tfprivacy_lab.he.messages.header import ID_BYTES, PUBLIC_KEY_PREFIX_BYTES
from tfprivacy_lab.he.packing import coefficient
from tfprivacy_lab.he.packing.batched import add_modular, block_count, block_samples, block_slots
from tfprivacy_lab.he.quantization.heads import dequantize_logits
from tfprivacy_lab.he.quantization.steps import Steps, check_features, feature_steps
from tfprivacy_lab.he.ring.ntt import transform
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
        packing = self._packing(packing, samples, columns)
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
        body, size, start = bytearray(header.expanded_bytes), self._parameters.ciphertext_bytes, 0
        pieces = self._blocks(features, steps) if packing == "batched" else self._samples(features, steps)
        for ciphertext in pieces:
            body[start : start + size] = ciphertext
            start += size
        if self._parameters.sanitizes:
            body[start:] = self._public_key().tobytes()
        return wire.pack(header, body)

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
        header, values = self._decrypt_slots(reply, query, name)
        if self.scheme == "ckks":
            values = np.ldexp(values, self._parameters.feature_bits)
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
        header, values = self._decrypt_slots(reply, query, name)
        return values, header.step_exponent, header.weight_scale

    def _scaled(self, features: np.ndarray, steps: Steps) -> np.ndarray:
        """BFV: integers. CKKS: at most 1, which the encoder's scale makes at most 2**feature_bits."""
        exponent = steps.exponents(features.shape[1])
        if self.scheme == "bfv":
            return np.rint(np.ldexp(features, -exponent)).astype(np.int64)
        return np.ldexp(features, -exponent - self._parameters.feature_bits)

    def _encrypt_slots(self, slots: np.ndarray) -> bytes:
        """The residues of one fresh ciphertext."""
        # The library reads the buffer as if it were contiguous, whatever the strides.
        slots = np.ascontiguousarray(slots)
        encode = self._library.encodeInt if self.scheme == "bfv" else self._library.encodeComplex
        data = self._library.encryptPtxt(encode(slots)).to_bytes("none")
        prefix = data[: -self._parameters.ciphertext_bytes]
        if len(prefix) != PUBLIC_KEY_PREFIX_BYTES or (self._prefix and prefix != self._prefix):
            raise RuntimeError(f"SEAL wrote a ciphertext of {len(data)} bytes in another layout: another version?")
        self._prefix = prefix
        return data[len(prefix) :]

    def _packing(self, packing: str, samples: int, columns: int) -> str:
        """The packing asked for, or the one of smaller query, and under ckks of smaller error, by half or more."""
        if packing == "auto":
            pinned, worth = self._parameters, 1.0
            if self.scheme == "ckks":  # bytes that the smaller error of coefficients is worth
                worth = pinned.slot_noise_bound() / pinned.coefficient_noise_bound()
            fewer = 2 * samples <= block_count(samples, pinned) * columns * worth
            return "coefficient" if fewer or self._parameters.sanitizes else "batched"
        return check_choice("packing", packing, self._parameters.packings)

    def _blocks(self, features: np.ndarray, steps: Steps):
        """The ciphertexts of a batched query, one after the other."""
        block = self._parameters.samples_per_block
        for first in range(0, len(features), block):
            for slots in block_slots(self._scaled(features[first : first + block], steps), self._parameters):
                yield self._encrypt_slots(slots)

    def _samples(self, features: np.ndarray, steps: Steps):
        """The ciphertexts of a query in coefficient packing, transformed."""
        if self.scheme == "ckks" and self._parameters.sanitizes:
            yield from self._exact_samples(features, steps)
            return
        slots_of = coefficient.bfv_slots if self.scheme == "bfv" else coefficient.ckks_slots
        for row in self._scaled(features, steps):
            ciphertext = self._encrypt_slots(slots_of(row, self._parameters))
            yield self._transformed(ciphertext, inverse=False).tobytes()

    def _exact_samples(self, features: np.ndarray, steps: Steps):
        """The same with CKKS' integers added to encryptions of zero, past the encoder and its rounding."""
        zeros = np.zeros(self._parameters.poly_modulus_degree // 2, np.complex128)
        for row in np.rint(np.ldexp(features, -steps.exponents(features.shape[1]))):
            residues = self._transformed(self._encrypt_slots(zeros), inverse=False)
            polynomial = coefficient.ckks_residues(row, self._parameters)
            for k, prime in enumerate(self._parameters.coeff_modulus):
                add_modular(residues[0, k], polynomial[k], prime)
            yield residues.tobytes()

    def _transformed(self, ciphertext, inverse: bool) -> np.ndarray:
        """BFV's residues, from coefficients to transforms or back; CKKS' are transforms anyway."""
        shape = (2, len(self._parameters.coeff_modulus), self._parameters.poly_modulus_degree)
        residues = np.array(np.frombuffer(ciphertext, "<u8").reshape(shape))
        if self.scheme == "bfv":
            for k, prime in enumerate(self._parameters.coeff_modulus):
                way = transform(prime, self._parameters.poly_modulus_degree)
                residues[:, k] = (way.inverse if inverse else way.forward)(residues[:, k])
        return residues

    def _public_key(self) -> np.ndarray:
        """(b, a) modulo q, transformed, uint64 (2, primes, N): the key as SEAL made it, without the special prime."""
        residues = np.frombuffer(key_bytes(self._library)[1][PUBLIC_KEY_PREFIX_BYTES:], "<u8")
        shape = (2, len(self._parameters.key_primes), self._parameters.poly_modulus_degree)
        return np.ascontiguousarray(residues.reshape(shape)[:, : len(self._parameters.coeff_modulus)])

    def _ciphertext(self, residues: np.ndarray):
        """The library's ciphertext of residues (2, primes, N) already known to be below q."""
        from tfprivacy_lab.he.ring.seal import PyCtxt

        return PyCtxt(pyfhel=self._library, bytestring=self._prefix + residues.tobytes(), scheme=self.scheme)

    def _decrypt_one(self, residues: np.ndarray) -> np.ndarray:
        """One ciphertext's samples: int64 for BFV, float64 of at most 1 a feature for CKKS, shape (N,)."""
        decrypt = self._library.decryptInt if self.scheme == "bfv" else self._library.decryptComplex
        return block_samples(decrypt(self._ciphertext(residues)), self._parameters)

    def _decrypt_sample(self, ciphertexts: np.ndarray, header) -> np.ndarray:
        """One sample's values in the coefficients of its products, shape (classes,)."""
        bfv, found = self.scheme == "bfv", []
        polynomial_of = coefficient.bfv_polynomial if bfv else coefficient.ckks_polynomial
        decrypt = self._library.decryptInt if bfv else self._library.decryptComplex
        ends = coefficient.logit_positions(header.features, header.columns, self._parameters)
        for ciphertext, positions in zip(ciphertexts, ends, strict=True):
            slots = decrypt(self._ciphertext(self._transformed(ciphertext.tobytes(), inverse=True)))
            found.append(polynomial_of(slots, self._parameters)[positions])
        return np.concatenate(found)

    def _decrypt_slots(self, reply, query, name):
        """A checked reply's header and its samples' values, shape (samples, classes)."""
        header, body = wire.parse(reply, wire.REPLY, name)
        if header.parameters != self._parameters:
            raise InputError(f"Expected {name} in {self.scheme}, as the keys are, got {header.parameters.scheme}.")
        if header.key_id != self._key_id:
            raise InputError(f"Expected {name} to answer a query of these keys ({self!r}), got another key's.")
        if query is not None:
            sent, _ = wire.parse(query, wire.QUERY, "query")
            if any(
                getattr(sent, field) != getattr(header, field)
                for field in ("query_id", "samples", "step_exponent", "packing", "residue_bits")
            ):
                raise InputError(f"Expected {name} to answer this query, got another query's.")
            if header.features != sent.columns:
                raise InputError(f"Expected {name} to {sent.columns} features, got one to {header.features}.")
        residues, _ = wire.residues(header, body, name)
        values = np.empty((header.samples, header.columns), np.int64 if self.scheme == "bfv" else np.float64)
        if header.packing == "coefficient":
            for row, ciphertexts in zip(values, residues, strict=True):
                row[:] = self._decrypt_sample(ciphertexts, header)
            return header, values
        size = self._parameters.samples_per_block
        for block, ciphertexts in enumerate(residues):
            rows = values[block * size : (block + 1) * size]
            for column, ciphertext in enumerate(ciphertexts):
                rows[:, column] = self._decrypt_one(ciphertext)[: len(rows)]
        return header, values

    def _check_library(self) -> bytes:
        """Encrypt and decrypt one known block: the keys are a pair and the layout is as stated."""
        pattern = np.linspace(-1, 1, self._parameters.samples_per_block)[:, np.newaxis]
        slots = block_slots(self._scaled(pattern, Steps(-self._parameters.feature_bits)), self._parameters)[0]
        residues = np.frombuffer(self._encrypt_slots(slots), "<u8").reshape(
            2, len(self._parameters.coeff_modulus), self._parameters.poly_modulus_degree
        )
        values = self._decrypt_one(residues)
        if self.scheme == "bfv":
            values = values / self._parameters.max_feature
        below = all((residues[:, k] < prime).all() for k, prime in enumerate(self._parameters.coeff_modulus))
        if not below or not np.allclose(values, pattern[:, 0], rtol=0, atol=1e-3):
            raise RuntimeError("the keys do not decrypt what they encrypt")
        return self._prefix
