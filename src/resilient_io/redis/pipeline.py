"""`ResilientPipeline`: redis-py's pipeline, executed by resilient-io's executor."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from redis.asyncio.client import Pipeline
from redis.exceptions import (
    ExecAbortError,
    NoScriptError,
    RedisError,
    ResponseError,
    WatchError,
)

from resilient_io.errors import Progress

from .attempt import AttemptFailed, Call, Command, block_of, confirm_idle
from .batch import UNFINISHED, Batch, BatchCall, contains_type, without_transaction
from .commands import SPECS, Effect, Route, changes_data, effect_of, lookup
from .driver_connection import StallTolerantTimeout, is_lost
from .durability import (
    Acknowledgements,
    DurableGroups,
    any_applied,
    any_replicated,
    wait_over,
)
from .errors import (
    CLOSED,
    RedisOutcomeUnknown,
    RouteRefused,
    keep_refusal,
    refusal,
    remove_secrets,
)
from .frequent import FrequentCommands
from .instrumentation import operation_of, through, trace_command, traced
from .pool import CHECKED_BLOCK
from .replicas import ReplicaRead
from .scripts import load_over

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

    from redis.asyncio.connection import AbstractConnection, Connection, ConnectionPool

    from resilient_io.errors import ResilientIOError
    from resilient_io.retry import RetryPolicy

    from .attempt import Callbacks, Limits, Packer
    from .batch import Queued
    from .commands import CommandSpec
    from .driver_connection import ExclusiveConnection
    from .instrumentation import Tracing
    from .options import Durability
    from .runtime import Runtime

_NO_OPTIONS: dict[str, Any] = {}
"""The options of most commands: a dictionary each would keep the garbage collector busy."""

_LOADING = replace(SPECS["SCRIPT LOAD"], effect=Effect.READ)
"""Loading a script before a batch: if its reply is lost, nothing of the batch was applied."""


_NO_MULTI = "EXEC without MULTI"
"""The error of EXEC if MULTI was refused, for example by an ACL. The commands were executed."""

_HARMLESS = ("WATCH", "UNWATCH")


class ResilientPipeline(FrequentCommands, Pipeline):  # type: ignore[misc] # in redis-py itself
    """Queues commands as redis-py's pipeline does; `execute` sends them as one call.

    Without WATCH, the commands are sent on a multiplexed connection in one uninterrupted write.
    After WATCH, the pipeline uses an exclusive connection until it is executed or reset.
    """

    def __init__(
        self,
        client: Any,
        runtime: Runtime,
        transaction: bool,
        shard_hint: str | None,
        *,
        packer: Packer,
        policy: RetryPolicy,
        deliberate: bool,
        tracing: Tracing | None,
        instrumented: bool,
        durability: Durability | None = None,
        choose_replica: Callable[..., Runtime | None] | None = None,
    ) -> None:
        super().__init__(
            cast("ConnectionPool", runtime.pool), client.callback_table, transaction, shard_hint
        )
        self._client: Any = client
        self._runtime = runtime
        self._packer = packer
        self._policy = policy
        self._deliberate = deliberate
        self._tracing = tracing
        self._instrumented = instrumented
        self._durability = durability
        self._choose_replica = choose_replica
        self._acknowledgements: Acknowledgements | None = None
        self.hashes: list[object] = []
        """The scripts that EVALSHA commands in the queue run."""

    @property
    def callback_table(self) -> Callbacks:
        """The response callbacks of the client, which may be those of all clients: read only."""
        table: Callbacks = self._client.callback_table
        return table

    if not TYPE_CHECKING:  # type checkers see redis-py's own signatures

        @property
        def response_callbacks(self) -> Callbacks:
            """The client's own table of response callbacks, which may be changed."""
            return self._client.response_callbacks

        @response_callbacks.setter
        def response_callbacks(self, table: Callbacks) -> None:
            """Ignore what redis-py's constructor assigns: it is the table of the client."""

        def execute_command(self, *args: Any, **options: Any) -> Any:
            """Queue a command, as redis-py does, or send it now between WATCH and MULTI."""
            if (self.watching or args[0] == "WATCH") and not self.explicit_transaction:
                return self.immediate_execute_command(*args, **options)
            if options:
                # For redis-py's client-side cache, which its asyncio client does not have.
                options.pop("keys", None)
            self.command_stack.append((args, options or _NO_OPTIONS))
            return self

        def get(self, name: Any) -> Any:
            """Queue GET, the most frequent command, without a further call."""
            if self.watching:
                return super().get(name)
            self.command_stack.append((("GET", name), _NO_OPTIONS))
            return self

        def evalsha(self, sha: Any, *args: Any) -> Any:
            """Queue EVALSHA, and load the script first if the client knows it."""
            self._note_script(sha)
            return super().evalsha(sha, *args)

        def evalsha_ro(self, sha: Any, *args: Any) -> Any:
            """Queue EVALSHA_RO, and load the script first if the client knows it."""
            self._note_script(sha)
            return super().evalsha_ro(sha, *args)

        def eval(self, script: Any, *args: Any) -> Any:
            """Queue EVAL, and remember the script for EVALSHA."""
            self._runtime.scripts.remember(script)
            return super().eval(script, *args)

        def eval_ro(self, script: Any, *args: Any) -> Any:
            """Queue EVAL_RO, and remember the script for EVALSHA_RO."""
            self._runtime.scripts.remember(script)
            return super().eval_ro(script, *args)

        def script_load(self, script: Any) -> Any:
            """Queue SCRIPT LOAD, and remember the script for EVALSHA."""
            self._runtime.scripts.remember(script)
            return super().script_load(script)

        def register_script(self, script: Any) -> Any:
            """Return redis-py's script object, and remember the script for EVALSHA."""
            self._runtime.scripts.remember(script)
            return super().register_script(script)

    def _note_script(self, sha: object) -> None:
        """Note the script of a queued command. Between WATCH and MULTI it runs at once."""
        if self.explicit_transaction or not self.watching:
            self.hashes.append(sha)

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        """Send the queued commands and return their replies, in order.

        Afterwards the pipeline is empty, whatever happened. Cancelling returns immediately.

        Args:
            raise_on_error: Raise the first error reply. Otherwise it is among the replies.

        Raises:
            RedisOutcomeUnknown: Replies are missing and repeating is not safe. `answered` contains
                the replies that arrived, `unanswered` the positions of the commands that may have
                been applied.
            WatchError: A watched key changed: run the whole transaction again.
            redis.exceptions.RedisError: An error reply.
        """
        if not self._instrumented:
            return await self._execute(raise_on_error)
        tracing = self._tracing
        before = tracing and tracing.current()

        async def make(*_: Any) -> Any:
            if tracing is None or not (self.command_stack or self.watching):
                return await self._execute(raise_on_error)
            names = [operation_of(args) for args, _ in self.command_stack]
            transaction = bool(self.is_transaction or self.explicit_transaction)
            with traced(tracing), tracing.batch(names, before, transaction=transaction):
                return await self._execute(raise_on_error)

        try:
            replies: list[Any] = await through("execute", self, make, (raise_on_error,), {})
            return replies
        finally:
            await self.reset()

    async def immediate_execute_command(self, *args: Any, **options: Any) -> Any:
        """Send one command now, on this pipeline's own connection (between WATCH and MULTI).

        Raises:
            WatchError: The connection was lost while keys were watched; nothing was applied.
        """
        if not self._instrumented:
            return await self._execute_now(*args, **options)
        name = "immediate_execute_command"
        return await trace_command(
            name, self, self._tracing, self._execute_now, args=args, options=options
        )

    def annotate_exception(
        self, exception: Exception, number: int, command: Iterable[object]
    ) -> None:
        """Add the command to an error, of which the new text hides what it means."""
        keep_refusal(exception)
        super().annotate_exception(exception, number, command)

    async def reset(self) -> None:  # type: ignore[override]
        """Empty the pipeline and release its connection, which is closed if it still watches."""
        self.command_stack = []
        self.hashes = []
        self.scripts = set()
        connection, self.connection = self.connection, None
        if connection is not None:
            clean = not self.watching and connection.is_connected
            self._runtime.pool.give_back(connection, clean=clean)
        self.watching = False
        self.explicit_transaction = False

    async def acquire(self, limits: Limits) -> AbstractConnection | AttemptFailed:
        """Return the pipeline's own connection, which WATCH needs."""
        pool = self._runtime.pool
        connection: AbstractConnection | None = self.connection
        if connection is not None:
            failed = await pool.until_safe(limits.sent)
            if failed is not None:
                return failed
        if connection is not None and is_lost(connection):
            watched = self.watching
            self.drop(connection)
            if watched:
                raise _watch_lost("it is closed")
            connection = None
        if connection is not None:
            return connection
        acquired = await pool.acquire_within(limits)
        if not isinstance(acquired, AttemptFailed):
            self.connection = cast("Connection", acquired)
        return acquired

    def known(self, connection: AbstractConnection) -> ExclusiveConnection:
        """Return how the server knows the pipeline's own connection."""
        return self._runtime.pool.known(connection)

    def drop(self, connection: AbstractConnection) -> None:
        """Close the pipeline's own connection."""
        self._runtime.pool.give_back(connection, clean=False)
        self.connection, self.watching = None, False

    async def _execute(self, raise_on_error: bool) -> list[Any]:
        try:
            if not self.command_stack and not self.watching:
                return []
            if self.scripts:
                await self._load_scripts()
            transaction = self.is_transaction or self.explicit_transaction
            name = "MULTI" if transaction else "PIPELINE"
            reopened = await self._client._ensure_open(name)
            batch = Batch(list(self.command_stack))
            started = asyncio.get_running_loop().time()
            self._note_durability(batch)
            call = self.call_for(batch)
            result: Any = UNFINISHED
            if isinstance(call, BatchCall) and not self._deliberate:
                result = await call.send_directly()
            if result is UNFINISHED:
                result = await self._run(call, started=started if reopened is None else reopened)
            replies: list[Any] = result
            executor, refused = self._runtime.executor, contains_type(replies, (Exception,))
            if refused:
                executor.report_refusals(call, replies)
            durable = self._acknowledgements
            if durable is not None and any_applied(batch.specs, batch.args, replies):
                durable.check(executor, call.operation, replies, started)
            if refused and raise_on_error:
                self._raise_first(replies, batch.commands)
            return replies
        finally:
            await self.reset()

    def _note_durability(self, batch: Batch) -> None:
        """Decide whether replicas are waited for."""
        durability, self._acknowledgements = self._durability, None
        if durability is not None and any_replicated(batch.specs, batch.args):
            self._acknowledgements = Acknowledgements(
                durability, DurableGroups.of(self._runtime, durability)
            )

    def _raise_first(self, replies: list[Any], commands: Sequence[Queued]) -> None:
        """Raise the first error among the replies."""
        for error in [reply for reply in replies if isinstance(reply, Exception)]:
            if isinstance(error, ResponseError):
                index = next(index for index, reply in enumerate(replies) if reply is error)
                self.annotate_exception(error, index + 1, commands[index][0])
            raise error

    def call_for(self, batch: Batch, *, asking: bool = False, slot: int | None = None) -> Call:
        """Return the call that executes commands. In a cluster, ASKING may come first."""
        transaction = bool(self.is_transaction or self.explicit_transaction)
        # Within MULTI, no command blocks.
        blocking = not transaction and any(spec.block is not None for spec in batch.distinct)
        operation = "EXEC" if transaction else "PIPELINE"
        block = 0.0
        if blocking:
            waiting = zip(batch.specs, batch.commands, strict=True)
            block = block_of(Command(spec, args, options) for spec, (args, options) in waiting)
        exclusive = partial(
            _WatchedCall,
            self,
            operation,
            self._exchange,
            batch.specs,
            block=block,
            prepare=self._load_hashes,
        )
        if self.connection is not None:
            return exclusive()
        for spec in batch.distinct:
            # WAIT refers to the writes of this pipeline, which has its own connection.
            own = blocking and spec.block is not None
            if spec.route in (Route.BOUND, Route.REFUSED) and not own:
                raise RouteRefused(f"{spec.name} cannot share a connection. {spec.advice}")
        make = partial(
            BatchCall,
            batch=batch,
            policy=self._policy,
            packer=self._packer,
            callbacks=self.callback_table,
            annotate=self.annotate_exception,
            hashes=self.hashes,
            transaction=transaction,
            blocking=blocking,
            fallback=exclusive,
            asking=asking,
            slot=slot,
            acknowledgements=self._acknowledgements,
        )
        replica = None
        if self._choose_replica is not None and not transaction:
            replica = self._choose_replica(batch.specs, batch.args)
        if replica is None:
            return make(self._runtime)
        return ReplicaRead(make(replica), partial(make, self._runtime))

    async def _execute_now(self, *args: Any, **options: Any) -> Any:
        reopened = await self._client._ensure_open(args[0])
        return await self._run(self.immediate_call(args, options), started=reopened)

    def immediate_call(self, args: tuple[Any, ...], options: Mapping[str, Any]) -> Call:
        """Return the call that sends one command on this pipeline's own connection."""
        spec = SPECS.get(args[0]) or lookup(args)

        async def exchange(connection: AbstractConnection) -> Any:
            # redis-py 8.1 `Redis._send_command_parse_response`: sends, reads, converts.
            send: Callable[..., Awaitable[Any]] = self._send_command_parse_response
            try:
                return await send(connection, args[0], *args, **options)
            except NoScriptError as error:
                load = self._runtime.scripts.load_for(spec.name, args, error)
                if load is None:
                    raise
            await load_over(connection, [load])
            return await send(connection, args[0], *args, **options)

        self._runtime.scripts.note(spec.name, args)
        block = block_of([Command(spec, args, options)])
        return _WatchedCall(self, spec.name, exchange, [spec], args, block=block)

    async def _run(self, call: Call, *, started: float | None = None) -> Any:
        executor, policy = self._runtime.executor, self._policy
        if started is None:
            started = asyncio.get_running_loop().time()
        if not call.begun:
            if self._runtime.bound:
                await confirm_idle(self._runtime.multiplexer)
            executor.check_state(call.operation)
            if not isinstance(call, ReplicaRead):
                executor.check_available(call.operation, policy)
        return await executor.run(call, policy, started=started, deliberate=self._deliberate)

    async def _load_hashes(self, connection: AbstractConnection) -> None:
        await load_over(connection, self._runtime.scripts.missing_on(None, self.hashes).values())

    async def _exchange(self, connection: AbstractConnection) -> list[Any] | AttemptFailed:
        transaction = self.is_transaction or self.explicit_transaction
        # redis-py 8.1 types them for TCP connections only.
        execute: Any = self._execute_transaction if transaction else self._execute_pipeline
        try:
            replies: list[Any] = await execute(connection, self.command_stack, raise_on_error=False)
        except ResponseError as error:
            if isinstance(error.__cause__ or error, ExecAbortError):
                self.watching = False  # nothing is watched any more, as after EXEC
            elif str(error) == _NO_MULTI:
                return without_transaction()
            raise
        commands = [args for args, _ in self.command_stack]
        durable = self._acknowledgements
        if durable is not None and any_applied(map(lookup, commands), commands, replies):
            durable.attempts = 1
            await wait_over(connection, durable)
        return replies

    async def _load_scripts(self) -> None:
        """Load the scripts of script objects that are not known, and so not loaded with EVALSHA."""
        for script in self.scripts:
            self._runtime.scripts.remember(script.script)
        scripts = [script for script in self.scripts if script.sha not in self._runtime.scripts]
        if not scripts:
            return
        known = await self._client.script_exists(*(script.sha for script in scripts))
        for script, exists in zip(scripts, known, strict=True):
            if not exists:
                args = ("SCRIPT LOAD", script.script)
                data = self._client._packer.pack(_LOADING.words, args)
                call = self._client._multiplexed_call(Command(_LOADING, args, {}), data)
                script.sha = await self._run(call)


