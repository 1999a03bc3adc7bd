"""The demo of both Redis clients, with and without a terminal; its ledger can fail."""

import asyncio
import contextlib
import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time

import pytest

from demo import __main__ as command
from demo import redis_part
from demo.ledgers import WriteLedger
from demo.redis_part import OurClient, Run, Script, workload
from demo.timeline import Fault, Outcome
from resilient_io.testing import RedisServer
from tests.live.demo_report import ROOT, processes_of, row

DEMO = [sys.executable, "-m", "demo"]
TINY = Script(
    faults=(Fault(what="killed", before=0.2, lasts=0.1, after=0.3),),
    speed_round=0.02,
)
RUN_TINY = (
    "import sys\n"
    "from demo import __main__ as command, redis_part\n"
    "from demo.redis_part import Script\n"
    "from demo.timeline import Fault\n"
    f"redis_part.QUICK = {TINY!r}\n"
    "sys.exit(command.main(['--quick', '--only', 'redis']))\n"
)


def test_demo_prints_plain_lines_without_a_terminal_and_balances(tmp_path):
    shown = subprocess.run(
        [*DEMO, "--quick", "--only", "redis"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )
    output = shown.stdout
    assert shown.stderr == ""
    assert shown.returncode == 0, output
    assert "\x1b" not in output
    assert "Traceback" not in output
    assert re.match(r"Server: (Redis|Valkey) \d+\.\d+\.\d+ \(.+\)\n", output)
    assert max(map(len, output.splitlines()[1:])) <= 80
    assert "published: redis is DOWN" in output
    acknowledged, found = row(output, "acknowledged"), row(output, "found in the server")
    unknown = row(output, "unknown (maybe done)")
    assert min(acknowledged) > 100
    assert acknowledged[1] <= found[1] <= acknowledged[1] + unknown[1]
    # Eight replies are lost: redis-py repeats these writes, ResilientRedis reports them.
    assert row(output, "repeated (done more than once)")[0] >= 8
    assert row(output, "repeated (done more than once)")[1] == 0
    assert unknown[1] >= 8
    assert row(output, "lost (acknowledged, not found)") == [0, 0]
    assert row(output, "reported as not done, but found")[1] == 0
    assert output.endswith("The ledger of ResilientRedis balances.\n")
    assert list(tmp_path.iterdir()) == []


async def ledger_of_a_run(server):
    """Return the ledger of `ResilientRedis` after a moment of load."""
    client = OurClient(server.port, None)
    ledger = WriteLedger("test")
    run = Run(client, ledger, 0.3, lambda event: None)
    try:
        async with workload(run):
            await asyncio.sleep(0.3)
    finally:
        await client.client.aclose()
    return ledger


async def test_ledger_finds_repeated_lost_contradicted_and_foreign_writes(redis_server):
    ledger = await ledger_of_a_run(redis_server)
    query = redis_server.query
    good = await ledger.audit(redis_server)
    assert good.balanced
    assert good.acknowledged == good.found == good.writes > 20
    pushed = (await query("LRANGE", ledger.pushes, 0, 0))[0]

    await query("RPUSH", ledger.pushes, pushed)
    await query("HINCRBY", ledger.increments, "increment-0-1", 1)
    audit = await ledger.audit(redis_server)
    assert not audit.balanced
    assert (audit.repeated, audit.lost, audit.found) == (2, 0, good.found)

    await query("LREM", ledger.pushes, 0, pushed)
    await query("HDEL", ledger.increments, "increment-0-1")
    audit = await ledger.audit(redis_server)
    assert not audit.balanced
    assert (audit.repeated, audit.lost, audit.found) == (0, 2, good.found - 2)

    await query("RPUSH", ledger.pushes, pushed)
    await query("HINCRBY", ledger.increments, "increment-0-1", 1)
    assert (await ledger.audit(redis_server)).balanced

    await query("RPUSH", ledger.pushes, "foreign")
    audit = await ledger.audit(redis_server)
    assert not audit.balanced
    assert audit.foreign == 1
    await query("LREM", ledger.pushes, 0, "foreign")

    ledger.outcomes["increment-0-1"] = Outcome.NOT_DONE
    audit = await ledger.audit(redis_server)
    assert not audit.balanced
    assert audit.contradicted == 1

    ledger.outcomes["increment-0-1"] = Outcome.UNKNOWN
    assert (await ledger.audit(redis_server)).balanced
    await query("HDEL", ledger.increments, "increment-0-1")
    assert (await ledger.audit(redis_server)).balanced


@pytest.mark.parametrize("plant", ["nothing", "a duplicate", "a loss"])
def test_exit_code_follows_the_ledger_of_resilient_redis(monkeypatch, capsys, plant):
    class Planted(WriteLedger):
        async def audit(self, server):
            if plant == "a duplicate" and "resilient" in self.pushes:
                await server.query("HINCRBY", self.increments, "increment-0-1", 1)
            if plant == "a loss" and "resilient" in self.pushes:
                await server.query("HDEL", self.increments, "increment-0-1")
            if "plain" in self.pushes:
                await server.query("HINCRBY", self.increments, "increment-0-1", 1)
            return await super().audit(server)

    monkeypatch.setattr(redis_part, "QUICK", TINY)
    monkeypatch.setattr(redis_part, "WriteLedger", Planted)
    code = command.main(["--quick", "--only", "redis"])
    output = capsys.readouterr().out
    repeated = row(output, "repeated (done more than once)")
    assert repeated[0] >= 1
    assert repeated[1] == int(plant == "a duplicate")
    assert code == (0 if plant == "nothing" else 1)
    assert ("DOES NOT BALANCE" in output) == (plant != "nothing")


@pytest.mark.parametrize("color", [True, False])
def test_terminal_is_redrawn_in_place_and_no_color_is_respected(color):
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        environment = os.environ | {"TERM": "xterm", "NO_COLOR": "" if color else "1"}
        os.execve(sys.executable, [sys.executable, "-c", RUN_TINY], environment)  # noqa: S606 - this interpreter
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    output = b""
    with contextlib.suppress(OSError):  # the other side of the terminal is closed
        while read := os.read(terminal, 65536):
            output += read
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    text = output.decode()
    assert "Traceback" not in text
    heights = [run.count("\x1b[1A") for run in re.findall(r"(?:\x1b\[1A\x1b\[2K)+", text)]
    assert len(heights) > 5
    assert max(heights) <= 23
    assert bool(re.search(r"\x1b\[(?:\d;)?3\dm", text)) == color
    seen = re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "", text).replace("\r", "")
    assert max(len(line) for line in seen.split("\n") if "Server" not in line) <= 80
    assert "2 of 2: ResilientRedis" in seen
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")


