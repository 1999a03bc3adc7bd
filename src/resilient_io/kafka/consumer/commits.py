"""Commits what is contiguous, only for partitions that are ours, and never for ever."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from aiokafka.errors import KafkaError

from ..driver import InstanceEnded
from ..errors import meaning_of
from . import internals

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aiokafka import TopicPartition

    from .assignment import Holding
    from .stats import Counters


_log = logging.getLogger("resilient_io.kafka")

_AGAIN = 0.1
"""Seconds between two attempts of a commit that matters."""


class Committer:
    """Commits one after the other: an older offset never overtakes a newer one.

    Args:
        name: Of the dependency, for the log.
        counters: Counts what became of it.
    """

    __slots__ = ("_counters", "_lock", "_name", "_refused")

    def __init__(self, name: str, counters: Counters) -> None:
        self._name = name
        self._counters = counters
        self._lock = asyncio.Lock()
        self._refused = False

    async def commit(
        self, holdings: Iterable[Holding], timeout: float, *, insist: bool = False
    ) -> bool:
        """Commit what is due of these; an outage or a rebalance is never raised.

        Cancelling leaves at once; a request that was written may still be carried out.

        Args:
            holdings: Partitions that are ours; those without a group are passed over.
            timeout: Longest time in seconds.
            insist: Whether to try again within it, if that may help.

        Returns:
            Whether nothing is due any more.
        """
        mine = [holding for holding in holdings if holding.member is not None]
        try:
            async with asyncio.timeout(timeout), self._lock:
                while not await self._attempt(mine):
                    if not insist or self._refused:
                        return False
                    await asyncio.sleep(_AGAIN)
        except TimeoutError:
            self._counters.commits_failed += 1
            return False
        return True

    async def _attempt(self, holdings: list[Holding]) -> bool:
        due: dict[TopicPartition, int] = {}
        going = []
        for holding in holdings:
            offset = holding.due if holding.ours else None
            if offset is not None:
                due[holding.partition] = offset
                going.append(holding)
        if not going or going[0].member is None:
            return True
        try:
            await internals.commit_once(going[0].instance, due, going[0].member)
        except Exception as error:  # noqa: BLE001 - the boundary to the driver: anything may come out of it, and closing has to go on
            self._failed(error)
            return False
        self._refused = False
        self._counters.commits += 1
        for holding in going:
            holding.committed = due[holding.partition]
            holding.certain = True
        return True

    def _failed(self, error: Exception) -> None:
        self._counters.commits_failed += 1
        kind = meaning_of(error).kind
        before, self._refused = self._refused, kind in ("rebalance", "permanent", "fatal")
        lasting = kind == "permanent" or not isinstance(error, KafkaError)
        if lasting and not before and not isinstance(error, InstanceEnded):
            _log.error(
                "%s: offsets cannot be committed: %r",
                self._name,
                error,
                extra={
                    "event": "commit_refused",
                    "dependency": self._name,
                    "error": type(error).__name__,
                },
            )
