"""The path of one command: the hot one when all is well, the careful one otherwise."""

from __future__ import annotations

import copy
from _thread import get_ident
from asyncio import CancelledError
from typing import TYPE_CHECKING, Any

import redis.asyncio as driver
from hiredis import pack_command
from redis.client import NEVER_DECODE

from resilient_io.deadlines import current_deadline

from .attempt import Command, DedicatedCall, LaneCall
from .commands import SPECS, Route, lookup
from .connection import LARGE
from .errors import RouteRefused
from .instrumentation import is_patched, observe_command

if TYPE_CHECKING:
    from collections.abc import Callable

    from resilient_io.health import Dependency
    from resilient_io.retry import RetryPolicy

    from .codec import Packer
    from .commands import CommandSpec
    from .engine import Engine
    from .instrumentation import Tracing


_NO_OPTIONS: dict[str, Any] = {}

_get_callback: Callable[[Any, str], Callable[..., Any] | None] = dict.get


class CommandPath(driver.Redis):
    """redis-py's client with its choke point, `execute_command`, led through the gate."""

    health: Dependency
    _policy: RetryPolicy
    _engine: Engine
    _packer: Packer
    _careful: bool
    """Whether the policy was chosen for the call, as in a view."""
    _hot: bool
    """Whether commands may take the hot path at all."""
    _seen: bool = False
    """Whether there may be somebody who wants to see every call."""
    _tracing: Tracing | None = None
    """What makes spans of its calls."""
    _twin: CommandPath | None = None
    """This client as nobody sees it."""
    _observable: bool = True
    """Whether those who want to see every call may see this one's."""

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Send one command and return its reply, as redis-py does.

        Raises:
            ResilientIOError: One of `resilient_io.redis.errors`, by what became of the call.
            redis.exceptions.RedisError: The server refused it.
        """
        lanes = self._engine.lanes
        lane = lanes.fast
        spec = SPECS.get(args[0])
        if (
            lane is None
            or spec is None
            or not spec.simple
            or not self._hot
            or get_ident() != lanes.thread
            or not lanes.is_running()
            or NEVER_DECODE in options
        ):
            return await self._execute(args, options)
        started = lanes.time()
        limit = current_deadline()
        if limit is not None and limit < started + 1.5 * self._policy.response_timeout:
            return await self._execute(args, options)
        try:
            data = pack_command(args)
        except TypeError:
            data = self._packer.pack(spec.words, args)
        if len(data) > LARGE:
            return await self._execute(args, options)
        options.pop("keys", None)
        if not options:
            # Ten thousand empty dictionaries would keep the garbage collector busy.
            options = _NO_OPTIONS
        future = lanes.create_future()
        lane.send(future, data)
        try:
            reply = await future
        except CancelledError:
            lanes.forget(future)
            raise
        if isinstance(reply, Exception):
            call = self._lane_call(Command(spec, args, options), data, reply)
            return await self._engine.gate.run(call, self._policy, started=started)
        # redis-py 8.1 `CaseInsensitiveDict` keeps upper-case keys, as the table's names are.
        callback = _get_callback(self.response_callbacks, args[0])
        if callback is None:
            return reply
        reply = callback(reply, **options)
        return await reply if hasattr(reply, "__await__") else reply

    if not TYPE_CHECKING:  # type checkers see redis-py's own signature

        def set(self, name: Any, value: Any, *more: Any, **options: Any) -> Any:
            """Set a key, as redis-py does; a plain one without redis-py's check of 14 options."""
            if more or options:
                return super().set(name, value, *more, **options)
            return self.execute_command("SET", name, value)

    async def _execute(self, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        if self._observable and (self._tracing is not None or is_patched()):
            self._begin_to_be_seen()
            return await observe_command(self, args, options)
        engine = self._engine
        if engine.gate.closed:
            raise engine.gate.refusal_when_closed(str(args[0]))
        engine.start()
        gate = engine.gate  # another one, if the loop of the first was closed
        spec = SPECS.get(args[0]) or lookup(args)
        if not self.health.available and self._policy.while_down == "fail":
            raise gate.refusal_while_down(spec.name)
        self._check_route(spec)
        started = engine.lanes.time()
        command = Command(spec, args, options)
        call: DedicatedCall | LaneCall
        if spec.route is Route.DEDICATED and not engine.bound:
            call = DedicatedCall(gate, self._policy, command, self)
        else:
            call = self._lane_call(command, self._packer.pack(spec.words, args))
        return await gate.run(call, self._policy, started=started, deliberate=self._careful)

    def _begin_to_be_seen(self) -> None:
        """Lead calls past those who want to see them, instead of the hot path."""
        self._hot, self._seen = False, True

    async def _unobserved(self, *args: Any, **options: Any) -> Any:
        """Send a command past those who see every call; the hot path is open to it."""
        twin = self._twin
        if twin is None:
            self._twin = twin = copy.copy(self)
            twin._observable, twin._hot = False, self._packer.direct and not self._careful
        return await CommandPath.execute_command(twin, *args, **options)

    def _lane_call(self, command: Command, data: bytes, first: Exception | None = None) -> LaneCall:
        gate, policy = self._engine.gate, self._policy
        otherwise = DedicatedCall(gate, policy, command, self)
        return LaneCall(gate, policy, command, data, otherwise=otherwise, first=first)

    def _check_route(self, spec: CommandSpec) -> None:
        if spec.route is Route.REFUSED or (spec.route is Route.BOUND and not self._engine.bound):
            raise RouteRefused(f"{spec.name} cannot share a connection. {spec.advice}")
        if self._engine.bound:
            self._engine.gate.check_session(spec.name)
            self._engine.lanes.session.note(spec)
