"""The replies of a connection, and whose turn it is."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final, TypeAlias

from resilient_io.testing._resp import ReplyScanner
from resilient_io.testing.faults import Effect

if TYPE_CHECKING:
    from collections.abc import Callable

    from resilient_io.testing.faults import Fault, ProxiedRequest

# After these the server sends what answers no single request.
_OPEN_ENDED: Final = frozenset(
    {"SUBSCRIBE", "PSUBSCRIBE", "SSUBSCRIBE", "UNSUBSCRIBE", "PUNSUBSCRIBE", "SUNSUBSCRIBE"}
    | {"MONITOR", "SYNC", "PSYNC"}
)


Expected: TypeAlias = "tuple[ProxiedRequest, Fault]"


class ReplyStream:
    """Passes on what a server sends, and finds in it the replies that are to be struck.

    Args:
        deliver: Takes what goes to the client.
        strike: Takes a fault, the complete reply that it strikes (empty if there is none), and the
            reply to give instead.
        counting: Whether each request is answered by one reply.
    """

    def __init__(
        self,
        deliver: Callable[[bytes], None],
        strike: Callable[[Fault, bytes, bytes], None],
        *,
        counting: bool,
    ) -> None:
        self._deliver = deliver
        self._strike = strike
        self._counting = counting
        self._scanner = ReplyScanner()
        self._unanswered: deque[Expected | None] = deque()  # what strikes the reply of each request
        self._kept = bytearray()  # what has come of a reply that is to be struck

    def expect(self, request: ProxiedRequest, fault: Fault | None) -> None:
        """Expect one more reply, and strike it with this fault."""
        answered_here = fault is not None and fault.effect is Effect.ANSWER
        if request.name in _OPEN_ENDED and not answered_here:
            self._counting = False  # all passes on once the requests until now are answered
        if self._counting:
            self._unanswered.append(None if fault is None else (request, fault))
            self._answer_what_is_due()
        elif fault is not None:
            self._strike(fault, b"", fault.reply_to(request))  # its own reply is not known

    def feed(self, data: bytes) -> None:
        """Take what the server sent."""
        if self._scanner.lost or not (self._counting or self._unanswered):
            self._deliver(data)
            return
        start = plain = 0  # what lies from `plain` to `start` goes on as it is
        for end, push in self._scanner.feed(data):
            expected = None if push or not self._unanswered else self._unanswered[0]
            if not push and self._unanswered:
                self._unanswered.popleft()
            if expected is not None:
                request, fault = expected
                self._deliver(data[plain:start])
                reply = bytes(self._kept) + data[start:end]
                self._kept.clear()
                self._strike(fault, reply, fault.reply_to(request))
                plain = end
            elif self._kept:  # a push came where the reply was awaited
                self._deliver(bytes(self._kept) + data[start:end])
                self._kept.clear()
                plain = end
            if self._strikes_next():
                self._deliver(data[plain:end])
                plain = end
                self._answer_what_is_due()
            start = end
        if self._strikes_next() and not self._scanner.lost:
            self._deliver(data[plain:start])
            self._kept += data[start:]
        else:
            self._deliver(bytes(self._kept) + data[plain:])
            self._kept.clear()

    def _strikes_next(self) -> bool:
        return bool(self._unanswered) and self._unanswered[0] is not None

    def _answer_what_is_due(self) -> None:
        """Answer in the server's place, as long as it is the turn of that."""
        while self._unanswered:
            expected = self._unanswered[0]
            if expected is None or expected[1].effect is not Effect.ANSWER:
                break
            self._unanswered.popleft()
            request, fault = expected
            self._strike(fault, b"", fault.reply_to(request))