class _WatchedCall(Call):
    """An exchange on the pipeline's own connection. After WATCH it is never repeated."""

    def __init__(
        self,
        pipeline: ResilientPipeline,
        operation: str,
        exchange: Callable[[AbstractConnection], Awaitable[Any]],
        specs: list[CommandSpec],
        args: tuple[Any, ...] | None = None,
        *,
        block: float,
        prepare: Callable[[AbstractConnection], Awaitable[None]] | None = None,
    ) -> None:
        self._pipeline = pipeline
        self._multiplexer = pipeline._runtime.multiplexer
        self._policy = pipeline._policy
        self._exchange = exchange
        self._prepare = prepare
        self._specs = specs
        self._args = args
        self._block = block
        self.bounded = not block
        self.operation = operation

    @property
    def effect(self) -> Effect:
        if self._args is None:
            return Effect.NON_IDEMPOTENT if self._specs else Effect.READ
        if self.operation in _HARMLESS:
            return Effect.READ
        return effect_of(self._specs[0], self._args)

    def describe(self, error: ResilientIOError) -> None:
        """Add to the error of a batch that any of its commands may have been applied."""
        if isinstance(error, RedisOutcomeUnknown) and self._args is None:
            error.unanswered = tuple(range(len(self._specs)))

    def _changed_data(self, reply: Any) -> bool:
        """Return whether the server has accepted a write here."""
        if self._args is not None:
            return changes_data(self._specs[0], self._args)
        if isinstance(reply, AttemptFailed):
            return False
        commands = zip(self._specs, self._pipeline.command_stack, reply, strict=False)
        return any(
            changes_data(spec, args) and not isinstance(each, Exception)
            for spec, (args, _), each in commands
        )

    async def attempt(self, limits: Limits) -> Any:
        """Make the exchange on the pipeline's own connection."""
        pipeline, watched = self._pipeline, self._pipeline.watching
        connection = await pipeline.acquire(limits)
        if isinstance(connection, AttemptFailed):
            return connection
        late = limits.too_late()
        if late is not None:
            return late
        timeout = self._policy.response_timeout + self._block
        known = pipeline.known(connection)
        progress = Progress.NOT_SENT
        blocked = pipeline._runtime.pool.blocked
        if self._block >= CHECKED_BLOCK:
            blocked.add(connection, known)
        try:
            async with StallTolerantTimeout(timeout, until=limits.until):
                if self._prepare is not None:
                    await self._prepare(connection)
                progress = Progress.MAYBE_APPLIED
                known.unanswered = self.effect is not Effect.READ
                reply = await self._exchange(connection)
                known.unanswered = False
                if self._multiplexer.health.refusing and self._changed_data(reply):
                    self._multiplexer.write_accepted()
                return reply
        except (RedisError, OSError) as error:
            timed_out = isinstance(error, TimeoutError)
            if refusal(error) is not None or (connection.is_connected and not timed_out):
                known.unanswered = False
                remove_secrets(error, self._multiplexer.target.secrets)
                raise
            pipeline.drop(connection)
            failure = known.failure or pipeline._runtime.pool.failure(error)
            if known.failure is None:
                self._multiplexer.reports.failed(failure.cause, failure.detail)
            harmless = progress is Progress.NOT_SENT or self.effect is Effect.READ
            if watched and failure is not CLOSED and harmless:
                raise _watch_lost(failure.detail) from None
            final = watched or self._args is None
            return AttemptFailed.because(
                failure, progress, timed_out=timed_out, final=final, connection=known
            )
        finally:
            blocked.remove(connection)


def _watch_lost(detail: str) -> WatchError:
    return WatchError(
        f"the connection was lost while keys were watched ({detail}); nothing was applied: run "
        f"the transaction again"
    )
