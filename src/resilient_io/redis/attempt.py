"""One attempt of a call: packing, sending, waiting for the reply, and the result.

`pool` has the calls that need an exclusive connection, `pipeline` those of batches.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import math
from dataclasses import dataclass, replace
from operator import attrgetter, itemgetter
from sys import getsizeof
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias, cast

import hiredis
from redis.client import EMPTY_RESPONSE, NEVER_DECODE
from redis.exceptions import RedisError

from resilient_io.deadlines import current_deadline, earlier
from resilient_io.errors import Progress
from resilient_io.health import Cause
from resilient_io.text import clean_text

from .commands import Effect, Route, changes_data, effect_of
from .connection import (
    CHECK_CLOCK,
    ConnectionLost,
    LeftBehind,
    NotMultiplexable,
    PendingRequest,
    Promoted,
    Undeliverable,
)
from .driver_connection import PROMPT_ANSWER, TRUSTED_IDLE, StallTolerantTimeout
from .errors import ConnectionFailure, refusal, remove_secrets
from .large_values import pack_in_parts
from .response_queue import LARGE
from .scripts import is_all_or_nothing
from .standby import PING
from .watchdog import SECOND_CHECK

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping, Sequence

    from resilient_io.errors import ResilientIOError
    from resilient_io.health import Dependency, Reporter
    from resilient_io.retry import RetryPolicy

    from .commands import CommandSpec
    from .connection import MultiplexedConnection
    from .driver_connection import ExclusiveConnection
    from .errors import Refusal
    from .large_values import Packed
    from .multiplexer import Multiplexer
    from .scripts import KnownScripts

    Carrier: TypeAlias = MultiplexedConnection | ExclusiveConnection

    Callbacks = MutableMapping[str | bytes, Callable[..., Any]]


class Moves:
    """Counts how often an attempt moved a read to another connection, and limits that.

    The earlier copy may still be executed, so each move counts as an attempt of the policy.
    """

    __slots__ = ("_most", "made")

    def __init__(self, most: int) -> None:
        self._most = most
        self.made = 0

    def begin(self) -> bool:
        """Count another move. Return False if the policy permits none."""
        if self.made >= self._most:
            return False
        self.made += 1
        return True


class Limits(NamedTuple):
    """Absolute loop times that limit an attempt (None for no limit), and where it may be sent.

    The times differ only for blocking commands, which may wait long for a reply, but not for a
    connection.
    """

    until: float | None  # when the reply must have arrived

    sent: float | None  # when the request must have been sent

    behind: Carrier | None = None  # the open connection that carries an earlier copy

    outage_wait: float = math.inf  # seconds of an outage during which the call waits

    moves: Moves | None = None  # how often a read may be moved; None for never

    def too_late(self) -> AttemptFailed | None:
        """Return the failed attempt if a request must not be sent any more, or None."""
        if self.sent is None or asyncio.get_running_loop().time() < self.sent:
            return None
        return AttemptFailed(
            progress=Progress.NOT_SENT,
            cause=Cause.TIMED_OUT,
            detail="the deadline passed before the call was sent",
            expired=True,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptFailed:
    """The result of an attempt that ended without a usable reply."""

    progress: Progress
    cause: Cause
    detail: str
    timed_out: bool = False  # by silence, so repeating it costs more of the budget
    expired: bool = False  # the time of the call ran out: no further attempt
    overloaded: bool = False  # the call waited for room on an open connection
    final: bool = False  # no further attempt, whatever the effect of the command
    connection: Carrier | None = None  # it may still carry the request
    applied: bool = False  # a part of the batch was answered, and changed something
    served: float = 0.0  # seconds during which the server had the request of a blocking call
    error: BaseException | None = None  # the exception of redis-py for an error reply
    refusal: Refusal | None = None  # its meaning, if it says that nothing was applied

    @classmethod
    def because(cls, failure: ConnectionFailure, progress: Progress, **facts: Any) -> AttemptFailed:
        """Return the failed attempt that the failure of its connection means."""
        return cls(progress=progress, cause=failure.cause, detail=failure.detail, **facts)

    def served_since(self, sent: float) -> AttemptFailed:
        """Return a copy that tells how long the server had the request that was sent at `sent`."""
        served = asyncio.get_running_loop().time() - sent
        return self if self.progress is Progress.NOT_SENT else replace(self, served=served)

    def with_reason(self, reason: str, *, final: bool = False) -> AttemptFailed:
        """Return a copy whose detail ends with the reason why the call is not repeated."""
        return replace(self, detail=f"{self.detail}{reason}", final=final or self.final)


class Search(Protocol):
    """Looks for the server that accepts writes."""

    def note_refusal(self, refusal: Refusal) -> None:
        """Search, unless that was done too recently: a server refused a call."""


class Server(NamedTuple):
    """The server of an attempt: a client has one, a cluster client one for each node."""

    multiplexer: Multiplexer
    health: Dependency
    reports: Reporter
    search: Search


class Call:
    """A call that the executor sends and repeats."""

    operation: str  # the name of the command, for error messages

    bounded: bool = True
    """Whether the policy's deadline applies. A blocking command has a time limit of its own."""

    server: Server | None = None
    """The server of the latest attempt, if each attempt chooses one."""

    begun: bool = False
    """Whether it was sent before the executor got it, so that its first attempt only goes on."""

    @property
    def effect(self) -> Effect:
        """The effect of executing it twice. Computed only after a failure."""
        raise NotImplementedError

    async def attempt(self, limits: Limits) -> object:
        """Make one attempt within its limits. Return the reply, or an `AttemptFailed`."""
        raise NotImplementedError

    def describe(self, error: ResilientIOError) -> None:
        """Add details of the call to an error, such as the replies that have arrived."""

    def taken_over(self, carrier: Carrier | None) -> bool:  # noqa: ARG002 (for subclasses)
        """Return whether what the server of an earlier attempt still applies has no effect."""
        return False

    async def until_fenced(self, carrier: Carrier) -> bool:
        """Wait until a lost connection cannot apply anything. Return False if it still may."""
        await asyncio.wait([carrier.fenced])
        return carrier.fenced.result()

    def follow(self, request: PendingRequest, limits: Limits) -> None:
        """Take over the request that a plain future has become."""
        request.expires = limits.sent


