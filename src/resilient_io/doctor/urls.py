"""URLs of Kafka clusters: Kafka itself has none, so here is how we write them."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

from resilient_io.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["KAFKA_SCHEMES", "REDIS_SCHEMES", "read_kafka_url"]

REDIS_SCHEMES: Final = ("redis", "rediss", "unix")
KAFKA_SCHEMES: Final = ("kafka", "kafkas")

_HOW: Final = (
    "write kafka://[user:password@]host[:port][,host[:port]…], or kafkas://… for TLS, "
    "with ?sasl_mechanism=…&ssl_cafile=… where needed"
)
_PORT: Final = ":9092"
_FILES: Final = ("ssl_cafile", "ssl_certfile", "ssl_keyfile")
_PLAIN: Final = ("client_id", "sasl_mechanism", "ssl_check_hostname", "ssl_verify", *_FILES)
_MECHANISMS: Final = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
_NO: Final = ("no", "false", "0", "none")


def read_kafka_url(url: str) -> dict[str, Any]:
    """Read the URL of a Kafka cluster into options for our clients and aiokafka's.

    `kafka://[user:password@]host[:port][,host[:port]…]` in the clear, `kafkas://…` with TLS. With
    a user the mechanism is PLAIN, or what `?sasl_mechanism=` says. Further options: `client_id`,
    `ssl_cafile`, `ssl_certfile`, `ssl_keyfile` (paths), `ssl_check_hostname=no`, `ssl_verify=no`.

    Args:
        url: The URL; what is reserved in user or password is written as in every URL (`%40`).

    Returns:
        `bootstrap_servers`, and `security_protocol`, `ssl_context`, `sasl_…` as they are needed.

    Raises:
        ConfigurationError: It cannot be understood; the message does not quote it.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ConfigurationError(f"the Kafka URL cannot be understood: {_HOW}") from None
    if parts.scheme not in KAFKA_SCHEMES:
        raise ConfigurationError(f"this is no URL of Kafka: {_HOW}")
    if parts.path not in ("", "/") or parts.fragment:
        raise ConfigurationError(f"the Kafka URL names more than servers: {_HOW}")
    login, _, servers = parts.netloc.rpartition("@")
    options: dict[str, Any] = {"bootstrap_servers": _servers(servers)}
    asked = _options(parts.query)
    tls = parts.scheme == "kafkas"
    if not tls and (given := [name for name in asked if name.startswith("ssl_")]):
        raise ConfigurationError(f"{given[0]}= has no effect without TLS: write kafkas://…")
    if tls:
        options["ssl_context"] = _context(asked)
    if "client_id" in asked:
        options["client_id"] = asked["client_id"]
    options |= _login(login, asked, tls=tls)
    return options


def _servers(netloc: str) -> list[str]:
    servers = [server.strip() for server in netloc.split(",") if server.strip()]
    if not servers:
        raise ConfigurationError(f"the Kafka URL names no server: {_HOW}")
    for server in servers:
        host, colon, port = server.rpartition(":")
        if (
            colon
            and not server.endswith("]")
            and (not host or not port.isdecimal() or not 0 < int(port) < 1 << 16)
        ):
            # Not quoted: it may be a part of a password with a character that needs a %.
            raise ConfigurationError(f"what stands for a port is no port: {_HOW}")
    return [
        server if ":" in server.rpartition("]")[2] else f"{server}{_PORT}" for server in servers
    ]


def _options(query: str) -> dict[str, str]:
    asked = dict(parse_qsl(query, keep_blank_values=True))
    for name in asked:
        if name not in _PLAIN:
            raise ConfigurationError(
                f"{name!r} is no option of a Kafka URL: it knows {', '.join(sorted(_PLAIN))}"
            )
    return asked


def _login(login: str, asked: Mapping[str, str], *, tls: bool) -> dict[str, Any]:
    if not login:
        if "sasl_mechanism" in asked:
            raise ConfigurationError(
                f"sasl_mechanism= needs a user and a password in the URL: {_HOW}"
            )
        return {"security_protocol": "SSL" if tls else "PLAINTEXT"}
    user, colon, password = login.partition(":")
    if not user or not colon:
        raise ConfigurationError(f"the Kafka URL has half a login: {_HOW}")
    mechanism = asked.get("sasl_mechanism", "PLAIN").upper()
    if mechanism not in _MECHANISMS:
        raise ConfigurationError(
            f"sasl_mechanism= of a Kafka URL is one of {', '.join(_MECHANISMS)}"
        )
    return {
        "security_protocol": "SASL_SSL" if tls else "SASL_PLAINTEXT",
        "sasl_mechanism": mechanism,
        "sasl_plain_username": unquote(user),
        "sasl_plain_password": unquote(password),
    }


def _context(asked: Mapping[str, str]) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=asked.get("ssl_cafile"))
        if "ssl_certfile" in asked:
            context.load_cert_chain(asked["ssl_certfile"], asked.get("ssl_keyfile"))
    except OSError as error:  # also ssl.SSLError
        raise ConfigurationError(
            f"a certificate file of the Kafka URL cannot be used ({error}): "
            f"ssl_cafile=, ssl_certfile= and ssl_keyfile= are paths of PEM files"
        ) from None
    verify = asked.get("ssl_verify", "").lower() not in _NO
    if not verify or asked.get("ssl_check_hostname", "").lower() in _NO:
        context.check_hostname = False
    if not verify:
        context.verify_mode = ssl.CERT_NONE
    return context
