"""Tracers that patch redis-py see the commands of the library as those of redis-py, each once."""

import asyncio
import contextlib

import pytest
import redis as sync_driver
import redis.asyncio as driver
import sentry_sdk
from opentelemetry.instrumentation.redis import RedisInstrumentor
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from redis.exceptions import RedisError
from sentry_sdk.integrations.redis import RedisIntegration

from resilient_io import ResilientRedis
from resilient_io.redis.instrumentation import is_patched
from resilient_io.telemetry.tracing import trace

PATCHED = [
    (module.Redis if name == "execute_command" else module.client.Pipeline, name)
    for module in (driver, sync_driver)
    for name in ("execute_command", "execute", "immediate_execute_command")
]


class OpenTelemetry:
    """OpenTelemetry's instrumentation of redis-py, and its spans."""

    def __init__(self):
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))

    def instrument(self):
        RedisInstrumentor().instrument(tracer_provider=self.provider)

    def spans(self):
        return self._exporter.get_finished_spans()

    def take(self):
        """Return the comparable parts of the spans, and remove them."""
        taken = [
            (span.name, span.status.status_code, dict(span.attributes)) for span in self.spans()
        ]
        self._exporter.clear()
        return taken


class _Transport(sentry_sdk.Transport):
    def __init__(self):
        super().__init__()
        self.envelopes = []

    def capture_envelope(self, envelope):
        self.envelopes.append(envelope)


class Sentry:
    """Sentry's integration with redis-py, and the spans of its transactions."""

    def __init__(self):
        self._transport = _Transport()

    def instrument(self):
        sentry_sdk.init(
            dsn="https://key@sentry.invalid/1",
            traces_sample_rate=1.0,
            integrations=[RedisIntegration()],
            default_integrations=False,
            auto_enabling_integrations=False,
            enable_backpressure_handling=False,
            auto_session_tracking=False,
            transport=self._transport,
        )
        if "sentry_sdk" not in driver.Redis.execute_command.__module__:
            RedisIntegration.setup_once()  # Sentry does that once per process

    def take(self):
        transactions = [
            item.payload.json
            for envelope in self._transport.envelopes
            for item in envelope.items
            if item.type == "transaction"
        ]
        self._transport.envelopes.clear()
        return [
            (span["op"], span["description"], span["tags"])
            for transaction in transactions
            for span in transaction["spans"]
        ]


@pytest.fixture
def otel():
    """Return the instrumentation, not active yet; it is removed after the test."""
    instrumented = OpenTelemetry()
    yield instrumented
    with contextlib.suppress(AttributeError):
        if RedisInstrumentor().is_instrumented_by_opentelemetry:
            RedisInstrumentor().uninstrument()


@pytest.fixture
def sentry(monkeypatch):
    """Return the integration, not active yet. Sentry never removes its patches: the test does."""
    for owner, name in PATCHED:
        monkeypatch.setattr(owner, name, vars(owner)[name])
    yield Sentry()
    sentry_sdk.get_global_scope().set_client(None)


async def use(redis):
    """Make calls of every kind."""
    await redis.set("key", "1")
    assert int(await redis.get("key")) == 1
    with contextlib.suppress(RedisError):
        await redis.lpush("key", "wrong")
    await redis.execute_command("CONFIG", "GET", "maxmemory")
    await redis.pipeline(transaction=False).set("key", "2").get("key").execute()
    await redis.pipeline().incr("key").get("key").execute()
    await redis.pipeline().execute()
    async with redis.pipeline() as pipe:
        await pipe.watch("key")
        await pipe.get("key")
        pipe.multi()
        pipe.set("key", "4")
        await pipe.execute()
    async with redis.pipeline() as pipe:
        with contextlib.suppress(RedisError):
            await pipe.watch("key")
            await redis.incr("key")
            pipe.multi()
            pipe.set("key", "5")
            await pipe.execute()
    assert await redis.blpop("nothing", timeout=0.05) is None
    async with redis.lock("lock", timeout=5):
        pass
    script = redis.register_script("return redis.call('GET', KEYS[1])")
    assert int(await script(keys=["key"])) == 5
    pipe = redis.pipeline()
    other = redis.register_script("return 7")
    await other(client=pipe)
    await pipe.execute()
    async with redis.pubsub() as pubsub:
        await pubsub.subscribe("channel")
        await redis.publish("channel", "hello")
        await pubsub.get_message(ignore_subscribe_messages=True, timeout=0.1)
    async with redis.client() as own:
        await own.get("key")


