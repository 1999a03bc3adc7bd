"""One server process and its sessions: input, output, blocked clients, and their timers.

`Node` is what the handlers of commands use; `server.RedisServer` adds the execution of commands
and the faults.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import hiredis

from tests.simulation.history import ErrorReply

from .database import Database, Journal, ScoreValue, Stream
from .resp import PENDING, Push, Refused, Reply, encode

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    from tests.simulation.history import History

    from .command import Command, Words

MAX_CLIENTS = "ERR max number of clients reached"


class Peer(Protocol):
    """The network's end of an accepted connection."""

    address: str

    def send(self, data: bytes) -> None:
        """Send bytes to the client."""

    def close(self) -> None:
        """Send FIN after everything that was sent."""

    def reset(self) -> None:
        """Send RST."""


class Timers(Protocol):
    """The clock and the timers of the simulated loop."""

    def time(self) -> float:
        """Return the virtual time in seconds."""

    def at(self, when: float, callback: Callable[..., object], *args: Any) -> Any:
        """Call back at a time; return an object with `cancel()`."""


class Waiting:
    """A command that waits for keys, for replicas, or for the end of a pause.

    Attributes:
        attempt: Returns the reply, or PENDING while the command has to wait.
        null: The reply at the timeout.
        strict: Whether an error of a later attempt ends the wait (XREADGROUP).
        ready: The key that has changed.
    """

    __slots__ = (
        *("attempt", "command", "database", "keys", "null", "ready", "session", "strict", "timer"),
        "words",
    )

    def __init__(
        self,
        session: Session,
        keys: tuple[bytes, ...],
        attempt: Callable[[], Reply],
        null: Reply,
        *,
        strict: bool,
    ) -> None:
        self.session = session
        self.command = session.command
        self.words = session.words
        self.database = session.database
        self.keys = keys
        self.attempt = attempt
        self.null = null
        self.strict = strict
        self.ready = b""
        self.timer: Any = None


