"""`ResilientPipeline`: redis-py's pipeline, sent through the gate."""

from __future__ import annotations

import asyncio
import inspect
from typing import TYPE_CHECKING, Any, NoReturn, cast

import redis.asyncio.client as driver
from redis.asyncio.client import Pipeline
from redis.asyncio.connection import DefaultParser
from redis.client import EMPTY_RESPONSE, NEVER_DECODE
from redis.exceptions import ExecAbortError, RedisError, ResponseError, WatchError

from resilient_io.errors import Progress

from .attempt import SCRIPTED, AttemptFailed, Limits, follow
from .codec import apply_callback
from .commands import SPECS, Effect, Route, effect_of, lookup
from .connect import is_lost
from .connection import LARGE, NoLanes, Ticket
from .errors import RedisOutcomeUnknown, RouteRefused, advise, connection_failure, refusal
from .instrumentation import through, told

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

    from redis.asyncio.connection import AbstractConnection, Connection, ConnectionPool

    from resilient_io.errors import ResilientIOError
    from resilient_io.retry import RetryPolicy

    from .attempt import Call
    from .codec import Packer
    from .command_path import CommandPath
    from .commands import CommandSpec
    from .executor import Gate

    Queued = tuple[tuple[Any, ...], Mapping[str, Any]]
    Annotate = Callable[[Exception, int, Iterable[object]], None]

_OVERWRITES = ("SET", "SETEX", "PSETEX", "SETRANGE", "MSET", "LSET", "HMSET", "CONFIG SET")
"""What writes constants and reads nothing: any sequence of these, repeated, ends as it did.

Of others that is not true, though each alone may be repeated: COPY a b, then SET a.
"""

_MULTI = b"*1\r\n$5\r\nMULTI\r\n"
_EXEC = b"*1\r\n$4\r\nEXEC\r\n"


class BatchCall:
    """A pipeline, with or without MULTI and EXEC around it.

    In a plain one the answered commands are settled: only the unanswered tail is judged, and sent
    again where that is allowed. With MULTI it is all or nothing.
    """

    bounded = True

    def __init__(
        self,
        gate: Gate,
        policy: RetryPolicy,
        packer: Packer,
        commands: Sequence[Queued],
        specs: Sequence[CommandSpec],
        *,
        transaction: bool,
        otherwise: Call,
        annotate: Annotate,
    ) -> None:
        """Prepare; every argument is encoded here, so a wrong one sends nothing.

        Args:
            gate: Its lanes and callbacks are used.
            policy: Its response timeout is this call's patience.
            packer: Encodes the commands.
            commands: As redis-py queues them: arguments and options of each.
            specs: Their rows in the table.
            transaction: Put MULTI and EXEC around them.
            otherwise: The same call for a driver whose connections cannot be lanes.
            annotate: Adds to an error which command of the pipeline it is about.
        """
        self._gate = gate
        self._patience = policy.response_timeout
        self._commands = commands
        self._specs = specs
        self._transaction = transaction
        self._otherwise = otherwise
        self._annotate = annotate
        self._answers: list[object] = []
        self.operation = "MULTI" if transaction else "PIPELINE"
        self._packed = [
            packer.pack(spec.words, args)
            for spec, (args, options) in zip(specs, commands, strict=True)
            if not (transaction and EMPTY_RESPONSE in options)
        ]

    @property
    def effect(self) -> Effect:
        """What executing the unanswered commands twice would do; a mixture accumulates."""
        pending = [
            effect_of(spec, args)
            for spec, (args, _) in zip(self._specs, self._commands, strict=True)
        ][len(self._answers) :]
        if all(effect is Effect.READ for effect in pending):
            return Effect.READ
        if all(effect is Effect.IDEMPOTENT for effect in pending):
            names = [spec.name for spec in self._specs[len(self._answers) :]]
            if len(names) == 1 or all(name in _OVERWRITES for name in names):
                return Effect.IDEMPOTENT
        return max(Effect.NON_IDEMPOTENT, *pending)

    async def attempt(self, limits: Limits) -> object:
        """Send what is unanswered as one write, and wait for all of its replies."""
        if self._transaction:
            ticket = self._ticket(_MULTI + b"".join(self._packed) + _EXEC, len(self._packed) + 2)
        else:
            done = len(self._answers)
            raw = frozenset(
                place
                for place, (_, options) in enumerate(self._commands[done:])
                if NEVER_DECODE in options
            )
            ticket = self._ticket(b"".join(self._packed[done:]), len(self._packed) - done, raw)
        self._gate.lanes.submit(ticket)
        try:
            replies = await follow(
                self._gate.lanes,
                ticket,
                limits=limits,
                patience=self._patience,
                read=self.effect is Effect.READ,
            )
        except AttemptFailed:
            if not self._transaction:
                self._answers += ticket.replies
            raise
        if isinstance(replies, NoLanes):
            return await self._otherwise.attempt(limits)
        answers = replies if isinstance(replies, list) else [replies]
        if self._transaction:
            return await self._finish_transaction(answers)
        return await self._finish(answers)

    def describe(self, error: ResilientIOError) -> None:
        """Say in the error which commands were answered and which may have been applied."""
        if isinstance(error, RedisOutcomeUnknown):
            error.answered = tuple(self._answers)
            error.unanswered = tuple(range(len(self._answers), len(self._commands)))

    def _ticket(self, data: bytes, count: int, raw: frozenset[int] = frozenset()) -> Ticket:
        return Ticket(data, count=count, raw=raw, large=len(data) > LARGE)

    async def _finish(self, answers: list[object]) -> list[object]:
        if not self._answers:
            _raise_if_refused(answers, self._specs)
        self._note_accepted(answers)
        self._answers += answers
        return [await self._read(place, reply) for place, reply in enumerate(self._answers)]

    async def _finish_transaction(self, replies: list[object]) -> list[object]:
        *queued, result = replies
        if isinstance(result, ExecAbortError):
            self._raise_aborted(queued[1:], result)
        if isinstance(result, Exception):
            _raise_if_refused(replies, self._specs[:1])
            raise result
        if result is None:
            raise WatchError("Watched variable changed.")
        if not isinstance(result, list):
            raise ResponseError("EXEC did not answer with a list")
        self._note_accepted(result)
        answers = iter(result)
        return [
            options[EMPTY_RESPONSE]
            if EMPTY_RESPONSE in options
            else await self._read(place, next(answers))
            for place, (_, options) in enumerate(self._commands)
        ]

    def _note_accepted(self, answers: Sequence[object]) -> None:
        """End a time of refused writes, if the server has taken one here."""
        if self._gate.health.refusing and any(
            not isinstance(reply, Exception) and effect_of(spec, args) is not Effect.READ
            for reply, spec, (args, _) in zip(
                reversed(answers), reversed(self._specs), reversed(self._commands), strict=False
            )
        ):
            self._gate.accepted()

    def _raise_aborted(self, queued: Sequence[object], aborted: ExecAbortError) -> NoReturn:
        """Raise what made the server discard the transaction: nothing was applied."""
        sent = [args for args, options in self._commands if EMPTY_RESPONSE not in options]
        for place, reply in enumerate(queued):
            if isinstance(reply, Exception):
                _raise_refused(reply)
                self._annotate(reply, place + 1, sent[place])
                raise reply from aborted
        reason = _reason(aborted)
        _raise_refused(reason)
        raise reason

    async def _read(self, place: int, reply: object) -> object:
        args, options = self._commands[place]
        if isinstance(reply, Exception):
            advise(reply)
            return options.get(EMPTY_RESPONSE, reply)
        try:
            value = apply_callback(self._gate.callbacks, args[0], reply, options)
            return await value if inspect.isawaitable(value) else value
        except ResponseError as error:
            return error