async def seen(server, tracer, kind, *, transaction=False):
    """Return the spans of a tracer for `use` with a type of client."""
    await server.query("FLUSHALL")
    await server.query("SCRIPT", "FLUSH")
    async with kind.from_url(server.url) as redis:
        with sentry_sdk.start_transaction(name="t") if transaction else contextlib.nullcontext():
            await use(redis)
    return tracer.take()


def without_scripts(spans):
    return [span for span in spans if not span[1].startswith("SCRIPT ")]


def without_loading(spans):
    return [
        (name, status, attributes)
        for name, status, attributes in spans
        if not name.startswith("SCRIPT") and not (name == "EVALSHA" and status is StatusCode.ERROR)
    ]


async def test_opentelemetry_instrumentation_sees_the_same_as_with_redis_py(shared_redis, otel):
    otel.instrument()

    theirs = await seen(shared_redis, otel, driver.Redis)

    assert len(theirs) > 25
    ours = await seen(shared_redis, otel, ResilientRedis)
    # redis-py calls a script that the server does not know, loads it, and calls it again.
    assert without_loading(ours) == without_loading(theirs)


async def test_sentry_sees_the_same_as_with_redis_py(shared_redis, sentry):
    sentry.instrument()

    theirs = await seen(shared_redis, sentry, driver.Redis, transaction=True)

    ours = await seen(shared_redis, sentry, ResilientRedis, transaction=True)

    assert len(theirs) > 15
    # Sentry does not patch what redis-py's pipeline loads scripts with; ours are commands.
    assert without_scripts(ours) == without_scripts(theirs)


async def test_two_tracers_each_see_every_command_once(shared_redis, sentry, otel):
    sentry.instrument()
    otel.instrument()

    async with ResilientRedis.from_url(shared_redis.url) as redis:
        with sentry_sdk.start_transaction(name="t"):
            await redis.set("key", "1")
            await redis.pipeline().incr("key").execute()
            await redis.with_policy(attempts=1).get("key")

    assert [name for name, *_ in otel.take()] == ["SET", "INCRBY", "GET"]
    assert [words.split()[0] for _, words, _ in sentry.take()] == [
        "SET",
        "redis.pipeline.execute",
        "GET",
    ]


async def test_trace_adds_no_second_span_to_an_instrumented_command(shared_redis, otel):
    otel.instrument()
    redis = ResilientRedis.from_url(shared_redis.url)
    trace(redis, tracer_provider=otel.provider)
    async with redis:
        await redis.set("key", "1")
        await redis.pipeline().incr("key").get("key").execute()
        async with redis.pipeline() as pipe:
            await pipe.watch("key")

    assert [name for name, *_ in otel.take()] == ["SET", "INCRBY GET", "WATCH"]


async def test_attempts_are_added_to_the_span_of_the_instrumentation(
    redis_server, fault_proxy, otel
):
    otel.instrument()
    redis = ResilientRedis(port=fault_proxy.port, socket_timeout=0.2)
    trace(redis, tracer_provider=otel.provider)
    async with redis:
        await redis.ping()
        fault_proxy.reset_on("GET", forward=True)
        assert await redis.get("key") is None

    _, get = otel.spans()
    assert get.name == "GET"
    assert get.attributes["resilient_io.attempts"] == 2
    assert [event.name for event in get.events] == ["retry"]


