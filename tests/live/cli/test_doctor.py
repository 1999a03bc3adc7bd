"""`resilient-io doctor` as a process: codes, lines, JSON, Ctrl-C; not what it finds."""

import json
import time

HANGING_RESOLVER = """\
import socket, sys, time
socket.getaddrinfo = lambda *arguments, **options: time.sleep(60)
from resilient_io.cli.entry import main
sys.exit(main({arguments!r}))
"""


async def test_it_examines_redis_and_what_the_process_stands_on(command, redis_server):
    code, out, err = await command("doctor", f"redis://127.0.0.1:{redis_server.port}")
    assert err == ""
    assert code in (0, 1), out  # 1 where the machine itself has a problem
    lines = out.splitlines()
    assert lines[0] == f"redis 127.0.0.1:{redis_server.port}/0"
    assert "this process" in lines
    of_redis = lines[1 : lines.index("this process")]
    steps = [line.split()[0] for line in of_redis if not line.lstrip().startswith("->")]
    assert {*steps} <= {"ok", "note"}
    assert len(steps) > 4
    assert " steps, " in lines[-1]


async def test_a_problem_is_code_1_with_what_to_do_and_no_secret(command, redis_server):
    await redis_server.query("CONFIG", "SET", "requirepass", "right")
    url = f"redis://:wr0ng@127.0.0.1:{redis_server.port}"
    code, out, err = await command("doctor", url, "--no-ground", "--json")
    assert (code, err) == (1, "")
    told = [json.loads(line) for line in out.splitlines()]
    problem = next(each for each in told if each.get("status") == "problem")
    assert problem["of"] == f"redis 127.0.0.1:{redis_server.port}/0"
    assert problem["advice"]
    assert told[-1]["event"] == "summary"
    assert told[-1]["steps"]["problem"] == 1
    assert "wr0ng" not in out


async def test_kafka_is_examined_with_its_group_and_redis_beside_it(
    command, redis_server, shared_kafka
):
    urls = [f"redis://127.0.0.1:{redis_server.port}", f"kafka://{shared_kafka.bootstrap_servers}"]
    code, out, err = await command(
        "doctor", *urls, "--no-ground", "--json", "--group", "cli-doctor"
    )
    assert err == ""
    assert code in (0, 1, 2), out
    told = [json.loads(line) for line in out.splitlines()]
    of_kafka = [each for each in told if each.get("of", "").startswith("kafka ")]
    assert len(of_kafka) > 3
    assert any("cli-doctor" in json.dumps(each) for each in of_kafka)


async def test_ctrl_c_ends_it_at_once_with_what_was_found(terminal, silent_server, slack):
    url = f"redis://127.0.0.1:{silent_server}"
    async with terminal("doctor", url, "--timeout", "30") as running:
        await running.until("TCP")
        before = time.monotonic()
        running.interrupt()
        assert await running.ended() == 130
        assert time.monotonic() - before < 0.5 + slack(0.25)
    assert "Interrupted: " in running.shown
    assert "Traceback" not in running.shown


async def test_a_resolver_that_hangs_does_not_keep_it_beyond_its_timeout(program, slack):
    arguments = ["doctor", "redis://slow.example", "--no-ground", "--timeout", "1"]
    async with program(HANGING_RESOLVER.format(arguments=arguments)) as running:
        await running.until("redis slow.example:6379/0")
        before = time.monotonic()
        code = await running.ended()
        assert time.monotonic() - before < 1.5 + slack(0.25)
    assert code in (1, 2)
    assert "Traceback" not in running.shown
