"""Log in to a Redis server and ask it; say why that failed, and what to do."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from redis import exceptions as driver
from redis.asyncio.connection import Connection, ConnectionPool, SSLConnection

from resilient_io.health import Cause
from resilient_io.redis.connect import RedisTarget, connect
from resilient_io.redis.driver_connection import abort, exchange
from resilient_io.redis.errors import connection_failure
from resilient_io.text import clean_text, describe_error

from .network import advice_for, judge_name
from .steps import CheckResult, problem, unknown
from .tls import CLIENT_CERTIFICATE, tls_needed, uses_tls
from .urls import WRONG_PASSWORD

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .network import Endpoint

NO_ANSWER_TO_LOGIN: Final = problem(
    "connected, but no answer to the login",
    "The server accepts connections but answers nothing: check whether it is frozen (SIGSTOP, "
    "paused container), swapping, or busy with a slow command.",
    cause=Cause.TIMED_OUT.value,
)
CHECK_LOG: Final = "Check the server's log, and what is between here and the server (a proxy)."
ADVICE: Final[dict[Cause, str]] = {
    Cause.AUTH: f"{WRONG_PASSWORD} Its permissions must include +hello +auth +select +ping.",
    Cause.WRONG_DATABASE: "Use a database that exists: by default there are 0 to 15 (/0).",
    Cause.PROCESS_LIMIT: "Raise `ulimit -n` for this process, or close what keeps files open.",
    Cause.MAX_CLIENTS: "Raise maxclients, or find out with CLIENT LIST what holds the connections.",
    Cause.LOADING: "It is reading its data from disk: wait. INFO persistence shows how long.",
    Cause.RESET: f"Check whether the port uses TLS (then use rediss://…). {CHECK_LOG}",
    Cause.PROTOCOL: "This port is not Redis: check the port, and what listens on it.",
    Cause.REFUSED: "Check that the server runs, and that this user may use its socket.",
    Cause.MASTER_DOWN: "It is a replica that has lost its master: bring the master back.",
}

LATE: Final = 5  # seconds since a replica confirmed data that are worth a note
LATE_ADVICE: Final = (
    "A failover loses what it does not have: check whether it is overloaded or frozen, and the "
    "network between both."
)


def judge_login(error: BaseException, *, uses_tls: bool, gave_password: bool) -> CheckResult:
    """Return why the login failed, after TCP (and TLS) succeeded."""
    failure = connection_failure(error, tls=uses_tls)
    cause, found = failure.cause, clean_text(failure.detail)
    advice = ADVICE.get(cause, CHECK_LOG)
    if cause is Cause.TIMED_OUT:
        return NO_ANSWER_TO_LOGIN
    if cause is Cause.AUTH and not gave_password:
        found = "the server requires a password, and the URL has none"
        advice = "Use redis://user:password@host (redis://:password@host for the default user)."
    elif cause is Cause.WRONG_SERVER:
        found, _, use = found.partition(": ")
        advice = f"{use[:1].upper()}{use[1:]}."
    elif cause is Cause.AUTH:
        found = f"authentication failed: {found}"
    elif uses_tls and cause in (Cause.RESET, Cause.TLS):
        if "certificate required" in found.lower():
            found = "the server requires a client certificate"
        advice = CLIENT_CERTIFICATE
    return problem(found, advice, cause=cause.value)


async def explain_login(
    error: BaseException, target: RedisTarget, endpoint: Endpoint | None, *, gave_password: bool
) -> CheckResult:
    """Return why the login at a server failed. A port that closes the connection may need TLS."""
    tls = target.uses_tls
    result = judge_login(error, uses_tls=tls, gave_password=gave_password)
    closed = result.data.get("cause") in (Cause.RESET.value, Cause.TLS.value)
    if endpoint is not None and not tls and closed and await uses_tls(endpoint):
        return tls_needed(endpoint, "rediss", "ssl_ca_certs")
    return result


def target_at(pool: ConnectionPool, endpoint: Endpoint) -> RedisTarget:
    """Return a target with the settings of a pool, at another address."""
    settings: dict[str, Any] = pool.connection_kwargs
    kept = {name: value for name, value in settings.items() if name not in _OF_THE_ADDRESS}
    kind = SSLConnection if RedisTarget(pool).uses_tls else Connection
    return RedisTarget(
        ConnectionPool(connection_class=kind, host=endpoint.host, port=endpoint.port, **kept)
    )


_OF_THE_ADDRESS: Final = ("host", "port", "path", "connection_pool")


async def ask_server(
    endpoint: Endpoint,
    target: RedisTarget,
    timeout: float,
    *commands: Sequence[str],
    gave_password: bool,
) -> list[Any] | CheckResult:
    """Connect to a server as a client would, send commands, and return their replies.

    An error reply is one of the replies. If the server cannot be asked, the result says why.
    `endpoint.reached` is empty if no connection was made at all. The connection is closed.
    """
    try:
        async with asyncio.timeout(timeout):
            return await _ask(endpoint, target, timeout, commands, gave_password=gave_password)
    except TimeoutError:
        silent = NO_ANSWER_TO_LOGIN
        return problem(f"{endpoint.text}: {silent.found}", silent.advice, **silent.data)


async def _ask(
    endpoint: Endpoint,
    target: RedisTarget,
    timeout: float,
    commands: Sequence[Sequence[str]],
    *,
    gave_password: bool,
) -> list[Any] | CheckResult:
    if not endpoint.addresses and (error := await endpoint.look_up()) is not None:
        return judge_name(endpoint.host, error)
    if not endpoint.reached:
        await endpoint.connect(timeout / 2)
    if not endpoint.reached:
        why = next(iter(endpoint.failed.values()))
        return problem(f"{endpoint.text}: {why}", advice_for(endpoint, why))
    connection = None
    try:
        connection = await connect(target, timeout=timeout, user_timeout=timeout)
        return await exchange(connection, *commands)
    except (driver.RedisError, OSError) as error:
        result = await explain_login(error, target, endpoint, gave_password=gave_password)
        if result.found.startswith(endpoint.text):
            return result
        return replace(result, found=f"{endpoint.text}: {result.found}")
    finally:
        if connection is not None:
            abort(connection)
        await target.aclose()


def refused(endpoint: Endpoint, error: driver.ResponseError) -> CheckResult:
    """Return what an error reply to a question of the doctor means."""
    if isinstance(error, driver.NoPermissionError):
        return unknown(
            f"{endpoint.text}: no permission for a question of the doctor",
            "Allow its user the commands that docs/howto/doctor.md lists.",
        )
    cause = connection_failure(error).cause
    return problem(
        f"{endpoint.text} refuses commands: {describe_error(error)}",
        ADVICE.get(cause, CHECK_LOG),
        cause=cause.value,
    )


def pairs_of(reply: Any) -> dict[str, str]:
    """Return a map of the server: a map with RESP3, a flat list with RESP2."""
    if isinstance(reply, dict):
        return {text_of(name): text_of(value) for name, value in reply.items()}
    return {
        text_of(name): text_of(value) for name, value in zip(reply[::2], reply[1::2], strict=False)
    }


def text_of(reply: Any) -> str:
    """Return a reply as a text."""
    return reply.decode(errors="replace") if isinstance(reply, bytes) else str(reply)


def number(text: object) -> int:
    """Return a number that a server sent as a text; 0 for anything else."""
    return int(text) if isinstance(text, str) and text.lstrip("-").isdecimal() else 0
