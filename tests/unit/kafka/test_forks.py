"""A client that was used before a fork, or in another event loop, says so: nothing hangs."""

import asyncio
import subprocess
import sys
import textwrap

import pytest

from resilient_io.binding import LoopBinding


def run(script):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")[:-1]


CALLS = """
    import asyncio, os, sys
    from resilient_io.kafka import ResilientKafkaConsumer, ResilientKafkaProducer

    producer = ResilientKafkaProducer("127.0.0.1:1")
    consumer = ResilientKafkaConsumer("topic", bootstrap_servers="127.0.0.1:1", group_id="group")
    unused = ResilientKafkaProducer("127.0.0.1:1")

    async def begin():
        await producer.__aenter__()
        await consumer.__aenter__()

    async def use():
        await told(producer.send("topic", b"x"))
        await told(producer.send_and_wait("topic", b"x"))
        await told(producer.send_many("topic", [b"x"]))
        await told(producer.flush())
        await told(producer.transaction().__aenter__())
        await told(producer.__aenter__())
        await told(consumer.__aenter__())
        await told(first())
        await told(producer.aclose(0.1))
        await told(consumer.aclose(0.1))
        await told(producer.send("topic", b"x"))

    async def first():
        return await anext(aiter(consumer))

    async def told(call):
        try:
            async with asyncio.timeout(10):
                print(await call)
        except Exception as error:
            print(type(error).__name__, error)
        sys.stdout.flush()
"""


@pytest.mark.parametrize("loop_of_child", ["asyncio.new_event_loop()", "loop"])
def test_after_a_fork_each_use_says_to_make_a_new_one_and_closing_has_nothing_to_do(loop_of_child):
    said = run(
        CALLS
        + f"""
    loop = asyncio.new_event_loop()
    loop.run_until_complete(begin())
    if os.fork() == 0:
        code = 1
        try:
            {loop_of_child}.run_until_complete(use())
            asyncio.new_event_loop().run_until_complete(unused.aclose())
            code = 0
        finally:
            os._exit(code)
    _, status = os.wait()

    async def end():
        await producer.aclose(0.1)
        await consumer.aclose(0.1)

    loop.run_until_complete(end())
    sys.exit(os.waitstatus_to_exitcode(status))
    """
    )
    assert len(said) == 11
    for line in said[:8]:
        assert line.startswith("RuntimeError this client was used before a fork")
    assert "make a new ResilientKafkaProducer in the child process" in said[0]
    assert "make a new ResilientKafkaConsumer in the child process" in said[6]
    assert said[8].startswith("DeliveryReport(delivered=0")
    assert said[9] == "None"
    assert said[10].startswith("KafkaClosed")


def test_in_another_living_loop_each_use_of_a_producer_says_so_closing_included():
    said = run(
        CALLS
        + """
    loop = asyncio.new_event_loop()
    loop.run_until_complete(begin())
    asyncio.run(use())

    async def end():
        await told(producer.aclose(0.1))
        await consumer.aclose(0.1)

    loop.run_until_complete(end())
    """
    )
    assert len(said) == 12
    for line in [*said[:9], said[10]]:
        assert line.startswith("RuntimeError this client is in use in another running event loop")
    assert said[11].startswith("DeliveryReport(delivered=0")


def test_one_that_was_not_in_use_before_a_fork_is_the_childs_own():
    said = run(
        CALLS
        + """
    async def use_unused():
        await told(unused.__aenter__())
        await told(unused.aclose(0.1))

    if os.fork() == 0:
        asyncio.run(use_unused())
        os._exit(0)
    os.wait()
    """
    )
    assert said[0].startswith("<ResilientKafkaProducer")
    assert said[1].startswith("DeliveryReport(delivered=0")


def test_what_lived_in_a_closed_loop_may_begin_anew_in_a_child():
    with asyncio.Runner() as runner:
        residence = runner.run(settle())
    residence.note_fork()
    assert residence.closed
    assert not residence.forked


async def settle():
    return LoopBinding()
