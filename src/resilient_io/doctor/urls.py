"""Read the URLs that name servers: those of redis-py, and a form for Kafka, which has none."""

from __future__ import annotations

import difflib
import inspect
import re
import ssl
from typing import TYPE_CHECKING, Any, Final, Literal
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from resilient_io.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from redis.asyncio.connection import ConnectionPool

_SENTINEL_SCHEMES: Final = ("redis+sentinel", "rediss+sentinel")
_REDIS_SCHEMES: Final = ("redis", "rediss", "unix", *_SENTINEL_SCHEMES)
_KAFKA_SCHEMES: Final = ("kafka", "kafkas")
_ANY: Final = (
    "use redis://host:6379/0, rediss://… (TLS), unix:///path, kafka://host:9092,host:9092, "
    "kafkas://… (TLS) or redis+sentinel://host:26379,host:26379/mymaster"
)
_OTHER_SCHEMES: Final = ("http", "https", "tcp", "tls", "valkey", "valkeys")
"""Wrong schemes that a message may quote: an unknown one may be a part of a password."""

_HOST_AND_PORT: Final = re.compile(r"[A-Za-z0-9.-]{1,80}:(\d{1,5})\Z")
_KAFKA_PORTS: Final = (9092, 9093, 9094, 19092, 29092)

_REDIS: Final = (
    "use redis://[user[:password]@]host[:port][/db], rediss://…, unix:///path or "
    "redis+sentinel://host:26379,host:26379/mymaster"
)
_KAFKA: Final = (
    "use kafka://[user:password@]host[:port][,host[:port]…], or kafkas://… for TLS, with "
    "?sasl_mechanism=…&ssl_cafile=… if needed"
)
_ENCODE: Final = "URL-encode special characters in user and password (@ is %40, / is %2F)"
WRONG_PASSWORD: Final = f"Check user and password, and whether the secret was rotated. {_ENCODE}."
_SERVER: Final = re.compile(r"(\[[^\]]+\]|[^:]+)(?::(\d{1,5}))?\Z")
_PORT: Final = 9092
_FILES: Final = ("ssl_cafile", "ssl_certfile", "ssl_keyfile")
_KAFKA_OPTIONS: Final = ("client_id", "sasl_mechanism", "ssl_check_hostname", "ssl_verify", *_FILES)
_MECHANISMS: Final = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
_NO: Final = ("no", "false", "0", "none")


def kind_of(url: str) -> Literal["redis", "kafka"]:
    """Return which kind of server a URL names."""
    scheme, separator, _ = url.partition("://")
    scheme = scheme.lower()
    if separator and scheme in _REDIS_SCHEMES:
        return "redis"
    if separator and scheme in _KAFKA_SCHEMES:
        return "kafka"
    if separator:
        quoted = f" {scheme!r}" if scheme in _OTHER_SCHEMES else ""
        raise ConfigurationError(f"unsupported URL scheme{quoted}: {_ANY}")
    match = _HOST_AND_PORT.match(url)
    if match is None:  # not quoted: it may contain a password
        raise ConfigurationError(f"invalid URL: no scheme; {_ANY}")
    meant = "kafka" if int(match[1]) in _KAFKA_PORTS else "redis"
    raise ConfigurationError(f"invalid URL {url!r}: no scheme. Did you mean {meant}://{url}?")


def name_of(url: str) -> str:
    """Return the name of the server of a URL, without credentials: "redis cache:6379/0"."""
    if kind_of(url) == "redis":
        from resilient_io.redis.connect import RedisTarget  # noqa: PLC0415 - only the driver needed

        return f"redis {RedisTarget(read_redis_url(url)).name}"
    from resilient_io.kafka.connect import KafkaTarget  # noqa: PLC0415 - as above

    return KafkaTarget(read_kafka_url(url)["bootstrap_servers"]).name


