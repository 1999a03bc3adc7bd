"""`resilient-io watch`: probe dependencies again and again, like ping, and sum up."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from resilient_io.doctor.urls import kind_of, read_kafka_url, read_redis_url
from resilient_io.health import Dependency, HealthSettings, ProbeDegraded, State
from resilient_io.text import clean_text

from .terminal import GOOD, PROBLEMS, STATE_STYLES, json_line, write_line

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence

    from rich.console import Console, RenderableType

    from resilient_io.health import Attachment, Cause, Change

    from .running import Interruption

_RECONNECT_INTERVAL = 0.15
_RECONNECT_INTERVAL_CAP = 2.0
_CLOSE_TIMEOUT = 0.25
"""Seconds to close connections properly: after Ctrl-C the user should not wait longer."""

_SHOWN = 0.05
"""Shorter times, in seconds, are left out of the summary: they would be shown as 0.0 s."""

_TRANSITIONS = 6
"""How many transitions are shown below the table."""


class Statistics:
    """What was seen of one dependency; its size does not depend on how long it is watched.

    Args:
        name: The dependency's name.

    Attributes:
        outages: How often it was down.
        longest: Seconds of the longest outage, up to the last `until`.
        answers: How many answers were measured; `fastest`, `slowest` and `mean` in seconds.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.outages = 0
        self.longest = 0.0
        self.answers = 0
        self.fastest = self.slowest = self._total = 0.0
        self._state = State.UNKNOWN
        self._since: float | None = None
        self._seconds = dict.fromkeys(State, 0.0)
        self._outage = 0.0  # seconds of the latest outage so far
        self._last_cause = ""

    def begin(self, now: float) -> None:
        """Start counting at this loop time."""
        self._since = now

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
            self._outage = 0.0
            self._last_cause = reason_text(change.cause, change.detail)

    def until(self, now: float) -> None:
        """Count the time in the current state up to this loop time."""
        if self._since is None:
            return
        spent = max(now - self._since, 0.0)
        self._seconds[self._state] += spent
        self._since += spent
        if self._state is State.DOWN:
            self._outage += spent
            self.longest = max(self.longest, self._outage)

    @property
    def mean(self) -> float | None:
        """Seconds that an answer took on average; None without answers."""
        return self._total / self.answers if self.answers else None

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
            "longest_outage": round(self.longest, 3),
            "last_outage": self._last_cause,
            "answers": self.answers,
            "fastest": self.fastest if self.answers else None,
            "mean": self.mean,
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
            longest = f", longest {self.longest:.1f} s" if self.outages > 1 else ""
            parts.append(f"down {times}, {self.down:.1f} s{longest} (last: {self._last_cause})")
        if self._seconds[State.DEGRADED]:
            parts.append(f"degraded for {self._seconds[State.DEGRADED]:.1f} s")
        if self.mean is not None:
            latencies = (self.fastest, self.mean, self.slowest)
            shown = "/".join(f"{seconds * 1000:.2f}" for seconds in latencies)
            parts.append(f"{self.answers} answers, min/avg/max {shown} ms")
        return "; ".join(parts)


def reason_text(cause: Cause | None, detail: str) -> str:
    """Return why a dependency is not up: "timed out: no answer within 1 s"."""
    cause_text, detail = cause.value if cause is not None else "", clean_text(detail)
    if re.search(rf"\b{re.escape(cause_text)}\b", detail, re.IGNORECASE):
        return detail
    return ": ".join(part for part in (cause_text, detail) if part)


class WatchedDependency(Dependency):
    """A dependency that measures its probes and counts its states.

    Args:
        name: The dependency's name.
        interval: Seconds between probes while it is up; never longer while it is down.
        timeout: Seconds after which a probe has failed.

    Attributes:
        statistics: What was seen of it.
    """

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
        self, probe: Callable[[bool], Awaitable[float]], *, last_reply: Callable[[], float]
    ) -> Attachment:
        """Attach a client, and measure its probe."""
        self.statistics.begin(asyncio.get_running_loop().time())

        async def measured(suspicious: bool) -> float:  # noqa: FBT001 - the probe's signature
            try:
                latency = await probe(suspicious)
            except ProbeDegraded as answer:
                if answer.latency is not None:
                    self.statistics.answered(answer.latency)
                raise
            self.statistics.answered(latency)
            return latency

        return super().start(measured, last_reply=last_reply)

    @property
    def age(self) -> float:
        """Seconds for which it has been in its state."""
        return asyncio.get_running_loop().time() - self.since

    @property
    def reason(self) -> str:
        """Why it is not up; "" if it is."""
        return reason_text(self.cause, self.detail)


