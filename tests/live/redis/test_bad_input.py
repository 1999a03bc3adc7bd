"""Each mistake raises one clear error that names what to use, and affects no other call."""

import asyncio
import contextlib
import gc
import math
import subprocess
import sys
import textwrap
import threading

import pytest
import redis.asyncio as driver

import resilient_io
from resilient_io import Closed, ConfigurationError, RetryPolicy, deadline
from resilient_io.health import Dependency, HealthMonitor, HealthSettings
from resilient_io.redis import ConnectionSettings, RedisClosed, ResilientRedis


@contextlib.asynccontextmanager
async def calls_in_flight(client):
    """Make calls that a mistake elsewhere must not affect."""
    await client.delete("n")
    calls = [asyncio.ensure_future(client.incr("n")) for _ in range(20)]
    await asyncio.sleep(0)
    yield
    assert await asyncio.gather(*calls) == list(range(1, 21))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"attempts": 0}, r"attempts=0 must be an integer of at least 1"),
        ({"attempts": 2.5}, r"attempts=2\.5 must be an integer"),
        ({"attempts": True}, r"attempts=True must be an integer"),
        ({"backoff": -1}, r"backoff=-1 is out of range: use a finite number of at least 0"),
        ({"backoff": math.nan}, r"backoff=nan is out of range"),
        ({"backoff": 2.0, "backoff_cap": 1.0}, r"above backoff_cap=1\.0: use backoff_cap=2\.0"),
        ({"deadline": math.inf}, r"deadline=inf is not finite"),
        ({"deadline": "5"}, r"deadline='5' is not a number: .*for example deadline=1\.0"),
        ({"response_timeout": 0}, r"response_timeout=0 is out of range"),
        ({"connect_timeout": None}, r"connect_timeout=None is not a number"),
        ({"connect_timeout": 9.0}, r"deadline=5\.0 is below connect_timeout=9\.0"),
        ({"repeat": "all"}, r"repeat='all' is unknown: use repeat=\"read\" or"),
        ({"while_down": "hang"}, r"while_down='hang' is unknown: use while_down=\"fail\" or"),
        ({"retry_budget": -1}, r"retry_budget=-1 is out of range"),
    ],
)
async def test_an_invalid_policy(client, values, message):
    async with calls_in_flight(client):
        with pytest.raises(ConfigurationError, match=message):
            RetryPolicy(**values)
        with pytest.raises(ConfigurationError, match=message):
            client.with_policy(**values)


async def test_a_view_with_an_invalid_policy(client):
    async with calls_in_flight(client):
        with pytest.raises(ConfigurationError, match="has no option 'tries': use one of attempts"):
            client.with_policy(tries=3)
        with pytest.raises(TypeError, match=r"policy must be a RetryPolicy, not int"):
            client.with_policy(3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policy": 3}, r"policy must be a RetryPolicy, not int: use policy=RetryPolicy\(\.\.\.\)"),
        ({"health": "up"}, r"health must be a Dependency, not str"),
        (
            {"connections": 2},
            r"connections must be a ConnectionSettings, not int: use connections=Connection",
        ),
        (
            {"hots": "h"},
            r"unknown option 'hots' \(did you mean 'host'\?\); see redis\.asyncio\.Redis",
        ),
        ({"health_check_interval": "often"}, r"interval"),
        ({"socket_timeout": -3}, r"socket_timeout|response_timeout"),
        ({"protocol": 7}, r"protocol|3"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
async def test_invalid_options(options, message):
    with pytest.raises((ConfigurationError, TypeError), match=message):
        ResilientRedis(**options)
    with pytest.raises((ConfigurationError, TypeError), match=message):
        ResilientRedis.from_url("redis://localhost", **options)


@pytest.mark.parametrize("count", [0, 17, 1.5, True, "2"])
async def test_invalid_connection_settings(count):
    with pytest.raises(
        ConfigurationError, match=r"count=.* must be an integer from 1 to 16.*count=2"
    ):
        ConnectionSettings(count=count)
    with pytest.raises(ConfigurationError, match=r"in_flight=10 must be .* at least 65536"):
        ConnectionSettings(in_flight=10)


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost:6379",
        "localhost:6379",
        "",
        "redis://localhost:notaport/0",
        "redis://localhost?db=one",
        "redis://localhost?health_check_interval=often",
        "redis://user:hunter2@localhost:notaport",
        None,
        b"redis://localhost",
    ],
)
async def test_invalid_urls(url):
    with pytest.raises(
        ConfigurationError, match=r"(?i)Redis URL.*redis://|Did you mean redis://|str, not"
    ) as caught:
        ResilientRedis.from_url(url)
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None


