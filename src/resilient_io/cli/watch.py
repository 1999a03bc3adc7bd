"""`resilient-io watch`: probe dependencies again and again, like ping, and sum up."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import Awaitable, Callable, Coroutine  # noqa: TC003 - dataclasses read annotations
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.live import Live
from rich.table import Table
from rich.text import Text

from resilient_io.doctor.urls import kind_of, read_redis_url
from resilient_io.health import Dependency, HealthSettings, ProbeDegraded, State
from resilient_io.text import clean_text
from resilient_io.urls import read_kafka_url

from . import GOOD, PROBLEMS
from .terminal import json_line, write_line

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping, Sequence

    from redis.asyncio.connection import ConnectionPool
    from rich.console import Console

    from resilient_io.health import Attachment, Cause, Change

    from .terminal import Interruption

_STYLES = {"up": "green", "degraded": "yellow", "down": "bold red", "unknown": "dim"}
_RECONNECT_INTERVAL = 0.15
_RECONNECT_INTERVAL_CAP = 2.0
_CLOSE_TIMEOUT = 0.25
"""Seconds to close connections properly: after Ctrl-C the user should not wait longer."""

_SHOWN = 0.05
"""Shorter times, in seconds, are left out of the summary: they would be shown as 0.0 s."""


class Statistics:
    """What was seen of one dependency, times in seconds; its size does not grow."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.outages = 0
        self.answers = 0
        self.fastest = self.slowest = self._total = 0.0
        self._state = State.UNKNOWN
        self._since: float | None = None
        self._seconds = dict.fromkeys(State, 0.0)
        self._last_cause = ""

    def answered(self, latency: float) -> None:
        """Count an answer that took so many seconds."""
        self.fastest = latency if not self.answers else min(self.fastest, latency)
        self.slowest = max(self.slowest, latency)
        self._total += latency
        self.answers += 1

    def changed(self, change: Change) -> None:
        """Count a transition."""
        self.until(change.at)
        self._state = change.state
        if change.state is State.DOWN:
            self.outages += 1
            self._last_cause = reason_text(change.cause, change.detail)

    def until(self, now: float) -> None:
        """Count the time in the current state up to this loop time; the first call begins."""
        if self._since is not None:
            self._seconds[self._state] += max(now - self._since, 0.0)
        self._since = max(now, self._since or now)

    @property
    def down(self) -> float:
        """Seconds for which it was down."""
        return self._seconds[State.DOWN]

    @property
    def known(self) -> float:
        """Seconds for which its state was known."""
        return sum(self._seconds.values()) - self._seconds[State.UNKNOWN]

    @property
    def availability(self) -> float | None:
        """The share of the known time for which it answered; None while nothing is known."""
        if self.known:
            return (self._seconds[State.UP] + self._seconds[State.DEGRADED]) / self.known
        if self._state is State.UNKNOWN:
            return None
        return 1.0 if self._state.answering else 0.0  # seen, but for no time yet

    @property
    def well(self) -> bool:
        """Whether it has answered, and was never down."""
        return self.outages == 0 and self._state is not State.UNKNOWN

    def as_dict(self) -> dict[str, Any]:
        """Return the statistics as JSON would hold them; times in seconds."""
        return {
            "dependency": self.name,
            "state": self._state.value,
            "availability": self.availability,
            "seconds": {state.value: round(spent, 3) for state, spent in self._seconds.items()},
            "outages": self.outages,
            "last_outage": self._last_cause,
            "answers": self.answers,
            "fastest": self.fastest if self.answers else None,
            "mean": self._total / self.answers if self.answers else None,
            "slowest": self.slowest if self.answers else None,
        }

    def summary(self) -> str:
        """Return the statistics in one line."""
        share, unknown = self.availability, self._seconds[State.UNKNOWN]
        if share is None:
            return f"{self.name}: no answer, state unknown for {unknown:.1f} s"
        parts = [f"{self.name}: answered {share:.2%} of {self.known:.1f} s"]
        if unknown >= _SHOWN:
            parts.append(f"state unknown for {unknown:.1f} s")
        if self.outages:
            times = "once" if self.outages == 1 else f"{self.outages} times"
            parts.append(f"down {times}, {self.down:.1f} s (last: {self._last_cause})")
        if self._seconds[State.DEGRADED]:
            parts.append(f"degraded for {self._seconds[State.DEGRADED]:.1f} s")
        if self.answers:
            latencies = (self.fastest, self._total / self.answers, self.slowest)
            shown = "/".join(f"{seconds * 1000:.2f}" for seconds in latencies)
            parts.append(f"{self.answers} answers, min/avg/max {shown} ms")
        return "; ".join(parts)


