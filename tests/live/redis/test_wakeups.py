"""A read continues the tasks whose replies arrived, with the semantics of the event loop."""

import asyncio
import contextlib
import contextvars
import sys

import pytest

from resilient_io import RetryPolicy
from resilient_io.redis import ConnectionSettings, RedisClosed, ResilientRedis
from resilient_io.testing import cancel_everywhere
from resilient_io.wakeups import TaskWakeup, can_wake, deliver

pytestmark = pytest.mark.versions

CALLERS = 20


@contextlib.contextmanager
def counted_handles():
    """Count what is scheduled with `call_soon` in the running loop."""
    loop = asyncio.get_running_loop()
    plain, counts = loop.call_soon, [0]

    def counting(*args, **options):
        counts[0] += 1
        return plain(*args, **options)

    loop.call_soon = counting
    try:
        yield counts
    finally:
        del loop.call_soon


async def calls_made(code, *, events=("call",)):
    """Return how many functions written in Python, or also in C, a coroutine calls."""
    counts = [0]

    def profile(_frame, event, _arg):
        counts[0] += event in events

    sys.setprofile(profile)
    try:
        await code
    finally:
        sys.setprofile(None)
    return counts[0]


async def test_the_private_callbacks_of_a_future_are_as_expected():
    # CPython 3.11 to 3.13, `_asyncio.Future._callbacks`: the callbacks with their contexts.
    loop = asyncio.get_running_loop()
    future = asyncio.Future(loop=loop)
    context = contextvars.copy_context()

    async def wait():
        return await future

    task = loop.create_task(wait(), context=context)
    await asyncio.sleep(0)
    ((callback, used),) = future._callbacks
    assert type(callback) is TaskWakeup
    assert callback.__self__ is task
    assert used is context
    assert can_wake(loop)
    loop.call_soon(deliver, loop, [(future, "reply")])
    assert await task == "reply"


async def test_a_call_schedules_nothing_and_a_pipeline_costs_few_function_calls(client):
    await client.set("key", "value")
    await client.get("key")

    async def get_often():
        for _ in range(100):
            await client.get("key")

    handles, calls = [], []
    for _ in range(5):  # the least, because a probe may run at the same time
        task = asyncio.create_task(get_often())
        with counted_handles() as counts:
            await task
        handles.append(counts[0])
        pipeline = client.pipeline(transaction=False)
        for _ in range(100):
            pipeline.get("key")
        calls.append(await calls_made(pipeline.execute()))
    assert min(handles) <= 10
    assert min(calls) <= 100


@pytest.mark.parametrize(
    ("name", "args", "most"),
    [("set", ("key", b"value"), 35), ("zrange", ("sorted", 0, -1), 33)],
)
async def test_a_frequent_command_costs_few_function_calls(client, name, args, most):
    """redis-py's methods check all their options, and its callback for SET decodes the reply."""
    method = getattr(client, name)

    async def call_often():
        for _ in range(20):
            await method(*args)

    async def all_callers():
        await asyncio.gather(*[call_often() for _ in range(50)])

    await all_callers()
    counts = [await calls_made(all_callers(), events=("call", "c_call")) for _ in range(3)]
    assert min(counts) / (20 * 50) <= most


@pytest.mark.parametrize("direct", [True, False])
async def test_switched_off_calls_return_the_same(direct, shared_redis):
    connections = ConnectionSettings(direct_wakeups=direct)
    async with ResilientRedis(port=shared_redis.port, connections=connections) as client:
        results = await asyncio.gather(*[client.echo(f"{i}") for i in range(CALLERS)])
        assert results == [f"{i}".encode() for i in range(CALLERS)]


async def test_debug_mode_leaves_waking_to_the_loop(shared_redis):
    asyncio.get_running_loop().set_debug(True)
    async with ResilientRedis(port=shared_redis.port) as client:
        await client.ping()
        assert not client._runtime.multiplexer.current._wakes_directly
        assert await asyncio.gather(*[client.ping() for _ in range(5)]) == [True] * 5


async def test_each_task_continues_in_its_own_context(client):
    number = contextvars.ContextVar("number")

    async def call(mine):
        number.set(mine)
        for _ in range(5):
            assert await client.echo(str(mine)) == str(mine).encode()
            assert number.get() == mine
            assert asyncio.current_task().get_name() == f"caller {mine}"

    await asyncio.gather(
        *[asyncio.create_task(call(i), name=f"caller {i}") for i in range(CALLERS)]
    )
    with pytest.raises(LookupError):
        number.get()


async def test_tasks_that_share_a_context_all_continue(client):
    context = contextvars.copy_context()
    loop = asyncio.get_running_loop()
    tasks = [loop.create_task(client.ping(), context=context) for _ in range(CALLERS)]
    assert await asyncio.gather(*tasks) == [True] * CALLERS


