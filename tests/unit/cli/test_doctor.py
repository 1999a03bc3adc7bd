"""How the steps of examinations are shown; what they find is tested with the doctor."""

import asyncio
import io
import json

import pytest
from rich.console import Console

from resilient_io import ConfigurationError
from resilient_io.cli.doctor import plan, run_examinations
from resilient_io.cli.terminal import Interruption, Report, standard_output
from resilient_io.doctor import Status, Step

OK = Step(name="name", status=Status.OK, seconds=0.0012, found="cache is 10.0.0.3")
NOTE = Step(name="server", status=Status.NOTE, seconds=0.1, found="young", advice="Check the log.")
PROBLEM = Step(
    name="TCP",
    status=Status.PROBLEM,
    seconds=1.5,
    found="no answer from [10.0.0.3]:6379",
    advice="Check the network policy.",
    data={"port": 6379},
)
UNKNOWN = Step(name="login", status=Status.UNKNOWN, seconds=0.0, found="not asked")


def examination(*steps, name="redis cache:6379/0", then=None):
    async def found():
        for step in steps:
            yield step
        if then is not None:
            await then.wait()

    return name, found()


async def shown_as_lines(capsys, *examinations):
    code = await run_examinations(dict(examinations), Report(standard_output()), Interruption())
    return code, capsys.readouterr().out


async def test_lines_show_each_step_its_time_and_its_advice(capsys):
    code, shown = await shown_as_lines(
        capsys, examination(OK, PROBLEM), examination(NOTE, name="this host")
    )
    assert shown.splitlines() == [
        "redis cache:6379/0",
        "  ok       name            1.2 ms  cache is 10.0.0.3",
        "  PROBLEM  TCP             1.50 s  no answer from [10.0.0.3]:6379",
        "           -> Check the network policy.",
        "this host",
        "  note     server        100.0 ms  young",
        "           -> Check the log.",
        "1 ok, 1 note, 1 problem in 1.6 s",
    ]
    assert code == 1


@pytest.mark.parametrize(
    ("steps", "code", "said"),
    [
        ([OK], 0, "1 ok in 0.0 s"),
        ([NOTE, NOTE], 0, "2 note in 0.2 s"),
        ([OK, UNKNOWN], 2, "1 ok, 1 unknown in 0.0 s"),
        ([PROBLEM, UNKNOWN, PROBLEM], 1, "2 problem, 1 unknown in 3.0 s"),
        ([], 0, "nothing in 0.0 s"),
    ],
)
async def test_summary_counts_and_exit_code_follows(capsys, steps, code, said):
    found, shown = await shown_as_lines(capsys, examination(*steps))
    assert found == code
    assert shown.splitlines()[-1] == said


async def test_table_shows_the_same_in_columns_and_keeps_brackets():
    out = io.StringIO()
    console = Console(file=out, width=80, force_terminal=True, color_system=None, markup=False)
    await run_examinations(dict([examination(OK, PROBLEM)]), Report(console), Interruption())
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    assert lines[0] == "redis cache:6379/0"
    assert lines[1].split() == ["ok", "name", "1.2", "ms", "cache", "is", "10.0.0.3"]
    assert lines[2].split()[0] == "PROBLEM"
    assert "no answer from [10.0.0.3]:6379" in lines[2]
    assert lines[3] == "           -> Check the network policy."


async def test_table_cuts_off_nothing_on_a_narrow_terminal():
    out = io.StringIO()
    console = Console(file=out, width=60, force_terminal=True, color_system=None, markup=False)
    await run_examinations(dict([examination(PROBLEM)]), Report(console), Interruption())
    said = "".join(line[35:].strip() for line in out.getvalue().splitlines()[1:3])
    assert said.replace(" ", "") == "noanswerfrom[10.0.0.3]:6379"


async def test_json_has_a_line_for_each_step_and_one_for_the_summary(capsys):
    await run_examinations(
        dict([examination(OK, PROBLEM)]), Report(standard_output(), as_json=True), Interruption()
    )
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["event"] for line in lines] == ["step", "step", "summary"]
    assert lines[1]["of"] == "redis cache:6379/0"
    assert lines[1]["data"] == {"port": 6379}
    assert lines[2]["steps"] == {"ok": 1, "note": 0, "problem": 1, "unknown": 0}
    assert lines[2]["interrupted"] is False


async def test_interruption_ends_the_command_with_a_summary(capsys):
    never = asyncio.Event()
    stop = Interruption()
    examinations = [examination(OK, NOTE, then=never), examination(PROBLEM, name="never begun")]
    task = asyncio.create_task(
        run_examinations(dict(examinations), Report(standard_output()), stop)
    )
    await asyncio.sleep(1.0)
    stop.set()
    await asyncio.sleep(0.01)
    assert task.done()
    assert await task == 130
    shown = capsys.readouterr().out
    assert shown.splitlines()[-1] == "Interrupted: 1 ok, 1 note in 0.1 s"
    assert "never begun" not in shown


def test_group_needs_a_kafka_url():
    servers = {"redis cache:6379/0": "redis://cache"}
    with pytest.raises(ConfigurationError, match="--group needs a kafka:// URL"):
        plan(servers, timeout=5.0, group="orders", with_host=False)


def test_host_is_examined_last():
    servers = {"redis cache": "redis://cache", "kafka broker": "kafka://broker"}
    planned = plan(servers, timeout=5.0, group="orders", with_host=True)
    assert [*planned] == ["redis cache", "kafka broker", "this host"]
