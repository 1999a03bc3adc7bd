"""The first part: plain redis-py and `ResilientRedis` through the same faults."""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import textwrap
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import redis
import redis.asyncio
from redis.exceptions import RedisError
from rich.console import Group
from rich.text import Text

from demo.ledgers import WriteLedger
from demo.screen import delay, event_line, heading, milliseconds, quantile, table
from demo.timeline import STEP, Curve, Event, Fault, Outcome, Timeline, outcome_of
from resilient_io.redis import ResilientRedis
from resilient_io.testing import FaultProxy, RedisServer, find_redis

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from rich.console import RenderableType
    from rich.table import Table

    from demo.ledgers import WriteAudit
    from demo.screen import Screen
    from resilient_io.health import Change

HOST: Final = "127.0.0.1"
CALLERS: Final = 50
"""Callers of the speed measurement."""

_SPEED_ROUNDS: Final = 3
_SPEED_KEY: Final = "demo:speed"
_TASKS: Final = 6
"""Tasks of each kind: increments, pushes and reads."""

_PAUSE: Final = 0.008
_PAUSE_AFTER_ERROR: Final = 0.05
_LAST_CALLS: Final = 3.0
"""Seconds that calls in progress get at the end."""

_POLL: Final = 0.05
_DRAIN: Final = 2.0
_SLOW: Final = 1.0
"""Seconds from which on a call counts as slow."""

_EVENTS: Final = 10
_LEGEND: Final = "l: replies lost   k: server killed   f: server frozen"
_LABEL: Final = 36
_COLUMN: Final = 22
_WIDTH: Final = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """What both clients go through."""

    faults: tuple[Fault, ...]  # the faults, in order
    speed_round: float  # seconds of one round of the speed measurement
    socket_timeout: float | None = None  # for both clients; None for their own defaults

    @property
    def seconds(self) -> float:
        """How long all faults take."""
        return sum(fault.seconds for fault in self.faults)


FULL: Final = Script(
    faults=(
        # redis-py waits 5 s for a reply before it sends the command again.
        Fault(what="lost replies", before=2.0, lasts=5.5, after=0.5),
        Fault(what="killed", before=0.0, lasts=1.5, after=2.0),
        Fault(what="frozen", before=0.5, lasts=2.5, after=1.5),
        # redis-py gives up after 3 to 4 s.
        Fault(what="killed", before=0.0, lasts=4.5, after=1.5),
    ),
    speed_round=0.5,
)
QUICK: Final = Script(
    faults=(
        Fault(what="lost replies", before=0.4, lasts=1.3, after=0.2),
        Fault(what="killed", before=0.0, lasts=0.4, after=0.6),
        Fault(what="frozen", before=0.0, lasts=0.4, after=0.3),
    ),
    speed_round=0.1,
    socket_timeout=1.0,
)


def _options(port: int, socket_timeout: float | None) -> dict[str, Any]:
    options: dict[str, Any] = {"host": HOST, "port": port}
    return options if socket_timeout is None else options | {"socket_timeout": socket_timeout}


class PlainClient:
    """redis-py with its defaults."""

    key = "plain"
    name = "plain redis-py"
    title = f"plain redis-py {redis.__version__}"

    def __init__(self, port: int, socket_timeout: float | None) -> None:
        options = _options(port, socket_timeout)
        self.client: redis.asyncio.Redis = redis.asyncio.Redis(**options)

    def outcome(self, error: Exception) -> Outcome:
        """Return unknown: the same errors are raised whether the write was applied or not."""
        del error
        return Outcome.UNKNOWN

    def state(self, now: float) -> str:
        """Return what the client knows about the server: nothing."""
        del now
        return "unknown: callers notice by waiting"

    def retries(self) -> int | None:
        """Return None: redis-py does not count its retries."""
        return None

    def on_change(self, callback: Callable[[Change], object]) -> None:
        """Ignore the callback: redis-py does not watch the server."""


