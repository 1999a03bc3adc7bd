"""The doctor at real Redis servers, well and with faults."""

import asyncio
import re
import socket
from pathlib import Path

import pytest

from resilient_io.doctor import Status, exit_code
from resilient_io.testing import FaultProxy, RedisServer

WAY = ["name", "TCP", "login"]
ACCOUNT = ["server", "role", "memory", "persistence", "clients", "slow log", "load"]

# TIME advances within a script only before Redis 7.2, and `os` exists only since then.
SPIN = """
local has_os, clock = pcall(function() return os.clock end)
local function now()
  if has_os then return clock() * 1000000 end
  local time = redis.call('TIME')
  return time[1] * 1000000 + time[2]
end
local until_then = now() + tonumber(ARGV[1])
while now() < until_then do end
"""


async def until(server, section, word):
    """Wait until the server's INFO says something."""
    async with asyncio.timeout(20):
        while word not in await server.query("INFO", section):  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.02)


async def test_a_server_that_is_well_has_no_problem(looked, shared_redis):
    seen = await looked(shared_redis.url)
    assert seen.names == [*WAY, *ACCOUNT]
    assert exit_code(seen.steps) == 0, seen
    assert seen["login"].found == "let in as default"
    assert seen["server"].data["version"]
    assert seen["role"].data["role"] == "master"
    assert seen["load"].data["ping_median"] < 1.0
    assert seen["TCP"].data["addresses"][f"127.0.0.1:{shared_redis.port}"]["127.0.0.1"] >= 0


async def test_a_look_only_reads(looked, shared_redis):
    await shared_redis.query("SET", "key", "value")
    await shared_redis.query("CONFIG", "RESETSTAT")
    await looked(shared_redis.url)
    told = await shared_redis.query("INFO", "commandstats")
    called = {line.partition(b":")[0] for line in told.splitlines() if line.startswith(b"cmd")}
    reads = {b"info", b"ping", b"hello", b"client|setinfo", b"acl|whoami", b"config|get", b"time",
             b"slowlog|get", b"select", b"config|resetstat", b"auth", b"command"}  # fmt: skip
    assert called <= {b"cmdstat_" + name for name in reads}


async def test_addresses_of_a_name_are_looked_up(looked, shared_redis):
    seen = await looked(f"redis://localhost:{shared_redis.port}")
    assert "127.0.0.1" in seen["name"].data["addresses"][f"localhost:{shared_redis.port}"]
    assert seen["TCP"].status is Status.OK, seen  # although the server does not listen on ::1


async def test_a_port_at_which_nobody_listens(looked, redis_server):
    redis_server.kill()
    seen = await looked(redis_server.url)
    assert seen.names == ["name", "TCP"]
    assert seen.last.status is Status.PROBLEM
    assert "refused" in seen.last.found
    assert "nothing listens" in seen.last.advice
    assert exit_code(seen.steps) == 1


async def test_a_host_that_answers_no_packet(looked, slack):
    # A full queue of connections that nobody accepts: Linux lets further ones go unanswered.
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        waiting = []
        try:
            for _ in range(3):
                one = socket.socket()
                waiting.append(one)
                one.setblocking(False)
                one.connect_ex(deaf.getsockname())
            began = asyncio.get_running_loop().time()
            seen = await looked(f"redis://127.0.0.1:{deaf.getsockname()[1]}", timeout=1.0)
            took = asyncio.get_running_loop().time() - began
        finally:
            for one in waiting:
                one.close()
    assert seen.names == ["name", "TCP"]
    assert seen.last.status is Status.PROBLEM
    assert "no answer" in seen.last.found
    assert "firewall" in seen.last.advice
    assert took < 1.0 + slack()


async def test_a_frozen_server_is_told_within_the_time(looked, redis_server, slack):
    redis_server.freeze()
    began = asyncio.get_running_loop().time()
    seen = await looked(redis_server.url, timeout=1.0)
    took = asyncio.get_running_loop().time() - began
    assert seen.statuses() == {"name": "ok", "TCP": "ok", "login": "problem"}
    assert "no answer to the login" in seen.last.found
    assert "frozen" in seen.last.advice
    assert took < 1.0 + slack()


async def test_a_server_that_falls_silent_on_the_way_leaves_the_rest_blind(looked, redis_server):
    async with FaultProxy(redis_server.port) as proxy:
        proxy.hold("SLOWLOG")
        seen = await looked(f"redis://127.0.0.1:{proxy.port}", timeout=1.5)
    assert seen["memory"].status is not Status.BLIND
    assert seen["slow log"].status in (Status.PROBLEM, Status.BLIND)
    assert seen["load"].status is Status.BLIND


async def test_a_connection_that_is_cut_on_the_way_leaves_the_rest_blind(looked, redis_server):
    async with FaultProxy(redis_server.port) as proxy:
        proxy.half_reply("INFO", then="close")
        seen = await looked(f"redis://127.0.0.1:{proxy.port}")
    assert seen["server"].status is Status.PROBLEM, seen
    assert "lost at INFO" in seen["server"].found
    assert [seen[name].status for name in ACCOUNT[1:]] == [Status.BLIND] * (len(ACCOUNT) - 1), seen


async def test_a_name_that_does_not_exist(looked):
    seen = await looked("redis://no-such-name.invalid:6379")
    assert seen.names == ["name"]
    assert seen.last.status is Status.PROBLEM


async def test_what_is_not_redis_is_told(looked):
    async def answer(reader, writer):
        await reader.readline()
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as web:
        port = web.sockets[0].getsockname()[1]
        seen = await looked(f"redis://127.0.0.1:{port}")
    assert seen.last.name == "login"
    assert seen.last.status is Status.PROBLEM
    assert "not Redis" in seen.last.advice


