"""aiokafka's own options: checked before anything connects, and split by who takes them."""

from __future__ import annotations

import difflib
import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from resilient_io.errors import ConfigurationError
from resilient_io.validation import check_count

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["CLIENT_OPTIONS", "Options", "split_options"]

CLIENT_OPTIONS = (
    "client_id",
    "request_timeout_ms",
    "metadata_max_age_ms",
    "retry_backoff_ms",
    "connections_max_idle_ms",
    "security_protocol",
    "ssl_context",
    "sasl_mechanism",
    "sasl_plain_username",
    "sasl_plain_password",
    "sasl_kerberos_service_name",
    "sasl_kerberos_domain_name",
    "sasl_oauth_token_provider",
)
"""What says how to reach a cluster: it belongs to the `Target`."""

_NEVER = {
    "loop": "leave it out: the client starts in the event loop of its first use",
    "api_version": "leave it out: aiokafka asks the broker which versions it speaks",
}

_PROTOCOLS = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
_MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "GSSAPI", "OAUTHBEARER")

_ABOVE_ZERO = ("request_timeout_ms", "metadata_max_age_ms", "retry_backoff_ms")


@dataclass(frozen=True, slots=True)
class Options:
    """aiokafka's options, split.

    Attributes:
        client: For the `Target`: how to reach the cluster and log in.
        own: For the instance itself.
    """

    client: dict[str, Any]
    own: dict[str, Any]

    def __repr__(self) -> str:
        """Name the options, not their values: some are secrets."""
        return f"Options(client={sorted(self.client)}, own={sorted(self.own)})"


def split_options(
    options: Mapping[str, Any], *, of: Callable[..., object], owned: Mapping[str, str]
) -> Options:
    """Check options of aiokafka's, and split them.

    Args:
        options: As the user gave them.
        of: aiokafka's class, whose constructor says which options there are.
        owned: Options that are ours to set, each with what to write instead, for example
            `{"enable_auto_commit": "leave it out: offsets are committed once handled"}`.

    Raises:
        ConfigurationError: An option is unknown or ours, or a value cannot work; it says what to
            write instead, and no secret.
    """
    refused = {**_NEVER, **owned}
    known = [
        name
        for name, parameter in inspect.signature(of).parameters.items()
        if parameter.kind is not inspect.Parameter.VAR_POSITIONAL
    ]
    for name in options:
        if name in refused:
            raise ConfigurationError(f"{name}= cannot be given: {refused[name]}")
        if name not in known:
            raise ConfigurationError(_unknown(name, of, [n for n in known if n not in refused]))
    client = {name: value for name, value in options.items() if name in CLIENT_OPTIONS}
    _check_times(client)
    _check_security(client)
    own = {name: value for name, value in options.items() if name not in CLIENT_OPTIONS}
    return Options(client, own)


def _unknown(name: str, of: Callable[..., object], known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}=?" if close else f"it knows {', '.join(sorted(known))}"
    return f"{name}= is no option of {getattr(of, '__name__', 'aiokafka')}: {hint}"


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
            f"security_protocol={protocol!r} is unknown: write one of {', '.join(_PROTOCOLS)}"
        )
    if protocol.endswith("SSL") and client.get("ssl_context") is None:
        raise ConfigurationError(
            f'security_protocol="{protocol}" needs a context: write '
            f"ssl_context=ssl.create_default_context() or "
            f"aiokafka.helpers.create_ssl_context(cafile=...)"
        )
    if not protocol.endswith("SSL") and client.get("ssl_context") is not None:
        wanted = "SASL_SSL" if protocol.startswith("SASL") else "SSL"
        raise ConfigurationError(
            f'ssl_context= has no effect with security_protocol="{protocol}": '
            f'write security_protocol="{wanted}"'
        )
    if protocol.startswith("SASL"):
        _check_login(client)
    elif given := [name for name in client if name.startswith("sasl_")]:
        wanted = "SASL_SSL" if protocol == "SSL" else "SASL_PLAINTEXT or SASL_SSL"
        raise ConfigurationError(
            f'{given[0]}= has no effect with security_protocol="{protocol}": '
            f"write security_protocol={wanted}"
        )


def _check_login(client: Mapping[str, Any]) -> None:
    mechanism = client.get("sasl_mechanism", "PLAIN")
    if mechanism not in _MECHANISMS:
        raise ConfigurationError(
            f"sasl_mechanism={mechanism!r} is unknown: write one of {', '.join(_MECHANISMS)}"
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
            f'sasl_mechanism="{mechanism}" needs credentials: write {" and ".join(missing)}'
        )
