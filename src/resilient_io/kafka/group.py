"""Leaving a group in a consumer's stead, over a connection of our own."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from aiokafka import conn as driver
from aiokafka.errors import KafkaError
from aiokafka.protocol.group import LeaveGroupRequest

from .internals import Membership, connection_options, drop

if TYPE_CHECKING:
    from .protocols import Connection, Driver

__all__ = ["leave_group"]

_create_conn: Any = driver.create_conn


async def leave_group(instance: Driver, membership: Membership, timeout: float) -> None:
    """Tell the coordinator that a member is gone, so that it needs not wait for its session's end.

    A best effort: when it fails, the session's timeout does the same, later.

    Args:
        instance: The consumer, for how to log in.
        membership: What to leave.
        timeout: Seconds for all of it.
    """
    with contextlib.suppress(KafkaError, OSError):
        async with asyncio.timeout(timeout):
            connection: Connection = await _create_conn(
                membership.host,
                membership.port,
                request_timeout_ms=int(timeout * 1000) + 1000,
                **connection_options(instance),
            )
            try:
                await connection.send(LeaveGroupRequest(membership.group, membership.member))
            finally:
                drop(connection)
