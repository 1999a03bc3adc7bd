"""What is measured of Kafka clients, and the targets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from benchmarks.targets import Target

AIOKAFKA: Final = "aiokafka"
IDEMPOTENT: Final = "aiokafka, idempotent"
CONFLUENT: Final = "confluent AIO"
FASTSTREAM: Final = "FastStream"
OURS: Final = "resilient-io"
CLIENTS: Final = (AIOKAFKA, IDEMPOTENT, CONFLUENT, FASTSTREAM, OURS)
"""The columns of the table; each client has its own process."""

OUR_LOOP: Final = "our async for"
"""A contestant without a column: our own client again, to compare `run` with."""

BARE: Final = "bare"
"""A contestant without a column: what records cost without a network, whatever the client."""

VALUE_BYTES: Final = 200
KEYS: Final = 1000
BURST: Final = 20_000
"""Records passed to a producer before waiting for all of them."""
CALLERS: Final = 500
SLOW: Final = 0.005
"""Seconds that a slow handler takes."""
CONCURRENCY: Final = 500
"""Concurrent handlers, if they are slow."""

Kind = Literal["send", "wait", "many", "iterate", "run"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A task that several clients do in turn.

    Attributes:
        name: Its short name, for `--only`.
        title: Its title in the table.
        clients: The clients, and which call each uses.
        partitions: Number of partitions of the topic.
        keyed: Whether records are sent with keys.
        handler: Seconds that handling a record takes.
        varied: Whether it takes from 0 to that long, at random.
        concurrency: Maximum concurrent handlers; 1 for the client's default.
        targets: Ratios to reach.
        most_cpu: CPU µs per record that our client may use.
    """

    name: str
    title: str
    clients: dict[str, Kind]
    partitions: int = 4
    keyed: bool = True
    handler: float = 0.0
    varied: bool = False
    concurrency: int = 1
    targets: tuple[Target, ...] = ()
    most_cpu: float | None = None

    @property
    def reads(self) -> bool:
        """Whether it measures a consumer."""
        return not {"send", "wait", "many"} & {*self.clients.values()}


_SEND: Final = (
    Target(against=AIOKAFKA, least=1.7),
    Target(against=CONFLUENT, least=1.4),
    Target(against=AIOKAFKA, of="CPU", most=0.55),
    Target(against=CONFLUENT, of="CPU", most=0.6),
)
_SENDERS: Final[dict[str, Kind]] = dict.fromkeys(
    (AIOKAFKA, IDEMPOTENT, CONFLUENT, OURS, BARE), "send"
)

WORKS: Final = (
    Work(name="send", title="`send`, 1,000 keys", clients=_SENDERS, targets=_SEND),
    Work(
        name="send-keyless",
        title="`send`, without keys",
        clients=_SENDERS,
        keyed=False,
        targets=_SEND,
    ),
    Work(
        name="wait-500",
        title="`send_and_wait`, 500 callers",
        clients=dict.fromkeys((AIOKAFKA, IDEMPOTENT, OURS), "wait"),
        targets=(
            Target(against=AIOKAFKA, least=1.2),
            Target(against=AIOKAFKA, of="CPU", most=0.5),
        ),
    ),
    Work(
        name="send-many",
        title="`send_many`, 1,000 keys",
        clients={AIOKAFKA: "many", CONFLUENT: "send", OURS: "many"},
        targets=(Target(against=CONFLUENT, least=3),),
    ),
    Work(
        name="async-for",
        title="`async for`",
        clients=dict.fromkeys((AIOKAFKA, CONFLUENT, OURS, BARE), "iterate"),
        # 1.3 µs were to be reached on a machine on which aiokafka took 5.3 µs. The ratio does not
        # depend on the machine.
        targets=(
            Target(against=AIOKAFKA, least=4),
            Target(against=AIOKAFKA, of="CPU", most=0.25),
        ),
        most_cpu=1.3,
    ),
    Work(
        name="run",
        title="`run`, handlers that do nothing",
        clients={CONFLUENT: "run", FASTSTREAM: "run", OURS: "run", OUR_LOOP: "iterate"},
        targets=(Target(against=CONFLUENT, least=1.05),),
    ),
    Work(
        name="run-5ms",
        title="`run`, handlers of 5 ms, 1 partition",
        clients={AIOKAFKA: "iterate", FASTSTREAM: "run", OURS: "run", OUR_LOOP: "iterate"},
        partitions=1,
        handler=SLOW,
        concurrency=CONCURRENCY,
        targets=(
            Target(against=OUR_LOOP, least=50),
            Target(against=AIOKAFKA, least=50),
        ),
    ),
    # The benchmark of Confluent's Parallel Consumer for Java, which reports 10.8x.
    Work(
        name="parallel",
        title="`run`, handlers of 0 to 5 ms, 1 partition, 1,000 keys, 16 at once",
        clients={AIOKAFKA: "iterate", FASTSTREAM: "run", OURS: "run", OUR_LOOP: "iterate"},
        partitions=1,
        handler=SLOW,
        varied=True,
        concurrency=16,
        targets=(Target(against=OUR_LOOP, least=12),),
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Idle:
    """The share of a core that an idle client uses, and how often it waits."""

    title: str
    clients: tuple[str, ...]


IDLE: Final = {
    "idle-producer": Idle(
        title="an idle producer", clients=(AIOKAFKA, IDEMPOTENT, CONFLUENT, OURS)
    ),
    "idle-consumer": Idle(title="an idle consumer", clients=(AIOKAFKA, CONFLUENT, OURS)),
}
IDLE_TARGET: Final = 0.005
"""Of a core."""


def client_of(contestant: str) -> str:
    """Return the client of a contestant."""
    return OURS if contestant == OUR_LOOP else contestant


def key_of(number: int) -> bytes:
    """Return the key of a record."""
    return b"key:%d" % (number % KEYS)


def value_of(number: int) -> bytes:
    """Return the value of a record: its number, padded to 200 bytes."""
    return (b"%d:" % number).ljust(VALUE_BYTES, b"x")
