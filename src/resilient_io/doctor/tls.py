"""A server's TLS: whether we trust it, for which names it is good, and for how long."""

from __future__ import annotations

import asyncio
import datetime as dt
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from .looking import Finding, note, ok, problem

if TYPE_CHECKING:
    from .network import Place

__all__ = ["look_at_tls", "no_tls", "speaks_tls"]

_SOON: Final = dt.timedelta(days=14)
_NAMED: Final = 4

# OpenSSL's X509_V_ERR_…
_NOT_YET: Final = 9
_EXPIRED: Final = 10
_SELF_SIGNED: Final = 18
_UNKNOWN_ISSUER: Final = (19, 20, 21)
_WRONG_NAME: Final = (62, 64)


@dataclass(frozen=True, slots=True)
class _Certificate:
    """What matters of a server's certificate."""

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


async def look_at_tls(
    place: Place, context: ssl.SSLContext, *, trust_option: str, plain_scheme: str
) -> Finding:
    """Shake hands as a client would, and read the certificate. Bounded by the caller.

    Args:
        place: Which server.
        context: What the client would use.
        trust_option: How the option is called that names the authorities to trust.
        plain_scheme: The scheme of URLs without TLS.
    """
    try:
        told = await _shake_hands(place, context)
    except ssl.SSLCertVerificationError as error:
        seen = await _read_anyway(place)
        return _judge_refused(place, error, seen, trust_option)
    except ssl.SSLError as error:
        return _judge_failed(place, error, plain_scheme)
    except (ConnectionError, EOFError) as error:
        return problem(
            f"{place.written} hung up in the handshake ({str(error) or type(error).__name__})",
            f"The port may speak no TLS (then write {plain_scheme}://…), or want a certificate of "
            f"ours that it does not get.",
            hung_up=True,
        )
    except OSError as error:
        return problem(f"no TLS with {place.written}: {error}", "Look at the TCP step again.")
    return _judge_good(told, checked=context.verify_mode is not ssl.CERT_NONE)


async def speaks_tls(place: Place) -> bool:
    """Tell whether a server answers in TLS, whatever its certificate. Bounded by the caller."""
    try:
        await _shake_hands(place, _trusting())
    except ssl.SSLError as error:
        return "certificate" in str(error).lower()  # it wants one of ours: in TLS
    except (OSError, EOFError):
        return False
    return True


def _trusting() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


@dataclass(frozen=True, slots=True)
class _Told:
    protocol: str
    cipher: str
    certificate: _Certificate | None


async def _shake_hands(place: Place, context: ssl.SSLContext) -> _Told:
    _, writer = await asyncio.open_connection(
        place.host, place.port, ssl=context, server_hostname=place.host
    )
    try:
        tls: Any = writer.get_extra_info("ssl_object")
        return _Told(tls.version() or "TLS", (tls.cipher() or ("?",))[0], _certificate_of(tls))
    finally:
        writer.transport.abort()


async def _read_anyway(place: Place) -> _Certificate | None:
    """Read the certificate that we do not trust; None where even that fails."""
    try:
        return (await _shake_hands(place, _trusting())).certificate
    except (OSError, EOFError):
        return None


def _certificate_of(tls: Any) -> _Certificate | None:
    raw = tls.getpeercert(True)
    if raw is None:
        return None
    try:
        from cryptography import x509  # noqa: PLC0415 - of the extra `cli`; without it, below
    except ModuleNotFoundError:
        return _from_dictionary(tls.getpeercert())
    read = x509.load_der_x509_certificate(raw)
    names: list[str] = []
    try:
        alternatives = read.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        names += alternatives.get_values_for_type(x509.DNSName)
        names += map(str, alternatives.get_values_for_type(x509.IPAddress))
    except (x509.ExtensionNotFound, ValueError):
        pass  # none, or written as only OpenSSL reads it
    return _Certificate(
        names=tuple(names),
        issuer=read.issuer.rfc4514_string(),
        begins=read.not_valid_before_utc,
        ends=read.not_valid_after_utc,
    )


def _from_dictionary(said: dict[str, Any]) -> _Certificate | None:
    """Read what Python itself tells: nothing of a certificate that was not checked."""
    if not said:
        return None
    issuer = ",".join(f"{key}={value}" for part in said.get("issuer", ()) for key, value in part)
    return _Certificate(
        names=tuple(name for _, name in said.get("subjectAltName", ())),
        issuer=issuer,
        begins=_moment(said["notBefore"]),
        ends=_moment(said["notAfter"]),
    )


