"""Spans of Redis commands by `trace`: one per command with all attempts, and no data."""

import asyncio
import contextvars

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import INVALID_SPAN, SpanKind, StatusCode, get_current_span
from redis.credentials import CredentialProvider
from redis.exceptions import ResponseError, WatchError

from resilient_io import (
    DependencyUnavailable,
    HealthMonitor,
    OutcomeUnknown,
    ResilientRedis,
    RetryPolicy,
    State,
)
from resilient_io.telemetry.tracing import trace


class Spans:
    """A tracer provider, and its spans."""

    def __init__(self):
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))

    def __iter__(self):
        return iter(self._exporter.get_finished_spans())

    @property
    def names(self):
        return [span.name for span in self]


@pytest.fixture
def spans():
    return Spans()


@pytest.fixture
async def redis(shared_redis, spans):
    client = ResilientRedis(host="127.0.0.1", port=shared_redis.port, db=3)
    trace(client, tracer_provider=spans.provider)
    async with client:
        yield client


async def test_command_has_the_conventional_attributes(redis, spans, shared_redis):
    await redis.set("key", "value")

    (span,) = spans
    assert (span.name, span.kind) == ("SET", SpanKind.CLIENT)
    assert span.status.status_code is StatusCode.UNSET
    assert dict(span.attributes) == {
        "db.system.name": "redis",
        "db.operation.name": "SET",
        "db.namespace": "3",
        "server.address": "127.0.0.1",
        "server.port": shared_redis.port,
    }


async def test_every_kind_of_call_has_one_span(redis, spans):
    await redis.get("key")
    await redis.pipeline(transaction=False).get("a").set("b", 1).execute()
    await redis.pipeline().get("a").get("b").execute()
    async with redis.pipeline() as pipe:
        await pipe.watch("a")
        pipe.multi()
        pipe.set("a", 1)
        await pipe.execute()
    await redis.blpop("nothing", timeout=0.05)
    await redis.with_policy(attempts=1).config_get("maxmemory")
    async with redis.client() as own:
        await own.ping()
    await redis.publish("channel", "hello")

    assert spans.names == [
        "GET",
        "PIPELINE",
        "MULTI GET",
        "WATCH",
        "MULTI SET",
        "BLPOP",
        "CONFIG GET",
        "PING",
        "PUBLISH",
    ]
    sizes = {span.name: span.attributes.get("db.operation.batch.size") for span in spans}
    assert (sizes["PIPELINE"], sizes["MULTI GET"], sizes["MULTI SET"]) == (2, 2, None)


async def test_empty_pipeline_has_no_span(redis, spans):
    assert await redis.pipeline().execute() == []
    assert spans.names == []


async def test_spans_are_in_the_trace_of_their_caller(redis, spans):
    with spans.provider.get_tracer("test").start_as_current_span("request") as request:
        await asyncio.gather(redis.get("a"), redis.pipeline().get("b").get("c").execute())
    assert sorted(spans.names) == ["GET", "MULTI GET", "request"]
    for span in spans:
        assert span.context.trace_id == request.get_span_context().trace_id


async def test_error_reply_is_recorded_by_its_code(redis, spans):
    await redis.set("key", "value")
    with pytest.raises(ResponseError):
        await redis.lpush("key", "x")
    with pytest.raises(ResponseError):
        await redis.evalsha("f" * 40, 0)

    _, wrong, missing = spans
    assert wrong.attributes["db.response.status_code"] == "WRONGTYPE"
    assert wrong.attributes["error.type"] == "redis.exceptions.ResponseError"
    assert wrong.status.status_code is StatusCode.ERROR
    assert missing.attributes["db.response.status_code"] == "NOSCRIPT"


async def test_watch_error_is_not_a_failure(redis, spans):
    async with redis.pipeline() as pipe:
        await pipe.watch("key")
        await redis.set("key", 1)
        pipe.multi()
        pipe.set("key", 2)
        with pytest.raises(WatchError):
            await pipe.execute()
    assert [span.status.status_code for span in spans] == [StatusCode.UNSET] * 3


async def test_attempts_share_one_span_with_an_event_per_retry(fault_proxy, spans):
    client = ResilientRedis(port=fault_proxy.port, policy=RetryPolicy(response_timeout=0.2))
    trace(client, tracer_provider=spans.provider)
    async with client:
        await client.ping()
        fault_proxy.reset_on("GET", forward=True)
        assert await client.get("key") is None
        fault_proxy.reset_on("INCRBY", forward=True)
        with pytest.raises(OutcomeUnknown):
            await client.incr("counter")

    _, get, incr = spans
    assert (get.name, get.status.status_code) == ("GET", StatusCode.UNSET)
    assert get.attributes["resilient_io.attempts"] == 2
    (retry,) = get.events
    assert (retry.name, retry.attributes["attempt"]) == ("retry", 2)
    assert retry.attributes["cause"] == "reset"
    assert incr.attributes["error.type"] == "resilient_io.redis.errors.RedisOutcomeUnknown"
    assert incr.status.description.startswith("RedisOutcomeUnknown: ")
    assert "resilient_io.attempts" not in incr.attributes