def unsendable(multiplexer: Multiplexer, limits: Limits, losses: int) -> AttemptFailed | None:
    """Return the failed attempt if a request must not be sent any more, or None.

    `losses` is how often the connection had lost the caller's state when the call was made.
    """
    if multiplexer.bound_state.losses != losses:
        return AttemptFailed(
            progress=Progress.NOT_SENT,
            cause=Cause.RESET,
            detail="the connection was lost before the call was repeated",
            final=True,
        )
    return limits.too_late()


def needs_own_connection(
    multiplexer: Multiplexer,
    request: PendingRequest,
    call: Call,
    lost: list[MultiplexedConnection],
) -> bool:
    """Return whether a request must not share a connection.

    That is a further large one, or one that may be why the server closed the connections `lost`.
    It is not if the server was restarted, which ended the other connections, too.
    """
    if lost and not multiplexer.bound and (request.large or call.effect is Effect.READ):
        return len(lost) > 1 or any(each.opened < lost[0].ended for each in multiplexer.connections)
    return request.large and multiplexer.needs_own_connection(request)


def note_loss(lost: list[MultiplexedConnection], failed: AttemptFailed) -> None:
    """Add the connection of a failed attempt if the server closed it while it had the request."""
    connection = failed.connection
    if failed.cause is Cause.RESET and connection is not None and connection.lost:
        lost.append(cast("MultiplexedConnection", connection))


def submit(multiplexer: Multiplexer, request: PendingRequest, call: Call) -> None:
    """Submit a request of a call. A read takes another connection while replies are delayed."""
    multiplexer.submit(request, read=multiplexer.delayed and call.effect is Effect.READ)