def _raise_if_refused(replies: Sequence[object], specs: Sequence[CommandSpec]) -> None:
    """Raise when nothing at all was applied: every single reply is a refusal."""
    if not all(isinstance(reply, Exception) and refusal(reply) for reply in replies):
        return
    if all(spec.known and not spec.name.startswith(SCRIPTED) for spec in specs):
        _raise_refused(replies[0])


def _raise_refused(error: object) -> None:
    meaning = refusal(error) if isinstance(error, Exception) else None
    if meaning is not None and isinstance(error, Exception):
        raise AttemptFailed(
            Progress.REFUSED, meaning.cause, str(error), error=error, refusal=meaning
        )


def _reason(aborted: ExecAbortError) -> Exception:
    """Return the error that EXECABORT quotes, or itself."""
    _, found, quoted = str(aborted).partition("because of: ")
    if not found:
        return aborted
    error: Exception = DefaultParser.parse_error(quoted)  # type: ignore[no-untyped-call]
    return error


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


class ObservedPipeline(ResilientPipeline):
    """A pipeline whose calls are seen."""

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        """Send the queued commands, as the pipeline does that nobody sees."""
        tracing = self._client._tracing
        before = tracing and tracing.current()

        async def make(*_: Any) -> Any:
            if tracing is None or not (self.command_stack or self.watching):
                return await ResilientPipeline.execute(self, raise_on_error)
            names = [(SPECS.get(args[0]) or lookup(args)).name for args, _ in self.command_stack]
            transaction = bool(self.is_transaction or self.explicit_transaction)
            with told(tracing), tracing.batch(names, before, transaction=transaction):
                return await ResilientPipeline.execute(self, raise_on_error)

        try:
            method = vars(driver.Pipeline)["execute"]
            replies: list[Any] = await through(method, self, make, (raise_on_error,), {})
            return replies
        finally:
            await self.reset()

    async def immediate_execute_command(self, *args: Any, **options: Any) -> Any:
        """Send one command now, as the pipeline does that nobody sees."""
        tracing = self._client._tracing
        before = tracing and tracing.current()

        async def make(*args: Any, **options: Any) -> Any:
            send = ResilientPipeline.immediate_execute_command
            if tracing is None:
                return await send(self, *args, **options)
            operation = (SPECS.get(args[0]) or lookup(args)).name
            with told(tracing), tracing.command(operation, before):
                return await send(self, *args, **options)

        method = vars(driver.Pipeline)["immediate_execute_command"]
        return await through(method, self, make, args, options)