async def test_cancelled_call_ends_its_span(fault_proxy, spans):
    client = ResilientRedis(port=fault_proxy.port)
    trace(client, tracer_provider=spans.provider)
    async with client:
        await client.ping()
        fault = fault_proxy.drop_reply("GET")
        task = asyncio.create_task(client.get("key"))
        await fault.happened()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    _, cancelled = spans
    assert cancelled.attributes["error.type"] == "asyncio.exceptions.CancelledError"
    assert cancelled.status.status_code is StatusCode.ERROR


async def test_call_without_an_attempt_has_a_span(redis_server, spans):
    client = ResilientRedis(port=redis_server.port)
    trace(client, tracer_provider=spans.provider)
    async with client:
        await client.ping()
        redis_server.kill()
        async for change in client.health.watch():
            if change.state is State.DOWN:
                break
        with pytest.raises(DependencyUnavailable):
            await client.get("key")

    _, refused = spans
    assert refused.attributes["error.type"] == "resilient_io.redis.errors.RedisUnavailable"
    assert refused.status.description.startswith("RedisUnavailable: ")


async def test_spans_contain_no_arguments_and_no_replies(redis, spans, shared_redis):
    await redis.set("secret-key", "secret-value")
    await redis.pipeline().set("secret-key", "secret-value").get("secret-key").execute()
    for pipe in (redis.pipeline(), redis.pipeline(transaction=False)):
        pipe.lpush("secret-key", "secret-value").get("secret-key")
        with pytest.raises(ResponseError, match="secret-value"):
            await pipe.execute()
    with pytest.raises(ResponseError, match="secret"):
        await redis.eval("return redis.error_reply('ERR secret ' .. KEYS[1])", 1, "secret-key")
    with pytest.raises(ResponseError):
        await redis.execute_command("GET", "secret-key", "secret-value")

    assert len(spans.names) == 6
    assert "secret" not in "".join(span.to_json() for span in spans)


async def test_traced_client_takes_the_hot_path_within_its_span(redis, spans):
    await redis.set("key", "1")
    twin = redis._uninstrumented
    assert twin._hot
    assert await redis.get("key") == b"1"
    assert redis._uninstrumented is twin
    assert await redis.with_policy(attempts=1).get("key") == b"1"
    assert spans.names == ["SET", "GET", "GET"]


async def test_client_that_was_closed_and_opened_again_is_still_traced(shared_redis, spans):
    client = ResilientRedis.from_url(shared_redis.url)
    trace(client, tracer_provider=spans.provider)
    for _ in range(2):
        async with client:
            await client.get("key")
    assert spans.names == ["GET", "GET"]


async def test_other_clients_create_no_span(redis, spans, shared_redis):
    async with ResilientRedis.from_url(shared_redis.url) as other:
        await other.get("key")
        await other.pipeline().get("key").execute()
    assert spans.names == []


def test_wrong_client_is_rejected():
    with pytest.raises(TypeError):
        trace(object())


async def test_flight_recorder_contains_the_reactions_of_clients(redis_server, fault_proxy):
    client = ResilientRedis(port=fault_proxy.port, policy=RetryPolicy(response_timeout=0.2))
    async with client, HealthMonitor(client.health) as monitor:
        await client.ping()
        fault_proxy.reset_on("GET", forward=True)
        await client.get("key")
        fault_proxy.reset_on("INCRBY", forward=True)
        with pytest.raises(OutcomeUnknown):
            await client.incr("counter")
        events = [each["event"] for each in monitor.recorder.events()]
    assert "retry scheduled" in events
    assert "outcome unknown" in events
    assert "connection lost" in events
    assert "connection opened" in events


class Tokens(CredentialProvider):
    """Provides tokens, and records the current span."""

    def __init__(self):
        self.within = []

    def get_credentials(self):
        self.within.append(get_current_span())
        return ("default", "any")  # the server asks for no password


async def test_task_that_outlives_a_call_is_not_in_its_span(shared_redis, spans):
    tokens = Tokens()
    redis = ResilientRedis(port=shared_redis.port, credential_provider=tokens)
    trace(redis, tracer_provider=spans.provider)
    with spans.provider.get_tracer("shop").start_as_current_span("request"):
        await redis.get("key")  # which is what starts the connections
    await redis.aclose()
    assert tokens.within
    assert all(span is INVALID_SPAN for span in tokens.within)


async def test_call_that_is_closed_in_another_context_ends_its_span_without_an_error(
    redis, spans, caplog
):
    await redis.ping()
    call = redis.blpop(["none"], timeout=1)
    contextvars.Context().run(call.send, None)
    call.close()  # as the interpreter does with what is left of a loop

    assert spans.names == ["PING", "BLPOP"]
    assert caplog.records == []
    assert get_current_span() is INVALID_SPAN
