"""Handlers that raise, hang or misbehave: the consumer continues and keeps the order."""

import asyncio
import itertools
import logging

import pytest

from resilient_io import OutcomeUnknown, Progress
from resilient_io.kafka.processing import DeadLetter, HandlerPolicy

POLICY = HandlerPolicy(attempts=3, backoff=1.0, backoff_cap=8.0)


class Flaky:
    """Raises as often as configured for each key; records each call with its time."""

    def __init__(self, failures, error=None):
        self.failures = dict(failures)
        self.error = error or ValueError("no")
        self.calls = []
        self.done = []

    async def __call__(self, record):
        self.calls.append((record.offset, asyncio.get_running_loop().time()))
        left = self.failures.get(record.key, 0)
        if left:
            self.failures[record.key] = left - 1
            raise self.error
        self.done.append(record.offset)

    def times(self, offset):
        return [time for which, time in self.calls if which == offset]


async def test_a_failing_record_is_retried_after_a_backoff_that_delays_only_its_key(scenes, until):
    scene = scenes(concurrency=1, handler_policy=POLICY)
    handler = Flaky({b"bad": 2})
    for key in (b"bad", b"bad", b"good", b"fine"):
        scene.source.put(key)
    scene.start(handler)
    await until(lambda: len(handler.done) == 4)
    assert handler.done == [2, 3, 0, 1]
    first, second, third = handler.times(0)
    assert 0.5 <= second - first <= 1.0
    assert 1.0 <= third - second <= 2.0
    assert (scene.stats.failed, scene.stats.retried, scene.stats.handled) == (2, 2, 4)
    assert scene.source.committable() == 4


async def test_a_record_that_keeps_failing_is_dead_lettered_and_the_next_follows(scenes, until):
    scene = scenes(handler_policy=POLICY, dead_letter="t.dead")
    handler = Flaky({b"bad": 3})
    scene.source.put(b"bad", b"poison", headers=[("trace", b"1")])
    scene.source.put(b"bad", b"good")
    scene.start(handler)
    await until(lambda: handler.done == [1])
    ((topic, key, value, headers),) = scene.producer.sent
    assert (topic, key, value) == ("t.dead", b"bad", b"poison")
    first, _, third = handler.times(0)
    assert float(headers.pop("x-first-failure-ago")) == pytest.approx(third - first, abs=0.02)
    assert float(headers.pop("x-last-failure-ago")) == pytest.approx(0.0, abs=0.02)
    assert headers == {
        "trace": b"1",
        "x-original-topic": b"t",
        "x-original-partition": b"0",
        "x-original-offset": b"0",
        "x-original-timestamp": b"1000",
        "x-error-type": b"builtins.ValueError",
        "x-error-message": b"no",
        "x-attempts": b"3",
    }
    assert scene.stats.dead_lettered == 1
    assert scene.source.committable() == 2
    await scene.aclose()
    assert scene.producer.closed


async def test_an_unwritable_dead_letter_holds_its_offset_and_its_key_until_it_is_written(
    scenes, until, caplog
):
    scene = scenes(handler_policy=HandlerPolicy(attempts=1), dead_letter="t.dead")
    scene.producer.failing = 30
    handler = Flaky({b"bad": 1})
    for key in (b"bad", b"bad", b"good"):
        scene.source.put(key)
    scene.start(handler)
    await until(lambda: scene.producer.attempts == 20)
    assert handler.done == [2]
    assert scene.source.committable() is None
    await until(lambda: handler.done == [2, 1])
    assert len(scene.producer.sent) == 1
    assert len([each for each in caplog.records if "dead letters" in each.message]) < 10


@pytest.mark.parametrize(("concurrency", "seconds"), [(1, 70.0), (4, 15.0)])
async def test_unwritable_dead_letters_leave_handlers_for_other_records(
    scenes, until, concurrency, seconds
):
    scene = scenes(
        handler_policy=HandlerPolicy(attempts=1),
        dead_letter="t.dead",
        concurrency=concurrency,
        order="none",
    )
    write = scene.producer.send_and_wait
    silent = True

    async def write_or_not(*args, **record):
        if silent:
            await asyncio.sleep(5.0)
            raise TimeoutError
        await write(*args, **record)

    scene.producer.send_and_wait = write_or_not
    for _ in range(50):
        scene.source.put(b"bad")
        scene.source.put(b"good")
    handler = Flaky({b"bad": 50})
    scene.start(handler)
    await until(lambda: len(handler.done) == 50, timeout=seconds)
    silent = False
    await until(lambda: scene.stats.dead_lettered == 50, timeout=60.0)
    assert scene.source.committable() == 100


