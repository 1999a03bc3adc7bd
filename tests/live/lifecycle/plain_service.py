"""A service that the tests run as a process; its first argument selects the body."""

# ruff: noqa: T201 -- the test reads what it prints

import asyncio
import json
import logging
import os
import sys
import time

from resilient_io import HealthMonitor, ResilientKafkaConsumer, ResilientRedis
from resilient_io.lifecycle import Lifecycle
from resilient_io.serve import serve


def say(word, **more):
    print(json.dumps({"say": word, "at": time.time(), **more}), flush=True)


class Says:
    """A part that prints when it starts and closes, and may be slow."""

    def __init__(self, name, *, starts=0.0, closes=0.0):
        self.name = name
        self.starts = starts
        self.closes = closes

    async def __aenter__(self):
        say(f"{self.name} starts")
        await asyncio.sleep(self.starts)
        return self

    async def __aexit__(self, *exc_info):
        say(f"{self.name} closes")
        await asyncio.sleep(self.closes)
        say(f"{self.name} closed")


async def wait(lifecycle, redis):
    await lifecycle.stopping.wait()
    say("body ends", answered=await redis.ping())


async def forever(lifecycle, redis):
    await asyncio.Event().wait()


async def block(lifecycle, redis):
    time.sleep(120)


async def consume(lifecycle, redis, consumer):
    async def handle(record):
        await asyncio.sleep(0.05)
        await redis.rpush(f"handled:{record.topic}", record.value)

    await consumer.run(handle, concurrency=4)
    say("body ends", left=lifecycle.stopping.is_set())


async def main(what, options):
    redis = ResilientRedis(port=int(os.environ["REDIS_PORT"]))
    parts, bodies = [], {"wait": wait, "forever": forever, "block": block}
    if what == "consume":
        consumer = ResilientKafkaConsumer(
            options.pop("topic"),
            bootstrap_servers=os.environ["KAFKA"],
            group_id=options.pop("group"),
            auto_offset_reset="earliest",
        )
        parts.append(consumer)
    slow = Says("slow", starts=options.pop("starts", 0.0), closes=options.pop("closes", 0.0))
    monitor = HealthMonitor(redis.health, *(part.health for part in parts))
    server = serve(monitor, clients=[redis, *parts], host="127.0.0.1", port=0)
    lifecycle = Lifecycle(monitor, *parts, slow, redis, servers=[server], **options)
    async with lifecycle:
        await monitor.until_ready(20)
        say("running", port=server.port, pid=os.getpid())
        if what == "consume":
            await consume(lifecycle, redis, consumer)
        else:
            await bodies[what](lifecycle, redis)
    say("ended", report=lifecycle.report.as_dict())


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    if os.environ.get("LOOP") == "uvloop":
        import uvloop

        uvloop.run(main(sys.argv[1], json.loads(sys.argv[2])))
    else:
        asyncio.run(main(sys.argv[1], json.loads(sys.argv[2])))
    say("exits")
