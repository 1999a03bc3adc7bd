"""`resilient-io doctor` as a process: exit codes, lines, JSON, Ctrl-C."""

import json
import re
import time

HANGING_RESOLVER = """\
import socket, sys, time
socket.getaddrinfo = lambda *arguments, **options: time.sleep(60)
from resilient_io.cli.__main__ import main
sys.exit(main({arguments!r}))
"""


async def test_redis_and_the_host_are_examined(command, redis_server):
    code, out, err = await command("doctor", f"redis://127.0.0.1:{redis_server.port}")
    assert err == ""
    assert code in (0, 1, 2), out  # not 0 if the machine itself has a problem
    lines = out.splitlines()
    assert lines[0] == f"redis 127.0.0.1:{redis_server.port}/0"
    of_redis = lines[1 : lines.index("this host")]
    steps = [line.split()[:2] for line in of_redis if not line.lstrip().startswith("->")]
    assert steps == [
        ["ok", "name"],
        ["ok", "TCP"],
        ["ok", "login"],
        ["ok", "reply"],
        ["ok", "link"],
    ]
    assert re.search(r"^\d+ ok\b.* in \d+\.\d s$", lines[-1])


async def test_problem_exits_with_1_with_advice_and_no_secret(command, redis_server):
    await redis_server.query("CONFIG", "SET", "requirepass", "right")
    url = f"redis://:wr0ng@127.0.0.1:{redis_server.port}"
    code, out, err = await command(
        "doctor", "--url-env", "CACHE_URL", "--no-host", "--json", env={"CACHE_URL": url}
    )
    assert (code, err) == (1, "")
    lines = [json.loads(line) for line in out.splitlines()]
    problem = next(each for each in lines if each.get("status") == "problem")
    assert problem["of"] == f"redis 127.0.0.1:{redis_server.port}/0"
    assert problem["advice"]
    assert lines[-1]["event"] == "summary"
    assert lines[-1]["steps"]["problem"] == 1
    assert "wr0ng" not in out


async def test_kafka_is_examined_with_its_group_and_redis_without(
    command, redis_server, shared_kafka
):
    urls = [f"redis://127.0.0.1:{redis_server.port}", f"kafka://{shared_kafka.bootstrap_servers}"]
    code, out, err = await command("doctor", *urls, "--no-host", "--json", "--group", "cli-doctor")
    assert err == ""
    assert code in (0, 1, 2), out
    lines = [json.loads(line) for line in out.splitlines()]
    of_kafka = [each for each in lines if each.get("of", "").startswith("kafka ")]
    assert len(of_kafka) > 3
    assert any("cli-doctor" in json.dumps(each) for each in of_kafka)


async def test_password_is_asked_for_on_a_terminal_and_not_shown(terminal, redis_server):
    await redis_server.query("CONFIG", "SET", "requirepass", "r@ght")
    url = f"redis://127.0.0.1:{redis_server.port}"
    async with terminal("doctor", url, "--no-host", "--ask-password") as running:
        await running.until(f"Password for {url}: ")
        running.type("r@ght\n")
        assert await running.ended() == 0
    assert "logged in as default" in running.shown
    assert "r@ght" not in running.shown


async def test_ctrl_c_ends_the_command_with_a_summary(terminal, silent_server, slack):
    url = f"redis://127.0.0.1:{silent_server}"
    async with terminal("doctor", url, "--timeout", "30") as running:
        await running.until("TCP")
        before = time.monotonic()
        running.interrupt()
        assert await running.ended() == 130
        assert time.monotonic() - before < 0.5 + slack(0.25)
    assert "Interrupted: " in running.shown
    assert "Traceback" not in running.shown


async def test_lookup_that_hangs_does_not_delay_the_end(program, slack):
    arguments = ["doctor", "redis://slow.example", "--no-host", "--timeout", "1"]
    async with program(HANGING_RESOLVER.format(arguments=arguments)) as running:
        await running.until("redis slow.example:6379/0")
        before = time.monotonic()
        code = await running.ended()
        assert time.monotonic() - before < 1.5 + slack(0.25)
    assert code == 2
    assert "unknown  name" in running.shown
    assert "Traceback" not in running.shown