async def test_a_wrong_password_is_told_and_not_shown(looked):
    async with RedisServer(password="hunter2") as server:
        at = f"127.0.0.1:{server.port}"
        assert (await looked(server.url))["login"].status is Status.OK
        seen = await looked(f"redis://:hunter3@{at}", secrets=("hunter2", "hunter3"))
        assert seen.last.name == "login"
        assert "does not take this user and password" in seen.last.found
        seen = await looked(f"redis://{at}")
        assert "the URL has none" in seen.last.found


async def test_a_database_that_does_not_exist(looked, shared_redis):
    seen = await looked(f"redis://127.0.0.1:{shared_redis.port}/999")
    assert seen.last.name == "login"
    assert "/0" in seen.last.advice


async def test_a_user_who_may_not_ask_leaves_steps_blind_and_the_look_goes_on(looked, redis_server):
    await redis_server.query("ACL", "SETUSER", "shy", "on", ">hunter2", "+ping", "+hello", "+role")
    seen = await looked(f"redis://shy:hunter2@127.0.0.1:{redis_server.port}")
    assert seen.names == [*WAY, *ACCOUNT]
    assert seen.statuses() == {
        **dict.fromkeys(WAY, "ok"),
        **dict.fromkeys(ACCOUNT, "blind"),
        "role": "ok",  # asked in another way
    }, seen
    assert "no permission for INFO" in seen["server"].found
    assert "+info" in seen["server"].advice
    assert seen["memory"].advice == ""  # said once
    assert "+slowlog" in seen["slow log"].advice
    assert exit_code(seen.steps) == 2


async def test_the_user_that_the_docs_make_for_it_sees_everything(looked, redis_server):
    page = (Path(__file__).parents[3] / "docs/howto/doctor.md").read_text()
    words = re.search(r"^ACL SETUSER doctor .+$", page, re.MULTILINE)[0].split()
    await redis_server.query(*(">hunter2" if word == ">…" else word for word in words))
    seen = await looked(f"redis://doctor:hunter2@127.0.0.1:{redis_server.port}")
    assert seen["login"].found == "let in as doctor"
    assert "blind" not in seen.statuses().values(), seen
    assert seen["persistence"].data["save"] == ""


async def test_no_more_connections(looked):
    async with RedisServer(options={"maxclients": 1}) as server:
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        try:
            seen = await looked(server.url)
        finally:
            writer.close()
            await writer.wait_closed()
    assert seen.last.name == "login"
    assert "max number of clients" in seen.last.found
    assert "maxclients" in seen.last.advice


async def test_full_memory_failed_snapshots_and_no_persistence(looked, redis_server):
    seen = await looked(redis_server.url)
    assert seen["memory"].status is Status.NOTE
    assert "persistence is off" in seen["persistence"].found
    await redis_server.query("CONFIG", "SET", "maxmemory", "100kb")
    seen = await looked(redis_server.url)
    assert seen["memory"].status is Status.PROBLEM
    assert "refuses writes now (OOM)" in seen["memory"].found
    await redis_server.query("CONFIG", "SET", "save", "3600 1")
    # It cannot write its snapshot where a folder has the file's name.
    (redis_server.folder / "dump.rdb").mkdir()
    await redis_server.query("BGSAVE")
    await until(redis_server, "persistence", b"rdb_last_bgsave_status:err")
    seen = await looked(redis_server.url)
    assert seen["persistence"].status is Status.PROBLEM, seen
    assert "MISCONF" in seen["persistence"].found


async def test_a_slow_script_is_found_without_what_it_was_given(looked, redis_server):
    await redis_server.query("EVAL", SPIN, 0, 150_000, "hunter2")
    seen = await looked(redis_server.url)
    assert seen["slow log"].status is Status.NOTE
    assert "EVAL" in seen["slow log"].found
    await redis_server.query("EVAL", SPIN, 0, 1_100_000, "hunter2")
    assert (await looked(redis_server.url))["slow log"].status is Status.PROBLEM


async def test_a_replica_and_one_that_has_lost_its_master(looked, redis_server):
    async with RedisServer(replica_of=redis_server) as replica:
        seen = await looked(replica.url)
        assert seen["role"].status is Status.PROBLEM
        assert "READONLY" in seen["role"].found
        assert f"127.0.0.1:{redis_server.port}" in seen["role"].advice
        assert "1 replica up to date" in (await looked(redis_server.url))["role"].found
        redis_server.kill()
        await until(replica, "replication", b"master_link_status:down")
        assert "lost its master" in (await looked(replica.url))["role"].found


async def test_a_server_in_cluster_mode_over_a_unix_socket(looked):
    async with RedisServer(unix_socket=True, options={"cluster-enabled": "yes"}) as server:
        seen = await looked(server.unix_url)
    assert seen.names == ["login", *ACCOUNT]
    assert "the cluster does not serve" in seen["server"].found


async def test_a_socket_that_is_not_there(looked, tmp_path):
    seen = await looked(f"unix://{tmp_path}/redis.sock")
    assert seen.names == ["login"]
    assert seen.last.status is Status.PROBLEM


@pytest.mark.parametrize("decode", ["", "?decode_responses=True", "?protocol=2"])
async def test_options_of_the_url_do_not_disturb_the_look(looked, shared_redis, decode):
    seen = await looked(f"redis://127.0.0.1:{shared_redis.port}{decode}")
    assert exit_code(seen.steps) == 0, seen
