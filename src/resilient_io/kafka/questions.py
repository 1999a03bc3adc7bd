"""What we ask a broker ourselves, over a connection of aiokafka's: metadata, a coordinator."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aiokafka.errors import NoError, for_code
from aiokafka.protocol.coordination import FindCoordinatorRequest
from aiokafka.protocol.metadata import MetadataRequest
from aiokafka.structs import TopicPartition

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .protocols import Connection

__all__ = ["GROUP", "TRANSACTION", "Seen", "ask_coordinator", "ask_metadata"]

GROUP = 0
"""The type of a group's coordinator (`aiokafka.client.CoordinationType`)."""

TRANSACTION = 1
"""The type of a transactional id's coordinator."""

_NO_LEADER = -1


@dataclass(frozen=True, slots=True)
class Seen:
    """What a broker says of its cluster.

    Attributes:
        brokers: Host and port of each broker by its node id.
        leaderless: Partitions of the topics asked for that have no leader now.
    """

    brokers: dict[int, tuple[str, int]] = field(default_factory=dict)
    leaderless: tuple[TopicPartition, ...] = ()


async def ask_metadata(connection: Connection, topics: Iterable[str], timeout: float) -> Seen:
    """Ask for the brokers, and for the leaders of some topics. Creates no topic.

    Args:
        connection: To any broker.
        topics: Those whose leaders matter; may be none.
        timeout: Longest wait in seconds.

    Raises:
        TimeoutError: No answer came.
        KafkaError: The connection was lost.
    """
    request = MetadataRequest(list(topics), allow_auto_topic_creation=False)
    async with asyncio.timeout(timeout):
        answer: Any = await connection.send(request)
    brokers = {broker[0]: (broker[1], broker[2]) for broker in answer.brokers}
    leaderless = []
    for topic in answer.topics:
        error, name, partitions = topic[0], topic[1], topic[-1]
        if for_code(error) is NoError:
            leaderless += [
                TopicPartition(name, partition[1])
                for partition in partitions
                if partition[2] == _NO_LEADER
            ]
    return Seen(brokers, tuple(leaderless))


async def ask_coordinator(
    connection: Connection, kind: int, key: str, timeout: float
) -> tuple[str, int]:
    """Ask who coordinates a group or a transactional id.

    Args:
        connection: To any broker.
        kind: `GROUP` or `TRANSACTION`.
        key: The group's id, or the transactional id.
        timeout: Longest wait in seconds.

    Returns:
        Host and port.

    Raises:
        TimeoutError: No answer came.
        KafkaError: There is none now, asking is not allowed, or the connection was lost.
    """
    async with asyncio.timeout(timeout):
        answer: Any = await connection.send(FindCoordinatorRequest(key, kind))
    error = for_code(answer.error_code)
    if error is not NoError:
        raise error(key)
    return answer.host, answer.port