async def confirm_idle(multiplexer: Multiplexer) -> None:
    """Close the connection of a bound client if it was idle for long and does not answer a PING.

    Then the call that follows was certainly not sent. Within MULTI, nothing may be sent in between.
    Calls that come meanwhile wait for the same answer, and so stay in order.
    """
    answer = multiplexer.idle_check
    if answer is not None and not answer.done():
        # The call that asked closes a silent connection, or else its watchdog does.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(current_deadline()):
                await asyncio.wait([answer])
        return
    connection, state = multiplexer.current, multiplexer.bound_state
    idle = connection is not None and not connection.in_flight and connection.idle > TRUSTED_IDLE
    if connection is None or not idle or state.in_transaction:
        return
    answer = multiplexer.idle_check = connection.ask(PING)
    timeout = connection.response_timeout if state else PROMPT_ANSWER
    until = current_deadline()
    try:
        async with StallTolerantTimeout(timeout, until=until):
            await asyncio.shield(answer)
    except TimeoutError:
        if until is None or asyncio.get_running_loop().time() < until:
            detail = f"no answer to a PING within {timeout:g} s, after an idle time"
            connection.close(ConnectionFailure(Cause.TIMED_OUT, detail, definite=False))


def failure_of(reason: ConnectionLost | LeftBehind | Undeliverable) -> AttemptFailed:
    """Return the failed attempt that a connection or the multiplexer reported."""
    if isinstance(reason, LeftBehind):
        return AttemptFailed(
            progress=Progress.NOT_SENT,
            cause=Cause.RESET,
            detail=str(reason),
            connection=reason.connection,
        )
    failure = reason.failure
    if isinstance(reason, Undeliverable):
        return AttemptFailed.because(failure, Progress.NOT_SENT, final=True)
    timed_out = not failure.definite
    return AttemptFailed.because(
        failure, Progress.MAYBE_APPLIED, timed_out=timed_out, connection=reason.connection
    )


def refused(error: object) -> AttemptFailed | None:
    """Return the failed attempt that an error reply means if it is a refusal."""
    meaning = refusal(error) if isinstance(error, Exception) else None
    if meaning is None or not isinstance(error, Exception):
        return None
    return AttemptFailed(
        progress=Progress.REFUSED,
        cause=meaning.cause,
        detail=clean_text(str(error)),
        error=error,
        refusal=meaning,
    )


def final_error(error: Exception) -> AttemptFailed:
    """Return the failed attempt that an error reply means which is not a refusal."""
    return AttemptFailed(
        progress=Progress.REFUSED,
        cause=Cause.OTHER,
        detail=clean_text(str(error)),
        final=True,
        error=error,
    )


ASKING = b"*1\r\n$6\r\nASKING\r\n"
"""Sent directly before a command that ASK has redirected to the next owner of its slot."""

MOVED = object()
"""What `await_reply` returns if a read should be sent again, over a connection that answers."""


async def await_reply(
    multiplexer: Multiplexer, request: PendingRequest, *, call: Call, limits: Limits, timeout: float
) -> Any:
    """Wait for the reply to a submitted request, and check its time limits.

    Return the reply, an exception that represents an error reply, or an `AttemptFailed`.
    Cancelling abandons the request: it is not sent if it was not yet, and its reply is dropped.
    `timeout` limits the silence of the connection. A `call` that only reads may be sent on another
    connection meanwhile; the result is `MOVED` if this one is known to be blocked.
    """
    loop = asyncio.get_running_loop()
    clock = _ReplyClock(multiplexer, request, timeout)
    while True:
        if (
            multiplexer.has_way_around(request)
            and call.effect is Effect.READ
            and limits.moves is not None
            and limits.moves.begin()
        ):
            multiplexer.abandon(request)
            return MOVED
        now = loop.time()
        wake = now + (SECOND_CHECK if clock.suspicious else timeout)
        limit = limits.until if request.sent else clock.may_wait_until(limits)
        if limit is not None and not clock.suspicious:
            wake = min(wake, limit)
        timer = loop.call_at(wake, request.check_clock)
        answered = False
        try:
            reply = await request.future
            answered = True
        finally:
            timer.cancel()
            if not answered and not loop.is_closed():
                _home_of(request, multiplexer).abandon(request)
        if reply is CHECK_CLOCK:
            multiplexer = clock.multiplexer = _home_of(request, multiplexer)
            failed = None if request.done() else clock.check(limits, call)
            if failed is not None:
                multiplexer.abandon(request)
                return failed
        elif isinstance(reply, Promoted):
            request = clock.request = reply.request
            call.follow(request, limits)
        elif isinstance(reply, ConnectionLost | LeftBehind | Undeliverable):
            return failure_of(reply)
        else:
            return reply


