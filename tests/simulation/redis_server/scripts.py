"""Scripts: a registry from the text of a script to a Python function, EVAL and SCRIPT.

A function gets a `Run` and returns a reply. `run.call(...)` is `redis.call`. Scripts whose text is
not registered are refused.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from redis.asyncio.lock import Lock

from resilient_io.redis.lock import _ACQUIRE_FENCED
from resilient_io.redis.lock_keys import RELEASE
from tests.simulation.history import ErrorReply

from .command import Flag, Words, command, integer, look_up
from .node import Session
from .replication import MASTERDOWN
from .resp import NULL_ARRAY, OK, Refused, Reply

if TYPE_CHECKING:
    from collections.abc import Callable

    from .command import Command

SET_IF_TOKEN = """
    if redis.call('get', KEYS[1]) ~= ARGV[1] then
        return 0
    end
    redis.call('set', KEYS[1], ARGV[2])
    return 1
"""
PUSH_AND_RETURN = """
    redis.call('rpush', KEYS[1], ARGV[1])
    return ARGV[1]
"""
INCR_THEN_ERROR = """
    redis.call('incr', KEYS[1])
    return redis.error_reply('LOADING ' .. ARGV[1])
"""
READ = "return redis.call('get', KEYS[1])"
READ_AND_ECHO = """
    redis.call('get', KEYS[1])
    return ARGV[1]
"""
SET_AND_RETURN = """
    redis.call('set', KEYS[1], ARGV[1])
    return ARGV[1]
"""
SLOW = """
    local finish = os.clock() + tonumber(ARGV[1])
    while os.clock() < finish do end
    return ARGV[2]
"""
SLOW_AFTER_WRITE = """
    redis.call('rpush', KEYS[1], ARGV[2])
    local finish = os.clock() + tonumber(ARGV[1])
    while os.clock() < finish do end
    return ARGV[2]
