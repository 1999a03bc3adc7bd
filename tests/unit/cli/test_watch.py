"""`watch` on virtual time: what it shows, when, and with which code it ends."""

import asyncio
import contextlib
import io
import json
import re

import pytest
from rich.console import Console

from resilient_io import Cause, ConfigurationError
from resilient_io.cli.running import Interruption
from resilient_io.cli.vantage import Watched, name_of, vantages
from resilient_io.cli.watch import JsonShow, LineShow, watched
from resilient_io.cli.watch_table import TableShow
from resilient_io.health import ProbeDegraded, ProbeFailed
from resilient_io.testing import cancel_everywhere


class Place:
    """A dependency whose probe does what the test says."""

    def __init__(self, name="redis", interval=1.0):
        self.health = Watched(name, interval=interval, timeout=1.0)
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
async def watching(place, show, *, interval=1.0, count=None):
    stop = Interruption()
    task = asyncio.create_task(watched([place], show, stop, interval=interval, count=count))
    yield task, stop
    assert task.done()


def events(text):
    return [json.loads(line) for line in text.splitlines()]


async def test_it_looks_once_in_each_interval_and_sums_up(capsys):
    place = Place()
    async with watching(place, JsonShow(), count=3) as (task, _):
        began = asyncio.get_running_loop().time()
        assert await task == 0
        assert asyncio.get_running_loop().time() - began == pytest.approx(2.0, abs=0.1)
    told = events(capsys.readouterr().out)
    assert [each["event"] for each in told] == ["change", "look", "look", "look", "summary"]
    assert told[1]["latency"] == 0.002
    assert told[-1]["availability"] == 1.0
    assert told[-1]["answers"] == 2  # each a little later than the look
    assert place.closed


async def test_an_outage_is_told_when_it_happens_and_counted(capsys):
    place = Place()
    async with watching(place, JsonShow()) as (task, stop):
        await asyncio.sleep(3.5)
        place.fault = refused()
        await asyncio.sleep(5.0)
        place.fault = None
        await asyncio.sleep(3.5)
        stop.set()
        assert await task == 1
    told = events(capsys.readouterr().out)
    changes = [(each["previous"], each["state"]) for each in told if each["event"] == "change"]
    assert changes == [("unknown", "up"), ("up", "down"), ("down", "up")]
    down = [each for each in told if each["event"] == "look" and each["state"] == "down"]
    assert len(down) in (4, 5)
    assert down[0]["detail"] == "Connection refused"
    assert down[0]["latency"] is None
    summary = told[-1]
    assert summary["outages"] == 1
    assert summary["seconds"]["down"] == pytest.approx(5.0, abs=1.1)
    assert summary["last_outage"] == "refused: Connection refused"


async def test_one_that_is_never_heard_from_makes_the_code_a_problem(capsys):
    place = Place()
    place.fault = "silent"
    async with watching(place, LineShow(), count=1) as (task, _):
        assert await task == 1
    shown = capsys.readouterr().out
    assert "redis: down for 0.0 s: timed out: no answer within 1 s\n" in shown
    assert "answered 0.00%" in shown


async def test_lines_tell_states_transitions_and_the_summary(capsys):
    place = Place()
    async with watching(place, LineShow()) as (task, stop):
        await asyncio.sleep(1.5)
        place.fault = ProbeDegraded(Cause.READ_ONLY, "it is a replica", latency=0.001)
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


async def test_an_interruption_before_the_first_answer_ends_it_with_a_summary(capsys):
    place = Place()
    place.fault = "silent"
    async with watching(place, LineShow()) as (task, stop):
        await asyncio.sleep(0.5)
        stop.set()
        assert await task == 1
    assert capsys.readouterr().out == "---\nredis: nothing was heard\n"


async def test_who_ends_it_does_not_wait_for_connections_that_do_not_close(capsys):
    place = Place()
    place.stubborn = True
    async with watching(place, LineShow()) as (task, stop):
        await asyncio.sleep(1.5)
        stop.set()
        await asyncio.sleep(0.1)
        assert capsys.readouterr().out.splitlines()[-2] == "---"
        assert not task.done()
        await asyncio.sleep(0.2)
        assert task.done()
    assert await task == 0


