"""`resilient-io watch` as a process, on servers that are killed, silent or unreachable."""

import json
import re
import signal
import time

from resilient_io.testing import SentinelSetup

HANGING_RESOLVER = """\
import socket, sys, time
socket.getaddrinfo = lambda *arguments, **options: time.sleep(60)
from resilient_io.cli.__main__ import main
sys.exit(main({arguments!r}))
"""


def url_of(server):
    return f"redis://127.0.0.1:{server.port}"


async def end_of(running, slack, number=signal.SIGINT):
    """Interrupt the command, check that it ends quickly, and return its exit code."""
    before = time.monotonic()
    running.interrupt(number)
    code = await running.ended()
    assert time.monotonic() - before < 0.5 + slack(0.25)
    assert "Traceback" not in running.shown
    return code


async def test_terminal_shows_an_outage_and_ctrl_c_ends_with_a_summary(
    terminal, redis_server, slack
):
    async with terminal("watch", url_of(redis_server), "--interval", "0.2") as running:
        await running.until("100.00%")
        redis_server.kill()
        await running.until("refused")
        past = len(running.shown)
        await redis_server.start()
        await running.until("down -> up", past=past)
        past = len(running.shown)
        assert await end_of(running, slack) == 1
    assert "\x1b[" in running.shown
    plain = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", running.shown[past:])
    name = f"redis 127.0.0.1:{redis_server.port}/0"
    summary = " ".join(plain.rpartition(f"{name}: ")[2].split())
    assert re.match(r"answered \d\d\.\d\d% of .*; down once, .* min/avg/max", summary), plain
    assert summary.endswith(" ms")
    assert "\x1b[?25h" in running.shown  # the cursor is back


async def test_json_shows_an_outage(piped, redis_server, slack):
    async with piped("watch", url_of(redis_server), "--interval", "0.2", "--json") as running:
        await running.until('"state": "up"')
        redis_server.kill()
        await running.until('"state": "down"')
        past = len(running.shown)
        await redis_server.start()
        await running.until('"state": "up"', past=past)
        assert await end_of(running, slack, signal.SIGTERM) == 1
    printed = [json.loads(line) for line in running.shown.splitlines()]
    states = [each["state"] for each in printed if each["event"] == "change"]
    assert states == ["up", "down", "up"]
    assert printed[-1]["event"] == "summary"
    assert printed[-1]["outages"] == 1
    assert 0 < printed[-1]["availability"] < 1
    assert all(each["dependency"] == f"redis 127.0.0.1:{redis_server.port}/0" for each in printed)


async def test_redis_and_kafka_are_watched_together(command, redis_server, shared_kafka):
    urls = [url_of(redis_server), f"kafka://{shared_kafka.bootstrap_servers}"]
    code, out, err = await command("watch", *urls, "--count", "2", "--interval", "0.3")
    assert err == ""
    assert code == 0, out
    assert out.count(f"kafka {shared_kafka.bootstrap_servers}: up ") == 2
    assert out.count(f"redis 127.0.0.1:{redis_server.port}/0: up ") == 2
    assert out.count("answered 100.00%") == 2


async def test_unreachable_servers_are_one_clear_line_each(command, silent_server):
    urls = [
        "redis://127.0.0.1:1",
        "redis://no-host.invalid",
        "kafka://127.0.0.1:1",
        f"redis://127.0.0.1:{silent_server}",
        f"kafka://127.0.0.1:{silent_server}",
    ]
    code, out, err = await command("watch", *urls, "--count", "1", "--timeout", "0.5")
    assert (code, err) == (1, "")
    looks = out.partition("---")[0].splitlines()[-5:]  # once the states of all are known
    for look, cause in zip(
        looks, ["refused", "DNS", "refused", "timed out", "timed out"], strict=True
    ):
        assert re.search(rf": down for \d\.\d s: .*{cause}", look), look


async def test_wrong_password_is_one_clear_line_without_the_password(command, redis_server):
    await redis_server.query("CONFIG", "SET", "requirepass", "right")
    url = f"redis://:wr0ng@127.0.0.1:{redis_server.port}"
    code, out, err = await command("watch", url, "--count", "1")
    assert (code, err) == (1, "")
    assert re.search(r": down for \d\.\d s: .*(WRONGPASS|password)", out)
    assert "wr0ng" not in out


async def test_lookup_that_hangs_does_not_delay_the_end(program, slack):
    arguments = ["watch", "redis://slow.example", "--timeout", "0.3", "--interval", "0.2"]
    async with program(HANGING_RESOLVER.format(arguments=arguments)) as running:
        await running.until("down for")
        assert await end_of(running, slack) == 1
    assert "answered 0.00%" in running.shown


async def test_all_nodes_of_a_cluster_are_watched_through_one(command, shared_redis_cluster):
    url = url_of(shared_redis_cluster.nodes[0])
    code, out, err = await command("watch", url, "--count", "2", "--interval", "0.3")
    assert (code, err) == (0, "")
    assert "; 16,384 of 16,384 slots, 3 masters, 0 replicas" in out


async def test_failover_is_shown_for_a_url_with_sentinels(piped, slack):
    async with SentinelSetup(down_after=0.5) as setup:
        servers = ",".join(f"{host}:{port}" for host, port in setup.addresses)
        url = f"redis+sentinel://{servers}/{setup.name}"
        async with piped("watch", url, "--interval", "0.2") as running:
            await running.until(f"master 127.0.0.1:{setup.nodes[0].port}, 2 replicas")
            new = await setup.fail_over()
            await running.until(f"master 127.0.0.1:{new.port}")
            await running.until("1 failover (latest")
            await end_of(running, slack)
    assert "up -> degraded" in running.shown
