"""The faults that a proxy strikes single requests with."""

from __future__ import annotations

import asyncio
import enum
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

Which: TypeAlias = "str | Callable[[Any], bool] | None"
"""Requests to strike: a command's name (with words that follow, as in "CLIENT SETINFO") or what a
request to Kafka is called (as "Produce"), a function that says so, or None for every request."""

MadeUp: TypeAlias = "bytes | Callable[[Any], bytes]"
"""A made-up reply, or a function that makes it from the request."""

Ending: TypeAlias = Literal["close", "reset", "silence"]
"""What becomes of a connection: closed (FIN), reset (RST), or open without a word."""


class Effect(enum.Enum):
    """What a fault does to the request that it strikes."""

    DROP_REPLY = enum.auto()
    HALF_REPLY = enum.auto()
    REPLACE_REPLY = enum.auto()
    ANSWER = enum.auto()
    HOLD = enum.auto()
    RESET_BEFORE = enum.auto()
    RESET_AFTER = enum.auto()


class Holding(Protocol):
    """A connection that holds a request back."""

    def release(self) -> bool:
        """Let it go on; False if the server has closed its side meanwhile."""
        ...


class ProxiedRequest(Protocol):
    """What requests of all protocols have."""

    @property
    def name(self) -> str:
        """What it asks for; empty for what is no request."""
        ...

    @property
    def raw(self) -> bytes:
        """All its bytes."""
        ...

    def starts_with(self, words: tuple[bytes, ...]) -> bool:
        """Tell whether it begins with these words, in upper case."""
        ...


class Fault:
    """A fault that waits for its requests, made by the methods of `FaultProxy`.

    Args:
        effect: What it does.
        which: The requests that count.
        nth: It strikes from the n-th of them on, counted from 1 and from now.
        times: How many it strikes; None for no end.
        data: A made-up reply.
        keep: Bytes of half a reply; None for half of them.
        ending: What becomes of the connection after half a reply.
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
            raise ValueError(f"nth and times count from 1, got nth={nth} and times={times}")
        self.effect = effect
        self._data = data
        self.keep = keep
        self.ending: Ending = ending
        self.struck: list[Any] = []
        """The requests that it struck, in their order: `Request` or `KafkaRequest`."""
        self._matches: Callable[[Any], bool]
        if isinstance(which, str):
            words = tuple(which.upper().encode().split())
            self._matches = lambda request: request.starts_with(words)
        else:
            self._matches = which or bool
        self._to_pass = nth - 1
        self._times = times
        self._happened = asyncio.Event()
        self._holding: list[Holding] = []

    @property
    def spent(self) -> bool:
        """It has struck as often as it should, or was removed."""
        return self._times is not None and len(self.struck) >= self._times

    def remove(self) -> None:
        """Strike no more; what it has struck stays struck."""
        self._times = 0

    async def happened(self) -> None:
        """Wait until it has done its work at least once: the reply is dropped, the request held.

        Cancelling the wait changes nothing.
        """
        await self._happened.wait()

    def release(self) -> int:
        """Let the requests that it holds go on to the server, in their order.

        This works also when the client's side was closed or reset meanwhile.

        Returns:
            How many connections could still be carried on; the others were closed by the server.
        """
        held, self._holding = self._holding, []
        return sum([connection.release() for connection in held])

    def strikes(self, request: ProxiedRequest) -> bool:
        """Tell whether this request is to be struck; counts it. For the proxy."""
        if self.spent or not self._matches(request):
            return False
        if self._to_pass:
            self._to_pass -= 1
            return False
        self.struck.append(request)
        return True

    def reply_to(self, request: ProxiedRequest) -> bytes:
        """Give the made-up reply to this request. For the proxy."""
        return self._data if isinstance(self._data, bytes) else self._data(request)

    def note(self, connection: Holding) -> None:
        """Take down that it has done its work on this connection. For the proxy."""
        if self.effect is Effect.HOLD:
            self._holding.append(connection)
        self._happened.set()
