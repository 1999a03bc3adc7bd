"""Sends the same commands to a real and to the simulated Redis, and compares the raw replies."""

from __future__ import annotations

import contextlib
import heapq
import os
import re
import signal
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Protocol

from tests.simulation.history import History
from tests.simulation.redis_server.server import RedisServer
from tests.simulation.reply_forms import Normalizer, encode, parse, show

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_NEWER = "  # not in Redis 7.0"
"""Marks a line that Redis 7.0 answers differently; in a title, a whole script."""

_CONDITIONS = ("oom", "readonly", "noreplicas", "misconf")

_LONGEST_LINE = 500
_CONTEXT = 5  # lines that a report shows before one that differs
_DATABASES = 2
"""The databases whose values are compared."""


# Scripts


@dataclass(frozen=True, slots=True)
class Script:
    """Commands and directives; `Runner` describes their form.

    Attributes:
        name: Its title.
        lines: The lines without comments.
        newer: Whether Redis 7.0 answers differently.
    """

    name: str
    lines: tuple[str, ...]
    newer: bool


def read_scripts() -> list[Script]:
    """Return the scripts in the folder `replies`: each begins with a line "== TITLE"."""
    scripts = []
    for path in sorted(Path(__file__).with_name("replies").glob("*.txt")):
        for section in f"\n{path.read_text()}".split("\n== ")[1:]:
            title, *lines = section.splitlines()
            name, newer, _ = title.partition(_NEWER)
            kept = tuple(line for line in lines if line.strip() and not line.startswith("#"))
            scripts.append(Script(name, kept, bool(newer)))
    return scripts


_WORD = re.compile(r'"((?:[^"\\]|\\.)*)"|(\S+)')


def split_words(text: str) -> list[bytes]:
    """Return the words of a command; those in double quotes may contain blanks and escapes."""
    return [_unescape(quoted if plain == "" else plain) for quoted, plain in _WORD.findall(text)]


def _unescape(text: str) -> bytes:
    return text.encode().decode("unicode_escape").encode("latin-1")


class Side(Protocol):
    """One of the two servers that are compared."""

    name: str

    def open(self, label: str) -> None:
        """Open a connection."""

    def send(self, label: str, data: bytes) -> None:
        """Send bytes over a connection, and wait until the server has processed them."""

    def settle(self) -> None:
        """Wait until the server has nothing left to do."""

    def received(self) -> dict[str, tuple[bytes, bool]]:
        """Return what arrived since the last call, and whether the server closed."""

    def close(self, label: str) -> None:
        """Close a connection."""

    def sleep(self, seconds: float) -> None:
        """Wait, in real or in virtual time."""

    def control(self, words: list[str]) -> None:
        """Change the state of the server in a way that the two servers have no command for."""


class Simulated:
    """The simulated server, a new one for each script."""

    name = "simulated"

    def __init__(self, **settings: Any) -> None:
        self.timers = ManualTimers()
        self.history = History(self.timers.time)
        self.server = RedisServer(
            "redis",
            self.timers,
            self.history,
            Random(1),
            busy_threshold=0.02,
            epoch=time.time() - 1000,
            **settings,
        )
        self._peers: dict[str, _Peer] = {}
        self._sessions: dict[str, Any] = {}
        self._count = 0
        self._denied: list[str] = []

    def open(self, label: str) -> None:
        self._count += 1
        peer = self._peers[label] = _Peer(f"127.0.0.1:{40000 + self._count}")
        session = self.server.accept(peer)
        if session is None:
            peer.closed = True
        else:
            self._sessions[label] = session

    def send(self, label: str, data: bytes) -> None:
        if not self._peers[label].closed:
            self._sessions[label].receive(data)
        self.settle()

    def settle(self) -> None:
        self.timers.advance(0.001)

    def received(self) -> dict[str, tuple[bytes, bool]]:
        return {label: peer.take() for label, peer in self._peers.items()}

    def close(self, label: str) -> None:
        if not self._peers.pop(label).closed:
            self._sessions.pop(label).lost()
        self.settle()

    def sleep(self, seconds: float) -> None:
        self.timers.advance(seconds)

    def control(self, words: list[str]) -> None:
        match words:
            case ["replica", "on"]:
                self.server.replicate_address("127.0.0.1:1")
                self.server.finish()
            case ["replica", "off"]:
                self.server.replicate_address(None)
            case [kind, "on"] if kind in _CONDITIONS:
                self.server.refuse_writes(kind.upper(), 3600.0)
            case [kind, "off"] if kind in _CONDITIONS:
                self.server.refuse_writes(kind.upper(), 0.0)
            case ["deny", *commands]:
                self._denied += commands
                self.server.deny(self._denied)
            case ["maxclients", count]:
                self.server.limit_clients(int(count))
            case ["password", *password]:
                self.server.users["default"] = password[0] if password else None
                self.server.password_required = bool(password)
            case ["idle", seconds]:
                self.sleep(float(seconds))
            case ["loading", seconds]:
                self.server.load(float(seconds))
            case ["stale", answer]:
                self.server.serve_stale = answer == "yes"
            case ["paused"]:
                pass
            case _:
                raise ValueError(f"unknown directive: {words}")
        self.settle()


