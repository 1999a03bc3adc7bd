"""Check a server's TLS: whether its certificate is trusted, for which names, and for how long."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import ssl
from typing import TYPE_CHECKING, Any, Final

from resilient_io.text import describe_error

from .steps import CheckResult, note, ok, problem

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

    from .network import Endpoint

_SOON: Final = dt.timedelta(days=14)

# OpenSSL's X509_V_ERR_…
_WRONG_TIME: Final = (9, 10)
_WRONG_NAME: Final = (62, 64)

CLIENT_CERTIFICATE: Final = (
    "Usually the server requires a client certificate: set ssl_certfile=…&ssl_keyfile=…. The "
    "server's log says more."
)


async def check_tls(
    endpoint: Endpoint, context: ssl.SSLContext, *, trust_option: str, plain_scheme: str
) -> CheckResult:
    """Shake hands as a client would, and read the certificate. The caller sets the time limit."""
    try:
        protocol, certificate = await _shake_hands(endpoint, context)
    except ssl.SSLCertVerificationError as error:
        try:
            _, certificate = await _shake_hands(endpoint, _unverified())
        except (OSError, EOFError):
            certificate = None
        return _judge_untrusted(endpoint, error, certificate, trust_option)
    except ssl.SSLError as error:
        return _judge_failed(endpoint, error, plain_scheme)
    except (OSError, EOFError) as error:
        return problem(
            f"{endpoint.text} closed the connection in the handshake ({describe_error(error)})",
            f"The port may not use TLS (then use {plain_scheme}://…), or may require a client "
            f"certificate.",
            hung_up=True,
        )
    found = protocol
    data: dict[str, Any] = {"protocol": protocol}
    if certificate is not None:
        ends = certificate.not_valid_after_utc
        data["not_after"] = ends.isoformat()
        found += f", certificate valid until {ends:%Y-%m-%d}"
        left = ends - dt.datetime.now(dt.UTC)
        if left < _SOON:
            advice = "Renew it now: once it has expired, no new connection is made."
            return note(f"{found} (expires in {max(left.days, 0)} days)", advice, **data)
    if context.verify_mode is ssl.CERT_NONE:
        return note(
            f"{found}, not verified",
            "An attacker on the network can read and change everything: remove the option that "
            "disables the verification, and name the authority to trust.",
            **data,
        )
    return ok(found, **data)


async def uses_tls(endpoint: Endpoint) -> bool:
    """Return whether a server uses TLS, whatever its certificate. The caller sets the limit."""
    try:
        await _shake_hands(endpoint, _unverified())
    except ssl.SSLError as error:
        return "certificate" in str(error).lower()  # it requires a client certificate: over TLS
    except (OSError, EOFError):
        return False
    return True


def no_tls(endpoint: Endpoint, plain_scheme: str) -> CheckResult:
    """Build the result for a port that answers without TLS."""
    return problem(
        f"{endpoint.text} answers, but not over TLS",
        f"Use {plain_scheme}://… for this port, or the port on which the server uses TLS.",
    )


def tls_needed(endpoint: Endpoint, scheme: str, trust_option: str) -> CheckResult:
    """Build the result for a port that answers only over TLS."""
    return problem(
        f"{endpoint.text} uses TLS, but the URL does not",
        f"Use {scheme}://…, with {trust_option}=/path/of/authority.pem for a private authority.",
    )


def _unverified() -> ssl.SSLContext:
    """Return a context that accepts any certificate: nothing secret is sent over it."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


async def _shake_hands(
    endpoint: Endpoint, context: ssl.SSLContext
) -> tuple[str, Certificate | None]:
    """Return the version of TLS, and the server's certificate if it can be read."""
    # An address that took a connection before: the name may have others that do not answer.
    address = next(iter(endpoint.reached), endpoint.host)
    _, writer = await asyncio.open_connection(
        address, endpoint.port, ssl=context, server_hostname=endpoint.host
    )
    try:
        tls: Any = writer.get_extra_info("ssl_object")
        return tls.version() or "TLS", _read_certificate(tls.getpeercert(True))
    finally:
        writer.transport.abort()


def _read_certificate(raw: bytes | None) -> Certificate | None:
    try:
        from cryptography import x509  # noqa: PLC0415 - of the extra `cli`
    except ModuleNotFoundError:
        return None
    return None if raw is None else x509.load_der_x509_certificate(raw)


def _describe(certificate: Certificate) -> str:
    from cryptography import x509  # noqa: PLC0415 - as above

    names: list[str] = []
    with contextlib.suppress(x509.ExtensionNotFound, ValueError):  # none, or only for OpenSSL
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        names += found.get_values_for_type(x509.DNSName)
        names += map(str, found.get_values_for_type(x509.IPAddress))
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return (
        f"; it is for {', '.join(names) or 'no name'}, from {certificate.issuer.rfc4514_string()}, "
        f"valid {begins:%Y-%m-%d %H:%M} to {ends:%Y-%m-%d %H:%M} UTC"
    )


def _judge_untrusted(
    endpoint: Endpoint,
    error: ssl.SSLCertVerificationError,
    certificate: Certificate | None,
    trust_option: str,
) -> CheckResult:
    if error.verify_code in _WRONG_TIME:
        advice = (
            "Check the clock of this machine; if it is right, renew the certificate on the server, "
            "and let the server reload it."
        )
    elif error.verify_code in _WRONG_NAME:
        advice = (
            f"Use one of its names in the URL, or add {endpoint.host} to it as a subjectAltName."
        )
    else:
        advice = (
            f"Name the authority that signed it: {trust_option}=/path/of/authority.pem. If it is a "
            f"public one, the server does not send the intermediate certificates: configure the "
            f"full chain."
        )
    return problem(
        f"the certificate is not trusted: {error.verify_message.rstrip('.')}"
        f"{_describe(certificate) if certificate else ''}",
        advice,
        verify_code=error.verify_code,
    )


def _judge_failed(endpoint: Endpoint, error: ssl.SSLError, plain_scheme: str) -> CheckResult:
    reason = (error.reason or str(error)).lower().replace("_", " ")
    if "wrong version number" in reason or "record layer failure" in reason:
        return no_tls(endpoint, plain_scheme)
    certificate = "certificate" in reason
    return problem(
        f"the TLS handshake with {endpoint.text} failed: {reason}",
        CLIENT_CERTIFICATE if certificate else "Check which TLS versions the server accepts.",
    )