@pytest.mark.parametrize("own", [True, False])
async def test_advice_on_unwritable_dead_letters_is_logged_once(scenes, until, caplog, own):
    scene = scenes(handler_policy=HandlerPolicy(attempts=1))
    producer = scene.producer if own else scene.producer.__class__()
    scene.options["dead_letter"] = DeadLetter(topic="dead", producer=None if own else producer)
    producer.failing = 30
    for key in (b"bad", b"worse"):
        scene.source.put(key)
    scene.start(Flaky({b"bad": 1, b"worse": 1}))
    await until(lambda: len(producer.sent) == 2)
    hints = [each for each in caplog.messages if 'DeadLetter(topic="dead", producer=' in each]
    assert len(hints) == own
    assert all("no broker" in each for each in hints)
    assert any("dead letter of t[0]@" in each and "no broker" in each for each in caplog.messages)


async def test_a_given_producer_is_used_and_left_open(scenes, until):
    scene = scenes(handler_policy=HandlerPolicy(attempts=1))
    given = scene.producer.__class__()
    scene.options["dead_letter"] = DeadLetter(topic="dead", producer=given)
    scene.source.put(b"bad")
    scene.start(Flaky({b"bad": 1}))
    await until(lambda: given.sent)
    await scene.aclose()
    assert not given.closed
    assert scene.producer.sent == []


async def test_a_record_that_keeps_failing_stops_run_without_a_dead_letter_topic(scenes, until):
    scene = scenes(handler_policy=POLICY)
    handler = Flaky({b"bad": 9})
    for key in (b"good", b"bad", b"fine"):
        scene.source.put(key)
    running = scene.start(handler)
    with pytest.raises(ValueError, match="no") as caught:
        await running
    assert caught.value.__notes__ == ["run() stopped at t[0]@1, attempt 3"]
    assert scene.source.committed == {("t", 0): 1}


async def test_skipped_records_are_committed_and_counted(scenes, until, caplog):
    scene = scenes(handler_policy=HandlerPolicy(attempts=1), on_failure="skip")
    for number in range(50):
        scene.source.put(b"%d" % number)
    scene.start(Flaky({b"%d" % number: 9 for number in range(0, 50, 2)}))
    await until(lambda: scene.source.committable() == 50)
    assert scene.stats.skipped == 25
    await scene.aclose()
    logged = [each.getMessage() for each in caplog.records if "skipped" in each.message]
    assert len(logged) == 2
    assert "skipped: 24" in logged[1]


@pytest.mark.parametrize("asynchronous", [True, False])
@pytest.mark.parametrize("verdict", [None, "skip", "dead_letter", "stop"])
async def test_on_failure_decides_about_a_record_that_is_given_up(
    scenes, until, asynchronous, verdict
):
    failures = []

    async def later(failure):
        failures.append(failure)
        return verdict

    def at_once(failure):
        failures.append(failure)
        return verdict

    scene = scenes(
        handler_policy=HandlerPolicy(attempts=2, backoff=1.0),
        on_failure=later if asynchronous else at_once,
        dead_letter="t.dead",
    )
    scene.source.put(b"bad")
    running = scene.start(Flaky({b"bad": 9}))
    await until(lambda: failures)
    await asyncio.sleep(0.1)
    (failure,) = failures
    assert (failure.record.offset, failure.attempts, failure.outcome_unknown) == (0, 2, 0)
    assert isinstance(failure.error, ValueError)
    assert 0.5 <= failure.seconds <= 1.0
    assert len(scene.producer.sent) == (verdict == "dead_letter")
    assert running.done() == (verdict == "stop")
    assert scene.source.committable() == (None if verdict == "stop" else 1)


@pytest.mark.parametrize("wrong", [ValueError("broken"), asyncio.CancelledError(), "nonsense"])
async def test_an_on_failure_that_fails_is_called_again_and_nothing_is_lost(
    scenes, until, wrong, caplog
):
    asked = []

    def on_failure(failure):
        asked.append(failure)
        if len(asked) == 3:
            return "skip"
        if isinstance(wrong, str):
            return wrong
        raise wrong

    scene = scenes(handler_policy=HandlerPolicy(attempts=1), on_failure=on_failure)
    scene.source.put(b"bad")
    scene.start(Flaky({b"bad": 9}))
    await until(lambda: len(asked) == 2)
    assert scene.source.committable() is None
    await until(lambda: scene.source.committable() == 1)
    logged, *_ = [each for each in caplog.messages if "on_failure of t[0]@0 raised" in each]
    assert (wrong if isinstance(wrong, str) else str(wrong)) in logged


