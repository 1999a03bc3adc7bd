"""The simulated Redis replies like a real one, byte by byte, and leaves the same data."""

import asyncio
import shutil
from pathlib import Path

import pytest

from resilient_io.testing import NoServerError, RedisServer
from resilient_io.testing.servers import Binary, find_embedded_redis
from tests.simulation.redis_server.command import COMMANDS, Flag
from tests.simulation.reply_comparison import Real, Simulated, compare, read_scripts
from tests.simulation.reply_random import draw_script

_COMPARED = {"redis": "Redis 7.0", "valkey": "Valkey 9"}
"""The versions that the simulated server can imitate."""


def _binary(name: str) -> Binary:
    if name == "valkey":
        binary = find_embedded_redis()
    else:
        path = shutil.which("redis-server")
        if path is None:
            raise NoServerError("redis-server is not on the PATH")
        binary = Binary(Path(path), "path")
    if not binary.version.startswith(_COMPARED[name]):
        pytest.skip(f"only {' and '.join(_COMPARED.values())} are compared, not {binary.version}")
    return binary


@pytest.fixture(scope="session", params=sorted(_COMPARED))
def real(request):
    """Start a real server for all scripts."""
    server = RedisServer(binary=_binary(request.param), options={"enable-debug-command": "local"})
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        runner.run(server.start())
        side = Real(server.port, older=request.param == "redis")
        yield side
        side.aclose()
        runner.run(server.aclose())


@pytest.mark.parametrize("protocol", [2, 3], ids=["resp2", "resp3"])
@pytest.mark.parametrize("script", read_scripts(), ids=lambda script: script.name)
def test_replies_and_values_are_those_of_a_real_server(real, script, protocol):
    if script.newer and real.older:
        pytest.skip("Redis 7.0 answers differently")
    _compare(real, script, protocol)


@pytest.mark.parametrize("seed", range(20))
def test_replies_to_random_commands_are_those_of_a_real_server(real, seed):
    _compare(real, draw_script(seed), 2 + seed % 2)


def _compare(real, script, protocol):
    version = "redis 7.0.15" if real.older else "valkey 9.1.2"
    # A busy machine may look for a reply when the time of a blocking command is already over.
    for _ in range(3):
        real.reset()
        simulated = Simulated(version=version)
        problems = compare(real, simulated, script, protocol, older=real.older)
        if not problems:
            break
    assert not problems, "\n".join(["the replies differ", "", *problems])


def test_arity_and_flags_are_those_of_a_real_server(real):
    real.reset()
    problems = [
        f"{command.name}: the real one has {expected}, the simulated one {found}"
        for command in _all_commands()
        for expected, found in [(_described(real, command.name), _properties(command, real))]
        if expected is not None and expected != found
    ]
    assert not problems, "\n".join(["the properties differ", *problems])


def _all_commands():
    for command in COMMANDS.values():
        yield from command.subcommands.values() or [command]


_COMPARED_FLAGS = ("write", "denyoom", "readonly", "loading", "no_auth", "allow_busy")


def _described(real, name):
    [(_, values)] = real.query("COMMAND", "INFO", name.lower())[1]
    if not isinstance(values, list):
        return None  # it is newer than Redis 7.0
    flags = [flag.decode() for _, flag in values[2][1]]
    return int(values[1][1]), sorted(set(flags) & set(_COMPARED_FLAGS))


def _properties(command, real):
    flags = {flag.name.lower() for flag in Flag if flag in command.flags}
    if "valkey_busy" in flags and not real.older:
        flags.add("allow_busy")
    return command.arity, sorted(flags & set(_COMPARED_FLAGS))
