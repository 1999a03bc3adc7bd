"""Every effect that the command table claims, proved by executing the command twice.

The samples stand in `test_commands_twice.txt`. A command that claims to be safe to repeat and has
no sample fails the test, and so does a claim that is more careful than it has to be.
"""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.connection import Connection

from resilient_io.redis.commands import Effect, Route, effect_of, lookup
from resilient_io.testing import NoServerError, RedisServer, find_embedded_redis, find_redis
from resilient_io.testing.pytest_plugin import REQUIRE_VARIABLE

_LIBRARY = "#!lua name=one\nredis.register_function('one', function() return 1 end)"
_VALUES: dict[str, str] = {
    "<library>": _LIBRARY,
    "<get.lua>": "return redis.call('GET', KEYS[1])",
    "<incr.lua>": "return redis.call('INCR', KEYS[1])",
}

# These cannot be executed here, or not twice.
_UNPROVED = {
    "ACL LOAD": "needs a file of users",
    "ACL SAVE": "as above",
    "CLIENT PAUSE": "pauses the test as well",
    "CONFIG REWRITE": "writes the server's own configuration file",
    "EVALSHA_RO": "as EVAL_RO",
    "FCALL_RO": "as EVAL_RO",
    "LATENCY GRAPH": "needs a latency event",
    "LATENCY RESET": "needs a latency event",
    "CLUSTERSCAN": "needs a cluster",
    "MODULE LOAD": "needs a module",
    "MODULE LOADEX": "needs a module",
    "MODULE UNLOAD": "needs a module",
    "OBJECT FREQ": "needs another policy of eviction",
    "PFSELFTEST": "takes seconds",
    "RESTORE-ASKING": "as RESTORE",
    "SAVE": "writes to disk",
    "SCRIPT SHOW": "needs the digest of a script",
    "COMMANDLOG GET": "as SLOWLOG GET",
    "COMMANDLOG LEN": "as SLOWLOG LEN",
    "COMMANDLOG RESET": "as SLOWLOG RESET",
}
# The table is stricter than these samples require, for the given reason.
_CAREFUL = {
    "ACL SETUSER u on >secret +get ~x": "another order of the rules is refused the second time",
}
_MS_SINCE_1970 = 10**12


class Sample:
    """A line of the file."""

    def __init__(self, line: str) -> None:
        effect, self.command, *setup = (part.strip() for part in line.split(" | "))
        self.effect = Effect[effect]
        self.setup = setup[0].split(" ; ") if setup else []


def _samples() -> Iterator[Sample]:
    for line in Path(__file__).with_suffix(".txt").read_text().splitlines():
        if line and not line.startswith("#"):
            yield Sample(line)


SAMPLES = list(_samples())


class Server:
    """A plain connection to a real server."""

    def __init__(self, server: RedisServer, version: str) -> None:
        self.version = version
        self.connection = Connection(host=server.host, port=server.port, protocol=2)
        self.values: dict[str, Any] = dict(_VALUES)
        self("SET", "k", "v")
        self.values["<string>"] = self("DUMP", "k")
        self("FUNCTION", "LOAD", _LIBRARY)
        self.values["<functions>"] = self("FUNCTION", "DUMP")
        self.commands = {self._name(each) for each in self("COMMAND", "LIST")}

    @staticmethod
    def _name(listed: bytes) -> str:
        return listed.decode().upper().replace("|", " ")

    def __call__(self, *args: Any) -> Any:
        self.connection.send_command(*args)
        try:
            return self.connection.read_response(disable_decoding=True)
        except redis.ResponseError as error:
            return f"{type(error).__name__}: {error}"

    def words(self, line: str) -> list[Any]:
        return [self.values.get(word, word) for word in line.split()]

    def clean(self) -> None:
        self("FLUSHALL")
        self("FUNCTION", "FLUSH")
        self("SCRIPT", "FLUSH")
        self("ACL", "DELUSER", "u")

    def state(self) -> list[Any]:
        """Return everything that may differ: data, stream groups, functions, users, settings."""
        _, keys = self("SCAN", 0, "COUNT", 1000)  # it removes expired keys, unlike KEYS
        streams = [key for key in keys if self("TYPE", key) == b"stream"]
        return [
            self("DEBUG", "DIGEST"),
            [_timeless(self("XINFO", "STREAM", stream, "FULL")) for stream in sorted(streams)],
            self("FUNCTION", "LIST", "WITHCODE"),
            self("ACL", "LIST"),
            self("CONFIG", "GET", "*"),
        ]