class OurClient:
    """`ResilientRedis` with its defaults."""

    key = "resilient"
    name = "ResilientRedis"
    title = "ResilientRedis"

    def __init__(self, port: int, socket_timeout: float | None) -> None:
        self.client = ResilientRedis(**_options(port, socket_timeout))

    def outcome(self, error: Exception) -> Outcome:
        """Return what an error says about a write."""
        return outcome_of(error)

    def state(self, now: float) -> str:
        """Return what the client knows about the server."""
        health = self.client.health
        cause = f" ({health.cause.value})" if health.cause is not None else ""
        return f"{health.state.name}{cause} for {now - health.since:.1f} s"

    def retries(self) -> int | None:
        """Return how often the client has retried."""
        return self.client.stats().retries

    def on_change(self, callback: Callable[[Change], object]) -> None:
        """Call a function at each change of the server's state."""
        self.client.health.on_change(callback)


Client = PlainClient | OurClient
CLIENTS: Final[tuple[Callable[[int, float | None], Client], ...]] = (PlainClient, OurClient)


class Run(Timeline):
    """One client's way through the script.

    Args:
        client: The client.
        ledger: The outcomes of its writes.
        seconds: Expected duration.
        on_event: Called with each new event.
    """

    def __init__(
        self, client: Client, ledger: WriteLedger, seconds: float, on_event: Callable[[Event], None]
    ) -> None:
        super().__init__(seconds, on_event)
        self.client = client
        self.ledger = ledger
        self.answered: list[float] = []
        """Seconds that each answered call took."""
        self.curve = Curve(self.began)
        self.calls = self.slow = 0
        self.longest = 0.0
        self.waiting: dict[str, float] = {}
        """When each call in progress began, by the task that waits for it."""
        self._recent: deque[tuple[float, float]] = deque()
        client.on_change(self.changed)

    def call_began(self, caller: str, now: float) -> None:
        """Record a call."""
        self.calls += 1
        self.waiting[caller] = now

    def call_ended(self, caller: str, now: float, error: Exception | None) -> None:
        """Record the end of a call."""
        took = now - self.waiting.pop(caller)
        self.longest = max(self.longest, took)
        self.slow += took >= _SLOW
        if self.current is not None:
            self.current.longest = max(self.current.longest, took)
        if error is not None:
            self.failed("a caller", error, now, took)
            return
        self.answered.append(took)
        self._recent.append((now, took))
        self.curve.add(now)

    def end(self) -> None:
        """End recording; calls that still wait were given up."""
        super().end()
        now = self.began + self.seconds
        self.longest = max([self.longest, *(now - began for began in self.waiting.values())])

    def recently(self) -> tuple[float, float | None, float | None]:
        """Return the calls answered per second in the last second, their p50 and their p99."""
        now = self.began + self.passed
        while self._recent and self._recent[0][0] < now - 1.0:
            self._recent.popleft()
        took = sorted(duration for _, duration in self._recent)
        elapsed = min(1.0, self.passed) or 1.0
        return len(took) / elapsed, quantile(took, 0.5), quantile(took, 0.99)

    def frame(self, part: int, screen: Screen) -> RenderableType:
        """Return the current state in at most 23 lines of 80 columns."""
        now = self.began + self.passed
        rate, p50, p99 = self.recently()
        longest = max((now - began for began in self.waiting.values()), default=0.0)
        waiting = f", the longest for {longest:.1f} s" if self.waiting else ""
        retries = self.client.retries()
        errors = "   ".join(f"{count:,} {name}" for name, count in self.errors.most_common(2))
        retried = f"{retries:7,}" if retries is not None else "unknown"
        return Group(
            "",
            heading(f"{part} of 2: {self.client.title}", self.passed, self.seconds),
            "",
            f"  answered   {rate:7,.0f} commands/s    "
            f"p50 {milliseconds(p50)}   p99 {milliseconds(p99)}",
            Text(
                f"  waiting    {len(self.waiting):7,} calls{waiting}",
                "red" if longest > _SLOW else "",
            ),
            f"  server     {self.client.state(now)}",
            f"  retries    {retried}",
            Text(f"  errors     {errors or 'none'}", "red" if errors else ""),
            curves([self], screen),
            "",
            *[event_line(event) for event in self.events[-_EVENTS:]],
        )

    def status(self) -> str:
        """Return the current state in one line."""
        rate, p50, p99 = self.recently()
        now = self.began + self.passed
        longest = max((now - began for began in self.waiting.values()), default=0.0)
        latencies = f"p50 {milliseconds(p50).strip()}, p99 {milliseconds(p99).strip()}"
        return (
            f"  {self.passed:7.3f} s  ... {rate:,.0f}/s, {latencies}; "
            f"{len(self.waiting)} waiting, up to {longest:.1f} s"
        )


