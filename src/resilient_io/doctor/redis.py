"""Check the connection to a Redis server: name, TCP, TLS, login and reply."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from typing import TYPE_CHECKING, Any, Final

from redis import exceptions as driver

from resilient_io.link import read_link
from resilient_io.redis.connect import RedisTarget, connect
from resilient_io.redis.driver_connection import abort, query_over, socket_of
from resilient_io.redis.errors import connection_failure
from resilient_io.redis.options import check_target
from resilient_io.redis.tls import answers_without_tls, load_files
from resilient_io.text import describe_error

from .cluster import examine_cluster
from .link import REQUESTS, check_link
from .login import ADVICE, CHECK_LOG, NO_ANSWER_TO_LOGIN, explain_login, pairs_of, text_of
from .network import Endpoint, check_path
from .steps import CheckResult, Checks, Status, merged, ok, problem
from .tls import check_tls, no_tls

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncGenerator

    from redis.asyncio.connection import AbstractConnection, ConnectionPool

    from resilient_io.redis.driver_connection import Query

    from .steps import Step

_PORT: Final = 6379
_FIRST_HANDSHAKE: Final = 0.7
"""Seconds to wait for a TLS handshake before the port is tried without TLS."""

_PACKET: Final = 1400  # bytes

_NO_REPLY: Final = problem(
    "logged in, but no reply to a command",
    "The server has just accepted the login, so it is busy with one command, or has been frozen "
    "since: try again, and check its CPU and SLOWLOG GET.",
)


def examine_redis(pool: ConnectionPool, *, timeout: float) -> AsyncGenerator[Step, None]:
    """Check the connection to a Redis server; see `resilient_io.doctor.examine`."""
    target = RedisTarget(pool, sentinel=True)  # a Sentinel may answer: the step reply reports it
    check_target(target)
    settings: dict[str, Any] = pool.connection_kwargs
    password = str(settings.get("password") or "")
    endpoint = None
    if not settings.get("path"):
        endpoint = Endpoint(
            str(settings.get("host") or "localhost"), int(settings.get("port") or _PORT)
        )
    return _examine(Checks(timeout, [password]), pool, target, endpoint)


async def _examine(
    checks: Checks, pool: ConnectionPool, target: RedisTarget, endpoint: Endpoint | None
) -> AsyncGenerator[Step, None]:
    """Yield the steps, until one finds that the next ones make no sense."""
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
                    lambda: check_server_tls(target, endpoint, limit),
                    on_timeout=silent_handshake(endpoint),
                )
                yield step
                if step.status is Status.PROBLEM:
                    return
        async with contextlib.aclosing(_examine_login(checks, pool, target, endpoint)) as steps:
            async for step in steps:
                yield step
    finally:
        await target.aclose()


async def _examine_login(
    checks: Checks, pool: ConnectionPool, target: RedisTarget, endpoint: Endpoint | None
) -> AsyncGenerator[Step, None]:
    """Yield the steps that need a connection."""
    opened: list[AbstractConnection] = []
    gave_password = bool(pool.connection_kwargs.get("password"))
    limit = checks.half
    try:
        yield await checks.run(
            "login",
            lambda: _check_login(target, endpoint, limit, opened, gave_password=gave_password),
            on_timeout=NO_ANSWER_TO_LOGIN,
        )
        if not opened:
            return
        ask = query_over(opened[0], checks.left)
        step = await checks.run("reply", lambda: check_reply(ask), on_timeout=_NO_REPLY)
        yield step
        in_cluster = step.data.get("mode") == "cluster"
        sock = socket_of(opened[0])
        if step.status is not Status.PROBLEM and read_link(sock) is not None:
            yield await check_link(checks, sock, lambda: _send_many(opened[0]))
        if in_cluster:
            async with contextlib.aclosing(examine_cluster(checks, pool, opened[0])) as steps:
                async for step in steps:
                    yield step
    finally:
        for each in opened:
            abort(each)


async def _send_many(connection: AbstractConnection) -> None:
    """Send many requests at once, each as large as a packet, and read their replies."""
    request = b"".join(connection.pack_command("PING", bytes(_PACKET)))
    await connection.send_packed_command(request * REQUESTS)
    for _ in range(REQUESTS):
        await connection.read_response()


def silent_handshake(endpoint: Endpoint) -> CheckResult:
    """Return that a server accepts connections, but does not answer in the TLS handshake."""
    return problem(
        f"{endpoint.text} accepts connections, but does not answer in the TLS handshake",
        "Check whether the server is frozen, and whether the port uses TLS.",
    )


async def check_server_tls(target: RedisTarget, endpoint: Endpoint, timeout: float) -> CheckResult:
    """Check the TLS of a Redis server, with the certificate files of its settings."""
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
        return await explain_login(error, target, endpoint, gave_password=gave_password)
    opened.append(connection)
    try:
        user = text_of(await query_over(connection, timeout)("ACL", "WHOAMI"))
    except driver.ResponseError:  # Redis 5, or no permission
        return ok("logged in")
    return ok(f"logged in as {user}", user=user)


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
            ADVICE.get(failure.cause, CHECK_LOG) if refused else CHECK_LOG,
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
            f"Use redis+sentinel://host:port/{await _monitored(ask)}, with all Sentinels in the "
            "URL, and ResilientRedis.from_url or ResilientRedis.from_sentinel.",
        )
    if server.get("mode") == "cluster":
        # A replica of a cluster leads its clients to the masters.
        which = "this is a node of a cluster: use ResilientRedisCluster, which follows the slots"
        return merged([found, ok(which, mode="cluster")])
    if server.get("role") in ("replica", "slave"):
        return merged(
            [
                found,
                problem(
                    "this is a replica: it refuses writes (READONLY)",
                    "Use the master in the URL (redis-cli ROLE shows it), or a Sentinel or Service "
                    "that follows the master. A client that only reads works.",
                ),
            ]
        )
    return found


async def _monitored(ask: Query) -> str:
    """Return the name of the first master that a Sentinel monitors."""
    try:
        masters = await ask("SENTINEL", "MASTERS")
    except driver.ResponseError:
        return "name"
    names = [pairs_of(each).get("name", "") for each in masters or ()]
    return next(filter(None, names), "name")


async def _hello(ask: Query) -> dict[str, str]:
    """Return the server's name, version, mode and role; empty before Redis 6."""
    try:
        reply = await ask("HELLO")
    except driver.ResponseError:
        return {}
    return pairs_of(reply)
