"""Instrumentation: tracers that patch redis-py's methods, and resilient-io's own tracing.

Tracers wrap `Redis.execute_command`, `Pipeline.execute` and `Pipeline.immediate_execute_command` of
redis-py. resilient-io overrides these methods, so a patched method would never be called. When one
is patched, each call therefore goes through it with a stand-in for `self`: redis-py's own method
finds a connection there that leads back to resilient-io. So every tracer, in whatever order they
were installed, sees one call with its final outcome, including all attempts.
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
    """Creates the spans of one client's calls, in the context of the caller."""

    def current(self) -> object:
        """Return the current span, before any tracer sees the call."""

    def command(self, operation: str, before: object) -> AbstractContextManager[object]:
        """Begin the span of one command. Leaving it ends the span, with the exception if any.

        If the current span is no longer `before`, another tracer has begun one for the call.
        """
        raise NotImplementedError

    def batch(
        self, operations: Sequence[str], before: object, *, transaction: bool
    ) -> AbstractContextManager[object]:
        """Begin the span of a pipeline."""
        raise NotImplementedError

    def retrying(self, attempt: int, backoff: float, cause: str) -> None:
        """Note in the current span that another attempt follows after `backoff` seconds."""


tracing_of_call: Final[ContextVar[Tracing | None]] = ContextVar("tracing_of_call", default=None)
"""The tracing of the call that runs in this context. The executor reports retries to it."""


_Redis, _Pipeline = driver.Redis, driver.Pipeline
"""redis-py's classes, also after an application has put others in their place in its module."""

_DRIVER = vars(driver)

_METHODS = (
    (_Redis, "execute_command"),
    (_Pipeline, "execute"),
    (_Pipeline, "immediate_execute_command"),
)


def is_patched() -> bool:
    """Return whether a tracer has wrapped one of redis-py's own methods."""
    for kind, name in _METHODS:  # noqa: SIM110 (faster than `any`)
        if _is_wrapper(_method(kind, name)):
            return True
    return False


def _method(kind: type, name: str) -> Any:
    for each in kind.__mro__:
        if name in each.__dict__:
            return each.__dict__[name]
    raise AttributeError(name)


def _is_wrapper(method: object) -> bool:
    # redis-py 8.1 `redis.asyncio.client.Redis.execute_command`: a wrapper is defined in another
    # module, even if it copies the attributes of the wrapped function.
    return type(method) is not FunctionType or method.__globals__ is not _DRIVER


def rebind(view: object) -> None:
    """Replace the wrappers that a copy of a client took over, which call the original client.

    `RedisInstrumentor.instrument_client` sets wrappers on the instance, bound to it.
    """
    for name in ("execute_command", "pipeline"):
        wrapped = vars(view).pop(name, None)
        wrapper = getattr(wrapped, "_self_wrapper", None)  # wrapt 1 and 2 `FunctionWrapper`
        if wrapper is not None:
            setattr(view, name, cast("Any", type(wrapped))(getattr(view, name), wrapper))


def operation_of(args: Sequence[Any]) -> str:
    """Return the name of a command from the arguments of `execute_command`."""
    return (SPECS.get(args[0]) or lookup(args)).name


async def trace_command(
    method: str,
    owner: object,
    tracing: Tracing | None,
    send: Callable[..., Awaitable[Any]],
    *,
    args: tuple[Any, ...],
    options: dict[str, Any],
) -> Any:
    """Send one command through the method of redis-py that tracers wrap, so that all see it."""
    before = tracing and tracing.current()

    async def make(*args: Any, **options: Any) -> Any:
        if tracing is None:
            return await send(*args, **options)
        with traced(tracing), tracing.command(operation_of(args), before):
            return await send(*args, **options)

    return await through(method, owner, make, args, options)


class _StandIn:
    """Stands in for a client or pipeline in a method of redis-py; otherwise behaves like it."""

    single_connection_client = False
    scripts = ()  # empty: resilient-io loads the scripts itself

    def __init__(self, real: Any, make: Callable[..., Awaitable[Any]]) -> None:
        self._real = real
        self._make = make
        self.connection = _Connection(real.connection_pool.connection_kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    async def initialize(self) -> None:
        """Do nothing: the real object starts itself."""

    async def reset(self) -> None:
        """Do nothing: the real object is reset."""

    # What redis-py 8.1 passes to `retry.call_with_retry` in each of the three methods.

    async def _send_command_parse_response(
        self, _connection: object, _name: object, *args: Any, **options: Any
    ) -> Any:
        return await self._make(*args, **options)

    async def _execute_transaction(self, *_: object) -> Any:
        return await self._make()

    _execute_pipeline = _execute_transaction


class _Connection:
    """What redis-py 8.1's methods read from a connection: `retry`, and the address for metrics."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.retry = self
        self.host = settings.get("host")
        self.port = settings.get("port")
        self.db = settings.get("db") or 0

    async def call_with_retry(self, do: Callable[[], Awaitable[Any]], *_: Any, **__: Any) -> Any:
        """Call once: the executor makes the retries."""
        return await do()


async def through(
    name: str,
    real: object,
    make: Callable[..., Awaitable[Any]],
    args: tuple[Any, ...],
    options: dict[str, Any],
) -> Any:
    """Make a call through a method of redis-py if a tracer has patched that method."""
    method = _method(_Pipeline if isinstance(real, _Pipeline) else _Redis, name)
    if not _is_wrapper(method):
        return await make(*args, **options)
    return await method.__get__(_StandIn(real, make), _StandIn)(*args, **options)


class traced:  # noqa: N801 (used as a function, and faster than a generator)
    """Reports the retries of the calls inside the block to a tracing."""

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
            pass  # a generator that is closed after its loop has ended runs in another context
