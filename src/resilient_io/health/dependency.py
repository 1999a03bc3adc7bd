"""A dependency: its availability, and how clients report to it."""

from __future__ import annotations

import asyncio
import functools
import math
from typing import TYPE_CHECKING

from resilient_io.binding import SYSTEM_RANDOM
from resilient_io.link import combine
from resilient_io.text import redact_credentials
from resilient_io.validation import check_name, check_type

from .machine import Machine
from .prober import Client, Prober, never
from .states import (
    Cause,
    Change,
    HealthSettings,
    State,
    clean_detail,
    first_change,
    log_change,
)
from .subscriptions import Broadcast, Subscription, Subscriptions, Watch, wait_until

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable, Sequence

    from resilient_io.link import LinkState

    from .loop_lag import LoopLag
    from .recorder import FlightRecorder
    from .topology import Topology

CLOSE_TIMEOUT = 1.0  # time for async callbacks to end when their owner is closed, in seconds


_SETTINGS = HealthSettings()


class Dependency:
    """The availability of a dependency, as its clients' calls and a probe task see it.

    Several clients of one server may share it. It belongs to the event loop in which its first
    client attaches. When that loop is closed, it starts again in the next.

    Args:
        name: Name in logs, errors and snapshots, for example "redis". Credentials are removed if it
            is a URL.
        settings: Times and thresholds.
        rng: Source of the jitter. Pass a seeded one to replay a schedule.

    Attributes:
        name: Name in logs, errors and snapshots.
        settings: Times and thresholds.
        available: False while the state is DOWN. Read-only.
        refusing: True while it refuses writes: only then do clients need to call `accepted()`.
            Read-only.
        refused_at: Absolute loop time at which a client was last answered that the dependency does
            not serve. Read-only.

    Raises:
        ConfigurationError: `name` is not a non-empty string.
        TypeError: `settings` are not HealthSettings.
    """

    def __init__(
        self, name: str, *, settings: HealthSettings | None = None, rng: random.Random | None = None
    ) -> None:
        self.name = redact_credentials(check_name("name", name))
        settings = settings if settings is not None else _SETTINGS
        self.settings = check_type(
            "settings", settings, HealthSettings, use="HealthSettings(interval=1.0)"
        )
        # Plain attributes: every call of a client reads them.
        self.available = True
        self.refusing = False
        self.refused_at = -math.inf
        self._recorder_uses: list[FlightRecorder] = []  # one for each monitor; monitors may share
        self._recorders: tuple[FlightRecorder, ...] = ()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._machine = Machine(self.name, self.settings)
        self._prober = Prober(
            self._machine, rng if rng is not None else SYSTEM_RANDOM, self._publish, self.note
        )
        self._history: list[Change] = []
        self._subscriptions: Subscriptions[Change] = Subscriptions(self.name)
        self._updates: Subscriptions[Dependency] = Subscriptions(self.name)
        self._broadcast = Broadcast(first_change(self.name, 0.0))

    # --- reading

    @property
    def state(self) -> State:
        """The current state."""
        return self._machine.state

    @property
    def since(self) -> float:
        """Absolute loop time of the latest change of state."""
        return self._machine.since

    @property
    def lost_at(self) -> float:
        """Absolute loop time at which an outage began, while the state is DOWN.

        It is -inf if the dependency has not answered before, or if waiting does not end the outage
        (a wrong password, for example).
        """
        latest, cause = self._history[-1] if self._history else None, self.cause
        if latest is None or not latest.previous.answering or (cause and cause.permanent):
            return -math.inf
        return latest.at

    @property
    def cause(self) -> Cause | None:
        """Why the dependency is not UP, or None."""
        return self._machine.cause

    @property
    def detail(self) -> str:
        """The cause in words: one line, without secrets."""
        return self._machine.detail

    @property
    def parts_lost(self) -> list[str]:
        """The names of the lost parts, in the order in which they were lost."""
        return self._machine.parts_lost

    @property
    def latency(self) -> float | None:
        """Time that the latest measured answer took, in seconds."""
        return self._machine.latency

    @property
    def history(self) -> tuple[Change, ...]:
        """The latest changes of state, oldest first."""
        return tuple(self._history)

    @property
    def transitions(self) -> dict[tuple[State, Cause | None], int]:
        """Number of changes to each state, by the cause at that time."""
        return dict(self._machine.changes)

    @property
    def lag(self) -> LoopLag | None:
        """The measurement of the event loop's stalls, while a client is attached."""
        return self._prober.lag

    @property
    def link(self) -> LinkState | None:
        """What the kernel knows about the open connections now; None if it does not tell.

        That is the case without an open connection, for unix sockets, and on systems other than
        Linux. Of several connections, it is the worst value, or the sum of counts.
        """
        return combine(link for client in self._prober.clients for link in client.links())

    @property
    def topology(self) -> Topology | None:
        """The servers behind it and their failovers; None for a single server.

        It is what its first client that follows Sentinels or a cluster knows. No server is asked.
        """
        found = (client.topology for client in self._prober.clients)
        topology = next((each for each in found if each is not None), None)
        return topology() if topology is not None else None

    def on_change(self, callback: Callable[[Change], object]) -> Subscription[Change]:
        """Call a function, sync or async, after every change of state.

        Return a handle with `remove()`, also usable as a context manager. The function runs in the
        event loop, never inside a call or a probe. If it returns an awaitable, that is awaited;
        meanwhile changes are skipped, then it gets the latest one. An exception in a callback is
        logged once and affects nothing else. Needs no running loop.

        Raises:
            TypeError: `callback` is not callable.
        """
        return self._subscriptions.add(callback)

    def on_update(self, callback: Callable[[Dependency], object]) -> Subscription[Dependency]:
        """Call a plain function after every change of `state`, `available` or `refusing`.

        For clients, which act differently while writes are refused: that may begin and end without
        a change of state. Otherwise like `on_change`.

        Raises:
            TypeError: `callback` is not callable.
        """
        return self._updates.add(callback)

    def watch(self) -> Watch[Change]:
        """Iterate over changes of state: `async for change in dependency.watch()`.

        The first item is available immediately and contains the current state (the latest change,
        or one from UNKNOWN to UNKNOWN), so that no change is missed between reading the state and
        watching. Later items are the latest change since the previous item: a slow consumer skips
        changes, nothing is queued. Leaving the loop needs no cleanup. `aclose()` ends the
        iteration after the last change.
        """
        return Watch(self._broadcast)

    async def until_up(self, timeout: float | None = None) -> None:
        """Wait until the dependency answers (UP or DEGRADED), for at most `timeout` seconds.

        Return immediately if it already does. Cancelling the wait has no other effect. A client
        must be attached: a client attaches when it is entered or first used. An enclosing
        `resilient_io.deadline` limits the wait, too, also if `timeout` is None.

        Raises:
            DeadlineExceeded: The dependency did not answer in time.
            Closed: It was closed meanwhile.
        """
        machine = self._machine
        await wait_until(
            self._broadcast,
            lambda: machine.state.answering,
            timeout=timeout,
            dependency=self.name,
            operation="until_up",
            describe=lambda: f"still {machine.describe()}",
        )

    def snapshot(self) -> dict[str, object]:
        """Return the availability as plain data for `json.dumps`. Times are in seconds."""
        machine, lag, link = self._machine, self._prober.lag, self.link
        topology = self.topology
        return {
            "name": self.name,
            "state": machine.state.value,
            "age": self._loop.time() - machine.since if self._loop is not None else 0.0,
            "cause": machine.cause and machine.cause.value,
            "detail": machine.detail,
            "latency": machine.latency,
            "watched": self._prober.running,
            "transitions": machine.transitions,
            "probes": {"ok": machine.probes_ok, "failed": machine.probes_failed},
            "failures": machine.failures,
            "refusals": machine.refusals,
            "parts_lost": machine.parts_lost,
            "link": link and link.as_dict(),
            "topology": topology and self._loop and topology.as_dict(self._loop.time()),
            "loop_lag": {name: getattr(lag, name, 0.0) for name in ("current", "worst", "stalled")},
        }

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}: {self._machine.describe()}>"

    # --- the flight recorder

    @property
    def recorders(self) -> tuple[FlightRecorder, ...]:
        """The recorders of its events: those of the monitors that watch it."""
        return self._recorders

    def add_recorder(self, recorder: FlightRecorder) -> None:
        """Record events there, too, until `remove_recorder` is called as often as this."""
        self._recorder_uses.append(recorder)
        self._recorders = tuple(dict.fromkeys(self._recorder_uses))

    def remove_recorder(self, recorder: FlightRecorder) -> None:
        """Undo one `add_recorder`. Without one it does nothing."""
        if recorder in self._recorder_uses:
            self._recorder_uses.remove(recorder)
            self._recorders = tuple(dict.fromkeys(self._recorder_uses))

    def note(self, event: str, **fields: object) -> None:
        """Record an event, in the past tense, in the flight recorders, if there are any.

        For actions of clients, such as a retry or a replaced connection. Not for every call. The
        fields are plain data for `json.dumps`, without secrets.
        """
        for recorder in self._recorders:
            recorder.note(self.name, event, **fields)

    # --- reports of clients

    def start(
        self,
        probe: Callable[[bool], Awaitable[float]],
        *,
        last_reply: Callable[[], float],
        links: Callable[[], Sequence[LinkState]] = tuple,
        queued: Callable[[], float] = float,
        keep_alive: Callable[[], object] = tuple,
        topology: Callable[[], Topology] | None = None,
        replied_elsewhere: Callable[[], float] = never,
    ) -> Attachment:
        """Attach a client. The first client starts the probe task in the running loop.

        The probe of the client that was attached first is used. The latest reply to any client
        counts.

        Args:
            probe: Asks the dependency and returns the time that took in seconds, or raises
                `ProbeFailed` or `ProbeDegraded`. Its argument is whether a failure is suspected:
                then it must use a new connection of its own. It is cancelled if it takes too long.
            last_reply: Returns the loop time at which the client last received anything, or
                `-math.inf`.
            links: Returns what the kernel knows about the client's open connections.
            queued: Returns for how many seconds, in total, its probes have waited for their turn to
                connect. That time does not count as waiting for the dependency.
            keep_alive: Called while this client is idle and another client of the dependency is
                probed or busy. It may send something, so that no load balancer forgets an idle
                connection. It must not raise.
            topology: Returns the servers that the client knows, without contacting them; None for
                a single server.
            replied_elsewhere: Returns the loop time at which the same server last answered a client
                of another dependency, if this one needs no probe within an interval of that;
                otherwise `-math.inf`.

        Returns:
            A handle; await its `detach()` when the client closes.

        Raises:
            RuntimeError: It is in use in another running event loop.
        """
        for name, function in (
            ("probe", probe),
            ("last_reply", last_reply),
            ("links", links),
            ("queued", queued),
            ("keep_alive", keep_alive),
            ("topology", topology or tuple),
            ("replied_elsewhere", replied_elsewhere),
        ):
            if not callable(function):
                raise TypeError(
                    f"{name} must be a function, not {type(function).__name__}: use "
                    f"start(probe, last_reply=...)"
                )
        self._bind()
        if self._broadcast.closed:
            self._broadcast = Broadcast(self._broadcast.latest)
        client = Client(probe, last_reply, links, queued, keep_alive, topology, replied_elsewhere)
        self._prober.add(client)
        return Attachment(functools.partial(self._detach, client))

    def failed(
        self, cause: Cause, detail: str = "", *, definite: bool = False, answered: bool = False
    ) -> None:
        """Report the failure of a call (not a cancellation, not an error reply about the call).

        If a probe task runs, the report never makes the dependency DOWN by itself: the task probes
        immediately on a connection of its own. Without one, a `definite` failure (refused or reset
        rather than timed out) does. `answered` says that the failure was an answer: the dependency
        does not serve (it is loading, for example). `detail` must not contain secrets.
        """
        now = self._bind()
        if answered:
            self.refused_at = now
        detail = clean_detail(detail)
        self.note("call failed", cause=cause.value, detail=detail)
        self._publish(
            self._machine.failed(now, cause, detail, definite=definite, probed=self._prober.running)
        )
        self._prober.suspect()

    def unreachable(self, detail: str, since: float) -> None:
        """Report that the host acknowledges nothing, neither on an open nor on a new connection.

        That makes the dependency DOWN, unless it has answered a client since. `since` is the
        absolute loop time of the last acknowledgement. `detail` must not contain secrets.
        """
        self._bind()
        self._prober.take_unreachable(clean_detail(detail), since)

    def probe_soon(self) -> None:
        """Probe immediately, without reporting a failure, unless it is DOWN."""
        self._prober.suspect()

    def reply_unclear(self) -> None:
        """Report that a reply may have been a refusal: its caller has given up, for example.

        Replies do not postpone the next probe then.
        """
        self._prober.distrust_replies()

    async def wait_for_probe(self, timeout: float) -> None:
        """Wait for the probe that a reported failure has requested, for at most `timeout` seconds.

        So an outage can be published before the caller sees the error. Return immediately if no
        probe was requested or the dependency is already DOWN.
        """
        resolved = self._prober.suspicion_resolved()
        if resolved is not None:
            await asyncio.wait([resolved], timeout=timeout)

    def succeeded(self, latency: float | None = None) -> None:
        """Report a success that took effort (`latency` seconds), such as a new connection.

        Replies need no report: `last_reply` covers them. While the dependency is DOWN, the report
        counts as one good probe.
        """
        self._publish(self._machine.succeeded(self._bind(), latency))

    def refused(self, cause: Cause, detail: str = "") -> None:
        """Report that the dependency answered but refused a write: DEGRADED until one is accepted.

        That state also ends after `HealthSettings.refusal_hold` without another refusal, and only
        then if writes are accepted and refused in turn. `detail` must not contain secrets.
        """
        now = self._bind()
        detail = clean_detail(detail)
        self.note("write refused", cause=cause.value, detail=detail)
        self._publish(self._machine.refused(now, cause, detail))

    def accepted(self) -> None:
        """Report an accepted write. Needed only while `refusing`."""
        self._publish(self._machine.accepted(self._bind()))

    def part_lost(self, part: str, cause: Cause, detail: str = "", *, owner: object = None) -> None:
        """Report that a part is lost, for example one of several connections.

        The dependency is DEGRADED while a part is lost, once the probe has found that the whole is
        not DOWN. The state DOWN forgets lost parts: report those that remain lost again. `detail`
        must not contain secrets. Parts of two owners are two parts, also if their names are equal.
        """
        now = self._bind()
        detail = clean_detail(detail)
        self.note("part lost", part=part, cause=cause.value, detail=detail)
        self._publish(
            self._machine.part_lost(now, (owner, part), cause, detail, probed=self._prober.running)
        )
        self._prober.suspect()

    def part_back(self, part: str, *, owner: object = None) -> None:
        """Report that a lost part is back. A part that was not lost is ignored."""
        self._publish(self._machine.part_back(self._bind(), (owner, part)))

    def failover_began(self, detail: str, *, owner: object = None) -> None:
        """Report that another server is about to take over: DEGRADED, with the cause FAILOVER.

        That holds also while the server does not answer, until `failover_ended` is called.
        `detail` must not contain secrets.
        """
        now = self._bind()
        detail = clean_detail(detail)
        self.note("failover began", detail=detail)
        self._publish(self._machine.failover_began(now, owner, detail))

    def failover_ended(self, *, owner: object = None) -> None:
        """Report the end of a failover, successful or not."""
        now = self._bind()
        self.note("failover ended")
        self._publish(self._machine.failover_ended(now, owner))

    def remark(self, text: str) -> None:
        """Add a remark to the detail while the state is DOWN; an empty text removes it."""
        self._publish(self._machine.remark(self._bind(), clean_detail(text) if text else ""))

    def forget_parts(self, owner: object) -> None:
        """Forget the lost parts of a client that was closed, and its failover."""
        # The evidence of another loop is gone with it.
        loop = asyncio.get_running_loop()
        if self._loop is loop:
            self._publish(self._machine.parts_gone(loop.time(), owner))

    def reporter(self) -> Reporter:
        """Return an object through which one client reports, until that client is closed."""
        return Reporter(self)

    async def release(self) -> None:
        """Close it if it was created by a client and no client is attached any more.

        For clients, after `Attachment.detach()`. Otherwise this does nothing: the application that
        created a dependency closes it.
        """

    async def aclose(self) -> None:
        """Detach every client, end every `watch()`, and end the probe task.

        Async callbacks get one second, then they are cancelled. Idempotent. A later `start()`
        starts again; callbacks stay registered. If the call is cancelled, the rest ends in the
        background.
        """
        detaching = [task for client in self._prober.clients if (task := self._detach(client))]
        self._broadcast.close()
        if detaching:
            await asyncio.wait(detaching)
        await self._subscriptions.finish(CLOSE_TIMEOUT)

    # --- internals

    def _publish(self, change: Change | None) -> None:
        machine, refused = self._machine, self.refusing
        self.available = machine.state is not State.DOWN
        self.refusing = machine.refusing
        if change is not None or self.refusing is not refused:
            self._updates.notify(self)
        if change is None:
            return
        self._history.append(change)
        del self._history[: -self.settings.history]
        log_change(change)
        link = self.link if self._recorders else None
        for recorder in self._recorders:
            recorder.changed(change, link)
        self._broadcast.publish(change)
        self._subscriptions.notify(change)

    def _detach(self, client: Client) -> asyncio.Task[None] | None:
        if self._loop is None or self._loop.is_closed():
            self._prober.abandon()  # its task ended, or will never end, with its loop
            return None
        attached = client in self._prober.clients
        task = self._prober.remove(client)
        if attached and not self._prober.running:
            self._publish(self._machine.forget(self._loop.time()))
        return task

    def _bind(self) -> float:
        """Bind to the running loop. Return its time."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._adopt(loop)
        return loop.time()

    def _adopt(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        change = None
        if self._loop is not None:
            if self._prober.running and not self._loop.is_closed():
                raise RuntimeError(
                    f"the dependency {self.name!r} is in use in another running event loop: "
                    f"create one Dependency per loop"
                )
            # The evidence and the waiting tasks of the earlier loop are gone with it.
            self._prober.abandon()
            self._broadcast = Broadcast(first_change(self.name, now))
            self._machine.since = now  # the times of two loops cannot be compared
            change = self._machine.forget(now)
        self._machine.since = now
        self._loop = loop
        self._publish(change)


class ClientDependency(Dependency):
    """The dependency that a client creates for itself. Its last client closes it.

    That may be another client, with which it is shared (`health=redis.health`).
    """

    async def release(self) -> None:
        """Close it if no client is attached any more."""
        if not self._prober.running:
            await self.aclose()


class Reporter:
    """The reports of one client about a dependency.

    Once it is closed, it ignores further reports: the failures of a client that closes its own
    connections say nothing about the dependency. Parts with the same name in the reports of two
    clients are two parts.
    """

    __slots__ = ("_closed", "_dependency")

    def __init__(self, dependency: Dependency) -> None:
        self._dependency = dependency
        self._closed = False

    def failed(
        self, cause: Cause, detail: str = "", *, definite: bool = False, answered: bool = False
    ) -> None:
        """Report the failure of a call; see `Dependency.failed`."""
        if not self._closed:
            self._dependency.failed(cause, detail, definite=definite, answered=answered)

    def unreachable(self, detail: str, since: float) -> None:
        """Report that the host acknowledges nothing; see `Dependency.unreachable`."""
        if not self._closed:
            self._dependency.unreachable(detail, since)

    def succeeded(self, latency: float | None = None) -> None:
        """Report a success that took effort; see `Dependency.succeeded`."""
        if not self._closed:
            self._dependency.succeeded(latency)

    def refused(self, cause: Cause, detail: str = "") -> None:
        """Report a refused write; see `Dependency.refused`."""
        if not self._closed:
            self._dependency.refused(cause, detail)

    def reply_unclear(self) -> None:
        """Report that a reply may have been a refusal; see `Dependency.reply_unclear`."""
        if not self._closed:
            self._dependency.reply_unclear()

    def accepted(self) -> None:
        """Report an accepted write; see `Dependency.accepted`."""
        if not self._closed:
            self._dependency.accepted()

    def part_lost(self, part: str, cause: Cause, detail: str = "") -> None:
        """Report that a part of this client is lost; see `Dependency.part_lost`."""
        if not self._closed:
            self._dependency.part_lost(part, cause, detail, owner=self)

    def part_back(self, part: str) -> None:
        """Report that a lost part of this client is back."""
        if not self._closed:
            self._dependency.part_back(part, owner=self)

    def failover_began(self, detail: str) -> None:
        """Report that another server is about to take over; see `Dependency.failover_began`."""
        if not self._closed:
            self._dependency.failover_began(detail, owner=self)

    def failover_ended(self) -> None:
        """Report the end of a failover; see `Dependency.failover_ended`."""
        if not self._closed:
            self._dependency.failover_ended(owner=self)

    def remark(self, text: str) -> None:
        """Add a remark to the detail of an outage; see `Dependency.remark`."""
        if not self._closed:
            self._dependency.remark(text)

    def close(self) -> None:
        """Withdraw the lost parts, and ignore further reports. Idempotent."""
        if not self._closed:
            self._closed = True
            self._dependency.forget_parts(self)


class Attachment:
    """A client's attachment to a `Dependency`, returned by `start()`."""

    __slots__ = ("_detach",)

    def __init__(self, detach: Callable[[], asyncio.Task[None] | None]) -> None:
        self._detach = detach

    async def detach(self) -> None:
        """Detach the client, and wait until its probe no longer runs.

        After the last client the state is UNKNOWN and no task runs. Idempotent. If the call is
        cancelled, the probe ends in the background.
        """
        task = self._detach()
        if task is not None:
            await asyncio.wait([task])
