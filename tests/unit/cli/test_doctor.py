"""How the doctor's steps are shown; what they find is tested with the doctor."""

import asyncio
import io
import json

import pytest
from rich.console import Console

from resilient_io import ConfigurationError
from resilient_io.cli.doctor import Examination, JsonReport, LineReport, TableReport, examined, plan
from resilient_io.cli.running import Interruption
from resilient_io.doctor import Status, Step

OK = Step(name="name", status=Status.OK, seconds=0.0012, found="cache is 10.0.0.3")
NOTE = Step(name="server", status=Status.NOTE, seconds=0.1, found="young", advice="Look why.")
PROBLEM = Step(
    name="TCP",
    status=Status.PROBLEM,
    seconds=1.5,
    found="nobody answers at [10.0.0.3]:6379",
    advice="Look at the network policy.",
    data={"port": 6379},
)
BLIND = Step(name="login", status=Status.BLIND, seconds=0.0, found="not asked")


def look(*steps, name="redis cache:6379/0", then=None):
    async def found():
        for step in steps:
            yield step
        if then is not None:
            await then.wait()

    return Examination(name=name, steps=found())


async def shown_as_lines(capsys, *examinations):
    code = await examined(examinations, LineReport(), Interruption())
    return code, capsys.readouterr().out


async def test_lines_show_each_step_its_time_and_what_to_do(capsys):
    code, shown = await shown_as_lines(capsys, look(OK, PROBLEM), look(NOTE, name="this process"))
    assert shown.splitlines() == [
        "redis cache:6379/0",
        "  ok       name            1.2 ms  cache is 10.0.0.3",
        "  PROBLEM  TCP             1.50 s  nobody answers at [10.0.0.3]:6379",
        "           -> Look at the network policy.",
        "this process",
        "  note     server        100.0 ms  young",
        "           -> Look why.",
        "1 problem, 1 note in 3 steps, 1.6 s",
    ]
    assert code == 1


@pytest.mark.parametrize(
    ("steps", "code", "said"),
    [
        ([OK], 0, "No problem in 1 step, 0.0 s"),
        ([NOTE, NOTE], 0, "No problem, 2 notes in 2 steps, 0.2 s"),
        ([OK, BLIND], 2, "No problem, 1 could not look in 2 steps, 0.0 s"),
        ([PROBLEM, BLIND, PROBLEM], 1, "2 problems, 1 could not look in 3 steps, 3.0 s"),
        ([], 0, "No problem in 0 steps, 0.0 s"),
    ],
)
async def test_the_summary_counts_and_the_code_follows(capsys, steps, code, said):
    found, shown = await shown_as_lines(capsys, look(*steps))
    assert found == code
    assert shown.splitlines()[-1] == said


async def test_a_terminal_shows_the_same_in_columns_and_keeps_brackets():
    out = io.StringIO()
    console = Console(file=out, width=80, force_terminal=True, color_system=None, markup=False)
    await examined([look(OK, PROBLEM)], TableReport(console), Interruption())
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    assert lines[0] == "redis cache:6379/0"
    assert lines[1].split() == ["ok", "name", "1.2", "ms", "cache", "is", "10.0.0.3"]
    assert lines[2].split()[0] == "PROBLEM"
    assert "nobody answers at [10.0.0.3]:6379" in lines[2]
    assert lines[3] == "           -> Look at the network policy."


async def test_on_a_narrow_terminal_nothing_is_cut_off():
    out = io.StringIO()
    console = Console(file=out, width=60, force_terminal=True, color_system=None, markup=False)
    await examined([look(PROBLEM)], TableReport(console), Interruption())
    said = "".join(line[36:].strip() for line in out.getvalue().splitlines()[1:3])
    assert said.replace(" ", "") == "nobodyanswersat[10.0.0.3]:6379"


async def test_json_has_a_line_for_each_step_and_one_for_the_summary(capsys):
    await examined([look(OK, PROBLEM)], JsonReport(), Interruption())
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["event"] for line in lines] == ["step", "step", "summary"]
    assert lines[1]["of"] == "redis cache:6379/0"
    assert lines[1]["data"] == {"port": 6379}
    assert lines[2]["steps"] == {"ok": 1, "note": 0, "problem": 1, "blind": 0}
    assert lines[2]["interrupted"] is False


async def test_an_interruption_ends_it_at_once_with_what_was_found(capsys):
    never = asyncio.Event()
    stop = Interruption()
    examinations = [look(OK, NOTE, then=never), look(PROBLEM, name="never begun")]
    task = asyncio.create_task(examined(examinations, LineReport(), stop))
    await asyncio.sleep(1.0)
    stop.set()
    await asyncio.sleep(0.01)
    assert task.done()
    assert await task == 130
    shown = capsys.readouterr().out
    assert shown.splitlines()[-1] == "Interrupted: no problem, 1 note in 2 steps, 0.1 s"
    assert "never begun" not in shown


def test_a_group_is_asked_of_kafka_only():
    with pytest.raises(ConfigurationError, match="write a kafka:// URL"):
        plan(
            ["redis://cache"],
            ["redis cache:6379/0"],
            timeout=5.0,
            group="orders",
            topics=[],
            with_ground=False,
        )


def test_our_own_ground_comes_last():
    planned = plan(
        ["redis://cache", "kafka://broker"],
        ["redis cache", "kafka broker"],
        timeout=5.0,
        group="orders",
        topics=[],
        with_ground=True,
    )
    assert [each.name for each in planned] == ["redis cache", "kafka broker", "this process"]
