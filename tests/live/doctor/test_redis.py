"""The doctor at real Redis servers, with and without faults."""

import asyncio
import socket

import pytest

from resilient_io.doctor import Status, exit_code
from resilient_io.testing import FaultProxy, RedisServer

STEPS = ["name", "TCP", "login", "reply", "link"]


async def test_healthy_server_has_no_problem(examined, shared_redis):
    seen = await examined(shared_redis.url)
    assert seen.names == STEPS
    assert exit_code(seen.steps) == 0, seen
    assert seen["login"].found == "logged in as default"
    assert seen["reply"].data["version"]
    assert seen["reply"].data["ping"] < 1.0


async def test_examination_only_reads(examined, shared_redis):
    await shared_redis.query("SET", "key", "value")
    await shared_redis.query("CONFIG", "RESETSTAT")
    await examined(shared_redis.url)
    stats = await shared_redis.query("INFO", "commandstats")
    called = {line.partition(b":")[0] for line in stats.splitlines() if line.startswith(b"cmd")}
    reads = {b"info", b"ping", b"hello", b"client|setinfo", b"acl|whoami", b"select",
             b"config|resetstat", b"auth", b"command"}  # fmt: skip
    assert called <= {b"cmdstat_" + name for name in reads}


async def test_name_is_looked_up_and_all_its_addresses_are_tried(examined, shared_redis):
    seen = await examined(f"redis://localhost:{shared_redis.port}")
    assert "127.0.0.1" in seen["name"].data["addresses"][f"localhost:{shared_redis.port}"]
    assert seen["TCP"].status is Status.OK, seen  # although the server does not listen on ::1


async def test_port_on_which_nothing_listens(examined, redis_server):
    redis_server.kill()
    seen = await examined(redis_server.url)
    assert seen.names == ["name", "TCP"]
    assert seen.last.status is Status.PROBLEM
    assert "refused" in seen.last.found
    assert "nothing listens" in seen.last.advice
    assert exit_code(seen.steps) == 1


async def test_host_that_answers_no_packet(examined, slack):
    # A full queue of connections that nothing accepts: Linux lets further ones go unanswered.
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
            seen = await examined(f"redis://127.0.0.1:{deaf.getsockname()[1]}", timeout=1.0)
            took = asyncio.get_running_loop().time() - began
        finally:
            for one in waiting:
                one.close()
    assert seen.names == ["name", "TCP"]
    assert seen.last.status is Status.PROBLEM
    assert "no answer" in seen.last.found
    assert "firewall" in seen.last.advice
    assert took < 1.0 + slack()


async def test_frozen_server_is_reported_within_the_time_limit(examined, redis_server, slack):
    redis_server.freeze()
    began = asyncio.get_running_loop().time()
    seen = await examined(redis_server.url, timeout=1.0)
    took = asyncio.get_running_loop().time() - began
    assert seen.statuses() == {"name": "ok", "TCP": "ok", "login": "problem"}
    assert "no answer to the login" in seen.last.found
    assert "frozen" in seen.last.advice
    assert took < 1.0 + slack()


async def test_server_that_stops_answering_after_the_login(examined, redis_server):
    async with FaultProxy(redis_server.port) as proxy:
        proxy.hold("PING")
        seen = await examined(f"redis://127.0.0.1:{proxy.port}", timeout=1.5)
    assert seen["login"].status is Status.OK
    assert seen["reply"].status is Status.PROBLEM
    assert "no reply to a command" in seen["reply"].found


async def test_connection_that_is_cut_after_the_login(examined, redis_server):
    async with FaultProxy(redis_server.port) as proxy:
        proxy.half_reply("PING", then="close")
        seen = await examined(f"redis://127.0.0.1:{proxy.port}")
    assert seen["reply"].status is Status.PROBLEM, seen
    assert "the connection was lost" in seen["reply"].found


async def test_name_that_does_not_exist(examined):
    seen = await examined("redis://no-such-name.invalid:6379")
    assert seen.names == ["name"]
    assert seen.last.status is Status.PROBLEM


