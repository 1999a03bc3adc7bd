"""Sends orders to both services, asks their probes as a kubelet does, and keeps the ledger.

It sits in the services' network, where it asks their probes, and in one of its own with Redis and
Kafka, so that it sees both while they are cut off from the services. It takes commands, a JSON
object a line, from /control/commands, and tells what it sees in /control/readings. Plain clients
only: what it counts is read past the library under test.
"""

import asyncio
import contextlib
import json
import os
import time
from pathlib import Path

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

CONTROL = Path("/control")
SERVERS = os.environ["KAFKA_BOOTSTRAP_SERVERS"]
SERVICES = json.loads(os.environ["SERVICES"])
"""By name: topics `orders`, `booked`, `dead`, `group`, and the number of the Redis `database`."""
CUSTOMERS = [f"c{number}" for number in range(8)]
PARTITIONS = 4
PROBE_TIMEOUT = 1.0
"""Seconds, as a kubelet's default `timeoutSeconds`."""


class Shop:
    def __init__(self):
        self.acked = {name: [] for name in SERVICES}
        self.sent = 0
        self.sending = None
        self.producer = None
        self.redis = {
            name: Redis(
                host=os.environ["REDIS_HOST"],
                db=service["database"],
                socket_timeout=0.5,
                socket_connect_timeout=0.5,
                retry=Retry(NoBackoff(), 0),
                decode_responses=True,
            )
            for name, service in SERVICES.items()
        }
        self.readings = (CONTROL / "readings").open("a")

    def tell(self, **fields):
        self.readings.write(json.dumps({"at": time.time(), **fields}) + "\n")
        self.readings.flush()

    # -- looking ---------------------------------------------------------------------------------

    async def probe(self, name, path, every):
        while True:
            began = time.monotonic()
            status, said = await self.ask(name, path)
            took = time.monotonic() - began
            self.tell(service=name, probe=path, status=status, said=said, took=round(took, 3))
            await asyncio.sleep(max(0.0, every - took))

    async def ask(self, name, path):
        """Return the status, 0 for no answer in time, and what was said."""
        writer = None
        try:
            async with asyncio.timeout(PROBE_TIMEOUT):
                reader, writer = await asyncio.open_connection(name, 8080)
                request = f"GET {path} HTTP/1.1\r\nhost: {name}\r\nconnection: close\r\n\r\n"
                writer.write(request.encode())
                status = int((await reader.readline()).split()[1])
                body = (await reader.read(2000)).decode(errors="replace") if status != 200 else ""
                return status, body.rpartition("\r\n\r\n")[2][:300]
        except TimeoutError:
            return 0, "no answer in time"
        except (OSError, IndexError, ValueError) as error:
            return 0, str(error)
        finally:
            if writer is not None:
                writer.close()

    async def booked(self, name):
        while True:
            with contextlib.suppress(RedisError, OSError):
                async with self.redis[name].pipeline(transaction=False) as pipe:
                    for customer in CUSTOMERS:
                        pipe.hlen(f"orders:{customer}")
                    count = sum(await pipe.execute())
                self.tell(service=name, booked=count, acked=len(self.acked[name]))
            await asyncio.sleep(0.2)

    # -- sending ---------------------------------------------------------------------------------

    async def start_producer(self):
        while self.producer is None:
            producer = AIOKafkaProducer(
                bootstrap_servers=SERVERS, enable_idempotence=True, metadata_max_age_ms=5000
            )
            try:
                async with asyncio.timeout(5):
                    await producer.start()
                await self.make_topics()
                self.producer = producer
            except (KafkaError, OSError, TimeoutError):
                await producer.stop()
                await asyncio.sleep(0.5)
        self.tell(shop="open")

    async def make_topics(self):
        admin = AIOKafkaAdminClient(bootstrap_servers=SERVERS)
        await admin.start()
        try:
            names = [
                SERVICES[name][kind] for name in SERVICES for kind in ("orders", "booked", "dead")
            ]
            # One that is there already, made by a service that asked for it, is answered as such.
            await admin.create_topics([NewTopic(name, PARTITIONS, 1) for name in names])
        finally:
            await admin.close()

    async def order(self, size):
        number, self.sent = self.sent, self.sent + 1
        customer = CUSTOMERS[number % len(CUSTOMERS)]
        order = {"id": f"{number}", "customer": customer, "amount": number, "note": "x" * size}
        value, key = json.dumps(order).encode(), customer.encode()
        for name, service in SERVICES.items():
            future = await self.producer.send(service["orders"], value, key=key)
            future.add_done_callback(lambda done, name=name: self.note(name, order["id"], done))

    def note(self, name, number, done):
        if not done.cancelled() and done.exception() is None:
            self.acked[name].append(number)

    async def send(self, rate, count=None, size=0):
        await self.start_producer()
        due = time.monotonic()
        while count is None or count > 0:
            await self.order(size)
            count = None if count is None else count - 1
            due += 1 / rate
            await asyncio.sleep(max(0.0, due - time.monotonic()))
        await self.producer.flush()

    async def stop(self):
        if self.sending is not None:
            self.sending.cancel()
            await asyncio.wait([self.sending])
            self.sending = None
        if self.producer is not None:
            await self.producer.flush()

    # -- the ledger ------------------------------------------------------------------------------

    async def read(self, topic, group=None):
        """Return all ids in a topic, as often as they are there, and those below the commit."""
        consumer = AIOKafkaConsumer(
            bootstrap_servers=SERVERS, group_id=group, enable_auto_commit=False
        )
        await consumer.start()
        try:
            partitions = [TopicPartition(topic, each) for each in range(PARTITIONS)]
            consumer.assign(partitions)
            committed = {}
            for each in partitions if group else ():
                committed[each] = await consumer.committed(each) or 0
            await consumer.seek_to_beginning(*partitions)
            ends = await consumer.end_offsets(partitions)
            found, passed = [], []
            while any([await consumer.position(each) < ends[each] for each in partitions]):
                for records in (await consumer.getmany(timeout_ms=500)).values():
                    for record in records:
                        number = json.loads(record.value)["id"]
                        found.append(number)
                        if record.offset < committed.get(
                            TopicPartition(topic, record.partition), 0
                        ):
                            passed.append(number)
            return found, passed
        finally:
            await consumer.stop()

    async def ledger(self):
        books = {}
        for name, service in SERVICES.items():
            kept = set()
            for customer in CUSTOMERS:
                kept |= set(await self.redis[name].hkeys(f"orders:{customer}"))
            in_kafka, passed = await self.read(service["orders"], service["group"])
            announced, _ = await self.read(service["booked"])
            dead, _ = await self.read(service["dead"])
            unbooked = set(self.acked[name]) - kept
            books[name] = {
                "sent": len(self.acked[name]),
                "in_kafka": len(set(in_kafka)),
                "booked": len(kept),
                "announced": len(set(announced)),
                # What is committed is not read again: it will never be booked.
                "lost": len(unbooked & set(passed)),
                "pending": len(unbooked - set(passed)),
                "unannounced": len(set(self.acked[name]) - set(announced)),
                "repeated": len(announced) - len(set(announced)),
                "dead": len(set(dead)),
            }
        self.tell(ledger=books)

    # -- commands --------------------------------------------------------------------------------

    async def obey(self):
        path, seen = CONTROL / "commands", 0
        while True:
            lines = path.read_text().splitlines() if path.exists() else []
            for line in lines[seen:]:
                command = json.loads(line)
                await self.do(**command)
                self.tell(done=command)
            seen = len(lines)
            await asyncio.sleep(0.05)

    async def do(self, do, **arguments):
        if do == "send":
            await self.stop()
            self.sending = asyncio.create_task(self.send(**arguments))
        elif do == "burst":
            await self.stop()
            await self.send(**arguments)
        elif do == "stop":
            await self.stop()
        elif do == "ledger":
            await self.ledger()


async def main():
    shop = Shop()
    async with asyncio.TaskGroup() as group:
        group.create_task(shop.obey())
        for name in SERVICES:
            group.create_task(shop.probe(name, "/readyz", 0.2))
            group.create_task(shop.probe(name, "/livez", 0.5))
            group.create_task(shop.booked(name))


if __name__ == "__main__":
    asyncio.run(main())