class ManualTimers:
    """A clock that a test moves, with timers: what the simulated server needs of the loop."""

    def __init__(self) -> None:
        self._now = 1000.0
        self._count = 0
        self._events: list[tuple[float, int, _Timer]] = []

    def time(self) -> float:
        """Return the seconds."""
        return self._now

    def at(
        self, when: float, callback: Callable[..., object], *args: Any, channel: object = None
    ) -> _Timer:
        """Call `callback` when the time has come."""
        del channel
        self._count += 1
        timer = _Timer(callback, args)
        heapq.heappush(self._events, (when, self._count, timer))
        return timer

    def advance(self, seconds: float) -> None:
        """Move the clock, and call what becomes due."""
        until = self._now + seconds
        while self._events and self._events[0][0] <= until:
            when, _, timer = heapq.heappop(self._events)
            if not timer.cancelled:
                self._now = max(self._now, when)
                timer.callback(*timer.args)
        self._now = until


class _Timer:
    __slots__ = ("args", "callback", "cancelled")

    def __init__(self, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
        self.callback = callback
        self.args = args
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class _Peer:
    def __init__(self, address: str) -> None:
        self.address = address
        self.closed = False
        self._data = bytearray()

    def send(self, data: bytes) -> None:
        if not self.closed:
            self._data += data

    def close(self) -> None:
        self.closed = True

    def reset(self) -> None:
        self.closed = True

    def take(self) -> tuple[bytes, bool]:
        data = bytes(self._data)
        self._data.clear()
        return data, self.closed


class Real:
    """A real server, used by all scripts.

    Args:
        port: Its port on this machine.
        older: Whether it is Redis 7.0, and not Valkey 9.
    """

    name = "real"

    def __init__(self, port: int, *, older: bool) -> None:
        self.older = older
        self._port = port
        self._control = self._connect()
        self._loading: socket.socket | None = None
        self._sockets: dict[str, socket.socket] = {}
        self._data: dict[str, bytearray] = {}
        self._closed: dict[str, bool] = {}
        self._paused = False

    def _connect(self) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self._port), timeout=5.0)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def reset(self) -> None:
        """Restore the state of a new server."""
        self._paused = False
        for label in list(self._sockets):
            self.close(label)
        self.query("SCRIPT", "KILL")
        self._wait_until_idle()
        if self._loading is not None:
            self._loading.close()
            self._loading = None
        self.query("CLIENT", "UNPAUSE")
        for words in (
            ("REPLICAOF", "NO", "ONE"),
            ("CONFIG", "SET", "maxmemory", "0", "maxmemory-policy", "noeviction"),
            ("CONFIG", "SET", "min-replicas-to-write", "0", "maxclients", "1000"),
            ("CONFIG", "SET", "replica-serve-stale-data", "yes", "save", "", "key-load-delay", "0"),
            ("CONFIG", "SET", "busy-reply-threshold", "20"),
            ("ACL", "SETUSER", "default", "reset", "on", "nopass", "~*", "&*", "+@all"),
            ("FLUSHALL",),
            ("SCRIPT", "FLUSH"),
        ):
            reply = self.query(*words)
            if reply != ("+", b"OK"):
                raise RuntimeError(f"{words}: {show(reply)}")
        users = self.query("ACL", "USERS")[1]
        for _, user in users:
            if user != b"default":
                self.query("ACL", "DELUSER", user.decode())

    def query(self, *words: str) -> Any:
        """Send a command over the control connection, and return its reply."""
        self._control.sendall(encode([word.encode() for word in words]))
        data = b""
        while True:
            data += self._control.recv(65536)
            replies, rest = parse(data)
            if replies and not rest:
                return replies[0]

    def aclose(self) -> None:
        """Close all connections."""
        for label in list(self._sockets):
            self.close(label)
        self._control.close()

    def open(self, label: str) -> None:
        connection = self._connect()
        connection.setblocking(False)
        self._sockets[label] = connection
        self._data[label] = bytearray()
        self._closed[label] = False
        self.settle()

    def send(self, label: str, data: bytes) -> None:
        if not self._closed[label]:
            with contextlib.suppress(OSError):
                self._sockets[label].sendall(data)
        self.settle()
        if b"SCRIPT" in data and b"KILL" in data and self._is_accepted(label):
            self._wait_until_idle()  # the script notices it a little later
            self.settle()

    def settle(self) -> None:
        if self._paused:
            time.sleep(0.02)
            return
        # A server has one thread: when it answers for the second time, everything that it did
        # before the first answer has been written.
        for _ in range(2):
            self._control.sendall(b"PING\r\n")
            self._control.recv(65536)

    def _fail_to_save(self) -> None:
        """Kill the process that saves the data, so that the last attempt has failed."""
        self.query("SET", "saved", "")
        self.query("CONFIG", "SET", "rdb-key-save-delay", "1000000")
        self.query("BGSAVE")
        self.query("DEL", "saved")
        self.query("CONFIG", "SET", "save", "3600 1")
        server = re.search(rb"process_id:(\d+)", self.query("INFO", "server")[1])[1].decode()
        children = Path("/proc", server, "task", server, "children").read_text().split()
        for child in children:
            os.kill(int(child), signal.SIGKILL)
        while b"rdb_bgsave_in_progress:0" not in self.query("INFO", "persistence")[1]:
            time.sleep(0.01)
        self.query("CONFIG", "SET", "rdb-key-save-delay", "0")

    def _load(self) -> None:
        """Make the server load its data again, slowly."""
        for number in range(400):
            self.query("SET", f"filler {number}", "x" * 2000)
        self.query("CONFIG", "SET", "key-load-delay", "2000")
        self.query("CONFIG", "SET", "loading-process-events-interval-bytes", "1024")
        self.query("CONFIG", "SET", "rdbcompression", "no")
        self._loading = self._connect()
        self._loading.sendall(b"DEBUG RELOAD\r\n")
        while not self._is_occupied():
            time.sleep(0.005)

    def _is_accepted(self, label: str) -> bool:
        with contextlib.suppress(OSError):
            return self._sockets[label].recv(4096, socket.MSG_PEEK).endswith(b"+OK\r\n")
        return False

    def _wait_until_idle(self) -> None:
        """Wait for the end of a script, or until all data is loaded."""
        while self._is_occupied():
            time.sleep(0.005)

    def _is_occupied(self) -> bool:
        kind, text = self.query("PING")
        return kind == "-" and text.startswith((b"BUSY", b"LOADING"))

    def received(self) -> dict[str, tuple[bytes, bool]]:
        for label, connection in self._sockets.items():
            while not self._closed[label]:
                try:
                    data = connection.recv(1 << 20)
                except BlockingIOError:
                    break
                except OSError:
                    data = b""
                self._data[label] += data
                self._closed[label] = not data
        taken = {label: (bytes(data), self._closed[label]) for label, data in self._data.items()}
        for data in self._data.values():
            data.clear()
        return taken

    def close(self, label: str) -> None:
        self._sockets.pop(label).close()
        del self._data[label], self._closed[label]
        self.settle()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)
        self._paused = False
        self.settle()

    def control(self, words: list[str]) -> None:
        match words:
            case ["oom", "on"]:
                self.query("CONFIG", "SET", "maxmemory", "1")
            case ["oom", "off"]:
                self.query("CONFIG", "SET", "maxmemory", "0")
            case ["replica" | "readonly", "on"]:
                self.query("REPLICAOF", "127.0.0.1", "1")
            case ["replica" | "readonly", "off"]:
                self.query("REPLICAOF", "NO", "ONE")
            case ["noreplicas", state]:
                self.query("CONFIG", "SET", "min-replicas-to-write", "1" if state == "on" else "0")
            case ["deny", *commands]:
                rules = [f"-{command.lower()}" for command in commands]
                self.query("ACL", "SETUSER", "default", *rules)
            case ["misconf", "on"]:
                self._fail_to_save()
            case ["misconf", "off"]:
                self.query("CONFIG", "SET", "save", "")
            case ["stale", answer]:
                self.query("CONFIG", "SET", "replica-serve-stale-data", answer)
            case ["loading", _]:
                self._load()
            case ["paused"]:
                self._paused = True
            case ["idle", _]:
                self._wait_until_idle()
            case ["password", *password]:
                self.query("CONFIG", "SET", "requirepass", *(password or [""]))
            case ["maxclients", count]:
                # Ours for control counts, too; the simulated server has none.
                self.query("CONFIG", "SET", "maxclients", str(int(count) + 1))
            case _:
                raise ValueError(f"unknown directive: {words}")
        self.settle()


