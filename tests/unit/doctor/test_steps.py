"""Checks: they share one time limit, survive any error, and their steps hold what JSON can hold."""

import asyncio
import json

import pytest

from resilient_io.doctor import Status, Step, exit_code
from resilient_io.doctor.steps import Checks, merged, note, ok, problem, together, unknown


def step(status):
    return Step(name="x", status=status, seconds=0.1, found="y")


@pytest.mark.parametrize(
    ("statuses", "code"),
    [
        ([], 0),
        ([Status.OK, Status.NOTE], 0),
        ([Status.OK, Status.UNKNOWN], 2),
        ([Status.UNKNOWN, Status.PROBLEM, Status.OK], 1),
    ],
)
def test_exit_code_reports_problems_before_unknown_steps(statuses, code):
    assert exit_code(map(step, statuses)) == code


async def test_step_has_the_result_and_its_time():
    async def check():
        await asyncio.sleep(0.25)
        return note("seen", "do this", figure=3)

    checks = Checks(1.0)
    taken = await checks.run("thing", check)
    assert taken == Step(
        name="thing", status=Status.NOTE, seconds=0.25, found="seen", advice="do this",
        data={"figure": 3},
    )  # fmt: skip
    assert checks.left == pytest.approx(0.75)
    assert json.loads(json.dumps(taken.as_dict())) == {
        "name": "thing",
        "status": "note",
        "seconds": 0.25,
        "found": "seen",
        "advice": "do this",
        "data": {"figure": 3},
    }


async def test_time_between_steps_does_not_count():
    async def check():
        await asyncio.sleep(0.1)
        return ok("fine")

    checks = Checks(1.0)
    await checks.run("first", check)
    await asyncio.sleep(60)
    assert (await checks.run("second", check)).status is Status.OK
    assert checks.left == pytest.approx(0.8)


async def test_check_that_never_ends_is_unknown_when_its_share_is_used_up():
    checks = Checks(4.0)
    taken = await checks.run("long", asyncio.Event().wait, share=0.5)
    assert (taken.status, taken.seconds) == (Status.UNKNOWN, 2.0)
    assert "2.0 s" in taken.found
    assert checks.left == pytest.approx(2.0)


async def test_timeout_may_have_a_result_of_its_own():
    taken = await Checks(1.0).run(
        "long", asyncio.Event().wait, on_timeout=problem("no answer", "restart it")
    )
    assert (taken.status, taken.found, taken.advice) == (
        Status.PROBLEM,
        "no answer",
        "restart it",
    )


async def test_no_check_starts_when_no_time_is_left():
    started = []
    checks = Checks(1.0)
    await checks.run("long", asyncio.Event().wait)

    async def check():
        started.append(True)
        return ok("fine")

    taken = await checks.run("next", check)
    assert (taken.status, started) == (Status.UNKNOWN, [])
    assert "longer timeout" in taken.advice


async def test_check_that_raises_is_unknown_and_does_not_quote_its_error():
    async def check():
        raise ValueError("password=hunter2")

    taken = await Checks(1.0).run("odd", check)
    assert taken.status is Status.UNKNOWN
    assert "ValueError" in taken.found
    assert "hunter2" not in repr(taken)


async def test_secrets_and_control_characters_are_removed_from_all_parts_of_a_step():
    async def check():
        return problem(
            "it said \x1b[31mhunter2\n",
            "see redis://u:other@h \x9b1m",
            names=["hunter2\x07"],
            count=1,
        )

    taken = await Checks(1.0, ["hunter2", "n"]).run("login", check)
    shown = json.dumps(taken.as_dict(), ensure_ascii=False)
    assert "hunter2" not in shown
    assert "other" not in shown
    assert not any(ord(sign) < 32 or 127 <= ord(sign) < 160 for sign in shown)
    assert "\\u00" not in shown
    assert taken.data["count"] == 1
    assert taken.name == "login"  # a short secret is replaced only as a whole word


async def test_cancelling_ends_a_check_immediately():
    task = asyncio.create_task(Checks(60.0).run("long", asyncio.Event().wait))
    await asyncio.sleep(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_most_severe_result_comes_first():
    found = merged(
        [ok("fine", a=1), unknown("dark"), problem("broken", "fix it", b=2), note("odd", "look")],
        c=3,
    )
    assert (found.status, found.found) == (Status.PROBLEM, "broken; odd; dark; fine")
    assert found.advice == "fix it look"
    assert found.data == {"a": 1, "b": 2, "c": 3}


async def test_concurrent_checks_end_together_when_cancelled():
    ended = []

    async def wait():
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    waits = [wait() for _ in range(3)]
    task = asyncio.create_task(together("wait", waits))
    await asyncio.sleep(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(ended) == 3