def curves(runs: Sequence[Run], screen: Screen) -> Group:
    """Return answered calls over time, all to the same scale, and the faults below them."""
    labels = [run.client.name for run in runs] if len(runs) > 1 else ["over time"]
    counts = dict(zip(labels, (run.curve.counts for run in runs), strict=True))
    return screen.curves(counts, STEP, runs[0].signs, _LEGEND)


@contextlib.asynccontextmanager
async def workload(run: Run) -> AsyncIterator[None]:
    """Call steadily while the body runs: tasks that increment, push and read.

    Leaving it waits some seconds for the calls in progress, and then cancels them.
    """
    stopping = asyncio.Event()
    client, ledger = run.client.client, run.ledger
    kinds: dict[str, Callable[[str], Awaitable[object]]] = {
        "increment": lambda number: client.hincrby(ledger.increments, number, 1),
        "push": lambda number: client.rpush(ledger.pushes, number),
        "read": lambda _: client.get(_SPEED_KEY),
    }
    tasks = [
        asyncio.create_task(
            _call_repeatedly(run, f"{kind}-{place}", call, stopping), name=f"demo {kind} {place}"
        )
        for place in range(_TASKS)
        for kind, call in kinds.items()
    ]
    try:
        yield
        stopping.set()
        await asyncio.wait(tasks, timeout=_LAST_CALLS)
    finally:
        while left := [task for task in tasks if not task.done()]:
            for task in left:
                task.cancel()
            # Repeatedly: redis-py loses cancellations on Python 3.11.
            await asyncio.wait(left, timeout=_POLL)
    for task in tasks:
        if not task.cancelled():
            task.result()


async def _call_repeatedly(
    run: Run, name: str, call: Callable[[str], Awaitable[object]], stopping: asyncio.Event
) -> None:
    loop = asyncio.get_running_loop()
    outcomes = run.ledger.outcomes if not name.startswith("read") else {}
    count = 0
    while not stopping.is_set():
        count += 1
        number = f"{name}-{count}"
        outcomes[number] = Outcome.PENDING
        run.call_began(name, loop.time())
        try:
            await call(number)
        except (RedisError, OSError) as error:
            run.call_ended(name, loop.time(), error)
            outcomes[number] = run.client.outcome(error)
            await asyncio.sleep(_PAUSE_AFTER_ERROR)
        else:
            run.call_ended(name, loop.time(), None)
            outcomes[number] = Outcome.DONE
            await asyncio.sleep(_PAUSE)


async def play(script: Script, run: Run, server: RedisServer, proxy: FaultProxy) -> None:
    """Inject the faults and record them.

    Cancelling leaves the server as it is then: killed or frozen, perhaps.
    """
    for fault in script.faults:
        await asyncio.sleep(fault.before)
        lost = []
        if fault.what == "lost replies":
            # Armed in one step, so that both clients lose replies to the same calls.
            lost = [proxy.drop_reply(name, times=fault.replies) for name in ("HINCRBY", "RPUSH")]
        elif fault.what == "killed":
            server.kill()
        else:
            server.freeze()
        run.fault_began(fault)
        await asyncio.sleep(fault.lasts)
        for each in lost:
            each.remove()
        if fault.what == "killed":
            await server.start()
        elif fault.what == "frozen":
            server.thaw()
        run.fault_ended()
        await asyncio.sleep(fault.after)


