"""Mistakes in the client that the simulation must find.

Each is a realistic mistake, written as a replacement of source text. It does no harm until a
fault, a cancellation or a certain order of events reaches it.
"""

from __future__ import annotations

from dataclasses import dataclass

PACKAGE = "resilient_io"


@dataclass(frozen=True, slots=True)
class PlantedBug:
    """A mistake in one file of the client.

    Attributes:
        name: A unique name.
        area: What it breaks, a subject such as retries or ordering.
        file: The path of the file in the package.
        old: Text that occurs exactly once in the file.
        new: The text that replaces it.
        effect: What a user of the client would suffer.
    """

    name: str
    area: str
    file: str
    old: str
    new: str
    effect: str

    @property
    def module(self) -> str:
        """The name of the module that it changes."""
        return f"{PACKAGE}.{self.file.removesuffix('.py').replace('/', '.')}"

    def change(self, source: str) -> str:
        """Return the source with the bug.

        Raises:
            ValueError: The text to replace does not occur exactly once.
        """
        found = source.count(self.old)
        if found != 1:
            raise ValueError(
                f"the bug {self.name!r} replaces text that must occur once in {self.file}, "
                f"but it occurs {found} times: adapt `old` in {__name__}"
            )
        return source.replace(self.old, self.new)


BUGS: tuple[PlantedBug, ...] = (
    # -- retries ---------------------------------------------------------------------------
    PlantedBug(
        "repeat-ignores-effect",
        "retries",
        "redis/executor.py",
        "return failing.call.effect <= failing.repeatable",
        "return failing.call.effect < Effect.DANGEROUS",
        "An INCR whose reply was lost is sent again, and counts twice.",
    ),
    PlantedBug(
        "lost-call-counts-as-unsent",
        "retries",
        "redis/attempt.py",
        "failure, Progress.MAYBE_APPLIED, timed_out=timed_out, connection=reason.connection",
        "failure, Progress.NOT_SENT, timed_out=timed_out, connection=reason.connection",
        "A write that was applied is repeated, or reported as not applied.",
    ),
    PlantedBug(
        "late-call-counts-as-unsent",
        "retries",
        "redis/attempt.py",
        """progress=Progress.MAYBE_APPLIED,
                cause=Cause.TIMED_OUT,
                detail="no reply before the deadline",""",
        """progress=Progress.NOT_SENT,
                cause=Cause.TIMED_OUT,
                detail="no reply before the deadline",""",
        "A write that the server applied after the caller's deadline is reported as not applied.",
    ),
    PlantedBug(
        "promoted-call-counts-as-unsent",
        "retries",
        "redis/response_queue.py",
        "adopt(entry, len(entries) - index)",
        "adopt(entry, len(entries) - index - 1)",
        "The last call on a silent connection is reported as not sent, although it was applied.",
    ),
    PlantedBug(
        "lost-pop-counts-as-unsent",
        "retries",
        "redis/exclusive_call.py",
        "failure, Progress.MAYBE_APPLIED, timed_out=timed_out, expired=expired",
        "failure, Progress.NOT_SENT, timed_out=timed_out, expired=expired",
        "A BLPOP whose reply was lost pops a second element; the first is gone.",
    ),
    PlantedBug(
        "attempts-not-counted",
        "retries",
        "retry.py",
        "        self._state.attempt_number = made\n",
        "",
        "A refused call is repeated until its deadline, whatever the policy's `attempts` is.",
    ),
    PlantedBug(
        "cancelled-calls-shift-positions",
        "retries",
        "redis/connection.py",
        "        self.flushed += 1\n",
        "",
        "After a call was cancelled, a later one that was applied is reported as not sent.",
    ),
    PlantedBug(
        "timeout-hides-unknown-outcome",
        "retries",
        "redis/executor.py",
        """    if failing.progress is Progress.MAYBE_APPLIED:
        return RedisOutcomeUnknown
    if failed.overloaded:
        return RedisOverloaded
    if failed.expired or failed.timed_out:
        return RedisDeadlineExceeded
""",
        """    if failed.overloaded:
        return RedisOverloaded
    if failed.expired or failed.timed_out:
        return RedisDeadlineExceeded
    if failing.progress is Progress.MAYBE_APPLIED:
        return RedisOutcomeUnknown
""",
        "A write that timed out raises DeadlineExceeded, which promises that nothing was applied.",
    ),
    # -- fencing ---------------------------------------------------------------------------
    PlantedBug(
        "fence-misses-name",
        "fencing",
        "redis/driver_connection.py",
        'if f":{identity(name)} " in text:',
        'if text.endswith(f" name={name}"):',
        "A dead connection is never killed, so an old SET that is held in the network "
        "overwrites a newer one.",
    ),
    PlantedBug(
        "kill-before-lookup",
        "fencing",
        "redis/driver_connection.py",
        '        listed = await query("CLIENT", "LIST", "ID", client_id)\n',
        """        await query("CLIENT", "KILL", "ID", client_id)
        listed = await query("CLIENT", "LIST", "ID", client_id)
""",
        "After a restart of the server, when IDs start again, the client kills the connection "
        "of another client.",
    ),
    PlantedBug(
        "fenced-when-closed",
        "fencing",
        "redis/connection.py",
        """        if not self._responses.fail_all(lost):
            # Nothing that this connection sent can still be applied, so there is nothing to fence.
            self.fenced.set_result(True)
""",
        """        self._responses.fail_all(lost)
        self.fenced.set_result(True)
""",
        "Calls are repeated while the first copy may still arrive, which then undoes later writes.",
    ),
    PlantedBug(
        "writes-before-fence",
        "fencing",
        "redis/multiplexer.py",
        "if connection is None or self._closing or self._reconnector.fencing:",
        "if connection is None or self._closing:",
        "New writes on the other connection are overwritten by those of the dead one.",
    ),
    PlantedBug(
        "retired-connection-not-fenced",
        "fencing",
        "redis/multiplexer.py",
        "        self._reconnector.fence(connection, self._survivor_of(connection))\n",
        """        if not connection.retired:
            self._reconnector.fence(connection, self._survivor_of(connection))
""",
        "Calls that were in flight when a connection was retired wait until their deadline, and "
        "may be applied after newer ones.",
    ),
    PlantedBug(
        "overwrite-ignores-fence",
        "fencing",
        "redis/executor.py",
        "overwrites = self.call.effect is not Effect.READ",
        "overwrites = self.call.effect > Effect.IDEMPOTENT",
        "Where CLIENT KILL is forbidden, a SET is repeated although its first copy may still be "
        "applied, over a newer value.",
    ),
    PlantedBug(
        "forbidden-kill-counts-as-fenced",
        "fencing",
        "redis/driver_connection.py",
        '        return "No such client" in str(error)',
        "        return True",
        "Where an ACL forbids CLIENT KILL, an abandoned SET overwrites an acknowledged one.",
    ),
    # -- ordering --------------------------------------------------------------------------
    PlantedBug(
        "put-back-reversed",
        "ordering",
        "redis/waiting.py",
        "for entry, data in reversed(unsent):",
        "for entry, data in unsent:",
        "Calls that a lost connection had not written are sent in the opposite order.",
    ),
    PlantedBug(
        "waiting-calls-last-first",
        "ordering",
        "redis/waiting.py",
        "request = queue.popleft()",
        "request = queue.pop()",
        "Calls that waited for a connection are sent in the opposite order.",
    ),
    PlantedBug(
        "one-waiting-call-sent",
        "ordering",
        "redis/multiplexer.py",
        "while self._waiting and not self._stale and not self._waiting.blocked:",
        "if self._waiting and not self._stale and not self._waiting.blocked:",
        "New calls overtake those that wait, which are sent one at a time or expire.",
    ),
    PlantedBug(
        "retired-connection-keeps-calls",
        "ordering",
        "redis/multiplexer.py",
        "            self._waiting.put_back(connection.retire())\n",
        "            connection.retire()\n",
        "Calls queued on a connection that is retired are never sent.",
    ),
    PlantedBug(
        "first-connection-preferred",
        "ordering",
        "redis/multiplexer.py",
        """        if preferred is not None and not preferred.busy:
            return preferred
""",
        "",
        "When the first connection is open again, a new write overtakes those in flight on the "
        "second.",
    ),
    # -- reply matching --------------------------------------------------------------------
    PlantedBug(
        "abandoned-call-leaves-queue",
        "reply matching",
        "redis/multiplexer.py",
        """        if connection is None:
            self._waiting.note_abandoned()
""",
        """        if connection is None:
            self._waiting.note_abandoned()
        elif request.sent:
            with contextlib.suppress(ValueError):
                connection._responses.waiting.remove(request)
""",
        "After a call was cancelled, the following callers get each other's replies.",
    ),
    PlantedBug(
        "cancelled-reply-goes-to-next",
        "reply matching",
        "redis/response_queue.py",
        """            answer((next_entry(), reply))
""",
        """            entry = next_entry()
            while entry.done() and self.waiting:
                entry = next_entry()
            answer((entry, reply))
""",
        "The reply to a cancelled call becomes the result of the next one.",
    ),
    PlantedBug(
        "timed-out-connection-reused",
        "reply matching",
        "redis/exclusive_call.py",
        "clean = not isinstance(reply, AttemptFailed | _StillWaiting)",
        "clean = connection.is_connected",
        "The late reply to a BLPOP that timed out becomes the result of another caller's call.",
    ),
    PlantedBug(
        "promoted-call-not-in-queue",
        "reply matching",
        "redis/response_queue.py",
        "entries[index] = adopt(",
        "adopt(",
        "The reply to a call that waited long is dropped: it ends with an unknown outcome, or "
        "never.",
    ),
    PlantedBug(
        "head-replies-dropped",
        "reply matching",
        "redis/batch.py",
        "            self._answers += answers\n",
        "            self._answers = answers + self._answers\n",
        "A pipeline that was continued after a lost connection returns the replies of its tail "
        "as those of its head.",
    ),
    PlantedBug(
        "undecodable-reply-skipped",
        "reply matching",
        "redis/response_queue.py",
        """                # hiredis 3.5 raises for this one reply and stays in sync.
                reply = error
""",
        "                continue  # hiredis 3.5 raises for this one reply and stays in sync\n",
        "A value that is not UTF-8 shifts the replies of all following calls by one.",
    ),
    # -- budget ----------------------------------------------------------------------------
    PlantedBug(
        "refund-forgotten",
        "budget",
        "redis/executor.py",
        "                self.budget.refund(decision.paid)\n",
        '                self.health.note("retry cancelled")\n',
        "Calls that are cancelled before they are repeated use up the budget of the others.",
    ),
    PlantedBug(
        "retry-not-charged",
        "budget",
        "retry.py",
        """            return False
        self._tokens = tokens - cost
""",
        "            return False\n",
        "Nothing limits retries in a long outage.",
    ),
    PlantedBug(
        "refund-above-capacity",
        "budget",
        "retry.py",
        "self._tokens = min(self.capacity, self.tokens + cost)",
        "self._tokens = self.tokens + cost",
        "Cancelled calls can make the budget larger than the policy permits.",
    ),
    PlantedBug(
        "budget-overdrawn",
        "budget",
        "retry.py",
        "if tokens < cost:",
        "if tokens <= 0:",
        "The budget becomes negative, and later calls are not repeated.",
    ),
    PlantedBug(
        "successes-earned-again",
        "budget",
        "retry.py",
        "        self._seen = seen\n",
        "",
        "Earlier successes refill the budget at every retry, so nothing limits retries.",
    ),
    PlantedBug(
        "shared-payment-refunded-by-each",
        "budget",
        "redis/executor.py",
        "return 0.0 if paid else None",
        "return price if paid else None",
        "Cancelled calls refund more tokens than they paid, so retries have no limit.",
    ),
    PlantedBug(
        "cancelled-calls-keep-load",
        "budget",
        "redis/connection.py",
        "        self.load -= size + CALL_COST\n",
        "",
        "Calls that are cancelled in the queue count as in flight until the connection accepts "
        "none.",
    ),
    PlantedBug(
        "pipelines-free-too-much",
        "budget",
        "redis/connection.py",
        "self.load += size + count * CALL_COST",
        "self.load += size + CALL_COST",
        "The number of bytes in flight becomes negative, so they have no limit.",
    ),
    # -- health ----------------------------------------------------------------------------
    PlantedBug(
        "limitation-never-ends",
        "health",
        "health/machine.py",
        "self._limitation, self._not_serving = None, False",
        "self._not_serving = False",
        "After the server once refused new connections, the dependency stays DEGRADED.",
    ),
    PlantedBug(
        "reopened-connection-stays-lost",
        "health",
        "redis/multiplexer.py",
        '        self.reports.part_back(f"connection {slot}")\n',
        "",
        "After one connection was lost for a while, the dependency stays DEGRADED.",
    ),
    PlantedBug(
        "refusal-of-a-script-ignored",
        "health",
        "redis/executor.py",
        "                self.report_refusals(call, [error])\n",
        "",
        "A client that runs only scripts does not notice that the server is loading.",
    ),
    PlantedBug(
        "unread-reply-is-a-sign-of-life",
        "health",
        "redis/multiplexer.py",
        """        request.future.cancel()
        self.reports.reply_unclear()
""",
        "        request.future.cancel()\n",
        "A loading server stays UP while every caller gives up before its refusal arrives.",
    ),
    PlantedBug(
        "silence-not-reported",
        "health",
        "redis/multiplexer.py",
        "        self.reports.failed(silence.cause, silence.detail)",
        '        self.health.note("silent", detail=silence.detail)',
        "A frozen server is published as DOWN much later.",
    ),
    PlantedBug(
        "error-before-down",
        "health",
        "redis/executor.py",
        """        if failed.cause is Cause.RESET:
            # Health publishes an outage before callers see an error.
            await self._health_of(failing.call).wait_for_probe(_PROBE_BEFORE_ERROR)
""",
        "",
        "Callers see an error while the health of a dead server is still UP.",
    ),
    PlantedBug(
        "one-timeout-is-proof",
        "health",
        "health/prober.py",
        "definite=failure.definite or failure.cause.permanent",
        "definite=True",
        "One slow answer makes the dependency DOWN, and calls fail without a reason.",
    ),
    PlantedBug(
        "suspicion-checked-on-old-connection",
        "health",
        "redis/probe.py",
        "elif suspicious or self._doubts_open or multiplexer.bound",
        "elif self._doubts_open or multiplexer.bound",
        "One connection that a middlebox forgot makes a healthy server DOWN.",
    ),
    PlantedBug(
        "recovery-not-passed-on",
        "health",
        "redis/runtime.py",
        """        self.multiplexer.refresh()
        self.subscriptions.refresh()
        if not self.health.available:
            self.pool.drop_all()
""",
        """        self.subscriptions.refresh()
        if not self.health.available:
            self.multiplexer.refresh()
            self.pool.drop_all()
""",
        "Calls that wait for a server that is loading still wait when it serves again.",
    ),
    PlantedBug(
        "one-waiter-woken",
        "health",
        "health/subscriptions.py",
        "waiters, self._waiters = self._waiters, []",
        "waiters, self._waiters = self._waiters[:1], self._waiters[1:]",
        "When the server is up again, all but one of the waiting calls keep waiting.",
    ),
    PlantedBug(
        "second-probe-not-hurried",
        "health",
        "health/prober.py",
        "        self._suspected = machine.contact is not State.DOWN\n",
        "",
        "After a probe that timed out, the next one waits for the interval, so DOWN is late.",
    ),
    PlantedBug(
        "old-replies-overrule-probe",
        "health",
        "health/prober.py",
        "if self._last_reply() > began and not failure.answered:",
        "if self._last_reply() > began - self._settings.interval and not failure.answered:",
        "A failed probe is ignored because of replies before it, so DOWN is late.",
    ),
    # -- closing ---------------------------------------------------------------------------
    PlantedBug(
        "waiting-calls-not-failed",
        "closing",
        "redis/waiting.py",
        """        self._closed = reason
        self.fail_all(reason)
""",
        "        self._closed = reason\n",
        "Calls that wait for a connection when the client is closed wait until their deadline.",
    ),
    PlantedBug(
        "retiring-connection-left-open",
        "closing",
        "redis/multiplexer.py",
        "connections = [*self.connections, *self._retiring]",
        "connections = self.connections",
        "A connection that is being replaced stays open after the client was closed.",
    ),
    PlantedBug(
        "acquired-connections-left-open",
        "closing",
        "redis/pool.py",
        "for connection in [*self._idle, *self._acquired]:",
        "for connection in list(self._idle):",
        "A BLPOP without a time limit continues after the client was closed or the server is DOWN.",
    ),
    PlantedBug(
        "lookup-left-running",
        "closing",
        "redis/runtime.py",
        "        await self.target.aclose()  # after the probe, which must not take this for a "
        "failure\n",
        "",
        "A name lookup that hangs is still running after the client was closed.",
    ),
    PlantedBug(
        "probe-of-closed-client",
        "closing",
        "redis/runtime.py",
        """        if self._attachment is not None:
            await self._attachment.detach()
""",
        "",
        "The probe of a closed client continues, and opens connections, while another client "
        "shares its health.",
    ),
    PlantedBug(
        "cancelled-close-stops",
        "closing",
        "redis/runtime.py",
        """            await asyncio.wait([closing])
            closing.result()
""",
        "            await closing\n",
        "Cancelling `aclose()` leaves connections and tasks open, and it cannot be called again.",
    ),
    PlantedBug(
        "reopened-during-close",
        "closing",
        "redis/lifetime.py",
        """            if self.closing is not None:
                await asyncio.wait([self.closing])
            while""",
        "            while",
        "A client that is opened again while it closes has no connections and no probe.",
    ),
    PlantedBug(
        "fences-not-settled",
        "closing",
        "redis/multiplexer.py",
        """            self._unfenced.append(lost)
            lost.settle(fenced=False)
""",
        "            self._unfenced.append(lost)\n",
        "Calls that are about to be repeated when the client is closed wait until their deadline.",
    ),
    PlantedBug(
        "waits-for-connection-not-ended",
        "closing",
        "redis/pool.py",
        """        self.closed = True
        for wait in self._waits.values():
            wait.end()
""",
        "        self.closed = True\n",
        "A BLPOP that waits for a connection when the client is closed ends late, or with the "
        "wrong error.",
    ),
    # -- cancellation ----------------------------------------------------------------------
    PlantedBug(
        "backoff-swallows-cancellation",
        "cancellation",
        "redis/executor.py",
        """        waited = False
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(decision.after):
                    await self._closing.wait()
            waited = True
        finally:
            if not waited:
                self.budget.refund(decision.paid)
""",
        """        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(decision.after):
                    await self._closing.wait()
        except asyncio.CancelledError:
            self.budget.refund(decision.paid)
""",
        "A call that is cancelled during a backoff continues, and its write is applied.",
    ),
    PlantedBug(
        "promoted-call-not-abandoned",
        "cancellation",
        "redis/client.py",
        "            multiplexer.abandon_future(future)\n",
        "            future.cancel()\n",
        "A write that is cancelled when its connection dies is sent on the next one.",
    ),
    PlantedBug(
        "cancelled-waiting-call-sent",
        "cancellation",
        "redis/waiting.py",
        """        if request.sendable():
            connection.send_request(request)
""",
        "        connection.send_request(request)\n",
        "A write that was cancelled while it waited for a connection is sent when there is one.",
    ),
    PlantedBug(
        "cancelled-queued-call-sent",
        "cancellation",
        "redis/connection.py",
        "cancelled = any(map(_is_done, queue))",
        "cancelled = all(map(_is_done, queue))",
        "A write that was cancelled before its loop tick ended is sent together with the others.",
    ),
    PlantedBug(
        "cancelled-pop-not-recovered",
        "cancellation",
        "redis/exclusive_call.py",
        "return await connection.read_response(disconnect_on_error=False)",
        "return await connection.read_response()",
        "A cancelled BLPOP loses the element that the server gave it.",
    ),
    PlantedBug(
        "element-put-back-at-wrong-end",
        "cancellation",
        "redis/pool.py",
        'UNDO = {"BLPOP": "LPUSH", "BRPOP": "RPUSH",',
        'UNDO = {"BLPOP": "RPUSH", "BRPOP": "LPUSH",',
        "The element of a cancelled BLPOP is handled after all that were pushed later.",
    ),
    PlantedBug(
        "cancelled-acquire-keeps-room",
        "cancellation",
        "redis/pool.py",
        """        finally:
            if not acquired:
                self._room.release()
""",
        """        except Exception:
            self._room.release()
            raise
""",
        "Each blocking call that is cancelled while it connects takes one of the permitted "
        "connections forever.",
    ),
    PlantedBug(
        "cancelled-connect-leaks",
        "cancellation",
        "redis/pool.py",
        """            if not waited:
                task.add_done_callback(self._keep_orphan)
""",
        "",
        "A blocking call that is cancelled while it connects leaves an open connection.",
    ),
    # -- deadlines -------------------------------------------------------------------------
    PlantedBug(
        "wait-for-connection-unlimited",
        "deadlines",
        "redis/pool.py",
        "timeout = asyncio.timeout_at(until)\n",
        "timeout = asyncio.timeout_at(None)\n",
        "A BLPOP waits for a connection beyond its deadline, as long as the outage lasts.",
    ),
    PlantedBug(
        "watchdog-not-armed",
        "deadlines",
        "redis/connection.py",
        "        self._watchdog.arm(self.clock)\n",
        "",
        "Calls on a connection whose packets vanish never end.",
    ),
    PlantedBug(
        "cancelled-calls-not-watched",
        "deadlines",
        "redis/watchdog.py",
        """        if not waiting:
            return
        if self._loop""",
        """        if all(entry.done() for entry in waiting):
            return
        if self._loop""",
        "A silent connection whose callers gave up stays in use, and delays each new call.",
    ),
    PlantedBug(
        "deadline-ignored-by-shortcut",
        "deadlines",
        "redis/client.py",
        "limit < multiplexer.time() + 1.5 * self._policy.response_timeout:",
        "limit < multiplexer.time():",
        "A call in `with deadline(0.5)` takes two seconds when the server does not answer.",
    ),
    PlantedBug(
        "clock-ignores-deadline",
        "deadlines",
        "redis/attempt.py",
        "            wake = min(wake, limit)\n",
        "            wake = max(wake, limit)\n",
        "Calls end long after their deadline.",
    ),
    PlantedBug(
        "enclosing-deadline-ignored",
        "deadlines",
        "redis/executor.py",
        """    if enclosing is not None and enclosing < limit:
        limit = enclosing
""",
        "",
        "Calls that are repeated or wait for a connection ignore `with deadline(...)`.",
    ),
    PlantedBug(
        "deadline-restarts-with-each-attempt",
        "deadlines",
        "redis/executor.py",
        "limit = started + policy.deadline +",
        "limit = asyncio.get_running_loop().time() + policy.deadline +",
        "A call that is repeated may take its whole deadline for each attempt.",
    ),
    PlantedBug(
        "blocking-call-counts-as-silence",
        "deadlines",
        "redis/connection.py",
        "        self.extra_timeout = max(self.extra_timeout, request.extra_timeout)\n",
        "",
        "A BLPOP of a single-connection client that waits for longer than the response timeout "
        "loses its connection.",
    ),
    PlantedBug(
        "handshake-unlimited",
        "deadlines",
        "redis/connect.py",
        """        async with StallTolerantTimeout(timeout):
            places = await target.places()
""",
        """        async with StallTolerantTimeout(None):
            places = await target.places()
""",
        "A connection whose first packet is lost is never opened again.",
    ),
    # -- pipelines -------------------------------------------------------------------------
    PlantedBug(
        "answered-head-sent-again",
        "pipelines",
        "redis/batch.py",
        'data, count = b"".join(self._packed[done:]), len(self._packed) - done',
        'data, count = b"".join(self._packed), len(self._packed)',
        "A pipeline whose first commands were answered is sent again with them, so their INCRs "
        "count twice.",
    ),
    PlantedBug(
        "batch-put-back-repeatedly",
        "pipelines",
        "redis/waiting.py",
        """            elif data:
                request = entry
                request.note_late()
            else:
                continue  # another command of a request that its first entry moves
""",
        """            else:
                request = entry
                request.note_late()
""",
        "A pipeline that its connection had not written is sent once for each of its commands.",
    ),
    PlantedBug(
        "queued-replies-count-as-answers",
        "pipelines",
        "redis/batch.py",
        """            if not self._transaction:
                arrived = request.replies[len(self._loads) :]
                self._clean(arrived)
                self._settle(arrived)
""",
        """            arrived = request.replies[len(self._loads) :]
            self._clean(arrived)
            self._settle(arrived)
""",
        "A transaction that loses its connection after QUEUED counts as answered, and is "
        "executed twice.",
    ),
    PlantedBug(
        "watching-connection-reused",
        "pipelines",
        "redis/pipeline.py",
        "clean = not self.watching and connection.is_connected",
        "clean = connection.is_connected",
        "The next caller's transaction fails because of keys that another one watched.",
    ),
    PlantedBug(
        "lost-watch-unnoticed",
        "pipelines",
        "redis/pipeline.py",
        """            if watched:
                raise _watch_lost("it is closed")
""",
        "",
        "A transaction is executed on a new connection although its watched keys have changed.",
    ),
    PlantedBug(
        "mixed-batch-repeated",
        "pipelines",
        "redis/commands/spec.py",
        "return max(Effect.NON_IDEMPOTENT, *pending)",
        "return max(pending)",
        "A pipeline that reads a key and then sets it is repeated, and reads its own value.",
    ),
    PlantedBug(
        "one-refusal-repeats-batch",
        "pipelines",
        "redis/batch.py",
        "if not all(isinstance(reply, Exception) and refusal(reply) for reply in replies):",
        "if not any(isinstance(reply, Exception) and refusal(reply) for reply in replies):",
        "A pipeline of which the server refused one command is sent again, also those that were "
        "applied.",
    ),
    PlantedBug(
        "lost-state-not-reported",
        "pipelines",
        "redis/session.py",
        "        self._set, self.lost = [], self._set\n",
        "        self._set = []\n",
        "After a lost connection, the commands of a MULTI are executed one by one outside it.",
    ),
    PlantedBug(
        "repeated-outside-transaction",
        "pipelines",
        "redis/attempt.py",
        "if multiplexer.bound_state.losses != losses:",
        "if multiplexer.bound_state.losses < losses:",
        "A command of a MULTI is repeated outside it after the connection was lost.",
    ),
    # -- locks and scripts -----------------------------------------------------------------
    PlantedBug(
        "unknown-acquire-counts-as-failed",
        "locks and scripts",
        "redis/lock.py",
        "            return await self._number(token, unknown)\n        return bool(reply)",
        "            return False\n        return bool(reply)",
        "A lock that was taken while the reply was lost is held by no one until it times out.",
    ),
    PlantedBug(
        "unknown-release-ignored",
        "locks and scripts",
        "redis/lock.py",
        """            if await self._holds(expected_token, unknown):
                await super().do_release(expected_token)
""",
        "            if await self._holds(expected_token, unknown):\n                pass\n",
        "A lock whose release was not applied stays taken until it times out.",
    ),
    PlantedBug(
        "lock-of-another-counts-as-own",
        "locks and scripts",
        "redis/lock.py",
        "        if stored is None or self._encode(stored) != self._encode(token):",
        "        if stored is None:",
        "A caller whose attempt is uncertain believes that it holds the lock of another.",
    ),
    PlantedBug(
        "unreadable-owner-counts-as-free",
        "locks and scripts",
        "redis/lock.py",
        "            raise unknown from None\n",
        "            return False\n",
        "A lock that may be held is reported as not acquired if its owner cannot be read.",
    ),
    PlantedBug(
        "script-error-counts-as-refusal",
        "locks and scripts",
        "redis/attempt.py",
        "native = command.spec.known and not name.startswith(SCRIPTED)",
        "native = command.spec.known",
        "A script that wrote before one of its commands was refused is executed again.",
    ),
    # -- clients that share a pool -----------------------------------------------------------
    PlantedBug(
        "dropped-client-still-counts",
        "sharing",
        "redis/client.py",
        """        self._leave(kept=kept)
        if kept or""",
        "        if kept or",
        "The connections of a pool stay open forever if one of its clients was dropped.",
    ),
    PlantedBug(
        "unused-connections-closed-at-once",
        "sharing",
        "redis/runtime.py",
        "        if self.multiplexer.time() >= due:",
        "        if self.multiplexer.time() >= due - _KEPT_UNUSED:",
        "Each request of a web service opens its connections again.",
    ),
    PlantedBug(
        "close-ends-the-calls-of-others",
        "sharing",
        "redis/client.py",
        """        if not close_all:
            return
""",
        "",
        "Closing one client of a pool fails the calls of the others.",
    ),
    PlantedBug(
        "dropped-client-stays-open",
        "sharing",
        "redis/client.py",
        "        runtime.close_later(self.connection_pool.aclose if owned else _nothing)\n",
        "",
        "A client that was dropped without a close leaves its connections and tasks behind.",
    ),
    PlantedBug(
        "reopened-client-stays-closed",
        "sharing",
        "redis/client.py",
        "            twin._closed = False  # only this client knows; it is asked below\n",
        "",
        "A traced client whose first call is made while it is closed stays closed.",
    ),
    PlantedBug(
        "name-not-set-on-new-connections",
        "sharing",
        "redis/session.py",
        "            self.client_name = _text(operands[0]) or None\n",
        "            self.client_name = None\n",
        "A connection that is opened after CLIENT SETNAME has another name than the others.",
    ),
)
