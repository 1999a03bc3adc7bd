"""Owns one aiokafka instance: starts it, watches it, replaces it, ends it."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import functools
import logging
from typing import TYPE_CHECKING, Any, Generic

from aiokafka.errors import KafkaConnectionError, KafkaError

from resilient_io.deadlines import current_deadline
from resilient_io.errors import Closed
from resilient_io.health import Cause, State
from resilient_io.tasks import describe_task_end, log_task_death

from .driver import (
    background_tasks,
    client_of,
    connections_of,
    end_instance,
    fail_transaction,
    hold_dialling,
    notice_hang_ups,
    oldest_request,
    reconnect,
    resume_dialling,
    start_instance,
    unknown_topics,
)
from .errors import (
    KafkaAuthenticationFailed,
    KafkaClosed,
    KafkaDeadlineExceeded,
    KafkaUnavailable,
    connection_failure,
    meaning_of,
)
from .log_filter import Tally, context_of_driver
from .protocols import Connection, DriverT

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable
    from contextvars import Context

    from resilient_io.health import Change, Dependency, Subscription
    from resilient_io.retry import RetryPolicy, WhileDown


_log = logging.getLogger("resilient_io.kafka")

_STEADY = 30.0
"""Seconds of service after which an instance's predecessors' failures are forgotten."""

_LEAST_BACKOFF = 0.05
"""Least bound of the first pause, in seconds."""

_PERMANENT_CAP = 30.0
"""Greatest bound of the backoff, in seconds, when only somebody's change can help."""


class Setbacks:
    """Counts failures in a row; logs the 1st, 2nd, 4th, 8th and so on of them.

    Args:
        role: What kind of instance, for the log.
        health: Told of failures that may be the cluster's.
        policy: Its backoff.
        rng: Source of the jitter.
        tally: The driver's records that were dropped.
    """

    def __init__(
        self,
        role: str,
        health: Dependency,
        policy: RetryPolicy,
        rng: random.Random,
        tally: Tally,
    ) -> None:
        self._role = role
        self._health = health
        self._policy = policy
        self._rng = rng
        self._tally = tally
        self._count = 0

    def overcome(self, generation: int) -> None:
        """Take note that an instance is in service."""
        self._health.note("instance in service", role=self._role, generation=generation)
        if self._count and self._is_news():
            _log.info(
                "%s: %s %d is in service after %d failures; %d records of the driver's dropped",
                self._health.name,
                self._role,
                generation,
                self._count,
                self._tally.dropped,
                extra={
                    "event": "instance_in_service",
                    "dependency": self._health.name,
                    "role": self._role,
                    "generation": generation,
                    "failures": self._count,
                    "dropped": self._tally.dropped,
                },
            )

    def note(self, error: Exception, lived: float, *, final: bool) -> None:
        """Take note of what an instance ended of; tell health, and once the log.

        Args:
            error: What it ended of.
            lived: Seconds that it lived.
            final: None will follow it.
        """
        if lived >= _STEADY:
            self._count = 0
        self._count += 1
        failure = connection_failure(error)
        self._health.note(
            "instance ended", role=self._role, detail=failure.detail, replaced=not final
        )
        if final or self._is_news():
            _log.log(
                logging.ERROR if final else logging.WARNING,
                "%s: the %s %s: %s; last word of the driver: %s",
                self._health.name,
                self._role,
                "is not replaced" if final else "has to be replaced",
                failure.detail,
                self._tally.newest or "none",
                extra={
                    "event": "instance_ended",
                    "dependency": self._health.name,
                    "role": self._role,
                    "replaced": not final,
                    "cause": failure.cause.value,
                    "detail": failure.detail,
                },
            )
        if meaning_of(error).kind in ("perhaps", "transient") or failure.permanent:
            # Not "definite": the probe looks for itself, and finds the true cause.
            self._health.failed(failure.cause, failure.detail)

    def pause(self, error: Exception) -> float:
        """Give the seconds until the next instance: backoff with full jitter."""
        cap = self._policy.backoff_cap
        if meaning_of(error).kind == "permanent":
            cap = max(cap, _PERMANENT_CAP)
        bound = max(self._policy.backoff, _LEAST_BACKOFF) * 2.0 ** min(self._count - 1, 32)
        return self._rng.random() * min(bound, cap)

    def _is_news(self) -> bool:
        return self._count & (self._count - 1) == 0


