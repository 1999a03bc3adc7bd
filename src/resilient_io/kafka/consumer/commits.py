"""Commits the offsets of assigned partitions, within a time limit."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from aiokafka.errors import KafkaError

from ..driver import DriverClosed
from ..errors import classify_error, describe_driver_error
from . import internals

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aiokafka import TopicPartition

    from ..connect import KafkaTarget
    from .assignment import AssignedPartition
    from .stats import ConsumerCounters

_log = logging.getLogger("resilient_io.kafka")

_RETRY_DELAY = 0.1
"""Seconds between two attempts of a commit that is retried."""


class Committer:
    """Runs one commit at a time, so that an older offset never overwrites a newer one.

    Args:
        target: The cluster, whose secrets are kept out of the log.
        dependency: Name of the dependency, for the log.
        counters: The consumer's counters.
    """

    __slots__ = ("_counters", "_dependency", "_lock", "_refused", "_target")

    def __init__(self, target: KafkaTarget, dependency: str, counters: ConsumerCounters) -> None:
        self._target = target
        self._dependency = dependency
        self._counters = counters
        self._lock = asyncio.Lock()
        self._refused = False

    async def commit(
        self, partitions: Iterable[AssignedPartition], timeout: float, *, insist: bool = False
    ) -> bool:
        """Commit what is due. An outage or a rebalance raises no error.

        Cancelling returns immediately; a request that was already sent may still be executed.

        Args:
            partitions: Assigned partitions; those without a group are ignored.
            timeout: Longest time, in seconds.
            insist: Whether to retry within `timeout` where a retry may help.

        Returns:
            Whether nothing is left to commit.
        """
        of_group = [each for each in partitions if each.member is not None]
        try:
            async with asyncio.timeout(timeout), self._lock:
                while not await self._attempt(of_group):
                    if not insist or self._refused:
                        return False
                    await asyncio.sleep(_RETRY_DELAY)
        except TimeoutError:
            self._counters.commits_failed += 1
            return False
        return True

    async def _attempt(self, partitions: list[AssignedPartition]) -> bool:
        due: dict[TopicPartition, int] = {}
        committing = []
        for each in partitions:
            offset = each.offset_to_commit if each.assigned else None
            if offset is not None:
                due[each.partition] = offset
                committing.append(each)
        if not committing or committing[0].member is None:
            return True
        try:
            await internals.commit_once(committing[0].instance, due, committing[0].member)
        # The boundary to the driver, which may raise anything: closing must continue.
        except Exception as error:  # noqa: BLE001
            self._note_failure(error)
            return False
        self._refused = False
        self._counters.commits += 1
        for each in committing:
            each.note_commit(due[each.partition])
        return True

    def _note_failure(self, error: Exception) -> None:
        self._counters.commits_failed += 1
        kind = classify_error(error).kind
        before, self._refused = self._refused, kind in ("rebalance", "permanent", "fatal")
        lasting = kind == "permanent" or not isinstance(error, KafkaError)
        if lasting and not before and not isinstance(error, DriverClosed):
            name = type(error).__name__
            detail = describe_driver_error(error, secrets=self._target.secrets())
            _log.error(
                "%s: offsets cannot be committed: %s",
                self._dependency,
                detail if detail.startswith(name) else f"{name}: {detail}",
                extra={
                    "event": "commit_refused",
                    "dependency": self._dependency,
                    "error": name,
                },
            )