@pytest.mark.parametrize("opened", [True, False], ids=["async with", "at the first command"])
async def test_client_created_before_the_instrumentation_is_seen_when_it_is_first_used(
    shared_redis, otel, opened
):
    redis = ResilientRedis.from_url(shared_redis.url)
    otel.instrument()
    if opened:
        await redis.initialize()
    for _ in range(3):
        await redis.get("key")
    await redis.pipeline().get("key").execute()
    await redis.aclose()
    assert [name for name, *_ in otel.take()] == ["GET"] * 4


async def test_nothing_is_seen_after_the_instrumentation_was_removed(shared_redis, otel):
    otel.instrument()
    async with ResilientRedis.from_url(shared_redis.url) as redis:
        await redis.get("key")
        RedisInstrumentor().uninstrument()
        assert not is_patched()
        await redis.get("key")
        assert await redis.pipeline().set("key", "1").get("key").execute() == [True, b"1"]
    assert [name for name, *_ in otel.take()] == ["GET"]


async def test_suppressed_calls_have_no_span(shared_redis, otel):
    otel.instrument()
    redis = ResilientRedis.from_url(shared_redis.url)
    trace(redis, tracer_provider=otel.provider)
    async with redis:
        with suppress_instrumentation():
            await redis.get("key")
            await redis.pipeline().get("key").execute()
    assert otel.take() == []


async def test_single_client_can_be_instrumented_and_its_views_keep_their_policy(fault_proxy, otel):
    async with ResilientRedis(port=fault_proxy.port, socket_timeout=0.2) as redis:
        RedisInstrumentor.instrument_client(redis, tracer_provider=otel.provider)
        assert await redis.get("key") is None
        fault_proxy.reset_on("INCRBY", forward=True)
        view = redis.with_policy(repeat="any")
        assert await view.incr("counter") == 2  # that of the client would not repeat it
        await view.pipeline().get("key").execute()
    assert [name for name, *_ in otel.take()] == ["GET", "INCRBY", "GET"]


async def test_cancelled_command_ends_its_span_and_the_client_continues(fault_proxy, otel):
    otel.instrument()
    async with ResilientRedis(port=fault_proxy.port) as redis:
        await redis.ping()
        fault = fault_proxy.drop_reply("GET")
        task = asyncio.create_task(redis.get("key"))
        await fault.happened()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await redis.exists("key") == 0
    assert [name for name, *_ in otel.take()] == ["PING", "GET", "EXISTS"]


async def test_calls_take_the_hot_path_without_a_tracer(shared_redis, monkeypatch):
    async with ResilientRedis.from_url(shared_redis.url) as redis:
        await redis.get("key")
        await asyncio.sleep(0)
        monkeypatch.delattr(ResilientRedis, "_execute")
        await redis.set("key", "1")
        assert await redis.get("key") == b"1"
        assert not redis.pipeline()._instrumented


@pytest.mark.parametrize("module", [driver, driver.client], ids=["package", "module"])
async def test_client_in_the_place_of_redis_py_is_seen_as_redis_py(
    shared_redis, otel, monkeypatch, module
):
    """An application that sets `redis.asyncio.Redis` gives the tracer our class to patch."""
    otel.instrument()
    theirs = await seen(shared_redis, otel, driver.Redis)
    RedisInstrumentor().uninstrument()

    with monkeypatch.context() as patches:
        patches.setattr(module, "Redis", ResilientRedis)
        otel.instrument()
        try:
            ours = await seen(shared_redis, otel, ResilientRedis)
        finally:
            RedisInstrumentor().uninstrument()

    assert without_loading(ours) == without_loading(theirs)


@pytest.mark.parametrize("module", [driver, driver.client], ids=["package", "module"])
async def test_every_constructor_works_in_the_place_of_redis_py(shared_redis, monkeypatch, module):
    class Mine(ResilientRedis):
        pass

    for kind in (ResilientRedis, Mine):
        monkeypatch.setattr(module, "Redis", kind)
        pool = driver.ConnectionPool.from_url(shared_redis.url)
        for client in (
            kind(port=shared_redis.port),
            kind.from_url(shared_redis.url),
            kind.from_pool(pool),
        ):
            async with client, client.client() as own:
                assert await client.ping()
                assert await own.ping()
