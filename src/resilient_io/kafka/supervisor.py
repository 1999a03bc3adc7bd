"""Owns one aiokafka instance (the driver): starts, monitors, replaces and stops it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from typing import TYPE_CHECKING, Any, Generic

from aiokafka.errors import KafkaConnectionError, KafkaError

from resilient_io.deadlines import current_deadline, earlier
from resilient_io.errors import Closed
from resilient_io.health import Cause, State
from resilient_io.retry import Backoff
from resilient_io.tasks import beat_before, describe_task_end, log_task_death, wake

from .driver import (
    Connection,
    DriverT,
    background_tasks,
    client_of,
    connections_of,
    fail_transaction,
    notify_on_connection_loss,
    oldest_request,
    pace_metadata_requests,
    pause_connecting,
    reconnect,
    resume_connecting,
    start_driver,
    stop_driver,
    unknown_topics,
)
from .errors import (
    KafkaClosed,
    KafkaDeadlineExceeded,
    classify_error,
    connection_failure,
    copy_with_note,
    unavailable_because_of,
    without_secrets,
)

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable
    from contextvars import Context

    from resilient_io.health import Change, Dependency, Subscription
    from resilient_io.retry import RetryPolicy, WhileDown

    from .connect import KafkaTarget

_log = logging.getLogger("resilient_io.kafka")

# Lifetime of a driver, in seconds, after which the failures before it no longer count.
_STABLE_AFTER = 30.0
_MIN_BACKOFF = 0.05  # smallest upper bound of the first backoff, in seconds
# Largest upper bound of the backoff, in seconds, after an error that waiting does not cure.
_PERMANENT_CAP = 30.0
_REFUSED_PAUSE = 1.0  # least pause after Kafka refused the driver for now (a full group)
_CHECK_INTERVAL = 1.0  # seconds between checks whether any connection is open
_TOPICS_CAP = 10.0  # longest pause between requests for the metadata of missing topics, in seconds
# How often in a row a driver must fail to reach a cluster that answers the probe.
_LOOKUP_FAILURES = 3
_FORCE_TIME = 2.0  # time beyond its timeout that `aclose` allows for a forced stop, in seconds


class RestartBackoff:
    """The pause before the next driver, and one log record for the 1st, 2nd, 4th, 8th… failure."""

    def __init__(
        self,
        role: str,
        target: KafkaTarget,
        health: Dependency,
        policy: RetryPolicy,
        rng: random.Random,
    ) -> None:
        self._role = role
        self._target = target
        self._health = health
        self._cap = policy.backoff_cap
        self._backoff = Backoff(max(policy.backoff, _MIN_BACKOFF), policy.backoff_cap, rng)

    def attached(self, generation: int) -> None:
        """Log that a driver works."""
        self._health.note("driver attached", role=self._role, generation=generation)
        failures = self._backoff.failures
        if failures and _is_power_of_two(failures):
            dropped = self._target.driver_log.log_records_dropped
            _log.info(
                "%s: %s %d works after %d failures (%d log records of aiokafka dropped)",
                self._health.name,
                self._role,
                generation,
                failures,
                dropped,
                extra={
                    "event": "driver_attached",
                    "dependency": self._health.name,
                    "role": self._role,
                    "generation": generation,
                    "failures": failures,
                    "log_records_dropped": dropped,
                },
            )

    def failed(self, error: Exception, lifetime: float, *, final: bool) -> float:
        """Report why a driver failed. Return the seconds until the next one is started."""
        if lifetime >= _STABLE_AFTER:
            self._backoff.reset()
        kind = classify_error(error).kind
        lasting = kind in ("permanent", "refused")
        pause = self._backoff.next(cap=max(self._cap, _PERMANENT_CAP) if lasting else None)
        if kind == "refused":
            pause = max(pause, _REFUSED_PAUSE)
        failure = connection_failure(error, secrets=self._target.secrets())
        self._health.note(
            "driver closed", role=self._role, detail=failure.detail, replaced=not final
        )
        if final or _is_power_of_two(self._backoff.failures):
            _log.log(
                logging.ERROR if final else logging.WARNING,
                "%s: %s the %s: %s; last log message of aiokafka: %s",
                self._health.name,
                "closed" if final else "replacing",
                self._role,
                failure.detail,
                self._target.driver_log.last_message or "none",
                extra={
                    "event": "driver_closed",
                    "dependency": self._health.name,
                    "role": self._role,
                    "replaced": not final,
                    "cause": failure.cause.value,
                    "detail": failure.detail,
                },
            )
        if kind in ("ambiguous", "transient") or failure.permanent:
            # Not definite: the probe checks the cluster itself and finds the real cause.
            self._health.failed(failure.cause, failure.detail)
        return pause


def _is_power_of_two(number: int) -> bool:
    return number & (number - 1) == 0


class DriverMonitor(Generic[DriverT]):
    """Detects that an attached driver must be replaced."""

    def __init__(
        self,
        driver: DriverT,
        *,
        target: KafkaTarget,
        health: Dependency,
        timeout: float,
        on_failure: Callable[[], None],
    ) -> None:
        self._driver = driver
        self._target = target
        self._health = health
        self._timeout = timeout
        self._on_failure = on_failure
        self._failure: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
        self._check_now = asyncio.Event()
        self._after_outage = False
        self._lookup_failures = 0
        self._topics_pause = _CHECK_INTERVAL
        self._topics_due = 0.0
        self._tasks: list[tuple[asyncio.Task[Any], Callable[[asyncio.Task[Any]], None]]] = []
        for purpose, task in background_tasks(driver):
            ended = functools.partial(self._task_ended, purpose)
            task.add_done_callback(ended)
            self._tasks.append((task, ended))
        if health.state is State.DOWN:
            pause_connecting(driver)

    def report(self, error: BaseException) -> None:
        """Report a failure of the driver. The first one counts."""
        if not self._failure.done():
            self._failure.set_result(error)
            self._on_failure()

    def health_changed(self, change: Change) -> None:
        """Pause connecting during an outage; after it, check that the driver recovers."""
        if change.state is State.DOWN:
            pause_connecting(self._driver)
        elif change.previous is State.DOWN:
            resume_connecting(self._driver)
            self._after_outage = True
            self._check_now.set()

    def close(self) -> None:
        """Stop watching the driver's tasks."""
        for task, ended in self._tasks:
            task.remove_done_callback(ended)
            if task.done() and not task.cancelled():
                task.exception()

    async def wait_for_failure(self) -> Exception:
        """Return the error because of which the driver must be replaced."""
        checking = asyncio.get_running_loop().create_task(
            self._check(),
            name="resilient-io kafka check",
            context=self._target.driver_log.context(),
        )
        try:
            waited: list[asyncio.Future[Any]] = [self._failure, checking]
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        finally:
            checking.cancel()
        if not self._failure.done():
            checking.result()  # a bug: raise it
        error = self._failure.result()
        return error if isinstance(error, Exception) else KafkaError(repr(error))

    def _task_ended(self, purpose: str, task: asyncio.Task[Any]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is None:
            error = KafkaError(f"its {purpose} task ended")
        elif purpose == "sending":
            if isinstance(error, Exception):
                error = without_secrets(error, self._target.secrets())
            fail_transaction(self._driver, error)
        self.report(error)

    async def _check(self) -> None:
        time = asyncio.get_running_loop().time
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(beat_before(time() + _CHECK_INTERVAL)):
                    await self._check_now.wait()
            self._check_now.clear()
            if not self._health.state.answering:
                self._lookup_failures = 0
                continue
            connected = any(c.connected() for c in connections_of(self._driver))
            if connected and not self._after_outage and not self._lookup_failures:
                await self._request_missing_topics()
            else:
                await self._request_metadata()

    async def _request_missing_topics(self) -> None:
        """Request the metadata of topics that do not exist yet.

        aiokafka 0.14 requests it when it subscribes, and then only after `metadata_max_age_ms`: it
        would not read a topic that is created a moment later for five minutes.
        """
        loop = asyncio.get_running_loop()
        if not unknown_topics(self._driver):
            self._topics_pause = _CHECK_INTERVAL
        elif loop.time() >= self._topics_due:
            self._topics_due = loop.time() + self._topics_pause
            self._topics_pause = min(2.0 * self._topics_pause, _TOPICS_CAP)
            with contextlib.suppress(KafkaError, TimeoutError):
                async with asyncio.timeout(self._timeout):
                    await client_of(self._driver).force_metadata_update()

    async def _request_metadata(self) -> None:
        """Request metadata through the driver, which must reach the cluster if the probe does."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        oldest = [(c, oldest_request(c)) for c in connections_of(self._driver) if c.connected()]
        waiting = [(connection, request) for connection, request in oldest if request is not None]
        found = False
        with contextlib.suppress(KafkaError, TimeoutError):
            async with asyncio.timeout(self._timeout):
                found = await client_of(self._driver).force_metadata_update()
        if waiting and (self._after_outage or not found):
            await asyncio.sleep(began + self._timeout - loop.time())
            for connection, request in waiting:
                if connection.connected() and oldest_request(connection) is request:
                    # The response was lost in the outage: aiokafka would wait for it much longer.
                    reconnect(connection)
        if found:
            self._lookup_failures = 0
            self._after_outage = False
            return
        if self._health.since > began or self._health.state is State.DOWN:
            return  # the cluster is unavailable, not only the driver
        self._lookup_failures += 1
        if self._lookup_failures >= _LOOKUP_FAILURES:
            self.report(
                KafkaConnectionError("it finds none of its brokers, while the cluster answers")
            )


class Supervisor(Generic[DriverT]):
    """Keeps a driver attached for as long as the cluster answers.

    It lives in one task, in the event loop of `start()`. It never connects to a cluster that is
    down: it waits until health reports that the cluster answers. The owner attaches a probe to the
    health before `start()`. `prepare` is called with a started driver before it is attached,
    `on_detached` once it is closed (with the error, or None if the supervisor was closed), and
    after an error that `is_final` no driver follows until `resume()`.
    """

    def __init__(
        self,
        *,
        role: str,
        target: KafkaTarget,
        build: Callable[[], DriverT],
        health: Dependency,
        policy: RetryPolicy,
        rng: random.Random,
        prepare: Callable[[DriverT], Awaitable[None]] | None = None,
        on_attached: Callable[[DriverT], None] | None = None,
        on_detached: Callable[[DriverT, BaseException | None], None] | None = None,
        is_final: Callable[[BaseException], bool] | None = None,
        start_timeout: float = 10.0,
        stop_timeout: float | None = None,
    ) -> None:
        self.role = role
        self.driver: DriverT | None = None
        self.generation = 0  # how many drivers were attached so far
        self.permanent_error: Exception | None = None  # why waiting for a driver does not help
        self.closed = False
        self.halted = False  # whether no driver follows, until `resume()`
        self.driver_log = target.driver_log
        self._target = target
        self._build = build
        self._health = health
        self._policy = policy
        self._prepare = prepare
        self._on_attached = on_attached
        self._on_detached = on_detached
        self._is_final = is_final
        self._start_timeout = start_timeout
        self._stop_timeout = policy.response_timeout if stop_timeout is None else stop_timeout
        self._backoff = RestartBackoff(role, target, health, policy, rng)
        self._task: asyncio.Task[None] | None = None
        self._monitor: DriverMonitor[DriverT] | None = None
        self._subscription: Subscription[Change] | None = None
        self._waiters: list[asyncio.Future[None]] = []
        self._graceful = True
        self._closing_until = 0.0

    def context(self) -> Context:
        """Return a new context, for a task that calls the driver, in which its log is filtered."""
        return self.driver_log.context()

    def start(self) -> None:
        """Start in the running loop. Never waits for Kafka. Idempotent."""
        if self._task is not None or self.closed:
            return
        self._subscription = self._health.on_change(self._health_changed)
        self._start_task()

    async def ready(
        self, until: float | None, operation: str, *, while_down: WhileDown | None = None
    ) -> DriverT:
        """Wait until a driver is attached, and return it; or raise why there is none."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        fails = (while_down or self._policy.while_down) == "fail"
        # A call that starts while Kafka is down fails immediately. One that was waiting before the
        # outage may wait for its end.
        fails_now = fails and not self._health.state.answering
        try:
            async with asyncio.timeout_at(earlier(until, current_deadline())):
                while True:
                    self._check_available(operation, began, fails=fails, fails_now=fails_now)
                    if self.driver is not None:
                        return self.driver
                    await self._wait()
        except TimeoutError:
            raise KafkaDeadlineExceeded(
                f"no {self.role} was ready in time",
                dependency=self._health.name,
                operation=operation,
                elapsed=loop.time() - began,
            ) from None

    def driver_failed(self, driver: DriverT, error: BaseException, *, replace: bool = True) -> None:
        """Have a driver closed, detached and replaced; ignored if it is not attached any more.

        Without `replace`, no driver follows, and `ready()` raises this error from now on.
        """
        if driver is not self.driver or self._monitor is None:
            return
        if not replace:
            failure = error if isinstance(error, Exception) else KafkaError(repr(error))
            self.halted = True
            self.permanent_error = self._clean(failure)
        self._monitor.report(error)

    def resume(self) -> None:
        """Attach a driver again after one that was not replaced."""
        if not self.halted or self.closed:
            return
        self.halted = False
        self.permanent_error = None
        if self._task is None or self._task.done():
            self._start_task()

    def liveness_failure(self) -> str | None:
        """Return why no driver can ever be attached again, or None."""
        if self.halted or self.closed:
            return None
        end = describe_task_end(self._task)
        return None if end is None else f"the {self.role}'s supervisor has ended: {end}"

    async def aclose(self, timeout: float, *, graceful: bool = True) -> None:
        """Stop the driver, detach it, and raise `KafkaClosed` in all waiting calls.

        Returns within the timeout and a short time for a forced stop. A second call waits for the
        first. If the call is cancelled, closing continues in the background within the timeout.
        """
        task = self._task
        if not self.closed:
            self.closed = True
            self._graceful = graceful and timeout > 0
            self._closing_until = asyncio.get_running_loop().time() + timeout
            if self._subscription is not None:
                self._subscription.remove()
            self._wake()
            if task is not None:
                task.cancel()
        if task is not None and not task.done():
            await asyncio.wait([task], timeout=timeout + _FORCE_TIME)

    async def _wait(self) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        finally:
            with contextlib.suppress(ValueError):
                self._waiters.remove(waiter)

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        wake(waiters)

    def _check_available(
        self, operation: str, began: float, *, fails: bool, fails_now: bool
    ) -> None:
        """Raise if waiting for a driver does not help."""
        elapsed = asyncio.get_running_loop().time() - began
        name, cause = self._health.name, self._health.cause
        if self.closed:
            raise KafkaClosed(
                f"the {self.role} was closed", dependency=name, operation=operation, elapsed=elapsed
            )
        if self.permanent_error is not None:
            note = f"{name}: no {self.role} can start because of this"
            raise copy_with_note(self.permanent_error, note) from self.permanent_error
        if self._health.available or cause is None:
            return
        if fails_now or (fails and cause.permanent):
            detail = self._health.detail or cause.value
            raise unavailable_because_of(cause)(
                f"Kafka is down: {detail}", dependency=name, operation=operation, elapsed=elapsed
            )

    def _start_task(self) -> None:
        self._task = asyncio.get_running_loop().create_task(
            self._run(), name=f"resilient-io kafka {self.role} supervisor", context=self.context()
        )
        self._task.add_done_callback(log_task_death)

    def _health_changed(self, change: Change) -> None:
        self._wake()
        if self._monitor is not None:
            self._monitor.health_changed(change)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while not self.halted:
            try:
                await self._health.until_up()
            except Closed:  # by another client that shares it: no event will ever end the wait
                self.halted = True
                self.permanent_error = KafkaClosed(
                    "its health was closed", dependency=self._health.name, operation=self.role
                )
                self._wake()
                return
            began = loop.time()
            error = await self._run_driver()
            if self._is_final is not None and self._is_final(error):
                self.halted, self.permanent_error = True, error
            if classify_error(error).kind == "permanent" and self.permanent_error is None:
                self.permanent_error = error
            pause = self._backoff.failed(error, loop.time() - began, final=self.halted)
            self._wake()
            if not self.halted:
                await asyncio.sleep(pause)

    async def _run_driver(self) -> Exception:
        """Run one driver, and return the error because of which it was closed."""
        try:
            driver = self._build()
        # The boundary to the driver's constructor and the application's options, whose exceptions
        # `ready()` raises.
        except Exception as refused:  # noqa: BLE001
            self.permanent_error = self._clean(refused)
            return self.permanent_error
        notify_on_connection_loss(driver, self._connection_lost)
        pace_metadata_requests(driver)
        error: Exception | None = None
        started = attached = False
        try:
            await start_driver(driver, self._start_timeout, context=self.context())
            started = True
            if self._prepare is not None:
                async with asyncio.timeout(self._start_timeout):
                    await self._prepare(driver)
            self._monitor = DriverMonitor(
                driver,
                target=self._target,
                health=self._health,
                timeout=self._policy.response_timeout,
                on_failure=self._driver_unusable,
            )
            attached = True
            self._attach(driver)
            error = self._clean(await self._monitor.wait_for_failure())
            return error  # noqa: TRY300
        # The supervisor's boundary: whatever ends one driver, the next one may work.
        except Exception as failure:  # noqa: BLE001
            error = self._clean(failure)
            if not self.generation and isinstance(failure, (TypeError, ValueError)):
                # The value of an option that aiokafka cannot use: waiting does not help.
                self.permanent_error = error
            return error
        finally:
            if self._monitor is not None:
                self._monitor.close()
            self.driver = self._monitor = None
            if started:
                timeout = self._stop_timeout
                if self.closed:
                    left = self._closing_until - asyncio.get_running_loop().time()
                    timeout = left if self._graceful else 0.0
                why = "closed" if error is None else "replaced"
                await stop_driver(
                    driver,
                    timeout,
                    reason=f"the {self.role} was {why}",
                    error=error,
                    context=self.context(),
                )
            if attached and self._on_detached is not None:
                self._on_detached(driver, error)

    def _clean(self, error: Exception) -> Exception:
        return without_secrets(error, self._target.secrets())

    def _attach(self, driver: DriverT) -> None:
        self.generation += 1
        self.permanent_error = None
        self.driver = driver
        self._backoff.attached(self.generation)
        if self._on_attached is not None:
            self._on_attached(driver)
        self._wake()

    def _driver_unusable(self) -> None:
        self.driver = None

    def _connection_lost(self, connection: Connection) -> None:
        """Trigger a probe before a call fails: a broker that stops closes its connections."""
        if not self.closed:
            self._health.failed(
                Cause.RESET, f"{connection.host}:{connection.port} closed a connection"
            )
