"""Faults of single requests, for `FaultProxy`."""

from __future__ import annotations

import asyncio
import enum
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

Which: TypeAlias = "str | Callable[[Any], bool] | None"
"""Requests to hit: the name of a command (with its next words, such as "CLIENT SETINFO") or of a
Kafka request (such as "Produce"), a function that returns whether to hit a request, or None for
every request."""

MadeUp: TypeAlias = "bytes | Callable[[Any], bytes]"
"""A made-up reply, or a function that makes it from the request."""

Ending: TypeAlias = Literal["close", "reset", "silence"]
"""How a connection ends: closed (FIN), reset (RST), or open but silent."""


class Effect(enum.Enum):
    """The effect of a fault on the requests that it hits."""

    DROP_REPLY = enum.auto()
    HALF_REPLY = enum.auto()
    REPLACE_REPLY = enum.auto()
    ANSWER = enum.auto()
    HOLD = enum.auto()
    RESET_BEFORE = enum.auto()
    RESET_AFTER = enum.auto()


class ProxiedRequest(Protocol):
    """What requests of all protocols have in common."""

    @property
    def name(self) -> str:
        """The kind of request; empty for bytes that are not a request."""
        ...

    @property
    def raw(self) -> bytes:
        """The bytes of the request."""
        ...

    def starts_with(self, words: tuple[bytes, ...]) -> bool:
        """Return whether the request starts with these words, in upper case."""
        ...


class Fault:
    """A fault that waits for its requests; the methods of `FaultProxy` create it.

    Args:
        effect: The effect on the requests.
        which: The requests that count.
        nth: The first request to hit, counted from 1 and from the creation of the fault.
        times: How many requests to hit; None for no limit.
        data: A made-up reply.
        keep: How many bytes of half a reply to deliver; None for half of them.
        ending: How the connection ends after half a reply.
    """

    def __init__(
        self,
        effect: Effect,
        which: Which,
        *,
        nth: int = 1,
        times: int | None = 1,
        data: MadeUp = b"",
        keep: int | None = None,
        ending: Ending = "close",
    ) -> None:
        if nth < 1 or (times is not None and times < 1):
            raise ValueError(f"nth and times must be at least 1, not nth={nth} and times={times}")
        self.effect = effect
        self._which = which
        self._nth = nth
        self._data = data
        self.keep = keep
        self.ending: Ending = ending
        self.struck: list[Any] = []
        """The requests that the fault has hit, in order: `Request` or `KafkaRequest`."""
        self._matches: Callable[[Any], bool]
        if isinstance(which, str):
            words = tuple(which.upper().encode().split())
            self._matches = lambda request: request.starts_with(words)
        else:
            self._matches = which or bool
        self._to_pass = nth - 1
        self._times = times
        self._happened = asyncio.Event()
        self._held: list[Callable[[], bool]] = []

    def __repr__(self) -> str:
        which = "every request" if self._which is None else repr(self._which)
        nth = "" if self._nth == 1 else f", nth={self._nth}"
        return f"<Fault {self.effect.name} on {which}{nth}, hit {len(self.struck)}>"

    @property
    def spent(self) -> bool:
        """Whether the fault has hit as many requests as it should, or was removed."""
        return self._times is not None and len(self.struck) >= self._times

    def remove(self) -> None:
        """Hit no further requests. This has no effect on the requests already hit."""
        self._times = 0

    async def happened(self) -> None:
        """Wait until the fault has taken effect once: the reply is dropped, the request held.

        Cancelling the wait has no other effect.
        """
        await self._happened.wait()

    def release(self) -> int:
        """Forward the held requests to the server, in order.

        This also works if the client has closed or reset its connection in the meantime.

        Returns:
            The number of connections that the server has not closed in the meantime.
        """
        held, self._held = self._held, []
        return sum([release() for release in held])

    def strikes(self, request: ProxiedRequest) -> bool:
        """Return whether to hit this request, and count it. For the proxy."""
        if self.spent or not self._matches(request):
            return False
        if self._to_pass:
            self._to_pass -= 1
            return False
        self.struck.append(request)
        return True

    def reply_to(self, request: ProxiedRequest) -> bytes:
        """Return the made-up reply to this request. For the proxy."""
        return self._data if isinstance(self._data, bytes) else self._data(request)

    def took_effect(self, release: Callable[[], bool]) -> None:
        """Record that the fault took effect on a connection. For the proxy.

        Args:
            release: Forwards the requests that the connection holds; returns False if the server
                has closed the connection.
        """
        if self.effect is Effect.HOLD:
            self._held.append(release)
        self._happened.set()
