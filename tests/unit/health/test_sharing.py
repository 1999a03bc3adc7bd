"""Several clients report to one dependency: each reports for itself, and the last one closes it."""

import asyncio
import math

import pytest

from resilient_io.health import Cause, ClientDependency, Dependency, ProbeFailed, State

UP, DOWN, DEGRADED, UNKNOWN = State.UP, State.DOWN, State.DEGRADED, State.UNKNOWN


async def pong(suspicious):
    return 0.001


def attach(dependency, probe=pong):
    return dependency.start(probe, last_reply=lambda: -math.inf)


@pytest.fixture
async def up():
    dependency = Dependency("redis")
    attach(dependency)
    await dependency.until_up()
    yield dependency
    await dependency.aclose()


async def test_parts_of_two_clients_with_the_same_name_are_two_parts(up):
    first, second = up.reporter(), up.reporter()
    first.part_lost("connection 1", Cause.CONNECTION_LOST)
    second.part_lost("connection 1", Cause.CONNECTION_LOST)
    await asyncio.sleep(0.1)
    assert up.snapshot()["parts_lost"] == ["connection 1", "connection 1"]
    first.part_back("connection 1")
    assert up.state is DEGRADED
    second.part_back("connection 1")
    assert up.state is UP


@pytest.mark.parametrize("probed", [False, True])
async def test_parts_of_a_closed_client_are_no_longer_lost(up, probed):
    first, second = up.reporter(), up.reporter()
    first.part_lost("connection 0", Cause.CONNECTION_LOST)
    first.part_lost("connection 1", Cause.CONNECTION_LOST)
    if probed:
        await asyncio.sleep(0.1)
        assert up.state is DEGRADED
    second.close()
    assert up.snapshot()["parts_lost"] == ["connection 0", "connection 1"]
    first.close()
    first.close()
    await asyncio.sleep(0.1)
    assert up.snapshot()["parts_lost"] == []
    assert up.state is UP


async def test_reports_of_a_closed_client_are_ignored():
    dependency = Dependency("redis")
    reporter = dependency.reporter()
    reporter.close()
    reporter.succeeded(0.1)
    reporter.refused(Cause.READ_ONLY)
    reporter.part_lost("connection 0", Cause.RESET)
    for _ in range(5):
        reporter.failed(Cause.RESET, definite=True)
    assert (dependency.state, dependency.history) == (UNKNOWN, ())
    dependency.refused(Cause.READ_ONLY)
    reporter.accepted()
    reporter.part_back("connection 0")
    assert dependency.refusing


async def test_a_reporter_forwards_until_it_is_closed():
    dependency = Dependency("redis")
    reporter = dependency.reporter()
    reporter.succeeded(0.5)
    assert (dependency.state, dependency.latency) == (UP, 0.5)
    reporter.refused(Cause.OUT_OF_MEMORY, "full")
    assert dependency.refusing
    reporter.accepted()
    assert not dependency.refusing
    reporter.failed(Cause.REFUSED, "connection refused", definite=True)
    assert dependency.state is DOWN


def test_a_reporter_can_be_closed_in_a_later_loop():
    dependency = Dependency("redis")
    reporter = dependency.reporter()

    async def lose():
        attach(dependency)
        await dependency.until_up()
        reporter.part_lost("connection 0", Cause.RESET)

    async def close():
        reporter.close()

    asyncio.run(lose())
    asyncio.run(close())


async def test_clients_are_notified_when_refusals_begin_and_end_without_a_change_of_state(up):
    seen, changes = [], []
    handle = up.on_update(lambda dependency: seen.append(dependency.refusing))
    up.on_change(changes.append)
    up.part_lost("connection 0", Cause.RESET)
    await asyncio.sleep(0.1)
    assert (up.state, seen) == (DEGRADED, [False])
    up.refused(Cause.OUT_OF_MEMORY)
    await asyncio.sleep(0)
    up.refused(Cause.OUT_OF_MEMORY)
    await asyncio.sleep(0)
    assert seen == [False, True]
    up.accepted()
    await asyncio.sleep(0)
    assert seen == [False, True, False]
    assert len(changes) == 1
    handle.remove()


async def test_the_last_client_closes_the_dependency_that_a_client_created():
    dependency = ClientDependency("redis")
    first, second = attach(dependency), attach(dependency)
    await dependency.until_up()
    watch = dependency.watch()
    await anext(watch)
    await first.detach()
    await dependency.release()
    assert dependency.state is UP
    await second.detach()
    await dependency.release()
    assert [change.state async for change in watch] == [UNKNOWN]
    third = attach(dependency)
    await dependency.until_up(1)
    await third.detach()
    await dependency.release()


async def test_no_client_closes_the_dependency_of_the_application():
    dependency = Dependency("redis")
    attachment = attach(dependency)
    await dependency.until_up()
    waiting = asyncio.create_task(dependency.until_up(5))
    await attachment.detach()
    await dependency.release()
    waiting = asyncio.create_task(dependency.until_up(5))
    await asyncio.sleep(1)
    assert not waiting.done()
    attachment = attach(dependency)
    await waiting
    await dependency.aclose()


async def test_a_suspicion_survives_the_client_whose_probe_was_checking_it():
    probes = []

    async def stuck(suspicious):
        probes.append(("first", suspicious))
        if len(probes) > 1:
            await asyncio.Event().wait()
        return 0.001

    async def refused(suspicious):
        probes.append(("second", suspicious))
        raise ProbeFailed(Cause.REFUSED, "connection refused", definite=True)

    dependency = Dependency("redis")
    first, second = attach(dependency, stuck), attach(dependency, refused)
    await dependency.until_up()
    dependency.failed(Cause.RESET)
    await asyncio.sleep(0.1)
    assert probes[-1] == ("first", True)
    await first.detach()
    await asyncio.sleep(0.01)
    assert probes[-1] == ("second", True)
    assert dependency.state is DOWN
    await second.detach()


async def test_replies_do_not_overrule_a_server_that_answers_that_it_does_not_serve():
    loading = False

    async def probe(suspicious):
        await asyncio.sleep(0.01)
        if loading:
            raise ProbeFailed(Cause.LOADING, "loading", definite=True, answered=True)
        return 0.01

    dependency = Dependency("redis")
    dependency.start(probe, last_reply=asyncio.get_running_loop().time)  # replies never stop
    await dependency.until_up()
    loading = True
    dependency.failed(Cause.LOADING, "loading")
    await asyncio.sleep(0.1)
    assert (dependency.state, dependency.cause) == (DOWN, Cause.LOADING)
    dependency.succeeded()  # a server that is loading accepts connections
    assert dependency.state is DOWN
    loading = False
    await dependency.until_up(1)
    await dependency.aclose()