def _home_of(request: PendingRequest, first: Multiplexer) -> Multiplexer:
    """Return the multiplexer that has a request: it may have moved with its slot."""
    return first if request.home is None else cast("Multiplexer", request.home)


class _ReplyClock:
    """Decides, each time the caller checks the clock, whether to stop waiting for a reply."""

    def __init__(self, multiplexer: Multiplexer, request: PendingRequest, timeout: float) -> None:
        self.multiplexer = multiplexer
        self.request = request
        self.timeout = timeout
        self.suspicious = False
        self._since = asyncio.get_running_loop().time()
        self._stalled = self._stall_time()

    def _stall_time(self) -> float:
        lag = self.multiplexer.lag
        return lag.stalled if lag is not None else 0.0

    def may_wait_until(self, limits: Limits) -> float | None:
        """Return the loop time until which a request may wait to be sent, or None for no limit."""
        return earlier(limits.sent, end_of_wait(self.multiplexer.health, limits.outage_wait))

    def check(self, limits: Limits, call: Call) -> AttemptFailed | None:
        """Return why the wait is over, or None.

        The first time is only a suspicion: data that is already in the socket is read first.
        """
        now = asyncio.get_running_loop().time()
        if not self.request.sent:
            health = self.multiplexer.health
            end = end_of_wait(health, limits.outage_wait)
            if end is not None and now >= end:
                return server_down(health)
        failed = self._expired(now, limits) or self._timed_out(now, call)
        if failed is None:
            self.suspicious = False
            return None
        if not self.suspicious:
            self.suspicious = True
            return None
        return failed

    def _expired(self, now: float, limits: Limits) -> AttemptFailed | None:
        sent = self.request.sent
        limit = limits.until if sent else limits.sent
        if limit is None or now < limit:
            return None
        if sent:
            return AttemptFailed(
                progress=Progress.MAYBE_APPLIED,
                cause=Cause.TIMED_OUT,
                detail="no reply before the deadline",
                timed_out=True,
                expired=True,
                connection=self.request.connection,
            )
        return expired_while_waiting(self.multiplexer.obstacle, overloaded=self.multiplexer.crowded)

    def _timed_out(self, now: float, call: Call) -> AttemptFailed | None:
        connection = self.request.connection
        if connection is None or not self.request.sent:
            self._since, self._stalled = now, self._stall_time()
            return None
        write = connection.write_of(self.request)
        if write is not None and write.at > self._since:  # it had to wait before
            self._since, self._stalled = write.at, write.stalled
        waited = now - self._since - (self._stall_time() - self._stalled)
        # A blocking command before this one may keep a connection bound to a caller silent.
        if waited < max(self.timeout, connection.extra_timeout):
            return None
        silent = connection.last_activity <= self._since
        # If its own reply keeps the connection busy, another attempt would only add to the load.
        elsewhere = (
            self.multiplexer.current not in (None, connection)
            and not connection.is_next(self.request)
            and call.effect is Effect.READ
        )
        if not silent and not elsewhere:
            self._since, self._stalled = connection.last_activity, self._stall_time()
            return None
        return AttemptFailed(
            progress=Progress.MAYBE_APPLIED,
            cause=Cause.TIMED_OUT,
            detail=f"no reply within {self.timeout:g} s",
            timed_out=True,
            connection=connection,
        )


def end_of_wait(health: Dependency, outage_wait: float) -> float | None:
    """Return the loop time from which on calls do not wait for a server that is down, or None."""
    if health.available or outage_wait == math.inf:
        return None
    return health.lost_at + outage_wait


def server_down(health: Dependency) -> AttemptFailed:
    """Return the failed attempt of a call that does not wait for the server."""
    cause = health.cause if health.cause is not None else Cause.OTHER
    return AttemptFailed(
        progress=Progress.NOT_SENT,
        cause=cause,
        detail=f"down ({cause.value}: {health.detail})",
        final=True,
    )


def expired_while_waiting(obstacle: str, *, overloaded: bool) -> AttemptFailed:
    """Return the failed attempt of a call whose deadline passed before it was sent."""
    return AttemptFailed(
        progress=Progress.NOT_SENT,
        cause=Cause.OVERLOADED if overloaded else Cause.TIMED_OUT,
        detail=f"the deadline passed while the call waited for {obstacle}",
        expired=True,
        overloaded=overloaded,
    )