@pytest.mark.parametrize("moment", ["redis-py", "ResilientRedis"])
def test_ctrl_c_ends_the_demo_and_leaves_nothing(tmp_path, moment):
    seconds = 30.0 if moment == "redis-py" else 2.0
    script = RUN_TINY.replace("'killed'", "'frozen'").replace("lasts=0.1", f"lasts={seconds}")
    # Tests that run in the background of a shell are started with Ctrl-C ignored.
    script = (
        f"import signal\nsignal.signal({signal.SIGINT:d}, signal.default_int_handler)\n{script}"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    ) as demo:
        part = ""
        for line in demo.stdout:
            part = line if " of 2: " in line else part
            if moment in part and "redis frozen" in line:
                break
        time.sleep(0.3)
        assert processes_of(tmp_path)
        began = time.monotonic()
        demo.send_signal(signal.SIGINT)
        output, errors = demo.communicate(timeout=20)
        assert time.monotonic() - began < 10  # redis-py would stay for 30 s
    assert demo.returncode == 130
    assert errors == ""
    assert "Interrupted" in output
    assert processes_of(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_missing_server_is_reported(monkeypatch, capsys):
    monkeypatch.setenv("RESILIENT_IO_REDIS_SERVER", "/no/such/server")
    assert command.main([]) == 2
    shown = capsys.readouterr()
    assert "needs servers" in shown.err
    assert "/no/such/server" in shown.err
    assert shown.out == ""


def test_closed_pipe_is_not_an_error():
    command_line = f'{sys.executable} -c "$SCRIPT" | head -1'
    shown = subprocess.run(
        ["/bin/sh", "-c", command_line],
        cwd=ROOT,
        env=os.environ | {"SCRIPT": RUN_TINY},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert shown.stdout.startswith("Server: ")
    assert shown.stderr == ""


async def test_server_keeps_what_it_acknowledged():
    async with RedisServer(persist=True) as server:
        ledger = await ledger_of_a_run(server)
        await server.restart()
        audit = await ledger.audit(server)
        assert audit.lost == 0
        assert audit.found >= audit.acknowledged > 20


def test_speed_line_fits_into_80_columns():
    assert len(redis_part.speed_line([99_999.4, 9_999_999.4])) <= 80
