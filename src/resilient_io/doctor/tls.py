"""Check a server's TLS: whether its certificate is trusted, for which names, and for how long."""

from __future__ import annotations

import asyncio
import datetime as dt
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from resilient_io.text import describe_error

from .steps import CheckResult, note, ok, problem

if TYPE_CHECKING:
    from .network import Endpoint

_SOON: Final = dt.timedelta(days=14)
_NAMED: Final = 4

# OpenSSL's X509_V_ERR_…
_NOT_YET_VALID: Final = 9
_EXPIRED: Final = 10
_SELF_SIGNED: Final = 18
_UNKNOWN_ISSUER: Final = (19, 20, 21)
_WRONG_NAME: Final = (62, 64)


@dataclass(frozen=True, slots=True)
class _Certificate:
    """The fields of a server's certificate that are shown."""

    names: tuple[str, ...]
    issuer: str
    begins: dt.datetime
    ends: dt.datetime

    def as_data(self) -> dict[str, Any]:
        return {
            "names": list(self.names),
            "issuer": self.issuer,
            "not_before": self.begins.isoformat(),
            "not_after": self.ends.isoformat(),
        }

    @property
    def named(self) -> str:
        more = len(self.names) - _NAMED
        shown = ", ".join(self.names[:_NAMED]) or "no name"
        return f"{shown} and {more} more" if more > 0 else shown


@dataclass(frozen=True, slots=True)
class _Handshake:
    protocol: str
    cipher: str
    certificate: _Certificate | None


async def check_tls(
    endpoint: Endpoint, context: ssl.SSLContext, *, trust_option: str, plain_scheme: str
) -> CheckResult:
    """Shake hands as a client would, and read the certificate. The caller sets the time limit.

    Args:
        endpoint: The server.
        context: What the client would use.
        trust_option: The URL option that names the authorities to trust.
        plain_scheme: The scheme of URLs without TLS.
    """
    try:
        handshake = await _shake_hands(endpoint, context)
    except ssl.SSLCertVerificationError as error:
        certificate = await _read_untrusted(endpoint)
        return _judge_untrusted(endpoint, error, certificate, trust_option)
    except ssl.SSLError as error:
        return _judge_failed(endpoint, error, plain_scheme)
    except (ConnectionError, EOFError) as error:
        return problem(
            f"{endpoint.text} closed the connection in the handshake ({describe_error(error)})",
            f"The port may not use TLS (then use {plain_scheme}://…), or may require a client "
            f"certificate.",
            hung_up=True,
        )
    except OSError as error:
        return problem(
            f"no TLS with {endpoint.text}: {describe_error(error)}", "Check the TCP step again."
        )
    return _judge_trusted(handshake, verified=context.verify_mode is not ssl.CERT_NONE)


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
    """Return the problem that a server answers without TLS only."""
    return problem(
        f"{endpoint.text} answers, but not over TLS",
        f"Use {plain_scheme}://…, or the port that uses TLS.",
    )


def _unverified() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


async def _shake_hands(endpoint: Endpoint, context: ssl.SSLContext) -> _Handshake:
    # An address that took a connection before: the name may have others that do not answer.
    address = next(iter(endpoint.reached), endpoint.host)
    _, writer = await asyncio.open_connection(
        address, endpoint.port, ssl=context, server_hostname=endpoint.host
    )
    try:
        tls: Any = writer.get_extra_info("ssl_object")
        cipher = (tls.cipher() or ("?",))[0]
        return _Handshake(tls.version() or "TLS", cipher, _certificate_of(tls))
    finally:
        writer.transport.abort()


async def _read_untrusted(endpoint: Endpoint) -> _Certificate | None:
    try:
        return (await _shake_hands(endpoint, _unverified())).certificate
    except (OSError, EOFError):
        return None


def _certificate_of(tls: Any) -> _Certificate | None:
    raw = tls.getpeercert(True)
    if raw is None:
        return None
    try:
        from cryptography import x509  # noqa: PLC0415 - of the extra `cli`
    except ModuleNotFoundError:
        return _from_dictionary(tls.getpeercert())
    read = x509.load_der_x509_certificate(raw)
    names: list[str] = []
    try:
        alternatives = read.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        names += alternatives.get_values_for_type(x509.DNSName)
        names += map(str, alternatives.get_values_for_type(x509.IPAddress))
    except (x509.ExtensionNotFound, ValueError):
        pass  # there are none, or only OpenSSL can read them
    return _Certificate(
        names=tuple(names),
        issuer=read.issuer.rfc4514_string(),
        begins=read.not_valid_before_utc,
        ends=read.not_valid_after_utc,
    )