_pack: Callable[[Any], bytes] = hiredis.pack_command
_LAST: Callable[[Sequence[Any]], Any] = itemgetter(-1)
_SIMPLE: Callable[[CommandSpec], bool] = attrgetter("simple")

_NOT_FOR_CALLBACKS = ("keys", "NEVER_DECODE", "EMPTY_RESPONSE")
"""Options that redis-py 8.1's `parse_response` removes before it calls a callback."""


LONG_KEY = 256
BULK_HEADERS = tuple(f"${length}\r\n" for length in range(LONG_KEY))
"""How short arguments begin in a packed request, by their length."""

BULK_INTEGERS = {
    number: f"{BULK_HEADERS[len(str(number))]}{number}\r\n" for number in range(-LONG_KEY, LONG_KEY)
}
"""Small integers as they are in a packed request."""

KEY_ONLY = 2
"""The number of arguments of a command with a key alone."""


class Packer:
    """Packs commands as redis-py's encoder would, with hiredis where both agree."""

    __slots__ = ("_encoder", "direct")

    def __init__(self, encoder: Any) -> None:
        self._encoder = encoder
        self.direct = encoder.encoding.lower().replace("_", "-") in ("utf-8", "utf8") and (
            encoder.encoding_errors == "strict"
        )

    def pack(self, words: Sequence[bytes], args: Sequence[object]) -> Packed:
        """Return a packed command. `words` is its name as it is sent; `args` includes the name."""
        if has_large(args):
            return self._pack_large((*words, *args[1:]))
        if self.direct:
            try:
                # A single word is sent as it was passed.
                return _pack((*words, *args[1:]) if len(words) > 1 else args)
            except TypeError:
                pass  # a bytearray, or a value that the encoder rejects with a better message
        encode = self._encoder.encode
        return _pack((*words, *(bytes(encode(argument)) for argument in args[1:])))

    def pack_small(self, spec: CommandSpec, args: Sequence[Any]) -> bytes | None:
        """Return a packed command of one word, or None if it is large.

        Small integers after a key are frequent, and take `hiredis` longer than joining strings.
        """
        if len(args) > KEY_ONLY:
            kind, key = type(value := args[2]), args[1]
            if kind is int:
                if type(key) is str and key.isascii():
                    try:
                        start = (
                            f"{spec.bulk}{BULK_HEADERS[len(key)]}{key}\r\n{BULK_INTEGERS[value]}"
                        )
                        if len(args) == KEY_ONLY + 1:
                            return f"*3\r\n{start}".encode()
                        _, _, _, last = args
                        if type(last) is int:
                            return f"*4\r\n{start}{BULK_INTEGERS[last]}".encode()
                    except (LookupError, ValueError):
                        pass  # a long key, another integer, or more arguments
            elif (kind is bytes or kind is str) and len(value) > LARGE:
                return None
        try:
            data = _pack(args)
        except TypeError:
            data = bytes(self.pack(spec.words, args))
        return data if len(data) <= LARGE else None

    def pack_all(
        self, specs: Sequence[CommandSpec], commands: Sequence[Sequence[object]]
    ) -> list[bytes]:
        """Return packed commands, as `pack` does, but none in parts. Each includes its name."""
        key_only = set(map(len, commands)) == {KEY_ONLY}
        simple = self.direct and all(map(_SIMPLE, specs))
        if simple and key_only:
            packed = _pack_keys(specs, list(map(_LAST, commands)))
            if packed is not None:
                return packed
        # `hiredis` makes another copy of what it packs. Keys are small.
        small = key_only or max(map(getsizeof, map(_LAST, commands)), default=0) <= LARGE
        if self.direct and small:
            try:
                if simple:
                    return list(map(_pack, commands))
                return [
                    _pack(args if len(spec.words) == 1 else (*spec.words, *args[1:]))
                    for spec, args in zip(specs, commands, strict=True)
                ]
            except TypeError:
                pass  # as in `pack`
        every = zip(specs, commands, strict=True)
        return [bytes(self.pack(spec.words, args)) for spec, args in every]

    def _pack_large(self, words: Sequence[object]) -> Packed:
        """Return a packed command without further copies of its values, which `hiredis` makes."""
        encoded = map(self._encoder.encode, words)
        return pack_in_parts(map(bytes, encoded), count=len(words), least=LARGE)


