"""Clients that were used before a fork, or in another event loop, raise a clear error."""

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
        await report(producer.send("topic", b"x"))
        await report(producer.send_and_wait("topic", b"x"))
        await report(producer.send_many("topic", [b"x"]))
        await report(producer.flush())
        await report(producer.transaction().__aenter__())
        await report(producer.__aenter__())
        await report(consumer.__aenter__())
        await report(first())
        await report(producer.aclose(0.1))
        await report(consumer.aclose(0.1))
        await report(producer.send("topic", b"x"))

    async def first():
        return await anext(aiter(consumer))

    async def report(call):
        try:
            async with asyncio.timeout(10):
                print(await call)
        except Exception as error:
            print(type(error).__name__, error)
        sys.stdout.flush()
"""


@pytest.mark.parametrize("child_loop", ["asyncio.new_event_loop()", "loop"])
def test_every_use_after_a_fork_raises_an_error_and_closing_does_nothing(child_loop):
    lines = run(
        CALLS
        + f"""
    loop = asyncio.new_event_loop()
    loop.run_until_complete(begin())
    if os.fork() == 0:
        code = 1
        try:
            {child_loop}.run_until_complete(use())
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
    assert len(lines) == 11
    for line in lines[:8]:
        assert line.startswith("RuntimeError this client was used before a fork")
    assert "create a new ResilientKafkaProducer in the child process" in lines[0]
    assert "create a new ResilientKafkaConsumer in the child process" in lines[6]
    assert lines[8].startswith("DeliveryReport(delivered=0")
    assert lines[9] == "None"
    assert lines[10].startswith("KafkaClosed")


def test_every_use_of_a_producer_in_another_running_loop_raises_an_error_and_so_does_closing():
    lines = run(
        CALLS
        + """
    loop = asyncio.new_event_loop()
    loop.run_until_complete(begin())
    asyncio.run(use())

    async def end():
        await report(producer.aclose(0.1))
        await consumer.aclose(0.1)

    loop.run_until_complete(end())
    """
    )
    assert len(lines) == 12
    for line in [*lines[:9], lines[10]]:
        assert line.startswith("RuntimeError this client is in use in another running event loop")
    assert lines[11].startswith("DeliveryReport(delivered=0")


def test_client_that_was_not_used_before_a_fork_works_in_the_child_process():
    lines = run(
        CALLS
        + """
    async def use_unused():
        await report(unused.__aenter__())
        await report(unused.aclose(0.1))

    if os.fork() == 0:
        asyncio.run(use_unused())
        os._exit(0)
    os.wait()
    """
    )
    assert lines[0].startswith("<ResilientKafkaProducer")
    assert lines[1].startswith("DeliveryReport(delivered=0")


def test_binding_to_a_closed_loop_ignores_a_fork():
    with asyncio.Runner() as runner:
        binding = runner.run(bind())
    binding.note_fork()
    assert binding.closed
    assert not binding.forked


async def bind():
    return LoopBinding()
