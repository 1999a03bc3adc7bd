"""`ResilientPipeline`: redis-py's pipeline, executed by resilient-io's executor."""

from __future__ import annotations

import asyncio
import inspect
from dataclasses import replace
from functools import partial
from itertools import compress
from operator import itemgetter
from typing import TYPE_CHECKING, Any, cast

from redis.asyncio.client import Pipeline
from redis.asyncio.connection import DefaultParser
from redis.client import EMPTY_RESPONSE, NEVER_DECODE
from redis.exceptions import ExecAbortError, NoScriptError, RedisError, ResponseError, WatchError

from resilient_io.errors import Progress

from .attempt import (
    ASKING,
    MOVED,
    SCRIPTED,
    AttemptFailed,
    Call,
    Command,
    apply_callback,
    await_reply,
    block_of,
    callback_of,
    confirm_idle,
    final_error,
    needs_own_connection,
    note_loss,
    refused,
    submit,
    unsendable,
)
from .commands import SPECS, Effect, Route, effect_of, effect_of_batch, lookup
from .connection import LARGE, NotMultiplexable, PendingRequest
from .driver_connection import StallTolerantTimeout, is_lost
from .durability import (
    Acknowledgements,
    DurableGroups,
    any_replicated,
    exchange_and_wait,
    wait_over,
)
from .errors import CLOSED, RedisOutcomeUnknown, RouteRefused, refusal, remove_secrets
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
    from .commands import CommandSpec
    from .connection import MultiplexedConnection
    from .driver_connection import ExclusiveConnection
    from .instrumentation import Tracing
    from .options import Durability
    from .runtime import Runtime

    Queued = tuple[tuple[Any, ...], Mapping[str, Any]]

_OPTIONS = itemgetter(1)  # of a queued command

_NO_OPTIONS: dict[str, Any] = {}
"""The options of most commands: a dictionary each would keep the garbage collector busy."""

_LOADING = replace(SPECS["SCRIPT LOAD"], effect=Effect.READ)
"""Loading a script before a batch: if its reply is lost, nothing of the batch was applied."""

_MULTI = b"*1\r\n$5\r\nMULTI\r\n"
_EXEC = b"*1\r\n$4\r\nEXEC\r\n"


