"""A server with its own signal handlers: first the service is not ready, then the server stops."""

import asyncio
import json
import signal

import pytest
from redis.asyncio import Redis

from resilient_io.testing import free_port


@pytest.fixture
async def shop(launch, redis_server, kafka_server):
    """Start the FastAPI example with its own broker and Redis, and wait until it is ready."""

    async def start(**environment):
        port = free_port()
        service = await launch(
            "fastapi_service.py",
            REDIS_URL=f"redis://127.0.0.1:{redis_server.port}",
            KAFKA_BOOTSTRAP_SERVERS=kafka_server.bootstrap_servers,
            PORT=str(port),
            **environment,
        )
        service.port = port
        await service.becomes("/health/readyz", 200)
        return service

    return start


def order(number):
    return json.dumps({"id": f"a-{number}", "customer": "ada", "amount": 1}).encode()


async def test_fastapi_service_loses_no_order_that_it_accepted(shop, redis_server):
    service = await shop(DRAIN_DELAY="1.5", GRACE_PERIOD="20")
    taken = []

    async def sell():
        for number in range(10_000):
            try:
                status, _ = await service.get("/orders", "POST", order(number))
            except (OSError, IndexError):  # it no longer listens, or closed the connection
                return
            assert status == 202, service.text
            taken.append(number)

    selling = asyncio.create_task(sell(), name="selling")
    async with asyncio.timeout(90):
        while len(taken) < 20:  # noqa: ASYNC110 -- the service is another process
            await asyncio.sleep(0.02)
    service.send(signal.SIGTERM)
    await service.becomes("/health/readyz", 503)
    before = len(taken)
    await selling
    assert len(taken) > before + 5  # it accepted orders while it was not ready
    # uvicorn, stopped by a signal, ends by that signal.
    assert await service.exit_code() == -signal.SIGTERM
    assert "Shutting down" in service.text
    assert service.text.index("not ready from now on") < service.text.index("Shutting down")
    (line,) = [line for line in service.lines if "stopped in" in line]
    assert "left undone" not in line, line
    again = await shop(DRAIN_DELAY="0")
    async with asyncio.timeout(90), Redis(port=redis_server.port, decode_responses=True) as redis:
        while len(await redis.hkeys("orders:ada")) < len(taken):  # noqa: ASYNC110 -- as above
            await asyncio.sleep(0.05)
        stored = {int(key[2:]) for key in await redis.hkeys("orders:ada")}
    assert set(taken) <= stored
    again.send(signal.SIGTERM)
    await again.exit_code()


@pytest.mark.soak
async def test_request_that_never_ends_does_not_keep_the_clients_open(shop):
    service = await shop(DRAIN_DELAY="0", GRACE_PERIOD="4")
    # Half a request: uvicorn waits for the rest without a time limit.
    _, writer = await asyncio.open_connection("127.0.0.1", service.port)
    try:
        writer.write(b"POST /orders HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\nhalf")
        await service.get("/health/livez")
        service.send(signal.SIGTERM)
        await service.logs("stopped in")
        (line,) = [line for line in service.lines if "stopped in" in line]
        assert "left undone: body: the server had not ended" in line
        assert service.process.returncode is None
    finally:
        writer.close()
        await writer.wait_closed()
    await service.exit_code()


async def test_aiohttp_service_is_unready_first_and_completes_its_requests(launch, redis_server):
    port = free_port()
    service = await launch("aiohttp_service.py", REDIS_PORT=str(redis_server.port), PORT=str(port))
    service.port = port
    await service.becomes("/readyz", 200)
    slow = asyncio.create_task(service.get("/slow"), name="a slow request")
    await service.get("/readyz")  # so that the other one has started
    service.send(signal.SIGTERM)
    await service.becomes("/readyz", 503)
    assert await slow == (200, "True")
    assert await service.exit_code() == 0
    assert service.order() == ["ended", "exits"]
    report = service.found("ended")["report"]
    assert report["reason"] == "SIGTERM"
    assert report["steps"][0]["name"] == "drain delay"
    assert report["steps"][0]["seconds"] >= 0.99
