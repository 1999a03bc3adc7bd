"""`watch` on virtual time: what it shows, when, and its exit code."""

import asyncio
import contextlib
import io
import json
import re

import pytest
from rich.console import Console

from resilient_io import Cause
from resilient_io.cli.terminal import Interruption
from resilient_io.cli.watch import (
    JsonDisplay,
    LineDisplay,
    TableDisplay,
    WatchedDependency,
    watch,
    watch_targets,
)
from resilient_io.health import ProbeDegraded, ProbeFailed, Topology, TopologyServer
from resilient_io.testing import cancel_everywhere


class Server:
    """A dependency whose probe does what the test says."""

    def __init__(self, name="redis", interval=1.0):
        self.health = WatchedDependency(name, interval=interval, timeout=1.0)
        self.fault = None
        self.opened = False
        self.closed = False
        self.stubborn = False

    async def probe(self, _suspicious):
        await asyncio.sleep(0.002)
        if isinstance(self.fault, Exception):
            raise self.fault
        if self.fault == "silent":
            await asyncio.sleep(3600.0)
        return 0.002

    async def open(self):
        self.opened = True
        self.health.start(self.probe, last_reply=lambda: float("-inf"))

    async def aclose(self):
        await self.health.aclose()
        if self.stubborn:
            await asyncio.sleep(3600.0)
        self.closed = True


def refused():
    return ProbeFailed(Cause.REFUSED, "Connection refused", definite=True)


@contextlib.asynccontextmanager
async def watching(server, display, *, interval=1.0, count=None):
    stop = Interruption()
    task = asyncio.create_task(watch([server], display, stop, interval=interval, count=count))
    yield task, stop
    assert task.done()


def events(text):
    return [json.loads(line) for line in text.splitlines()]


async def test_watch_shows_each_server_once_per_interval_and_sums_up(capsys):
    server = Server()
    async with watching(server, JsonDisplay(), count=3) as (task, _):
        began = asyncio.get_running_loop().time()
        assert await task == 0
        assert asyncio.get_running_loop().time() - began == pytest.approx(2.0, abs=0.1)
    printed = events(capsys.readouterr().out)
    assert [each["event"] for each in printed] == ["change", "look", "look", "look", "summary"]
    assert printed[1]["latency"] == 0.002
    assert printed[-1]["availability"] == 1.0
    assert printed[-1]["answers"] == 3  # each on the beat before the look
    assert server.closed


async def test_outage_is_shown_when_it_happens_and_counted(capsys):
    server = Server()
    async with watching(server, JsonDisplay()) as (task, stop):
        await asyncio.sleep(3.5)
        server.fault = refused()
        await asyncio.sleep(5.0)
        server.fault = None
        await asyncio.sleep(3.5)
        stop.set()
        assert await task == 1
    printed = events(capsys.readouterr().out)
    changes = [(each["previous"], each["state"]) for each in printed if each["event"] == "change"]
    assert changes == [("unknown", "up"), ("up", "down"), ("down", "up")]
    down = [each for each in printed if each["event"] == "look" and each["state"] == "down"]
    assert len(down) in (4, 5)
    assert down[0]["detail"] == "Connection refused"
    assert down[0]["latency"] is None
    summary = printed[-1]
    assert summary["outages"] == 1
    assert summary["seconds"]["down"] == pytest.approx(5.0, abs=1.1)
    assert summary["last_outage"] == "Connection refused"


async def test_server_that_never_answers_makes_the_exit_code_1(capsys):
    server = Server()
    server.fault = "silent"
    async with watching(server, LineDisplay(), count=1) as (task, _):
        assert await task == 1
    shown = capsys.readouterr().out
    assert "redis: down for 0.0 s: timed out: no answer within 1 s\n" in shown
    assert "answered 0.00%" in shown


async def test_lines_show_states_transitions_and_the_summary(capsys):
    server = Server()
    async with watching(server, LineDisplay()) as (task, stop):
        await asyncio.sleep(1.5)
        server.fault = ProbeDegraded(Cause.READ_ONLY, "it is a replica", latency=0.001)
        await asyncio.sleep(2.0)
        stop.set()
        assert await task == 0
    shown = re.sub(r"\d\d:\d\d:\d\d", "TIME", capsys.readouterr().out)
    assert shown.splitlines()[:2] == ["TIME redis: up 2.00 ms", "TIME redis: up 2.00 ms"]
    assert re.search(
        r"^TIME redis: up -> degraded after 2.0 s: read-only: it is a replica$", shown, re.MULTILINE
    )
    assert re.search(r"^TIME redis: degraded for 1.0 s: read-only", shown, re.MULTILINE)
    assert shown.splitlines()[-2] == "---"
    assert shown.splitlines()[-1].startswith("redis: answered 100.00% of 3.5 s; degraded for ")


async def test_interruption_before_the_first_answer_ends_with_a_summary(capsys):
    server = Server()
    server.fault = "silent"
    async with watching(server, LineDisplay()) as (task, stop):
        await asyncio.sleep(0.5)
        stop.set()
        assert await task == 1
    assert capsys.readouterr().out == "---\nredis: no answer, state unknown for 0.5 s\n"


async def test_interruption_does_not_wait_for_connections_that_do_not_close(capsys):
    server = Server()
    server.stubborn = True
    async with watching(server, LineDisplay()) as (task, stop):
        await asyncio.sleep(1.5)
        stop.set()
        await asyncio.sleep(0.1)
        assert capsys.readouterr().out.splitlines()[-2] == "---"
        assert not task.done()
        await asyncio.sleep(0.2)
        assert task.done()
    assert await task == 0