class WatchTarget(Protocol):
    """A server that is probed through a client of its kind."""

    health: WatchedDependency

    async def open(self) -> None:
        """Start the probes; never waits for the server."""

    async def aclose(self) -> None:
        """Stop the probes and close the client."""


class _WatchedRedis:
    def __init__(self, name: str, url: str, interval: float, timeout: float) -> None:
        from resilient_io.redis import (  # noqa: PLC0415 - import only the driver that is needed
            ConnectionSettings,
            ResilientRedis,
        )
        from resilient_io.retry import RetryPolicy  # noqa: PLC0415 - as above

        self.health = WatchedDependency(name, interval=interval, timeout=timeout)
        self._client = ResilientRedis.from_pool(
            read_redis_url(url),
            policy=RetryPolicy(connect_timeout=timeout, response_timeout=timeout, deadline=None),
            health=self.health,
            connections=ConnectionSettings(count=1),
        )

    async def open(self) -> None:
        await self._client.initialize()

    async def aclose(self) -> None:
        await self._client.aclose()
        await self.health.aclose()


class _WatchedKafka:
    def __init__(self, name: str, url: str, interval: float, timeout: float) -> None:
        from resilient_io.kafka.connect import KafkaTarget  # noqa: PLC0415 - as above
        from resilient_io.kafka.probe import KafkaProbe  # noqa: PLC0415 - as above

        options = read_kafka_url(url)
        target = KafkaTarget(options.pop("bootstrap_servers"), options)
        self.health = WatchedDependency(name, interval=interval, timeout=timeout)
        self._probe = KafkaProbe(target=target, timeout=timeout)

    async def open(self) -> None:
        self.health.start(self._probe, last_reply=self._probe.last_reply)

    async def aclose(self) -> None:
        await self.health.aclose()
        self._probe.close()


def watch_targets(
    servers: Mapping[str, str], *, interval: float, timeout: float
) -> list[WatchTarget]:
    """Return the servers to watch.

    Args:
        servers: URLs by the names of their servers.
        interval: Seconds between probes.
        timeout: Seconds after which a probe has failed.
    """
    kinds: dict[str, Callable[[str, str, float, float], WatchTarget]] = {
        "redis": _WatchedRedis,
        "kafka": _WatchedKafka,
    }
    return [kinds[kind_of(url)](name, url, interval, timeout) for name, url in servers.items()]