async def perform(script: Script, screen: Screen) -> bool:
    """Run this part; return whether the ledger of `ResilientRedis` balances.

    After a failure or a cancellation no process and no folder is left.

    Raises:
        NoServerError: There is no server on this machine.
        ServerDidNotStartError: The server does not start.
    """
    binary = find_redis()
    screen.say(
        f"Server: {binary}",
        "The demo starts it behind a proxy that can lose replies. Both clients go through",
        f"the same {len(script.faults)} faults, one after the other, {script.seconds:.0f} s each.",
    )
    # Written to disk before it is acknowledged, so that "lost" means lost.
    async with (
        RedisServer(binary=binary, persist=True) as server,
        FaultProxy(server.port) as proxy,
    ):
        speeds = await measure_speed(script, server)
        screen.say("", speed_line(speeds))
        results = [
            await _go_through(script, screen, server, proxy, part)
            for part in range(1, len(CLIENTS) + 1)
        ]
        screen.say(*report(results, speeds, screen))
    return results[-1][1].balanced


async def _go_through(
    script: Script,
    screen: Screen,
    server: RedisServer,
    proxy: FaultProxy,
    part: int,
) -> tuple[Run, WriteAudit]:
    """Run the script with one client, close it, and check its ledger."""
    client = CLIENTS[part - 1](proxy.port, script.socket_timeout)
    if not screen.live:
        screen.say("", f"{part} of {len(CLIENTS)}: {client.title}")
    ledger = WriteLedger(client.key)
    run = Run(client, ledger, script.seconds, screen.event)
    try:
        async with screen.showing(lambda: run.frame(part, screen), run.status), workload(run):
            await play(script, run, server, proxy)
        run.end()
    finally:
        await client.client.aclose()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_DRAIN):
            # Commands that are still in flight would change the server after the audit.
            while proxy.connections:  # noqa: ASYNC110 - the proxy has no event for it
                await asyncio.sleep(_POLL)
    return run, await ledger.audit(server)


async def measure_speed(script: Script, server: RedisServer) -> tuple[float, float]:
    """Return reads per second of both clients, without faults and without the proxy.

    The rounds of the two alternate, and the median of each counts.
    """
    await server.query("SET", _SPEED_KEY, "x" * 64)
    clients = [make(server.port, script.socket_timeout) for make in CLIENTS]
    rates: list[list[float]] = [[] for _ in clients]
    try:
        for each in clients:
            await _reads_per_second(each.client, script.speed_round / 2)  # connects
        for _ in range(_SPEED_ROUNDS):
            for each, found in zip(clients, rates, strict=True):
                found.append(await _reads_per_second(each.client, script.speed_round))
    finally:
        for each in clients:
            await each.client.aclose()
    plain, resilient = map(statistics.median, rates)
    return plain, resilient


async def _reads_per_second(client: redis.asyncio.Redis, seconds: float) -> float:
    loop = asyncio.get_running_loop()
    began = loop.time()

    async def call() -> int:
        calls = 0
        while loop.time() < began + seconds:
            await client.get(_SPEED_KEY)
            calls += 1
        return calls

    async with asyncio.TaskGroup() as group:
        callers = [group.create_task(call()) for _ in range(CALLERS)]
    return sum(caller.result() for caller in callers) / (loop.time() - began)


def speed_line(speeds: Sequence[float]) -> str:
    """Return how fast both clients are without faults."""
    rates = f"redis-py {speeds[0]:,.0f}, ResilientRedis {speeds[1]:,.0f}"
    return f"{CALLERS} callers, no fault, reads/s: {rates}."


def report(
    results: Sequence[tuple[Run, WriteAudit]], speeds: Sequence[float], screen: Screen
) -> list[RenderableType]:
    """Return the comparison of both clients."""
    runs = [run for run, _ in results]
    audit = results[-1][1]
    factor = speeds[1] / speeds[0]
    verdict = (
        Text("The ledger of ResilientRedis balances.", "green")
        if audit.balanced
        else Text("The ledger of ResilientRedis DOES NOT BALANCE.", "red")
    )
    return [
        "",
        _calls_table(runs),
        "",
        _faults_table(*runs),
        "",
        "Calls answered over time:",
        curves(runs, screen),
        "",
        _ledger_table([found for _, found in results]),
        "",
        *[line for run, found in results for line in _sentences(run, found)],
        f"Reads of {CALLERS} callers, no fault: ResilientRedis was {factor:.1f} times as fast.",
        "",
        verdict,
    ]


