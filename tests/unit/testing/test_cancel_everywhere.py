"""`cancel_everywhere` finds bugs that were planted, and none where there is none."""

import asyncio
import contextlib
import socket
import sys

import pytest

from resilient_io.testing import Moment, cancel_everywhere


async def test_a_well_behaved_coroutine_is_clean_and_all_its_points_are_tried():
    runs = []

    async def coroutine():
        await asyncio.sleep(0)
        await asyncio.sleep(1)
        async with asyncio.timeout(3), asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(1))
            group.create_task(asyncio.sleep(2))
        runs.append("to the end")
        return "result"

    report = await cancel_everywhere(coroutine)
    report.assert_clean()
    assert (report.points, report.runs, report.complete) == (3, 10, True)
    assert report.result == "result"
    assert runs == ["to the end"]


async def test_it_names_the_point_where_a_cancel_was_swallowed():
    async def coroutine():
        await asyncio.sleep(1)
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(1)
        return "as if nothing had been"

    report = await cancel_everywhere(coroutine)
    assert [(each.point, each.moment) for each in report.swallowed] == [
        (2, Moment.SUSPENDED),
        (2, Moment.WAITING),
        (2, Moment.READY),
    ]
    assert not report.late
    with pytest.raises(AssertionError, match=r"point 2, .*sleep .*as if nothing had been"):
        report.assert_clean()


async def test_another_exception_in_place_of_the_cancel_is_a_swallowed_one():
    async def coroutine():
        try:
            await asyncio.sleep(1)
        except asyncio.CancelledError:
            raise ConnectionError("lost") from None

    report = await cancel_everywhere(coroutine)
    assert "raised ConnectionError('lost')" in report.swallowed[0].detail


async def test_a_cancel_that_a_child_swallowed_counts_too():
    async def child():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(1)

    async def coroutine():
        await asyncio.create_task(child())

    report = await cancel_everywhere(coroutine)
    assert [each.moment for each in report.swallowed] == [Moment.WAITING]
    assert "because its awaitable swallowed it" in report.swallowed[0].detail


async def test_a_result_that_was_ready_is_no_excuse():
    async def coroutine():
        future = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_later(1, future.set_result, "ready")
        try:
            return await future
        except asyncio.CancelledError:
            if future.cancelled():
                raise
            return future.result()

    report = await cancel_everywhere(coroutine)
    assert [each.moment for each in report.swallowed] == [Moment.READY]


async def test_wait_for_loses_cancels_on_python_3_11_only():
    async def reply():
        await asyncio.sleep(1)
        return "reply"

    async def coroutine():
        return await asyncio.wait_for(reply(), 5)  # the planted bug is the standard library's

    report = await cancel_everywhere(coroutine)
    if sys.version_info < (3, 12):
        assert [each.moment for each in report.swallowed] == [Moment.READY]
    else:
        report.assert_clean()


async def test_a_timeout_at_the_moment_of_the_cancel_does_not_hide_it():
    async def coroutine():
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                await asyncio.sleep(2)

    report = await cancel_everywhere(coroutine)
    report.assert_clean()
    assert report.complete


@pytest.mark.parametrize("delay", [0.2, 3600.0])
async def test_a_cancel_that_is_not_obeyed_at_once_is_late(delay):
    async def coroutine():
        try:
            await asyncio.sleep(1)
        finally:
            await asyncio.sleep(delay)

    report = await cancel_everywhere(coroutine, max_points=1)
    assert [(each.point, each.moment) for each in report.late] == [
        (1, Moment.SUSPENDED),
        (1, Moment.WAITING),
        (1, Moment.READY),
    ]
    assert not report.swallowed
    assert not report.complete


async def test_a_coroutine_that_never_obeys_is_ended_and_reported():
    async def coroutine():
        for _ in range(3):
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()

    report = await cancel_everywhere(coroutine, max_points=1, moments=[Moment.SUSPENDED])
    assert report.late[0].detail == "never ended"
    assert report.leaked_tasks


async def test_cleaning_up_quickly_is_not_late():
    async def coroutine():
        try:
            await asyncio.sleep(1)
        finally:
            await asyncio.sleep(0.05)

    (await cancel_everywhere(coroutine)).assert_clean()


