"""Callbacks: isolated from calls, from probes and from each other."""

import asyncio
import functools
import logging
import math

import pytest

from resilient_io.deadlines import current_deadline, deadline
from resilient_io.health import Cause, Dependency, State


class Scene:
    """A dependency whose state the test sets."""

    def __init__(self):
        self.dependency = Dependency("redis")
        self.seen = []

    def note(self, change):
        self.seen.append(change.state.value)

    def up(self):
        self.dependency.succeeded()

    def degrade(self):
        self.dependency.part_lost("connection", Cause.RESET)

    def heal(self):
        self.dependency.part_back("connection")


@pytest.fixture
async def scene():
    made = Scene()
    yield made
    await made.dependency.aclose()
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def settle():
    for _ in range(5):
        await asyncio.sleep(0)


async def test_sync_callback_sees_every_change_but_never_runs_inside_the_call(scene):
    scene.dependency.on_change(scene.note)
    scene.up()
    scene.degrade()
    scene.heal()
    assert scene.seen == []
    await settle()
    assert scene.seen == ["up", "degraded", "up"]


async def test_async_callback_is_awaited(scene):
    async def note(change):
        await asyncio.sleep(1)
        scene.note(change)

    scene.dependency.on_change(note)
    scene.up()
    await asyncio.sleep(0.5)
    assert scene.seen == []
    await asyncio.sleep(1)
    assert scene.seen == ["up"]


async def test_awaitable_that_a_sync_callback_returns_is_awaited(scene):
    async def note(change, word):
        scene.seen.append(word)

    scene.dependency.on_change(lambda change: note(change, "lambda"))
    scene.dependency.on_change(functools.partial(note, word="partial"))
    scene.up()
    await settle()
    assert scene.seen == ["lambda", "partial"]


async def test_slow_async_callback_gets_only_the_latest_change_and_counts_the_others(scene):
    async def slow(change):
        scene.note(change)
        await asyncio.sleep(10)

    subscription = scene.dependency.on_change(slow)
    scene.up()
    await asyncio.sleep(1)
    for _ in range(50):
        scene.degrade()
        scene.heal()
    scene.degrade()
    await asyncio.sleep(10)
    assert scene.seen == ["up", "degraded"]
    assert subscription.dropped == 100
    assert len(subscription._pending) == 0


async def test_async_callback_gets_the_first_and_the_latest_change_of_a_burst(scene):
    async def slow(change):
        scene.note(change)
        await asyncio.sleep(1)

    subscription = scene.dependency.on_change(slow)
    scene.up()
    scene.degrade()
    scene.heal()
    await asyncio.sleep(5)
    assert scene.seen == ["up", "up"]
    assert subscription.dropped == 1


async def test_slow_callback_delays_neither_the_others_nor_the_probe(scene):
    async def slow(change):
        await asyncio.sleep(1000)

    async def pong(suspicious):
        return 0.0

    scene.dependency.on_change(slow)
    scene.dependency.on_change(scene.note)
    attachment = scene.dependency.start(pong, last_reply=lambda: -math.inf)
    await asyncio.sleep(0.1)
    assert scene.seen == ["up"]
    await asyncio.sleep(3)
    assert scene.dependency.snapshot()["probes"]["ok"] == 4
    await attachment.detach()


@pytest.mark.parametrize("kind", ["sync", "async", "cancelled sync", "cancelled async"])
async def test_exception_in_a_callback_is_logged_once_and_affects_nothing_else(scene, caplog, kind):
    failure = asyncio.CancelledError() if "cancelled" in kind else ValueError("mine")

    def wrong(change):
        raise failure

    async def wrong_later(change):
        await asyncio.sleep(0)
        raise failure

    subscription = scene.dependency.on_change(wrong_later if "async" in kind else wrong)
    scene.dependency.on_change(scene.note)
    for step in (scene.up, scene.degrade, scene.heal):
        step()
        await settle()
    assert scene.seen == ["up", "degraded", "up"]
    assert subscription.failures == 3
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 1
    assert "raised an exception; further ones are only counted" in errors[0].getMessage()
    assert isinstance(errors[0].exc_info[1], type(failure))


