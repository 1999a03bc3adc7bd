"""The calls that wait for replies on one connection, in order, and the parser of the replies."""

from __future__ import annotations

import asyncio
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeAlias

import hiredis
from redis.exceptions import InvalidResponse

from .large_values import LargeReplies, may_begin

if TYPE_CHECKING:
    from collections.abc import Callable

    from resilient_io.wakeups import Answer


class ReplyCollector:
    """Collects the replies to one request of `count` commands. The caller waits for `future`."""

    _callbacks = None  # so that `deliver` lets the loop continue its caller
    __slots__ = ("count", "future", "large", "position", "raw", "replies")

    def __init__(
        self, *, count: int = 1, raw: frozenset[int] = frozenset(), large: bool = False
    ) -> None:
        self.count = count
        self.raw = raw
        """The positions of the replies that are not decoded."""
        self.large = large
        """Whether the request itself is large."""
        self.replies: list[object] = []
        self.position = 0
        """The number of replies that were read."""
        self.future: asyncio.Future[object] = asyncio.get_running_loop().create_future()

    @property
    def special(self) -> bool:
        """Whether the response queue has to inspect each of its replies."""
        return self.large or bool(self.raw) or self.count > 1

    def done(self) -> bool:
        """Return whether its caller no longer waits."""
        return self.future.done()

    def set_result(self, reply: object) -> None:
        """Accept the next reply."""
        if self.count == 1:
            self.future.set_result(reply)
        else:
            self.add_replies([reply])

    def add_replies(self, replies: list[object], answers: list[Answer] | None = None) -> None:
        """Accept the next replies to a request of several commands.

        After the last one, the caller continues, or the result is added to `answers`.
        """
        self.replies += replies
        if len(self.replies) == self.count:
            if answers is None:
                self.future.set_result(self.replies)
            else:
                answers.append((self.future, self.replies))

    def note_late(self) -> None:
        """React to a reply that takes longer than usual."""

    def interrupt(self, reason: Exception) -> None:
        """End the wait with a reason. Replies that arrived before stay in `replies`."""
        if not self.future.done():
            self.future.set_result(reason)


Waiting: TypeAlias = asyncio.Future[object] | ReplyCollector
"""What waits for a reply: the plain future of the hot path, or a request."""


NOT_ENOUGH = object()
"""What the reader returns for an incomplete reply. False is a reply in RESP3."""

LARGE = 64 * 1024  # bytes above which a request or a reply keeps small calls off its connection


def _ignore(_push: list[Any]) -> None:
    """Drop a push message that no one listens for."""


