"""A task whose result several callers share, and which outlives those that gave up."""

import asyncio

import pytest

from resilient_io.tasks import SharedTask


class Ended(Exception):
    """The task was cancelled."""


class Slow:
    """Numbers its results, each of which takes a time."""

    def __init__(self, *seconds):
        self.seconds = list(seconds)
        self.started = 0

    async def __call__(self):
        self.started += 1
        number = self.started
        await asyncio.sleep(self.seconds.pop(0))
        return number


def shared(**limits):
    return SharedTask("shared", ended=Ended, **limits)


async def within(seconds, task, start):
    """Return the result, or None if it takes longer."""
    try:
        async with asyncio.timeout(seconds):
            return await task.result(start)
    except TimeoutError:
        return None


async def test_callers_at_the_same_time_share_a_result():
    task, slow = shared(), Slow(0.5, 0.5)
    assert await asyncio.gather(*[task.result(slow) for _ in range(5)]) == [1] * 5
    assert await task.result(slow) == 2


async def test_a_cancelled_wait_leaves_the_task_for_the_next_caller():
    task, slow = shared(), Slow(1.5)
    assert await within(1, task, slow) is None
    assert await within(1, task, slow) == 1


@pytest.mark.parametrize(("kept", "later", "result"), [(0, 0.1, 2), (10, 9, 1), (10, 11, 2)])
async def test_a_result_that_nothing_received_is_kept_for_a_while(kept, later, result):
    task, slow = shared(kept=kept), Slow(1.5, 0.1)
    assert await within(1, task, slow) is None
    await asyncio.sleep(0.5 + later)
    assert await within(1, task, slow) == result
    assert slow.started == result


async def test_a_task_that_hangs_is_replaced():
    task, slow = shared(longest=30), Slow(1e6, 0.1)
    assert await within(29, task, slow) is None
    assert await within(2, task, slow) is None
    assert await within(2, task, slow) == 2
    assert len(asyncio.all_tasks()) == 1, "the other one was cancelled"


async def test_callers_of_a_task_that_was_replaced_get_the_result_of_the_other_one():
    task, slow = shared(longest=30), Slow(1e6, 1e6, 0.1)
    waiting = [asyncio.create_task(task.result(slow)) for _ in range(2)]
    assert await within(29, task, slow) is None
    for _ in range(2):
        await asyncio.sleep(30)
        waiting.append(asyncio.create_task(task.result(slow)))
    assert await asyncio.gather(*waiting) == [3] * 4


async def test_an_error_is_raised_in_every_caller_and_is_not_logged(caplog):
    async def fail():
        await asyncio.sleep(1)
        raise LookupError

    task = shared()
    errors = await asyncio.gather(*[task.result(fail) for _ in range(3)], return_exceptions=True)
    assert {type(error) for error in errors} == {LookupError}
    assert await within(0.5, task, fail) is None
    await asyncio.sleep(1)
    del task
    assert caplog.text == ""


async def test_closing_ends_the_task_and_raises_in_the_callers():
    task = shared()
    waiting = asyncio.create_task(task.result(Slow(1e6)))
    await asyncio.sleep(1)
    await task.aclose()
    await task.aclose()
    with pytest.raises(Ended):
        await waiting


async def test_closing_does_not_wait_for_a_task_that_goes_on():
    stop = asyncio.Event()

    async def stubborn():
        while not stop.is_set():
            try:
                await stop.wait()
            except asyncio.CancelledError:
                continue

    task = shared()
    assert await within(0.1, task, stubborn) is None
    began = asyncio.get_running_loop().time()
    await task.aclose()
    assert asyncio.get_running_loop().time() - began == 0.5
    stop.set()
    await asyncio.sleep(0)


def test_a_task_of_a_closed_loop_is_replaced():
    task, slow = shared(), Slow(0.001, 0.001)

    async def give_up():
        waiting = asyncio.ensure_future(task.result(slow))
        await asyncio.sleep(0)
        waiting.cancel()

    asyncio.run(give_up())
    assert asyncio.run(task.result(slow)) == 2
