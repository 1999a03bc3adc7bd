"""Takes records from the driver's instance in service, and survives what happens to it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from ..driver import InstanceEnded
from ..errors import meaning_of
from . import internals
from .record import Record, UnreadableRecord

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from aiokafka import TopicPartition

    from ..protocols import ConsumerDriver
    from .assignment import Holding, Holdings, PartitionProgress
    from .stats import Counters


_PATIENCE = 5
"""Failures in a row after which an instance is replaced, though each seemed to pass by itself."""

_PAUSE = 0.1
"""Seconds after the first failure of an instance before it is asked again; doubles with each."""

_WARY = 2
"""Rounds, for each partition, in which each is asked by itself after one has raised."""


class Feed:
    """Hands out records of the partitions that are ours and not paused.

    Attributes:
        held: Whether nothing is handed out for now; Kafka hears of us all the same.

    Args:
        name: Of the dependency, for errors.
        holdings: The partitions that are ours.
        reader: Makes records of ours out of the driver's.
        broken: Told of an instance that must be replaced, and why.
        observe: Called with the instance before it is asked; finds its partitions when there is
            no group that would tell.
        counters: Counts what happens.
        refusal: Tells why no instance will come until somebody changes something; None when one
            may.
    """

    def __init__(
        self,
        name: str,
        holdings: Holdings,
        reader: Reader,
        *,
        broken: Callable[[ConsumerDriver, BaseException], None],
        observe: Callable[[ConsumerDriver], None],
        counters: Counters,
        refusal: Callable[[], Exception | None],
    ) -> None:
        self.name = name
        self._holdings = holdings
        self._reader = reader
        self._broken = broken
        self._observe = observe
        self._counters = counters
        self._refusal = refusal
        self._instance: ConsumerDriver | None = None
        self._reasons: dict[TopicPartition, list[str]] = {}
        self._waiting: list[asyncio.Future[None]] = []
        self._failures = 0
        self._wary = 0
        self.closed = False
        self.held = False
        self.drain: Callable[[tuple[TopicPartition, ...]], Awaitable[None]] | None = None
        self.taken: Callable[[tuple[TopicPartition, ...]], None] | None = None

    # --- what the consumer tells it

    def entered(self, instance: ConsumerDriver | None) -> None:
        """Take records from this instance from now on; from none."""
        self._instance = instance
        self._failures = 0
        self.wake()

    def wake(self) -> None:
        """Let everybody who waits for records look again."""
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(None)

    def close(self) -> None:
        """Hand out nothing any more."""
        self.closed = True
        self.wake()

    # --- Source

    async def fetch(self, max_records: int, max_wait: float) -> dict[TopicPartition, list[Record]]:
        """See `Source.fetch`."""
        found = await self.next(max_records, max_wait)
        return {holding.partition: records for holding, records in found}

    def pause(self, partitions: Iterable[TopicPartition], reason: str) -> None:
        """See `Source.pause`."""
        for partition in partitions:
            reasons = self._reasons.setdefault(partition, [])
            if reason not in reasons:
                reasons.append(reason)

    def resume(self, partitions: Iterable[TopicPartition], reason: str) -> None:
        """See `Source.resume`."""
        for partition in partitions:
            reasons = self._reasons.get(partition)
            if reasons is not None and reason in reasons:
                reasons.remove(reason)
                if not reasons:
                    del self._reasons[partition]
        self.wake()

    def paused(self, partition: TopicPartition) -> bool:
        """Tell whether a partition is paused."""
        return partition in self._reasons

    def on_revoked(
        self, drain: Callable[[tuple[TopicPartition, ...]], Awaitable[None]] | None
    ) -> None:
        """See `Source.on_revoked`."""
        self.drain = drain

    def on_assigned(self, taken: Callable[[tuple[TopicPartition, ...]], None] | None) -> None:
        """See `Source.on_assigned`."""
        self.taken = taken

    def give_back(self, holding: Holding, records: list[Record]) -> None:
        """Take back records that were not handled, to hand them out again, before all others."""
        if self.put_back(holding, records):
            self._counters.given_back += len(records)

    def put_back(self, holding: Holding, records: list[Record]) -> bool:
        """Take back records that nobody has had in hand; tell whether they were of use."""
        if not records or not holding.ours or records[0]._progress is not holding.progress:
            return False
        holding.kept[:0] = records
        return True

    # --- taking

    async def next(self, max_records: int, max_wait: float) -> list[tuple[Holding, list[Record]]]:
        """Return the next records; see `Source.fetch`. Each partition appears once."""
        loop = asyncio.get_running_loop()
        until = loop.time() + max_wait
        while not self.closed:
            failures = self._failures
            found = await self._take(max_records)
            if found:
                return found
            left = until - loop.time()
            if left <= 0:
                break
            if self._failures > failures and self._instance is not None:
                # What it has may have come before the failure: nothing new would tell of it.
                await asyncio.sleep(min(left, _PAUSE * 2.0**failures))
            else:
                await self._arrival(left)
        return []

    async def _take(self, most: int) -> list[tuple[Holding, list[Record]]]:
        """Take what is there; never suspends."""
        instance = self._instance
        if instance is not None:
            self._observe(instance)
        found = self._take_kept(most)
        if instance is None:
            refusal = None if found else self._refusal()
            if refusal is not None:
                raise refusal
            return found
        if found:
            internals.note_poll(instance)
            return found
        try:
            arrived = await self._ask(instance, most)
        except InstanceEnded:
            return []
        except Exception as error:  # noqa: BLE001 - the boundary to the driver: anything may come out of it, and each has its meaning
            self._failed(instance, error)
            return []
        if arrived:
            self._failures = 0
        return arrived

    async def _ask(self, instance: ConsumerDriver, most: int) -> list[tuple[Holding, list[Record]]]:
        wanted = [
            holding
            for holding in self._holdings.all
            if holding.open and holding.partition not in self._reasons and not self.held
        ]
        if not wanted or internals.reassigning(instance):
            internals.check(instance)
            internals.note_poll(instance)
            return []
        if self._wary:
            arrived = await self._ask_each(instance, wanted, most)
        else:
            arrived = await self._ask_for(instance, wanted, most)
        found = []
        for partition, records in arrived.items():
            holding = self._holdings.get(partition)
            if holding is not None and records:
                ours = self._reader.adopt(records, holding.progress)
                found.append((holding, self._ready(holding, ours)))
        return [(holding, records) for holding, records in found if records]

    async def _ask_each(
        self, instance: ConsumerDriver, wanted: list[Holding], most: int
    ) -> dict[TopicPartition, list[Any]]:
        """Ask for one after the other until one gives something, each time from another on."""
        self._wary -= 1
        first = self._wary % len(wanted)
        for holding in wanted[first:] + wanted[:first]:
            arrived = await self._ask_for(instance, [holding], most)
            if arrived:
                return arrived
        return {}

    async def _ask_for(
        self, instance: ConsumerDriver, wanted: list[Holding], most: int
    ) -> dict[TopicPartition, list[Any]]:
        # All that are assigned are asked for by naming none. It cannot suspend: nothing to wait.
        everything = len(wanted) == len(internals.partitions_of(instance))
        named = () if everything else [holding.partition for holding in wanted]
        before = [holding.position for holding in wanted]
        try:
            return await instance.getmany(*named, max_records=most)
        except Exception:
            # One that cannot be read (a batch that is corrupt, or of an unknown codec) raises, and
            # takes along what was found of others before it: their positions have moved on
            # (aiokafka 0.14, `Fetcher.fetched_records`).
            for holding, position in zip(wanted, before, strict=True):
                if position is not None and holding.position != position:
                    instance.seek(holding.partition, position)
            self._wary = _WARY * len(wanted)
            raise

    def _take_kept(self, most: int) -> list[tuple[Holding, list[Record]]]:
        found = []
        for holding in self._holdings.all:
            if most <= 0 or self.held:
                break
            if holding.kept and holding.open and holding.partition not in self._reasons:
                records, holding.kept = holding.kept[:most], holding.kept[most:]
                ready = self._ready(holding, records)
                most -= len(ready)
                found.append((holding, ready))
        return found

    def _ready(self, holding: Holding, records: list[Record]) -> list[Record]:
        """Deserialise what fits a turn of the loop, and keep the rest for the next call."""
        ready = self._reader.read(records, asyncio.get_running_loop().time)
        if ready < len(records):
            holding.kept[:0] = records[ready:]
            return records[:ready]
        return records

    def _failed(self, instance: ConsumerDriver, error: Exception) -> None:
        meaning = meaning_of(error)
        if meaning.kind == "permanent":
            raise error
        self._failures += 1
        if meaning.fatal or self._failures >= _PATIENCE:
            if self._instance is instance:
                self._instance = None
            self._broken(instance, error)

    async def _arrival(self, timeout: float) -> None:
        """Wait until records may have come, or something changed."""
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(woken)
        waiters = [woken]
        if self._instance is not None:
            waiters.append(internals.arrival(self._instance))
        try:
            await asyncio.wait(waiters, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if woken in self._waiting:
                self._waiting.remove(woken)
            for waiter in waiters:
                # What the coordination put there comes out of the next look, too.
                if not waiter.done():
                    waiter.cancel()
                elif not waiter.cancelled():
                    waiter.exception()


if TYPE_CHECKING:
    Deserializer = Callable[[bytes], Any]

_TURN = 0.005
"""Seconds of deserialising after which the event loop gets its turn."""


class Reader:
    """Makes records of ours out of the driver's.

    The driver's own deserialising would raise for the same record for ever, and name none.

    Args:
        key: Reads keys; never asked for None.
        value: Reads values; never asked for None.
        counters: Counts what could not be read.
    """

    __slots__ = ("_counters", "_key", "_value")

    def __init__(
        self, key: Deserializer | None, value: Deserializer | None, counters: Counters
    ) -> None:
        self._key = key
        self._value = value
        self._counters = counters

    def adopt(self, records: list[Any], progress: PartitionProgress) -> list[Record]:
        """Make them ours, in place, undeserialised, and note that they left the driver."""
        for record in records:
            record.__class__ = Record
            record._progress = progress
        progress.delivered_all([record.offset for record in records])
        self._counters.records += len(records)
        return records

    def read(self, records: list[Record], now: Callable[[], float]) -> int:
        """Deserialise from the front; return how many are ready, which may be fewer than all.

        Args:
            records: Records that are ours; those that were read already are ready.
            now: Tells the time, in seconds.
        """
        if self._key is None and self._value is None:
            return len(records)
        until = now() + _TURN
        for count, record in enumerate(records, 1):
            if record._raw is None:
                self._read(record)
                if now() > until:
                    return count
        return len(records)

    def _read(self, record: Record) -> None:
        key, value = record.key, record.value
        record._raw = (key, value)
        try:
            if self._key is not None and key is not None:
                record.key = self._key(key)
            if self._value is not None and value is not None:
                record.value = self._value(value)
        except Exception as error:  # noqa: BLE001 - whatever the caller's function raises is the record's own fault
            record.error = error
            record.__class__ = UnreadableRecord
            self._counters.unreadable += 1
