"""Whether a broker lets us in, and what it means when none does."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from resilient_io.doctor.looking import Finding, merged, ok, problem
from resilient_io.doctor.network import milder
from resilient_io.doctor.tls import speaks_tls
from resilient_io.health import Cause
from resilient_io.kafka.probe import MetadataQuery

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from resilient_io.doctor.network import Place
    from resilient_io.kafka.connect import KafkaTarget
    from resilient_io.kafka.errors import ConnectionFailure
    from resilient_io.kafka.protocols import Connection

__all__ = ["judge_failure", "look_at_login", "silent_login"]

_CLASS: Final = re.compile(r"^(\[Error \d+\] )?\w+(Error|Failed): ")

_CREDENTIALS: Final = (
    "Look whether user, password and mechanism (sasl_mechanism=) are those of this listener, and "
    "whether the secret was rotated; a reserved sign in a password must be written with % in a URL "
    "(@ is %40, / is %2F)."
)
_LOGINS: Final = {
    "IllegalSaslState": (
        "takes no login, and the URL has one",
        "Take user and password out of the URL, or write the port of a listener with SASL.",
    ),
    "UnsupportedSaslMechanism": (
        "does not know the mechanism of the URL",
        "Write one of the broker's sasl.enabled.mechanisms: ?sasl_mechanism=SCRAM-SHA-512, say.",
    ),
}
"""What aiokafka's errors of a login mean, which say nothing but their names."""

_TLS_PORT: Final = "Write kafkas://…, with ssl_cafile=/path/of/authority.pem where it is your own."


async def look_at_login(
    places: Sequence[Place],
    target: KafkaTarget,
    timeout: float,
    keep: Callable[[Connection], None],
) -> Finding:
    """Ask all brokers that were reached.

    Args:
        places: Those at which a connection was made.
        target: How to log in.
        timeout: Seconds until a broker counts as silent.
        keep: Is given the connection to the first that answered.
    """
    addresses = [(place.host, place.port) for place in places]
    async with MetadataQuery(target, timeout=timeout, topics=()) as query:
        await query.start(addresses)
        await query.wait(timeout)
        failures = [
            (place, failure)
            for place, address in zip(places, addresses, strict=True)
            if (failure := query.failure(address)) is not None
        ]
        answered = len(places) - len(failures)
        findings = [
            milder(await judge_failure(place, failure, target), some_work=answered > 0)
            for place, failure in failures
        ]
        first = await query.first() if answered else None
        if first is not None:
            keep(query.keep(first))
    if answered:
        how = "with a login" if target.uses_sasl else "without a login"
        who = "the broker answers" if answered == 1 else f"{answered} brokers answer"
        findings.append(ok(f"{who}, {how}"))
    return merged(findings)


async def judge_failure(place: Place, failure: ConnectionFailure, target: KafkaTarget) -> Finding:
    """Say what to do about a broker that took the connection and then did not answer."""
    data = {"cause": failure.cause.value}
    said = failure.detail
    if failure.cause is Cause.AUTH:
        found, advice = next(
            (meaning for name, meaning in _LOGINS.items() if name in said),
            (f"does not let us in: {_without_class(said)}", _CREDENTIALS),
        )
        return problem(f"{place.written} {found}", advice, **data)
    if failure.cause is Cause.TIMED_OUT:
        return problem(
            f"{place.written} takes connections, but answers nothing",
            "Look whether the broker is frozen or overloaded (its log, its garbage collection)"
            + (", or the port speaks TLS or another protocol." if not target.uses_tls else "."),
            **data,
        )
    if failure.cause in (Cause.RESET, Cause.PROTOCOL) and not target.uses_tls:
        if await speaks_tls(place):
            return problem(
                f"{place.written} speaks TLS, and the URL says that it does not", _TLS_PORT, **data
            )
        return problem(
            f"{place.written} hung up on the first words",
            "Look whether its listener wants a login (write kafka://user:password@…), and whether "
            "the port is one for clients, not that of a controller.",
            **data,
        )
    if failure.cause in (Cause.RESET, Cause.TLS):
        return problem(
            f"{place.written} hung up after the handshake",
            "Mostly it wants a certificate of ours (ssl.client.auth=required), or a login: give "
            "ssl_certfile=…&ssl_keyfile=…, or user and password; the broker's log tells more.",
            **data,
        )
    return problem(
        f"{place.written}: {_without_class(said)}", "Look at the broker's log of now.", **data
    )


def silent_login(places: Sequence[Place]) -> Finding:
    """Say what it means that no broker answered before the time was used up."""
    return problem(
        f"{', '.join(place.written for place in places)} took the connection, but no answer came",
        "Look whether the broker is frozen or overloaded (its log, its garbage collection), or "
        "the port speaks another protocol.",
    )


def _without_class(said: str) -> str:
    """Take off the "[Error 58] SaslAuthenticationFailed: " with which aiokafka begins."""
    return _CLASS.sub("", said) or said