def _moment(text: str) -> dt.datetime:
    return dt.datetime.fromtimestamp(ssl.cert_time_to_seconds(text), dt.UTC)


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


def _judge_good(told: _Told, *, checked: bool) -> Finding:
    seen = told.certificate
    data = {"protocol": told.protocol, "cipher": told.cipher}
    found = f"{told.protocol}, {told.cipher}"
    if seen is not None:
        data |= seen.as_data()
        left = seen.ends - _now()
        found += f", certificate good until {seen.ends:%Y-%m-%d}"
        if left < _SOON:
            days = f"in {left.days} days" if left.days else "within a day"
            gone = left < dt.timedelta()
            return note(
                f"{told.protocol}; the certificate {'expired' if gone else 'expires'} "
                f"{f'on {seen.ends:%Y-%m-%d}' if gone else days}",
                "Renew it now: from that moment on no new connection is made.",
                **data,
            )
    if not checked:
        return note(
            f"{found}, not checked",
            "Anybody on the way can read and change what is said: check certificates (drop the "
            "option that turns it off) and name the authority to trust.",
            **data,
        )
    return ok(found, **data)


def _judge_refused(
    place: Place, error: ssl.SSLCertVerificationError, seen: _Certificate | None, trust_option: str
) -> Finding:
    code = error.verify_code
    data: dict[str, Any] = {"verify_code": code, "verify_message": error.verify_message}
    if seen is not None:
        data |= seen.as_data()
    clock = f"our clock says {_now():%Y-%m-%d %H:%M} UTC"
    if code == _EXPIRED:
        when = "" if seen is None else f" on {seen.ends:%Y-%m-%d %H:%M} UTC"
        return problem(
            f"the certificate, or one above it, expired{when} ({clock})",
            "Renew it on the server and let the server read it.",
            **data,
        )
    if code == _NOT_YET:
        when = "" if seen is None else f" (from {seen.begins:%Y-%m-%d %H:%M} UTC on)"
        return problem(
            f"the certificate is not good yet{when}; {clock}",
            "Set the clock of this machine, or wait.",
            **data,
        )
    if code in _WRONG_NAME:
        good = "other names" if seen is None else _some(seen.names) or "no name at all"
        return problem(
            f"the certificate is not for {place.host}, but for {good}",
            f"Write one of its names into the URL, or have {place.host} put into the certificate "
            f"(as a subjectAltName).",
            **data,
        )
    if code == _SELF_SIGNED:
        return problem(
            "the certificate is signed by itself, and not trusted here",
            f"Name it as the authority to trust: {trust_option}=/path/of/it.pem.",
            **data,
        )
    if code in _UNKNOWN_ISSUER:
        by = "" if seen is None else f" ({seen.issuer})"
        return problem(
            f"the authority that signed the certificate is not known here{by}",
            f"Name it: {trust_option}=/path/of/authority.pem. If it is a public one, the server "
            f"does not send the certificates between: give it the full chain.",
            **data,
        )
    return problem(
        f"the certificate is not trusted: {error.verify_message}",
        f"Renew it, or name the authority to trust: {trust_option}=/path/of/authority.pem.",
        **data,
    )


def _judge_failed(place: Place, error: ssl.SSLError, plain_scheme: str) -> Finding:
    reason = (error.reason or str(error)).lower().replace("_", " ")
    data = {"reason": reason}
    if "wrong version number" in reason or "record layer failure" in reason:
        return no_tls(place, plain_scheme)
    if "certificate" in reason:
        return problem(
            f"{place.written} does not take our certificate: {reason}",
            "Give a certificate that it trusts, and its key (ssl_certfile=, ssl_keyfile=).",
            **data,
        )
    return problem(
        f"the handshake with {place.written} failed: {reason}",
        "Look which versions and ciphers the server takes, and at its log.",
        **data,
    )


def no_tls(place: Place, plain_scheme: str) -> Finding:
    """Find that a server answers in the clear only."""
    return problem(
        f"{place.written} answers, but not in TLS",
        f"Write {plain_scheme}://…, or the port that speaks TLS.",
    )


def _some(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
