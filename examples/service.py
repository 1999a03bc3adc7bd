"""A small service whose readiness follows its Redis: `python examples/service.py`.

    GET  /livez    200 while the process works, independent of Redis
    GET  /readyz   200 while Redis answers, else 503 with the reason
    POST /visits   counts a visit
    GET  /visits   returns the number of visits

    REDIS_URL      URL of Redis (default redis://localhost:6379)
    HOST, PORT     address to listen on (default 127.0.0.1 and 8080; 0 for a free port)

Without Redis this service is useless, so its readiness follows Redis. It implements HTTP itself, so
that it needs only the library.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
from http import HTTPStatus

from redis.exceptions import RedisError

from resilient_io import (
    Change,
    DependencyUnavailable,
    OutcomeUnknown,
    ResilientIOError,
    ResilientRedis,
    deadline,
)

REQUEST_SECONDS = 1.0
CONNECTION_SECONDS = 5.0

Answer = tuple[HTTPStatus, dict[str, object]]


class Service:
    """The endpoints, and the readiness of the service."""

    def __init__(self, redis: ResilientRedis) -> None:
        self.redis = redis
        self.ready = False
        self.requests = 0
        self.idle = asyncio.Event()
        self.idle.set()
        redis.health.on_change(self.follow)

    def follow(self, change: Change) -> None:
        """Update the readiness. This is called after each transition, never inside a request."""
        # DEGRADED counts as ready: Redis answers, and other replicas use the same Redis.
        self.ready = change.state.answering
        print(f"redis is {change.state.value}: {change.cause}", flush=True)

    async def answer(self, method: str, path: str) -> Answer:
        """Answer one request, in bounded time."""
        match method, path:
            case "GET", "/livez":
                return HTTPStatus.OK, {"alive": True}
            case "GET", "/readyz":
                return self.readiness()
            case "POST" | "GET", "/visits":
                with deadline(REQUEST_SECONDS):
                    return await self.visits(count=method == "POST")
        return HTTPStatus.NOT_FOUND, {"error": "not found; available: /livez, /readyz, /visits"}

    def readiness(self) -> Answer:
        """Return the readiness, without asking Redis."""
        status = HTTPStatus.OK if self.ready else HTTPStatus.SERVICE_UNAVAILABLE
        return status, {"ready": self.ready, "redis": self.redis.health.snapshot()}

    async def visits(self, *, count: bool) -> Answer:
        """Count a visit, or return the number of visits."""
        try:
            if count:
                return HTTPStatus.OK, {"visits": await self.redis.incr("visits")}
            return HTTPStatus.OK, {"visits": int(await self.redis.get("visits") or 0)}
        except OutcomeUnknown as error:
            # A retry could count the visit twice. The caller decides whether that matters.
            return HTTPStatus.SERVICE_UNAVAILABLE, {"error": str(error), "counted": "perhaps"}
        except DependencyUnavailable as error:
            return HTTPStatus.SERVICE_UNAVAILABLE, {"error": str(error), "counted": False}
        except ResilientIOError as error:  # the deadline has passed, or too much is in flight
            return HTTPStatus.GATEWAY_TIMEOUT, {"error": str(error), "counted": False}
        except RedisError as error:  # Redis rejected it: out of memory, a replica, a wrong type
            return HTTPStatus.SERVICE_UNAVAILABLE, {"error": str(error), "counted": False}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection: one request, one response."""
        self.requests += 1
        self.idle.clear()
        try:
            async with asyncio.timeout(CONNECTION_SECONDS):
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                method, path, _ = head.partition("\r\n")[0].split(" ", 2)
                status, body = await self.answer(method, path)
                data = json.dumps(body).encode()
                writer.write(
                    f"HTTP/1.1 {status.value} {status.phrase}\r\n"
                    f"content-type: application/json\r\ncontent-length: {len(data)}\r\n"
                    f"connection: close\r\n\r\n".encode()
                    + data
                )
                await writer.drain()
        except (OSError, EOFError, ValueError, asyncio.LimitOverrunError) as error:
            print(f"cannot serve a request: {error!r}", flush=True)
        finally:
            writer.close()
            self.requests -= 1
            if not self.requests:
                self.idle.set()

    async def drain(self) -> None:
        """Wait for the requests in progress, each of which has a time limit."""
        await self.idle.wait()


async def main() -> None:
    """Run until SIGTERM or Ctrl-C."""
    logging.basicConfig(level=logging.INFO)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)

    url = os.environ.get("REDIS_URL", "redis://localhost:6379")
    async with ResilientRedis.from_url(url) as redis:  # this does not wait for Redis
        service = Service(redis)
        server = await asyncio.start_server(
            service.serve,
            host=os.environ.get("HOST", "127.0.0.1"),
            port=int(os.environ.get("PORT", "8080")),
        )
        print(f"listening on port {server.sockets[0].getsockname()[1]}", flush=True)
        await stop.wait()
        server.close()
        await service.drain()
        # Redis is closed last: the requests in progress could still use it.
    print("stopped", flush=True)


if __name__ == "__main__":
    asyncio.run(main())
