"""Options of aiokafka: types, validation before anything connects, and the split by receiver."""

from __future__ import annotations

import difflib
import inspect
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from resilient_io.errors import ConfigurationError
from resilient_io.validation import check_count

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Mapping

    from aiokafka.abc import AbstractTokenProvider


class ClientOptions(TypedDict, total=False):
    """The options of aiokafka that a producer and a consumer share."""

    client_id: str | None
    request_timeout_ms: int
    metadata_max_age_ms: int
    retry_backoff_ms: int
    connections_max_idle_ms: int | None
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"]
    ssl_context: ssl.SSLContext | None
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "GSSAPI", "OAUTHBEARER"]
    sasl_plain_username: str | None
    sasl_plain_password: str | None
    sasl_kerberos_service_name: str
    sasl_kerberos_domain_name: str | None
    sasl_oauth_token_provider: AbstractTokenProvider | None


# The options that say how to reach a cluster: they belong to the `KafkaTarget`.
CLIENT_OPTIONS = tuple(ClientOptions.__annotations__)

_NOT_SUPPORTED = {
    "loop": "leave it out: the client starts in the event loop of its first use",
    "api_version": "leave it out: aiokafka asks the broker for its versions",
}

_PROTOCOLS = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
_MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "GSSAPI", "OAUTHBEARER")

_TOPIC_NAME = re.compile(r"[A-Za-z0-9._-]{1,249}")

_ABOVE_ZERO = ("request_timeout_ms", "metadata_max_age_ms", "retry_backoff_ms")


def is_topic_name(name: str) -> bool:
    """Return whether Kafka accepts a name for a topic."""
    return _TOPIC_NAME.fullmatch(name) is not None and name not in {".", ".."}


@dataclass(frozen=True, slots=True)
class Options:
    """The options of aiokafka, split by receiver."""

    client: dict[str, Any]
    own: dict[str, Any]

    def __repr__(self) -> str:
        """Return the names of the options without their values: some are secrets."""
        return f"Options(client={sorted(self.client)}, own={sorted(self.own)})"


def split_options(
    options: Mapping[str, Any], *, of: Callable[..., object], owned: Mapping[str, str]
) -> Options:
    """Return the options of aiokafka, validated and split."""
    refused = {**_NOT_SUPPORTED, **owned}
    known = [
        name
        for name, parameter in inspect.signature(of).parameters.items()
        if parameter.kind is not inspect.Parameter.VAR_POSITIONAL
    ]
    for name in options:
        if name in refused:
            raise ConfigurationError(f"{name}= cannot be set; {refused[name]}")
        if name not in known:
            raise ConfigurationError(_unknown(name, of, [n for n in known if n not in refused]))
    client = {name: value for name, value in options.items() if name in CLIENT_OPTIONS}
    _check_times(client)
    _check_security(client)
    own = {name: value for name, value in options.items() if name not in CLIENT_OPTIONS}
    return Options(client, own)


def _unknown(name: str, of: Callable[..., object], known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}=?" if close else f"use one of {', '.join(sorted(known))}"
    return f"{getattr(of, '__name__', 'aiokafka')} has no option {name}=: {hint}"


def _check_times(client: Mapping[str, Any]) -> None:
    for name in _ABOVE_ZERO:
        if name in client:
            check_count(name, client[name])
    if client.get("connections_max_idle_ms") is not None:
        check_count("connections_max_idle_ms", client["connections_max_idle_ms"])


def _check_security(client: Mapping[str, Any]) -> None:
    protocol = client.get("security_protocol", "PLAINTEXT")
    if protocol not in _PROTOCOLS:
        raise ConfigurationError(
            f"security_protocol={protocol!r} is unknown: use one of {', '.join(_PROTOCOLS)}"
        )
    if protocol.endswith("SSL") and client.get("ssl_context") is None:
        raise ConfigurationError(
            f'security_protocol="{protocol}" needs ssl_context=: use '
            f"ssl_context=ssl.create_default_context() or "
            f"aiokafka.helpers.create_ssl_context(cafile=...)"
        )
    if not protocol.endswith("SSL") and client.get("ssl_context") is not None:
        wanted = "SASL_SSL" if protocol.startswith("SASL") else "SSL"
        raise ConfigurationError(
            f'ssl_context= has no effect with security_protocol="{protocol}": '
            f'use security_protocol="{wanted}"'
        )
    if protocol.startswith("SASL"):
        _check_credentials(client)
    elif given := [name for name in client if name.startswith("sasl_")]:
        wanted = "SASL_SSL" if protocol == "SSL" else "SASL_PLAINTEXT or SASL_SSL"
        raise ConfigurationError(
            f'{given[0]}= has no effect with security_protocol="{protocol}": '
            f"use security_protocol={wanted}"
        )


def _check_credentials(client: Mapping[str, Any]) -> None:
    mechanism = client.get("sasl_mechanism", "PLAIN")
    if mechanism not in _MECHANISMS:
        raise ConfigurationError(
            f"sasl_mechanism={mechanism!r} is unknown: use one of {', '.join(_MECHANISMS)}"
        )
    if mechanism in ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"):
        wanted: tuple[str, ...] = ("sasl_plain_username", "sasl_plain_password")
    elif mechanism == "OAUTHBEARER":
        wanted = ("sasl_oauth_token_provider",)
    else:
        wanted = ()
    missing = [f"{name}=" for name in wanted if client.get(name) is None]
    if missing:
        raise ConfigurationError(
            f'sasl_mechanism="{mechanism}" needs credentials: set {" and ".join(missing)}'
        )
