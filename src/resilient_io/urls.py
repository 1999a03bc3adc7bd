"""Read the URLs of Kafka clusters, and check those of other servers.

Kafka has no URLs of its own. Nothing here imports a driver.
"""

from __future__ import annotations

import contextlib
import difflib
import re
import ssl
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from resilient_io.errors import ConfigurationError
from resilient_io.text import quote_url

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

KAFKA_SCHEMES: Final = ("kafka", "kafkas")
_KAFKA: Final = (
    "use kafka://[user:password@]host[:port][,host[:port]…], or kafkas://… for TLS, with "
    "?sasl_mechanism=…&ssl_cafile=… if needed"
)
ENCODE: Final = "URL-encode special characters in user and password (@ is %40, / is %2F, [ is %5B)"
_SERVER: Final = re.compile(r"(\[[^\]]+\]|[^:]+)(?::(\d{1,5}))?\Z")
_PORT: Final = 9092
_FILES: Final = ("ssl_cafile", "ssl_certfile", "ssl_keyfile")
_KAFKA_OPTIONS: Final = ("client_id", "sasl_mechanism", "ssl_check_hostname", "ssl_verify", *_FILES)
_MECHANISMS: Final = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
_NO: Final = ("no", "false", "0", "none")


def read_kafka_url(url: str) -> dict[str, Any]:
    """Read the URL of a Kafka cluster into options for the clients of this package and aiokafka's.

    `kafka://[user:password@]host[:port][,host[:port]…]` without TLS, `kafkas://…` with TLS. With a
    user the mechanism is PLAIN, unless `?sasl_mechanism=` is given. Further options: `client_id`,
    `ssl_cafile`, `ssl_certfile`, `ssl_keyfile` (paths), `ssl_check_hostname=no`, `ssl_verify=no`.

    Args:
        url: The URL; special characters in user and password are URL-encoded (`%40`).

    Returns:
        `bootstrap_servers`, and `security_protocol`, `ssl_context`, `sasl_…` as needed.

    Raises:
        ConfigurationError: The URL is wrong. The message quotes it without the password.
    """
    if not isinstance(url, str):
        raise ConfigurationError(f"a Kafka URL must be a str, not {type(url).__name__}: {_KAFKA}")
    with quoting_url(url, of="Kafka"):
        return _read_kafka_url(url)


@contextlib.contextmanager
def quoting_url(url: str, *, of: str) -> Iterator[None]:
    """Add the URL, without what may be a password, to an error about it."""
    try:
        yield
    except ConfigurationError as error:
        raise ConfigurationError(f"invalid {of} URL {quote_url(url)}: {error}") from None


def _read_kafka_url(url: str) -> dict[str, Any]:
    parts = split_url(url, port=False)
    if parts is None:
        raise ConfigurationError(f"a host cannot be parsed: {_KAFKA}; {ENCODE}")
    if parts.scheme not in KAFKA_SCHEMES:
        mistake = "it does not name a Kafka cluster" if "://" in url else "no scheme"
        raise ConfigurationError(f"{mistake}: {_KAFKA}")
    if parts.path not in ("", "/") or parts.fragment:
        raise ConfigurationError(f"unexpected path or fragment; {_KAFKA}; {ENCODE}")
    login, _, servers = parts.netloc.rpartition("@")
    options: dict[str, Any] = {"bootstrap_servers": _servers(servers)}
    given = check_options(parts.query, _KAFKA_OPTIONS, of="Kafka")
    tls = parts.scheme == "kafkas"
    if not tls and (useless := [name for name in given if name.startswith("ssl_")]):
        raise ConfigurationError(f"{useless[0]}= has no effect without TLS: use kafkas://…")
    if tls:
        options["ssl_context"] = _context(given)
    if "client_id" in given:
        options["client_id"] = given["client_id"]
    options |= _login(login, given, tls=tls)
    return options


def split_url(url: str, *, port: bool = True) -> SplitResult | None:
    """Split a URL; return None for an invalid one: the error may quote parts of the password."""
    try:
        parts = urlsplit(url)
        _ = parts.port if port else None
    except ValueError:
        return None
    return parts


def check_options(query: str, accepted: Iterable[str], *, of: str) -> dict[str, str]:
    """Return the options in the query of a URL; raise if one is not accepted."""
    given = dict(parse_qsl(query, keep_blank_values=True))
    accepted = sorted(accepted)
    for name in [each for each in given if each not in accepted]:
        if "@" in query or not name.isidentifier():  # not quoted: a password with a "?" in it
            raise ConfigurationError(f"the query is not name=value; {ENCODE}")
        close = difflib.get_close_matches(name, accepted, n=1)
        if close:
            hint = f"did you mean {close[0]!r}?"
        elif of == "Kafka":
            hint = f"expected one of {', '.join(accepted)}"
        else:
            hint = "expected an option of redis.asyncio.Redis"
        raise ConfigurationError(f"unknown option {name!r}: {hint}")
    return given


def _servers(netloc: str) -> list[str]:
    servers = []
    for server in filter(None, map(str.strip, netloc.split(","))):
        match = _SERVER.match(server)
        port = int(match[2] or _PORT) if match else 0
        if match is None or not 0 < port < 1 << 16:
            # Not quoted: it may be a part of a password.
            raise ConfigurationError(
                f"the port is not a number from 1 to 65535: {_KAFKA}; {ENCODE}"
            )
        servers.append(f"{match[1]}:{port}")
    if not servers:
        raise ConfigurationError(f"it has no server: {_KAFKA}")
    return servers


def _login(login: str, given: Mapping[str, str], *, tls: bool) -> dict[str, Any]:
    if not login:
        if "sasl_mechanism" in given:
            raise ConfigurationError(f"sasl_mechanism= needs a user and a password: {_KAFKA}")
        return {"security_protocol": "SSL" if tls else "PLAINTEXT"}
    user, colon, password = login.partition(":")
    if not user or not colon:
        raise ConfigurationError(f"it needs both a user and a password: {_KAFKA}")
    mechanism = given.get("sasl_mechanism", "PLAIN").upper()
    if mechanism not in _MECHANISMS:
        quoted = f", not {mechanism!r}" if mechanism.replace("-", "").isalnum() else ""
        raise ConfigurationError(f"sasl_mechanism= must be one of {', '.join(_MECHANISMS)}{quoted}")
    return {
        "security_protocol": "SASL_SSL" if tls else "SASL_PLAINTEXT",
        "sasl_mechanism": mechanism,
        "sasl_plain_username": unquote(user),
        "sasl_plain_password": unquote(password),
    }


def _context(given: Mapping[str, str]) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=given.get("ssl_cafile"))
        if "ssl_certfile" in given:
            context.load_cert_chain(given["ssl_certfile"], given.get("ssl_keyfile"))
    except OSError as error:  # also ssl.SSLError
        raise ConfigurationError(
            f"a certificate file cannot be used ({error}): "
            f"ssl_cafile=, ssl_certfile= and ssl_keyfile= are paths of PEM files"
        ) from None
    verify = given.get("ssl_verify", "").lower() not in _NO
    if not verify or given.get("ssl_check_hostname", "").lower() in _NO:
        context.check_hostname = False
    if not verify:
        context.verify_mode = ssl.CERT_NONE
    return context
