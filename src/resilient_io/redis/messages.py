"""What a subscriber receives: messages that wait to be read, and gaps among them."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from resilient_io.health import Cause
from resilient_io.tasks import Signal
from resilient_io.validation import check_count

if TYPE_CHECKING:
    from resilient_io.errors import ResilientIOError

MOST_MESSAGES = 65_536
"""Messages that wait for a slow subscriber by default."""

MOST_BYTES = 32 * 1024 * 1024
"""Bytes of messages that wait for a slow subscriber by default.

As many as Redis keeps for a subscriber (`client-output-buffer-limit pubsub 32mb 8mb 60`).
"""

_LEAST_BYTES = 1024


@dataclass(frozen=True, slots=True)
class Gap:
    """Messages that a subscriber may have missed. It is the data of a message of type "gap".

    Attributes:
        cause: Why. `Cause.SLOW_SUBSCRIBER` if messages were read too slowly: then this process has
            dropped them, or the server has closed the connection.
        seconds: Longest time during which messages may have been missed, in seconds: since the last
            sign of life of the lost connection, or the first dropped message.
        detail: The cause in words: one line, without secrets.
        dropped: Number of messages that this process has dropped; 0 if the number is not known.
    """

    cause: Cause
    seconds: float
    detail: str = ""
    dropped: int = 0

    def __str__(self) -> str:
        """Return the gap in words."""
        many = f"{self.dropped} messages were" if self.dropped else "messages may have been"
        reason = self.detail or self.cause.value
        return f"{many} missed within {self.seconds:.3f} s: {reason}"


Item: TypeAlias = "list[Any] | bytes | Gap | Exception"
"""A reply or push message, a gap, or an error that is raised where the subscriber reads."""


class MessageQueue:
    """The messages that a subscriber has not read yet, limited by number and by size.

    When it is full, newer messages are dropped until half of it was read. Then a gap takes their
    place. Confirmations of (un)subscribing, which a program needs, are never dropped.

    Args:
        most_messages: Maximum number of messages that wait.
        most_bytes: Maximum size of their channels and data. A single larger message is accepted.

    Raises:
        ConfigurationError: A limit is out of range.
    """

    def __init__(self, most_messages: int = MOST_MESSAGES, most_bytes: int = MOST_BYTES) -> None:
        check_count("max_messages", most_messages)
        check_count("max_message_bytes", most_bytes, least=_LEAST_BYTES)
        self._most_messages = most_messages
        self._most_bytes = most_bytes
        self._items: deque[tuple[Item, int | None]] = deque()
        self._count = self._bytes = 0  # of messages
        self._dropped = 0
        self._dropping_since = 0.0
        self._filled = Signal()
        self._end: ResilientIOError | None = None

    def __len__(self) -> int:
        return len(self._items)

    @property
    def closed(self) -> bool:
        """Whether nothing more arrives."""
        return self._end is not None

    def put_message(self, message: Item, size: int) -> None:
        """Add a message of `size` bytes, unless the queue is full."""
        count = self._count
        if self._dropped:
            if count > self._most_messages // 2 or self._bytes > self._most_bytes // 2:
                self._dropped += 1
                return
            self._append(self._take_dropped())
        elif count >= self._most_messages or (count and self._bytes + size > self._most_bytes):
            self._dropped, self._dropping_since = 1, asyncio.get_running_loop().time()
            return
        self._count += 1
        self._bytes += size
        self._append(message, size)

    def put(self, item: Item) -> None:
        """Add an item that is never dropped, such as a gap or a confirmation."""
        if self._dropped and isinstance(item, Gap):
            self._append(self._take_dropped())
        self._append(item)

    def take(self) -> Item | None:
        """Return the next item, or None if there is none.

        Raises:
            RedisClosed: The subscriber, or its client, was closed.
        """
        if self._end is not None:
            raise self._end.with_traceback(None)
        if self._items:
            item, size = self._items.popleft()
            if size is not None:
                self._count -= 1
                self._bytes -= size
            return item
        if self._dropped:
            return self._take_dropped()
        self._filled.clear()
        return None

    async def wait(self) -> None:
        """Wait until `take` returns an item or raises. Of several tasks, one gets the item."""
        await self._filled.wait()

    def close(self, end: ResilientIOError) -> None:
        """Drop everything, and have readers raise. Idempotent."""
        if self._end is None:
            self._end = end
            self._items.clear()
            self._count = self._bytes = self._dropped = 0
            self._filled.set()

    def _append(self, item: Item, size: int | None = None) -> None:
        if self._end is None:
            self._items.append((item, size))
            if not self._filled.is_set():
                self._filled.set()

    def _take_dropped(self) -> Gap:
        seconds = asyncio.get_running_loop().time() - self._dropping_since
        dropped, self._dropped = self._dropped, 0
        limit = f"{self._most_messages} messages or {self._most_bytes} bytes"
        detail = f"the subscriber is slow: more than {limit} waited"
        return Gap(Cause.SLOW_SUBSCRIBER, seconds, detail, dropped)
