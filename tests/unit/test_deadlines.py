"""One deadline over everything inside a block."""

import asyncio
import math

import pytest

import resilient_io
from resilient_io.deadlines import context_without_deadline, current_deadline, deadline
from resilient_io.errors import ConfigurationError


async def test_deadline_is_the_loop_time_at_which_the_block_expires():
    loop = asyncio.get_running_loop()
    await asyncio.sleep(3)
    assert current_deadline() is None
    with deadline(2.0) as limit:
        assert current_deadline() == limit.at == loop.time() + 2.0
        await asyncio.sleep(0.5)
        assert limit.remaining() == pytest.approx(1.5)
        await asyncio.sleep(5)
        assert limit.remaining() == 0.0
    assert current_deadline() is None


async def test_nested_deadline_only_shortens():
    with deadline(2.0) as outer:
        with deadline(10.0) as longer:
            assert longer.at == current_deadline() == outer.at
        with deadline(0.5):
            assert current_deadline() == pytest.approx(outer.at - 1.5)
        assert current_deadline() == outer.at


async def test_deadline_ends_with_the_block_also_after_an_exception():
    with pytest.raises(KeyError), deadline(1.0):
        raise KeyError
    assert current_deadline() is None


async def test_task_inherits_the_deadline_of_the_block_that_creates_it():
    async def look():
        return current_deadline()

    beside = asyncio.create_task(look())
    with deadline(1.0) as limit:
        inside = asyncio.create_task(look())
        alone = asyncio.create_task(look(), context=context_without_deadline())
    assert await inside == limit.at
    assert await beside is None
    assert await alone is None


async def test_other_code_is_not_interrupted():
    with deadline(1.0):
        await asyncio.sleep(60)


@pytest.mark.parametrize("seconds", [0, -1, math.nan, math.inf, True, "1", None])
async def test_invalid_seconds_are_rejected(seconds):
    with pytest.raises(ConfigurationError, match=r"seconds=.*use a finite number above 0"):
        deadline(seconds).__enter__()
    assert current_deadline() is None


def test_deadline_outside_a_loop_says_where_to_use_it():
    with pytest.raises(RuntimeError, match="inside a coroutine"), deadline(1.0):
        pass


def test_deadline_is_public():
    assert resilient_io.deadline is deadline