class Session:
    """One connection, or the caller of commands within a script (without a peer).

    Attributes:
        command, words: The command that is being executed.
        executing: Whether an EXEC or a script is running: nothing blocks.
        queued: The commands after MULTI, or None.
        aborted: Whether EXEC must fail because a command was refused.
        watched: The version of each watched key, by database and key.
        partial: Whether the beginning of a command has been read.
        halted: Whether further input has to wait: blocked, paused, closing or closed.
        gone: Whether output has nowhere to go.
        held: Whether output has to wait for the end of a script.
        opening: Whether the connection waits in the backlog of a server that does not read.
    """

    __slots__ = (
        *("aborted", "authenticated", "caching", "channels", "closing", "command", "created"),
        *("database", "opt_in"),
        *(
            "executing",
            "gone",
            "halted",
            "held",
            "id",
            "last",
            "library",
            "name",
            "node",
            "out",
            "partial",
            "patterns",
        ),
        *(
            "opening",
            "peer",
            "postponed",
            "protocol",
            "queued",
            "reader",
            "tracking",
            "user",
            "waiting",
        ),
        *("watched", "words", "written_offset"),
    )

    def __init__(self, node: Node, peer: Peer | None, number: int) -> None:
        self.node = node
        self.peer = peer
        self.id = number
        self.name = ""
        self.library = ("", "")
        self.protocol = 2
        self.database = node.databases[0]
        self.user = "default"
        self.authenticated = not node.password_required
        self.command: Command | None = None
        self.words: Words = ()
        self.executing = False
        self.queued: list[tuple[Command, Words]] | None = None
        self.aborted = False
        self.watched: dict[tuple[int, bytes], int] = {}
        self.channels: dict[bytes, None] = {}
        self.patterns: dict[bytes, None] = {}
        self.tracking = False
        self.opt_in = False  # only the keys read after CLIENT CACHING YES are tracked
        self.caching = False  # whether the next command is one of them
        self.waiting: Waiting | None = None
        self.postponed: list[bytes] | None = None
        self.halted = False
        self.closing = False
        self.gone = False
        self.held = False
        self.opening = False
        self.created = self.last = node.timers.time()
        self.written_offset = 0
        self.out: list[bytes] = []
        self.partial = False  # the input ends within a command
        self.reader = hiredis.Reader() if peer is not None else None

    # What the network calls.

    def receive(self, data: bytes) -> None:
        """Take bytes from the client."""
        node = self.node
        if node.stopped:
            node.backlog.append((self, data))
        elif self.id == 0:
            node.answer_unknown(self)
        else:
            self.feed(data)
            node.finish()

    def lost(self, *, reset: bool = False) -> None:
        """Take the end of the connection. After a reset, input that was not read is dropped."""
        self.gone = True
        node = self.node
        if node.stopped:
            if reset:
                node.backlog = [entry for entry in node.backlog if entry[0] is not self]
            node.backlog.append((self, None))
        elif self.id:
            node.drop(self)
            node.finish()

    # What the node calls.

    def feed(self, data: bytes) -> None:
        """Read bytes and execute the commands in them."""
        if self.closing:
            return
        if data:
            reader = self.reader
            if data[0] != 42 and not self.partial and not reader.has_data():  # 42 is "*"
                data = self._inline(data)
            reader.feed(data)
        if not self.halted:
            self.process()

    def process(self) -> None:
        """Execute the commands that were read."""
        node = self.node
        execute = node.execute
        gets, has_data = self.reader.gets, self.reader.has_data
        self.last = node.timers.time()
        try:
            while not self.halted:
                if not self.partial and not has_data():
                    return
                words = gets()
                self.partial = words is False
                if self.partial:
                    return
                if words:
                    if type(words) is not list or type(words[0]) is not bytes:
                        raise hiredis.ProtocolError  # noqa: TRY301
                    execute(self, words)
                    if node.stopped and not self.halted:
                        node.backlog.insert(0, (self, b""))
                        return
                if not has_data():
                    return
        except hiredis.ProtocolError:
            self.reply(ErrorReply("ERR Protocol error: invalid multibulk length"))
            self.end()

    def reply(self, reply: Reply) -> None:
        """Send a reply."""
        if not self.out:
            self.node.pending.append(self)
        self.out.append(encode(reply, self.protocol))

    def abort(self) -> None:
        """Discard the transaction at EXEC, because a command was refused."""
        self.aborted = True
        if self.node.valkey and self.queued:
            self.queued.clear()

    def end(self) -> None:
        """Close the connection after the output."""
        self.halted = self.closing = True
        if not self.out:
            self.node.pending.append(self)

    def block(
        self,
        attempt: Callable[[], Reply],
        seconds: float,
        null: Reply,
        keys: tuple[bytes, ...] = (),
        *,
        strict: bool = False,
    ) -> Reply:
        """Return the reply of a command that may have to wait: that of the first attempt, or none.

        Later attempts follow when one of the keys changes.
        """
        reply = attempt()
        if reply is not PENDING:
            return reply
        if self.executing:
            return null() if callable(null) else null
        self.node.wait(Waiting(self, keys, attempt, null, strict=strict), seconds)
        return PENDING

    def candidates(self, keys: tuple[bytes, ...]) -> tuple[bytes, ...]:
        """Return the keys that a blocking command looks at: at first all of them.

        Later, Valkey looks at all of them again, Redis 7.0 at the one that has changed.
        """
        return keys if self.waiting is None or self.node.valkey else (self.waiting.ready,)

    @property
    def subscriptions(self) -> int:
        """Return the number of channels and patterns."""
        return len(self.channels) + len(self.patterns)

    def _inline(self, data: bytes) -> bytes:
        out = b""
        while data and data[0] != 42:
            line, _, data = data.partition(b"\n")
            words = line.split()
            if words:
                parts = [b"$%d\r\n%b\r\n" % (len(word), word) for word in words]
                out += b"*%d\r\n%b" % (len(words), b"".join(parts))
        return out + data


def _awaited_type(name: bytes) -> type:
    if name.startswith(b"BZ"):
        return ScoreValue
    return Stream if name.startswith(b"X") else list