def _calls_table(runs: Sequence[Run]) -> Table:
    def latencies(run: Run) -> str:
        took = sorted(run.answered)
        p50, p99 = quantile(took, 0.5), quantile(took, 0.99)
        return "-" if p50 is None or p99 is None else f"{p50 * 1e3:.1f} / {p99 * 1e3:,.1f} ms"

    def retries(run: Run) -> str:
        count = run.client.retries()
        return "unknown" if count is None else f"{count:,}"

    rows: dict[str, Callable[[Run], str]] = {
        "calls made": lambda run: f"{run.calls:,}",
        "calls answered per second": lambda run: f"{len(run.answered) / run.seconds:,.0f}",
        "p50 / p99 of answered calls": latencies,
        "longest call": lambda run: f"{run.longest:.2f} s",
        "calls that took over 1 s": lambda run: f"{run.slow:,}",
        "retries": retries,
    }
    cells = [[label, *map(value, runs)] for label, value in rows.items()]
    cells += [
        [f"calls ended by {name}", *(f"{run.errors[name]:,}" for run in runs)]
        for name in sorted({name for run in runs for name in run.errors})
    ]
    widths = (_LABEL, _COLUMN, _COLUMN)
    return table("", *(run.client.title for run in runs), rows=cells, widths=widths)


def _faults_table(plain: Run, resilient: Run) -> Table:
    rows = [["", *("plain", "resilient") * 3]]
    for one, other in zip(plain.faults, resilient.faults, strict=True):
        rows.append(
            [
                one.fault.title,
                f"{one.longest:.2f} s",
                f"{other.longest:.2f} s",
                delay(one.at, one.down_at),
                delay(other.at, other.down_at),
                delay(one.at, one.error_at),
                delay(other.at, other.error_at),
            ]
        )
    heads = ("", "", "longest", "", "down", "", "error")
    return table("after a fault", *heads[1:], rows=rows, widths=(20, 10, 10, 10, 10, 10, 10))


def _ledger_table(audits: Sequence[WriteAudit]) -> Table:
    rows: dict[str, Callable[[WriteAudit], int]] = {
        "acknowledged": lambda audit: audit.acknowledged,
        "unknown (maybe done)": lambda audit: audit.unknown,
        "reported as not done": lambda audit: audit.not_done,
        "found in the server": lambda audit: audit.found,
        "repeated (done more than once)": lambda audit: audit.repeated,
        "lost (acknowledged, not found)": lambda audit: audit.lost,
        "reported as not done, but found": lambda audit: audit.contradicted,
    }
    cells = [[label, *(f"{value(each):,}" for each in audits)] for label, value in rows.items()]
    return table("Writes read back by their ids", "", "", rows=cells, widths=(_LABEL, 22, 22))


def _sentences(run: Run, audit: WriteAudit) -> list[str]:
    denied = ""
    if audit.not_done:
        denied = f", and {audit.not_done:,} in one that says that they were not"
        denied += f" (but {audit.contradicted:,} were)" if audit.contradicted else ""
    lost = f"{audit.lost:,} acknowledged writes were missing. " if audit.lost else ""
    text = (
        f"{run.client.name}: {audit.repeated:,} of {audit.writes:,} writes were done more than "
        f"once. {lost}{audit.unknown:,} ended in an error that leaves open whether they were done"
        f"{denied}. The longest call took {run.longest:.1f} s, and {run.slow:,} took over a "
        f"second. {_outages(run)}"
    )
    return [*textwrap.wrap(text, _WIDTH), ""]


def _outages(run: Run) -> str:
    outages = [each for each in run.faults if each.fault.what != "lost replies"]
    published = [(each, each.down_at) for each in outages if each.down_at is not None]
    if not published:
        return f"It published none of the {len(outages)} outages."
    delays = " and ".join(f"{(at - each.at) * 1e3:,.0f} ms" for each, at in published)
    failed = sum(each.errors for each, _ in published)
    before = sum(each.errors_before_down for each, _ in published)
    return (
        f"It published {len(published)} of the {len(outages)} outages, {delays} after the server "
        f"was gone; {failed:,} of the calls made then failed, {before:,} of them before that."
    )