async def test_removed_callback_is_not_called_even_if_a_call_was_scheduled(scene):
    subscription = scene.dependency.on_change(scene.note)
    scene.up()
    subscription.remove()
    subscription.remove()
    await settle()
    scene.degrade()
    await settle()
    assert scene.seen == []


async def test_subscription_is_a_context_manager(scene):
    with scene.dependency.on_change(scene.note):
        scene.up()
        await settle()
    scene.degrade()
    await settle()
    assert scene.seen == ["up"]


async def test_callback_may_remove_itself_and_end(scene):
    async def once(change):
        subscription.remove()
        await asyncio.sleep(1)
        scene.note(change)

    subscription = scene.dependency.on_change(once)
    scene.up()
    await asyncio.sleep(0.5)
    scene.degrade()
    await asyncio.sleep(2)
    assert scene.seen == ["up"]


async def test_function_registered_twice_is_called_twice(scene):
    first = scene.dependency.on_change(scene.note)
    scene.dependency.on_change(scene.note)
    scene.up()
    await settle()
    first.remove()
    scene.degrade()
    await settle()
    assert scene.seen == ["up", "up", "degraded"]


@pytest.mark.parametrize("callback", [None, 3, "print"])
async def test_callback_that_is_not_callable_is_refused(scene, callback):
    with pytest.raises(TypeError, match=r"callback must be a function .* use on_change\(print\)"):
        scene.dependency.on_change(callback)


async def test_callback_inherits_no_deadline_from_the_code_that_registered_it(scene):
    with deadline(1):
        scene.dependency.on_change(lambda change: scene.seen.append(current_deadline()))
    with deadline(2):
        scene.up()
    await settle()
    assert scene.seen == [None]


async def test_closing_waits_for_callbacks_and_then_cancels_them(caplog):
    scene = Scene()
    ended = []

    async def quick(change):
        await asyncio.sleep(0.5)
        ended.append("quick")

    async def slow(change):
        try:
            await asyncio.sleep(1000)
        finally:
            ended.append("slow")

    subscription = scene.dependency.on_change(slow)
    scene.dependency.on_change(quick)
    scene.up()
    await scene.dependency.aclose()
    assert ended == ["quick", "slow"]
    assert asyncio.get_running_loop().time() == 1.0
    assert subscription.failures == 0
    assert not [record for record in caplog.records if record.levelno == logging.ERROR]


async def test_callback_that_does_not_end_cannot_block_closing():
    scene = Scene()
    held = asyncio.Event()

    async def stubborn(change):
        while not held.is_set():
            try:
                await held.wait()
            except asyncio.CancelledError:
                continue

    scene.dependency.on_change(stubborn)
    scene.up()
    await scene.dependency.aclose()
    assert asyncio.get_running_loop().time() == 2.0
    held.set()
    await settle()


async def test_callback_may_close_the_dependency():
    scene = Scene()

    async def close(change):
        await scene.dependency.aclose()
        scene.note(change)

    scene.dependency.on_change(close)
    scene.up()
    await asyncio.sleep(5)
    assert scene.seen == ["up"]


async def test_cancelled_close_returns_immediately_and_the_rest_ends_in_the_background():
    scene = Scene()

    async def slow(change):
        await asyncio.sleep(1000)

    async def stuck(suspicious):
        await asyncio.sleep(1000)

    scene.dependency.on_change(slow)
    scene.dependency.start(stuck, last_reply=lambda: -math.inf)
    scene.up()
    closing = asyncio.create_task(scene.dependency.aclose())
    await asyncio.sleep(0.5)
    closing.cancel()
    await asyncio.wait([closing])
    assert closing.cancelled()
    assert asyncio.get_running_loop().time() == 0.5
    await settle()
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert scene.dependency.state is State.UNKNOWN