"""
KILLED = "ERR Script killed by user with SCRIPT KILL."
UNKILLABLE = (
    "UNKILLABLE Sorry the script already executed write commands against the dataset. You can "
    "either wait the script termination or kill the server in a hard way using the SHUTDOWN "
    "NOSAVE command."
)


class Run:
    """One run of a script.

    Attributes:
        keys, arguments: KEYS and ARGV, counted from 0.
        wrote: Whether a write command was executed.
        seconds: How long the script keeps the server busy, see `spend`.
    """

    __slots__ = (
        *("_calls", "_read_only", "_session", "_sha", "_text", "arguments", "keys", "seconds"),
        "wrote",
    )

    def __init__(
        self, session: Session, text: bytes, keys: Words, arguments: Words, *, read_only: bool
    ) -> None:
        caller = Session(session.node, None, session.id)
        caller.database = session.database
        caller.executing = True
        caller.user = session.user
        caller.authenticated = True
        self._session = caller
        self._text = text
        self._sha = sha1(text)
        self._calls = 0
        self._read_only = read_only
        self.keys = keys
        self.arguments = arguments
        self.wrote = False
        self.seconds = 0.0

    def call(self, *words: bytes) -> Reply:
        """Run a command and return its reply; an error ends the script."""
        self._calls += 1
        node = self._session.node
        try:
            entry, full = look_up(list(words))
        except Refused:
            raise self._error("ERR Unknown Redis command called from script") from None
        if not entry.least <= len(full) <= entry.most:
            product = "" if node.valkey else "Redis "
            raise self._error(f"ERR Wrong number of args calling {product}command from script")
        text = self._refusal(entry)
        if text is not None:
            raise self._error(text)
        self._session.command, self._session.words = entry, full
        changes = node.journal.changes
        try:
            reply = entry.run(self._session, full)
        except Refused as refused:
            raise self._error(refused.reply.text) from None
        finally:
            if entry.write and node.journal.changes != changes:
                self.wrote = True
        return None if reply is NULL_ARRAY else reply

    def spend(self, seconds: float) -> None:
        """Keep the server busy for a time, after everything else that the script does."""
        self.seconds += seconds

    def _refusal(self, entry: Command) -> str | None:
        node = self._session.node
        if entry.no_script:
            product = "" if node.valkey else "Redis "
            return f"ERR This {product}command is not allowed from script"
        user = self._session.user
        if node.denies(user, entry):
            if node.release >= (7, 2):
                name = entry.name.lower()
                return (
                    f"ERR ACL failure in script: User {user} has no permissions to run the "
                    f"'{name}' command"
                )
            return "ERR The user executing the script can't run this command or subcommand"
        if self._read_only and entry.write:
            return "ERR Write commands are not allowed from read-only scripts."
        if not entry.write or not node.checks:
            return None
        return node.write_refusal(denyoom=entry.denyoom and not self.wrote)

    def _error(self, text: str) -> Refused:
        return Refused(text + self.place(self._line()))

    def place(self, line: int) -> str:
        """Return what is added to an error in a line of the script."""
        sha = "" if self._session.node.valkey else f"{self._sha}, "
        return f" script: {sha}on @user_script:{line}."

    def place_of_loop(self) -> str:
        """Return what is added to the error of a script that was killed in its loop."""
        return self.place(self._text.partition(b"while")[0].count(b"\n") + 1)

    def _line(self) -> int:
        """Return the line of the current `redis.call`, for scripts without loops."""
        pieces = self._text.split(b"redis.call")
        return b"".join(pieces[: min(self._calls, len(pieces) - 1)]).count(b"\n") + 1


SCRIPTS: dict[str, Callable[[Run], Reply]] = {}


def sha1(text: bytes) -> str:
    """Return the name of a script."""
    return hashlib.sha1(text, usedforsecurity=False).hexdigest()


def _normal(text: str) -> str:
    return " ".join(text.split())


def script(text: str) -> Callable[[Callable[[Run], Reply]], Callable[[Run], Reply]]:
    """Return a decorator that registers the Python function of a script."""

    def add(function: Callable[[Run], Reply]) -> Callable[[Run], Reply]:
        SCRIPTS[_normal(text)] = function
        return function

    return add


def _holds(run: Run) -> bool:
    token = run.call(b"GET", run.keys[0])
    return token is not None and token == run.arguments[0]


@script(RELEASE)
@script(Lock.LUA_RELEASE_SCRIPT)
def _release(run: Run) -> Reply:
    if not _holds(run):
        return 0
    run.call(b"DEL", run.keys[0])
    return 1


@script(Lock.LUA_EXTEND_SCRIPT)
def _extend(run: Run) -> Reply:
    if not _holds(run):
        return 0
    left = run.call(b"PTTL", run.keys[0])
    if left < 0:
        return 0
    new = int(run.arguments[1])
    if run.arguments[2] == b"0":
        new += left
    run.call(b"PEXPIRE", run.keys[0], b"%d" % new)
    return 1


@script(Lock.LUA_REACQUIRE_SCRIPT)
def _reacquire(run: Run) -> Reply:
    if not _holds(run):
        return 0
    run.call(b"PEXPIRE", run.keys[0], run.arguments[1])
    return 1


@script(_ACQUIRE_FENCED)
def _acquire_fenced(run: Run) -> Reply:
    options = (b"NX", b"PX", run.arguments[1]) if run.arguments[1] else (b"NX",)
    if run.call(b"SET", run.keys[0], run.arguments[0], *options) is None:
        return 0
    return run.call(b"INCR", run.keys[1])


@script(SET_IF_TOKEN)
def _set_if_token(run: Run) -> Reply:
    if not _holds(run):
        return 0
    run.call(b"SET", run.keys[0], run.arguments[1])
    return 1


@script(PUSH_AND_RETURN)
def _push_and_return(run: Run) -> Reply:
    run.call(b"RPUSH", run.keys[0], run.arguments[0])
    return run.arguments[0]


@script(INCR_THEN_ERROR)
def _incr_then_error(run: Run) -> Reply:
    run.call(b"INCR", run.keys[0])
    return ErrorReply("LOADING " + run.arguments[0].decode())


@script(READ)
def _read(run: Run) -> Reply:
    return run.call(b"GET", run.keys[0])


@script(READ_AND_ECHO)
def _read_and_echo(run: Run) -> Reply:
    run.call(b"GET", run.keys[0])
    return run.arguments[0]


@script(SET_AND_RETURN)
def _set_and_return(run: Run) -> Reply:
    run.call(b"SET", run.keys[0], run.arguments[0])
    return run.arguments[0]


@script(SLOW)
def _slow(run: Run) -> Reply:
    run.spend(float(run.arguments[0]))
    return run.arguments[1]


@script(SLOW_AFTER_WRITE)
def _slow_after_write(run: Run) -> Reply:
    run.call(b"RPUSH", run.keys[0], run.arguments[1])
    run.spend(float(run.arguments[0]))
    return run.arguments[1]


@script("return 1")
def _one(run: Run) -> Reply:
    return 1


def _evaluate(session: Session, text: bytes, words: Words, *, read_only: bool) -> Reply:
    node = session.node
    count = integer(words[2])
    if count > len(words) - 3:
        raise Refused("ERR Number of keys can't be greater than number of args")
    if count < 0:
        raise Refused("ERR Number of keys can't be negative")
    function = SCRIPTS.get(_normal(text.decode(errors="replace")))
    if function is None:
        raise Refused("ERR this script is not simulated: register it in scripts.py")
    if node.is_stale():
        raise Refused(MASTERDOWN)
    node.scripts[sha1(text)] = text
    run = Run(session, text, words[3 : 3 + count], words[3 + count :], read_only=read_only)
    reply = function(run)
    if run.seconds:
        killed = ErrorReply(KILLED + run.place_of_loop())
        return node.run_script(session, reply, run.seconds, killed=killed, wrote=run.wrote)
    return reply


def _by_name(session: Session, words: Words) -> bytes:
    text = session.node.scripts.get(words[1].decode(errors="replace").lower())
    if text is None:
        advice = "" if session.node.valkey else " Please use EVAL."
        raise Refused(f"NOSCRIPT No matching script.{advice}")
    return text


EVAL = Flag.NOSCRIPT | Flag.STALE | Flag.MAY_REPLICATE


@command("EVAL", -3, EVAL)
def eval_(session: Session, words: Words) -> Reply:
    return _evaluate(session, words[1], words, read_only=False)


@command("EVALSHA", -3, EVAL)
def evalsha(session: Session, words: Words) -> Reply:
    return _evaluate(session, _by_name(session, words), words, read_only=False)


@command("EVAL_RO", -3, Flag.NOSCRIPT | Flag.STALE | Flag.READONLY)
def eval_ro(session: Session, words: Words) -> Reply:
    return _evaluate(session, words[1], words, read_only=True)


@command("EVALSHA_RO", -3, Flag.NOSCRIPT | Flag.STALE | Flag.READONLY)
def evalsha_ro(session: Session, words: Words) -> Reply:
    return _evaluate(session, _by_name(session, words), words, read_only=True)


@command("SCRIPT|LOAD", 3, Flag.NOSCRIPT | Flag.STALE)
def script_load(session: Session, words: Words) -> Reply:
    if _normal(words[2].decode(errors="replace")) not in SCRIPTS:
        raise Refused("ERR this script is not simulated: register it in scripts.py")
    name = sha1(words[2])
    session.node.scripts[name] = words[2]
    return name.encode()


@command("SCRIPT|EXISTS", -3, Flag.NOSCRIPT)
def script_exists(session: Session, words: Words) -> Reply:
    known = session.node.scripts
    return [int(name.decode(errors="replace").lower() in known) for name in words[2:]]


@command("SCRIPT|FLUSH", -2, Flag.NOSCRIPT)
def script_flush(session: Session, words: Words) -> Reply:
    if len(words) > 3 or (len(words) == 3 and words[2].upper() not in (b"SYNC", b"ASYNC")):
        raise Refused("ERR SCRIPT FLUSH only support SYNC|ASYNC option")
    session.node.scripts.clear()
    return OK


@command("SCRIPT|KILL", 2, Flag.NOSCRIPT | Flag.ALLOW_BUSY)
def script_kill(session: Session, words: Words) -> Reply:
    node = session.node
    if not node.busy_until:
        raise Refused("NOTBUSY No scripts in execution right now.")
    if not node.kill_script():
        raise Refused(UNKILLABLE)
    return OK
