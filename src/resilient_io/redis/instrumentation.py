"""Those who see every call: tracers that patch redis-py's own methods, and tracing of ours.

Tracers put themselves around `Redis.execute_command`, `Pipeline.execute` and
`Pipeline.immediate_execute_command` of redis-py. Ours override these, so that nobody would call
what was patched. Once it is, each call of ours goes through the patched method after all, with a
stand-in for `self`: redis-py's own method at its end finds there a connection that leads back to
ours. So every tracer sees one call, whoever it is and in whatever order they were installed, and
sees it end as it ends for the caller, all attempts included.
"""

from __future__ import annotations

from contextvars import ContextVar
from types import FunctionType
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

import redis.asyncio.client as driver

from .commands import SPECS, lookup

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from contextlib import AbstractContextManager
    from contextvars import Token


class Tracing(Protocol):
    """What makes the spans of one client's calls; entered in the context of the caller."""

    def current(self) -> object:
        """Return the span that is current, before anybody sees the call."""

    def command(self, operation: str, before: object) -> AbstractContextManager[object]:
        """Begin the span of one command; leaving it ends the span, with what was raised.

        If another span than `before` is current by now, somebody has begun one for it already.
        """
        raise NotImplementedError

    def batch(
        self, operations: Sequence[str], before: object, *, transaction: bool
    ) -> AbstractContextManager[object]:
        """Begin the span of a pipeline."""
        raise NotImplementedError

    def retrying(self, attempt: int, backoff: float, cause: str) -> None:
        """Note in the current span that another attempt follows, in so many seconds."""


tracing_of_call: Final[ContextVar[Tracing | None]] = ContextVar("tracing_of_call", default=None)
"""Whom the gate tells of retries: who traces the call that runs in this context."""


class Observable(Protocol):
    """A client as this file needs it."""

    _tracing: Tracing | None

    def _begin_to_be_seen(self) -> None:
        """Lead its calls past those who want to see them, instead of the hot path."""

    async def _unobserved(self, *args: Any, **options: Any) -> Any:
        """Make a call that nobody sees."""


def is_patched() -> bool:
    """Tell whether somebody has put himself around redis-py's own `execute_command`."""
    # redis-py 8.1 `redis.asyncio.client.Redis.execute_command`: a wrapper was defined elsewhere,
    # whatever it may have copied from what it wraps.
    method = vars(driver.Redis)["execute_command"]
    return not (type(method) is FunctionType and method.__globals__ is vars(driver))


def observe(client: Observable, tracing: Tracing) -> None:
    """Have every call of a client traced from now on, and of the views made of it later."""
    client._tracing = tracing
    client._begin_to_be_seen()


def bind_anew(view: Observable) -> None:
    """Let a copy of a client have its own calls where somebody has wrapped those of that client.

    `RedisInstrumentor.instrument_client` sets wrappers on the instance, bound to it.
    """
    for name in ("execute_command", "pipeline"):
        wrapped = vars(view).pop(name, None)
        wrapper = getattr(wrapped, "_self_wrapper", None)  # wrapt 1 and 2 `FunctionWrapper`
        if wrapper is not None:
            setattr(view, name, cast("Any", type(wrapped))(getattr(view, name), wrapper))


async def observe_command(client: Observable, args: tuple[Any, ...], options: Any) -> Any:
    """Make a call where everybody sees it who wants to."""
    tracing = client._tracing
    before = tracing and tracing.current()

    async def make(*args: Any, **options: Any) -> Any:
        if tracing is None:
            return await client._unobserved(*args, **options)
        operation = (SPECS.get(args[0]) or lookup(args)).name
        with told(tracing), tracing.command(operation, before):
            return await client._unobserved(*args, **options)

    method = vars(driver.Redis)["execute_command"]
    return await through(method, client, make, args, options)


class _StandIn:
    """Stands for a client or a pipeline in redis-py's own method; in all else it is that one."""

    single_connection_client = False
    scripts = ()
    """None to load: ours does that."""

    def __init__(self, real: Any, make: Callable[..., Awaitable[Any]]) -> None:
        self._real = real
        self._make = make
        self.connection = _Connection(real.connection_pool.connection_kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    async def initialize(self) -> None:
        """Do nothing: the real one starts itself."""

    async def reset(self) -> None:
        """Do nothing: the real one is reset."""

    # What redis-py 8.1 hands to `retry.call_with_retry` in each of the three methods.

    async def _send_command_parse_response(
        self, _connection: object, _name: object, *args: Any, **options: Any
    ) -> Any:
        return await self._make(*args, **options)

    async def _execute_transaction(self, *_: object) -> Any:
        return await self._make()

    _execute_pipeline = _execute_transaction


class _Connection:
    """What redis-py 8.1's own methods ask of a connection: `retry`, and for its metrics, where."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.retry = self
        self.host = settings.get("host")
        self.port = settings.get("port")
        self.db = settings.get("db") or 0

    async def call_with_retry(self, do: Callable[[], Awaitable[Any]], *_: Any, **__: Any) -> Any:
        """Call once: the gate repeats."""
        return await do()


async def through(
    method: Any,
    real: object,
    make: Callable[..., Awaitable[Any]],
    args: tuple[Any, ...],
    options: dict[str, Any],
) -> Any:
    """Make a call by way of a method of redis-py's, if somebody has patched that."""
    if not is_patched():
        return await make(*args, **options)
    return await method.__get__(_StandIn(real, make), _StandIn)(*args, **options)


class told:  # noqa: N801 (used as a function, and faster than one that yields)
    """Names who is told of retries."""

    __slots__ = ("_token", "_tracing")

    _token: Token[Tracing | None]

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing

    def __enter__(self) -> None:
        self._token = tracing_of_call.set(self._tracing)

    def __exit__(self, *_: object) -> None:
        try:  # noqa: SIM105 (every traced call passes here)
            tracing_of_call.reset(self._token)
        except ValueError:
            pass  # what is closed after its loop has ended is closed in another context