class Runner:
    """Runs a script on one side, and records every reply.

    A script has a command per line, for connection A or the one that a prefix names ("B: GET k").
    "!" instead of a command's words sends the raw bytes in quotes. Lines with "@" are directives:
    `@sleep SECONDS`, `@close B`, `@open B`, and those of `Side.control`. After
    `@paused`, and until the next `@sleep`, the servers do not answer. `{id:B}` is the client ID
    of connection B, and `{address:B}` its address.
    """

    def __init__(self, side: Side, protocol: int, *, older: bool = False) -> None:
        self._side = side
        self._protocol = protocol
        self._older = older
        self._ids: dict[str, bytes] = {}
        self._addresses: dict[str, bytes] = {}
        self._open: list[str] = []
        self._closed: list[str] = []

    def run(self, script: Script) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield each line with the replies that it caused, by connection."""
        for line in script.lines:
            text, mark, _ = line.partition(_NEWER)
            command = ""
            if text.startswith("@"):
                self._direct(text[1:].split())
            else:
                label, command = self._command(text)
                self._send(label, command)
            found = self._replies(command)
            yield text, {} if mark and self._older else found

    def values(self) -> dict[str, Any]:
        """Return the size of each database and the value of each key, asked with commands."""
        self._connect("values", protocol=2)
        found: dict[str, Any] = {}
        for database in range(_DATABASES):
            self._ask("SELECT", str(database))
            size = int(self._ask("DBSIZE")[1])
            keys = sorted(key for _, key in self._ask("KEYS", "*")[1])
            found[f"database {database}"] = [f"{size} keys"]
            for key in keys:
                found[f"database {database}, {key!r}"] = self._value(key.decode("latin-1"))
        return found

    def _value(self, key: str) -> list[str]:
        kind = self._ask("TYPE", key)[1].decode()
        words = {
            "string": ("GET", key),
            "list": ("LRANGE", key, "0", "-1"),
            "set": ("SMEMBERS", key),
            "hash": ("HGETALL", key),
            "zset": ("ZRANGE", key, "0", "-1", "WITHSCORES"),
            "stream": ("XRANGE", key, "-", "+"),
        }.get(kind)
        if words is None:
            return [kind]
        reply = self._ask(*words)
        if kind == "set":
            reply = (reply[0], sorted(reply[1]))
        elif kind == "hash":
            pairs = sorted(zip(reply[1][::2], reply[1][1::2], strict=True))
            reply = (reply[0], [each for pair in pairs for each in pair])
        remaining = int(self._ask("PTTL", key)[1])
        # Real time passes while a script runs.
        expires = "never" if remaining < 0 else f"in about {round(remaining / 5000) * 5} s"
        return [kind, show(reply), f"expires {expires}"]

    def _ask(self, *words: str) -> Any:
        self._side.send("values", encode([word.encode("latin-1") for word in words]))
        data, closed = self._side.received()["values"]
        replies, rest = parse(data)
        if len(replies) != 1 or rest:
            raise RuntimeError(f"{words}: {data!r}{', closed' if closed else ''}")
        return replies[0]

    def _command(self, text: str) -> tuple[str, str]:
        label, colon, rest = text.partition(": ")
        if colon and label.isalnum() and label.isupper() and len(label) == 1:
            return label, rest.strip()
        return "A", text

    def _send(self, label: str, command: str) -> None:
        for name in re.findall(r"\{\w+:(\w)\}", command):
            self._ensure(name)
        self._ensure(label)
        for name, number in self._ids.items():
            command = command.replace(f"{{id:{name}}}", number.decode())
            command = command.replace(f"{{address:{name}}}", self._addresses[name].decode())
        if command.startswith("! "):
            data = b"".join(split_words(command[2:]))
        else:
            data = encode(split_words(command))
        self._side.send(label, data)

    def _direct(self, words: list[str]) -> None:
        match words:
            case ["sleep", seconds]:
                self._side.sleep(float(seconds))
            case ["open", label]:
                if label in self._closed:
                    self._closed.remove(label)
                self._open.append(label)
                self._side.open(label)
            case ["close", label]:
                self._open.remove(label)
                self._side.close(label)
            case _:
                self._side.control(words)

    def _ensure(self, label: str) -> None:
        if label not in self._open:
            self._connect(label, self._protocol)

    def _connect(self, label: str, protocol: int) -> None:
        """Open a connection and learn its ID and address, in a way that ACLs do not affect."""
        side = self._side
        earlier = side.received()
        if any(data for data, _ in earlier.values()):
            raise RuntimeError(f"unread replies: {earlier}")
        self._open.append(label)
        side.open(label)
        side.send(label, encode([b"HELLO", b"%d" % protocol]))
        data, _ = side.received()[label]
        replies, _ = parse(data)
        if not replies or replies[0][0] not in "%*":
            raise RuntimeError(f"HELLO {protocol}: {data!r}")
        values = replies[0][1]
        fields = dict(zip((each[1] for each in values[::2]), values[1::2], strict=True))
        self._ids[label] = fields[b"id"][1]
        side.send(label, encode([b"CLIENT", b"INFO"]))
        data, _ = side.received()[label]
        found = re.search(rb" addr=(\S+)", data)
        self._addresses[label] = found[1] if found else b"unknown"

    def _replies(self, command: str) -> dict[str, Any]:
        normalizer = Normalizer(self._ids, self._addresses)
        words = [] if command.startswith("!") else split_words(command)
        found: dict[str, Any] = {}
        for label, (data, closed) in self._side.received().items():
            replies, rest = parse(data)
            shown = [show(normalizer.reply(words, reply)) for reply in replies]
            if rest:
                shown.append(f"incomplete: {rest!r}")
            if closed and label not in self._closed:
                self._closed.append(label)
                shown.append("closed")
            if shown:
                found[label] = shown
        return found


def compare(
    real: Side, simulated: Side, script: Script, protocol: int, *, older: bool = False
) -> list[str]:
    """Run a script on both sides; return the lines of a report of what differs, or none.

    Args:
        real: What is right.
        simulated: What is tested.
        script: Lines of commands and directives.
        protocol: 2 or 3.
        older: Whether the real server is Redis 7.0.
    """
    runners = Runner(real, protocol, older=older), Runner(simulated, protocol, older=older)
    problems = []
    earlier: list[str] = []
    for (line, expected), (_, found) in zip(
        runners[0].run(script), runners[1].run(script), strict=True
    ):
        if expected != found:
            problems += [line, *_differences(expected, found)]
            problems += [f"    earlier   {' | '.join(earlier[-_CONTEXT:])}", ""]
        earlier.append(line)
    values = runners[0].values(), runners[1].values()
    if values[0] != values[1]:
        problems += ["values at the end", *_differences(*values)]
    return problems


def _differences(expected: dict[str, Any], found: dict[str, Any]) -> Iterator[str]:
    for label in dict.fromkeys((*expected, *found)):
        if expected.get(label) != found.get(label):
            yield f"  {label}"
            yield f"    real      {_line(expected.get(label))}"
            yield f"    simulated {_line(found.get(label))}"


def _line(replies: list[str] | None) -> str:
    text = "; ".join(replies or ["nothing"])
    return text if len(text) <= _LONGEST_LINE else f"{text[:_LONGEST_LINE]} ..."
