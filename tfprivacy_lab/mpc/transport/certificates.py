"""Certificates for a group of parties: one authority made for the occasion, one certificate and key a party.

The authority's own key is thrown away when all are signed, so that nobody can join the group later. Each party needs
its own folder and nobody else's: certificate, private key (mode 0600), and the authority's certificate.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
import ssl
import tempfile
from pathlib import Path

from tfprivacy_lab import files
from tfprivacy_lab.checks import InputError, check_positive_int
from tfprivacy_lab.mpc.jobs.protocols import party_names

_NAMES = {"certificate": "certificate.pem", "private_key": "private_key.pem", "authority": "authority.pem"}


@dataclasses.dataclass(frozen=True)
class Credentials:
    """Paths of a party's certificate, private key and its group's authority."""

    certificate: str
    private_key: str
    authority: str

    @classmethod
    def of_folder(cls, folder) -> Credentials:
        """What :func:`make_certificates` wrote for one party.

        Raises:
            InputError: naming the file that is missing.
        """
        paths = {name: Path(folder) / file for name, file in _NAMES.items()}
        for path in paths.values():
            if not path.is_file():
                raise InputError(f"No {path.name} in {folder}; 'mpc certificates' makes a folder a party.")
        return cls(**{name: str(path) for name, path in paths.items()})

    @classmethod
    @contextlib.contextmanager
    def of_pems(cls, pems: dict[str, bytes]):
        """Paths of a party's own as :func:`make_pems` returned it, in memory, for as long as the block lasts."""
        with contextlib.ExitStack() as stack:
            paths = {}
            for name in _NAMES:
                # The library reads files only; these have no name, and are gone with the process.
                stream = stack.enter_context(_nameless())
                stream.write(pems[name])
                stream.flush()
                paths[name] = f"/dev/fd/{stream.fileno()}"
            yield cls(**paths)

    def context(self, *, server: bool) -> ssl.SSLContext:
        """TLS 1.3 in which both sides must show a certificate of the authority.

        Raises:
            InputError: if the files do not fit together.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_cert_chain(self.certificate, self.private_key)
            context.load_verify_locations(self.authority)
        except (ssl.SSLError, OSError) as error:
            raise InputError(f"Cannot use {self.certificate} with its key and authority: {error}.") from error
        return context

    def loaded(self) -> LoadedCredentials:
        """The files' contents, ready for connections; the files are not read again.

        Raises:
            InputError: if the files do not fit together.
        """
        return LoadedCredentials(self.context(server=True), self.context(server=False))


@dataclasses.dataclass(frozen=True)
class LoadedCredentials:
    """Both ends of a party's connections: ``server`` answers, ``client`` calls."""

    server: ssl.SSLContext
    client: ssl.SSLContext


def make_certificates(parties: tuple[str, ...], folder, *, days: int = 30) -> list[str]:
    """Write a folder a party under ``folder``.

    Args:
        parties: Names; the certificate says whose it is, and the others check it.
        folder: Where; the folders must not be there yet.
        days: How long the certificates hold.

    Returns:
        The folders.

    Raises:
        InputError: naming the argument or the folder.

    Guarantee: ECDSA on P-256; keys come from the operating system's generator. Not covered: a party that gives its
    key away.
    """
    pems = make_pems(parties, days=days)
    folders = [Path(folder) / name for name in parties]
    for one in folders:
        if one.exists():
            raise InputError(f"Cannot write {one}: it is there already; delete it or name another folder.")
    for name, one in zip(parties, folders, strict=True):
        for kind, pem in pems[name].items():
            files.write_bytes(one / _NAMES[kind], pem, 0o600 if kind == "private_key" else 0o644)
    return [str(one) for one in folders]


def make_pems(parties: tuple[str, ...], *, days: int = 30) -> dict[str, dict[str, bytes]]:
    """What :func:`make_certificates` writes, for each party: ``certificate``, ``private_key`` and ``authority``.

    Raises:
        InputError: naming the argument.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

    days = check_positive_int("days", days, at_most=3650)
    if not party_names(parties):
        raise InputError("Expected parties to be different names, got none.")
    authority_key = ec.generate_private_key(ec.SECP256R1())
    authority_name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "tfprivacy_lab group")])
    authority = _signed(authority_name, authority_name, authority_key, authority_key, days, None)
    made = {}
    for name in parties:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        certificate = _signed(subject, authority_name, key, authority_key, days, name)
        made[name] = {"certificate": _pem(certificate), "private_key": _key_pem(key), "authority": _pem(authority)}
    return made


def _nameless():
    """A file in memory where the system has such, else one without a name in the folder for temporary files."""
    if hasattr(os, "memfd_create"):
        return open(os.memfd_create("pem"), "wb")
    return tempfile.TemporaryFile()


def _signed(subject, issuer, key, authority_key, days, name):
    """A certificate: the authority's own if ``name`` is None, else that of a party."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes

    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        # Clocks of different organisations differ.
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=name is None, path_length=0 if name is None else None), critical=True)
    )
    if name is not None:
        usage = [x509.ExtendedKeyUsageOID.SERVER_AUTH, x509.ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        builder = builder.add_extension(x509.ExtendedKeyUsage(usage), critical=False)
    return builder.sign(authority_key, hashes.SHA256())


def _pem(certificate) -> bytes:
    from cryptography.hazmat.primitives import serialization

    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key) -> bytes:
    from cryptography.hazmat.primitives import serialization

    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
