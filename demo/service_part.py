"""The second part: a service copies orders from Kafka to Redis, and both fail in turn."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import textwrap
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError
from rich.console import Group
from rich.text import Text

from demo.ledgers import OrderLedger, Stores, pairs
from demo.screen import delay, event_line, heading, table
from demo.timeline import STEP, Curve, Event, Fault, FaultRecord, Outcome, Timeline, outcome_of
from resilient_io import deadline
from resilient_io.errors import OutcomeUnknown
from resilient_io.health import Dependency, State
from resilient_io.kafka import (
    DeadLetter,
    HandlerPolicy,
    ResilientKafkaConsumer,
    ResilientKafkaProducer,
    RunLimits,
)
from resilient_io.redis import ResilientRedis
from resilient_io.testing import FaultProxy, KafkaServer, RedisServer, TansuServer, find_kafka
from resilient_io.testing.kafka.distribution import Tansu

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
    from typing import Self

    from rich.console import RenderableType
    from rich.table import Table

    from demo.ledgers import OrderAudit
    from demo.screen import Screen
    from resilient_io.kafka import ConsumerStats, Record
    from resilient_io.testing import ApacheKafka, KafkaBroker

HOST: Final = "127.0.0.1"
TOPIC: Final = "demo.orders"
DEAD_LETTERS: Final = "demo.orders.dead"
PARTITIONS: Final = 4
GROUP: Final = "demo.bookkeeping"
BOOKED: Final = "demo:orders:booked"
"""The hash with the amount of each booked order, by its id."""
TIMES: Final = "demo:orders:times"
"""The hash that counts how often each order was booked."""

_CONCURRENCY: Final = 16
_CUSTOMERS: Final = 8
_PAUSE: Final = 0.02
_PAUSE_AFTER_ERROR: Final = 0.1
_DEADLINE: Final = 2.0
"""Seconds that a customer waits for the acknowledgment of an order."""

_FIRST_ORDER: Final = 15.0
_CATCH_UP: Final = 20.0
_POLL: Final = 0.05
_CLOSE_AFTER_ERROR: Final = 0.5
_NOTHING_MORE_MS: Final = 300
_EVENTS: Final = 9
_LEGEND: Final = "small: Redis, capital: Kafka   k: killed   f: frozen   c: cut off"
_LABEL: Final = 58
_WIDTH: Final = 80

Script = tuple[Fault, ...]

FULL: Final[Script] = (
    Fault(server="redis", what="killed", before=1.0, lasts=1.5, after=1.0),
    Fault(server="kafka", what="killed", before=0.0, lasts=1.0, after=1.5),
    Fault(server="redis", what="frozen", before=0.0, lasts=2.5, after=1.0),
    Fault(server="kafka", what="frozen", before=0.0, lasts=3.5, after=1.0),
    Fault(server="redis", what="cut off", before=0.0, lasts=2.5, after=1.0),
    Fault(server="kafka", what="cut off", before=0.0, lasts=3.5, after=1.5),
)
QUICK: Final[Script] = (
    Fault(server="redis", what="killed", before=0.5, lasts=0.5, after=0.5),
    Fault(server="kafka", what="killed", before=0.0, lasts=0.2, after=0.5),
    Fault(server="kafka", what="frozen", before=0.0, lasts=0.5, after=0.5),
    Fault(server="redis", what="cut off", before=0.0, lasts=0.5, after=0.5),
)


class Run(Timeline):
    """The service's way through the script.

    Args:
        ledger: The outcomes of the orders, and the handler's calls.
        seconds: Expected duration.
        on_event: Called with each new event.
    """

    def __init__(
        self, ledger: OrderLedger, seconds: float, on_event: Callable[[Event], None]
    ) -> None:
        super().__init__(seconds, on_event)
        self.ledger = ledger
        self.ordered = Curve(self.began)
        self.handled = Curve(self.began)
        self.waiting: dict[str, float] = {}
        """When each order in progress began."""
        self.longest = 0.0
        self.logged = self.logged_by_drivers = 0
        self.out_of_order = 0
        """Orders that were handled before an earlier one of the same customer."""
        self.cpu = 0.0
        self.first = asyncio.Event()
        self.handler_errors: dict[int, int] = {}
        """Failed handler calls by the number of faults so far."""
        self.log_counts: dict[int, int] = {}
        self._handled_after: dict[int, float] = {}
        self._cpu_before = time.process_time()
        self._recent: deque[float] = deque()
        self._newest: dict[bytes, tuple[int, int]] = {}

    def order_began(self, number: str, now: float) -> None:
        """Record that an order is sent."""
        self.ledger.outcomes[number] = Outcome.PENDING
        self.waiting[number] = now

    def order_ended(self, number: str, now: float, error: Exception | None) -> None:
        """Record the outcome of an order."""
        self.ledger.outcomes[number] = Outcome.DONE if error is None else outcome_of(error)
        self.longest = max(self.longest, now - self.waiting.pop(number))
        if error is None:
            self.ordered.add(now)
        else:
            self.failed("a customer", error, now)

    @contextlib.contextmanager
    def handling(self, record: Record, number: str) -> Iterator[None]:
        """Record a call of the handler, and its outcome."""
        calls = self.ledger.calls_for(number)
        try:
            yield
        except asyncio.CancelledError:
            calls.unknown += 1
            raise
        except Exception as error:
            calls.unknown += isinstance(error, OutcomeUnknown)
            place = len(self.faults)
            self.handler_errors[place] = self.handler_errors.get(place, 0) + 1
            self.failed("a handler", error, asyncio.get_running_loop().time())
            raise
        now = asyncio.get_running_loop().time()
        self.handled.add(now)
        self._recent.append(now)
        self.first.set()
        if self.current is not None and self.current.ended_at is not None:
            self._handled_after.setdefault(len(self.faults), now)
        if not calls.succeeded:
            key, place_of = record.raw_key or b"", (record.partition, record.offset)
            self.out_of_order += place_of < self._newest.get(key, place_of)
            self._newest[key] = place_of
        calls.succeeded += 1

    def handled_after(self, number: int) -> float | None:
        """Return when the first order after the end of a fault was handled."""
        return self._handled_after.get(number)

    def log(self, record: logging.LogRecord) -> None:
        """Record a log record; those that are not about health become events."""
        if self.ended:
            return
        if not record.name.startswith("resilient_io"):
            self.logged_by_drivers += 1
            return
        self.logged += 1
        place = len(self.faults)
        self.log_counts[place] = self.log_counts.get(place, 0) + 1
        if not record.name.startswith("resilient_io.health"):
            now = asyncio.get_running_loop().time()
            self.add(now, "good", f"log: {record.getMessage()}")

    def end(self) -> None:
        """End recording."""
        super().end()
        self.cpu = time.process_time() - self._cpu_before

    def rate(self) -> float:
        """Return the orders handled per second in the last second."""
        now = self.began + self.passed
        while self._recent and self._recent[0] < now - 1.0:
            self._recent.popleft()
        return len(self._recent) / (min(1.0, self.passed) or 1.0)


class LogTap(logging.Handler):
    """Passes log records of the library and of the drivers to a function; a context manager."""

    _NAMES: Final = ("resilient_io", "aiokafka", "redis")

    def __init__(self, function: Callable[[logging.LogRecord], None]) -> None:
        super().__init__(logging.INFO)
        self._function = function

    def emit(self, record: logging.LogRecord) -> None:
        """Pass a record on."""
        self._function(record)

    def __enter__(self) -> None:
        for name in self._NAMES:
            logging.getLogger(name).addHandler(self)

    def __exit__(self, *_: object) -> None:
        for name in self._NAMES:
            logging.getLogger(name).removeHandler(self)


class Service:
    """Three clients and a handler, as an application would write them; a context manager.

    Args:
        redis_port: The port of Redis.
        bootstrap_servers: The address of Kafka.
        idempotent: Whether the broker supports idempotent producers.
        run: Records each call of the handler.
    """

    def __init__(
        self, *, redis_port: int, bootstrap_servers: str, idempotent: bool, run: Run
    ) -> None:
        self.redis = ResilientRedis(host=HOST, port=redis_port, health=Dependency("redis"))
        # One health for both clients of the cluster.
        self.kafka = Dependency("kafka")
        self.producer = ResilientKafkaProducer(
            bootstrap_servers=bootstrap_servers,
            health=self.kafka,
            enable_idempotence=idempotent,
        )
        self.consumer = ResilientKafkaConsumer(
            TOPIC,
            bootstrap_servers=bootstrap_servers,
            group_id=GROUP,
            health=self.kafka,
            auto_offset_reset="earliest",
        )
        self._run = run

    async def serve(self) -> None:
        """Handle orders until the consumer is closed."""
        await self.consumer.run(
            self._book,
            order="key",
            concurrency=_CONCURRENCY,
            requires=[self.redis.health],
            dead_letter=DeadLetter(topic=DEAD_LETTERS, producer=self.producer),
            handler_policy=HandlerPolicy(attempts=5),
            limits=RunLimits(slow_start=0.5),
        )

    async def __aenter__(self) -> Self:
        """Start the clients; never waits for Redis or Kafka."""
        for client in (self.redis, self.producer, self.consumer):
            await client.__aenter__()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Close the clients, the dependent ones first."""
        timeout = None if kind is None else _CLOSE_AFTER_ERROR
        await self.consumer.aclose(timeout)
        await self.producer.aclose(timeout)
        await self.redis.aclose()
        # A `Dependency` that was passed in is not closed with its clients.
        await self.redis.health.aclose()
        await self.kafka.aclose()

    async def _book(self, record: Record) -> None:
        """Book an order. Thanks to its id, a second booking does not change the amount.

        The counter is only there to show that it happened.
        """
        number, amount = (record.value or b"").decode().split()
        with self._run.handling(record, number):
            async with self.redis.pipeline(transaction=True) as booking:
                booking.hset(BOOKED, number, amount)
                booking.hincrby(TIMES, number, 1)
                await booking.execute()

    def frame(self, screen: Screen) -> RenderableType:
        """Return the current state in at most 23 lines of 80 columns."""
        run = self._run
        now = run.began + run.passed
        longest = max((now - began for began in run.waiting.values()), default=0.0)
        waiting = f", the longest for {longest:.1f} s" if run.waiting else ""
        errors = "   ".join(f"{count:,} {name}" for name, count in run.errors.most_common(2))
        stats = self.consumer.stats()
        title = "The service: orders come from Kafka and are booked in Redis"
        return Group(
            "",
            heading(title, run.passed, run.seconds),
            "",
            f"  handled    {run.rate():7,.0f} orders/s",
            f"  waiting    {len(run.waiting):7,} customers{waiting}",
            f"  partitions {stats.partitions:7,}, {stats.paused} of them paused",
            *(_health(each, now) for each in (self.kafka, self.redis.health)),
            Text(f"  errors     {errors or 'none'}", "red" if errors else ""),
            curves(run, screen),
            "",
            *[event_line(event) for event in run.events[-_EVENTS:]],
        )

    def status(self) -> str:
        """Return the current state in one line."""
        stats = self.consumer.stats()
        return (
            f"  {self._run.passed:7.3f} s  ... {self._run.rate():,.0f} orders/s handled; "
            f"{stats.paused} of {stats.partitions} partitions paused"
        )