class BatchCall(Call):
    """A pipeline on a multiplexed connection, with or without MULTI and EXEC around it.

    In a plain pipeline, answered commands are settled: only the effect of the unanswered rest
    decides whether it is repeated, and only the rest is sent again. But if the call fails, its
    error also counts what was settled. A transaction is applied entirely or not at all.
    """

    def __init__(
        self,
        pipeline: ResilientPipeline,
        commands: Sequence[Queued],
        specs: Sequence[CommandSpec],
        *,
        transaction: bool,
        blocking: bool,
        fallback: Call,
        asking: bool = False,
        acknowledgements: Acknowledgements | None = None,
        replica: Runtime | None = None,
    ) -> None:
        # All arguments are encoded here, so that an invalid one sends nothing.
        self._pipeline = pipeline
        self._runtime = runtime = replica if replica is not None else pipeline._runtime
        self._multiplexer = runtime.multiplexer
        self._commands = commands
        self._specs = specs
        self._transaction = transaction
        self._prefix = ASKING if asking else b""  # before MULTI, it applies to all commands
        self._fallback = fallback
        self._acknowledgements = acknowledgements
        """Receives the replies to WAIT, which follows the batch, if it must be durable."""
        self.bounded = not blocking
        self.sends_left = pipeline._policy.attempts
        # The connection of a bound client is the caller's own, and holds the caller's state.
        durable = acknowledgements is not None
        self._exclusive = (blocking or durable) and not self._multiplexer.bound
        self._scripts = runtime.scripts
        self._hashes = pipeline.hashes
        self._loads: dict[str, bytes] = {}
        self._reloaded = False
        self._answers: list[object] = []
        self._repeating = False
        """Whether the unanswered commands were sent before, and so may have been applied."""
        self._losses = self._multiplexer.bound_state.losses
        self._lost: list[MultiplexedConnection] = []
        """The connections that the server closed while they had the request."""
        self.operation = "MULTI" if transaction else "PIPELINE"
        self._options = any(map(_OPTIONS, commands))
        if transaction and self._options:
            sent = [EMPTY_RESPONSE not in options for _, options in commands]
            specs, commands = list(compress(specs, sent)), list(compress(commands, sent))
        self._packed = pipeline._packer.pack_all(specs, [args for args, _ in commands])

    @property
    def effect(self) -> Effect:
        """The effect of executing the unanswered commands twice. A mixture is non-idempotent."""
        done = len(self._answers)
        return effect_of_batch(self._specs[done:], [args for args, _ in self._commands[done:]])

    def describe(self, error: ResilientIOError) -> None:
        """Add which commands were answered and which may have been applied."""
        if isinstance(error, RedisOutcomeUnknown):
            error.answered = tuple(self._answers)
            error.unanswered = tuple(range(len(self._answers), len(self._commands)))

    async def attempt(self, limits: Limits) -> object:
        """Send the unanswered commands in one write, and wait for all replies.

        Scripts that the server may not have are loaded first, in the same write: after a NOSCRIPT,
        later commands of the batch have been executed already.
        """
        began = asyncio.get_running_loop().time()
        self.sends_left -= 1
        if self._acknowledgements is not None:
            self._acknowledgements.attempts += 1
            if self._accepted(self._answers, range(len(self._answers))):
                self._acknowledgements.add_problem("the connection of a part of the batch was lost")
        result = await self._attempt(limits)
        if isinstance(result, AttemptFailed) and not self.bounded:
            result = result.served_since(began)
        if isinstance(result, AttemptFailed) and self._accepted(
            self._answers, range(len(self._answers))
        ):
            return replace(result, applied=True)
        return result

    async def _attempt(self, limits: Limits) -> object:
        unsent = unsendable(self._multiplexer, limits, self._losses)
        if unsent is not None:
            return unsent
        timeout = self._pipeline._policy.response_timeout + self._block()
        request = self._request(limits, 0.0 if self.bounded else timeout)
        replies = await self._exchange(request, limits, timeout)
        while replies is MOVED:  # all commands are reads
            request = self._request(limits, 0.0)
            replies = await self._exchange(request, limits, timeout)
        if isinstance(replies, NotMultiplexable):
            return await self._fallback.attempt(limits)
        if isinstance(replies, AttemptFailed):
            if not self._transaction:
                arrived = request.replies[len(self._loads) :]
                self._clean(arrived)
                self._settle(arrived)
            if replies.progress is Progress.MAYBE_APPLIED:
                self._repeating = True
            note_loss(self._lost, replies)
            return replace(replies, final=True) if self.sends_left <= 0 else replies
        single = request.count == 1 and self._acknowledgements is None
        answers = self._without_loads(request, [replies] if single else replies)
        errors = self._clean(answers)
        if self._transaction:
            answers = answers[bool(self._prefix) :]
            return await self._finish_transaction(answers, errors=errors)
        if errors and self._take_unexecuted(answers):
            return await self._attempt(limits)
        return await self._finish(answers, errors=errors)

    async def _exchange(self, request: PendingRequest, limits: Limits, timeout: float) -> Any:
        multiplexer = self._multiplexer
        if self._acknowledgements is not None:
            return await exchange_and_wait(
                request,
                self._acknowledgements,
                send=self._send_alone,
                limits=limits,
                timeout=timeout,
            )
        if self._exclusive or needs_own_connection(multiplexer, request, self, self._lost):
            return await self._send_alone(request, limits, timeout)
        submit(multiplexer, request, self)
        return await await_reply(multiplexer, request, call=self, limits=limits, timeout=timeout)

    async def _send_alone(self, request: PendingRequest, limits: Limits, timeout: float) -> Any:
        return await self._runtime.pool.exchange(
            request, call=self, limits=limits, timeout=timeout, suspect=bool(self._lost)
        )

    def _without_loads(self, request: PendingRequest, replies: list[Any]) -> list[Any]:
        """Return the replies to the commands of the batch, without those to SCRIPT LOAD."""
        if not self._loads:
            return replies
        loaded = (
            sha
            for sha, reply in zip(self._loads, replies, strict=False)
            if not isinstance(reply, Exception)
        )
        self._scripts.loaded(request.connection, loaded)
        return replies[len(self._loads) :]

    def _take_unexecuted(self, answers: list[object]) -> bool:
        """Keep the answers before the last commands if those miss a script and did not run.

        Return whether to send them again, which happens once. A command that misses a script and
        is followed by one that was executed keeps its error: it would be executed out of order.
        """
        done = len(self._answers)
        missing = [
            self._scripts.load_for(spec.name, args, reply)
            for spec, (args, _), reply in zip(
                self._specs[done:], self._commands[done:], answers, strict=True
            )
        ]
        if not any(missing):
            return False
        kept = next(
            (index + 1 for index in reversed(range(len(missing))) if missing[index] is None), 0
        )
        self._load_next_time(missing[:kept])
        if self._reloaded or kept == len(missing):
            return False
        self._reloaded = True
        self._answers += answers[:kept]
        self._hashes = [*self._hashes, *(args[1] for args, _ in self._commands[done + kept :])]
        return True

    def _load_next_time(self, loads: Iterable[bytes | None]) -> None:
        """Load scripts whose commands cannot be repeated now."""
        for load in dict.fromkeys(load for load in loads if load is not None):
            self._multiplexer.submit(PendingRequest(load))

    def _clean(self, replies: Sequence[Any]) -> bool:
        """Remove secrets from error replies, also from those inside the reply to EXEC.

        Return whether there are error replies.
        """
        found = False
        # The reply to EXEC is a list, and may contain errors.
        unusual = (Exception, list) if self._transaction else (Exception,)
        if not _contains(replies, unusual):
            return False
        for reply in [reply for reply in replies if isinstance(reply, unusual)]:
            if isinstance(reply, Exception):
                remove_secrets(reply, self._multiplexer.target.secrets)
                found = True
            else:
                found = self._clean(reply) or found
        return found

    def _block(self) -> float:
        """Return how many seconds the server may delay the replies to the unanswered commands."""
        if self.bounded:
            return 0.0
        done = len(self._answers)
        return block_of(
            Command(spec, args, options)
            for spec, (args, options) in zip(self._specs[done:], self._commands[done:], strict=True)
        )

    def _request(self, limits: Limits, extra_timeout: float) -> PendingRequest:
        raw: frozenset[int] = frozenset()
        self._loads = loads = (
            self._scripts.missing_on(self._multiplexer.current, self._hashes)
            if self._hashes
            else {}
        )
        first = len(loads)
        if self._transaction:
            data = b"".join((self._prefix, _MULTI, *self._packed, _EXEC))
            count = len(self._packed) + 2 + bool(self._prefix)
        else:
            done = len(self._answers)
            data, count = b"".join(self._packed[done:]), len(self._packed) - done
            if self._options:
                raw = frozenset(
                    index + first
                    for index, (_, options) in enumerate(self._commands[done:])
                    if NEVER_DECODE in options
                )
        if loads:
            data, count = b"".join(loads.values()) + data, count + first
        return PendingRequest(
            data,
            count=count,
            raw=raw,
            large=len(data) > LARGE,
            extra_timeout=extra_timeout,
            expires=limits.sent,
            movable=limits.behind is None,
        )

    async def _finish(self, answers: list[object], *, errors: bool) -> object:
        if errors and not self._answers:
            failed = _all_refused(answers, self._specs)
            if failed is not None:
                return failed
        start = len(self._answers)
        self._note_accepted(answers, range(start, start + len(answers)))
        if not errors:
            self._answers += answers
            return await self._read_all()
        undecided = self._settle(answers)
        if undecided:
            failed = _all_refused(undecided, self._specs[len(self._answers) :])
            return failed or final_error(undecided[0])
        return await self._read_all()

    def _settle(self, replies: list[Any]) -> list[Any]:
        """Take the next replies as answers. Return those from the first that decides nothing.

        An error proves nothing about a write that was sent before: that copy may be applied.
        """
        start = len(self._answers)
        for index, reply in enumerate(replies):
            if self._repeating and isinstance(reply, Exception) and self._writes(start + index):
                self._answers += replies[:index]
                return replies[index:]
        self._answers += replies
        return []

    def _writes(self, index: int) -> bool:
        """Return whether the command at a position changes something."""
        return effect_of(self._specs[index], self._commands[index][0]) is not Effect.READ

    def _accepted(self, replies: Iterable[object], positions: Iterable[int]) -> bool:
        """Return whether a write is among the commands at these positions that succeeded."""
        return any(
            not isinstance(reply, Exception) and self._writes(index)
            for index, reply in zip(positions, replies, strict=False)
        )

    async def _finish_transaction(self, replies: list[object], *, errors: bool) -> object:
        *queued, result = replies
        if isinstance(result, ExecAbortError):
            return self._aborted(queued[1:], result)
        if isinstance(result, Exception):
            failed = _all_refused(replies, self._specs[:1])
            if failed is not None:
                return failed
            raise result
        if result is None:
            raise WatchError("Watched variable changed.")
        if not isinstance(result, list):
            raise ResponseError("EXEC did not return a list")
        sent = [
            index
            for index, (_, options) in enumerate(self._commands)
            if EMPTY_RESPONSE not in options
        ]
        self._note_accepted(result, sent)
        if errors:
            # Other commands were executed, so a missing script cannot be repeated.
            self._load_next_time(
                self._scripts.load_for(self._specs[index].name, self._commands[index][0], reply)
                for index, reply in zip(sent, result, strict=False)
            )
        for index, reply in zip(sent, result, strict=False):
            if self._repeating and isinstance(reply, Exception) and self._writes(index):
                return final_error(reply)  # the first copy may be applied
        answers = iter(result)
        return [
            options[EMPTY_RESPONSE]
            if EMPTY_RESPONSE in options
            else await self._read(index, next(answers))
            for index, (_, options) in enumerate(self._commands)
        ]

    def _note_accepted(self, replies: Iterable[object], positions: Iterable[int]) -> None:
        """End a period of refused writes if the server has accepted one here."""
        if self._multiplexer.health.refusing and self._accepted(replies, positions):
            self._multiplexer.write_accepted()

    def _aborted(self, queued: Sequence[object], aborted: ExecAbortError) -> AttemptFailed:
        """Return or raise why the server discarded the transaction. Nothing was applied."""
        sent = [args for args, options in self._commands if EMPTY_RESPONSE not in options]
        for index, reply in enumerate(queued):
            if isinstance(reply, Exception):
                failed = refused(reply)
                if failed is not None:
                    return failed
                self._pipeline.annotate_exception(reply, index + 1, sent[index])
                raise reply from aborted
        reason: Exception = aborted
        _, found, quoted = str(aborted).partition("because of: ")
        if found:
            reason = DefaultParser.parse_error(quoted)  # type: ignore[no-untyped-call]
        failed = refused(reason)
        if failed is not None:
            return failed
        raise reason

    async def _read_all(self) -> list[object]:
        """Return what redis-py would for the answers of all commands.

        The callback of a command is looked up once, if its commands have no options.
        """
        table = self._pipeline.callback_table
        callbacks = {
            name: callback_of(table, name) for name in {args[0] for args, _ in self._commands}
        }
        converted = self._options or any(callbacks.values())
        if not converted and not _contains(self._answers, (Exception,)):
            return self._answers
        results: list[object] = []
        for (args, options), reply in zip(self._commands, self._answers, strict=True):
            name = args[0]
            if options or isinstance(reply, Exception):
                results.append(await self._read(len(results), reply))
                continue
            callback = callbacks[name]
            if callback is None:
                results.append(reply)
                continue
            try:
                value = callback(reply)
                results.append(await value if hasattr(value, "__await__") else value)
            except ResponseError as error:
                results.append(error)
        return results

    async def _read(self, index: int, reply: object) -> object:
        args, options = self._commands[index]
        if isinstance(reply, Exception):
            known = self._specs[index].known
            reply = self._multiplexer.target.explain_reply(reply, known=known)
            return options.get(EMPTY_RESPONSE, reply)
        try:
            value = apply_callback(self._pipeline.callback_table, args[0], reply, options)
            return await value if inspect.isawaitable(value) else value
        except ResponseError as error:
            return error


