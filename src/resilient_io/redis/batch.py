"""A pipeline's commands as one call: one contiguous write on one lane, judged as one."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, NoReturn

from redis.asyncio.connection import DefaultParser
from redis.client import EMPTY_RESPONSE, NEVER_DECODE
from redis.exceptions import ExecAbortError, ResponseError, WatchError

from resilient_io.errors import Progress

from .calls import SCRIPTED
from .classification import advise, refusal
from .codec import apply_callback
from .commands import Effect, effect_of
from .errors import RedisOutcomeUnknown
from .exchange import AttemptFailed, Limits, follow
from .replies import LARGE
from .ticket import NoLanes, Ticket

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from resilient_io.errors import ResilientIOError
    from resilient_io.retry import RetryPolicy

    from .call import Call
    from .codec import Packer
    from .commands import CommandSpec
    from .gate import Gate

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