async def test_a_task_that_cancels_others_in_the_same_read(client):
    """Their replies have arrived, but they have not continued: they are cancelled, as usual."""
    tasks = []
    order = []

    async def call(number):
        try:
            await client.ping()
        except asyncio.CancelledError:
            order.append(-number)
            raise
        order.append(number)
        if number == 1:
            for other in tasks[1:]:
                other.cancel()

    tasks += [asyncio.create_task(call(number)) for number in range(1, CALLERS)]
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert results[0] is None
    assert all(isinstance(result, asyncio.CancelledError) for result in results[1:])
    assert order == [1, *(-number for number in range(2, CALLERS))]
    assert await client.ping()
    assert client.stats().in_flight == 0


async def test_a_task_that_closes_the_client_in_a_read(shared_redis):
    policy = RetryPolicy(attempts=1)
    client = ResilientRedis(port=shared_redis.port, policy=policy, reopen=False)
    await client.initialize()
    await client.ping()

    async def call(number):
        if number == 0:
            await client.ping()
            await client.aclose()
            return True
        try:
            await client.ping()
            await client.ping()
        except RedisClosed:
            return False
        return True

    results = await asyncio.gather(*[call(number) for number in range(CALLERS)])
    assert results == [True] + [False] * (CALLERS - 1)


async def test_a_task_that_drops_the_connection_in_a_read(client):
    connection = client._runtime.multiplexer.current

    async def call(number):
        await client.set(f"key:{number}", number)
        if number == 0:
            connection.transport.abort()
        return await client.get(f"key:{number}")

    results = await asyncio.gather(*[call(number) for number in range(CALLERS)])
    assert results == [str(number).encode() for number in range(CALLERS)]


async def test_calls_of_continued_tasks_are_written_together(client):
    connection = client._runtime.multiplexer.current
    written = []

    class Transport:
        def __getattr__(self, name):
            return getattr(plain, name)

        def write(self, data):
            written.append(data.count(b"PING"))
            plain.write(data)

    plain, connection.transport = connection.transport, Transport()

    async def call():
        await client.ping()
        await client.ping()

    await asyncio.gather(*[call() for _ in range(CALLERS)])
    connection.transport = plain
    assert sum(written) == 2 * CALLERS
    assert len(written) <= 6


async def test_cancelling_calls_of_many_callers_everywhere(client):
    async def work():
        return await asyncio.gather(*[client.ping() for _ in range(3)])

    report = await cancel_everywhere(work)
    report.assert_clean()
    assert await client.ping()
    assert client.stats().in_flight == 0


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_a_task_that_stops_the_loop_loses_no_other_reply(stop, shared_redis):
    loop = asyncio.new_event_loop()
    replies = []
    tasks = []

    async def call(client, number):
        replies.append(int(await client.echo(str(number))))
        if number == 1:
            raise stop

    async def main():
        await client.ping()
        tasks.extend(loop.create_task(call(client, number)) for number in range(CALLERS))
        await asyncio.sleep(5)

    async def rest():
        await asyncio.wait(tasks)
        await client.aclose()

    client = ResilientRedis(port=shared_redis.port)
    main_task = loop.create_task(main())
    try:
        with pytest.raises(stop):
            loop.run_until_complete(main_task)
        loop.run_until_complete(rest())
        assert sorted(replies) == list(range(CALLERS))
        assert replies[:2] == [0, 1]
        assert isinstance(tasks[1].exception(), stop)
    finally:
        for task in asyncio.all_tasks(loop):
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            loop.run_until_complete(asyncio.gather(*asyncio.all_tasks(loop)))
        loop.close()


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks are new in Python 3.12")
async def test_eager_tasks(shared_redis):
    loop = asyncio.get_running_loop()
    loop.set_task_factory(asyncio.eager_task_factory)
    async with ResilientRedis(port=shared_redis.port) as client:

        async def call(number):
            assert await client.echo(str(number)) == str(number).encode()
            inner = [asyncio.create_task(client.echo("inner")) for _ in range(2)]
            return await asyncio.gather(*inner)

        results = await asyncio.gather(*[call(number) for number in range(CALLERS)])
        assert results == [[b"inner", b"inner"]] * CALLERS
    loop.set_task_factory(None)


async def test_a_callback_that_raises_reaches_the_exception_handler():
    loop = asyncio.get_running_loop()
    seen = []
    loop.set_exception_handler(lambda _, context: seen.append(context["exception"]))
    future = loop.create_future()
    future.add_done_callback([].remove)  # a method written in C, as that of a task
    used = contextvars.copy_context()

    async def wait(future):
        return await future

    other = loop.create_future()
    task = loop.create_task(wait(other), context=used)
    await asyncio.sleep(0)
    # In a task, and in a context that is in use, the second cannot continue now.
    used.run(deliver, loop, [(future, "reply"), (other, "later")])
    assert [type(error) for error in seen] == [ValueError]
    assert not task.done()
    assert await task == "later"
