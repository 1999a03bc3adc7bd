"""Check the connection to a Redis server: name, TCP, TLS, login and reply."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from typing import TYPE_CHECKING, Any, Final

from redis import exceptions as driver

from resilient_io.health import Cause
from resilient_io.redis.connect import RedisTarget, abort, connect, query_over
from resilient_io.redis.errors import connection_failure
from resilient_io.redis.options import check_target
from resilient_io.text import clean_text, describe_error

from .network import Endpoint, check_path
from .steps import CheckResult, Checks, Status, merged, note, ok, problem
from .tls import check_tls, no_tls, uses_tls
from .urls import read_redis_url

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncGenerator

    from redis.asyncio.connection import AbstractConnection

    from resilient_io.redis.connect import Query

    from .steps import Step

_PORT: Final = 6379
_SHARE: Final = 0.5
"""How much of the time that is left a step may use: others come after it."""

_FIRST_HANDSHAKE: Final = 0.7
"""Seconds to wait for a TLS handshake before the port is tried without TLS."""

_PINGS: Final = 10
_PAUSE: Final = 0.05
_SLOW: Final = 0.1

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
_ADVICE: Final[dict[Cause, str]] = {
    Cause.WRONG_DATABASE: "Use a database that exists: by default there are 0 to 15 (/0).",
    Cause.MAX_CLIENTS: (
        "Raise maxclients, or find out which clients hold the connections: CLIENT LIST on the "
        "server, and pools that are created per request."
    ),
    Cause.LOADING: "It is reading its data from disk: wait. INFO persistence shows how long.",
    Cause.RESET: (
        "The server closed the connection: check whether the port uses TLS (then use rediss://…), "
        "or a proxy in front has lost its server. The server's log says more."
    ),
    Cause.PROTOCOL: "This port is not Redis: check the port, and what listens on it.",
    Cause.REFUSED: "Check that the server runs, and that this user may use its socket.",
    Cause.MASTER_DOWN: "It is a replica that has lost its master: bring the master back.",
}
_AFTER_TLS: Final = (
    "The server closed the connection after the handshake. Usually it requires a client "
    "certificate (tls-auth-clients yes): set ssl_certfile=…&ssl_keyfile=…. The server's log says "
    "more."
)


def examine_redis(url: str, *, timeout: float) -> AsyncGenerator[Step, None]:
    """Check the connection to a Redis server; see `resilient_io.doctor.examine`.

    Raises:
        ConfigurationError: The URL or an option in it is wrong.
    """
    pool = read_redis_url(url)
    target = RedisTarget(pool)
    check_target(target)
    settings: dict[str, Any] = pool.connection_kwargs
    password = str(settings.get("password") or "")
    endpoint = None
    if not settings.get("path"):
        endpoint = Endpoint(
            str(settings.get("host") or "localhost"), int(settings.get("port") or _PORT)
        )
    examination = _RedisExamination(target, endpoint, gave_password=bool(password))
    return examination.steps(Checks(timeout, [password]))


class _RedisExamination:
    """The checks of one server, and the connection that they make."""

    def __init__(
        self, target: RedisTarget, endpoint: Endpoint | None, *, gave_password: bool
    ) -> None:
        self._target = target
        self._endpoint = endpoint
        self._gave_password = gave_password
        self._connection: AbstractConnection | None = None

    async def steps(self, checks: Checks) -> AsyncGenerator[Step, None]:
        """Yield the steps, until one finds that the next ones make no sense."""
        endpoint = self._endpoint
        try:
            if endpoint is not None:
                async with contextlib.aclosing(check_path(checks, [endpoint])) as path:
                    async for step in path:
                        yield step
                if not endpoint.reached:
                    return
                if self._target.uses_tls:
                    step = await self._run_tls(checks, endpoint)
                    yield step
                    if step.status is Status.PROBLEM:
                        return
            check = functools.partial(self._check_login, checks.left * _SHARE)
            yield await checks.run("login", check, on_timeout=_NO_ANSWER_TO_LOGIN)
            if self._connection is None:
                return
            check = functools.partial(check_reply, query_over(self._connection, checks.left))
            yield await checks.run("reply", check, on_timeout=_NO_REPLY)
        finally:
            if self._connection is not None:
                abort(self._connection)
            await self._target.aclose()

    async def _run_tls(self, checks: Checks, endpoint: Endpoint) -> Step:
        return await checks.run(
            "TLS",
            functools.partial(self._check_tls, endpoint, checks.left * _SHARE),
            on_timeout=problem(
                f"{endpoint.text} accepts connections, but does not answer in the TLS handshake",
                "Check whether the server is frozen, and whether the port uses TLS at all.",
            ),
        )

    async def _check_tls(self, endpoint: Endpoint, timeout: float) -> CheckResult:
        connection: Any = self._target.connection(client_name=None, connect_timeout=timeout)
        try:
            # redis-py 8.1 `SSLConnection.ssl_context`: reads the files that the URL names.
            context: ssl.SSLContext = connection.ssl_context.get()
        except OSError as error:  # also ssl.SSLError
            return problem(
                f"a certificate file of the URL cannot be used: {error}",
                "ssl_ca_certs=, ssl_certfile= and ssl_keyfile= are paths of PEM files.",
            )
        for limit in (_FIRST_HANDSHAKE, timeout):
            try:
                async with asyncio.timeout(limit):
                    return await check_tls(
                        endpoint, context, trust_option="ssl_ca_certs", plain_scheme="redis"
                    )
            except TimeoutError:
                # Plain Redis takes a TLS greeting for the beginning of a command, and waits.
                if await self._target.check_plain_port():
                    break
                if limit == timeout:
                    raise
        return no_tls(endpoint, "redis")

    async def _check_login(self, timeout: float) -> CheckResult:
        try:
            connection = await connect(
                self._target, client_name=None, timeout=timeout, user_timeout=timeout
            )
        except (driver.RedisError, OSError) as error:
            result = judge_login(
                error, uses_tls=self._target.uses_tls, gave_password=self._gave_password
            )
            return await self._try_tls(result)
        self._connection = connection
        try:
            user = _text(await query_over(connection, timeout)("ACL", "WHOAMI"))
        except driver.ResponseError:  # Redis 5, or no permission
            return ok("logged in")
        return ok(f"logged in as {user}", user=user)

    async def _try_tls(self, result: CheckResult) -> CheckResult:
        """Check whether a server that closed a plain connection uses TLS."""
        closed = result.data.get("cause") == Cause.RESET.value
        if self._endpoint is None or self._target.uses_tls or not closed:
            return result
        if not await uses_tls(self._endpoint):
            return result
        return problem(
            f"{self._endpoint.text} uses TLS, but the URL does not",
            "Use rediss://…, with ssl_ca_certs=/path/of/authority.pem for a private authority.",
            cause=Cause.TLS.value,
        )


def judge_login(error: BaseException, *, uses_tls: bool, gave_password: bool) -> CheckResult:
    """Return why the login failed, after TCP (and TLS) succeeded.

    Args:
        error: What redis-py raised.
        uses_tls: Whether the connection uses TLS.
        gave_password: Whether the URL has a password.
    """
    failure = connection_failure(error, tls=uses_tls)
    detail = clean_text(failure.detail)
    data = {"cause": failure.cause.value}
    if failure.cause is Cause.AUTH:
        return _judge_credentials(detail, gave_password=gave_password)
    if failure.cause is Cause.TIMED_OUT:
        return _NO_ANSWER_TO_LOGIN
    if "DENIED" in detail and "protected mode" in detail:
        return problem(
            "the server accepts only local connections (protected mode)",
            "Set a password (requirepass, or ACL users) and an address to bind to; then turn off "
            "protected-mode.",
            **data,
        )
    if uses_tls and failure.cause in (Cause.RESET, Cause.TLS):
        required = "certificate required" in detail.lower()
        found = "the server requires a client certificate" if required else detail
        return problem(found, _AFTER_TLS, **data)
    return problem(detail, _ADVICE.get(failure.cause, "Check the server's log."), **data)


def _judge_credentials(detail: str, *, gave_password: bool) -> CheckResult:
    data = {"cause": Cause.AUTH.value}
    if not gave_password:
        return problem(
            "the server requires a password, and the URL has none",
            "Use redis://user:password@host (redis://:password@host for the default user).",
            **data,
        )
    if "called without any password configured" in detail:
        return problem(
            "the URL has a password, but the server has none for the default user",
            "Remove the password from the URL, or add its user: redis://user:…@.",
            **data,
        )
    if "NOPERM" in detail or "permissions" in detail:
        return problem(
            f"the user lacks permissions for the login: {detail}",
            "Grant them: ACL SETUSER … +hello +auth +select +ping",
            **data,
        )
    return problem(
        "authentication failed: wrong user or password",
        "Check whether the secret was rotated, or belongs to another server. URL-encode special "
        "characters in the password (@ → %40, / → %2F).",
        **data,
    )


async def check_reply(ask: Query) -> CheckResult:
    """Check how fast the server replies, and whether it serves reads and writes of all keys.

    Args:
        ask: Sends a command to the server and returns its reply.
    """
    loop = asyncio.get_running_loop()
    took = []
    try:
        for _ in range(_PINGS):
            began = loop.time()
            await ask("PING")
            took.append(loop.time() - began)
            await asyncio.sleep(_PAUSE)
        server = await _hello(ask)
    except (driver.ResponseError, driver.BusyLoadingError) as error:
        cause = connection_failure(error).cause
        return problem(
            f"the server refuses commands: {clean_text(str(error))}",
            _ADVICE.get(cause, "Check the server's log."),
            cause=cause.value,
        )
    except (driver.RedisError, ConnectionError) as error:
        return problem(
            f"the connection was lost: {describe_error(error)}",
            "Try again. If this happens each time, check the server's log, what is in between (a "
            "proxy, a load balancer), and whether the server restarts.",
        )
    return merged([_judge_latency(sorted(took), server), *_judge_kind(server)])


async def _hello(ask: Query) -> dict[str, str]:
    """Return the server's name, version, mode and role; empty before Redis 6."""
    try:
        reply = await ask("HELLO")
    except driver.ResponseError:
        return {}
    pairs = reply.items() if isinstance(reply, dict) else zip(reply[::2], reply[1::2], strict=False)
    return {_text(name): _text(value) for name, value in pairs}