def _health(health: Dependency, now: float) -> Text:
    cause = f" ({health.cause.value})" if health.cause is not None else ""
    line = f"  {health.name:<10} {health.state.name}{cause} for {now - health.since:.1f} s"
    return Text(line, "red" if health.state is State.DOWN else "")


def curves(run: Run, screen: Screen) -> Group:
    """Return orders sent and handled over time, and the faults below them."""
    counts = {"ordered": run.ordered.counts, "handled": run.handled.counts}
    return screen.curves(counts, STEP, run.signs, _LEGEND)


@contextlib.asynccontextmanager
async def customers(producer: ResilientKafkaProducer, run: Run) -> AsyncIterator[None]:
    """Send orders steadily while the body runs; leaving it waits for the orders in progress."""
    stopping = asyncio.Event()

    async def order(customer: str) -> None:
        loop = asyncio.get_running_loop()
        count = 0
        while not stopping.is_set():
            count += 1
            number = f"{customer}-{count}"
            value = f"{number} {count % 100}".encode()
            run.order_began(number, loop.time())
            try:
                with deadline(_DEADLINE):
                    await producer.send_and_wait(TOPIC, value, key=customer.encode())
            except KafkaError as error:
                run.order_ended(number, loop.time(), error)
                await asyncio.sleep(_PAUSE_AFTER_ERROR)
            else:
                run.order_ended(number, loop.time(), None)
                await asyncio.sleep(_PAUSE)

    tasks = [
        asyncio.create_task(order(f"customer-{place}"), name=f"demo customer {place}")
        for place in range(_CUSTOMERS)
    ]
    try:
        yield
        stopping.set()
        await asyncio.wait(tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    for task in tasks:
        task.result()


@dataclass(frozen=True, slots=True)
class Servers:
    """Both servers, each behind a proxy that stays while the server is down."""

    redis: RedisServer
    redis_proxy: FaultProxy
    kafka: KafkaBroker
    kafka_proxy: FaultProxy

    async def strike(self, fault: Fault) -> None:
        """Begin a fault."""
        server, proxy = self._of(fault)
        if fault.what == "killed":
            server.kill()
        elif fault.what == "frozen":
            server.freeze()
        else:
            proxy.stall()

    async def restore(self, fault: Fault) -> None:
        """End a fault."""
        server, proxy = self._of(fault)
        if fault.what == "killed":
            await server.start()
        elif fault.what == "frozen":
            server.thaw()
        else:
            # What was in flight is lost with its connections.
            proxy.reset()
            proxy.resume()

    def _of(self, fault: Fault) -> tuple[RedisServer | KafkaBroker, FaultProxy]:
        if fault.server == "redis":
            return self.redis, self.redis_proxy
        return self.kafka, self.kafka_proxy


@contextlib.asynccontextmanager
async def start_servers(found: ApacheKafka | Tansu) -> AsyncIterator[Servers]:
    """Start both servers and their proxies."""
    async with contextlib.AsyncExitStack() as stack:
        # Written to disk before it is acknowledged, so that "lost" means lost.
        redis = await stack.enter_async_context(RedisServer(persist=True))
        redis_proxy = await stack.enter_async_context(FaultProxy(redis.port))
        kafka: KafkaBroker = (
            TansuServer(binary=found) if isinstance(found, Tansu) else KafkaServer(kafka=found)
        )
        kafka_proxy = await stack.enter_async_context(FaultProxy(kafka.port, protocol=None))
        kafka.advertised_port = kafka_proxy.port
        await stack.enter_async_context(kafka)
        kafka_proxy.target = (kafka.host, kafka.port)
        for topic in (TOPIC, DEAD_LETTERS):
            await kafka.create_topic(topic, partitions=PARTITIONS)
        yield Servers(redis, redis_proxy, kafka, kafka_proxy)


async def perform(script: Script, screen: Screen) -> bool:
    """Run this part; return whether the service's ledger balances.

    After a failure or a cancellation no process and no folder is left.

    Raises:
        NoServerError: There is no Redis, or no Kafka, on this machine.
        ServerDidNotStartError: One of them does not start.
    """
    found = find_kafka()
    idempotent = not isinstance(found, Tansu)
    screen.say("", f"Broker: {found}")
    if not idempotent:
        script = tuple(each for each in script if (each.server, each.what) != ("kafka", "killed"))
        screen.say(
            "It keeps nothing on disk, so it is not killed here. It does not support",
            "idempotent producers, so the producer may repeat records in Kafka.",
        )
    screen.say(
        "Orders are sent to Kafka, consumed and booked in Redis under their ids,",
        f"while Redis and Kafka fail in turn: {len(script)} faults.",
    )
    async with start_servers(found) as servers:
        return await _go_through(script, screen, servers, idempotent=idempotent)


async def _go_through(
    script: Script, screen: Screen, servers: Servers, *, idempotent: bool
) -> bool:
    """Run the script with the service, close it, and check its ledger."""
    ledger = OrderLedger()
    run = Run(ledger, sum(fault.seconds for fault in script), screen.event)
    service = Service(
        redis_port=servers.redis_proxy.port,
        bootstrap_servers=servers.kafka.bootstrap_servers,
        idempotent=idempotent,
        run=run,
    )
    service.redis.health.on_change(run.changed)
    service.kafka.on_change(run.changed)
    with LogTap(run.log):
        async with (
            service,
            screen.showing(lambda: service.frame(screen), service.status),
            _serving(service, run),
        ):
            try:
                async with customers(service.producer, run):
                    await _wait_for(run.first.wait(), _FIRST_ORDER)  # the group has to form
                    for fault in script:
                        await asyncio.sleep(fault.before)
                        await servers.strike(fault)
                        run.fault_began(fault)
                        await asyncio.sleep(fault.lasts)
                        await servers.restore(fault)
                        run.fault_ended()
                        await asyncio.sleep(fault.after)
                await _wait_for(_caught_up(servers.kafka, ledger), _CATCH_UP)
            finally:
                run.end()
    stats = service.consumer.stats()
    stores = await read_stores(servers.redis, servers.kafka)
    audit = ledger.audit(stores, idempotent=idempotent)
    screen.say(*report(run, audit, stats, screen))
    return audit.balanced


async def _wait_for(awaitable: Any, timeout: float) -> None:
    """Wait at most so many seconds; the ledger shows what is missing then."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout):
            await awaitable


async def _caught_up(kafka: KafkaBroker, ledger: OrderLedger) -> None:
    """Wait until all orders in Kafka are handled."""
    orders = await read_topic(kafka, TOPIC)
    while not all(map(ledger.handled, orders.numbers)):  # noqa: ASYNC110 - it has no event
        await asyncio.sleep(_POLL)


@contextlib.asynccontextmanager
async def _serving(service: Service, run: Run) -> AsyncIterator[None]:
    """Run the service; an error of `run` is recorded."""
    task = asyncio.create_task(service.serve(), name="demo service")
    over = False

    def ended(task: asyncio.Task[None]) -> None:
        if not over and not task.cancelled() and (error := task.exception()) is not None:
            now = asyncio.get_running_loop().time()
            run.add(now, "error", f"the consumer has failed: {error!r}")

    task.add_done_callback(ended)
    try:
        yield
        over = True
        await service.consumer.aclose()
    finally:
        over = True
        task.cancel()  # does nothing if it ended with its consumer
        await asyncio.wait([task])


@dataclass(frozen=True, slots=True)
class Contents:
    """What is in a topic."""

    numbers: Sequence[str]  # the ids of all its orders
    ends: Mapping[TopicPartition, int]  # by partition, the offset after its last record


async def read_stores(redis: RedisServer, kafka: KafkaBroker) -> Stores:
    """Return what is in both servers, read with plain clients.

    Raises:
        OSError: Redis does not answer.
        KafkaError: Kafka does not answer.
    """
    booked = pairs(await redis.query("HGETALL", BOOKED))
    times = pairs(await redis.query("HGETALL", TIMES))
    orders = await read_topic(kafka, TOPIC)
    dead_letters = await read_topic(kafka, DEAD_LETTERS)
    committed: dict[TopicPartition, int] = {}
    async with _reader(kafka, group_id=GROUP) as consumer:
        consumer.assign(list(orders.ends))
        for partition in orders.ends:
            committed[partition] = await consumer.committed(partition) or 0
    return Stores(
        in_kafka=orders.numbers,
        dead_letters=dead_letters.numbers,
        booked=list(booked),
        times={number: int(count) for number, count in times.items()},
        uncommitted=sum(end - committed[partition] for partition, end in orders.ends.items()),
    )


async def read_topic(kafka: KafkaBroker, topic: str) -> Contents:
    """Return all records of a topic."""
    partitions = [TopicPartition(topic, number) for number in range(PARTITIONS)]
    numbers: list[str] = []
    async with _reader(kafka) as consumer:
        consumer.assign(partitions)
        await consumer.seek_to_beginning(*partitions)
        ends = await consumer.end_offsets(partitions)
        found = True
        # Until nothing comes: after a repeated batch the end offsets of Tansu 0.6 are too low.
        while found or any([await consumer.position(each) < ends[each] for each in partitions]):
            found = await consumer.getmany(timeout_ms=_NOTHING_MORE_MS)
            for records in found.values():
                numbers += [record.value.decode().partition(" ")[0] for record in records]
        return Contents(numbers, {each: await consumer.position(each) for each in partitions})


def _reader(kafka: KafkaBroker, **options: str) -> Any:
    return AIOKafkaConsumer(
        bootstrap_servers=kafka.direct_servers, enable_auto_commit=False, **options
    )


def report(
    run: Run, audit: OrderAudit, stats: ConsumerStats, screen: Screen
) -> list[RenderableType]:
    """Return what happened, in numbers and words."""
    verdict = (
        Text("The ledger of the service balances.", "green")
        if audit.balanced
        else Text("The ledger of the service DOES NOT BALANCE.", "red")
    )
    return [
        "",
        "Orders sent and handled over time:",
        curves(run, screen),
        "",
        _faults_table(run),
        "",
        _ledger_table(audit),
        "",
        *textwrap.wrap(_sentences(run, audit, stats), _WIDTH),
        "",
        verdict,
    ]


def _faults_table(run: Run) -> Table:
    def row(number: int, record: FaultRecord) -> list[str]:
        handlers = run.handler_errors.get(number, 0)
        return [
            record.fault.title,
            delay(record.at, record.down_at),
            delay(record.ended_at, run.handled_after(number)),
            f"{record.errors - handlers:,}",
            f"{handlers:,}",
            f"{run.log_counts.get(number, 0):,}",
        ]

    rows = [["", "published", "after", "failed", "failed", "records"]]
    rows += [row(number, record) for number, record in enumerate(run.faults, 1)]
    heads = ("", "down", "resumed", "orders", "handlers", "own log")
    return table(*heads, rows=rows, widths=(23, 12, 12, 10, 11, 12))


def _ledger_table(audit: OrderAudit) -> Table:
    rows = {
        "acknowledged by Kafka": audit.acknowledged,
        "unknown (maybe in Kafka)": audit.unknown,
        "reported as not sent": audit.not_sent,
        "found in Kafka": audit.found,
        "repeated in Kafka": audit.repeated,
        "acknowledged, but not in Kafka": audit.missing,
        "reported as not sent, but found": audit.contradicted,
        "handled (booked in Redis)": audit.handled,
        "dead letters": audit.dead,
        "lost (in Kafka, but not handled)": audit.lost,
        "booked, but not in Kafka": audit.foreign,
        "booked twice (the second time changed nothing)": audit.twice,
        "  after an unknown outcome": audit.twice_unknown,
        "  redelivered after they were handled": audit.twice_delivered,
        "  unexplained": audit.unexplained,
        "handled, but not committed": audit.uncommitted,
    }
    cells = [[label, f"{count:,}"] for label, count in rows.items()]
    return table(
        "Orders read back by their ids from Kafka and Redis", "", rows=cells,
        widths=(_LABEL, _WIDTH - _LABEL),
    )  # fmt: skip


def _sentences(run: Run, audit: OrderAudit, stats: ConsumerStats) -> str:
    return (
        f"Of {audit.found:,} orders in Kafka {audit.found - audit.lost - audit.dead:,} were "
        f"handled, {audit.lost:,} lost and {audit.twice:,} booked twice, through "
        f"{len(run.faults)} faults. {run.out_of_order:,} were handled before an earlier one of the "
        f"same customer. No customer waited longer than {run.longest:.1f} s. The library logged "
        f"{run.logged:,} records; {stats.log_records_dropped:,} of the driver's were dropped and "
        f"{run.logged_by_drivers:,} passed. {stats.instances:,} instances of the driver's consumer "
        f"were used. All of this took {run.cpu / run.seconds:.0%} of a CPU core."
    )