def read_redis_url(url: str) -> ConnectionPool:
    """Return redis-py's pool for the URL of a Redis server; nothing is connected."""
    from redis.asyncio.connection import ConnectionPool  # noqa: PLC0415 - only the driver needed

    from resilient_io.redis.options import pool_from_url  # noqa: PLC0415 - as above

    if url.partition("://")[0].lower() in _SENTINEL_SCHEMES:
        return pool_from_url(url, {})
    if _split(url) is None:
        raise ConfigurationError(f"invalid Redis URL: {_REDIS}; {_ENCODE}")
    pool: ConnectionPool = pool_from_url(url, {})
    accepted: set[str] = set()
    for kind in (ConnectionPool, *pool.connection_class.__mro__):
        accepted.update(inspect.signature(kind).parameters)
    _check_options(urlsplit(url).query, accepted, of="Redis")
    return pool


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
        ConfigurationError: The URL is wrong. The message does not quote it.
    """
    parts = _split(url, port=False)
    if parts is None:
        raise ConfigurationError(f"invalid Kafka URL: {_KAFKA}; {_ENCODE}")
    if parts.scheme not in _KAFKA_SCHEMES:
        raise ConfigurationError(f"this URL does not name a Kafka cluster: {_KAFKA}")
    if parts.path not in ("", "/") or parts.fragment:
        raise ConfigurationError(
            f"invalid Kafka URL: unexpected path or fragment; {_KAFKA}; {_ENCODE}"
        )
    login, _, servers = parts.netloc.rpartition("@")
    options: dict[str, Any] = {"bootstrap_servers": _servers(servers)}
    given = _check_options(parts.query, _KAFKA_OPTIONS, of="Kafka")
    tls = parts.scheme == "kafkas"
    if not tls and (useless := [name for name in given if name.startswith("ssl_")]):
        raise ConfigurationError(f"{useless[0]}= has no effect without TLS: use kafkas://…")
    if tls:
        options["ssl_context"] = _context(given)
    if "client_id" in given:
        options["client_id"] = given["client_id"]
    options |= _login(login, given, tls=tls)
    return options


def _split(url: str, *, port: bool = True) -> SplitResult | None:
    """Split a URL; return None for an invalid one: the error may quote parts of the password."""
    try:
        parts = urlsplit(url)
        _ = parts.port if port else None
    except ValueError:
        return None
    return parts


def _check_options(query: str, accepted: Iterable[str], *, of: str) -> dict[str, str]:
    given = dict(parse_qsl(query, keep_blank_values=True))
    accepted = sorted(accepted)
    for name in [each for each in given if each not in accepted]:
        if "@" in query or not name.isidentifier():  # not quoted: a password with a "?" in it
            raise ConfigurationError(f"invalid {of} URL: the query is not name=value; {_ENCODE}")
        close = difflib.get_close_matches(name, accepted, n=1)
        if close:
            hint = f"did you mean {close[0]!r}?"
        elif of == "Kafka":
            hint = f"expected one of {', '.join(accepted)}"
        else:
            hint = "expected an option of redis.asyncio.Redis"
        raise ConfigurationError(f"unknown option {name!r} in the {of} URL: {hint}")
    return given


def _servers(netloc: str) -> list[str]:
    servers = []
    for server in filter(None, map(str.strip, netloc.split(","))):
        match = _SERVER.match(server)
        port = int(match[2] or _PORT) if match else 0
        if match is None or not 0 < port < 1 << 16:
            # Not quoted: it may be a part of a password.
            raise ConfigurationError(f"the Kafka URL has an invalid port: {_KAFKA}; {_ENCODE}")
        servers.append(f"{match[1]}:{port}")
    if not servers:
        raise ConfigurationError(f"the Kafka URL has no server: {_KAFKA}")
    return servers


def _login(login: str, given: Mapping[str, str], *, tls: bool) -> dict[str, Any]:
    if not login:
        if "sasl_mechanism" in given:
            raise ConfigurationError(
                f"sasl_mechanism= needs a user and a password in the URL: {_KAFKA}"
            )
        return {"security_protocol": "SSL" if tls else "PLAINTEXT"}
    user, colon, password = login.partition(":")
    if not user or not colon:
        raise ConfigurationError(f"the Kafka URL needs both a user and a password: {_KAFKA}")
    mechanism = given.get("sasl_mechanism", "PLAIN").upper()
    if mechanism not in _MECHANISMS:
        raise ConfigurationError(
            f"sasl_mechanism= of a Kafka URL must be one of {', '.join(_MECHANISMS)}"
        )
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
            f"a certificate file of the Kafka URL cannot be used ({error}): "
            f"ssl_cafile=, ssl_certfile= and ssl_keyfile= are paths of PEM files"
        ) from None
    verify = given.get("ssl_verify", "").lower() not in _NO
    if not verify or given.get("ssl_check_hostname", "").lower() in _NO:
        context.check_hostname = False
    if not verify:
        context.verify_mode = ssl.CERT_NONE
    return context
