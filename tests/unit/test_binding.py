"""What the clients of one event loop share is made once, and forgotten with the loop."""

import asyncio
import gc
import weakref

from resilient_io.binding import PerLoop


class Shared:
    """What clients share."""


def test_each_loop_has_its_own_until_it_is_removed():
    shared = PerLoop()
    with asyncio.Runner() as first, asyncio.Runner() as second:
        one = shared.of(first.get_loop(), Shared)
        assert shared.of(first.get_loop(), Shared) is one
        assert shared.of(second.get_loop(), Shared) is not one
        del shared[first.get_loop()]
        assert shared.of(first.get_loop(), Shared) is not one


def test_entry_of_a_closed_loop_is_removed():
    shared = PerLoop()
    with asyncio.Runner() as runner:
        closed = runner.get_loop()
        shared.of(closed, Shared)
    with asyncio.Runner() as runner:
        shared.of(runner.get_loop(), Shared)
        assert list(shared) == [runner.get_loop()]


def test_a_loop_is_not_kept():
    shared = PerLoop()
    runner = asyncio.Runner()
    loop = weakref.ref(runner.get_loop())
    shared.of(runner.get_loop(), Shared)
    runner.close()
    del runner
    gc.collect()
    assert loop() is None
    assert not shared
