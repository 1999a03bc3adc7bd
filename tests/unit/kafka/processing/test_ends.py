"""Rebalances, stops and cancellations: records in hand get their drain timeout, not more."""

import asyncio
import contextlib
import gc
import logging
import random

import pytest

from resilient_io.kafka.processing import HandlerPolicy, Processor, RunLimits, plan_run
from resilient_io.testing import cancel_everywhere, new_virtual_loop


class Slow:
    """Sleeps as long as the value says; records which calls began, returned and were cancelled."""

    def __init__(self):
        self.begun = []
        self.done = []
        self.cancelled = []

    async def __call__(self, record):
        self.begun.append(record.offset)
        try:
            await asyncio.sleep(float(record.value))
        except asyncio.CancelledError:
            self.cancelled.append(record.offset)
            raise
        self.done.append(record.offset)


def now():
    return asyncio.get_running_loop().time()


async def test_a_revoked_partition_is_drained_and_only_handled_records_are_committed(
    scenes, sources, until
):
    scene = scenes(sources(2), concurrency=3)
    handler = Slow()
    for seconds in (b"1", b"2", b"30", b"1", b"1"):
        scene.source.put(None, seconds)
    scene.start(handler)
    await until(lambda: len(handler.begun) == 3)
    began = now()
    await scene.source.revoke(("t", 0))
    assert now() - began == pytest.approx(5.0, abs=0.1)
    assert handler.done == [0, 1]
    assert handler.cancelled == [2]
    assert handler.begun == [0, 1, 2]
    assert scene.source.committed == {("t", 0): 2}
    assert scene.stats.in_flight == scene.stats.in_flight_bytes == 0
    assert scene.stats.cancelled == 1
    # The other partition continues, and so does this one when it is assigned again.
    scene.source.put(None, b"1", number=1)
    scene.source.assign(("t", 0))
    await until(lambda: scene.source.committable(1) == 1)
    await until(lambda: scene.source.committable(0) == 5)
    assert scene.stats.failed == 0


async def test_a_drain_ends_as_soon_as_the_handlers_have_ended(scenes, until):
    scene = scenes()
    handler = Slow()
    scene.source.put(b"k", b"1")
    scene.source.put(b"k", b"1")
    scene.start(handler)
    await until(lambda: handler.begun)
    began = now()
    await scene.source.revoke(("t", 0))
    assert now() - began == pytest.approx(1.0, abs=0.1)
    assert (handler.done, handler.cancelled) == ([0], [])
    assert scene.source.committed == {("t", 0): 1}


async def test_a_drain_does_not_wait_for_a_record_that_backs_off(scenes, until):
    async def handler(record):
        raise ValueError

    scene = scenes(handler_policy=HandlerPolicy(backoff=10.0))
    scene.source.put(b"k")
    scene.source.put(b"k")
    scene.start(handler)
    await until(lambda: scene.stats.backing_off == 1)
    began = now()
    await scene.source.revoke(("t", 0))
    assert now() == began
    assert scene.stats.in_flight == scene.stats.backing_off == 0
    assert scene.source.committed == {}
    await asyncio.sleep(100)
    assert scene.stats.failed == 1


async def test_a_handler_that_raises_because_of_its_cancellation_does_not_count_as_failed(
    scenes, until
):
    async def handler(record):
        try:
            await asyncio.sleep(100)
        except asyncio.CancelledError:
            raise ValueError("cleaning up went wrong") from None

    scene = scenes(dead_letter="dead", handler_policy=HandlerPolicy(attempts=1))
    scene.source.put(b"k")
    scene.start(handler)
    await until(lambda: scene.stats.handlers)
    await scene.source.revoke(("t", 0))
    assert scene.stats.failed == 0
    assert scene.source.committed == {}


async def test_a_handler_that_suppresses_its_cancellation_and_returns_has_handled_its_record(
    scenes, until
):
    async def handler(record):
        try:
            await asyncio.sleep(100)
        except asyncio.CancelledError:
            await asyncio.sleep(0.5)

    scene = scenes(concurrency=1)
    scene.source.put(b"k")
    scene.start(handler)
    await until(lambda: scene.stats.handlers)
    await scene.source.revoke(("t", 0))
    assert scene.source.committed == {("t", 0): 1}
    scene.source.assign(("t", 0))
    scene.source.put(b"k")
    await until(lambda: scene.stats.handlers)
    await asyncio.sleep(50)
    assert scene.stats.handlers == 1  # its task is no longer marked as cancelled


