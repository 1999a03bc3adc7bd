"""The flight recorder: what it remembers, and when it writes itself out."""

import asyncio
import json

import pytest

from resilient_io import Cause, ConfigurationError, Dependency, FlightRecorder, HealthMonitor


def lines_of(text):
    return [json.loads(line) for line in text.splitlines()]


async def test_events_are_told_with_their_age_and_fields():
    recorder = FlightRecorder()
    recorder.note("redis", "retry scheduled", command="GET", attempt=2)
    await asyncio.sleep(3)
    recorder.note("kafka", "instance replaced")
    assert recorder.events() == [
        {"ago": 3.0, "source": "redis", "event": "retry scheduled", "command": "GET", "attempt": 2},
        {"ago": 0.0, "source": "kafka", "event": "instance replaced"},
    ]
    assert [event["source"] for event in recorder.events(last=1)] == ["kafka"]
    assert recorder.events(last=0) == []


async def test_what_repeats_at_once_is_counted_and_pushes_nothing_out():
    recorder = FlightRecorder(capacity=4)
    recorder.note("redis", "the beginning")
    for _ in range(1000):
        recorder.note("redis", "call failed", cause="timed out")
        recorder.note("kafka", "call failed", cause="refused")
        await asyncio.sleep(0.01)
    beginning, redis, kafka = recorder.events()
    assert beginning["event"] == "the beginning"
    assert redis["times"] == kafka["times"] == 1000
    assert redis["for"] == pytest.approx(9.99)


async def test_what_repeats_later_or_differs_is_another_event():
    recorder = FlightRecorder()
    recorder.note("redis", "call failed", cause="timed out")
    recorder.note("redis", "call failed", cause="refused")
    await asyncio.sleep(1.5)
    recorder.note("redis", "call failed", cause="refused")
    assert len(recorder.events()) == 3


async def test_memory_is_fixed():
    recorder = FlightRecorder(capacity=8)
    for number in range(1000):
        recorder.note(f"source {number}", "something")
    assert [event["source"] for event in recorder.events()] == [
        f"source {number}" for number in range(992, 1000)
    ]
    assert len(recorder._newest) <= 16


async def test_an_event_that_was_pushed_out_is_not_counted_any_further():
    recorder = FlightRecorder(capacity=2)
    for event in ("a", "b", "c", "a"):
        recorder.note("redis", event)
    assert [event["event"] for event in recorder.events()] == ["c", "a"]


async def test_without_a_sink_a_dump_goes_to_standard_error(capsys):
    recorder = FlightRecorder()
    recorder.note("redis", "call failed", cause="refused")
    assert recorder.dump("asked") == 1
    head, event = lines_of(capsys.readouterr().err)
    assert (head["dump"], head["events"]) == ("asked", 1)
    assert (event["source"], event["event"], event["cause"]) == ("redis", "call failed", "refused")
    assert head["at"].endswith("Z")
    assert "ago" not in event


async def test_a_dump_is_appended_to_a_file(tmp_path):
    path = tmp_path / "flight.jsonl"
    recorder = FlightRecorder(sink=str(path))
    recorder.note("redis", "first")
    recorder.dump("once")
    await recorder.aclose()
    recorder.note("redis", "second")
    recorder.dump("twice")
    await recorder.aclose()
    assert [line.get("dump") or line["event"] for line in lines_of(path.read_text())] == [
        "once",
        "first",
        "twice",
        "first",
        "second",
    ]


def test_a_dump_outside_of_any_loop_is_written_too(tmp_path):
    path = tmp_path / "flight.jsonl"
    recorder = FlightRecorder(sink=path)
    assert recorder.dump("nothing happened yet") == 0
    assert lines_of(path.read_text())[0]["dump"] == "nothing happened yet"


async def test_a_dependency_that_goes_down_makes_it_dump_at_most_every_ten_seconds():
    lines = []
    dependency = Dependency("redis")
    async with HealthMonitor(dependency, recorder=FlightRecorder(sink=lines.append)):
        for _ in range(3):
            dependency.failed(Cause.REFUSED, "nobody listens", definite=True)
            await asyncio.sleep(0.5)
            for _ in range(20):
                dependency.succeeded()
                await asyncio.sleep(0.1)
        dumps = [json.loads(line)["dump"] for line in lines if '"dump"' in line]
        assert dumps == ["redis is down"]
        events = [json.loads(line).get("event") for line in lines]
        assert events == [None, "call failed", "state changed"]
        await asyncio.sleep(10)
        dependency.failed(Cause.REFUSED, definite=True)
        assert sum('"dump"' in line for line in lines) == 2


async def test_without_a_sink_nothing_is_dumped_by_itself(capsys):
    dependency = Dependency("redis")
    async with HealthMonitor(dependency):
        dependency.failed(Cause.REFUSED, definite=True)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("kind", ["file", "function"])
async def test_a_sink_that_fails_is_told_once_and_harms_nobody(tmp_path, caplog, kind):
    sink = tmp_path / "no" / "folder" if kind == "file" else lambda line: 1 / 0
    recorder = FlightRecorder(sink=sink)
    for _ in range(3):
        recorder.note("redis", "call failed")
        recorder.dump("asked")
        await recorder.aclose()
    complaints = [record for record in caplog.records if "could not be written" in record.message]
    assert len(complaints) == 1


async def test_the_first_monitor_gives_its_recorder_to_a_dependency():
    dependency = Dependency("redis")
    dependency.note("unheard")
    async with HealthMonitor(dependency) as first, HealthMonitor(dependency) as second:
        dependency.note("heard", part="lane 1")
        assert [event["event"] for event in first.recorder.events()] == ["heard"]
        assert second.recorder.events() == []


@pytest.mark.parametrize("arguments", [{"capacity": 0}, {"sink": 3}])
def test_what_makes_no_sense_is_refused(arguments):
    with pytest.raises(ConfigurationError):
        FlightRecorder(**arguments)