def reason_text(cause: Cause | None, detail: str) -> str:
    """Return why a dependency is not up: "timed out: no answer within 1 s"."""
    cause_text, detail = cause.value if cause is not None else "", clean_text(detail)
    if re.search(rf"\b{re.escape(cause_text)}\b", detail, re.IGNORECASE):
        return detail
    return ": ".join(part for part in (cause_text, detail) if part)


def transition_text(change: Change) -> str:
    """Return a transition in one line."""
    reason = reason_text(change.cause, change.detail)
    return (
        f"{change.dependency}: {change.previous.value} -> {change.state.value} "
        f"after {change.after:.1f} s{': ' if reason else ''}{reason}"
    )


class WatchedDependency(Dependency):
    """A dependency that measures its probes and counts its states."""

    def __init__(self, name: str, *, interval: float, timeout: float) -> None:
        reconnect = min(_RECONNECT_INTERVAL, interval)
        settings = HealthSettings(
            interval=interval,
            timeout=timeout,
            reconnect_interval=reconnect,
            reconnect_interval_cap=max(min(_RECONNECT_INTERVAL_CAP, interval), reconnect),
        )
        super().__init__(name, settings=settings)
        self.statistics = Statistics(name)
        self.on_change(self.statistics.changed)

    def start(
        self,
        probe: Callable[[bool], Awaitable[float]],
        **functions: Any,
    ) -> Attachment:
        """Attach a client, and measure its probe."""
        self.statistics.until(asyncio.get_running_loop().time())

        async def measured(suspicious: bool) -> float:  # noqa: FBT001 - the probe's signature
            try:
                latency = await probe(suspicious)
            except ProbeDegraded as answer:
                if answer.latency is not None:
                    self.statistics.answered(answer.latency)
                raise
            self.statistics.answered(latency)
            return latency

        return super().start(measured, **functions)

    @property
    def age(self) -> float:
        """Seconds for which it has been in its state."""
        return asyncio.get_running_loop().time() - self.since

    @property
    def reason(self) -> str:
        """Why it is not up; "" if it is."""
        return reason_text(self.cause, self.detail)

    @property
    def shown_latency(self) -> str:
        """How long the latest probe took; "" if it failed."""
        if self.latency is None or not self.state.answering:
            return ""
        return f"{self.latency * 1000:.2f} ms"

    @property
    def shown_link(self) -> str:
        """What the kernel knows about the connection; "" if it does not tell."""
        link = self.link
        return link.describe() if link is not None else ""

    @property
    def shown_topology(self) -> str:
        """Which servers are behind it; "" for a single server."""
        topology = self.topology
        return topology.describe() if topology is not None else ""


@dataclass(frozen=True, slots=True)
class WatchTarget:
    """A server that is probed through a client of its kind."""

    health: WatchedDependency
    open: Callable[[], Awaitable[object]]  # starts the probes; never waits for the server
    aclose: Callable[[], Coroutine[Any, Any, None]]


def watch_targets(
    servers: Mapping[str, str], *, interval: float, timeout: float
) -> list[WatchTarget]:
    """Return the servers to watch."""
    return [
        (_redis if kind_of(url) == "redis" else _kafka)(
            url, timeout, WatchedDependency(name, interval=interval, timeout=timeout)
        )
        for name, url in servers.items()
    ]


def _redis(url: str, timeout: float, health: WatchedDependency) -> WatchTarget:
    from resilient_io.redis import (  # noqa: PLC0415 - import only the driver that is needed
        ConnectionSettings,
        ResilientRedis,
        ResilientRedisCluster,
    )
    from resilient_io.retry import RetryPolicy  # noqa: PLC0415 - as above

    options: dict[str, Any] = {
        "policy": RetryPolicy(connect_timeout=timeout, response_timeout=timeout, deadline=None),
        "health": health,
        "connections": ConnectionSettings(count=1),
    }
    pool = read_redis_url(url)
    opened: list[ResilientRedis | ResilientRedisCluster] = []
    opening: list[asyncio.Task[None]] = []

    async def find_and_open() -> None:
        in_cluster = await _is_in_cluster(pool, timeout)
        client = (
            ResilientRedisCluster.from_url(url, **options)
            if in_cluster
            else ResilientRedis.from_pool(pool, **options)
        )
        opened.append(client)
        await client.initialize()

    async def start() -> None:
        opening.append(asyncio.create_task(find_and_open(), name=f"open {health.name}"))

    async def aclose() -> None:
        for task in opening:
            task.cancel()
            await asyncio.wait([task])
        for client in opened:
            await client.aclose()
        await health.aclose()

    return WatchTarget(health, start, aclose)