class Node:
    """One server: its databases, sessions and settings."""

    def __init__(
        self, name: str, timers: Timers, history: History, random: Random, databases: int
    ) -> None:
        self.name = name
        self.timers = timers
        self.history = history
        self.random = random
        self.valkey = False
        self.version = ""
        self.release: tuple[int, ...] = ()
        self.address = "10.0.0.1:6379"
        self.epoch = 1_700_000_000.0  # Unix time of the virtual time 0
        self.password_required = False
        self.max_clients = 10_000
        self.mode = "standalone"
        self.started = 0.0
        self.loading_until = 0.0
        self.busy_until = 0.0
        self.journal = Journal(self._expired)
        clock = self.unix_ms
        self.databases = [Database(index, self.journal, clock) for index in range(databases)]
        self.run_id = ""
        self.stopped = False  # nothing is read: frozen, or in the first moments of a script
        self.running = True
        self.generation = 0
        self.backlog: list[tuple[Session, bytes | None]] = []
        self.sessions: dict[int, Session] = {}
        self.pending: list[Session] = []  # sessions with output
        self.unblocked: list[Session] = []  # sessions whose further input has to be executed
        self.overdue: list[Callable[[], object]] = []  # timers that were due while stopped
        self.channels: dict[bytes, dict[int, Session]] = {}
        self.patterns: dict[bytes, dict[int, Session]] = {}
        self.scripts: dict[str, bytes] = {}  # SHA1 to body
        self.last_id = 0

    def unix_ms(self) -> int:
        """Return the server's Unix time in milliseconds."""
        return round((self.epoch + self.timers.time()) * 1000)

    # Overridden by the server.

    def execute(self, session: Session, words: list[bytes]) -> None:
        """Execute a command of a client."""
        raise NotImplementedError

    def call(
        self, session: Session, command: Command, words: Words, transaction: int | None = None
    ) -> Reply:
        """Run a command that was accepted, and write the log."""
        raise NotImplementedError

    def invalidate(self) -> None:
        """Report changed keys to the clients that track them."""

    def propagate(self) -> None:
        """Send the changes to the replicas."""

    def answer_unknown(self, session: Session) -> None:
        """Handle bytes for a connection that this process does not know."""

    # Sessions.

    def open(self, session: Session) -> None:
        """Begin a session that was accepted."""
        if len(self.sessions) >= self.max_clients:
            self.history.event(self.name, "client refused", address=session.peer.address)
            session.reply(ErrorReply(MAX_CLIENTS))
            session.end()
            return
        self.last_id += 1
        session.id = self.last_id
        session.authenticated = not self.password_required
        self.sessions[session.id] = session

    def drop(self, session: Session) -> None:
        """Forget a session: its connection has ended."""
        session.halted = session.closing = session.gone = True
        self._stop_waiting(session)
        self.sessions.pop(session.id, None)
        self.unsubscribe_all(session)

    def unsubscribe_all(self, session: Session) -> None:
        """End all subscriptions of a session."""
        for table, names in (
            (self.channels, session.channels),
            (self.patterns, session.patterns),
        ):
            for name in names:
                table[name].pop(session.id, None)
                if not table[name]:
                    del table[name]
        session.channels = {}
        session.patterns = {}

    def disconnect(self, session: Session) -> None:
        """Close a connection at once; input that was not executed is dropped."""
        if not session.gone:
            self.drop(session)
            session.out.clear()
            session.peer.close()

    def finish(self) -> None:
        """Execute what became possible, and send all output. Call it after each input or timer."""
        if self.journal.invalidated:
            self.invalidate()
        while self.unblocked and not self.stopped:
            session = self.unblocked.pop(0)
            if not session.closing:
                words, session.postponed = session.postponed, None
                if words is not None:
                    self.execute(session, words)
                if not session.halted:
                    session.process()
        if self.stopped:
            return
        pending = self.pending
        if pending:
            self.pending = []
            for session in pending:
                out = session.out
                if session.gone:
                    out.clear()
                    continue
                if session.held:
                    continue
                if out:
                    session.peer.send(out[0] if len(out) == 1 else b"".join(out))
                    out.clear()
                if session.closing:
                    self.disconnect(session)

    # Waiting.

    def later(self, when: float, callback: Callable[..., object], *args: Any) -> Any:
        """Call back at a time, but not while stopped, and not after the process has ended."""
        generation = self.generation

        def due() -> None:
            if generation != self.generation:
                return
            if self.stopped or self.busy_until:
                self.overdue.append(due)
                return
            callback(*args)
            self.finish()

        return self.timers.at(when, due)

    def wait(self, waiting: Waiting, seconds: float) -> None:
        """Block a session; 0 seconds means without a timeout."""
        session = waiting.session
        session.waiting = waiting
        session.halted = True
        table = waiting.database.waiting
        for key in waiting.keys:
            table.setdefault(key, []).append(waiting)
        if seconds > 0:
            waiting.timer = self.later(self.timers.time() + seconds, self._timed_out, waiting)

    def resume(self, waiting: Waiting, reply: Reply, *, applied: bool) -> None:
        """End a wait with a reply."""
        session = waiting.session
        self._stop_waiting(session)
        self.log(session, waiting.words, reply, applied=applied)
        session.reply(reply)
        session.halted = False
        self.unblocked.append(session)

    def unblock_session(self, session: Session, *, error: bool) -> bool:
        """End a blocking command as if it had timed out, or with an error (CLIENT UNBLOCK)."""
        waiting = session.waiting
        if waiting is None:
            return False
        if error:
            reply = ErrorReply("UNBLOCKED client unblocked via CLIENT UNBLOCK")
            self.resume(waiting, reply, applied=False)
        else:
            self._timed_out(waiting)
        return True

    def unblock_all(self, text: str) -> None:
        """End all blocking commands with an error, and their connections."""
        for session in list(self.sessions.values()):
            if session.waiting is not None:
                self.resume(session.waiting, ErrorReply(text), applied=False)
                session.end()

    def serve_ready(self) -> None:
        """Retry blocked commands whose keys have changed, in the order of waiting."""
        journal = self.journal
        while journal.ready:
            ready = journal.ready
            journal.ready = []
            for database, key in ready:
                for waiting in list(database.waiting.get(key, ())):
                    if waiting.session.waiting is waiting:
                        waiting.ready = key
                        self.retry(waiting, database.find(key))

    def retry(self, waiting: Waiting, value: Any = None) -> None:
        """Try a waiting command again; `value` is that of the key that has changed."""
        try:
            reply = waiting.attempt()
        except Refused as refused:
            # Valkey executes the command from the start, and may find a key of another type.
            suits = type(value) is _awaited_type(waiting.words[0])
            if waiting.strict or (self.valkey and suits):
                self.resume(waiting, refused.reply, applied=False)
            return
        if reply is not PENDING:
            self.resume(waiting, reply, applied=True)

    def _timed_out(self, waiting: Waiting) -> None:
        if waiting.session.waiting is waiting:
            null = waiting.null() if callable(waiting.null) else waiting.null
            self.resume(waiting, null, applied=False)

    def _stop_waiting(self, session: Session) -> None:
        waiting = session.waiting
        if waiting is None:
            return
        session.waiting = None
        if waiting.timer is not None:
            waiting.timer.cancel()
        table = waiting.database.waiting
        for key in waiting.keys:
            if key in table:
                if waiting in table[key]:
                    table[key].remove(waiting)
                if not table[key]:
                    del table[key]

    # Pub/sub and the log.

    def publish(
        self,
        channel: bytes,
        message: bytes,
        matches: Callable[[bytes], bool],
        own: tuple[Session, list[Reply]] | None,
    ) -> int:
        """Send a message to the subscribers; return their number.

        `own` is a subscriber whose messages are added to a list instead.
        """
        pushes = [
            (session, Push([b"message", channel, message]))
            for session in self.channels.get(channel, {}).values()
        ]
        for pattern, sessions in self.patterns.items():
            if matches(pattern):
                push = Push([b"pmessage", pattern, channel, message])
                pushes += [(session, push) for session in sessions.values()]
        for session, push in pushes:
            if own is not None and own[0] is session:
                own[1].append(push)
            else:
                session.reply(push)
        return len(pushes)

    def log(
        self,
        session: Session,
        words: Words,
        reply: Reply,
        *,
        applied: bool,
        transaction: int | None = None,
    ) -> None:
        """Record a command in the history."""
        raise NotImplementedError

    def _expired(self, database: int, key: bytes, due: int) -> None:
        self.history.event(
            self.name,
            "expired",
            key=key.decode(errors="replace"),
            database=database,
            due=due / 1000 - self.epoch,
        )
