"""One loop or `run` at a time."""

import asyncio
from types import SimpleNamespace

import pytest

from resilient_io.kafka import KafkaClosed
from resilient_io.kafka.consumer.iteration import ExclusiveUse

RUN, LOOP = (
    SimpleNamespace(activity=activity, retry_topics=()) for activity in ("running", "iterating")
)


async def test_a_second_user_is_refused_or_waits_for_one_that_is_ending():
    use = ExclusiveUse("kafka", lambda topics: None)
    await use.acquire(RUN)
    with pytest.raises(RuntimeError, match="this consumer is running already"):
        await use.acquire(LOOP)
    use.expect_release()
    waiting = asyncio.create_task(use.acquire(LOOP))
    await asyncio.sleep(1.0)
    assert not waiting.done()
    use.release()
    await waiting
    with pytest.raises(RuntimeError, match="this consumer is iterating already"):
        await use.acquire(RUN)


async def test_closing_refuses_a_user_that_waits():
    use = ExclusiveUse("kafka", lambda topics: None)
    await use.acquire(RUN)
    use.expect_release()
    waiting = asyncio.create_task(use.acquire(LOOP))
    await asyncio.sleep(1.0)
    use.close()
    use.release()
    with pytest.raises(KafkaClosed):
        await waiting
    assert use.current is None