async def test_cancelling_it_closes_what_it_opened():
    place = Place()
    async with watching(place, LineShow()) as (task, _):
        await asyncio.sleep(1.5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert place.closed


async def test_it_can_be_cancelled_at_every_point_and_leaves_nothing_open():
    @contextlib.asynccontextmanager
    async def place():
        yield Place()

    async def closed(place):
        await asyncio.sleep(0.1)  # cancelled while it closes, the closing goes on
        assert place.closed or not place.opened

    report = await cancel_everywhere(
        lambda place: watched([place], LineShow(), Interruption(), interval=1.0, count=3),
        setup=place,
        check=closed,
        within=0.3,
    )
    assert report.complete
    assert report.points > 5
    report.assert_clean()


async def test_the_table_shows_each_state_in_words_and_the_latest_transitions():
    out = io.StringIO()
    place = Place(name="redis [cache]/0")  # not to be read as markup
    console = Console(file=out, width=120, force_terminal=True, color_system=None, markup=False)
    async with watching(place, TableShow(console)) as (task, stop):
        await asyncio.sleep(1.5)
        place.fault = refused()
        await asyncio.sleep(3.0)
        drawn = out.getvalue()
        stop.set()
        await task
    last = drawn.rpartition("Ctrl-C ends it")[2]
    row = next(line for line in last.splitlines() if "redis [cache]/0" in line)
    assert "down" in row
    assert "refused: Connection refused" in row
    assert re.search(r"\d\d:\d\d:\d\d redis \[cache\]/0: down after 2.0 s up: refused", last)
    summary = out.getvalue().rpartition("redis [cache]/0: ")[2]
    assert re.match(r"answered 4\d\.\d\d% of 4\.5 s; down once, 2\.5 s", summary)


async def test_the_table_knows_availability_while_nothing_changes():
    out = io.StringIO()
    place = Place()
    console = Console(file=out, width=120, force_terminal=True, color_system=None)
    async with watching(place, TableShow(console), count=3) as (task, _):
        await task
    assert "100.00%" in out.getvalue()


async def test_an_interruption_cancels_what_it_is_waited_for_with():
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


async def test_what_fails_before_the_interruption_is_raised():
    async def work():
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        await Interruption().before(work())
    assert await Interruption().before(asyncio.sleep(0.0)) is False


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("redis://user:s3cret@cache:6380/2", "redis cache:6380/2"),
        ("rediss://cache", "redis cache:6379/0"),
        ("unix:///run/redis.sock?db=1", "redis unix:///run/redis.sock"),
        ("kafka://user:s3cret@a:9092,b:9093", "kafka a:9092,b:9093"),
    ],
)
def test_a_server_is_called_by_its_address_and_never_by_its_login(url, name):
    assert name_of(url) == name


@pytest.mark.parametrize(
    "url",
    ["", "cache:6379", "http://cache", "redis://cache:s3cret", "kafka://:s3cret@", "kafka://"],
)
def test_a_url_that_names_no_server_is_refused_without_being_quoted(url):
    with pytest.raises(ConfigurationError) as refused:
        vantages([url], interval=1.0, timeout=1.0)
    assert "s3cret" not in str(refused.value)
    assert "write" in str(refused.value)


def test_a_server_is_watched_once():
    with pytest.raises(ConfigurationError, match="redis cache:6379/0 is named twice"):
        vantages(["redis://cache", "redis://:s3cret@cache"], interval=1.0, timeout=1.0)


def test_probes_while_it_is_down_are_never_further_apart_than_the_interval():
    assert Watched("a", interval=0.1, timeout=1.0).settings.reconnect_interval_cap == pytest.approx(
        0.15, abs=0.06
    )
    assert Watched("a", interval=60.0, timeout=1.0).settings.reconnect_interval_cap == 2.0
