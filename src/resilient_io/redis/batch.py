"""The commands of a pipeline or a transaction, in one write on a multiplexed connection."""

from __future__ import annotations

import asyncio
import inspect
from asyncio import CancelledError
from dataclasses import replace
from itertools import compress
from typing import TYPE_CHECKING, Any, cast

from redis.asyncio.connection import DefaultParser
from redis.client import EMPTY_RESPONSE, NEVER_DECODE
from redis.exceptions import ExecAbortError, ResponseError, WatchError

from resilient_io.deadlines import current_deadline
from resilient_io.errors import Progress
from resilient_io.health import Cause
from resilient_io.text import clean_text

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
    final_error,
    needs_own_connection,
    note_loss,
    refused,
    submit,
    unsendable,
)
from .commands import SPECS, Effect, changes_data, effect_of, effect_of_batch, lookup
from .connection import NotMultiplexable, PendingRequest
from .durability import Acknowledgements, any_applied, exchange_and_wait
from .errors import ConnectionFailure, RedisOutcomeUnknown, refusal, remove_secrets
from .response_queue import LARGE

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from resilient_io.errors import ResilientIOError
    from resilient_io.retry import RetryPolicy

    from .attempt import Callbacks, Limits, Packer
    from .commands import CommandSpec
    from .connection import MultiplexedConnection
    from .runtime import Runtime

    Queued = tuple[tuple[Any, ...], Mapping[str, Any]]

_MULTI = b"*1\r\n$5\r\nMULTI\r\n"
_EXEC = b"*1\r\n$4\r\nEXEC\r\n"


UNFINISHED = object()
"""What `BatchCall.send_directly` returns if the executor has to execute the batch."""


class Batch:
    """The commands of a pipeline, with their rows of the command table."""

    __slots__ = ("args", "commands", "distinct", "names", "options", "specs")

    def __init__(self, commands: Sequence[Queued]) -> None:
        self.commands = commands
        self.args = [args for args, options in commands if not options]
        self.options = len(self.args) < len(commands)
        """Whether any command has options."""
        if self.options:
            self.args = [args for args, _ in commands]
        names = [args[0] for args in self.args]
        rows = {name: SPECS.get(name) for name in set(names)}
        self.names = rows.keys()
        self.specs: list[CommandSpec]
        self.distinct: Collection[CommandSpec]
        """The rows without repetitions."""
        if all(rows.values()):
            known = cast("dict[Any, CommandSpec]", rows)
            self.specs, self.distinct = list(map(known.__getitem__, names)), known.values()
        else:
            self.specs = [rows[args[0]] or lookup(args) for args in self.args]
            self.distinct = {id(spec): spec for spec in self.specs}.values()