@pytest.mark.parametrize("batch_size", [None, 10])
async def test_an_unreadable_record_is_dead_lettered_without_a_call_of_the_handler(
    scenes, until, batch_size
):
    scene = scenes(dead_letter="t.dead", batch_size=batch_size)
    handled = []

    async def handler(records):
        handled.extend(records if batch_size else [records])

    scene.source.put(b"k", b"1", read_as=1)
    scene.source.put(b"k", b"{", error=ValueError("bad JSON"))
    scene.source.put(b"k", b"2", read_as=2)
    scene.start(handler)
    await until(lambda: len(handled) == 2)
    ((_, key, value, headers),) = scene.producer.sent
    assert (key, value, headers["x-attempts"]) == (b"k", b"{", b"0")
    assert headers["x-error-message"] == b"bad JSON"
    assert scene.source.committable() == 3


async def test_a_handler_that_hangs_is_cancelled_after_its_timeout_and_counts_as_failed(
    scenes, until
):
    scene = scenes(
        handler_policy=HandlerPolicy(attempts=2, backoff=1.0, timeout=5.0), dead_letter="t.dead"
    )
    ended = []

    async def handler(record):
        try:
            await asyncio.sleep(10_000)
        finally:
            ended.append(asyncio.get_running_loop().time())

    scene.source.put(b"k")
    scene.start(handler)
    await until(lambda: scene.producer.sent)
    headers = scene.producer.sent[0][3]
    assert headers["x-error-type"] == b"builtins.TimeoutError"
    assert b"timeout=5" in headers["x-error-message"]
    assert ended[0] == pytest.approx(5.0)
    assert len(ended) == 2


async def test_a_timeout_error_of_the_handler_itself_is_raised_unchanged(scenes):
    scene = scenes(handler_policy=HandlerPolicy(attempts=1, timeout=5.0))

    async def handler(record):
        raise TimeoutError("the web site")

    scene.source.put(b"k")
    with pytest.raises(TimeoutError, match="the web site"):
        await scene.start(handler)


@pytest.mark.parametrize("order", ["key", "partition", "none"])
async def test_records_that_a_failing_batch_handler_marked_as_done_are_not_handled_again(
    scenes, until, order
):
    scene = scenes(handler_policy=POLICY, batch_size=10, order=order, concurrency=1)
    calls = []

    async def handler(records):
        calls.append([record.value for record in records])
        for record in records:
            if record.value == b"b1" and len(calls) == 1:
                continue
            if record.value == b"a3" and len(calls) == 1:
                raise ValueError("the connection was lost")
            record.done()

    for key, value in ((b"a", b"a1"), (b"b", b"b1"), (b"a", b"a2"), (b"c", b"c1"), (b"a", b"a3")):
        scene.source.put(key, value)
    scene.source.put(b"c", b"c2")
    scene.start(handler)
    await until(lambda: scene.source.committable() == 6)
    assert sorted(calls[0]) == [b"a1", b"a2", b"a3", b"b1", b"c1", b"c2"]
    again = [value for call in calls[1:] for value in call]
    unmarked = calls[0][calls[0].index(b"a3") :]
    assert sorted(again) == sorted({b"b1", *unmarked})
    assert scene.processor.stats().handled == 6
    assert scene.processor.stats().in_flight == 0


async def test_records_that_a_cancelled_batch_handler_marked_as_done_are_committed(scenes, until):
    scene = scenes(batch_size=10)
    marked = []

    async def handler(records):
        records[0].done()
        marked.append(records[0])
        await asyncio.sleep(10_000)

    for value in (b"1", b"2", b"3"):
        scene.source.put(b"k", value)
    running = scene.start(handler)
    await until(lambda: marked)
    await scene.processor.aclose(2.0)
    await running
    assert scene.source.committed == {("t", 0): 1}


