"""Traced calls that are cancelled at every point: raised immediately, and every span ended."""

import contextlib

import pytest
from opentelemetry.context import get_current
from opentelemetry.instrumentation.redis import RedisInstrumentor
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

from resilient_io import ResilientRedis
from resilient_io.telemetry.tracing import trace
from resilient_io.testing import cancel_everywhere


class Balance(SpanProcessor):
    """Counts the spans that were started and not ended."""

    def __init__(self):
        self.open = self.begun = 0

    def on_start(self, span, parent_context=None):
        self.open += 1
        self.begun += 1

    def on_end(self, span):
        self.open -= 1


async def call(client):
    await client.set("key", "1")
    await client.pipeline(transaction=False).incr("n").get("key").execute()
    async with client.pipeline() as pipe:
        await pipe.watch("key")
        pipe.multi()
        await pipe.set("key", "2").execute()
    await client.blpop("nothing", timeout=0.02)


@pytest.mark.parametrize("instrumented", [False, True], ids=["ours", "with the instrumentation"])
async def test_cancellation_leaves_no_span_open_and_no_context_behind(shared_redis, instrumented):
    balance = Balance()
    provider = TracerProvider()
    provider.add_span_processor(balance)
    outside = get_current()
    if instrumented:
        RedisInstrumentor().instrument(tracer_provider=provider)

    @contextlib.asynccontextmanager
    async def setup():
        client = ResilientRedis(port=shared_redis.port)
        trace(client, tracer_provider=provider)
        async with client:
            await client.ping()
            yield client

    async def check(client):
        assert balance.open == 0
        assert get_current() == outside
        assert await client.echo("next") == b"next"

    try:
        report = await cancel_everywhere(call, setup=setup, check=check, max_points=8)
    finally:
        if instrumented:
            RedisInstrumentor().uninstrument()
    assert report.findings == []
    assert report.points
    assert balance.begun > 20