class ResponseQueue:
    """The calls that wait for replies on one connection, in order, and the reply parser."""

    __slots__ = (
        "_decoding", "_partial", "_pushed", "_pushes", "_reader", "_special", "large",
        "large_replies", "waiting",
    )  # fmt: skip

    def __init__(self, connection: Any, *, pushes: bool) -> None:
        encoder = connection.encoder
        decoding: dict[str, str] = {}
        if encoder.decode_responses:
            decoding = {"encoding": encoder.encoding, "errors": encoder.encoding_errors}
        # redis-py 8.1 `BaseParser.parse_error` maps the prefix of an error reply to its class.
        self._reader: Any = hiredis.Reader(
            protocolError=InvalidResponse,
            replyError=connection._parser.parse_error,
            notEnoughData=NOT_ENOUGH,
            **decoding,
        )
        self._decoding = decoding
        self.large_replies = LargeReplies(LARGE)
        """The large values, which do not pass through the parser."""
        self._pushes = pushes
        self._pushed: Callable[[list[Any]], object] = _ignore
        self._partial = 0
        self._special = 0
        self.large = 0
        self.waiting: deque[Waiting] = deque()

    @property
    def busy(self) -> bool:
        """Whether a large request or reply is being transferred."""
        return self.large > 0 or self._partial > LARGE

    @property
    def partial(self) -> int:
        """The number of bytes that have arrived of a reply which is not complete."""
        return self._partial

    def listen(self, pushed: Callable[[list[Any]], object]) -> None:
        """Pass each push message to `pushed`, which must not send anything itself."""
        self._pushes, self._pushed = True, pushed

    def expect(self, request: ReplyCollector) -> None:
        """Register a request whose replies have to be inspected."""
        self._special += request.count
        self.large += request.large

    def forget(self, request: ReplyCollector, *, first: bool) -> None:
        """Unregister one command of a special request that is not sent after all."""
        self._special -= 1
        if first:
            self.large -= request.large

    def feed(self, data: bytes, answers: list[Answer] | None = None) -> int:
        """Parse received bytes and set the results of the answered calls. Return their number.

        If `answers` is given, replies may be added to it instead, which the caller must deliver.
        """
        before, large = len(self.waiting), self.large_replies
        split = large.in_step and (large.pending or may_begin(data))
        try:
            if split:
                self._read_split(data, answers)
            else:
                self._parse(data, answers)
        except IndexError:
            raise InvalidResponse("a reply without a request") from None
        incomplete = self._reader.has_data()
        if not self.waiting and not self._pushes:
            if incomplete or large.pending:
                raise InvalidResponse("a part of a reply without a request")
            large.in_step = True
        elif large.in_step and not split:
            large.follow(data, incomplete=incomplete)
        answered = before - len(self.waiting)
        if large.pending:
            self._partial = large.received
        else:
            # After push messages alone, no reply has begun to arrive.
            self._partial = self._partial + len(data) if incomplete and not answered else 0
        return answered

    def _parse(self, data: bytes | memoryview, answers: list[Answer] | None) -> None:
        self._reader.feed(data)
        if self._special or answers is None:
            self._read_each(answers)
        else:
            self._read(answers)

    def _read(self, answers: list[Answer]) -> None:
        gets, next_entry, answer = self._reader.gets, self.waiting.popleft, answers.append
        not_enough, push = NOT_ENOUGH, hiredis.PushNotification
        reply: object
        while True:
            try:
                reply = gets()
            except UnicodeDecodeError as error:
                # hiredis 3.5 raises for this one reply and stays in sync.
                reply = error
            if reply is not_enough:
                return
            if type(reply) is push:
                self._pushed(reply)
                continue
            answer((next_entry(), reply))

    def _read_each(self, answers: list[Answer] | None) -> None:
        """Read as `_read` does, with special requests in the queue."""
        waiting, gets, push = self.waiting, self._reader.gets, hiredis.PushNotification
        reply: object
        while True:
            head = waiting[0] if waiting else None
            special = head if isinstance(head, ReplyCollector) and head.special else None
            if special is not None and special.count > 1 and not special.raw:
                if not self._read_batch(special, answers):
                    return
                continue
            try:
                reply = gets(special is None or special.position not in special.raw)
            except UnicodeDecodeError as error:
                reply = error
            if reply is NOT_ENOUGH:
                return
            if type(reply) is push:
                self._pushed(reply)
                continue
            entry = waiting.popleft()
            if special is not None:
                self._answered(special, 1)
            if answers is not None and not isinstance(entry, ReplyCollector):
                answers.append((entry, reply))
            elif not entry.done():
                entry.set_result(reply)

    def _read_split(self, data: bytes, answers: list[Answer] | None) -> None:
        """Read a part of a large value, or bytes among which one may begin."""
        for piece, large in self.large_replies.split(data):
            if not large:
                self._parse(piece, answers)
                continue
            self._take_large(piece)

    def fill(self, size: int) -> int:
        """Note that a part of a large value was read. Return the number of answered calls."""
        large = self.large_replies
        value = large.fill(size)
        self._partial = large.received
        if value is None:
            return 0
        try:
            self._take_large(value)
        except IndexError:
            raise InvalidResponse("a reply without a request") from None
        return 1

    def _take_large(self, value: bytes | memoryview) -> None:
        head = self.waiting.popleft()
        special = head if isinstance(head, ReplyCollector) and head.special else None
        reply: object = value
        if self._decoding and (special is None or special.position not in special.raw):
            try:
                reply = str(value, **self._decoding)
            except UnicodeDecodeError as error:
                reply = error
        if special is not None:
            self._answered(special, 1)
        if not head.done():
            head.set_result(reply)

    def _read_batch(self, request: ReplyCollector, answers: list[Answer] | None) -> bool:
        """Read replies to a request of several commands. Return whether there may be more."""
        replies: list[object] = []
        left = request.count - request.position
        try:
            replies.extend(islice(iter(self._reader.gets, NOT_ENOUGH), left))
        except UnicodeDecodeError as error:
            replies.append(error)
        else:
            return len(replies) == left
        finally:  # also before garbage
            replies = self._without_pushes(replies)
            if len(replies) == len(self.waiting):
                self.waiting.clear()
            else:
                next_entry = self.waiting.popleft
                for _ in replies:
                    next_entry()
            self._answered(request, len(replies))
            if not request.done():
                request.add_replies(replies, answers)
        return True

    def _without_pushes(self, replies: list[object]) -> list[object]:
        push = hiredis.PushNotification
        if push not in map(type, replies):
            return replies
        kept: list[object] = []
        for reply in replies:
            if type(reply) is push:
                self._pushed(reply)
            else:
                kept.append(reply)
        return kept

    def _answered(self, request: ReplyCollector, count: int) -> None:
        self._special -= count
        request.position += count
        if request.position == request.count:
            self.large -= request.large

    def promote(
        self, count: int, adopt: Callable[[asyncio.Future[object], int], ReplyCollector]
    ) -> None:
        """Replace the plain futures among the oldest `count` entries by requests.

        `adopt` is called with each future and its distance from the end of the queue, and returns
        the request. The requests among them learn that they are late.
        """
        for entry in islice(self.waiting, count):
            if isinstance(entry, ReplyCollector):
                entry.note_late()
        if not any(isinstance(entry, asyncio.Future) for entry in islice(self.waiting, count)):
            return
        entries = list(self.waiting)
        for index, entry in enumerate(entries[:count]):
            if isinstance(entry, asyncio.Future) and not entry.done():
                entries[index] = adopt(entry, len(entries) - index)
        self.waiting = deque(entries)

    def fail_all(self, lost: Exception) -> bool:
        """End all waits: no reply will arrive. Return whether any call waited."""
        self.large_replies.clear()
        waiting, self.waiting = self.waiting, deque()
        for entry in waiting:
            if isinstance(entry, ReplyCollector):
                entry.interrupt(lost)
            elif not entry.done():
                entry.set_result(lost)
        return bool(waiting)
