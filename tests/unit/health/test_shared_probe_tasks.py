"""Probes that do not wait share a task; one that waits keeps the task in which it began."""

import asyncio
import gc
import math
import weakref

import pytest

from resilient_io.health import Cause, Dependency, ProbeFailed, State

INTERVAL = 1.0


def no_reply():
    return -math.inf


class Watched:
    """Dependencies with the same probe, which belong to a test."""

    def __init__(self):
        self.dependencies = []

    def add(self, probe, count=1):
        added = [Dependency(f"dependency {number}") for number in range(count)]
        for dependency in added:
            dependency.start(probe, last_reply=no_reply)
        self.dependencies += added
        return added


@pytest.fixture
async def watched():
    watched = Watched()
    yield watched
    for dependency in watched.dependencies:
        await dependency.aclose()
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.fixture
async def created(monkeypatch):
    """The names of the tasks that are created."""
    names, loop = [], asyncio.get_running_loop()
    create_task = loop.create_task

    def record(work, *, name=None, **options):
        names.append(name)
        return create_task(work, name=name, **options)

    monkeypatch.setattr(loop, "create_task", record)
    return names


async def test_probes_that_do_not_wait_share_a_task(watched, created):
    tasks = []

    async def probe(_suspicious):
        tasks.append(asyncio.current_task())
        return 0.0

    created.clear()
    dependencies = watched.add(probe, 100)
    await asyncio.sleep(10.5 * INTERVAL)
    assert len(tasks) == 1100
    assert created == ["resilient-io probes"] * 11
    assert all(dependency.state is State.UP for dependency in dependencies)


async def test_many_dependencies_wake_the_process_a_few_times_for_each_interval(watched, created):
    async def probe(_suspicious):
        return 0.0

    for _ in range(100):
        watched.add(probe)
        await asyncio.sleep(INTERVAL / 100)
    created.clear()
    await asyncio.sleep(10 * INTERVAL)
    assert len(created) <= 60


async def test_probe_that_waits_keeps_its_task_and_delays_no_other(watched):
    seen = {}

    def probe_of(name, wait):
        async def probe(_suspicious):
            before = asyncio.current_task()
            began = asyncio.get_running_loop().time()
            await wait()
            seen.setdefault(name, []).append((began, asyncio.current_task() is before))
            return 0.0

        return probe

    async def time_out():
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await asyncio.sleep(60)

    async def no_wait():
        pass

    async def bare_yield():
        for _ in range(3):
            await asyncio.sleep(0)

    waits = {"first": time_out, "second": no_wait, "third": bare_yield, "fourth": time_out}
    for name, wait in waits.items():
        watched.add(probe_of(name, wait))
    await asyncio.sleep(0.5 * INTERVAL)
    assert seen == {name: [(0.0, True)] for name in waits}


async def test_result_of_a_probe_may_be_any_awaitable(watched):
    def probe(_suspicious):
        future = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_later(0.1, future.set_result, 0.1)
        return future

    [dependency] = watched.add(probe)
    await dependency.until_up(1)
    assert dependency.latency == 0.1


async def test_probe_that_raises_at_once_is_a_failed_probe(watched):
    def probe(_suspicious):
        raise ProbeFailed(Cause.REFUSED, "connection refused", definite=True)

    async def good(_suspicious):
        return 0.0

    [dependency], [other] = watched.add(probe), watched.add(good)
    await asyncio.sleep(0.1)
    assert dependency.state is State.DOWN
    assert other.state is State.UP


async def test_probe_that_detaches_its_own_client_keeps_no_other_from_being_probed(watched):
    attachments = []

    async def detach(_suspicious):
        with pytest.raises(asyncio.CancelledError):
            await attachments[0].detach()
        return 0.0

    async def good(_suspicious):
        return 0.0

    leaving = Dependency("leaving")
    attachments.append(leaving.start(detach, last_reply=no_reply))
    [other] = watched.add(good)
    await asyncio.sleep(3.5 * INTERVAL)
    assert leaving.state is State.UNKNOWN
    assert leaving.snapshot()["probes"] == {"ok": 0, "failed": 0}
    assert other.snapshot()["probes"] == {"ok": 4, "failed": 0}


async def test_dependency_that_is_detached_before_its_turn_leaves_no_task(watched):
    async def probe(_suspicious):
        raise AssertionError("was probed")

    dependency = Dependency("redis")
    attachment = dependency.start(probe, last_reply=no_reply)
    await attachment.detach()
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert dependency.state is State.UNKNOWN


async def test_other_probes_go_on_when_one_is_cancelled(watched):
    async def stuck(_suspicious):
        await asyncio.sleep(60)

    async def good(_suspicious):
        return 0.0

    dependency = Dependency("stuck")
    attachment = dependency.start(stuck, last_reply=no_reply)
    [other] = watched.add(good)
    await asyncio.sleep(0.5)
    await attachment.detach()
    await asyncio.sleep(3 * INTERVAL)
    assert other.snapshot()["probes"] == {"ok": 4, "failed": 0}


def test_a_loop_is_not_kept_after_the_last_dependency_was_closed():
    async def probe(_suspicious):
        return 0.0

    async def use():
        for _ in range(2):
            dependency = Dependency("dependency")
            dependency.start(probe, last_reply=no_reply)
            await asyncio.sleep(0.01)
            await dependency.aclose()
        return weakref.ref(asyncio.get_running_loop())

    kept = asyncio.run(use())
    gc.collect()
    assert kept() is None
