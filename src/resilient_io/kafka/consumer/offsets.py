"""Queries of offsets: of a partition's log, of the group, and of the consumer."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from resilient_io.deadlines import current_deadline, earlier
from resilient_io.errors import ConfigurationError

from ..errors import KafkaDeadlineExceeded, KafkaUnavailable, classify_error, without_secrets
from . import internals

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping

    from ..connect import KafkaTarget
    from ..driver import ConsumerDriver
    from ..supervisor import Supervisor
    from .assignment import AssignedPartition
    from .fetcher import Fetcher

_Result = TypeVar("_Result")

_CHECK_INTERVAL = 0.05
"""Seconds between two checks whether a position is known: aiokafka notifies of none of them."""


class OffsetQueries:
    """Asks the brokers for offsets, on the consumer's aiokafka instance.

    Every method waits for Kafka within its timeout (None for no limit), and an enclosing
    `resilient_io.deadline`. It raises `KafkaDeadlineExceeded`, `KafkaUnavailable`, `KafkaClosed`,
    or what Kafka refuses permanently. Cancelling returns immediately.
    """

    def __init__(
        self, dependency: str, *, target: KafkaTarget, supervisor: Supervisor[ConsumerDriver]
    ) -> None:
        self._dependency = dependency
        self._target = target
        self._supervisor = supervisor

    async def beginning(
        self, partitions: Iterable[TopicPartition], timeout: float | None
    ) -> dict[TopicPartition, int]:
        """Return the first offset that each partition still has."""
        asked = list(partitions)
        return await self._ask(
            "beginning_offsets", lambda instance: instance.beginning_offsets(asked), timeout
        )

    async def end(
        self,
        partitions: Iterable[TopicPartition],
        timeout: float | None,
        operation: str = "end_offsets",
    ) -> dict[TopicPartition, int]:
        """Return the offset after the last record of each partition."""
        asked = list(partitions)
        return await self._ask(operation, lambda instance: instance.end_offsets(asked), timeout)

    async def for_times(
        self, times: Mapping[TopicPartition, int], timeout: float | None
    ) -> dict[TopicPartition, Any]:
        """Return the first record of each partition from a time on, or None."""
        return await self._ask(
            "offsets_for_times", lambda instance: instance.offsets_for_times(times), timeout
        )

    async def committed(self, partition: TopicPartition, timeout: float | None) -> int | None:
        """Return the offset that the group has committed for a partition, or None."""
        found = await self._ask(
            "committed",
            lambda instance: internals.committed_offsets(instance, [partition]),
            timeout,
        )
        known = found.get(partition)
        return None if known is None or known.offset < 0 else known.offset

    async def position(
        self,
        partition: TopicPartition,
        fetcher: Fetcher,
        find: Callable[[TopicPartition], AssignedPartition | None],
        timeout: float | None,
    ) -> int:
        """Return the offset of the next record that is delivered of an assigned partition."""

        async def known(_instance: ConsumerDriver) -> int:
            while True:
                assigned = find(partition)
                if assigned is None:
                    raise not_assigned(partition)
                position = fetcher.position(assigned)
                if position is not None:
                    return position
                await asyncio.sleep(_CHECK_INTERVAL)

        return await self._ask("position", known, timeout)

    async def _ask(
        self,
        operation: str,
        request: Callable[[ConsumerDriver], Awaitable[_Result]],
        timeout: float | None,
    ) -> _Result:
        loop = asyncio.get_running_loop()
        began = loop.time()
        until = None if timeout is None else began + timeout
        instance = await self._supervisor.ready(until, operation)
        kind: type[KafkaDeadlineExceeded | KafkaUnavailable]
        failure: Exception
        try:
            async with asyncio.timeout_at(earlier(until, current_deadline())):
                with self._supervisor.driver_log.filtering():
                    return await request(instance)
        except TimeoutError as error:
            kind, reason, failure = KafkaDeadlineExceeded, "no offsets came in time", error
        except KafkaError as error:
            kind, reason = KafkaUnavailable, "the offsets could not be queried"
            failure = without_secrets(error, self._target.secrets())
        # Raised here, so that the driver's error, which may contain a secret, is not its context.
        if classify_error(failure).kind == "permanent":
            raise failure
        raise kind(
            reason,
            dependency=self._dependency,
            operation=operation,
            attempts=1,
            elapsed=loop.time() - began,
        ) from failure


def not_assigned(partition: tuple[str, int]) -> ConfigurationError:
    """Return the error for a partition that is not assigned to the consumer."""
    return ConfigurationError(
        f"{tuple(partition)} is not assigned to this consumer: use partitions returned by "
        f"assignment()"
    )


def check_partitions(partitions: Iterable[tuple[str, int]]) -> list[TopicPartition]:
    """Return topics and numbers as `TopicPartition`s; raise for anything else."""
    return [_check_partition(each) for each in partitions]


def _check_partition(partition: object) -> TopicPartition:
    if isinstance(partition, tuple) and [*map(type, partition)] == [str, int]:
        return TopicPartition(*partition)
    raise TypeError(
        f'a partition must be a pair of topic and number, such as ("orders", 0), not {partition!r}'
    )