async def test_unknown_options_of_urls():
    with pytest.raises(ConfigurationError, match="nonsense"):
        ResilientRedis.from_url("redis://localhost?nonsense=1")
    with pytest.raises(ConfigurationError, match="nonsense"):
        ResilientRedis.from_url("redis://localhost", nonsense=1)


async def test_invalid_tls_options():
    with pytest.raises(ConfigurationError, match="maybe"):
        ResilientRedis(ssl=True, ssl_cert_reqs="maybe")


async def test_callbacks_that_are_not_callable(client):
    monitor = HealthMonitor(client.health)
    async with calls_in_flight(client):
        for source in (client.health, monitor):
            with pytest.raises(TypeError, match=r"use on_change\(print\)"):
                source.on_change("print")
    await monitor.aclose()


@pytest.mark.parametrize("seconds", [0, -1, math.nan, math.inf, "1", None, True])
async def test_invalid_deadlines(client, seconds):
    async with calls_in_flight(client):
        with (
            pytest.raises(ConfigurationError, match=r"seconds=.*use a finite number above 0"),
            deadline(seconds),
        ):
            pass
        with pytest.raises(ConfigurationError, match="interval"):
            HealthSettings(interval=seconds)


def test_a_deadline_outside_a_coroutine():
    with pytest.raises(RuntimeError, match="use it inside a coroutine"), deadline(1):
        pass


async def test_dependencies_without_a_name():
    with pytest.raises(ConfigurationError, match=r"name=.*must be a non-empty string"):
        Dependency("")


async def test_with_without_async(client):
    async with calls_in_flight(client):
        with (
            pytest.raises(TypeError, match=r"use `async with ResilientRedis\(\.\.\.\)`"),
            client,
        ):
            pass


async def test_commands_without_a_name(client):
    async with calls_in_flight(client):
        for word in ("", b" "):
            with pytest.raises(ValueError, match=r'needs a name: use execute_command\("GET"'):
                await client.execute_command(word)


async def test_use_after_close(shared_redis):
    client = ResilientRedis(port=shared_redis.port, reopen=False)
    await client.set("k", "v")
    view = client.with_policy(attempts=1)
    await client.aclose()
    await client.aclose()
    pipe = client.pipeline().get("k")
    uses = {
        "GET": client.get("k"),
        "BLPOP": client.blpop("l", timeout=1),
        "MULTI": pipe.execute(),
        "lock": client.lock("l").acquire(),
        "INCRBY": view.incr("n"),
    }
    for name, use in uses.items():
        with pytest.raises(RedisClosed, match=f"{name}: the client is closed") as caught:
            await use
        assert isinstance(caught.value, Closed)
        assert isinstance(caught.value, driver.ConnectionError)
        assert caught.value.attempts == 0
    # `async with` opens the client again, as it does with redis-py's.
    async with client:
        assert await client.get("k") == b"v"
    with pytest.raises(RedisClosed):
        await client.get("k")


async def test_closing_ends_waiting_calls(redis_server):
    client = ResilientRedis(port=redis_server.port)
    await client.ping()
    blocked = asyncio.ensure_future(client.blpop("l", timeout=0))
    await asyncio.sleep(0.02)
    redis_server.freeze()
    calls = [asyncio.ensure_future(client.get("k")) for _ in range(20)]
    batches = [asyncio.ensure_future(client.pipeline().get("k").execute()) for _ in range(3)]
    await asyncio.sleep(0.02)
    async with asyncio.timeout(5):
        await client.aclose()
        outcomes = await asyncio.gather(*calls, *batches, blocked, return_exceptions=True)
    for outcome in outcomes[:-1]:
        assert isinstance(outcome, Closed), outcome
    assert isinstance(outcomes[-1], resilient_io.ResilientIOError)
    redis_server.thaw()


async def test_use_from_another_running_loop(client):
    outcomes = []

    def elsewhere():
        async def use():
            uses = (
                client.get("k"),
                client.pipeline().get("k").execute(),
                client.blpop("l", timeout=1),
                client.initialize(),
            )
            for use in uses:
                async with asyncio.timeout(10):
                    with pytest.raises(RuntimeError, match="one ResilientRedis for each") as caught:
                        await use
                    outcomes.append(str(caught.value))

        asyncio.run(use())

    async with calls_in_flight(client):
        thread = threading.Thread(target=elsewhere)
        thread.start()
        while thread.is_alive():  # noqa: ASYNC110 - a thread cannot notify the loop
            await asyncio.sleep(0.005)
    assert len(outcomes) == 4
    assert all("another running event loop" in outcome for outcome in outcomes)
    assert await client.ping()