def _pack_keys(specs: Sequence[CommandSpec], keys: Sequence[Any]) -> list[bytes] | None:
    """Return packed commands with a key alone, or None if a key is not short and ASCII."""
    if set(map(type, keys)) != {str} or not "".join(keys).isascii():
        return None
    try:
        return [
            f"{spec.head}{BULK_HEADERS[len(key)]}{key}\r\n".encode()
            for spec, key in zip(specs, keys, strict=True)
        ]
    except IndexError:
        return None


def has_large(args: Sequence[object]) -> bool:
    """Return whether a value is so large that the request keeps small calls off its connection."""
    return max(map(getsizeof, args)) > LARGE


def callback_of(callbacks: Callbacks, name: Any) -> Callable[..., Any] | None:
    """Return redis-py's callback for the replies to a command, or None."""
    return callbacks.get(name) if isinstance(name, str | bytes) else None


def apply_callback(callbacks: Callbacks, name: Any, reply: Any, options: Mapping[str, Any]) -> Any:
    """Return the reply converted by redis-py's callback, which may be asynchronous."""
    callback = callback_of(callbacks, name)
    if callback is None:
        return reply
    plain = {key: value for key, value in options.items() if key not in _NOT_FOR_CALLBACKS}
    return callback(reply, **plain)


@dataclass(frozen=True, slots=True)
class Command:
    """One command as passed to `execute_command`, with its row of the command table."""

    spec: CommandSpec
    args: Sequence[Any]
    options: Mapping[str, Any]

    @property
    def effect(self) -> Effect:
        """The effect of executing it twice. A command bound to a connection is never repeated."""
        return (
            Effect.DANGEROUS if self.spec.route is Route.BOUND else effect_of(self.spec, self.args)
        )

    @property
    def block(self) -> float | None:
        """How many seconds the server may delay the reply; None for no limit."""
        return self.spec.block(self.args) if self.spec.block is not None else 0.0


def block_of(commands: Iterable[Command]) -> float:
    """Return how many seconds the server may delay the replies to commands sent one by one."""
    blocks = [command.block for command in commands]
    return UNLIMITED if None in blocks else sum(block or 0.0 for block in blocks)


SCRIPTED = ("EVAL", "FCALL")  # prefixes of the commands that run the user's code on the server

UNLIMITED = 1e6  # seconds that stand for a command that blocks without a limit


def read_reply(
    multiplexer: Multiplexer, callbacks: Callbacks, command: Command, reply: object
) -> object:
    """Return what redis-py would for a raw reply, or an `AttemptFailed`. Raise an error reply."""
    if isinstance(reply, Exception):
        remove_secrets(reply, multiplexer.target.secrets)
        # The error of a script or of an unknown command proves nothing: a part may be applied.
        name = command.spec.name
        native = command.spec.known and not name.startswith(SCRIPTED)
        if native or is_all_or_nothing(name, command.args) or command.effect is Effect.READ:
            failed = refused(reply)
            if failed is not None:
                return failed
        if EMPTY_RESPONSE in command.options and isinstance(reply, RedisError):
            return command.options[EMPTY_RESPONSE]
        raise multiplexer.target.explain_reply(reply, known=command.spec.known)
    if multiplexer.health.refusing and changes_data(command.spec, command.args):
        multiplexer.write_accepted()
    return apply_callback(callbacks, command.args[0], reply, command.options)