class Display(Protocol):
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

    Args:
        targets: The servers.
        display: Shows them.
        interruption: Ends the watch.
        interval: Seconds between two lines of a server.
        count: Lines of each server, from the first known state on; None for no limit.

    Returns:
        0 if every server has answered and none was down, otherwise 1.
    """
    dependencies = [target.health for target in targets]
    async with _open(targets), contextlib.AsyncExitStack() as stack:
        for dependency in dependencies:
            stack.enter_context(dependency.on_change(display.changed))
        with display.running(dependencies):
            interrupted = await _until_known(dependencies, display, interruption, interval)
            if not interrupted:
                await _show_states(
                    dependencies, display, interruption, interval=interval, count=count
                )
        # Before the clients are closed, which may take a moment and makes the states unknown.
        _count_until_now(dependencies)
        statistics = [dependency.statistics for dependency in dependencies]
        display.summary(statistics)
        return GOOD if all(each.well for each in statistics) else PROBLEMS


def _count_until_now(dependencies: Sequence[WatchedDependency]) -> None:
    now = asyncio.get_running_loop().time()
    for dependency in dependencies:
        dependency.statistics.until(now)


def _show_all(dependencies: Sequence[WatchedDependency], display: Display) -> None:
    _count_until_now(dependencies)
    for dependency in dependencies:
        display.look(dependency)


async def _until_known(
    dependencies: Sequence[WatchedDependency],
    display: Display,
    interruption: Interruption,
    interval: float,
) -> bool:
    """Wait until every state is known; show the states once per interval meanwhile.

    A silent server is down, and so known, when its probes have timed out.

    Returns:
        Whether the interruption came first.
    """
    settings = dependencies[0].settings
    loop = asyncio.get_running_loop()
    limit = loop.time() + settings.timeout * settings.fall + settings.interval

    async def wait() -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(interval, limit - loop.time())):
                for dependency in dependencies:
                    async for change in dependency.watch():
                        if change.state is not State.UNKNOWN:
                            break

    while True:
        if await interruption.before(wait()):
            return True
        known = all(dependency.state is not State.UNKNOWN for dependency in dependencies)
        if known or loop.time() >= limit:
            return False
        _show_all(dependencies, display)


async def _show_states(
    dependencies: Sequence[WatchedDependency],
    display: Display,
    interruption: Interruption,
    *,
    interval: float,
    count: int | None,
) -> None:
    loop = asyncio.get_running_loop()
    due = loop.time()
    shown = 0
    while True:
        _show_all(dependencies, display)
        shown += 1
        if shown == count:
            return
        due = max(due + interval, loop.time())
        if await interruption.before(asyncio.sleep(due - loop.time())):
            return


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


def _milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1000:.2f} ms"


def _latency(dependency: WatchedDependency) -> float | None:
    return dependency.latency if dependency.state.answering else None


class LineDisplay(Display):
    """Shows lines, for pipes and logs."""

    def look(self, dependency: WatchedDependency) -> None:
        """Write the state of one."""
        if dependency.state is State.UP:
            shown = f" {_milliseconds(dependency.latency)}"
        else:
            reason = f": {dependency.reason}" if dependency.reason else ""
            shown = f" for {dependency.age:.1f} s{reason}"
        self._write(f"{dependency.name}: {dependency.state.value}{shown}")

    def changed(self, change: Change) -> None:
        """Write a transition; the first state is shown by `look`."""
        if change.previous is State.UNKNOWN:
            return
        reason = reason_text(change.cause, change.detail)
        self._write(
            f"{change.dependency}: {change.previous.value} -> {change.state.value} "
            f"after {change.after:.1f} s{': ' if reason else ''}{reason}"
        )

    def summary(self, statistics: Sequence[Statistics]) -> None:
        """Write one line for each."""
        write_line("---")
        for each in statistics:
            write_line(each.summary())

    def _write(self, line: str) -> None:
        write_line(f"{time.strftime('%H:%M:%S')} {line}")


class JsonDisplay(Display):
    """Shows JSON objects, one per line, each with an `event`: "look", "change" or "summary"."""

    def look(self, dependency: WatchedDependency) -> None:
        """Write the state of one."""
        cause = dependency.cause
        self._write(
            "look",
            dependency=dependency.name,
            state=dependency.state.value,
            age=round(dependency.age, 3),
            cause=cause.value if cause is not None else None,
            detail=clean_text(dependency.detail),
            latency=_latency(dependency),
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
        """Write one line for each."""
        for each in statistics:
            self._write("summary", **each.as_dict())

    def _write(self, event: str, **facts: Any) -> None:
        json_line({"event": event, "time": round(time.time(), 3), **facts})


class TableDisplay(Display):
    """Shows a table that is redrawn in place, with the latest transitions below it.

    Args:
        console: A terminal.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._transitions: deque[Text] = deque(maxlen=_TRANSITIONS)
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
        self._redraw()

    def changed(self, change: Change) -> None:
        """Remember a transition and redraw the table."""
        line = Text(f"{time.strftime('%H:%M:%S')} {change.dependency}: ", no_wrap=True)
        line.append(change.state.value, style=STATE_STYLES[change.state.value])
        if change.previous is not State.UNKNOWN:
            line.append(f" after {change.after:.1f} s {change.previous.value}")
        reason = reason_text(change.cause, change.detail)
        line.append(f": {reason}" if reason else "")
        self._transitions.append(line)
        self._redraw()

    def summary(self, statistics: Sequence[Statistics]) -> None:
        """Print the latest transitions and the statistics."""
        for line in self._transitions:
            self._console.print(line, overflow="ellipsis")
        for each in statistics:
            self._console.print(Text(each.summary(), style="" if each.well else "red"))

    def _redraw(self) -> None:
        if self._live is not None:
            self._live.update(self._draw(), refresh=True)

    def _draw(self) -> RenderableType:
        table = Table(title="Press Ctrl-C to end", title_justify="left", title_style="dim")
        table.add_column("dependency", overflow="fold")
        table.add_column("state")
        for name in ("for", "answered", "last", "avg"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("reason", overflow="fold", ratio=1)
        for dependency in self._dependencies:
            table.add_row(*self._row(dependency))
        return Group(table, *self._transitions)

    def _row(self, dependency: WatchedDependency) -> list[RenderableType]:
        share, state = dependency.statistics.availability, dependency.state.value
        return [
            Text(dependency.name),
            Text(state, style=STATE_STYLES[state]),
            f"{dependency.age:.0f} s",
            "" if share is None else f"{share:.2%}",
            _milliseconds(_latency(dependency)),
            _milliseconds(dependency.statistics.mean),
            Text(dependency.reason),
        ]