class BatchCall(Call):
    """A pipeline on a multiplexed connection, with or without MULTI and EXEC around it.

    In a plain pipeline, answered commands are settled: only the effect of the unanswered rest
    decides whether it is repeated, and only the rest is sent again. But if the call fails, its
    error also counts what was settled. A transaction is applied entirely or not at all.
    """

    def __init__(
        self,
        runtime: Runtime,
        batch: Batch,
        *,
        policy: RetryPolicy,
        packer: Packer,
        callbacks: Callbacks,
        annotate: Callable[[Exception, int, Sequence[Any]], object],
        hashes: Sequence[object],
        transaction: bool,
        blocking: bool,
        fallback: Callable[[], Call],
        asking: bool = False,
        slot: int | None = None,
        acknowledgements: Acknowledgements | None = None,
    ) -> None:
        # All arguments are encoded here, so that an invalid one sends nothing.
        self._runtime = runtime
        self._policy = policy
        self._callbacks = callbacks
        self._annotate = annotate
        """Adds the command to its error reply, as redis-py does."""
        self._multiplexer = runtime.multiplexer
        self._commands = commands = batch.commands
        self._specs = specs = batch.specs
        self._names = batch.names
        self._transaction = transaction
        self._prefix = ASKING if asking else b""  # before MULTI, it applies to all commands
        self._slot = slot  # with which it moves to another node while it waits
        self._fallback = fallback
        self._acknowledgements = acknowledgements
        """Receives the replies to WAIT, which follows the batch, if it must be durable."""
        self.bounded = not blocking
        # The connection of a bound client is the caller's own, and holds the caller's state.
        durable = acknowledgements is not None
        self._exclusive = (blocking or durable) and not self._multiplexer.bound
        self._scripts = runtime.scripts
        self._hashes = hashes
        self._loads: dict[str, bytes] = {}
        self._reloaded = False
        self._answers: list[object] = []
        self._repeating = False
        """Whether the unanswered commands were sent before, and so may have been applied."""
        self._first: PendingRequest | None = None
        """What `send_directly` has sent, for which the first attempt goes on waiting."""
        self._losses = self._multiplexer.bound_state.losses
        self._lost: list[MultiplexedConnection] = []
        """The connections that the server closed while they had the request."""
        self.operation = "MULTI" if transaction else "PIPELINE"
        self._options = batch.options
        args = batch.args
        if transaction and self._options:
            sent = [EMPTY_RESPONSE not in options for _, options in commands]
            specs, args = list(compress(specs, sent)), list(compress(args, sent))
        self._packed = packer.pack_all(specs, args)

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

    async def send_directly(self) -> Any:
        """Send the batch without timers of its own, as the hot path sends a command.

        Return the results, or `UNFINISHED` if `attempt` has to begin, or to go on.
        """
        multiplexer, limit = self._multiplexer, current_deadline()
        connection = multiplexer.fast
        if connection is None or self._exclusive:
            return UNFINISHED
        if limit is not None and limit < multiplexer.time() + 1.5 * self._policy.response_timeout:
            return UNFINISHED
        request = self._request(None)
        if request.large:
            return UNFINISHED
        request.timed, self._first, self.begun = False, request, True
        connection.send_request(request)
        try:
            reply: Any = await request.future
        except CancelledError:
            multiplexer.abandon(request)
            raise
        replies = [reply] if request.count == 1 else reply
        if isinstance(reply, Exception) or self._clean(replies):
            return UNFINISHED
        finish = self._finish_transaction if self._transaction else self._finish
        return await finish(self._without_loads(request, replies), errors=False)

    async def _attempt(self, limits: Limits) -> object:
        timeout = self._policy.response_timeout + self._block()
        request, self._first = self._first, None
        if request is None:
            unsent = unsendable(self._multiplexer, limits, self._losses)
            if unsent is not None:
                return unsent
            request = self._request(limits, 0.0 if self.bounded else timeout)
            replies = await self._exchange(request, limits, timeout)
        else:
            request.timed = True
            self.follow(request, limits)
            multiplexer = self._multiplexer
            replies = await await_reply(
                multiplexer, request, call=self, limits=limits, timeout=timeout
            )
        while replies is MOVED:  # all commands are reads
            request = self._request(limits, 0.0)
            replies = await self._exchange(request, limits, timeout)
        if isinstance(replies, NotMultiplexable):
            return await self._fallback().attempt(limits)
        if isinstance(replies, AttemptFailed):
            if not self._transaction:
                arrived = request.replies[len(self._loads) :]
                self._clean(arrived)
                self._settle(arrived)
            if replies.progress is Progress.MAYBE_APPLIED:
                self._repeating = True
            note_loss(self._lost, replies)
            return replies
        single = request.count == 1 and self._acknowledgements is None
        answers = self._without_loads(request, [replies] if single else replies)
        errors = self._clean(answers)
        if self._transaction:
            answers = answers[bool(self._prefix) :]
            return await self._finish_transaction(
                answers, errors=errors, connection=request.connection
            )
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
                applied=self._any_applied,
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

    def _any_applied(self, replies: list[Any]) -> bool:
        """Return whether replicas may need a write of this exchange."""
        positions: Sequence[int] = range(len(self._answers), len(self._commands))
        if self._transaction:
            positions = self._sent
            replies = replies[-1] if isinstance(replies[-1], list) else []
        else:
            replies = replies[len(self._loads) :]
        specs = [self._specs[index] for index in positions]
        return any_applied(specs, [self._commands[index][0] for index in positions], replies)

    @property
    def _sent(self) -> list[int]:
        """The positions of the commands of a transaction that are sent: all but placeholders."""
        options = enumerate(options for _, options in self._commands)
        return [index for index, given in options if EMPTY_RESPONSE not in given]

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
        if not contains_type(replies, unusual):
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

    def _request(self, limits: Limits | None, extra_timeout: float = 0.0) -> PendingRequest:
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
        request = PendingRequest(
            data,
            count=count,
            raw=raw,
            large=len(data) > LARGE,
            extra_timeout=extra_timeout,
            expires=None if limits is None else limits.sent,
            movable=limits is None or limits.behind is None,
        )
        request.slot = self._slot
        return request

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

    async def _finish_transaction(
        self,
        replies: list[object],
        *,
        errors: bool,
        connection: MultiplexedConnection | None = None,
    ) -> object:
        result = replies[-1]
        if isinstance(result, Exception):
            return self._not_executed(replies, connection)
        if result is None:
            raise WatchError("Watched variable changed.")
        if not isinstance(result, list):
            raise ResponseError("EXEC did not return a list")
        sent = self._sent
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
        if self._multiplexer.health.refusing and any(
            changes_data(self._specs[index], self._commands[index][0])
            for index, reply in zip(positions, replies, strict=False)
            if not isinstance(reply, Exception)
        ):
            self._multiplexer.write_accepted()

    def _not_executed(
        self, replies: list[object], connection: MultiplexedConnection | None
    ) -> AttemptFailed:
        """Return or raise why EXEC did not execute the transaction."""
        began, *queued, result = replies
        if isinstance(result, ExecAbortError):
            return self._aborted(queued, result)
        failed = _all_refused(replies, self._specs[:1])
        if failed is not None:
            return failed
        if isinstance(began, Exception):
            # Without MULTI, for which an ACL may have no permission, each command is executed.
            raw = iter(queued)
            replied = [
                options[EMPTY_RESPONSE] if EMPTY_RESPONSE in options else next(raw)
                for _, options in self._commands
            ]
            if not self._accepted(replied, range(len(replied))):
                raise began
            self._answers = replied
            return without_transaction(f" ({clean_text(str(began))})")
        if connection is not None and "unknown command" in str(result):
            # EXEC is renamed, and MULTI is not: what other calls send would only be queued. Any
            # other error of EXEC ends the transaction.
            detail = f"the server refused EXEC ({clean_text(str(result))})"
            connection.close(ConnectionFailure(Cause.PROTOCOL, detail))
        assert isinstance(result, Exception)  # noqa: S101 - checked by the caller
        raise result

    def _aborted(self, queued: Sequence[object], aborted: ExecAbortError) -> AttemptFailed:
        """Return or raise why the server discarded the transaction. Nothing was applied."""
        sent = [args for args, options in self._commands if EMPTY_RESPONSE not in options]
        for index, reply in enumerate(queued):
            if isinstance(reply, Exception):
                failed = refused(reply)
                if failed is not None:
                    return failed
                self._annotate(reply, index + 1, sent[index])
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
        callbacks = {name: callback_of(self._callbacks, name) for name in self._names}
        converted = self._options or any(callbacks.values())
        if not converted and not contains_type(self._answers, (Exception,)):
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
            value = apply_callback(self._callbacks, args[0], reply, options)
            return await value if inspect.isawaitable(value) else value
        except ResponseError as error:
            return error


def without_transaction(why: str = "") -> AttemptFailed:
    """Return the failed attempt of a transaction whose MULTI was refused, but not its commands."""
    return AttemptFailed(
        progress=Progress.MAYBE_APPLIED,
        cause=Cause.OTHER,
        detail=f"the server refused MULTI{why} and executed the commands without a transaction",
        final=True,
        applied=True,
    )


def contains_type(replies: Iterable[object], kinds: tuple[type, ...]) -> bool:
    """Return whether a reply is of one of the kinds. Most replies have the same type."""
    return True in [issubclass(kind, kinds) for kind in set(map(type, replies))]


def _all_refused(replies: Sequence[object], specs: Sequence[CommandSpec]) -> AttemptFailed | None:
    """Return the refusal if nothing was applied, because every single reply is a refusal."""
    if not all(isinstance(reply, Exception) and refusal(reply) for reply in replies):
        return None
    if all(spec.known and not spec.name.startswith(SCRIPTED) for spec in specs):
        return refused(replies[0])
    return None
