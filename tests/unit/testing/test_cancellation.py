"""`cancel_everywhere` finds planted bugs, and nothing in correct code."""

import asyncio
import contextlib
import socket
import sys

import pytest

from resilient_io.testing import Moment, cancel_everywhere


async def test_correct_coroutine_has_no_findings_and_all_points_are_tested():
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


async def test_report_names_the_point_of_a_swallowed_cancellation():
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


async def test_another_exception_counts_as_a_swallowed_cancellation():
    async def coroutine():
        try:
            await asyncio.sleep(1)
        except asyncio.CancelledError:
            raise ConnectionError("lost") from None

    report = await cancel_everywhere(coroutine)
    assert "raised ConnectionError('lost')" in report.swallowed[0].detail


async def test_cancellation_swallowed_by_a_child_counts():
    async def child():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(1)

    async def coroutine():
        await asyncio.create_task(child())

    report = await cancel_everywhere(coroutine)
    assert [each.moment for each in report.swallowed] == [Moment.WAITING]
    assert "because its awaitable swallowed it" in report.swallowed[0].detail


async def test_ready_result_does_not_excuse_a_swallowed_cancellation():
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


async def test_wait_for_loses_cancellations_only_on_python_3_11():
    async def reply():
        await asyncio.sleep(1)
        return "reply"

    async def coroutine():
        return await asyncio.wait_for(reply(), 5)  # a bug of the standard library

    report = await cancel_everywhere(coroutine)
    if sys.version_info < (3, 12):
        assert [each.moment for each in report.swallowed] == [Moment.READY]
    else:
        report.assert_clean()


async def test_timeout_at_the_moment_of_cancellation_does_not_hide_it():
    async def coroutine():
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                await asyncio.sleep(2)

    report = await cancel_everywhere(coroutine)
    report.assert_clean()
    assert report.complete


@pytest.mark.parametrize("delay", [0.2, 3600.0])
async def test_coroutine_that_ends_too_late_is_reported(delay):
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


async def test_coroutine_that_never_ends_is_killed_and_reported():
    async def coroutine():
        for _ in range(3):
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()

    report = await cancel_everywhere(coroutine, max_points=1, moments=[Moment.SUSPENDED])
    assert report.late[0].detail == "never ended"
    assert report.leaked_tasks


async def test_quick_cleanup_is_not_late():
    async def coroutine():
        try:
            await asyncio.sleep(1)
        finally:
            await asyncio.sleep(0.05)

    (await cancel_everywhere(coroutine)).assert_clean()


async def test_leaked_task_is_found_and_cancelled():
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


async def test_open_socket_is_found():
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


async def test_socket_closed_by_the_garbage_collector_is_found():
    async def coroutine():
        forgotten = socket.socket()
        await asyncio.sleep(1)
        forgotten.close()

    report = await cancel_everywhere(coroutine)
    assert [each.point for each in report.leaked_sockets] == [1, 1, 1]
    assert "unclosed" in report.leaked_sockets[0].detail


async def test_unretrieved_exception_is_a_complaint():
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


async def test_setup_surrounds_every_run_and_check_receives_its_result():
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


async def test_failing_check_has_a_note_with_the_point():
    async def coroutine():
        await asyncio.sleep(1)

    def check():
        raise AssertionError("wrong reply")

    with pytest.raises(AssertionError, match="wrong reply") as caught:
        await cancel_everywhere(coroutine, check=check)
    assert "cancelled at point 1" in caught.value.__notes__[0]


async def test_exceptions_without_cancellation_propagate_unless_expected():
    async def coroutine():
        await asyncio.sleep(1)
        raise ConnectionError("no server")

    with pytest.raises(ConnectionError, match="no server"):
        await cancel_everywhere(coroutine)
    report = await cancel_everywhere(coroutine, raises=OSError)
    report.assert_clean()
    assert isinstance(report.result, ConnectionError)


async def test_coroutine_that_never_waits_is_not_clean():
    async def coroutine():
        return 1

    report = await cancel_everywhere(coroutine)
    assert report.complete
    with pytest.raises(AssertionError, match="never waited"):
        report.assert_clean()


async def test_endless_run_is_an_error_unless_points_are_limited():
    async def coroutine():
        await asyncio.sleep(1)
        await asyncio.Event().wait()

    with pytest.raises(RuntimeError, match=r"Event\.wait"):
        await cancel_everywhere(coroutine)
    report = await cancel_everywhere(coroutine, max_points=2, moments=[Moment.SUSPENDED])
    report.assert_clean()
    assert (report.points, report.complete) == (2, False)


async def test_cancelling_cancel_everywhere_cancels_the_current_run():
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