async def _is_in_cluster(pool: ConnectionPool, timeout: float) -> bool:
    """Return whether a node of a cluster answers: then all nodes are watched."""
    from resilient_io.doctor.login import ask_server, pairs_of  # noqa: PLC0415 - as above
    from resilient_io.doctor.network import Endpoint  # noqa: PLC0415 - as above
    from resilient_io.redis.connect import RedisTarget  # noqa: PLC0415 - as above

    settings = pool.connection_kwargs
    if "host" not in settings:  # a unix socket, or Sentinels
        return False
    endpoint = Endpoint(str(settings["host"]), int(settings.get("port", 6379)))
    password = bool(settings.get("password"))
    answer = await ask_server(
        endpoint, RedisTarget(pool), timeout, ("HELLO",), gave_password=password
    )
    return (
        isinstance(answer, list)
        and not isinstance(answer[0], Exception)
        and pairs_of(answer[0]).get("mode") == "cluster"
    )


def _kafka(url: str, timeout: float, health: WatchedDependency) -> WatchTarget:
    from resilient_io.kafka.connect import KafkaTarget  # noqa: PLC0415 - as above
    from resilient_io.kafka.probe import KafkaProbe  # noqa: PLC0415 - as above

    options = read_kafka_url(url)
    target = KafkaTarget(options.pop("bootstrap_servers"), options)
    probe = KafkaProbe(target=target, timeout=timeout)

    async def start() -> None:
        health.start(probe, last_reply=probe.last_reply, links=probe.links)

    async def aclose() -> None:
        await health.aclose()
        probe.close()

    return WatchTarget(health, start, aclose)


class Display:
    """Shows watched dependencies."""

    def running(
        self, dependencies: Sequence[WatchedDependency]
    ) -> contextlib.AbstractContextManager[object]:
        """Show them while the context is active; by default only when something happens."""
        del dependencies
        return contextlib.nullcontext()

    def look(self, dependency: WatchedDependency) -> None:
        """Show the state of one, once per interval."""

    def changed(self, change: Change) -> None:
        """Show a transition, when it happens."""

    def summary(self, statistics: Sequence[Statistics]) -> None:
        """Show the statistics, at the end."""


async def watch(
    targets: Sequence[WatchTarget],
    display: Display,
    interruption: Interruption,
    *,
    interval: float,
    count: int | None,
) -> int:
    """Watch servers until an interruption and return the exit code.

    The states are shown once per interval; `count` of them are shown from the first known ones on.

    Returns:
        0 if every server has answered and none was down, otherwise 1.
    """
    dependencies = [target.health for target in targets]
    loop = asyncio.get_running_loop()
    settings = dependencies[0].settings
    # A silent server is down, and so known, when its probes have timed out.
    limit = loop.time() + settings.timeout * settings.fall + settings.interval
    async with _open(targets), contextlib.AsyncExitStack() as stack:
        for dependency in dependencies:
            stack.enter_context(dependency.on_change(display.changed))
        with display.running(dependencies):
            known = False
            due = loop.time()
            while True:
                if known:
                    due = max(due + interval, loop.time())
                    step = asyncio.sleep(due - loop.time())
                else:
                    step = _until_known(dependencies, min(interval, limit - loop.time()))
                if await interruption.before(step):
                    break
                if not known:
                    due = loop.time()
                    states = [dependency.state for dependency in dependencies]
                    known = State.UNKNOWN not in states or due >= limit
                for dependency in dependencies:
                    dependency.statistics.until(loop.time())
                    display.look(dependency)
                if known and count is not None and (count := count - 1) == 0:
                    break
        # Before the clients are closed, which may take a moment and makes the states unknown.
        statistics = [dependency.statistics for dependency in dependencies]
        for each in statistics:
            each.until(loop.time())
        display.summary(statistics)
        return GOOD if all(each.well for each in statistics) else PROBLEMS


async def _until_known(dependencies: Sequence[WatchedDependency], timeout: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout):
            for dependency in dependencies:
                async for change in dependency.watch():
                    if change.state is not State.UNKNOWN:
                        break


@contextlib.asynccontextmanager
async def _open(targets: Sequence[WatchTarget]) -> AsyncIterator[None]:
    try:
        for target in targets:
            await target.open()
        yield
    finally:
        closing = [
            asyncio.create_task(target.aclose(), name=f"close {target.health.name}")
            for target in targets
        ]
        _, late = await asyncio.wait(closing, timeout=_CLOSE_TIMEOUT)
        for task in late:
            task.cancel()


