"""The order service as people write it on plain redis-py and aiokafka, for comparison.

What it does with an order is what examples/order_service does. How it deals with failures is what
is found in many services: a loop around `getone()` that logs and goes on, a cache helper that logs
and returns None, and a cancellation that is taken for one more failure. It does ask Redis before it
calls itself ready.
"""

import asyncio
import json
import logging
import os
import signal

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from redis.asyncio import Redis

log = logging.getLogger("plain_service")


class Cache:
    def __init__(self, url):
        self._redis = Redis.from_url(url)

    async def call(self, name, *arguments):
        try:
            return await getattr(self._redis, name)(*arguments)
        except asyncio.CancelledError:
            return None
        except Exception:
            log.exception("Error on cache call %s", name)
            return None


class OrderService:
    def __init__(self):
        servers = os.environ["KAFKA_BOOTSTRAP_SERVERS"]
        self.cache = Cache(os.environ["REDIS_URL"])
        self.consumer = AIOKafkaConsumer(
            os.environ["ORDERS_TOPIC"],
            bootstrap_servers=servers,
            group_id=os.environ["GROUP_ID"],
            auto_offset_reset="earliest",
        )
        self.producer = AIOKafkaProducer(bootstrap_servers=servers)
        self.running = True

    async def book(self, message):
        order = json.loads(message.value)
        number, customer, amount = order["id"], order["customer"], int(order["amount"])
        await self.cache.call("hset", f"orders:{customer}", number, amount)
        booked = json.dumps({"id": number, "customer": customer, "amount": amount}).encode()
        await self.producer.send_and_wait(os.environ["BOOKED_TOPIC"], booked, key=message.key)

    async def consume(self):
        try:
            return await self.consumer.getone()
        except asyncio.CancelledError:
            return None

    async def work(self):
        await self.producer.start()
        await self.consumer.start()
        log.info("booking orders")
        while self.running:
            try:
                message = await self.consume()
                if message is not None:
                    await self.book(message)
            except Exception:
                log.exception("Error on consume Kafka message")
        await self.consumer.stop()
        await self.producer.stop()

    async def answer(self, reader, writer):
        try:
            path = (await reader.readline()).split()[1]
            while await reader.readline() not in {b"\r\n", b""}:
                pass
            well = path == b"/livez" or await self.cache.call("ping")
            status = "200 OK" if well else "503 Service Unavailable"
            writer.write(f"HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n".encode())
            await writer.drain()
        except (OSError, IndexError):
            log.warning("a probe went away")
        finally:
            writer.close()


async def main():
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    service = OrderService()
    server = await asyncio.start_server(service.answer, port=8080)
    task = asyncio.create_task(service.work())
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    async with server:
        await task


if __name__ == "__main__":
    asyncio.run(main())
