"""`ResilientPipeline`: redis-py's pipeline, sent through the gate."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

from redis.asyncio.client import Pipeline
from redis.exceptions import RedisError, ResponseError, WatchError

from resilient_io.errors import Progress

from .batch import BatchCall
from .classification import connection_failure, refusal
from .commands import SPECS, Effect, Route, effect_of, lookup
from .dial import is_lost
from .errors import RouteRefused
from .exchange import AttemptFailed, Limits

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from redis.asyncio.connection import AbstractConnection, Connection, ConnectionPool

    from .batch import Queued
    from .commands import CommandSpec
    from .path import CommandPath

_HARMLESS = ("WATCH", "UNWATCH")


class ResilientPipeline(Pipeline):
    """Queues commands as redis-py's pipeline does; `execute` sends them as one call.

    Without WATCH they travel a lane in one uninterrupted write. After WATCH the pipeline has a
    connection of its own until it is executed or reset.
    """

    def __init__(self, client: CommandPath, transaction: bool, shard_hint: str | None) -> None:
        super().__init__(
            cast("ConnectionPool", client._engine.dedicated),
            client.response_callbacks,
            transaction,
            shard_hint,
        )
        self._client = client

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        """Send the queued commands and return their replies, in order.

        Afterwards the pipeline is empty, whatever happened. Cancelling leaves at once.

        Args:
            raise_on_error: Raise the first error reply; else it stands among the replies.

        Raises:
            RedisOutcomeUnknown: Replies are missing and repeating is not safe. `answered` holds the
                replies that came, `unanswered` the places of the commands that may be applied.
            WatchError: A watched key changed: run the whole transaction again.
            redis.exceptions.RedisError: An error reply.
        """
        try:
            if not self.command_stack and not self.watching:
                return []
            if self.scripts:
                await self._load_scripts()
            self._start()
            commands = list(self.command_stack)
            specs = [SPECS.get(args[0]) or lookup(args) for args, _ in commands]
            transaction = bool(self.is_transaction or self.explicit_transaction)
            blocking = any(spec.route is Route.DEDICATED for spec in specs)
            alone = _Watched(
                self, "EXEC" if transaction else "PIPELINE", self._exchange_watched, specs
            )
            if self.connection is not None or (blocking and not transaction):
                call: _Watched | BatchCall = alone
            else:
                for spec in specs:
                    _check(spec)
                client = self._client
                call = BatchCall(
                    client._engine.gate,
                    client._policy,
                    client._packer,
                    commands,
                    specs,
                    transaction=transaction,
                    otherwise=alone,
                    annotate=self.annotate_exception,
                )
            replies: list[Any] = await self._run(call)
            if raise_on_error:
                self._raise_first(commands, replies)
            return replies
        finally:
            await self.reset()

    async def immediate_execute_command(self, *args: Any, **options: Any) -> Any:
        """Send one command now, on this pipeline's own connection (between WATCH and MULTI).

        Raises:
            WatchError: The connection was lost while keys were watched; nothing was applied.
        """
        self._start()
        spec = SPECS.get(args[0]) or lookup(args)

        async def exchange(connection: AbstractConnection) -> Any:
            # redis-py 8.1 `Redis._send_command_parse_response`: sends, reads, converts.
            send: Callable[..., Awaitable[Any]] = self._send_command_parse_response
            return await send(connection, args[0], *args, **options)

        return await self._run(_Watched(self, spec.name, exchange, [spec], args))

    async def reset(self) -> None:  # type: ignore[override]
        """Empty the pipeline and give its connection back; one that still watches is closed."""
        self.command_stack = []
        self.scripts = set()
        connection, self.connection = self.connection, None
        if connection is not None:
            clean = not self.watching and connection.is_connected
            self._client._engine.dedicated.give_back(connection, clean=clean)
        self.watching = False
        self.explicit_transaction = False

    def _raise_first(self, commands: Sequence[Queued], replies: Sequence[Any]) -> None:
        for place, reply in enumerate(replies):
            if isinstance(reply, ResponseError):
                self.annotate_exception(reply, place + 1, commands[place][0])
            if isinstance(reply, Exception):
                raise reply

    def _start(self) -> None:
        """Start before anything is made for the engine: in a new loop its parts are new, too."""
        engine = self._client._engine
        if not engine.gate.closed:
            engine.start()

    async def _run(self, call: Any) -> Any:
        client = self._client
        engine = client._engine
        gate = engine.gate
        if gate.closed:
            raise gate.refusal_when_closed(call.operation)
        gate.check_session(call.operation)
        policy = client._policy
        if not client.health.available and policy.while_down == "fail":
            raise gate.refusal_while_down(call.operation)
        return await gate.run(
            call,
            policy,
            started=asyncio.get_running_loop().time(),
            deliberate=client._careful,
        )

    async def _exchange_watched(self, connection: AbstractConnection) -> list[Any]:
        transaction = self.is_transaction or self.explicit_transaction
        # redis-py 8.1 types them for TCP connections only.
        execute: Any = self._execute_transaction if transaction else self._execute_pipeline
        replies: list[Any] = await execute(connection, self.command_stack, raise_on_error=False)
        return replies

    async def _load_scripts(self) -> None:
        scripts = list(self.scripts)
        known = await self._client.script_exists(*(script.sha for script in scripts))
        for script, exists in zip(scripts, known, strict=True):
            if not exists:
                script.sha = await self._client.script_load(script.script)


class _Watched:
    """An exchange on the pipeline's own connection; once keys are watched, it is never repeated."""

    bounded = True

    def __init__(
        self,
        pipeline: ResilientPipeline,
        operation: str,
        exchange: Callable[[AbstractConnection], Awaitable[Any]],
        specs: list[CommandSpec],
        args: tuple[Any, ...] | None = None,
    ) -> None:
        self._pipeline = pipeline
        self._exchange = exchange
        self._specs = specs
        self._args = args
        self.operation = operation

    @property
    def effect(self) -> Effect:
        """What executing it twice would do."""
        if self._args is None:
            return Effect.NON_IDEMPOTENT if self._specs else Effect.READ
        if self.operation in _HARMLESS:
            return Effect.READ
        return effect_of(self._specs[0], self._args)

    async def attempt(self, limits: Limits) -> Any:
        pipeline, client = self._pipeline, self._pipeline._client
        gate = client._engine.gate
        watched = pipeline.watching
        connection: AbstractConnection | None = pipeline.connection
        if connection is not None and is_lost(connection):
            self._drop(connection)
            if watched:
                raise _unwatched("it is closed")
            connection = None
        if connection is None:
            connection = await gate.borrowing.borrow(limits.sent)
            pipeline.connection = cast("Connection", connection)
        loop = asyncio.get_running_loop()
        limit = loop.time() + client._policy.response_timeout + self._block()
        try:
            async with asyncio.timeout_at(min(limit, limits.until or limit)):
                return await self._exchange(connection)
        except (RedisError, OSError) as error:
            timed_out = isinstance(error, TimeoutError)
            if refusal(error) is not None or (connection.is_connected and not timed_out):
                raise
            self._drop(connection)
            failure = connection_failure(error)
            gate.health.failed(failure.cause, failure.detail)
            if watched and self.effect is Effect.READ:
                raise _unwatched(failure.detail) from error
            raise AttemptFailed(
                Progress.MAYBE_APPLIED,
                failure.cause,
                failure.detail,
                timed_out=timed_out,
                final=watched or self._args is None,
                error=error,
            ) from error

    def _drop(self, connection: AbstractConnection) -> None:
        pipeline = self._pipeline
        pipeline._client._engine.gate.borrowing.give_back(connection, clean=False)
        pipeline.connection, pipeline.watching = None, False

    def _block(self) -> float:
        if self._args is None or self._specs[0].block is None:
            return 0.0
        block = self._specs[0].block(self._args)
        return 1e6 if block is None else block


def _unwatched(detail: str) -> WatchError:
    return WatchError(
        f"the connection was lost while keys were watched ({detail}); nothing was applied: run "
        f"the transaction again"
    )


def _check(spec: CommandSpec) -> None:
    if spec.route in (Route.BOUND, Route.REFUSED):
        raise RouteRefused(f"{spec.name} cannot share a connection. {spec.advice}")