@pytest.mark.parametrize("batch_size", [None, 5])
async def test_a_handler_that_raises_cancelled_error_by_itself_has_failed(
    scenes, until, batch_size
):
    scene = scenes(handler_policy=POLICY, dead_letter="t.dead", batch_size=batch_size)
    done = []

    async def handler(records):
        records = records if batch_size else [records]
        if any(record.key == b"bad" for record in records):
            raise asyncio.CancelledError
        done.extend(records)

    scene.source.put(b"bad")
    scene.source.put(b"good")
    scene.start(handler)
    await until(lambda: scene.producer.sent and done)
    assert scene.producer.sent[0][3]["x-error-type"] == b"builtins.RuntimeError"
    assert scene.source.committable() == 2


@pytest.mark.parametrize("batch_size", [None, 5])
async def test_a_handler_that_cancels_its_own_task_has_failed_and_the_consumer_lives(
    scenes, until, batch_size
):
    scene = scenes(
        handler_policy=POLICY, dead_letter="t.dead", batch_size=batch_size, concurrency=1
    )
    done = []

    async def handler(records):
        records = records if batch_size else [records]
        if any(record.key == b"bad" for record in records):
            asyncio.current_task().cancel()
            await asyncio.sleep(0)
        done.extend(records)

    scene.source.put(b"bad")
    scene.source.put(b"good")
    scene.start(handler)
    await until(lambda: scene.producer.sent and done)
    assert b"cancelled the task" in scene.producer.sent[0][3]["x-error-message"]
    assert scene.source.committable() == 2


async def test_a_handler_that_raises_a_base_exception_ends_run_with_it(scenes):
    class Enough(BaseException):
        pass

    async def handler(record):
        raise Enough

    scene = scenes()
    scene.source.put(b"k")
    with pytest.raises(Enough):
        await scene.start(handler)


async def test_a_type_error_of_the_handler_is_an_ordinary_failure(scenes, until):
    async def handler(record):
        return 1 + "1"

    scene = scenes(handler_policy=HandlerPolicy(attempts=1), dead_letter="t.dead")
    scene.source.put(b"k")
    scene.start(handler)
    await until(lambda: scene.producer.sent)
    assert scene.producer.sent[0][3]["x-error-type"] == b"builtins.TypeError"


def unknown(dependency="redis"):
    return OutcomeUnknown(
        "no reply",
        dependency=dependency,
        operation="INCR",
        progress=Progress.MAYBE_APPLIED,
    )


async def test_a_retry_after_an_unknown_outcome_has_a_header_that_says_so(scenes, until):
    seen = []

    async def handler(record):
        seen.append(dict(record.headers).get("x-outcome-unknown"))
        if len(seen) < 3:
            raise LookupError from unknown()

    scene = scenes(handler_policy=POLICY)
    scene.source.put(b"k", headers=[("a", b"b")])
    scene.start(handler)
    await until(lambda: len(seen) == 3)
    assert seen == [None, b"1", b"1"]


@pytest.mark.parametrize("batch_size", [None, 5])
@pytest.mark.parametrize("verdict", ["dead_letter", "skip", "stop"])
async def test_an_unknown_outcome_is_not_retried_if_configured(scenes, until, verdict, batch_size):
    calls = []

    async def handler(record):
        calls.append(record)
        raise unknown()

    scene = scenes(
        handler_policy=POLICY,
        dead_letter="t.dead",
        on_outcome_unknown=verdict,
        batch_size=batch_size,
    )
    scene.source.put(b"k")
    scene.source.put(b"k")
    running = scene.start(handler)
    if verdict == "stop":
        with pytest.raises(OutcomeUnknown):
            await running
        return
    await until(lambda: scene.source.committable() == 2)
    assert len(calls) == (1 if batch_size else 2)
    letters = scene.producer.sent
    assert len(letters) == (2 if verdict == "dead_letter" else 0)
    for letter in letters:
        assert letter[3]["x-outcome-unknown"] == b"1"


async def test_a_dead_letter_of_a_dead_letter_keeps_its_first_origin(scenes, until):
    scene = scenes(handler_policy=HandlerPolicy(attempts=1), dead_letter="t.dead.dead")
    first = [("x-original-topic", b"orders"), ("x-original-offset", b"7"), ("x-attempts", b"3")]
    scene.source.put(b"bad", headers=first)
    scene.start(Flaky({b"bad": 1}))
    await until(lambda: scene.producer.sent)
    headers = scene.producer.sent[0][3]
    assert headers["x-original-topic"] == b"orders"
    assert headers["x-original-offset"] == b"7"
    assert headers["x-attempts"] == b"1"


