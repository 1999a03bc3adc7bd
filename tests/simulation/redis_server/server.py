"""The simulated Redis: execution of commands, refusals, and faults."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tests.simulation.history import ErrorReply

from . import (  # noqa: F401  they fill the table
    commands_collections,
    commands_connection,
    commands_keys,
    commands_lists,
    commands_server,
    commands_streams,
    commands_strings,
    scripts,
    tracking,
)
from .command import COMMANDS, look_up, wrong_arity
from .commands_transactions import discard_transaction, watch_failed
from .database import ScoreValue, SetValue, Stream
from .node import Session
from .replication import MASTERDOWN, ReplicatedNode
from .resp import PENDING, QUEUED, Refused, Reply, plain

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from random import Random

    from tests.simulation.history import History

    from .command import Command, Words
    from .node import Peer, Timers

NOAUTH = "NOAUTH Authentication required."
OOM = "OOM command not allowed when used memory > 'maxmemory'."
LOADING = "LOADING {product} is loading the dataset in memory"
BUSY = "BUSY {product} is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE."
READONLY = "READONLY You can't write against a read only replica."
NOREPLICAS = "NOREPLICAS Not enough good replicas to write."
MISCONF = (
    "MISCONF {product} is configured to save RDB snapshots, but it's currently unable to persist "
    "to disk. Commands that may modify the data set are disabled, because this instance is "
    "configured to report errors during writes if RDB snapshotting fails "
    "(stop-writes-on-bgsave-error option). Please check the {product} logs for details about the "
    "RDB error."
)
SUBSCRIBED = (
    "ERR Can't execute '{name}': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / RESET "
    "are allowed in this context"
)
WRITES_REFUSED = ("OOM", "MISCONF", "NOREPLICAS", "READONLY")
IMMEDIATE = frozenset({"EXEC", "DISCARD", "MULTI", "WATCH", "QUIT", "RESET"})
NEVER_FULL = frozenset({"EXEC", "DISCARD", "QUIT", "RESET"})
WHILE_SUBSCRIBED = frozenset(
    {"PING", "SUBSCRIBE", "UNSUBSCRIBE", "PSUBSCRIBE", "PUNSUBSCRIBE", "QUIT", "RESET"}
)


Hook = Callable[[Session, "Command", "Words"], ErrorReply | None]


class RedisServer(ReplicatedNode):
    """A simulated Redis server.

    Attributes:
        before: Called with the session, the command and the words before each execution; an
            `ErrorReply` refuses the command (a redirection, for example). None for none.
        checks: Whether anything may refuse commands at present.
    """

    def __init__(
        self,
        name: str,
        timers: Timers,
        history: History,
        random: Random,
        *,
        address: str = "10.0.0.1:6379",
        version: str = "redis 7.0.15",
        requirepass: str | None = None,
        users: Mapping[str, str] | None = None,
        maxclients: int = 10_000,
        databases: int = 16,
        busy_threshold: float = 0.5,
        lag: float = 0.001,
        reconnect: float = 1.0,
        serve_stale: bool = True,
        epoch: float = 1_700_000_000.0,
    ) -> None:
        super().__init__(name, timers, history, random, databases)
        product, _, number = version.rpartition(" ")
        self.valkey = product == "valkey"
        self.product = "Valkey" if self.valkey else "Redis"
        self.version = number
        self.release = tuple(int(part) for part in number.split("."))
        self.address = address
        self.epoch = epoch
        self.max_clients = self._usual_clients = maxclients
        self.busy_threshold = busy_threshold
        self.lag = lag
        self.reconnect = reconnect
        self.serve_stale = serve_stale
        self.users: dict[str, str | None] = {"default": requirepass, **(users or {})}
        self.password_required = requirepass is not None
        self._before: Hook | None = None
        self.refusing: dict[str, float] = {}
        self.denied: dict[str, tuple[str, ...]] = {}
        self.paused: str | None = None
        self.checks = False
        self._paused_until = 0.0
        self._postponed: list[Session] = []
        self._stopped_until = 0.0
        self._script: tuple[Session, Words, Reply, bool] | None = None
        self._killed = ErrorReply("")
        self._begin()

    @property
    def before(self) -> Hook | None:
        """Return what is called before each execution."""
        return self._before

    @before.setter
    def before(self, hook: Hook | None) -> None:
        self._before = hook
        self.update_checks()

    def _begin(self) -> None:
        self.started = self.timers.time()
        self.run_id = f"{self.random.getrandbits(160):040x}"

    # What the network calls.

    def accept(self, peer: Peer) -> Session | None:
        """Return the session of a new connection, or None if nothing listens."""
        if not self.running:
            return None
        session = Session(self, peer, 0)
        if self.stopped:
            self.backlog.append((session, b"accept"))
            session.opening = True
        else:
            self.open(session)
            self.finish()
        return session

    def answer_unknown(self, session: Session) -> None:
        """Reset a connection of an earlier process, as its host does."""
        if self.running and not session.gone:
            session.gone = True
            session.peer.reset()

    # Execution.

    def execute(self, session: Session, words: list[bytes]) -> None:
        """Execute a command of a client, or refuse it."""
        command = COMMANDS.get(words[0])
        if command is None or command.subcommands:
            try:
                command, full = look_up(words)
            except Refused as refused:
                full = (words[0].upper(), *words[1:])
                known = session.authenticated or not self.valkey
                self._reject(session, None, full, refused.reply.text if known else NOAUTH)
                return
        else:
            full = tuple(words)
        if not command.least <= len(full) <= command.most:
            known = session.authenticated or command.no_auth or not self.valkey
            text = wrong_arity(command.name) if known else NOAUTH
            self._reject(session, command, full, text)
            return
        session.command = command
        session.words = full
        if (
            self.checks
            or not session.authenticated
            or (session.protocol == 2 and (session.channels or session.patterns))
        ):
            text = self._refusal(session, command, full)
            if text is not None:
                self._reject(session, command, full, text)
                return
            if self.paused is not None and self._postpones(session, command):
                session.postponed = words
                session.halted = True
                self._postponed.append(session)
                return
        if session.queued is not None and command.name not in IMMEDIATE:
            # Redis keeps nothing of a transaction that is bound to fail.
            if not session.aborted and not (session.watched and watch_failed(session)):
                session.queued.append((command, full))
            session.reply(QUEUED)
            return
        reply = self.call(session, command, full)
        if reply is not PENDING:
            session.reply(reply)
        journal = self.journal
        if session.caching:
            tracking.remember(session, command.name, full)
        if journal.invalidated:
            self.invalidate()
        if journal.ready and not self.busy_until:
            self.serve_ready()
        if journal.touched:
            self.propagate()
            session.written_offset = self.offset

    def call(
        self, session: Session, command: Command, words: Words, transaction: int | None = None
    ) -> Reply:
        """Run a command that was accepted, and write the log."""
        before = self.journal.changes
        try:
            reply = command.run(session, words)
        except Refused as refused:
            reply = refused.reply
        if reply is not PENDING and not command.own_log:
            applied = type(reply) is not ErrorReply or self.journal.changes != before
            self.history.executed(
                self.name,
                session.id,
                session.name,
                words,
                applied=applied,
                reply=plain(reply),
                transaction=transaction,
            )
        return reply

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
        self.history.executed(
            self.name,
            session.id,
            session.name,
            words,
            applied=applied,
            reply=plain(reply),
            transaction=transaction,
        )

    def invalidate(self) -> None:
        """Report changed keys to the clients that track them."""
        tracking.invalidate(self)

    def _reject(self, session: Session, command: Command | None, words: Words, text: str) -> None:
        if command is not None and command.name == "EXEC":
            discard_transaction(session)
            reason = text.removeprefix("ERR ")
            text = f"EXECABORT Transaction discarded because of: {reason}"
        elif session.queued is not None:
            session.abort()
        error = ErrorReply(text)
        self.log(session, words, error, applied=False)
        session.reply(error)

    def _refusal(  # noqa: PLR0911
        self, session: Session, command: Command, words: Words
    ) -> str | None:
        """Return why a command is refused, in the order in which Redis checks."""
        name = command.name
        if not session.authenticated and not command.no_auth:
            return NOAUTH
        if self.denied and self.denies(session.user, command):
            user = "this user" if self.release < (7, 2) else f"User {session.user}"
            return f"NOPERM {user} has no permissions to run the '{name.lower()}' command"
        if self._before is not None:
            error = self._before(session, command, words)
            if error is not None:
                return error.text
        write, denyoom = command.write, command.denyoom
        if session.queued is not None:
            if name == "EXEC":
                write = any(entry.write for entry, _ in session.queued)
                denyoom = any(entry.denyoom for entry, _ in session.queued)
            elif name not in NEVER_FULL and not self.valkey:
                denyoom = True
        if denyoom and "OOM" in self.refusing:
            return OOM
        if write:
            text = self.write_refusal(denyoom=False)
            if text is not None:
                return text
        elif name == "PING" and "MISCONF" in self.refusing:
            return MISCONF.format(product=self.product)
        if (
            session.protocol == 2
            and (session.channels or session.patterns)
            and name not in WHILE_SUBSCRIBED
        ):
            return SUBSCRIBED.format(name=name.lower())
        stale, loading = command.stale, command.loading
        if name == "EXEC" and session.queued:
            stale = all(entry.stale for entry, _ in session.queued)
            loading = all(entry.loading for entry, _ in session.queued)
        if not stale and self.is_stale():
            return MASTERDOWN
        if self.loading_until and not loading:
            return LOADING.format(product=self.product)
        if self.busy_until and not (command.valkey_busy if self.valkey else command.allow_busy):
            return BUSY.format(product=self.product)
        return None

    def is_stale(self) -> bool:
        """Return whether this is a replica without its master that must not answer."""
        if self.master is None or self.serve_stale:
            return False
        return self.link is None or not self.link.synchronized

    def write_refusal(self, *, denyoom: bool) -> str | None:
        """Return why writes are refused at present, or None."""
        refusing = self.refusing
        if refusing:
            if denyoom and "OOM" in refusing:
                return OOM
            if "MISCONF" in refusing:
                return MISCONF.format(product=self.product)
            if "NOREPLICAS" in refusing:
                return NOREPLICAS
        if self.master is not None or "READONLY" in refusing:
            return READONLY
        return None

    def denies(self, user: str, command: Command) -> bool:
        """Return whether a user may not run a command."""
        names = self.denied.get(user, ())
        return command.name in names or command.name.partition("|")[0] in names

    def accepts(self, user: str, password: str) -> bool:
        """Return whether a password is right."""
        if user not in self.users:
            return False
        right = self.users[user]
        return right is None or right == password

    def _postpones(self, session: Session, command: Command) -> bool:
        if self.paused == "ALL":
            return True
        if command.name == "EXEC" and session.queued is not None:
            return any(entry.may_replicate for entry, _ in session.queued)
        return command.may_replicate

    def update_checks(self) -> None:
        """Note whether anything may refuse or postpone commands."""
        self.checks = bool(
            self.refusing
            or self.loading_until
            or self.busy_until
            or self.denied
            or self.paused is not None
            or self.master is not None
            or self._before is not None
        )

    # Stopping: frozen, or in a script.

    def freeze(self, seconds: float) -> None:
        """Stop reading for a time: input is kept, and executed in its order of arrival."""
        self.history.event(self.name, "frozen", seconds=seconds)
        self._stop(seconds)

    def _stop(self, seconds: float) -> None:
        until = self.timers.time() + seconds
        self.stopped = True
        if until > self._stopped_until:
            self._stopped_until = until
            self.timers.at(until, self._continue, self.generation, until)

    def _continue(self, generation: int, until: float) -> None:
        if generation != self.generation or until != self._stopped_until or not self.stopped:
            return
        self.stopped = False
        self._stopped_until = 0.0
        if not self.busy_until:
            self.history.event(self.name, "continues")
        backlog = self.backlog
        self.backlog = []
        while backlog and not self.stopped:
            session, data = backlog.pop(0)
            if data is None:
                self.drop(session)
            elif session.opening:
                session.opening = False
                self.open(session)
            else:
                session.feed(data)
        self.backlog += backlog
        self._run_overdue()
        self.finish()

    def _run_overdue(self) -> None:
        overdue = self.overdue
        self.overdue = []
        for due in overdue:
            due()

    def busy(self, seconds: float) -> None:
        """Run a script for a time: nothing is answered at first, then BUSY."""
        self.history.event(self.name, "script", seconds=seconds)
        end = self.timers.time() + seconds
        self._stop(min(seconds, self.busy_threshold))
        if end > self.busy_until:
            self.busy_until = end
            self.timers.at(end, self._script_ended, self.generation, end)
        self.update_checks()

    def run_script(
        self, session: Session, reply: Reply, seconds: float, *, killed: ErrorReply, wrote: bool
    ) -> Reply:
        """Keep the server busy; the caller gets the reply at the end, or `killed`."""
        self.busy(seconds)
        session.halted = True
        if session.executing:
            session.held = True
            self._script = (session, (), PENDING, True)
            return reply
        words = session.words
        if wrote:
            self.log(session, words, reply, applied=True)
        self._script = (session, words, reply, wrote)
        self._killed = killed
        return PENDING

    def kill_script(self) -> bool:
        """End the running script (SCRIPT KILL); return whether it had not written."""
        if self._script is not None:
            session, words, _, wrote = self._script
            if wrote:
                return False
            self._script = (session, words, self._killed, False)
        self._end_script()
        return True

    def _script_ended(self, generation: int, end: float) -> None:
        if generation != self.generation or end != self.busy_until:
            return
        if self.stopped:
            self.overdue.append(lambda: self._script_ended(generation, end))
            return
        self._end_script()
        self.finish()

    def _end_script(self) -> None:
        self.busy_until = 0.0
        self.update_checks()
        self.history.event(self.name, "script ended")
        if self._script is not None:
            session, words, reply, wrote = self._script
            self._script = None
            if reply is PENDING:
                session.held = False
                if session.out:
                    self.pending.append(session)
            else:
                if not wrote:
                    self.log(session, words, reply, applied=type(reply) is not ErrorReply)
                if not session.closing:
                    session.reply(reply)
            if not session.closing:
                session.halted = False
                self.unblocked.append(session)
        self.serve_ready()
        self._run_overdue()

    # The end and the start of the process.

    def kill(self, *, silently: bool = False) -> None:
        """End the process: connections are reset, unless the whole host has disappeared."""
        if not self.running:
            return
        self.history.event(self.name, "killed", silently=silently)
        self.end_replication()
        self.running = False
        self.generation += 1
        self._stopped_until = 0.0
        self.stopped = False
        opening = [session for session, _ in self.backlog if session.opening]
        self.backlog = []
        self.pending = []
        self.unblocked = []
        self.overdue = []
        self._postponed = []
        self._script = None
        for session in [*self.sessions.values(), *opening]:
            waiting = session.waiting
            if waiting is not None and waiting.timer is not None:
                waiting.timer.cancel()
            session.waiting = None
            session.id = 0
            session.opening = False
            session.halted = session.closing = True
            if not silently and not session.gone:
                session.gone = True
                session.peer.reset()
        self.sessions = {}
        self.channels = {}
        self.patterns = {}
        self.scripts = {}
        self.last_id = 0
        self.journal.ready = []
        self.journal.tracked = {}
        self.journal.invalidated = []
        for database in self.databases:
            database.waiting.clear()
        self._end_faults()

    def start(self, *, keep_data: bool = True, loading: float = 0.0) -> None:
        """Start a new process, with the data of the last one or without any."""
        if self.running:
            return
        self.running = True
        self._begin()
        if not keep_data:
            keys = [
                key.decode(errors="replace")
                for database in self.databases
                for key in database.values
            ]
            for database in self.databases:
                database.clear()
            self.history.event(self.name, "data lost", keys=keys)
        self.offset = 0
        self.history.event(self.name, "started", keep_data=keep_data)
        if loading:
            self.load(loading)
        if self.master is not None:
            self.update_checks()
            self.try_again(self.master)

    def _end_faults(self) -> None:
        self.refusing = {}
        self.loading_until = 0.0
        self.busy_until = 0.0
        self.paused = None
        self._paused_until = 0.0
        self.max_clients = self._usual_clients
        self.denied = {}
        self.update_checks()

    def heal(self) -> None:
        """End all faults, and start the process if it does not run."""
        if not self.running:
            self.start()
        if self.stopped:
            self._continue(self.generation, self._stopped_until)
        if self.busy_until:
            self._end_script()
        self.unpause()
        self._end_faults()
        self.finish()

    # Refusals.

    def refuse_writes(self, kind: str, seconds: float) -> None:
        """Refuse writes for a time: "OOM", "MISCONF", "NOREPLICAS" or "READONLY"."""
        if kind not in WRITES_REFUSED:
            raise ValueError(f"kind must be one of {WRITES_REFUSED}, not {kind!r}")
        self.history.event(self.name, "refuses writes", refusal=kind, seconds=seconds)
        until = self.refusing[kind] = self.timers.time() + seconds
        self.update_checks()

        def end() -> None:
            if self.refusing.get(kind) == until:
                del self.refusing[kind]
                self.update_checks()
                self.history.event(self.name, "accepts writes", refusal=kind)

        self.later(until, end)

    def refuse_at_exec(self, kind: str, seconds: float) -> None:
        """Begin to refuse writes at the next EXEC, after its commands were queued."""
        end = self.timers.time() + seconds

        def begin(session: Session, command: Command, words: Words) -> ErrorReply | None:
            now = self.timers.time()
            if now >= end or command.name == "EXEC":
                self.before = None
            if now < end and command.name == "EXEC":
                self.refuse_writes(kind, end - now)
            return None

        self.before = begin

    def change_password(self, password: str, seconds: float) -> None:
        """Accept only another password from new connections for a time."""
        right = self.users["default"]
        self.history.event(self.name, "password changed", seconds=seconds)
        self.users["default"] = password

        def end() -> None:
            if self.users["default"] == password:
                self.users["default"] = right

        self.timers.at(self.timers.time() + seconds, end)

    def load(self, seconds: float) -> None:
        """Load data for a time: nearly everything is refused."""
        self.history.event(self.name, "loading", seconds=seconds)
        until = self.loading_until = max(self.loading_until, self.timers.time() + seconds)
        self.update_checks()

        def end() -> None:
            if self.loading_until == until:
                self.loading_until = 0.0
                self.update_checks()
                self.history.event(self.name, "loaded")

        self.later(until, end)

    def pause(self, seconds: float, mode: str = "ALL") -> None:
        """Postpone commands for a time, as CLIENT PAUSE does: "ALL" or "WRITE"."""
        self.history.event(self.name, "paused", seconds=seconds, mode=mode)
        until = max(self._paused_until, self.timers.time() + seconds)
        self._paused_until = until
        self.paused = "ALL" if "ALL" in (mode, self.paused) else mode
        self.update_checks()

        def end() -> None:
            if self._paused_until == until:
                self.unpause()

        self.later(until, end)

    def unpause(self) -> None:
        """Execute the commands that were postponed."""
        if self.paused is None:
            return
        self.history.event(self.name, "unpaused")
        self.paused = None
        self._paused_until = 0.0
        self.update_checks()
        postponed, self._postponed = self._postponed, []
        for session in postponed:
            if not session.closing:
                session.halted = False
                self.unblocked.append(session)

    def limit_clients(self, count: int, seconds: float | None = None) -> None:
        """Refuse connections above this number, for a time or until the process ends."""
        self.history.event(self.name, "limits clients", count=count)
        self.max_clients = count
        if seconds is not None:
            self.later(self.timers.time() + seconds, self._unlimit, count)

    def _unlimit(self, count: int) -> None:
        if self.max_clients == count:
            self.max_clients = self._usual_clients

    def deny(
        self, commands: Iterable[str], user: str = "default", seconds: float | None = None
    ) -> None:
        """Deny a user these commands, such as "CLIENT|KILL"; none allows all again."""
        names = tuple(name.upper().replace(" ", "|") for name in commands)
        self.history.event(self.name, "denies", commands=names, user=user)
        self.denied.pop(user, None)
        if names:
            self.denied[user] = names
        self.update_checks()
        if seconds is not None:
            self.later(self.timers.time() + seconds, self._allow, user, names)

    def _allow(self, user: str, names: tuple[str, ...]) -> None:
        if self.denied.get(user) == names:
            del self.denied[user]
            self.update_checks()

    def kill_client(self, client_id: int) -> bool:
        """Close a connection, as CLIENT KILL does; return whether it existed."""
        session = self.sessions.get(client_id)
        if session is None:
            return False
        self.history.event(self.name, "client killed", client=client_id)
        self.disconnect(session)
        return True

    def forget_scripts(self) -> None:
        """Remove all scripts, as SCRIPT FLUSH does."""
        self.history.event(self.name, "scripts removed")
        self.scripts.clear()

    def unblock(self, client_id: int, *, error: bool) -> bool:
        """End a blocking command, as CLIENT UNBLOCK does; return whether there was one."""
        session = self.sessions.get(client_id)
        found = session is not None and self.unblock_session(session, error=error)
        self.finish()
        return found

    # The data.

    def data(self) -> dict[str, Any]:
        """Return all data: key to value. Keys of other databases than 0 begin with "N/"."""
        found: dict[str, Any] = {}
        for database in self.databases:
            database.sweep()
            prefix = f"{database.index}/" if database.index else ""
            for key, value in database.values.items():
                found[prefix + _text(key)] = _readable(value)
        return found


def _text(data: bytes) -> str:
    return data.decode(errors="replace")


def _readable(value: Any) -> Any:
    """Return a value as text; sets are sorted lists, because the order of a set is random."""
    if isinstance(value, bytes):
        return _text(value)
    if isinstance(value, SetValue):
        return sorted([_text(member) for member in value])
    if isinstance(value, ScoreValue):
        return {_text(member): score for member, score in value.ordered()}
    if isinstance(value, dict):
        return {_text(name): _text(field) for name, field in value.items()}
    if isinstance(value, Stream):
        return [
            (f"{identifier[0]}-{identifier[1]}", [_text(part) for part in fields])
            for identifier, fields in value.entries.items()
        ]
    return [_text(element) for element in value]
