"""Making a connection: handshake, identity on the server, and the fencing of dead lanes."""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import TYPE_CHECKING, Any

from redis import exceptions as driver
from redis.exceptions import ResponseError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from redis.asyncio.connection import AbstractConnection

    from .target import Target

    Ask = Callable[..., Awaitable[Any]]


async def dial(
    target: Target, *, client_name: str | None, timeout: float, user_timeout: float
) -> AbstractConnection:
    """Connect and shake hands, with a new connection object, within `timeout`.

    A quarter of a second more when TLS was not answered: a plain port is told from a frozen one.
    On failure and on cancellation the socket is closed.

    Args:
        target: Where to.
        client_name: What the connection calls itself on the server.
        timeout: Seconds for look-up, TCP, TLS and handshake together.
        user_timeout: Seconds that sent bytes may stay unacknowledged (TCP_USER_TIMEOUT).

    Raises:
        redis.exceptions.RedisError: What redis-py raises for a failed connection.
        OSError: The name could not be looked up, or the time was used up (`TimeoutError`).
        ssl.SSLError: TLS failed, also because the port speaks plain Redis.
    """
    if target.speaks_plainly and await target.look_for_plain_port():
        raise _plain_port()
    connection: AbstractConnection | None = None
    connected = False
    try:
        async with asyncio.timeout(timeout):
            await target.locate()
            connection = target.connection(client_name=client_name, connect_timeout=timeout)
            await _shake_hands(connection)
        _set_user_timeout(connection, user_timeout)
        connected = True
    except (driver.TimeoutError, TimeoutError) as error:
        if target.uses_tls and await target.look_for_plain_port():
            raise _plain_port() from error
        raise
    else:
        return connection
    finally:
        if connection is not None and not connected:
            abort(connection)


async def _shake_hands(connection: AbstractConnection) -> None:
    try:
        await connection.connect()  # type: ignore[no-untyped-call]
    except (driver.RedisError, OSError):
        raise
    # The boundary to the application's own code: its credential provider, or its
    # `redis_connect_func`, may raise anything, for example while what it asks is away.
    except Exception as error:
        # Its kind only: its words may hold anything.
        raise driver.ConnectionError(
            f"the credential provider, or redis_connect_func, raised {type(error).__name__}"
        ) from error


def _plain_port() -> ssl.SSLError:
    return ssl.SSLError(1, "TLS was not answered, but the port speaks plain Redis")


def abort(connection: AbstractConnection) -> None:
    """Close a connection at once, without waiting and without a farewell."""
    # redis-py 8.1 `AbstractConnection._writer`: a StreamWriter, or None when it is not connected.
    writer = getattr(connection, "_writer", None)
    transport = getattr(writer, "transport", None)
    if transport is not None:
        transport.abort()
        connection._reader = connection._writer = None


def is_lost(connection: AbstractConnection) -> bool:
    """Tell whether a connection is known to be gone, before anything is sent on it.

    redis-py 8.1 would connect anew by itself, without the keys that were watched.
    """
    writer = getattr(connection, "_writer", None)
    if writer is None:
        return not connection.is_connected
    reader: asyncio.StreamReader | None = connection._reader
    return writer.transport.is_closing() or reader is None or reader.at_eof()


def can_be_a_lane(connection: AbstractConnection) -> bool:
    """Tell whether the connection has a real transport that a lane can take over."""
    transport = getattr(getattr(connection, "_writer", None), "transport", None)
    # By what it can do: uvloop's transports are no subclasses of `asyncio.Transport`.
    return callable(getattr(transport, "set_protocol", None))


def ask_over(connection: AbstractConnection, timeout: float) -> Ask:
    """Return a function that asks one command over `connection`, within `timeout` seconds."""

    async def ask(*command: object) -> object:
        async with asyncio.timeout(timeout):
            await connection.send_command(*command)
            return await connection.read_response()

    return ask


async def introduce(ask: Ask, name: str) -> int | None:
    """Give our connection a name and ask for its CLIENT ID; None where an ACL forbids either.

    Not in the handshake: there redis-py would take the forbidden name for a failed connection.
    """
    try:
        await ask("CLIENT", "SETNAME", name)
    except ResponseError:
        return None
    return await client_id(ask)


async def client_id(ask: Ask) -> int | None:
    """Ask for our CLIENT ID; None where an ACL forbids the question."""
    try:
        return int(await ask("CLIENT", "ID"))
    except ResponseError:
        return None


async def fence(ask: Ask, *, client_id: int | None, name: str) -> bool:
    """Make sure that nothing that a dead connection sent can be applied from now on.

    The server's connection of that id is killed if it still carries our name: ids start again
    when the server restarts.

    Returns:
        False where the server forbids it, so that nothing is known.
    """
    if client_id is None:
        return False
    try:
        listed = await ask("CLIENT", "LIST", "ID", client_id)
        text = listed.decode() if isinstance(listed, bytes) else str(listed)
        if f" name={name} " in text:
            await ask("CLIENT", "KILL", "ID", client_id)
    except ResponseError as error:
        # It ended between the two questions: just what we wanted.
        return "No such client" in str(error)
    return True


def _set_user_timeout(connection: AbstractConnection, seconds: float) -> None:
    writer = getattr(connection, "_writer", None)
    sock = writer.get_extra_info("socket") if writer is not None else None
    option = getattr(socket, "TCP_USER_TIMEOUT", None)
    if option is not None and sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.IPPROTO_TCP, option, int(seconds * 1000))