async def test_a_handler_that_does_not_end_cannot_delay_the_rebalance_further(
    scenes, until, caplog
):
    release = asyncio.Event()

    async def handler(record):
        while not release.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await release.wait()

    scene = scenes()
    scene.source.put(b"k")
    scene.start(handler)
    await until(lambda: scene.stats.handlers)
    began = now()
    with caplog.at_level(logging.ERROR):
        await scene.source.revoke(("t", 0))
    assert now() - began == pytest.approx(6.0, abs=0.1)
    assert "suppresses the cancellation" in caplog.text
    release.set()


@pytest.mark.parametrize("order", ["key", "none"])
async def test_a_batch_of_several_partitions_continues_with_the_remaining_ones(
    scenes, sources, until, order
):
    calls = []

    async def handler(records):
        calls.append([(record.partition, record.offset) for record in records])
        await asyncio.sleep(100 if len(calls) == 1 else 1)

    scene = scenes(sources(2), batch_size=10, concurrency=1, order=order)
    for number in range(8):
        scene.source.put(b"%d" % (number // 4), number=number % 2)
    scene.start(handler)
    await until(lambda: calls)
    assert len(calls[0]) == 8
    await scene.source.revoke(("t", 0))
    await until(lambda: scene.source.committable(1) == 4)
    assert sorted(calls[1]) == [(1, 0), (1, 1), (1, 2), (1, 3)]
    assert scene.stats.in_flight == 0


async def test_closing_waits_for_the_handlers_then_commits_and_run_returns(scenes, until):
    scene = scenes(concurrency=2)
    handler = Slow()
    for seconds in (b"2", b"3", b"1"):
        scene.source.put(None, seconds)
    running = scene.start(handler)
    await until(lambda: len(handler.begun) == 2)
    began = now()
    await scene.processor.aclose()
    assert now() - began == pytest.approx(3.0, abs=0.1)
    await running
    assert handler.begun == [0, 1]
    assert scene.source.committed == {("t", 0): 2}
    await scene.processor.aclose()


async def test_closing_cancels_slow_handlers_within_its_timeout(scenes, until):
    scene = scenes()
    handler = Slow()
    scene.source.put(b"k", b"100")
    running = scene.start(handler)
    await until(lambda: handler.begun)
    began = now()
    await scene.processor.aclose(2.0)
    assert now() - began <= 2.0
    assert handler.cancelled == [0]
    await running
    assert scene.source.committed == {}


async def test_closing_reserves_only_one_second_of_its_timeout(scenes, until):
    scene = scenes()
    handler = Slow()
    scene.source.put(b"k", b"2.9")
    running = scene.start(handler)
    await until(lambda: handler.begun)
    await scene.processor.aclose(4.0)
    assert not handler.cancelled
    await running
    assert scene.source.committed == {("t", 0): 1}


async def test_closing_ends_in_time_when_the_last_commit_hangs(scenes, until):
    scene = scenes()

    async def commit(timeout):
        await asyncio.sleep(1_000)

    scene.source.commit = commit
    running = scene.start(Slow())
    await asyncio.sleep(1)
    began = now()
    await scene.processor.aclose(2.0)
    assert now() - began == pytest.approx(2.0, abs=0.1)
    await running


async def test_closing_in_a_hurry_still_closes_the_dead_letter_producer(scenes, until):
    scene = scenes(dead_letter="t.dead", handler_policy=HandlerPolicy(attempts=1))

    async def commit(timeout):
        await asyncio.sleep(1_000)

    async def handler(record):
        raise ValueError("no")

    scene.source.commit = commit
    scene.source.put(b"bad")
    running = scene.start(handler)
    await until(lambda: scene.producer.sent)
    began = now()
    await scene.processor.aclose(2.0)
    assert now() - began == pytest.approx(2.0, abs=0.1)
    await running
    assert scene.producer.closed


async def test_cancelling_run_returns_immediately_and_draining_continues(scenes, until):
    scene = scenes()
    handler = Slow()
    scene.source.put(b"a", b"3")
    scene.source.put(b"b", b"100")
    running = scene.start(handler)
    await until(lambda: len(handler.begun) == 2)
    began = now()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert now() == began
    assert scene.ended == 0
    await scene.processor.aclose()
    assert now() - began == pytest.approx(5.0, abs=0.1)
    assert (handler.done, handler.cancelled) == ([0], [1])
    assert scene.source.committed == {("t", 0): 1}
    assert scene.ended == 1


async def test_a_rebalance_while_run_winds_down_waits_for_handlers(scenes, until):
    scene = scenes()
    handler = Slow()
    scene.source.put(b"a", b"3")
    running = scene.start(handler)
    await until(lambda: handler.begun)
    running.cancel()
    await asyncio.sleep(0.1)
    await scene.source.revoke(("t", 0))
    assert handler.done == [0]
    assert scene.source.committed == {("t", 0): 1}


async def test_no_handler_begins_after_a_stop(scenes, until):
    handled = []

    async def handler(record):
        handled.append(record.offset)
        if record.offset == 3:
            raise ValueError

    scene = scenes(concurrency=1, order="none")
    for _ in range(100):
        scene.source.put(None)
    scene.options["handler_policy"] = HandlerPolicy(attempts=1)
    with pytest.raises(ValueError):  # noqa: PT011 - raised without a message
        await scene.start(handler)
    assert handled == [0, 1, 2, 3]
    assert scene.source.committed == {("t", 0): 3}


async def test_a_permanent_refusal_of_kafka_ends_run(scenes, until):
    class NotAuthorisedError(Exception):
        pass

    scene = scenes()

    async def fetch(max_records, max_wait):
        raise NotAuthorisedError

    scene.source.fetch = fetch
    with pytest.raises(NotAuthorisedError):
        await scene.start(Slow())


async def test_records_in_memory_are_bounded_and_polling_continues(scenes, until):
    scene = scenes(limits=RunLimits(records=50), concurrency=2)
    release = asyncio.Event()

    async def handler(record):
        await release.wait()

    for number in range(500):
        scene.source.put(b"%d" % number)
    scene.start(handler)
    await asyncio.sleep(100)
    assert scene.stats.in_flight == 50
    assert scene.source.paused(("t", 0))
    assert len([poll for poll in scene.source.polls if poll > 1]) > 150
    release.set()
    await until(lambda: scene.source.committable() == 500)
    assert not scene.source.paused(("t", 0))


async def test_bytes_in_memory_are_bounded(scenes, until):
    scene = scenes(limits=RunLimits(bytes=100_000), concurrency=2)
    release = asyncio.Event()
    most = 0

    async def handler(record):
        nonlocal most
        await release.wait()
        most = max(most, scene.stats.in_flight_bytes)

    for number in range(3000):
        scene.source.put(b"%d" % number, b"x" * 1_000)
    scene.start(handler)
    await asyncio.sleep(10)
    assert 50_000 <= scene.stats.in_flight_bytes <= 102_000
    release.set()
    await until(lambda: scene.source.committable() == 3_000)
    assert most <= 102_000


async def test_random_rebalances_lose_nothing_and_keep_the_order_of_keys(scenes, sources, until):
    rng = random.Random(5)
    scene = scenes(sources(3), drain_timeout=0.05, concurrency=10)
    handled = {}
    running = []

    async def handler(record):
        key = (record.partition, record.key)
        assert key not in running
        running.append(key)
        try:
            await asyncio.sleep(rng.choice([0, 0.01, 0.2]))
            handled.setdefault(key, []).append(record.offset)
        finally:
            running.remove(key)

    for _ in range(900):
        scene.source.put(b"%d" % rng.randint(0, 20), number=rng.randint(0, 2))
    scene.start(handler)
    for _ in range(40):
        await asyncio.sleep(rng.random() * 0.3)
        mine = [each for each in scene.source.assignment() if rng.random() < 0.7]
        if mine:
            await scene.source.revoke(*mine)
            scene.source.assign(*mine)
    await until(
        lambda: all(
            scene.source.committable(number) == len(scene.source.log[("t", number)])
            for number in range(3)
        )
    )
    for number in range(3):
        for record in scene.source.log[("t", number)]:
            assert record.offset in handled[(number, record.key)]
    for offsets in handled.values():
        firsts = list(dict.fromkeys(offsets))
        assert firsts == sorted(firsts)  # only records handled in order before are repeated
    assert scene.stats.in_flight == scene.stats.in_flight_bytes == 0


async def test_a_drain_ends_before_the_group_stops_waiting(scenes, until):
    scene = scenes(rebalance_timeout=6.0)
    handler = Slow()
    scene.source.put(b"k", b"100")
    scene.start(handler)
    await until(lambda: handler.begun)
    began = now()
    await scene.source.revoke(("t", 0))
    assert now() - began == pytest.approx(3.8, abs=0.1)
    assert handler.cancelled == [0]


async def test_a_cancellation_at_any_point_of_run_and_aclose_is_raised_immediately(scenes):
    async def handler(record):
        await asyncio.sleep(0.5)
        if record.offset == 2:
            raise LookupError

    def begun(*, started):
        @contextlib.asynccontextmanager
        async def setup():
            scene = scenes(handler_policy=HandlerPolicy(attempts=1), order="partition")
            for _ in range(3):
                scene.source.put(b"k")
            scene.create(handler)
            if started:
                scene.start(handler)
                await asyncio.sleep(0.1)
            yield scene
            await scene.aclose()

        return setup

    running = await cancel_everywhere(
        lambda scene: scene.processor.run(),
        setup=begun(started=False),
        raises=LookupError,
        settle=20.0,
    )
    closing = await cancel_everywhere(
        lambda scene: scene.processor.aclose(), setup=begun(started=True), settle=20.0
    )
    for report in (running, closing):
        assert report.complete
        assert report.points > 0
        assert report.findings == [], "\n".join(map(str, report.findings))


async def test_a_handler_that_closes_is_not_waited_for_but_the_others_are(scenes, until):
    scene = scenes(order="none")
    done = []

    async def handler(record):
        if record.value == b"stop":
            closing = asyncio.create_task(scene.processor.aclose(caller=asyncio.current_task()))
            await asyncio.wait([closing])
        await asyncio.sleep(1.0)
        done.append(record.offset)

    for value in (b"v", b"stop", b"v"):
        scene.source.put(None, value)
    began = now()
    await scene.start(handler)
    assert now() - began == pytest.approx(1.0, abs=0.1)
    assert sorted(done) == [0, 2]
    assert scene.source.committed == {("t", 0): 1}


@pytest.mark.parametrize(
    "limits", [RunLimits(records=1_000), RunLimits(bytes=100_000)], ids=["records", "bytes"]
)
async def test_a_slow_partition_leaves_memory_for_the_others(scenes, sources, until, limits):
    scene = scenes(sources(2), order="partition", limits=limits)

    async def handler(record):
        await asyncio.sleep(10.0 if record.partition == 0 else 0.001)

    for _ in range(3_000):
        scene.source.put(b"k", b"x" * 100, number=0)
        scene.source.put(b"k", b"x" * 100, number=1)
    scene.start(handler)
    await until(lambda: scene.source.committable(1) == 3_000, timeout=60.0)
    assert scene.source.paused(("t", 0))
    assert scene.stats.in_flight <= 1_000


async def test_a_slow_partition_is_resumed_when_it_has_caught_up(scenes, sources, until):
    scene = scenes(sources(2), order="partition", limits=RunLimits(records=1_000))
    slow = True

    async def handler(record):
        await asyncio.sleep(10.0 if slow else 0.001)

    for _ in range(3_000):
        scene.source.put(b"k")
    scene.start(handler)
    await until(lambda: scene.source.paused(("t", 0)))
    assert 500 <= scene.stats.in_flight < 600
    await asyncio.sleep(30.0)
    slow = False
    began = now()
    await until(lambda: scene.source.committable(0) == 3_000)
    assert now() - began < 20.0


def test_an_event_loop_that_ends_without_closing_leaves_no_task_and_no_warning(sources, caplog):
    complaints = []
    began = []

    async def handler(record):
        began.append(record)
        await asyncio.sleep(100)

    async def main():
        asyncio.get_running_loop().set_exception_handler(
            lambda _, context: complaints.append(context)
        )
        source = sources()
        for _ in range(5):
            source.put(None)
        source.commit = asyncio.sleep  # takes its time
        processor = Processor(
            source=source,
            plan=plan_run(handler),
            commit=source.commit,
            commit_timeout=3.0,
            drain_timeout=5.0,
            max_poll_interval=300.0,
            rebalance_timeout=10.0,
            make_producer=object,
            rng=random.Random(1),
            ended=lambda stats: None,
            note=lambda event, **fields: None,
        )
        running.append(asyncio.create_task(processor.run()))
        await asyncio.sleep(1)

    running = []
    with asyncio.Runner(loop_factory=new_virtual_loop) as runner:
        runner.run(main())
    assert len(began) == 5
    assert running.pop().cancelled()
    began.clear()
    gc.collect()  # a task that never ended complains when it goes
    assert [complaint["message"] for complaint in complaints] == []


async def test_a_batch_that_fails_while_its_partition_is_revoked_leaves_the_memory(scenes, until):
    scene = scenes(batch_size=10)
    fail = asyncio.Event()

    async def handler(records):
        await fail.wait()
        raise ValueError("no")

    for _ in range(5):
        scene.source.put(b"same")
    scene.start(handler)
    await until(lambda: scene.stats.handlers == 1)
    asyncio.get_running_loop().call_later(1.0, fail.set)
    await scene.source.revoke(("t", 0))
    assert scene.stats.in_flight == scene.stats.in_flight_bytes == 0
