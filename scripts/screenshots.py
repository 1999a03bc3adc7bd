"""Makes the pictures of the status page in docs/images: `make screenshots`.

What they show has happened: a service that takes orders from Kafka and books them in Redis runs for
a minute on real servers, while Redis is restarted, Kafka's broker is killed, and the cache runs out
of memory; the pictures are taken while Redis is down for the second time.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from resilient_io import (
    Dependency,
    HealthMonitor,
    ResilientIOError,
    ResilientKafkaConsumer,
    ResilientKafkaProducer,
    ResilientRedis,
)
from resilient_io.serve import serve
from resilient_io.testing import KafkaServer, RedisServer
from scripts.chromium import Chromium
from scripts.png import shrink

if TYPE_CHECKING:
    from resilient_io.kafka import Record

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
HOST = "127.0.0.1"
DESKTOP, PHONE, PHONE_HEIGHT = 1120, 390, 844
VIEWS = (("status", DESKTOP, False), ("status-dark", DESKTOP, True), ("status-phone", PHONE, False))
"""Name, width, and whether it is dark."""

MOST_BYTES = 150_000
PARTITIONS = 6
ORDERS = 240
"""So many a second; booking one takes 20 ms, and four are booked at once."""


class Shop:
    """A service as the page might show it: orders come from Kafka, and are booked in Redis."""

    def __init__(self, redis: RedisServer, cache: RedisServer, kafka: KafkaServer) -> None:
        brokers = kafka.bootstrap_servers
        self.kafka = Dependency("kafka")
        self.redis = ResilientRedis(port=redis.port, health=Dependency("redis"))
        self.cache = ResilientRedis(port=cache.port, health=Dependency("cache"))
        self.producer = ResilientKafkaProducer(bootstrap_servers=brokers, health=self.kafka)
        self.consumer = ResilientKafkaConsumer(
            "orders",
            bootstrap_servers=brokers,
            group_id="booking",
            health=self.kafka,
            auto_offset_reset="earliest",
        )
        self.clients = (self.redis, self.producer, self.consumer)

    async def book(self, record: Record) -> None:
        await self.redis.hincrby("booked", str(record.partition), 1)
        await asyncio.sleep(0.02)

    async def order(self) -> None:
        number = 0
        while True:
            number += 1
            with contextlib.suppress(ResilientIOError):
                await self.producer.send("orders", b"x" * 200, key=str(number).encode())
            with contextlib.suppress(ResilientIOError, RedisError):  # it is only a cache
                await self.cache.set("latest", number)
            await asyncio.sleep(1 / ORDERS)


async def run_shop(seen: asyncio.Event, done: asyncio.Event, port: list[int]) -> None:
    async with (
        RedisServer() as redis,
        RedisServer() as cache,
        KafkaServer(options={"num.partitions": PARTITIONS}) as kafka,
    ):
        shop = Shop(redis, cache, kafka)
        async with (
            shop.redis,
            shop.cache,
            shop.producer,
            shop.consumer,
            HealthMonitor(
                shop.redis.health,
                shared=[shop.kafka],
                optional=[shop.cache.health],
                liveness=shop.clients,
            ) as monitor,
            serve(monitor, clients=shop.clients, name="order service", host=HOST, port=0) as server,
        ):
            await monitor.until_ready(30)
            requires = [shop.redis.health]
            async with asyncio.TaskGroup() as tasks:
                running = [
                    tasks.create_task(shop.order()),
                    tasks.create_task(
                        shop.consumer.run(
                            shop.book, concurrency=4, requires=requires, on_failure="skip"
                        )
                    ),
                ]
                await asyncio.sleep(12)
                redis.kill()
                await asyncio.sleep(3)
                await redis.start()
                await shop.redis.health.until_up(10)
                await asyncio.sleep(9)
                kafka.kill()
                await asyncio.sleep(2)
                await kafka.start()
                await shop.kafka.until_up(20)
                await asyncio.sleep(4)
                await cache.query("CONFIG", "SET", "maxmemory", "1")
                await asyncio.sleep(10)
                redis.kill()
                await asyncio.sleep(4)
                port.append(server.port)
                seen.set()
                await done.wait()
                for task in running:
                    task.cancel()


def take_pictures(port: int) -> dict[str, bytes]:
    with Chromium(width=DESKTOP) as browser:
        browser.open(f"http://{HOST}:{port}/status")
        browser.until("return !document.querySelector('main').hidden")
        pictures = {}
        for name, width, dark in VIEWS:
            browser.look(width=width, dark=dark)
            pictures[name] = browser.picture(most_height=None if width == DESKTOP else PHONE_HEIGHT)
        return pictures


def write(pictures: dict[str, bytes], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures.items():
        small = shrink(picture)
        if len(small) > MOST_BYTES:
            raise SystemExit(f"{name}.png would have {len(small)} bytes: show less in it")
        (folder / f"{name}.png").write_bytes(small)
        print(f"{name}.png: {len(small)} bytes")


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=IMAGES, help="where the pictures go")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)  # the outages are ours
    seen, done, port = asyncio.Event(), asyncio.Event(), []
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(run_shop(seen, done, port))
        await seen.wait()
        try:
            pictures = await asyncio.to_thread(take_pictures, port[0])
        finally:
            done.set()
    write(pictures, arguments.folder)


if __name__ == "__main__":
    asyncio.run(main())