def _from_dictionary(fields: dict[str, Any]) -> _Certificate | None:
    """Read what Python itself returns: nothing for a certificate that was not verified."""
    if not fields:
        return None
    issuer = ",".join(f"{key}={value}" for part in fields.get("issuer", ()) for key, value in part)
    begins, ends = (
        dt.datetime.fromtimestamp(ssl.cert_time_to_seconds(fields[name]), dt.UTC)
        for name in ("notBefore", "notAfter")
    )
    names = tuple(name for _, name in fields.get("subjectAltName", ()))
    return _Certificate(names=names, issuer=issuer, begins=begins, ends=ends)


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


def _judge_trusted(handshake: _Handshake, *, verified: bool) -> CheckResult:
    certificate = handshake.certificate
    data = {"protocol": handshake.protocol, "cipher": handshake.cipher}
    found = f"{handshake.protocol}, {handshake.cipher}"
    if certificate is not None:
        data |= certificate.as_data()
        left = certificate.ends - _now()
        found += f", certificate valid until {certificate.ends:%Y-%m-%d}"
        if left < _SOON:
            when = f"in {left.days} days" if left.days else "within a day"
            expires = f"expires {when}"
            if left < dt.timedelta():
                expires = f"expired on {certificate.ends:%Y-%m-%d}"
            return note(
                f"{handshake.protocol}; the certificate {expires}",
                "Renew it now: once it has expired, no new connection is made.",
                **data,
            )
    if not verified:
        return note(
            f"{found}, not verified",
            "An attacker on the network can read and change everything: verify certificates "
            "(remove the option that disables it) and name the authority to trust.",
            **data,
        )
    return ok(found, **data)


def _judge_untrusted(
    endpoint: Endpoint,
    error: ssl.SSLCertVerificationError,
    certificate: _Certificate | None,
    trust_option: str,
) -> CheckResult:
    code = error.verify_code
    data: dict[str, Any] = {"verify_code": code, "verify_message": error.verify_message}
    if certificate is not None:
        data |= certificate.as_data()
    clock = f"the clock here says {_now():%Y-%m-%d %H:%M} UTC"
    if code == _EXPIRED:
        when = "" if certificate is None else f" on {certificate.ends:%Y-%m-%d %H:%M} UTC"
        found = f"the certificate, or one above it, expired{when} ({clock})"
        advice = "Renew it on the server, and let the server reload it."
    elif code == _NOT_YET_VALID:
        when = "" if certificate is None else f" until {certificate.begins:%Y-%m-%d %H:%M} UTC"
        found = f"the certificate is not valid yet{when}; {clock}"
        advice = "Set the clock of this machine, or wait."
    elif code in _WRONG_NAME:
        names = "other names" if certificate is None else certificate.named
        found = f"the certificate is not for {endpoint.host}, but for {names}"
        advice = (
            f"Use one of its names in the URL, or add {endpoint.host} to the certificate as a "
            f"subjectAltName."
        )
    elif code == _SELF_SIGNED:
        found = "the certificate is self-signed and not trusted here"
        advice = f"Name it as the authority to trust: {trust_option}=/path/of/it.pem."
    elif code in _UNKNOWN_ISSUER:
        by = "" if certificate is None else f" ({certificate.issuer})"
        found = f"the authority that signed the certificate is not known here{by}"
        advice = (
            f"Name it: {trust_option}=/path/of/authority.pem. If it is a public one, the server "
            f"does not send the intermediate certificates: configure the full chain."
        )
    else:
        found = f"the certificate is not trusted: {error.verify_message}"
        advice = f"Renew it, or name the authority to trust: {trust_option}=/path/of/authority.pem."
    return problem(found, advice, **data)


def _judge_failed(endpoint: Endpoint, error: ssl.SSLError, plain_scheme: str) -> CheckResult:
    reason = (error.reason or str(error)).lower().replace("_", " ")
    if "wrong version number" in reason or "record layer failure" in reason:
        return no_tls(endpoint, plain_scheme)
    if "certificate" in reason:
        return problem(
            f"{endpoint.text} rejects the client certificate, or requires one: {reason}",
            "Set a certificate that the server trusts, and its key: ssl_certfile=, ssl_keyfile=.",
            reason=reason,
        )
    return problem(
        f"the TLS handshake with {endpoint.text} failed: {reason}",
        "Check the server's log, and which TLS versions and ciphers it accepts.",
        reason=reason,
    )
