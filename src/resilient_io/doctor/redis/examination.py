"""The order in which a Redis server is looked at."""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING, Any, Final

from redis import exceptions as driver

from resilient_io.doctor.looking import Looking, ok, problem
from resilient_io.doctor.network import Place, look_at_names, look_at_ports, silent_names
from resilient_io.doctor.step import Status
from resilient_io.doctor.tls import look_at_tls, no_tls, speaks_tls
from resilient_io.health import Cause
from resilient_io.redis.connect import RedisTarget, connect
from resilient_io.redis.options import check_target, pool_from_url

from .account import Account, Unanswered, text_of
from .load import look_at_load, look_at_slow_log
from .login import judge_login
from .saving import look_at_persistence
from .standing import (
    look_at_clients,
    look_at_memory,
    look_at_role,
    look_at_server,
)

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping

    from redis.asyncio.connection import ConnectionPool

    from resilient_io.doctor.looking import Finding
    from resilient_io.doctor.step import Step

__all__ = ["examine_redis"]

_PORT: Final = 6379

_SHARE: Final = 0.5
"""How much of the time that is left one step before the login may use: others come after it."""

_GREETING: Final = 0.7
"""Seconds for a TLS handshake before it is asked whether the port answers in the clear."""

_LOOKS: Final[dict[str, Callable[[Account], Awaitable[Finding]]]] = {
    "server": look_at_server,
    "role": look_at_role,
    "memory": look_at_memory,
    "persistence": look_at_persistence,
    "clients": look_at_clients,
    "slow log": look_at_slow_log,
    "load": look_at_load,
}


def examine_redis(url: str, *, timeout: float) -> AsyncGenerator[Step, None]:
    """Look at a Redis server; see `resilient_io.doctor.examine`.

    Raises:
        ConfigurationError: The URL or an option in it cannot be used.
    """
    pool = pool_from_url(url, {})
    target = RedisTarget(pool)
    check_target(target)
    return _examine(pool, target, Looking(timeout))


async def _examine(
    pool: ConnectionPool, target: RedisTarget, looking: Looking
) -> AsyncGenerator[Step, None]:
    way = _Way(pool.connection_kwargs, target, looking)
    try:
        for take in way.steps():
            step = await take()
            yield step
            if step.status is Status.PROBLEM:
                return
        if way.account is None:
            return
        for name, look in _LOOKS.items():
            step = await looking.take(name, functools.partial(_asked, look, way.account))
            yield step
            if step.data.get("mode") == "sentinel":
                return  # it keeps no data, so there is nothing more to see
    finally:
        if way.account is not None:
            way.account.close()
        await target.aclose()


async def _asked(look: Callable[[Account], Awaitable[Finding]], account: Account) -> Finding:
    try:
        return await look(account)
    except Unanswered as unanswered:
        return unanswered.finding


class _Way:
    """The way to a server up to the login, one step after the other.

    Attributes:
        account: The way's end: a connection over which the server answers; None before.
    """

    def __init__(self, settings: Mapping[str, Any], target: RedisTarget, looking: Looking) -> None:
        self.account: Account | None = None
        self._looking = looking
        self._target = target
        self._gives_password = bool(settings.get("password") or settings.get("credential_provider"))
        self._place: Place | None = None
        if not settings.get("path"):
            host = str(settings.get("host") or "localhost")
            self._place = Place(host, int(settings.get("port") or _PORT))

    def steps(self) -> list[Callable[[], Awaitable[Step]]]:
        """Give the steps; one that is a problem ends the way."""
        if self._place is None:
            return [self._take_login]
        tls = [self._take_tls] if self._target.uses_tls else []
        return [
            functools.partial(self._take_name, self._place),
            functools.partial(self._take_port, self._place),
            *(functools.partial(take, self._place) for take in tls),
            self._take_login,
        ]

    async def _take_name(self, place: Place) -> Step:
        look = functools.partial(look_at_names, [place])
        return await self._looking.take("name", look, share=_SHARE, silence=silent_names([place]))

    async def _take_port(self, place: Place) -> Step:
        wait = self._looking.left * _SHARE
        return await self._looking.take("TCP", lambda: look_at_ports([place], wait))

    async def _take_tls(self, place: Place) -> Step:
        return await self._looking.take(
            "TLS",
            functools.partial(self._look_at_tls, place, self._looking.left * _SHARE),
            silence=problem(
                f"{place.written} takes connections, but says nothing in the handshake",
                "Look whether the server is frozen, and whether the port speaks TLS at all.",
            ),
        )

    async def _look_at_tls(self, place: Place, timeout: float) -> Finding:
        connection: Any = self._target.connection(client_name=None, connect_timeout=timeout)
        try:
            # redis-py 8.1 `SSLConnection.ssl_context`: reads the files that the URL names.
            context: ssl.SSLContext = connection.ssl_context.get()
        except OSError as error:  # also ssl.SSLError
            return problem(
                f"a certificate file of the URL cannot be used: {error}",
                "ssl_ca_certs=, ssl_certfile= and ssl_keyfile= are paths of PEM files.",
            )
        for patience in (_GREETING, timeout):
            try:
                async with asyncio.timeout(patience):
                    return await look_at_tls(
                        place, context, trust_option="ssl_ca_certs", plain_scheme="redis"
                    )
            except TimeoutError:
                # A plain Redis takes a TLS greeting for the beginning of a command, and waits.
                if await self._target.check_plain_port():
                    break
                if patience == timeout:
                    raise
        return no_tls(place, "redis")

    async def _take_login(self) -> Step:
        timeout = self._looking.left
        return await self._looking.take(
            "login",
            functools.partial(self._look_at_login, timeout * _SHARE),
            silence=judge_login(TimeoutError(), self._target, gave_password=self._gives_password),
        )

    async def _look_at_login(self, timeout: float) -> Finding:
        try:
            connection = await connect(
                self._target, client_name=None, timeout=timeout, user_timeout=timeout
            )
        except (driver.RedisError, OSError) as error:
            found = judge_login(error, self._target, gave_password=self._gives_password)
            return await self._look_for_tls(found)
        account = self.account = Account(connection, timeout)
        try:
            user = text_of(await account.ask("ACL", "WHOAMI"))
        except Unanswered:
            return ok("let in")
        return ok(f"let in as {user}", user=user)

    async def _look_for_tls(self, found: Finding) -> Finding:
        """Ask a server that hung up on plain words whether it speaks TLS."""
        hung_up = found.data.get("cause") == Cause.RESET.value
        if self._place is None or self._target.uses_tls or not hung_up:
            return found
        if not await speaks_tls(self._place):
            return found
        return problem(
            f"{self._place.written} speaks TLS, and the URL says that it does not",
            "Write rediss://…, with ssl_ca_certs=/path/of/authority.pem where it is your own.",
            cause=Cause.TLS.value,
        )