def _contains(replies: Iterable[object], kinds: tuple[type, ...]) -> bool:
    """Return whether a reply is of one of the kinds. Most replies have the same type."""
    return True in [issubclass(kind, kinds) for kind in set(map(type, replies))]


def _all_refused(replies: Sequence[object], specs: Sequence[CommandSpec]) -> AttemptFailed | None:
    """Return the refusal if nothing was applied, because every single reply is a refusal."""
    if not all(isinstance(reply, Exception) and refusal(reply) for reply in replies):
        return None
    if all(spec.known and not spec.name.startswith(SCRIPTED) for spec in specs):
        return refused(replies[0])
    return None


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
            commands = list(self.command_stack)
            specs = [SPECS.get(args[0]) or lookup(args) for args, _ in commands]
            started = asyncio.get_running_loop().time()
            self._note_durability(specs, commands)
            call = self.call_for(commands, specs)
            replies: list[Any] = await self._run(call, started=reopened)
            if self._acknowledgements is not None:
                executor = self._runtime.executor
                self._acknowledgements.check(executor, call.operation, replies, started)
            if raise_on_error:
                self._raise_first(replies, commands)
            return replies
        finally:
            await self.reset()

    def _note_durability(self, specs: list[CommandSpec], commands: list[Queued]) -> None:
        """Decide whether replicas are waited for."""
        durability, self._acknowledgements = self._durability, None
        if durability is not None and any_replicated(specs, [args for args, _ in commands]):
            self._acknowledgements = Acknowledgements(
                durability, DurableGroups.of(self._runtime, durability)
            )

    def _raise_first(self, replies: list[Any], commands: list[Queued]) -> None:
        """Raise the first error among the replies."""
        for error in [reply for reply in replies if isinstance(reply, Exception)]:
            if isinstance(error, ResponseError):
                index = next(index for index, reply in enumerate(replies) if reply is error)
                self.annotate_exception(error, index + 1, commands[index][0])
            raise error

    def call_for(
        self, commands: list[Queued], specs: list[CommandSpec], *, asking: bool = False
    ) -> Call:
        """Return the call that executes commands. ASKING may come first, in a cluster."""
        transaction = bool(self.is_transaction or self.explicit_transaction)
        distinct = list({id(spec): spec for spec in specs}.values())
        # Within MULTI, no command blocks.
        blocking = not transaction and any(spec.block is not None for spec in distinct)
        operation = "EXEC" if transaction else "PIPELINE"
        block = 0.0
        if blocking:
            waiting = zip(specs, commands, strict=True)
            block = block_of(Command(spec, args, options) for spec, (args, options) in waiting)
        exclusive = _WatchedCall(
            self,
            operation,
            self._exchange,
            specs,
            block=block,
            prepare=self._load_hashes,
        )
        if self.connection is not None:
            return exclusive
        for spec in distinct:
            # WAIT refers to the writes of this pipeline, which has its own connection.
            own = blocking and spec.block is not None
            if spec.route in (Route.BOUND, Route.REFUSED) and not own:
                raise RouteRefused(f"{spec.name} cannot share a connection. {spec.advice}")
        make = partial(
            BatchCall,
            self,
            commands,
            specs,
            transaction=transaction,
            blocking=blocking,
            fallback=exclusive,
            asking=asking,
            acknowledgements=self._acknowledgements,
        )
        replica = None
        if self._choose_replica is not None and not transaction:
            replica = self._choose_replica(specs, [args for args, _ in commands])
        return make() if replica is None else ReplicaRead(make(replica=replica), make)

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
        if self._runtime.bound:
            await confirm_idle(self._runtime.multiplexer)
        executor.check_state(call.operation)
        if not isinstance(call, ReplicaRead):
            executor.check_available(call.operation, policy)
        return await executor.run(call, policy, started=started, deliberate=self._deliberate)

    async def _load_hashes(self, connection: AbstractConnection) -> None:
        await load_over(connection, self._runtime.scripts.missing_on(None, self.hashes).values())

    async def _exchange(self, connection: AbstractConnection) -> list[Any]:
        transaction = self.is_transaction or self.explicit_transaction
        # redis-py 8.1 types them for TCP connections only.
        execute: Any = self._execute_transaction if transaction else self._execute_pipeline
        replies: list[Any] = await execute(connection, self.command_stack, raise_on_error=False)
        if self._acknowledgements is not None:
            self._acknowledgements.attempts = 1
            await wait_over(connection, self._acknowledgements)
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
