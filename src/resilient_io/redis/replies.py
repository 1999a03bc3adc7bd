"""Matching replies with those who wait for them, strictly in order."""

from __future__ import annotations

import asyncio
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING, Any

import hiredis
from redis.exceptions import InvalidResponse

from .ticket import Handover, LaneLost, Ticket

if TYPE_CHECKING:
    from collections.abc import Callable

    from .ticket import Entry

NOT_ENOUGH = object()
"""What the reader returns while a reply is incomplete (False is a reply in RESP3)."""

LARGE = 64 * 1024
"""Bytes from which a request or a reply keeps small calls off its lane."""


class Replies:
    """The line of those who wait on one connection, and the parser of what comes for them."""

    __slots__ = ("_dangling_is_wrong", "_partial", "_reader", "_special", "large", "waiting")

    def __init__(self, connection: Any, *, pushes: bool) -> None:
        """Parse as `connection` would.

        Args:
            connection: redis-py's connection, whose encoder and error classes are used.
            pushes: Whether RESP3 pushes may come, so that a part of one is nothing wrong.
        """
        encoder = connection.encoder
        decoding: dict[str, str] = {}
        if encoder.decode_responses:
            decoding = {"encoding": encoder.encoding, "errors": encoder.encoding_errors}
        # redis-py 8.1 `BaseParser.parse_error` maps the prefix of an error reply to its class.
        self._reader = hiredis.Reader(
            protocolError=InvalidResponse,
            replyError=connection._parser.parse_error,
            notEnoughData=NOT_ENOUGH,
            **decoding,
        )
        self._dangling_is_wrong = not pushes
        self._partial = 0
        self._special = 0
        self.large = 0
        self.waiting: deque[Entry] = deque()

    @property
    def busy(self) -> bool:
        """Whether a large request or reply is on its way."""
        return self.large > 0 or self._partial > LARGE

    def expect(self, ticket: Ticket) -> None:
        """Note a ticket that wants a look at each of its replies."""
        self._special += ticket.count
        self.large += ticket.large

    def forget(self, ticket: Ticket, *, first: bool) -> None:
        """Note that one command of a special ticket is not sent after all."""
        self._special -= 1
        if first:
            self.large -= ticket.large

    def feed(self, data: bytes) -> int:
        """Settle those whose replies are complete; return how many they were.

        Raises:
            InvalidResponse: What came is not RESP, or nobody had asked for it.
        """
        before = len(self.waiting)
        self._reader.feed(data)
        try:
            if self._special:
                self._read_each()
            else:
                self._read()
        except IndexError:
            raise InvalidResponse("a reply came that nobody had asked for") from None
        if not self.waiting and self._dangling_is_wrong and self._reader.has_data():
            raise InvalidResponse("half a reply came that nobody had asked for")
        answered = before - len(self.waiting)
        self._partial = 0 if answered else self._partial + len(data)
        return answered

    def _read(self) -> None:
        gets, next_entry = self._reader.gets, self.waiting.popleft
        push = hiredis.PushNotification
        reply: object
        while True:
            try:
                reply = gets()
            except UnicodeDecodeError as error:
                # hiredis 3.5 raises for this one reply and stays in step.
                reply = error
            if reply is NOT_ENOUGH:
                return
            if type(reply) is push:
                continue
            try:
                next_entry().set_result(reply)
            except asyncio.InvalidStateError:
                continue  # nobody waits for it any more

    def _read_each(self) -> None:
        """Read as `_read` does, with special tickets in the line."""
        reply: object
        while True:
            head = self.waiting[0] if self.waiting else None
            ticket = head if isinstance(head, Ticket) and head.special else None
            try:
                reply = self._reader.gets(ticket is None or ticket.position not in ticket.raw)
            except UnicodeDecodeError as error:
                reply = error
            if reply is NOT_ENOUGH:
                return
            if type(reply) is hiredis.PushNotification:
                continue
            entry = self.waiting.popleft()
            if ticket is not None:
                self._special -= 1
                ticket.position += 1
                if ticket.position == ticket.count:
                    self.large -= ticket.large
            if not entry.done():
                entry.set_result(reply)

    def hand_over(self, late: int, lane_of: Callable[[Ticket, int], None]) -> None:
        """Give tickets to the oldest `late` who have none, so that they can look at the clock.

        Args:
            late: How many, from the head of the line.
            lane_of: Told each new ticket and its distance from the end of the line.
        """
        if not any(isinstance(entry, asyncio.Future) for entry in islice(self.waiting, late)):
            return
        entries = list(self.waiting)
        for place, entry in enumerate(entries[:late]):
            if isinstance(entry, asyncio.Future) and not entry.done():
                ticket = entries[place] = Ticket(b"")
                lane_of(ticket, len(entries) - place)
                entry.set_result(Handover(ticket))
        self.waiting = deque(entries)

    def settle(self, lost: LaneLost) -> bool:
        """Tell everyone that no reply will come; return whether there was anyone."""
        waiting, self.waiting = self.waiting, deque()
        for entry in waiting:
            if isinstance(entry, Ticket):
                entry.interrupt(lost)
            elif not entry.done():
                entry.set_result(lost)
        return bool(waiting)
