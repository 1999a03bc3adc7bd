"""Certificates for a server under test, signed by an authority made for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Certificates:
    """The files of a server's certificate.

    Attributes:
        authority: Certificate of the authority, which clients have to trust (`ssl_ca_certs=`).
        certificate: Certificate of the server.
        key: Private key of the server.
    """

    authority: Path
    certificate: Path
    key: Path


def make_certificates(
    folder: Path, *, hosts: tuple[str, ...] = ("localhost", "127.0.0.1")
) -> Certificates:
    """Create an authority and a server certificate signed by it.

    Args:
        folder: Folder for the files.
        hosts: Host names and addresses for which the certificate is valid.

    Raises:
        ModuleNotFoundError: trustme is missing; install `resilient-io[testing]`.
    """
    try:
        import trustme  # noqa: PLC0415 - needed only for TLS
    except ModuleNotFoundError as error:
        error.add_note("certificates need trustme: run `pip install 'resilient-io[testing]'`")
        raise
    authority = trustme.CA()
    server = authority.issue_cert(*hosts)
    files = Certificates(folder / "authority.pem", folder / "server.pem", folder / "server.key")
    authority.cert_pem.write_to_path(files.authority)
    server.private_key_pem.write_to_path(files.key)
    for number, blob in enumerate(server.cert_chain_pems):
        blob.write_to_path(files.certificate, append=number > 0)
    return files
