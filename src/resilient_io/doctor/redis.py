"""Check the connection to a Redis server: name, TCP, TLS, login and reply."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from typing import TYPE_CHECKING, Any, Final

from redis import exceptions as driver
from redis.asyncio.sentinel import SentinelConnectionPool

from resilient_io.health import Cause
from resilient_io.link import read_link
from resilient_io.redis.connect import RedisTarget, abort, connect, query_over, socket_of
from resilient_io.redis.errors import connection_failure
from resilient_io.redis.options import check_target
from resilient_io.redis.tls import answers_without_tls, load_files
from resilient_io.text import clean_text, describe_error

from .link import REQUESTS, check_link
from .network import Endpoint, check_path
from .sentinel import examine_sentinels
from .steps import CheckResult, Checks, Status, merged, note, ok, problem
from .tls import CLIENT_CERTIFICATE, check_tls, no_tls, tls_needed, uses_tls
from .urls import WRONG_PASSWORD, read_redis_url

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncGenerator

    from redis.asyncio.connection import AbstractConnection

    from resilient_io.redis.connect import Query

    from .steps import Step

_PORT: Final = 6379
_FIRST_HANDSHAKE: Final = 0.7
"""Seconds to wait for a TLS handshake before the port is tried without TLS."""

_PACKET: Final = 1400  # bytes

_NO_ANSWER_TO_LOGIN: Final = problem(
    "connected, but no answer to the login",
    "The server accepts connections but answers nothing: check whether it is frozen (SIGSTOP, "
    "paused container), swapping, or busy with a slow command.",
    cause=Cause.TIMED_OUT.value,
)
_NO_REPLY: Final = problem(
    "logged in, but no reply to a command",
    "The server has just accepted the login, so it is busy with one command, or has been frozen "
    "since: try again, and check its CPU and SLOWLOG GET.",
)
_CHECK_LOG: Final = "Check the server's log, and what is between here and the server (a proxy)."
_ADVICE: Final[dict[Cause, str]] = {
    Cause.AUTH: f"{WRONG_PASSWORD} Its permissions must include +hello +auth +select +ping.",
    Cause.WRONG_DATABASE: "Use a database that exists: by default there are 0 to 15 (/0).",
    Cause.WRONG_SERVER: "By default, a server listens on port 6379, and a Sentinel on 26379.",
    Cause.PROCESS_LIMIT: "Raise `ulimit -n` for this process, or close what keeps files open.",
    Cause.MAX_CLIENTS: "Raise maxclients, or find out with CLIENT LIST what holds the connections.",
    Cause.LOADING: "It is reading its data from disk: wait. INFO persistence shows how long.",
    Cause.RESET: f"Check whether the port uses TLS (then use rediss://…). {_CHECK_LOG}",
    Cause.PROTOCOL: "This port is not Redis: check the port, and what listens on it.",
    Cause.REFUSED: "Check that the server runs, and that this user may use its socket.",
    Cause.MASTER_DOWN: "It is a replica that has lost its master: bring the master back.",
}


def examine_redis(url: str, *, timeout: float) -> AsyncGenerator[Step, None]:
    """Check the connection to a Redis server; see `resilient_io.doctor.examine`."""
    pool = read_redis_url(url)
    target = RedisTarget(pool)
    check_target(target)
    settings: dict[str, Any] = pool.connection_kwargs
    password = str(settings.get("password") or "")
    if isinstance(pool, SentinelConnectionPool):
        return _examine_master(Checks(timeout, target.secrets), pool, target)
    endpoint = None
    if not settings.get("path"):
        endpoint = Endpoint(
            str(settings.get("host") or "localhost"), int(settings.get("port") or _PORT)
        )
    return _examine(Checks(timeout, [password]), target, endpoint, gave_password=bool(password))


async def _examine_master(
    checks: Checks, pool: SentinelConnectionPool, target: RedisTarget
) -> AsyncGenerator[Step, None]:
    """Yield the steps for the Sentinels, then those for the master that they know."""
    master: list[Endpoint] = []
    try:
        async with contextlib.aclosing(examine_sentinels(checks, pool, target, master)) as steps:
            async for step in steps:
                yield step
        if master:
            given = bool(pool.connection_kwargs.get("password"))
            server = _examine(checks, target, master[0], gave_password=given)
            async with contextlib.aclosing(server) as steps:
                async for step in steps:
                    yield step
    finally:
        await target.aclose()


async def _examine(
    checks: Checks, target: RedisTarget, endpoint: Endpoint | None, *, gave_password: bool
) -> AsyncGenerator[Step, None]:
    """Yield the steps, until one finds that the next ones make no sense."""
    opened: list[AbstractConnection] = []
    try:
        if endpoint is not None:
            async with contextlib.aclosing(check_path(checks, [endpoint])) as path:
                async for step in path:
                    yield step
            if not endpoint.reached:
                return
            if target.uses_tls:
                limit = checks.half
                step = await checks.run(
                    "TLS",
                    lambda: _check_tls(target, endpoint, limit),
                    on_timeout=problem(
                        f"{endpoint.text} accepts connections, but does not answer in the TLS "
                        "handshake",
                        "Check whether the server is frozen, and whether the port uses TLS.",
                    ),
                )
                yield step
                if step.status is Status.PROBLEM:
                    return
        limit = checks.half
        yield await checks.run(
            "login",
            lambda: _check_login(target, endpoint, limit, opened, gave_password=gave_password),
            on_timeout=_NO_ANSWER_TO_LOGIN,
        )
        if opened:
            ask = query_over(opened[0], checks.left)
            step = await checks.run("reply", lambda: check_reply(ask), on_timeout=_NO_REPLY)
            yield step
            sock = socket_of(opened[0])
            if step.status is not Status.PROBLEM and read_link(sock) is not None:
                yield await check_link(checks, sock, lambda: _send_many(opened[0]))
    finally:
        for each in opened:
            abort(each)
        await target.aclose()


async def _send_many(connection: AbstractConnection) -> None:
    """Send many requests at once, each as large as a packet, and read their replies."""
    request = b"".join(connection.pack_command("PING", bytes(_PACKET)))
    await connection.send_packed_command(request * REQUESTS)
    for _ in range(REQUESTS):
        await connection.read_response()


async def _check_tls(target: RedisTarget, endpoint: Endpoint, timeout: float) -> CheckResult:
    connection: Any = target.connection(client_name=None, connect_timeout=timeout)
    try:
        # redis-py 8.1 `SSLConnection.ssl_context`: reads the files that the URL names.
        load_files(connection)
        context: ssl.SSLContext = connection.ssl_context.get()
    except OSError as error:  # also ssl.SSLError
        return problem(
            f"a certificate file of the URL cannot be used: {error}",
            "ssl_ca_certs=, ssl_certfile= and ssl_keyfile= are paths of PEM files.",
        )
    check = functools.partial(
        check_tls, endpoint, context, trust_option="ssl_ca_certs", plain_scheme="redis"
    )
    try:
        async with asyncio.timeout(_FIRST_HANDSHAKE):
            return await check()
    except TimeoutError:
        # Plain Redis takes a TLS greeting for the beginning of a command, and waits.
        if await answers_without_tls(endpoint.host, endpoint.port):
            return no_tls(endpoint, "redis")
    return await check()


async def _check_login(
    target: RedisTarget,
    endpoint: Endpoint | None,
    timeout: float,
    opened: list[AbstractConnection],
    *,
    gave_password: bool,
) -> CheckResult:
    try:
        connection = await connect(target, client_name=None, timeout=timeout, user_timeout=timeout)
    except (driver.RedisError, OSError) as error:
        tls = target.uses_tls
        result = judge_login(error, uses_tls=tls, gave_password=gave_password)
        closed = result.data.get("cause") in (Cause.RESET.value, Cause.TLS.value)
        if endpoint is not None and not tls and closed and await uses_tls(endpoint):
            return tls_needed(endpoint, "rediss", "ssl_ca_certs")
        return result
    opened.append(connection)
    try:
        user = _text(await query_over(connection, timeout)("ACL", "WHOAMI"))
    except driver.ResponseError:  # Redis 5, or no permission
        return ok("logged in")
    return ok(f"logged in as {user}", user=user)


def judge_login(error: BaseException, *, uses_tls: bool, gave_password: bool) -> CheckResult:
    """Return why the login failed, after TCP (and TLS) succeeded."""
    failure = connection_failure(error, tls=uses_tls)
    cause, found = failure.cause, clean_text(failure.detail)
    advice = _ADVICE.get(cause, _CHECK_LOG)
    if cause is Cause.TIMED_OUT:
        return _NO_ANSWER_TO_LOGIN
    if cause is Cause.AUTH and not gave_password:
        found = "the server requires a password, and the URL has none"
        advice = "Use redis://user:password@host (redis://:password@host for the default user)."
    elif cause is Cause.AUTH:
        found = f"authentication failed: {found}"
    elif uses_tls and cause in (Cause.RESET, Cause.TLS):
        if "certificate required" in found.lower():
            found = "the server requires a client certificate"
        advice = CLIENT_CERTIFICATE
    return problem(found, advice, cause=cause.value)


async def check_reply(ask: Query) -> CheckResult:
    """Check whether the server replies, and whether it serves reads and writes of all keys."""
    loop = asyncio.get_running_loop()
    try:
        began = loop.time()
        await ask("PING")
        took = loop.time() - began
        server = await _hello(ask)
    except (driver.RedisError, ConnectionError) as error:
        failure = connection_failure(error)
        refused = isinstance(error, (driver.ResponseError, driver.BusyLoadingError))
        what = "the server refuses commands" if refused else "the connection was lost"
        return problem(
            f"{what}: {describe_error(error)}",
            _ADVICE.get(failure.cause, _CHECK_LOG) if refused else _CHECK_LOG,
            cause=failure.cause.value,
        )
    product = f"{server.get('server', 'the server')} {server.get('version', '')}".strip()
    found = ok(
        f"{product} replies in {took * 1e3:.1f} ms",
        ping=round(took, 6),
        version=server.get("version"),
    )
    if server.get("mode") == "sentinel":
        return problem(
            "this is a Sentinel, not the server with the data",
            "Use redis+sentinel://host:26379/mymaster, or ResilientRedis.from_sentinel(...), which "
            "ask the Sentinels for the master.",
        )
    results = [found]
    if server.get("mode") == "cluster":
        results.append(
            note(
                "this is one node of a cluster, which holds only some of the keys",
                "Use redis.asyncio.RedisCluster: for the keys of other nodes, a client of one node "
                "gets MOVED.",
            )
        )
    if server.get("role") in ("replica", "slave"):
        results.append(
            problem(
                "this is a replica: it refuses writes (READONLY)",
                "Use the master in the URL (redis-cli ROLE shows it), or a Sentinel or Service "
                "that follows the master. A client that only reads works.",
            )
        )
    return merged(results)


async def _hello(ask: Query) -> dict[str, str]:
    """Return the server's name, version, mode and role; empty before Redis 6."""
    try:
        reply = await ask("HELLO")
    except driver.ResponseError:
        return {}
    pairs = reply.items() if isinstance(reply, dict) else zip(reply[::2], reply[1::2], strict=False)
    return {_text(name): _text(value) for name, value in pairs}


def _text(reply: Any) -> str:
    return reply.decode(errors="replace") if isinstance(reply, bytes) else str(reply)