def _judge_latency(took: list[float], server: dict[str, str]) -> CheckResult:
    median, worst = took[len(took) // 2], took[-1]
    data: dict[str, Any] = {name: server.get(name) for name in ("server", "version", "mode")}
    data |= {"ping_median": round(median, 6), "ping_worst": round(worst, 6)}
    product = f"{server.get('server', 'the server')} {server.get('version', '')}".strip()
    found = f"{product} replies in {median * 1e3:.1f} ms (at most {worst * 1e3:.1f} ms)"
    if median > _SLOW:
        advice = "The network path is long, or the server is busy: see SLOWLOG GET and INFO cpu."
        return note(found, advice, **data)
    return ok(found, **data)


def _judge_kind(server: dict[str, str]) -> list[CheckResult]:
    if server.get("mode") == "sentinel":
        return [
            problem(
                "this is a Sentinel, not the server with the data",
                "Use redis.asyncio.Sentinel(...).master_for(name, redis_class=ResilientRedis), "
                "which asks the Sentinel for the master.",
            )
        ]
    results = []
    if server.get("mode") == "cluster":
        results.append(
            note(
                "this is one node of a cluster, which holds only some of the keys",
                "Use redis.asyncio.RedisCluster: for the keys of other nodes, a client of one node "
                "gets MOVED. redis-cli --cluster check shows whether the cluster serves all slots.",
            )
        )
    if server.get("role") in ("replica", "slave"):
        results.append(
            problem(
                "this is a replica: it refuses writes (READONLY)",
                "Use the master in the URL (redis-cli ROLE shows it), or a Sentinel or Service "
                "that follows the master. A client that only reads works.",
                role="replica",
            )
        )
    return results


def _text(reply: Any) -> str:
    return reply.decode(errors="replace") if isinstance(reply, bytes) else str(reply)
