"""The third part: both Redis clients follow a Sentinel failover, at the same time."""

from __future__ import annotations

import asyncio
import contextlib
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import redis
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import RedisError
from rich.console import Group
from rich.text import Text

from demo.ledgers import WriteLedger
from demo.screen import delay, event_line, heading, table, verdict
from demo.timeline import Event, Fault, FaultRecord, Outcome, Timeline, outcome_of, repeated
from resilient_io.redis import ResilientRedis
from resilient_io.testing import SentinelSetup, find_redis

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rich.console import RenderableType
    from rich.table import Table

    from demo.ledgers import WriteAudit
    from demo.screen import Screen
    from demo.timeline import Kind

NAME: Final = "mymaster"
CALLERS: Final = 20
"""Callers of each client, which push numbers to a list."""

_PAUSE: Final = 0.002
_PAUSE_AFTER_ERROR: Final = 0.05
_DOWN_AFTER: Final = 0.5
"""Seconds of silence after which a Sentinel takes the master for down."""

_LAST_CALLS: Final = 0.5
"""Seconds that calls in progress get at the end."""

_SOCKET_TIMEOUT: Final = 1.0
_EVENTS: Final = 11
_WIDTH: Final = 80
_TITLES: Final = {
    "failover": "planned failover",
    "killed": "master killed",
    "frozen": "master frozen",
}

Script = tuple[Fault, ...]

FULL: Final[Script] = (
    Fault(what="failover", before=0.5, lasts=0.0, after=3.5),
    Fault(what="killed", before=0.5, lasts=0.0, after=4.0),
    # The old master returns and accepts writes, until a Sentinel makes it a replica.
    Fault(what="frozen", before=0.5, lasts=4.0, after=3.0),
)
QUICK: Final[Script] = (
    Fault(what="failover", before=0.2, lasts=0.0, after=0.7),
    Fault(what="killed", before=0.2, lasts=0.0, after=0.9),
    Fault(what="frozen", before=0.2, lasts=2.2, after=0.6),
)


class PlainClient:
    """redis-py, with the retries that its standalone client has by default, and a timeout."""

    key = "plain"
    name = "redis-py"
    title = f"redis-py {redis.__version__}"

    def __init__(self, setup: SentinelSetup) -> None:
        options: dict[str, Any] = {"socket_timeout": _SOCKET_TIMEOUT}
        self._sentinel = Sentinel(setup.addresses, sentinel_kwargs=options)
        retry = Retry(ExponentialWithJitterBackoff(base=1, cap=10), retries=3)
        self.client = self._sentinel.master_for(setup.name, retry=retry, **options)

    def outcome(self, error: Exception) -> Outcome:
        """Return unknown: the same errors are raised whether the write was applied or not."""
        del error
        return Outcome.UNKNOWN

    async def aclose(self) -> None:
        """Close all connections."""
        await self.client.aclose()
        await self._sentinel.aclose()


class OurClient:
    """`ResilientRedis` with its defaults."""

    key = "resilient"
    name = "ResilientRedis"
    title = "ResilientRedis"

    def __init__(self, setup: SentinelSetup) -> None:
        self.client = ResilientRedis.from_sentinel(setup.addresses, setup.name)

    def outcome(self, error: Exception) -> Outcome:
        """Return what an error says about a write."""
        return outcome_of(error)

    async def aclose(self) -> None:
        """Close all connections."""
        await self.client.aclose()


Client = PlainClient | OurClient


