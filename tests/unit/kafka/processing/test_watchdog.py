"""The progress watchdog: a run fails liveness if its handlers make no progress by themselves."""

import asyncio

from resilient_io import Cause, Dependency
from resilient_io.kafka.processing import HandlerPolicy
from resilient_io.kafka.processing.watchdog import answering_since

BOUND = 60.0


def now():
    return asyncio.get_running_loop().time()


class Door:
    """A handler that handles some records at once, and others only when it is open."""

    def __init__(self, *held):
        self.held = held
        self.open = asyncio.Event()
        self.handled = []

    async def __call__(self, record):
        if record.key in self.held:
            await self.open.wait()
        self.handled.append(record.key)


async def test_liveness_fails_when_no_handler_ends_within_the_limit(scenes, until):
    scene = scenes(max_poll_interval=BOUND)
    door = Door(b"a", b"b")
    scene.start(door)
    began = now()
    for key in (b"a", b"b"):
        scene.source.put(key)
    await asyncio.sleep(BOUND - 6)
    assert scene.processor.liveness_failure(began) is None
    await asyncio.sleep(12)
    why = scene.processor.liveness_failure(began)
    assert why.startswith("run() has 2 records in memory and 2 running handlers, and has made no")
    door.open.set()
    await until(lambda: len(door.handled) == 2)
    assert scene.processor.liveness_failure(began) is None


async def test_liveness_is_kept_while_any_handler_makes_progress(scenes):
    scene = scenes(max_poll_interval=BOUND)
    door = Door(b"held")
    scene.start(door)
    scene.source.put(b"held")
    for _ in range(30):
        scene.source.put(b"free")
        await asyncio.sleep(10)
        assert scene.processor.liveness_failure(0.0) is None
    assert len(door.handled) == 30
    door.open.set()


async def test_arriving_records_are_not_progress(scenes):
    scene = scenes(max_poll_interval=BOUND, concurrency=1)
    door = Door(b"held")
    scene.start(door)
    scene.source.put(b"held")
    for _ in range(14):
        scene.source.put(b"free")
        await asyncio.sleep(5)
    assert scene.processor.liveness_failure(0.0) is not None
    door.open.set()


async def test_an_idle_run_is_alive(scenes):
    scene = scenes(max_poll_interval=BOUND)
    scene.start(Door())
    await asyncio.sleep(10 * BOUND)
    assert scene.processor.liveness_failure(0.0) is None
    scene.source.put(b"a")
    await asyncio.sleep(1)
    assert scene.processor.liveness_failure(0.0) is None


async def test_a_run_that_backs_off_is_alive(scenes):
    policy = HandlerPolicy(attempts=5, backoff=10 * BOUND, backoff_cap=10 * BOUND)
    scene = scenes(max_poll_interval=BOUND, handler_policy=policy, on_failure="skip")

    async def fail(record):
        raise ValueError(record)

    scene.start(fail)
    scene.source.put(b"a")
    await asyncio.sleep(4 * BOUND)
    assert scene.stats.backing_off == 1
    assert scene.processor.liveness_failure(0.0) is None


async def test_an_outage_of_a_required_dependency_does_not_count(scenes):
    redis = Dependency("redis")
    redis.succeeded()
    scene = scenes(max_poll_interval=BOUND, requires=[redis])
    door = Door(b"a")
    scene.start(door)
    scene.source.put(b"a")
    await asyncio.sleep(BOUND / 2)
    redis.failed(Cause.REFUSED, definite=True)
    await asyncio.sleep(10 * BOUND)
    assert scene.processor.liveness_failure(0.0) is None
    redis.succeeded()
    await asyncio.sleep(BOUND - 6)  # the time starts again when the dependency is back
    assert scene.processor.liveness_failure(0.0) is None
    await asyncio.sleep(12)
    assert scene.processor.liveness_failure(0.0) is not None
    door.open.set()


async def test_time_before_kafka_recovered_does_not_count(scenes):
    scene = scenes(max_poll_interval=BOUND)
    door = Door(b"a")
    scene.start(door)
    scene.source.put(b"a")
    await asyncio.sleep(2 * BOUND)
    assert scene.processor.liveness_failure(now() - BOUND / 2) is None
    assert scene.processor.liveness_failure(0.0) is not None
    door.open.set()


async def test_a_handler_may_take_as_long_as_its_own_timeout_allows(scenes):
    policy = HandlerPolicy(attempts=1, timeout=5 * BOUND)
    scene = scenes(max_poll_interval=BOUND, handler_policy=policy, on_failure="skip")
    door = Door(b"a")
    scene.start(door)
    scene.source.put(b"a")
    await asyncio.sleep(4 * BOUND)
    assert scene.processor.liveness_failure(0.0) is None
    door.open.set()


async def test_a_run_that_ends_is_not_a_liveness_failure(scenes):
    scene = scenes(max_poll_interval=BOUND, handler_policy=HandlerPolicy(timeout=None))
    door = Door(b"a")
    scene.start(door)
    scene.source.put(b"a")
    await asyncio.sleep(2 * BOUND)
    assert scene.processor.liveness_failure(0.0) is not None
    await scene.aclose()
    assert scene.processor.liveness_failure(0.0) is None


async def test_a_degraded_required_dependency_does_not_count(scenes):
    redis = Dependency("redis")
    redis.succeeded()
    scene = scenes(max_poll_interval=BOUND, requires=[redis])
    door = Door(b"a")
    scene.start(door)
    scene.source.put(b"a")
    await asyncio.sleep(BOUND / 2)
    redis.refused(Cause.READ_ONLY, "a replica")
    await asyncio.sleep(10 * BOUND)
    assert scene.processor.liveness_failure(0.0) is None
    redis.accepted()
    await asyncio.sleep(BOUND - 6)
    assert scene.processor.liveness_failure(0.0) is None
    await asyncio.sleep(12)
    assert scene.processor.liveness_failure(0.0) is not None
    door.open.set()


async def test_time_in_which_the_process_was_stopped_does_not_count(scenes):
    scene = scenes(max_poll_interval=BOUND)
    door = Door(b"a")
    scene.start(door)
    scene.source.put(b"a")
    await asyncio.sleep(BOUND / 2)
    asyncio.get_running_loop().block(10 * BOUND)
    assert scene.processor.liveness_failure(0.0) is None
    await asyncio.sleep(BOUND / 4)
    assert scene.processor.liveness_failure(0.0) is None
    await asyncio.sleep(BOUND / 2)
    assert scene.processor.liveness_failure(0.0) is not None
    door.open.set()


async def test_a_kafka_that_is_degraded_repeatedly_hides_no_missing_progress():
    kafka = Dependency("kafka")
    kafka.succeeded()
    began = now()
    for _ in range(5):
        await asyncio.sleep(BOUND / 2)
        kafka.part_lost("orders[0]", Cause.STALLED)
        await asyncio.sleep(BOUND / 2)
        kafka.part_back("orders[0]")
    assert kafka.since == now()
    assert answering_since(kafka) == began
    kafka.failed(Cause.REFUSED, definite=True)
    await asyncio.sleep(BOUND)
    kafka.succeeded()
    assert answering_since(kafka) == now()