async def test_a_task_left_behind_is_found_and_ended():
    tasks = []

    async def coroutine():
        task = asyncio.create_task(asyncio.sleep(3600), name="left")
        tasks.append(task)
        await asyncio.sleep(1)
        task.cancel()

    report = await cancel_everywhere(coroutine)
    assert [each.moment for each in report.leaked_tasks] == list(Moment)
    assert "name='left'" in report.leaked_tasks[0].detail
    assert all(task.done() for task in tasks)


async def test_a_socket_that_stays_open_is_found():
    sockets = []

    async def coroutine():
        sockets.append(socket.socket())
        await asyncio.sleep(1)
        sockets.pop().close()

    report = await cancel_everywhere(coroutine)
    assert [each.point for each in report.leaked_sockets] == [1, 1, 1]
    assert len(sockets) == 3
    for each in sockets:
        each.close()


async def test_a_socket_that_only_the_garbage_collector_closes_is_found():
    async def coroutine():
        forgotten = socket.socket()
        await asyncio.sleep(1)
        forgotten.close()

    report = await cancel_everywhere(coroutine)
    assert [each.point for each in report.leaked_sockets] == [1, 1, 1]
    assert "unclosed" in report.leaked_sockets[0].detail


async def test_an_exception_that_nobody_saw_is_a_complaint():
    async def fails():
        raise ValueError("unseen")

    async def coroutine():
        task = asyncio.create_task(fails())
        await asyncio.sleep(1)
        with contextlib.suppress(ValueError):
            await task

    report = await cancel_everywhere(coroutine)
    assert [each.point for each in report.complaints] == [1, 1, 1]
    assert "unseen" in report.complaints[0].detail


async def test_setup_surrounds_every_run_and_check_sees_what_it_gave():
    events = []

    @contextlib.asynccontextmanager
    async def setup():
        owned = asyncio.create_task(asyncio.sleep(3600))
        events.append("up")
        yield events
        owned.cancel()
        events.append("down")

    async def coroutine(given):
        assert given is events
        await asyncio.sleep(1)

    async def check(given):
        given.append("checked")

    report = await cancel_everywhere(coroutine, setup=setup, check=check)
    report.assert_clean()
    assert events == ["up", "checked", "down"] * 4


async def test_a_failing_check_says_after_which_cancel():
    async def coroutine():
        await asyncio.sleep(1)

    def check():
        raise AssertionError("wrong reply")

    with pytest.raises(AssertionError, match="wrong reply") as caught:
        await cancel_everywhere(coroutine, check=check)
    assert "cancelled at point 1" in caught.value.__notes__[0]


async def test_what_the_coroutine_raises_by_itself_passes_unless_expected():
    async def coroutine():
        await asyncio.sleep(1)
        raise ConnectionError("no server")

    with pytest.raises(ConnectionError, match="no server"):
        await cancel_everywhere(coroutine)
    report = await cancel_everywhere(coroutine, raises=OSError)
    report.assert_clean()
    assert isinstance(report.result, ConnectionError)


async def test_a_coroutine_that_never_waits_proves_nothing():
    async def coroutine():
        return 1

    report = await cancel_everywhere(coroutine)
    assert report.complete
    with pytest.raises(AssertionError, match="never waited"):
        report.assert_clean()


async def test_a_run_without_an_end_is_an_error_unless_points_are_bounded():
    async def coroutine():
        await asyncio.sleep(1)
        await asyncio.Event().wait()

    with pytest.raises(RuntimeError, match=r"Event\.wait"):
        await cancel_everywhere(coroutine)
    report = await cancel_everywhere(coroutine, max_points=2, moments=[Moment.SUSPENDED])
    report.assert_clean()
    assert (report.points, report.complete) == (2, False)


async def test_cancelling_the_whole_cancels_the_run_that_is_on():
    ended = []

    async def coroutine():
        try:
            await asyncio.sleep(3600)
        finally:
            ended.append(True)

    task = asyncio.create_task(
        cancel_everywhere(coroutine, moments=[Moment.READY], run_timeout=5000)
    )
    await asyncio.sleep(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == [True]