class Run(Timeline):
    """One client's way through one fault."""

    def __init__(
        self, client: Client, ledger: WriteLedger, seconds: float, on_event: Callable[[Event], None]
    ) -> None:
        super().__init__(seconds, on_event)
        self.client = client
        self.ledger = ledger
        self.longest_gap = 0.0
        """Longest time without a successful call."""
        self._succeeded_at = self.began
        if isinstance(client, OurClient):
            client.client.health.on_change(self.changed)

    @property
    def gap(self) -> float:
        """Seconds since the latest successful call."""
        return asyncio.get_running_loop().time() - self._succeeded_at

    async def call_repeatedly(self, caller: str, stopping: asyncio.Event) -> None:
        """Push one number after the other, and record the outcome of each."""
        loop = asyncio.get_running_loop()
        outcomes, count = self.ledger.outcomes, 0
        while not stopping.is_set():
            count += 1
            number = f"{caller}-{count}"
            outcomes[number] = Outcome.PENDING
            began = self.waiting[caller] = loop.time()
            error: Exception | None = None
            try:
                await self.client.client.rpush(self.ledger.pushes, number)
            except (RedisError, OSError) as failed:
                error = failed
            now = loop.time()
            del self.waiting[caller]
            self.longest = max(self.longest, now - began)
            if error is not None:
                outcomes[number] = self.client.outcome(error)
                self.failed(f"a caller of {self.client.name}", error, now, now - began)
                await asyncio.sleep(_PAUSE_AFTER_ERROR)
                continue
            outcomes[number] = Outcome.DONE
            self.longest_gap = max(self.longest_gap, now - self._succeeded_at)
            self._succeeded_at = now
            self.recent.append((now, now - began))
            await asyncio.sleep(_PAUSE)

    def note_fault(self, fault: Fault, at: float) -> None:
        """Record a fault, of which both clients are the victims: it is shown once."""
        self.faults.append(FaultRecord(fault, at))

    def end(self) -> None:
        """End recording; calls that still wait were given up."""
        super().end()
        self.longest = max(self.longest, self.waiting_longest)
        self.longest_gap = max(self.longest_gap, self.gap)

    def lines(self) -> list[RenderableType]:
        """Return the current state in a few lines."""
        waiting = f"{len(self.waiting):2} calls wait{self.waiting_text}"
        return [
            f"  {self.client.title:<18}{self.rate():7,.0f} writes/s   {waiting}",
            Text(f"  {'':<18}errors: {self.errors_text or 'none'}", "red" if self.errors else ""),
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What became of one fault, for one client."""

    fault: Fault
    run: Run
    audit: WriteAudit
    switched: float  # seconds from the fault until the Sentinels named another master


async def perform(script: Script, screen: Screen) -> bool:
    """Run this part; return whether the ledger of `ResilientRedis` balances.

    After a failure or a cancellation no process and no folder is left.
    """
    screen.say(
        "",
        f"Servers: {find_redis()}",
        "The demo starts a master, two replicas and three Sentinels for each fault. Both",
        f"clients follow the failover at the same time, with {CALLERS} callers each.",
    )
    results: list[tuple[Result, Result]] = []
    async with contextlib.AsyncExitStack() as stack:
        setups = [SentinelSetup(down_after=_DOWN_AFTER) for _ in script]
        for setup in setups:
            stack.push_async_callback(setup.aclose)
        await asyncio.gather(*(setup.start() for setup in setups))
        for part, (fault, setup) in enumerate(zip(script, setups, strict=True), 1):
            if not screen.live:
                screen.say("", f"{part} of {len(script)}: {_TITLES[fault.what]}")
            results.append(await _go_through(fault, setup, screen, f"{part} of {len(script)}"))
    screen.say(*report(results))
    return all(resilient.audit.balanced for _, resilient in results)


async def _go_through(
    fault: Fault, setup: SentinelSetup, screen: Screen, part: str
) -> tuple[Result, Result]:
    """Write with both clients during a fault, close them, and check their ledgers."""
    events: list[Event] = []

    def on_event(event: Event) -> None:
        events.append(event)
        screen.event(event)

    clients: list[Client] = [PlainClient(setup), OurClient(setup)]
    runs = [Run(each, WriteLedger(each.key), fault.seconds, on_event) for each in clients]
    first = runs[0]

    def say(kind: Kind, text: str) -> None:
        first.add(asyncio.get_running_loop().time(), kind, text)

    def frame() -> RenderableType:
        return Group(
            "",
            heading(f"{part}: {_TITLES[fault.what]}", first.passed, first.seconds),
            "",
            *[line for run in runs for line in run.lines()],
            "",
            *[event_line(event) for event in events[-_EVENTS:]],
        )

    def status() -> str:
        rates = ", ".join(
            f"{run.client.name} {run.rate():,.0f} writes/s, {len(run.waiting)} waiting"
            for run in runs
        )
        return f"  {first.passed:7.3f} s  ... {rates}"

    stopping = asyncio.Event()
    calls = {
        f"{run.client.key}-{number}": run.call_repeatedly(f"{number}", stopping)
        for run in runs
        for number in range(CALLERS)
    }
    try:
        async with screen.showing(frame, status), repeated(calls, stopping, _LAST_CALLS):
            switched = await _inject(fault, setup, runs, say)
        for run in runs:
            run.end()
    finally:
        for each in clients:
            await each.aclose()
    master = await setup.master()
    plain, resilient = [
        Result(fault=fault, run=run, audit=await run.ledger.audit(master), switched=switched)
        for run in runs
    ]
    return plain, resilient


async def _inject(
    fault: Fault, setup: SentinelSetup, runs: Sequence[Run], say: Callable[[Kind, str], None]
) -> float:
    """Inject a fault; return the seconds until the Sentinels named another master."""
    loop = asyncio.get_running_loop()
    await asyncio.sleep(fault.before)
    old = await setup.master_address()
    server = setup.node(old)
    began = loop.time()
    if fault.what == "failover":
        await setup.begin_failover()
    elif fault.what == "killed":
        server.kill()
    else:
        server.freeze()
    say("fault", _TITLES[fault.what])
    for run in runs:
        run.note_fault(fault, began)
    new = await setup.until_switched(old)
    switched = loop.time() - began
    say("good", f"all Sentinels name the new master, port {new.port}")
    await asyncio.sleep(max(fault.lasts - switched, 0.0))
    if fault.what == "frozen":
        server.thaw()
        say("fault", "the old master is back, and accepts writes")
    # Counted from here, so that what follows does not depend on the time of the failover.
    await asyncio.sleep(fault.after)
    return switched


def report(results: Sequence[tuple[Result, Result]]) -> list[RenderableType]:
    """Return the comparison of both clients."""
    balanced = all(resilient.audit.balanced for _, resilient in results)
    return [
        "",
        _times_table(results),
        "",
        _ledger_table(results),
        "",
        *textwrap.wrap(_sentences(results), _WIDTH),
        "",
        verdict("ResilientRedis", balanced=balanced),
    ]


def _times_table(results: Sequence[tuple[Result, Result]]) -> Table:
    rows = [["", "", "redis-py", "Resilient", "redis-py", "Resilient"]]
    rows += [
        [
            _TITLES[plain.fault.what],
            delay(0.0, plain.switched),
            f"{plain.run.longest_gap:.2f} s",
            f"{resilient.run.longest_gap:.2f} s",
            f"{plain.run.longest:.2f} s",
            f"{resilient.run.longest:.2f} s",
        ]
        for plain, resilient in results
    ]
    heads = ("Longest time", "failover", "without", "success", "of a", "call")
    return table(*heads, rows=rows, widths=(20, 12, 12, 12, 12, 12))


def _ledger_table(results: Sequence[tuple[Result, Result]]) -> Table:
    rows: dict[str, Callable[[WriteAudit], int]] = {
        "acknowledged": lambda audit: audit.acknowledged,
        "failed: unknown (maybe done)": lambda audit: audit.unknown,
        "failed: reported as not done": lambda audit: audit.not_done,
        "found in the final master": lambda audit: audit.found,
        "done more than once": lambda audit: audit.repeated,
        "acknowledged, but lost": lambda audit: audit.lost,
    }
    cells = [
        [label, *(f"{sum(value(pair[n].audit) for pair in results):,}" for n in (0, 1))]
        for label, value in rows.items()
    ]
    cells += [
        [f"  {_TITLES[pair[0].fault.what]}", *(f"{each.audit.lost:,}" for each in pair)]
        for pair in results
    ]
    heads = ("Writes read back by their ids", PlainClient.title, OurClient.title)
    return table(*heads, rows=cells, widths=(36, 22, 22))


def _sentences(results: Sequence[tuple[Result, Result]]) -> str:
    texts = []
    for number in (0, 1):
        audits = [pair[number].audit for pair in results]
        total = sum(each.acknowledged for each in audits)
        lost, repeated_ = sum(each.lost for each in audits), sum(each.repeated for each in audits)
        failed = sum(each.unknown + each.not_done for each in audits)
        longest = max(pair[number].run.longest for pair in results)
        name = results[0][number].run.client.name
        texts.append(
            f"{name}: of {total:,} acknowledged writes {lost:,} are not in the final master, and "
            f"{repeated_:,} are there more than once. {failed:,} calls failed, and the longest "
            f"took {longest:.1f} s."
        )
    return " ".join(texts)