def _timeless(value: Any) -> Any:
    """Remove times, and how often a pending record was delivered, which a repeat increases."""
    match value:
        case [bytes(), bytes(), int(time), int()] if time > _MS_SINCE_1970:
            return value[:2]
        case [bytes(), int(time), int()] if time > _MS_SINCE_1970:
            return value[:1]
        case list():
            return [_timeless(each) for each in value]
        case int() if value > _MS_SINCE_1970:
            return 0
    return value


@pytest.fixture(scope="module")
def servers() -> Iterator[list[Server]]:
    handles: dict[str, RedisServer] = {}
    for find in (find_redis, find_embedded_redis):
        try:
            binary = find()
        except NoServerError:
            continue
        options = {"enable-debug-command": "yes"}
        handles[binary.version] = RedisServer(binary=binary, options=options)
    if not handles:
        lacking = pytest.fail if os.environ.get(REQUIRE_VARIABLE) == "1" else pytest.skip
        lacking("NEEDS A REDIS SERVER")
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        for handle in handles.values():
            runner.run(handle.start())
        connected = [Server(handle, version) for version, handle in handles.items()]
        yield connected
        for server in connected:
            server.connection.disconnect()
        for handle in handles.values():
            runner.run(handle.aclose())


@pytest.mark.parametrize("sample", SAMPLES, ids=[sample.command for sample in SAMPLES])
def test_executing_a_command_twice_shows_the_effect_in_the_table(servers, sample):
    proved = [_prove(server, sample) for server in servers]
    if not any(proved):
        pytest.skip("no server here knows it")


def _prove(server: Server, sample: Sample) -> bool:
    call = server.words(sample.command)
    assert effect_of(lookup(call), call) is sample.effect
    name = lookup(call).name
    if name not in server.commands and name.partition(" ")[0] not in server.commands:
        return False
    server.clean()
    for line in sample.setup:
        reply = server(*server.words(line))
        assert not _failed(reply), f"{server.version}: {line}: {reply}"

    before = server.state()
    first = server(*call)
    once = server.state()
    second = server(*call)
    twice = server.state()

    if _failed(first) and "syntax error" in first:
        return False  # an option of a newer server
    if sample.effect is not Effect.DANGEROUS:
        assert not _failed(first), server.version
    if sample.effect is Effect.READ:
        assert once == before, server.version
    elif sample.effect is Effect.IDEMPOTENT:
        assert (twice, second) == (once, first), server.version
    elif sample.effect is Effect.CONDITIONAL:
        assert twice == once, server.version
        assert (first != second) == (sample.command not in _CAREFUL), server.version
    elif sample.effect is Effect.NON_IDEMPOTENT:
        assert (twice, second) != (once, first), server.version
    return True


def test_every_repeatable_command_has_a_sample(servers):
    proved = {lookup(sample.command.split()).name for sample in SAMPLES}
    missing = []
    for name in sorted(set().union(*(server.commands for server in servers))):
        spec = lookup((name,))
        sendable = spec.known and spec.route in {Route.MULTIPLEXED, Route.EXCLUSIVE}
        repeatable = spec.effect <= Effect.CONDITIONAL or spec.resolve is not None
        excused = name in _UNPROVED or name.startswith("CLUSTER ") or name.endswith(" HELP")
        if sendable and repeatable and not excused and name not in proved:
            missing.append(name)
    assert missing == []


def _failed(reply: Any) -> bool:
    return isinstance(reply, str) and "Error: " in reply