class LineDisplay(Display):
    """Shows lines, for pipes and logs."""

    def look(self, dependency: WatchedDependency) -> None:
        """Write the state of one."""
        shown = dependency.shown_latency
        if dependency.state is not State.UP:
            reason = f": {dependency.reason}" if dependency.reason else ""
            shown = f"for {dependency.age:.1f} s{reason}"
        if dependency.shown_link:
            shown += f" ({dependency.shown_link})"
        if dependency.shown_topology:
            shown += f"; {dependency.shown_topology}"
        self._write(f"{dependency.name}: {dependency.state.value} {shown}")

    def changed(self, change: Change) -> None:
        """Write a transition; the first state is shown by `look`."""
        if change.previous is not State.UNKNOWN:
            self._write(transition_text(change))

    def summary(self, statistics: Sequence[Statistics]) -> None:
        """Write one line for each dependency."""
        write_line("---")
        for each in statistics:
            write_line(each.summary())

    def _write(self, line: str) -> None:
        write_line(f"{time.strftime('%H:%M:%S')} {line}")


class JsonDisplay(Display):
    """Shows JSON objects, one per line, each with an `event`: "look", "change" or "summary"."""

    def look(self, dependency: WatchedDependency) -> None:
        """Write the state of one."""
        cause, link = dependency.cause, dependency.link  # a connection may be lost at any time
        self._write(
            "look",
            dependency=dependency.name,
            state=dependency.state.value,
            age=round(dependency.age, 3),
            cause=cause.value if cause is not None else None,
            detail=clean_text(dependency.detail),
            latency=dependency.latency if dependency.state.answering else None,
            link=None if link is None else link.as_dict(),
            topology=dependency.snapshot()["topology"],
        )

    def changed(self, change: Change) -> None:
        """Write a transition."""
        self._write(
            "change",
            dependency=change.dependency,
            state=change.state.value,
            previous=change.previous.value,
            after=round(change.after, 3),
            cause=change.cause.value if change.cause is not None else None,
            detail=clean_text(change.detail),
        )

    def summary(self, statistics: Sequence[Statistics]) -> None:
        """Write one line for each dependency."""
        for each in statistics:
            self._write("summary", **each.as_dict())

    def _write(self, event: str, **facts: Any) -> None:
        json_line({"event": event, "time": round(time.time(), 3), **facts})


class TableDisplay(Display):
    """Shows a table that is redrawn in place, and transitions in lines above it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None
        self._dependencies: Sequence[WatchedDependency] = ()

    @contextlib.contextmanager
    def running(self, dependencies: Sequence[WatchedDependency]) -> Iterator[None]:
        """Show the table until the context ends; the summary replaces it."""
        self._dependencies = dependencies
        # Not refreshed by rich's thread, which would read what the event loop is changing.
        with Live(self._draw(), console=self._console, auto_refresh=False, transient=True) as live:
            self._live = live
            try:
                yield
            finally:
                self._live = None

    def look(self, dependency: WatchedDependency) -> None:
        """Redraw the table."""
        del dependency
        if self._live is not None:
            self._live.update(self._draw(), refresh=True)

    def changed(self, change: Change) -> None:
        """Print a transition; the first state is in the table."""
        if change.previous is not State.UNKNOWN:
            line = f"{time.strftime('%H:%M:%S')} {transition_text(change)}"
            self._console.print(Text(line, style=_STYLES[change.state.value]))

    def summary(self, statistics: Sequence[Statistics]) -> None:
        """Print one line for each."""
        for each in statistics:
            self._console.print(Text(each.summary(), style="" if each.well else "red"))

    def _draw(self) -> Table:
        table = Table(title="Press Ctrl-C to end", title_justify="left", title_style="dim")
        columns = ["dependency", "state", "for", "answered", "last", "link", "reason"]
        several = any(each.shown_topology for each in self._dependencies)
        for name in [*columns, *(["servers"] if several else [])]:
            table.add_column(name, overflow="fold")
        for dependency in self._dependencies:
            share, state = dependency.statistics.availability, dependency.state.value
            table.add_row(
                Text(dependency.name),
                Text(state, style=_STYLES[state]),
                f"{dependency.age:.0f} s",
                "" if share is None else f"{share:.2%}",
                dependency.shown_latency,
                dependency.shown_link,
                Text(dependency.reason),
                *([Text(dependency.shown_topology)] if several else []),
            )
        return table