async def test_an_error_whose_str_raises_is_dead_lettered(scenes, until):
    class MuteError(Exception):
        def __str__(self):
            raise LookupError

    scene = scenes(handler_policy=HandlerPolicy(attempts=1), dead_letter="t.dead")
    scene.source.put(b"bad")
    scene.start(Flaky({b"bad": 1}, MuteError()))
    await until(lambda: scene.producer.sent)
    assert b"no message" in scene.producer.sent[0][3]["x-error-message"]


async def test_a_slow_handler_is_logged_once_before_max_poll_interval(scenes, until, caplog):
    scene = scenes(max_poll_interval=100.0)

    async def handler(record):
        await asyncio.sleep(150.0 if record.key == b"long" else 1.0)

    with caplog.at_level(logging.WARNING):
        scene.source.put(b"long")
        scene.source.put(b"short")
        scene.start(handler)
        await asyncio.sleep(79.0)
        assert caplog.records == []
        await asyncio.sleep(10.0)
        (record,) = caplog.records
        assert "t[0]@0 has been running for" in record.getMessage()
        assert "max_poll_interval_ms=100000" in record.getMessage()
        await until(lambda: scene.stats.handled == 2)
    assert len(caplog.records) == 1
    polls = scene.source.polls
    assert max(b - a for a, b in itertools.pairwise(polls)) < 2.0


async def test_a_batch_that_fails_is_retried_record_by_record(scenes, until):
    calls = []

    async def handler(records):
        calls.append([record.offset for record in records])
        if any(record.value == b"poison" for record in records):
            raise ValueError

    scene = scenes(batch_size=10, dead_letter="t.dead", handler_policy=HandlerPolicy(attempts=2))
    for number in range(10):
        scene.source.put(b"%d" % (number % 3), b"poison" if number == 4 else b"v")
    scene.start(handler)
    await until(lambda: scene.source.committable() == 10)
    assert sorted(calls[0]) == list(range(10))
    assert all(len(call) == 1 for call in calls[1:])
    assert calls.count([4]) == 2
    assert [letter[3]["x-original-offset"] for letter in scene.producer.sent] == [b"4"]
    assert scene.stats.in_flight == 0
    order = [call[0] for call in calls[1:]]
    for key in range(3):
        mine = [offset for offset in order if offset % 3 == key]
        assert mine == sorted(mine)


@pytest.mark.parametrize("order", ["key", "partition", "none"])
async def test_batches_contain_all_ready_records_and_keep_the_order(scenes, sources, until, order):
    calls = []

    async def handler(records):
        assert isinstance(records, list)
        calls.append([(record.partition, record.offset) for record in records])
        await asyncio.sleep(0.1)

    scene = scenes(sources(2), order=order, batch_size=25, concurrency=4)
    for number in range(200):
        scene.source.put(b"%d" % (number % 7), number=number % 2)
    scene.start(handler)
    await until(lambda: sum(map(len, calls)) == 200)
    assert len(calls) <= 14
    assert max(map(len, calls)) == 25
    done = [each for call in calls for each in call]
    assert len(set(done)) == 200
    if order == "partition":
        for number in range(2):
            mine = [offset for where, offset in done if where == number]
            assert mine == sorted(mine)
    await until(lambda: scene.source.committable(0) == scene.source.committable(1) == 100)
    assert scene.stats.in_flight == scene.stats.in_flight_bytes == 0


async def test_texts_of_handlers_are_bounded_and_cleaned_in_headers_and_logs(scenes, until, caplog):
    hostile = "\x1b[2J\r\nnext line redis://u:hunter2@h " + "x" * 100_000
    scene = scenes(handler_policy=HandlerPolicy(attempts=1), dead_letter="t.dead")
    write = scene.producer.send_and_wait

    async def write_or_raise(*args, **record):
        if scene.producer.attempts == 0:
            scene.producer.attempts = 1
            raise RuntimeError(hostile)
        await write(*args, **record)

    scene.producer.send_and_wait = write_or_raise
    scene.source.put(b"bad")
    scene.start(Flaky({b"bad": 1}, ValueError(hostile)))
    await until(lambda: scene.producer.sent)
    message = scene.producer.sent[0][3]["x-error-message"].decode()
    logged = [
        each for each in caplog.messages if "dead letter of t[0]@0 raised RuntimeError" in each
    ]
    assert len(logged) == 1
    assert len(message) <= 1_000
    for text in (message, *caplog.messages):
        assert len(text) <= 1_000
        assert text.isprintable()
        assert "hunter2" not in text