@pytest.mark.filterwarnings(
    "ignore::ResourceWarning"
)  # of asyncio, about the objects of the closed loop
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_client_whose_loop_was_closed_starts_again_in_the_next(_server_of_session):
    client = ResilientRedis(port=_server_of_session.port)

    async def first():
        await client.set("k", "v")
        await client.blpop("nothing", timeout=0.01)

    async def second():
        values = await asyncio.gather(*(client.get("k") for _ in range(5)))
        pipeline = await client.pipeline().get("k").execute()
        await client.blpop("nothing", timeout=0.01)
        assert client.health.state.value == "up"
        return values, pipeline

    for loop_number in range(3):
        loop = asyncio.new_event_loop()
        try:
            if not loop_number:
                loop.run_until_complete(first())
            else:
                assert loop.run_until_complete(second()) == ([b"v"] * 5, [b"v"])
            if loop_number == 2:
                loop.run_until_complete(client.aclose())
            else:
                # As asyncio.run() does when it leaves a client open.
                for task in asyncio.all_tasks(loop):
                    task.cancel()
                task = None  # it refers to the frames in which it was cancelled
                loop.run_until_complete(asyncio.sleep(0.01))
        finally:
            loop.close()
        gc.collect()  # now asyncio issues its warnings


def test_connections_of_a_client_made_before_a_fork_have_other_names_in_every_process(
    _server_of_session,
):
    """As with `gunicorn --preload`: fencing recognizes a dead connection by its name."""
    script = f"""
        import asyncio, os, sys
        from resilient_io.redis import ResilientRedis

        client = ResilientRedis(port={_server_of_session.port})

        async def use():
            async with asyncio.timeout(15), client:
                await client.blpop("nothing", timeout=0.01)
                own = f"resilient-io:{{client._runtime.multiplexer.next_name()[13:29]}}-"
                names = [each["name"] for each in await client.client_list()]
                assert any(each.startswith(own) for each in names), (own, names)
                print(own, flush=True)

        for _ in range(2):
            if os.fork() == 0:
                asyncio.run(use())
                os._exit(0)
        for _ in range(2):
            assert os.wait()[1] == 0
        asyncio.run(use())
    """
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    names = done.stdout.split()
    assert len(names) == len(set(names)) == 3, done.stdout


def test_use_after_a_fork(_server_of_session):
    script = f"""
        import asyncio, os, sys
        from resilient_io.redis import ResilientRedis

        async def main():
            client = ResilientRedis(port={_server_of_session.port})
            unused = ResilientRedis(port={_server_of_session.port})
            await client.set("k", "parent")
            if os.fork() == 0:
                # The child has a copy of the running loop, and must create its own.
                asyncio._set_running_loop(None)
                code = 1
                try:
                    async def child():
                        async with asyncio.timeout(15):
                            for use in (client.get("k"), client.pipeline().get("k").execute()):
                                try:
                                    await use
                                except RuntimeError as error:
                                    assert "create a new ResilientRedis in the child" in str(error)
                                else:
                                    raise AssertionError("no error")
                            assert await unused.get("k") == b"parent"
                            async with ResilientRedis(port={_server_of_session.port}) as new:
                                assert await new.get("k") == b"parent"
                            await unused.aclose()
                            await client.aclose()  # leaves the parent's connections alone
                    asyncio.new_event_loop().run_until_complete(child())
                    code = 0
                except BaseException as error:
                    print(repr(error), file=sys.stderr, flush=True)
                finally:
                    os._exit(code)
            _, status = os.wait()
            assert await client.get("k") == b"parent"
            await client.aclose()
            await unused.aclose()
            return os.waitstatus_to_exitcode(status)

        sys.exit(asyncio.run(main()))
    """
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )
    assert done.returncode == 0, done.stderr


async def test_no_output_contains_the_password(shared_redis):
    url = f"redis://app:hunter2@127.0.0.1:{shared_redis.port}/0"
    async with ResilientRedis.from_url(url) as client:
        with pytest.raises(driver.AuthenticationError) as caught:
            await client.get("k")
        shown = [repr(client), str(caught.value), repr(caught.value), repr(client.health)]
        shown += [str(client.health.snapshot()), str(client.stats()), repr(client._policy)]
        assert not [text for text in shown if "hunter2" in text]