class Admission(Generic[DriverT]):
    """Holds the instance in service, and those who wait for one.

    Args:
        role: What kind of instance, for errors.
        health: Of the cluster.
        while_down: What calls do while it is down, unless they say otherwise.

    Attributes:
        instance: The one in service; None while there is none.
        refusal: Why there is none and waiting does not help; None when all is well.
        closed: Whether there will never be one again.
    """

    def __init__(self, role: str, health: Dependency, while_down: WhileDown) -> None:
        self.instance: DriverT | None = None
        self.refusal: Exception | None = None
        self.closed = False
        self._role = role
        self._health = health
        self._while_down = while_down
        self._waiting: list[asyncio.Future[None]] = []

    def wake(self) -> None:
        """Let those who wait look again."""
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(None)

    async def ready(
        self, until: float | None, operation: str, while_down: WhileDown | None
    ) -> DriverT:
        """Wait for an instance; see `Supervisor.ready`."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        fails = (while_down or self._while_down) == "fail"
        # Who comes while it is down is told at once; who was let in may wait for its return.
        impatient = fails and self._health.state in (State.DOWN, State.UNKNOWN)
        bound = current_deadline()
        if bound is not None and (until is None or bound < until):
            until = bound
        try:
            async with asyncio.timeout_at(until):
                while True:
                    self._raise_trouble(operation, began, fails=fails, impatient=impatient)
                    if self.instance is not None:
                        return self.instance
                    await self._wait()
        except TimeoutError:
            raise KafkaDeadlineExceeded(
                f"no {self._role} was ready in time",
                dependency=self._health.name,
                operation=operation,
                elapsed=loop.time() - began,
            ) from None

    async def _wait(self) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        try:
            await waiter
        finally:
            with contextlib.suppress(ValueError):
                self._waiting.remove(waiter)

    def _raise_trouble(self, operation: str, began: float, *, fails: bool, impatient: bool) -> None:
        elapsed = asyncio.get_running_loop().time() - began
        name, cause = self._health.name, self._health.cause
        if self.closed:
            raise KafkaClosed(
                f"the {self._role} was closed",
                dependency=name,
                operation=operation,
                elapsed=elapsed,
            )
        if self.refusal is not None:
            told = copy.copy(self.refusal)
            told.add_note(f"{name}: no {self._role} can be in service because of this")
            raise told from self.refusal
        if self._health.available or cause is None:
            return
        if impatient or (fails and cause.permanent):
            kind = KafkaAuthenticationFailed if cause is Cause.AUTH else KafkaUnavailable
            detail = f": {self._health.detail}" if self._health.detail else ""
            raise kind(
                f"it is down ({cause.value}{detail})",
                dependency=name,
                operation=operation,
                elapsed=elapsed,
            )


_LOOK = 1.0
"""Seconds between looks at whether any connection is open."""

_TOPICS_CAP = 10.0
"""Greatest pause between questions for topics that are not there yet, in seconds."""

_STRIKES = 3
"""How often in a row an instance must fail to find a cluster that answers the probe."""


class Watch(Generic[DriverT]):
    """Says when an instance must be replaced.

    Args:
        instance: In service from now on.
        health: Of the cluster; its probe also asks the bootstrap servers.
        timeout: Seconds for an answer through the instance.
        context: Makes a context in which the driver's records are ours.
        broken: Called at once when the first word comes that it is broken.
    """

    def __init__(
        self,
        instance: DriverT,
        health: Dependency,
        timeout: float,
        context: Callable[[], Context],
        broken: Callable[[], None],
    ) -> None:
        self._instance = instance
        self._health = health
        self._timeout = timeout
        self._context = context
        self._when_broken = broken
        self._broken: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
        self._doubt = asyncio.Event()
        self._after_outage = False
        self._strikes = 0
        self._topics_pause = _LOOK
        self._topics_due = 0.0
        self._tasks: list[tuple[asyncio.Task[Any], Callable[[asyncio.Task[Any]], None]]] = []
        for what, task in background_tasks(instance):
            ended = functools.partial(self._task_ended, what)
            task.add_done_callback(ended)
            self._tasks.append((task, ended))
        if health.state is State.DOWN:
            hold_dialling(instance)

    def report(self, error: BaseException) -> None:
        """Take somebody's word that it is broken; the first word counts."""
        if not self._broken.done():
            self._broken.set_result(error)
            self._when_broken()

    def health_changed(self, change: Change) -> None:
        """Let only the probe knock in an outage; after it, look whether the instance is back."""
        if change.state is State.DOWN:
            hold_dialling(self._instance)
        elif change.previous is State.DOWN:
            resume_dialling(self._instance)
            self._after_outage = True
            self._doubt.set()

    def close(self) -> None:
        """Watch no longer."""
        for task, ended in self._tasks:
            task.remove_done_callback(ended)
            if task.done() and not task.cancelled():
                task.exception()

    async def until_broken(self) -> Exception:
        """Return what it is broken by."""
        looking = asyncio.get_running_loop().create_task(
            self._look(), name="resilient-io kafka look", context=self._context()
        )
        try:
            waited: list[asyncio.Future[Any]] = [self._broken, looking]
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        finally:
            looking.cancel()
        if not self._broken.done():
            looking.result()  # a bug: let it be seen
        error = self._broken.result()
        return error if isinstance(error, Exception) else KafkaError(repr(error))

    # --- inside

    def _task_ended(self, what: str, task: asyncio.Task[Any]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is None:
            error = KafkaError(f"its {what} task ended")
        elif what == "sending":
            fail_transaction(self._instance, error)
        self.report(error)

    async def _look(self) -> None:
        while True:
            try:
                async with asyncio.timeout(_LOOK):
                    await self._doubt.wait()
            except TimeoutError:
                pass
            self._doubt.clear()
            health = self._health
            if health.state not in (State.UP, State.DEGRADED):
                self._strikes = 0
                continue
            open_connections = [c for c in connections_of(self._instance) if c.connected()]
            if open_connections and not self._after_outage and not self._strikes:
                await self._look_for_topics()
            else:
                await self._find_cluster()

    async def _look_for_topics(self) -> None:
        """Ask again for topics that are not there yet.

        aiokafka 0.14 asks once when it subscribes, and then only after `metadata_max_age_ms`: a
        topic that is made a moment later would not be read for five minutes.
        """
        loop = asyncio.get_running_loop()
        if not unknown_topics(self._instance):
            self._topics_pause = _LOOK
        elif loop.time() >= self._topics_due:
            self._topics_due = loop.time() + self._topics_pause
            self._topics_pause = min(2.0 * self._topics_pause, _TOPICS_CAP)
            with contextlib.suppress(KafkaError, TimeoutError):
                async with asyncio.timeout(self._timeout):
                    await client_of(self._instance).force_metadata_update()

    async def _find_cluster(self) -> None:
        """Ask for metadata through the instance; it must find what the probe finds."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        owed = self._owed()
        found = False
        try:
            async with asyncio.timeout(self._timeout):
                found = await client_of(self._instance).force_metadata_update()
        except (KafkaError, TimeoutError):
            pass
        if owed and (self._after_outage or not found):
            await asyncio.sleep(began + self._timeout - loop.time())
            _renew(owed)
        if found:
            self._strikes = 0
            self._after_outage = False
            return
        if self._health.since > began or self._health.state is State.DOWN:
            return  # it is the cluster, not the instance
        self._strikes += 1
        if self._strikes >= _STRIKES:
            self.report(
                KafkaConnectionError("it finds none of its brokers, while the cluster answers")
            )

    def _owed(self) -> list[tuple[Connection, object]]:
        """Give the connections that owe an answer, with the request that has waited longest."""
        owed = [(c, oldest_request(c)) for c in connections_of(self._instance) if c.connected()]
        return [(connection, request) for connection, request in owed if request is not None]


def _renew(owed: list[tuple[Connection, object]]) -> None:
    """Close the connections that still owe the same answer.

    It was lost in the outage: without this the instance waits for it until its request timeout.
    """
    for connection, request in owed:
        if connection.connected() and oldest_request(connection) is request:
            reconnect(connection)


_GRACE = 2.0
"""Seconds beyond its timeout that `aclose` allows force to take."""


class Supervisor(Generic[DriverT]):
    """Keeps an instance of aiokafka's in service, for as long as the cluster answers.

    It lives in one task, in the event loop of `start()`. It never knocks at a cluster that is down:
    it waits until health says that it answers. The health must be attached to a probe by whoever
    owns it, before `start()`.

    Args:
        role: "producer" or "consumer", for logs, errors and the names of tasks.
        build: Makes a new instance that is not started. What it raises is told by `ready()`.
        health: The cluster's.
        policy: Its backoff, its response timeout and what it says of calls while it is down.
        rng: Source of the jitter.
        prepare: Called with a started instance before it enters service; bounded like the start.
        entered: Called when an instance enters service.
        retired: Called when one that was in service has ended (its sockets closed, its tasks
            gone) with what it had to end for; None when it was closed.
        halts: Says of what an instance ended of whether none may follow it, as with
            `broken(replace=False)`, until `revive()`.
        start_timeout: Seconds for starting an instance, and again for preparing it.
        stop_timeout: Seconds for good order when an instance is replaced; None for the policy's
            response timeout.

    Attributes:
        generation: How many instances have entered service.
        tally: Counts the driver's log records that were dropped.
    """

    def __init__(
        self,
        *,
        role: str,
        build: Callable[[], DriverT],
        health: Dependency,
        policy: RetryPolicy,
        rng: random.Random,
        prepare: Callable[[DriverT], Awaitable[None]] | None = None,
        entered: Callable[[DriverT], None] | None = None,
        retired: Callable[[DriverT, BaseException | None], None] | None = None,
        halts: Callable[[BaseException], bool] | None = None,
        start_timeout: float = 10.0,
        stop_timeout: float | None = None,
    ) -> None:
        self.role = role
        self.generation = 0
        self.tally = Tally()
        self._build = build
        self._health = health
        self._policy = policy
        self._prepare = prepare
        self._entered = entered
        self._retired = retired
        self._halts = halts
        self._start_timeout = start_timeout
        self._stop_timeout = policy.response_timeout if stop_timeout is None else stop_timeout
        self._task: asyncio.Task[None] | None = None
        self._watch: Watch[DriverT] | None = None
        self._subscription: Subscription[Change] | None = None
        self._admission: Admission[DriverT] = Admission(role, health, policy.while_down)
        self._halted = False
        self._setbacks = Setbacks(role, health, policy, rng, self.tally)
        self._graceful = True
        self._closing_until = 0.0

    @property
    def instance(self) -> DriverT | None:
        """The one in service; None while there is none."""
        return self._admission.instance

    @property
    def closed(self) -> bool:
        """Whether `aclose` was called."""
        return self._admission.closed

    @property
    def refusal(self) -> Exception | None:
        """Why there will be no instance until somebody changes something; None when all is well."""
        return self._admission.refusal

    def context(self) -> Context:
        """Give a new context in which the driver's records are ours.

        For every task of ours that calls an instance: courier, committer, fetch loop.
        """
        return context_of_driver(self.tally)

    def start(self) -> None:
        """Begin, in the running loop; never waits for Kafka. Starting twice does no harm."""
        if self._task is not None or self._admission.closed:
            return
        self._subscription = self._health.on_change(self._health_changed)
        self._begin()

    async def ready(
        self, until: float | None, operation: str, *, while_down: WhileDown | None = None
    ) -> DriverT:
        """Wait until an instance is in service.

        Cancelling leaves at once and changes nothing.

        Args:
            until: Absolute loop time at which the wait ends; None for no bound of its own. An
                enclosing `resilient_io.deadline` bounds it, too.
            operation: What the caller is about to do, for the error.
            while_down: What to do while Kafka is down; None for what the policy says.

        Raises:
            KafkaUnavailable: Kafka is down and the call is not to wait for it.
            KafkaAuthenticationFailed: Kafka does not accept the credentials.
            KafkaDeadlineExceeded: There was none in time.
            KafkaClosed: It was closed.
            KafkaError: What an instance was refused for good, as aiokafka raised it.
        """
        return await self._admission.ready(until, operation, while_down)

    def broken(self, instance: DriverT, error: BaseException, *, replace: bool = True) -> None:
        """Report that an instance can do its work no more.

        It is ended, settled (`retired`) and replaced. Reporting it twice, or one that is no longer
        in service, changes nothing.

        Args:
            instance: The one that was used.
            error: What it raised.
            replace: False to let none follow it: then `ready()` raises this error from now on.
        """
        if instance is not self.instance or self._watch is None:
            return
        if not replace:
            self._halted = True
            told = error if isinstance(error, Exception) else KafkaError(repr(error))
            self._admission.refusal = told
        self._watch.report(error)

    def revive(self) -> None:
        """Let an instance follow after all one that was not to be replaced."""
        if not self._halted or self._admission.closed:
            return
        self._halted = False
        self._admission.refusal = None
        if self._task is None or self._task.done():
            self._begin()

    def liveness_failure(self) -> str | None:
        """Say why no instance can come any more, whatever happens; None while all is well."""
        if self._halted or self._admission.closed:
            return None
        how = describe_task_end(self._task)
        return None if how is None else f"the {self.role}'s supervisor is gone: {how}"

    async def aclose(self, timeout: float, *, graceful: bool = True) -> None:
        """End it all: whoever waits is told `KafkaClosed`, the instance is ended, then retired.

        Returns within the timeout and a moment for force. Closing twice waits for the first.
        Cancelling leaves at once; the closing goes on by itself, within its timeout.

        Args:
            timeout: Seconds for good order (batches settled, group left).
            graceful: False goes straight to force.
        """
        task = self._task
        if not self._admission.closed:
            self._admission.closed = True
            self._graceful = graceful and timeout > 0
            self._closing_until = asyncio.get_running_loop().time() + timeout
            if self._subscription is not None:
                self._subscription.remove()
            self._admission.wake()
            if task is not None:
                task.cancel()
        if task is not None and not task.done():
            await asyncio.wait([task], timeout=timeout + _GRACE)

    # --- inside

    def _begin(self) -> None:
        self._task = asyncio.get_running_loop().create_task(
            self._run(), name=f"resilient-io kafka {self.role} supervisor", context=self.context()
        )
        self._task.add_done_callback(log_task_death)

    def _health_changed(self, change: Change) -> None:
        self._admission.wake()
        if self._watch is not None:
            self._watch.health_changed(change)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while not self._halted:
            try:
                await self._health.until_up()
            except Closed:  # by whoever shares it: then nothing tells when to go on
                self._halted = True
                self._admission.refusal = KafkaClosed(
                    "its health was closed", dependency=self._health.name, operation=self.role
                )
                self._admission.wake()
                return
            served = loop.time()
            error = await self._live()
            if self._halts is not None and self._halts(error):
                self._halted, self._admission.refusal = True, error
            if meaning_of(error).kind == "permanent" and self._admission.refusal is None:
                self._admission.refusal = error
            self._setbacks.note(error, loop.time() - served, final=self._halted)
            self._admission.wake()
            if not self._halted:
                await asyncio.sleep(self._setbacks.pause(error))

    async def _live(self) -> Exception:
        """Let one instance live; return what it ended of. Cancelled, it ends in good order."""
        loop = asyncio.get_running_loop()
        try:
            instance = self._build()
        # The boundary to the driver's constructor and the user's options: told by `ready()`.
        except Exception as refused:  # noqa: BLE001
            self._admission.refusal = refused
            return refused
        notice_hang_ups(instance, self._hung_up)
        error: Exception | None = None
        started = serving = False
        try:
            await start_instance(instance, self._start_timeout, context=self.context())
            started = True
            if self._prepare is not None:
                async with asyncio.timeout(self._start_timeout):
                    await self._prepare(instance)
            self._watch = Watch(
                instance,
                self._health,
                self._policy.response_timeout,
                self.context,
                self._leave_service,
            )
            serving = True
            self._enter(instance)
            error = found = await self._watch.until_broken()
        # The supervisor's boundary: whatever an instance dies of, the next one may live.
        except Exception as failure:  # noqa: BLE001
            error = found = failure
            if not self.generation and isinstance(failure, (TypeError, ValueError)):
                # An option's value that aiokafka cannot use: waiting does not help.
                self._admission.refusal = failure
        finally:
            if self._watch is not None:
                self._watch.close()
            self._admission.instance = self._watch = None
            if started:
                left = self._stop_timeout
                if self._admission.closed:
                    left = self._closing_until - loop.time() if self._graceful else 0.0
                await end_instance(
                    instance,
                    left,
                    reason=f"the {self.role} was {'closed' if error is None else 'replaced'}",
                    error=error,
                    context=self.context(),
                )
            if serving and self._retired is not None:
                self._retired(instance, error)
        return found

    def _enter(self, instance: DriverT) -> None:
        self.generation += 1
        self._admission.refusal = None
        self._admission.instance = instance
        self._setbacks.overcome(self.generation)
        if self._entered is not None:
            self._entered(instance)
        self._admission.wake()

    def _hung_up(self, connection: Connection) -> None:
        """A broker that ended closes its connections: let the probe look before anybody calls."""
        if not self._admission.closed:
            self._health.failed(
                Cause.RESET, f"{connection.host}:{connection.port} closed a connection"
            )

    def _leave_service(self) -> None:
        self._admission.instance = None
