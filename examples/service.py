"""A small service whose readiness follows its Redis: `python examples/service.py`.

    GET  /livez    200 while the process works, whatever Redis does
    GET  /readyz   200 while Redis answers, else 503 and why
    POST /visits   counts a visit
    GET  /visits   says how many

    REDIS_URL      where Redis is (default redis://localhost:6379)
    HOST, PORT     where to listen (default 127.0.0.1 and 8080; port 0 takes a free one)

HTTP is spoken by hand here, so that the example needs nothing but the library.
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

TIME_FOR_A_REQUEST = 1.0
TIME_FOR_A_CONNECTION = 5.0

Answer = tuple[HTTPStatus, dict[str, object]]


class Service:
    """The endpoints, and whether traffic is wanted."""

    def __init__(self, redis: ResilientRedis) -> None:
        self.redis = redis
        self.ready = False
        self.requests = 0
        self.idle = asyncio.Event()
        self.idle.set()
        redis.health.on_change(self.follow)

    def follow(self, change: Change) -> None:
        """Follow Redis: called after each transition, never inside a request."""
        # DEGRADED counts as ready: it answers, and another replica of us has the same Redis.
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
                with deadline(TIME_FOR_A_REQUEST):
                    return await self.visits(count=method == "POST")
        return HTTPStatus.NOT_FOUND, {"error": "there is /livez, /readyz and /visits"}

    def readiness(self) -> Answer:
        """Say whether traffic is wanted; asks nobody."""
        status = HTTPStatus.OK if self.ready else HTTPStatus.SERVICE_UNAVAILABLE
        return status, {"ready": self.ready, "redis": self.redis.health.snapshot()}

    async def visits(self, *, count: bool) -> Answer:
        """Count a visit, or say how many there were."""
        try:
            if count:
                return HTTPStatus.OK, {"visits": await self.redis.incr("visits")}
            return HTTPStatus.OK, {"visits": int(await self.redis.get("visits") or 0)}
        except OutcomeUnknown as error:
            # Counting again could count it twice: whether that matters is the caller's business.
            return HTTPStatus.SERVICE_UNAVAILABLE, {"error": str(error), "counted": "perhaps"}
        except DependencyUnavailable as error:
            return HTTPStatus.SERVICE_UNAVAILABLE, {"error": str(error), "counted": False}
        except ResilientIOError as error:  # the time was used up, or too much is in flight
            return HTTPStatus.GATEWAY_TIMEOUT, {"error": str(error), "counted": False}
        except RedisError as error:  # Redis refused it: out of memory, a replica, a wrong type
            return HTTPStatus.SERVICE_UNAVAILABLE, {"error": str(error), "counted": False}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection: one request, one answer."""
        self.requests += 1
        self.idle.clear()
        try:
            async with asyncio.timeout(TIME_FOR_A_CONNECTION):
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
            print(f"a request could not be served: {error!r}", flush=True)
        finally:
            writer.close()
            self.requests -= 1
            if not self.requests:
                self.idle.set()

    async def drain(self) -> None:
        """Let the requests that are under way end; bounded, as each of them is."""
        await self.idle.wait()


async def main() -> None:
    """Run until SIGTERM or Ctrl-C."""
    logging.basicConfig(level=logging.INFO)
    leave = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, leave.set)

    url = os.environ.get("REDIS_URL", "redis://localhost:6379")
    async with ResilientRedis.from_url(url) as redis:  # does not wait for Redis
        service = Service(redis)
        server = await asyncio.start_server(
            service.serve,
            host=os.environ.get("HOST", "127.0.0.1"),
            port=int(os.environ.get("PORT", "8080")),
        )
        print(f"listening on port {server.sockets[0].getsockname()[1]}", flush=True)
        await leave.wait()
        server.close()
        await service.drain()
        # Redis is closed last: requests that were under way could still use it.
    print("stopped", flush=True)


if __name__ == "__main__":
    asyncio.run(main())