async def test_cancelling_closes_the_servers():
    server = Server()
    async with watching(server, LineDisplay()) as (task, _):
        await asyncio.sleep(1.5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert server.closed


async def test_watch_can_be_cancelled_everywhere():
    @contextlib.asynccontextmanager
    async def server():
        yield Server()

    async def closed(server):
        await asyncio.sleep(0.1)  # cancelled while it closes, the closing goes on
        assert server.closed or not server.opened

    report = await cancel_everywhere(
        lambda server: watch([server], LineDisplay(), Interruption(), interval=1.0, count=3),
        setup=server,
        check=closed,
        within=0.3,
    )
    assert report.complete
    assert report.points > 5
    report.assert_clean()


async def test_table_shows_states_in_words_and_transitions_above_it():
    out = io.StringIO()
    server = Server(name="redis [cache]/0")  # not to be read as markup
    console = Console(file=out, width=120, force_terminal=True, color_system=None, markup=False)
    async with watching(server, TableDisplay(console)) as (task, stop):
        await asyncio.sleep(1.5)
        server.fault = refused()
        await asyncio.sleep(3.0)
        drawn = out.getvalue()
        stop.set()
        await task
    last = drawn.rpartition("Press Ctrl-C to end")[2]
    row = next(line for line in last.splitlines() if "redis [cache]/0" in line)
    assert "down" in row
    assert "Connection refused" in row
    assert re.search(
        r"\d\d:\d\d:\d\d redis \[cache\]/0: up -> down after 2.0 s: Connection refused", drawn
    )
    summary = out.getvalue().rpartition("redis [cache]/0: ")[2]
    assert re.match(r"answered 4\d\.\d\d% of 4\.5 s; down once, 2\.5 s", summary)


async def test_table_shows_availability_while_nothing_changes():
    out = io.StringIO()
    server = Server()
    console = Console(file=out, width=120, force_terminal=True, color_system=None)
    async with watching(server, TableDisplay(console), count=3) as (task, _):
        await task
    assert "100.00%" in out.getvalue()


async def test_interruption_cancels_the_coroutine():
    stop = Interruption()
    ended = asyncio.Event()

    async def work():
        try:
            await asyncio.sleep(3600.0)
        finally:
            ended.set()

    task = asyncio.create_task(stop.before(work()))
    await asyncio.sleep(1.0)
    stop.set()
    assert await task is True
    assert ended.is_set()


async def test_exception_before_the_interruption_is_raised():
    async def work():
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        await Interruption().before(work())
    assert await Interruption().before(asyncio.sleep(0.0)) is False


def test_targets_are_made_for_each_kind_of_server():
    servers = {"redis a": "redis://a", "kafka b": "kafka://b"}
    targets = watch_targets(servers, interval=1.0, timeout=1.0)
    assert [target.health.name for target in targets] == ["redis a", "kafka b"]


def test_probes_of_a_server_that_is_down_keep_to_the_interval():
    assert WatchedDependency(
        "a", interval=0.1, timeout=1.0
    ).settings.reconnect_interval_cap == pytest.approx(0.15, abs=0.06)
    assert WatchedDependency("a", interval=60.0, timeout=1.0).settings.reconnect_interval_cap == 2.0


async def test_unknown_state_is_shown_until_the_first_answer_and_summed_up(capsys):
    server = Server()
    server.fault = "silent"
    async with watching(server, LineDisplay(), interval=0.3) as (task, stop):
        await asyncio.sleep(1.0)
        stop.set()
        assert await task == 1
    lines = [line.partition(" ")[2] for line in capsys.readouterr().out.splitlines()[:3]]
    assert lines == [f"redis: unknown for {seconds} s" for seconds in ("0.3", "0.6", "0.9")]


async def test_unknown_time_before_the_first_answer_is_in_the_summary(capsys):
    server = Server()
    server.fault = "silent"
    async with watching(server, LineDisplay(), count=2) as (task, _):
        await asyncio.sleep(0.5)
        server.fault = None
        await task
    summary = capsys.readouterr().out.splitlines()[-1]
    assert re.search(r"^redis: answered \d+\.\d\d% of .* s; state unknown for \d\.\d s; ", summary)


@pytest.mark.parametrize("display", [LineDisplay, JsonDisplay])
async def test_watch_shows_the_servers_behind_a_dependency(capsys, display):
    server = Server()
    known = TopologyServer(address="10.0.0.1:6379", role="master", state="up")

    async def open_it():
        server.health.start(
            server.probe,
            last_reply=lambda: float("-inf"),
            topology=lambda: Topology(servers=(known,), sentinels=3, sentinels_reached=3),
        )

    server.open = open_it
    async with watching(server, display(), count=1) as (task, _):
        assert await task == 0
    printed = capsys.readouterr().out
    if display is JsonDisplay:
        (look,) = [each for each in events(printed) if each["event"] == "look"]
        assert look["topology"]["servers"][0]["address"] == "10.0.0.1:6379"
    else:
        assert "up 2.00 ms; master 10.0.0.1:6379, 0 replicas" in printed


async def test_table_has_a_column_for_servers_only_if_there_are_several():
    server = Server()
    console = Console(file=io.StringIO(), force_terminal=True, width=200)
    display = TableDisplay(console)
    async with watching(server, display, count=1) as (task, _):
        await task
    assert "servers" not in console.file.getvalue()