async def test_port_that_is_not_redis(examined):
    async def answer(reader, writer):
        await reader.readline()
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as web:
        port = web.sockets[0].getsockname()[1]
        seen = await examined(f"redis://127.0.0.1:{port}")
    assert seen.last.name == "login"
    assert seen.last.status is Status.PROBLEM
    assert "not Redis" in seen.last.advice


async def test_wrong_password_is_reported_and_not_shown(examined):
    async with RedisServer(password="hunter2") as server:
        at = f"127.0.0.1:{server.port}"
        assert (await examined(server.url))["login"].status is Status.OK
        seen = await examined(f"redis://:hunter3@{at}", secrets=("hunter2", "hunter3"))
        assert seen.last.name == "login"
        assert "authentication failed" in seen.last.found
        seen = await examined(f"redis://{at}")
        assert "the URL has none" in seen.last.found


async def test_database_that_does_not_exist(examined, shared_redis):
    seen = await examined(f"redis://127.0.0.1:{shared_redis.port}/999")
    assert seen.last.name == "login"
    assert "/0" in seen.last.advice


async def test_user_without_permissions_is_examined_as_far_as_possible(examined, redis_server):
    await redis_server.query("ACL", "SETUSER", "shy", "on", ">hunter2", "+ping", "+hello")
    seen = await examined(f"redis://shy:hunter2@127.0.0.1:{redis_server.port}")
    assert seen.statuses() == dict.fromkeys(STEPS, "ok"), seen
    assert seen["login"].found == "logged in"


async def test_user_of_the_docs_can_run_all_checks(examined, redis_server, doctor_user):
    await redis_server.query(*doctor_user)
    seen = await examined(f"redis://doctor:hunter2@127.0.0.1:{redis_server.port}")
    assert seen["login"].found == "logged in as doctor"
    assert seen.statuses() == dict.fromkeys(STEPS, "ok"), seen


async def test_server_without_free_connections(examined):
    async with RedisServer(options={"maxclients": 1}) as server:
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        try:
            seen = await examined(server.url)
        finally:
            writer.close()
            await writer.wait_closed()
    assert seen.last.name == "login"
    assert "max number of clients" in seen.last.found
    assert "maxclients" in seen.last.advice


async def test_replica_with_and_without_its_master(examined, redis_server):
    async with RedisServer(replica_of=redis_server) as replica:
        seen = await examined(replica.url)
        assert seen["reply"].status is Status.PROBLEM
        assert "READONLY" in seen["reply"].found
        assert (await examined(redis_server.url))["reply"].status is Status.OK
        redis_server.kill()
        await replica.query("CONFIG", "SET", "replica-serve-stale-data", "no")
        async with asyncio.timeout(20):
            while True:
                seen = await examined(replica.url)
                if "Link with MASTER is down" in seen.last.found:
                    break
    assert seen.last.status is Status.PROBLEM
    assert "lost its master" in seen.last.advice


async def test_server_in_cluster_mode_over_a_unix_socket(examined):
    async with RedisServer(unix_socket=True, options={"cluster-enabled": "yes"}) as server:
        seen = await examined(server.unix_url)
    assert seen.names == ["login", "reply", "nodes", "slots", "agreement", "replicas"]
    assert "a node of a cluster" in seen["reply"].found
    assert "16,384 of 16,384 slots have no owner" in seen["slots"].found


async def test_unix_socket_that_does_not_exist(examined, tmp_path):
    seen = await examined(f"unix://{tmp_path}/redis.sock")
    assert seen.names == ["login"]
    assert seen.last.status is Status.PROBLEM


@pytest.mark.parametrize("decode", ["", "?decode_responses=True", "?protocol=2"])
async def test_options_of_the_url_do_not_disturb_the_examination(examined, shared_redis, decode):
    seen = await examined(f"redis://127.0.0.1:{shared_redis.port}{decode}")
    assert exit_code(seen.steps) == 0, seen
    assert seen["reply"].data["version"]


async def test_a_link_that_loses_packets_is_named(network, examined):
    server = network.start_redis()
    network.lose(0.05)
    seen = await examined(server.url, timeout=10.0)
    assert seen["link"].status is Status.NOTE
    assert seen["link"].found.startswith("this link loses packets: ")
    assert seen["link"].data["retransmitted"] > 0
    assert exit_code(seen.steps) == 0
