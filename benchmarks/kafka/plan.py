"""What is measured of Kafka clients, and what must be reached."""

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
"""The columns of the table; each has a process of its own."""

OUR_LOOP: Final = "our async for"
"""A contestant without a column: our own client again, to compare `run` with."""

VALUE_BYTES: Final = 200
KEYS: Final = 1000
BURST: Final = 20_000
"""Records that a producer is given before all of them are waited for."""
CALLERS: Final = 500
SLOW: Final = 0.005
"""Seconds that a slow handler takes."""
CONCURRENCY: Final = 500
"""Handlers at once, where they are slow."""

Kind = Literal["send", "wait", "many", "iterate", "run"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What some clients do in turn.

    Attributes:
        name: Its short name, for `--only`.
        title: What it is called in the table.
        clients: Who takes part, and what each does.
        partitions: How many the topic has.
        keyed: Whether records are sent with keys.
        handler: Seconds that handling a record takes, when it is read.
        concurrency: Handlers that may run at once; 1 leaves it to the client.
        targets: What must be reached.
    """

    name: str
    title: str
    clients: dict[str, Kind]
    partitions: int = 4
    keyed: bool = True
    handler: float = 0.0
    concurrency: int = 1
    targets: tuple[Target, ...] = ()

    @property
    def reads(self) -> bool:
        """Whether it is about a consumer."""
        return not {"send", "wait", "many"} & {*self.clients.values()}


_SEND: Final = (
    Target(against=AIOKAFKA, least=1.6),
    Target(against=CONFLUENT, least=1.4),
    Target(against=AIOKAFKA, of="CPU", most=0.6),
    Target(against=CONFLUENT, of="CPU", most=0.6),
)
_SENDERS: Final[dict[str, Kind]] = dict.fromkeys((AIOKAFKA, IDEMPOTENT, CONFLUENT, OURS), "send")

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
        clients=dict.fromkeys((AIOKAFKA, CONFLUENT, OURS), "iterate"),
        targets=(Target(against=AIOKAFKA, least=1.6),),
    ),
    Work(
        name="run",
        title="`run`, handlers that do nothing",
        clients={CONFLUENT: "run", FASTSTREAM: "run", OURS: "run", OUR_LOOP: "iterate"},
        targets=(Target(against=OUR_LOOP, least=0.5),),
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
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Idle:
    """What is measured beside the works: the share of a core that doing nothing takes."""

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
    """Return which client a contestant is."""
    return OURS if contestant == OUR_LOOP else contestant


def key_of(number: int) -> bytes:
    """Return the key of a record."""
    return b"key:%d" % (number % KEYS)


def value_of(number: int) -> bytes:
    """Return the value of a record: 200 bytes that identify it."""
    return (b"%d:" % number).ljust(VALUE_BYTES, b"x")
