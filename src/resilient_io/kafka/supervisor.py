"""Owns one aiokafka instance: starts it, watches it, replaces it, ends it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Generic

from aiokafka.errors import KafkaError

from resilient_io.errors import Closed
from resilient_io.health import Cause
from resilient_io.tasks import describe_task_end, log_task_death

from .admission import Admission
from .classification import meaning_of
from .errors import KafkaClosed
from .instance import end_instance, start_instance
from .internals import notice_hang_ups
from .protocols import DriverT
from .quiet import Tally, context_of_driver
from .setbacks import Setbacks
from .watch import Watch

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable
    from contextvars import Context

    from resilient_io.health import Change, Dependency, Subscription
    from resilient_io.retry import RetryPolicy, WhileDown

    from .protocols import Connection

__all__ = ["Supervisor"]

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