class MultiplexedCall(Call):
    """One command on a multiplexed connection."""

    def __init__(
        self,
        multiplexer: Multiplexer,
        callbacks: Callbacks,
        policy: RetryPolicy,
        command: Command,
        data: Packed,
        *,
        exchange: Callable[..., Awaitable[Any]],
        scripts: KnownScripts,
        fallback: Callable[[], Call],
        first: Exception | None = None,
        asking: bool = False,
        slot: int | None = None,
    ) -> None:
        self._multiplexer = multiplexer
        self._callbacks = callbacks
        self._command = command
        self._data = data
        self._scripts = scripts
        self._fallback = fallback
        self._first = first
        self._prefix = ASKING if asking else b""
        self._slot = slot
        self._exchange_alone = exchange  # `ExclusivePool.exchange`
        self._lost: list[MultiplexedConnection] = []
        """The connections that the server closed while they had the request."""
        self._losses = multiplexer.bound_state.losses
        self._moved = False  # whether another node got the request, together with its slot
        self.operation = command.spec.name
        # Only the single connection of a bound client carries blocking commands.
        self.bounded = command.spec.block is None
        self._timeout = policy.response_timeout + block_of((command,))

    @property
    def effect(self) -> Effect:
        """The effect of executing it twice."""
        return self._command.effect

    async def attempt(self, limits: Limits) -> object:
        """Send the command, or continue the attempt that the hot path began."""
        first, self._first = self._first, None
        reply: object = first
        if isinstance(first, ConnectionLost | Undeliverable):
            failed = failure_of(first)
            note_loss(self._lost, failed)
            return failed
        if first is None:
            unsent = unsendable(self._multiplexer, limits, self._losses)
            if unsent is not None:
                return unsent
        began = asyncio.get_running_loop().time()
        if first is None or isinstance(first, Promoted):
            reply = await self._exchange(limits, None if first is None else first.request)
        load = self._scripts.load_for(self.operation, self._command.args, reply)
        if load is not None:
            unsent = self._left_node() or unsendable(self._multiplexer, limits, self._losses)
            if unsent is not None:
                return unsent
            # Nothing ran. Sent together, both reach the same server.
            reply = await self._exchange(limits, before=load)
        if isinstance(reply, NotMultiplexable):
            return await self._fallback().attempt(limits)
        result = reply
        if not isinstance(reply, AttemptFailed):
            result = read_reply(self._multiplexer, self._callbacks, self._command, reply)
        if isinstance(result, AttemptFailed):
            return result if self.bounded else result.served_since(began)
        return await result if inspect.isawaitable(result) else result

    def _left_node(self) -> AttemptFailed | None:
        """Return a failed attempt if another node has answered: the next attempt finds it."""
        if not self._moved:
            return None
        return AttemptFailed(
            progress=Progress.NOT_SENT,
            cause=Cause.OTHER,
            detail="the node that took over the slot does not have the script",
        )

    async def _exchange(
        self, limits: Limits, request: PendingRequest | None = None, *, before: bytes = b""
    ) -> Any:
        """Send the command, unless it was sent as `request`, and wait for the reply."""
        if request is not None:
            self.follow(request, limits)
        while True:
            if request is None:
                request = self._request(limits, before)
                if needs_own_connection(self._multiplexer, request, self, self._lost):
                    reply = await self._exchange_alone(
                        request,
                        call=self,
                        limits=limits,
                        timeout=self._timeout,
                        suspect=bool(self._lost),
                    )
                    break
                submit(self._multiplexer, request, self)
            reply = await await_reply(
                self._multiplexer,
                request,
                call=self,
                limits=limits,
                timeout=self._timeout,
            )
            if reply is not MOVED:
                break
            request = None
            unsent = unsendable(self._multiplexer, limits, self._losses)
            if unsent is not None:
                return unsent
        self._moved = request.home not in (None, self._multiplexer)
        if isinstance(reply, AttemptFailed):
            note_loss(self._lost, reply)
        elif request.count > 1 and isinstance(reply, list):
            reply = reply[-1]  # those before it are the replies to the commands before it
        return reply

    def follow(self, request: PendingRequest, limits: Limits) -> None:
        """Take over the request that a plain future has become."""
        super().follow(request, limits)
        request.slot = self._slot

    def _request(self, limits: Limits, before: bytes = b"") -> PendingRequest:
        """Return the request, in one write with other commands that come before it."""
        position = bool(before) + bool(self._prefix)
        raw = frozenset({position}) if NEVER_DECODE in self._command.options else frozenset()
        request = PendingRequest(
            before + self._prefix + self._data,
            count=position + 1,
            raw=raw,
            large=len(self._data) > LARGE,
            extra_timeout=0.0 if self.bounded else self._timeout,
            expires=limits.sent,
            movable=limits.behind is None,
        )
        request.slot = self._slot
        return request
