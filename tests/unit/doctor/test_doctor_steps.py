"""Steps: they share out the time, survive whatever a look does, and hold what JSON can hold."""

import asyncio
import json

import pytest

from resilient_io.doctor import Status, Step, exit_code
from resilient_io.doctor.looking import Looking, blind, merged, note, ok, problem, together


def step(status):
    return Step(name="x", status=status, seconds=0.1, found="y")


@pytest.mark.parametrize(
    ("statuses", "code"),
    [
        ([], 0),
        ([Status.OK, Status.NOTE], 0),
        ([Status.OK, Status.BLIND], 2),
        ([Status.BLIND, Status.PROBLEM, Status.OK], 1),
    ],
)
def test_the_exit_code_says_problems_before_blindness(statuses, code):
    assert exit_code(map(step, statuses)) == code


async def test_a_step_is_what_the_look_found_and_the_time_it_took():
    async def look():
        await asyncio.sleep(0.25)
        return note("seen", "do this", figure=3)

    looking = Looking(1.0)
    taken = await looking.take("thing", look)
    assert taken == Step(
        name="thing", status=Status.NOTE, seconds=0.25, found="seen", advice="do this",
        data={"figure": 3},
    )  # fmt: skip
    assert looking.left == pytest.approx(0.75)
    assert json.loads(json.dumps(taken.as_dict())) == {
        "name": "thing",
        "status": "note",
        "seconds": 0.25,
        "found": "seen",
        "advice": "do this",
        "data": {"figure": 3},
    }


async def test_what_the_caller_does_between_steps_costs_no_time():
    async def look():
        await asyncio.sleep(0.1)
        return ok("fine")

    looking = Looking(1.0)
    await looking.take("first", look)
    await asyncio.sleep(60)
    assert (await looking.take("second", look)).status is Status.OK
    assert looking.left == pytest.approx(0.8)


async def test_a_look_that_never_ends_is_blind_when_its_share_is_used_up():
    looking = Looking(4.0)
    taken = await looking.take("long", asyncio.Event().wait, share=0.5)
    assert (taken.status, taken.seconds) == (Status.BLIND, 2.0)
    assert "2.0 s" in taken.found
    assert looking.left == pytest.approx(2.0)


async def test_silence_may_mean_something():
    silence = problem("it says nothing", "wake it")
    taken = await Looking(1.0).take("long", asyncio.Event().wait, silence=silence)
    assert (taken.status, taken.found, taken.advice) == (
        Status.PROBLEM,
        "it says nothing",
        "wake it",
    )


async def test_without_time_nothing_is_begun():
    begun = []
    looking = Looking(1.0)
    await looking.take("long", asyncio.Event().wait)

    async def look():
        begun.append(True)
        return ok("fine")

    taken = await looking.take("next", look)
    assert (taken.status, begun) == (Status.BLIND, [])
    assert "longer timeout" in taken.advice


async def test_a_look_that_breaks_is_blind_and_does_not_quote_its_error():
    async def look():
        raise ValueError("password=hunter2")

    taken = await Looking(1.0).take("odd", look)
    assert taken.status is Status.BLIND
    assert "ValueError" in taken.found
    assert "hunter2" not in repr(taken)


async def test_a_cancel_leaves_a_step_at_once():
    looking = Looking(60.0)
    task = asyncio.create_task(looking.take("long", asyncio.Event().wait))
    await asyncio.sleep(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_of_several_findings_the_worst_comes_first():
    found = merged(
        [ok("fine", a=1), blind("dark"), problem("broken", "mend it", b=2), note("odd", "look")],
        c=3,
    )
    assert (found.status, found.found) == (Status.PROBLEM, "broken; odd; dark; fine")
    assert found.advice == "mend it look"
    assert found.data == {"a": 1, "b": 2, "c": 3}


async def test_what_is_done_together_ends_together_when_it_is_cancelled():
    ended = []

    async def wait():
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    looks = [wait() for _ in range(3)]
    task = asyncio.create_task(together("wait", looks))
    await asyncio.sleep(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(ended) == 3
