"""The probe task: when it probes, and what the results mean."""

import asyncio
import contextvars
import itertools
import logging
import math
import random

import pytest

from resilient_io.deadlines import current_deadline, deadline
from resilient_io.errors import DeadlineExceeded
from resilient_io.health import (
    Cause,
    Dependency,
    HealthSettings,
    ProbeDegraded,
    ProbeFailed,
    State,
    loop_lag,
)

UP, DOWN, DEGRADED, UNKNOWN = State.UP, State.DOWN, State.DEGRADED, State.UNKNOWN


class Server:
    """A server to probe: `mode` is ok, refused, reset, mute, replica, auth or bug."""

    def __init__(self, mode="ok"):
        self.mode = mode
        self.probes = []  # (time, suspicious)
        self.heard = -math.inf
        self.answer_in = 0.001

    async def probe(self, suspicious):
        loop = asyncio.get_running_loop()
        self.probes.append((loop.time(), suspicious))
        if self.mode == "refused":
            raise ProbeFailed(Cause.REFUSED, "connection refused", definite=True)
        if self.mode == "reset":
            raise ProbeFailed(Cause.RESET, "", definite=True)
        if self.mode == "auth":
            raise ProbeFailed(Cause.AUTH, "WRONGPASS")
        if self.mode == "bug":
            raise ZeroDivisionError
        if self.mode == "cancels itself":
            raise asyncio.CancelledError
        if self.mode == "mute":
            await asyncio.Event().wait()
        await asyncio.sleep(self.answer_in)
        for _ in range(5):  # an answer passes several callbacks before it is here
            await asyncio.sleep(0)
        if self.mode == "replica":
            raise ProbeDegraded(Cause.READ_ONLY, "role is replica")
        return self.answer_in

    def times(self, since=0.0):
        return [at for at, _ in self.probes if at >= since]


@pytest.fixture
def server():
    return Server()


@pytest.fixture
async def watched(server):
    dependency = Dependency("redis", rng=random.Random(1))
    dependency.start(server.probe, last_reply=lambda: server.heard)
    yield dependency
    await dependency.aclose()
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert not loop_lag._watches


def now():
    return asyncio.get_running_loop().time()


async def until_down(dependency):
    async for change in dependency.watch():
        if change.state is DOWN:
            return


async def test_first_probe_starts_immediately(server, watched):
    await watched.until_up(1)
    assert server.probes == [(0.0, True)]
    assert watched.latency == 0.001


async def test_idle_dependency_is_probed_once_per_interval(server, watched):
    await asyncio.sleep(10.5)
    pauses = [later - earlier for earlier, later in itertools.pairwise(server.times())]
    assert len(pauses) == 10
    assert pauses == pytest.approx([1.0] * 10, abs=0.002)
    assert not any(suspicious for _, suspicious in server.probes[1:])


async def test_no_probe_is_sent_while_replies_arrive(server, watched):
    await watched.until_up()
    for _ in range(100):
        await asyncio.sleep(0.5)
        server.heard = now()
    assert len(server.probes) == 1
    last = server.heard
    await asyncio.sleep(1.5)
    assert last == pytest.approx(50.001)
    assert server.times()[1:] == [51.0]  # the beat before the interval is over


async def test_refused_probe_makes_it_down_immediately(server, watched):
    await watched.until_up()
    server.mode = "refused"
    await asyncio.sleep(1.1)
    assert (watched.state, watched.cause) == (DOWN, Cause.REFUSED)
    assert not watched.available


async def test_failed_call_triggers_a_probe_on_a_new_connection_immediately(server, watched):
    await asyncio.sleep(0.5)
    server.mode = "refused"
    watched.failed(Cause.RESET, "connection reset")
    assert watched.state is UP
    await asyncio.sleep(0.001)
    assert watched.state is DOWN
    assert server.probes[-1] == (0.5, True)


async def test_failed_call_alone_changes_nothing(server, watched):
    await asyncio.sleep(0.5)
    for _ in range(50):
        watched.failed(Cause.TIMED_OUT, "")
        watched.failed(Cause.RESET, "", definite=True)
        await asyncio.sleep(0.01)
    assert watched.state is UP
    assert len(watched.history) == 1


async def test_storm_of_failures_does_not_cause_a_storm_of_probes(server, watched):
    await asyncio.sleep(0.5)
    for _ in range(1000):
        watched.failed(Cause.RESET, "")
        await asyncio.sleep(0.001)
    assert len(server.times(0.5)) <= 1.0 / 0.02 + 1


async def test_suspicion_replaces_a_waiting_probe_by_one_on_a_new_connection(server, watched):
    await watched.until_up()
    server.mode = "mute"
    await asyncio.sleep(1.2)
    assert server.probes[-1] == (1.0, False)
    server.mode = "refused"
    watched.failed(Cause.RESET, "")
    await asyncio.sleep(0.001)
    assert watched.state is DOWN
    assert server.probes[-1] == (pytest.approx(1.201), True)


async def test_replaced_probe_does_not_count_as_evidence():
    async def probe(suspicious):
        if not suspicious:
            await asyncio.Event().wait()
        return 0.001

    dependency = Dependency("redis", settings=HealthSettings(fall=1))
    dependency.start(probe, last_reply=lambda: -math.inf)
    await asyncio.sleep(1.5)
    dependency.failed(Cause.RESET, "")
    await asyncio.sleep(0.1)
    assert dependency.snapshot()["probes"] == {"ok": 2, "failed": 0}
    assert dependency.state is UP
    await dependency.aclose()


async def test_reset_of_the_kept_connection_is_checked_on_a_new_one():
    seen = []

    async def probe(suspicious):
        seen.append(suspicious)
        if not suspicious and len(seen) == 2:
            raise ProbeFailed(Cause.RESET, "a load balancer forgot it", definite=True)
        return 0.0

    dependency = Dependency("redis")
    dependency.start(probe, last_reply=lambda: -math.inf)
    await asyncio.sleep(1.5)
    assert seen == [True, False, True]
    assert [change.state for change in dependency.history] == [UP]
    await dependency.aclose()


async def test_frozen_idle_server_is_down_after_two_probe_timeouts(server, watched):
    await watched.until_up()
    server.mode = "mute"
    frozen = now()
    await until_down(watched)
    assert watched.cause is Cause.TIMED_OUT
    assert now() - frozen <= 1.0 + 2 * 1.0 + 0.05


async def test_frozen_busy_server_is_down_one_probe_after_the_response_timeout(server, watched):
    await watched.until_up()
    await asyncio.sleep(5)
    server.heard = frozen = now()
    server.mode = "mute"
    asyncio.get_running_loop().call_later(2.0, watched.failed, Cause.TIMED_OUT, "silent for 2 s")
    await until_down(watched)
    assert now() - frozen <= 2.0 + 1.0 + 0.05


@pytest.mark.parametrize("ticks", range(6))
async def test_failure_in_any_tick_in_which_a_probe_times_out_is_counted(server, watched, ticks):
    """A timeout that has struck, but not yet ended the probe, can be rescheduled no more."""
    await watched.until_up(1)
    server.mode = "mute"
    loop = asyncio.get_running_loop()
    complaints = []
    loop.set_exception_handler(lambda _, context: complaints.append(context))

    def fail(after):
        if after:
            loop.call_soon(fail, after - 1)
        else:
            watched.failed(Cause.TIMED_OUT, "no answer in time")

    while len(server.probes) < 2:  # noqa: ASYNC110 - a probe sets no event
        await asyncio.sleep(0.01)
    loop.call_at(server.probes[-1][0] + watched.settings.timeout, fail, ticks)
    await asyncio.sleep(3)
    assert complaints == []
    assert watched.state is DOWN


async def test_dependency_is_never_down_while_it_answers_clients(server, watched):
    await watched.until_up()
    server.mode = "mute"
    for _ in range(200):
        await asyncio.sleep(0.1)
        server.heard = now()
        watched.failed(Cause.TIMED_OUT, "one connection is mute")
    assert [change.state for change in watched.history] == [UP]


async def test_refused_connection_does_not_make_it_down_while_open_connections_answer():
    probes = []

    async def probe(suspicious):
        probes.append(suspicious)
        await asyncio.sleep(0.01)
        if suspicious:
            raise ProbeFailed(Cause.MAX_CLIENTS, "", definite=True)
        return 0.01

    dependency = Dependency("redis")
    dependency.start(probe, last_reply=now)  # a busy client: it always just heard
    await asyncio.sleep(60)
    assert dependency.state is UP
    probes.clear()
    dependency.failed(Cause.RESET, "")
    await asyncio.sleep(5)
    assert [change.state for change in dependency.history] == [UP]
    assert probes == [True, True]
    await dependency.aclose()


async def test_reconnect_probes_are_frequent_at_first_and_never_stop(server, watched):
    server.mode = "refused"
    await asyncio.sleep(10.5)
    times = server.times(0.5)
    pauses = [b - a for a, b in itertools.pairwise(times[1:])]
    assert 0.08 <= min(pauses) < 0.1
    assert 0.14 < max(pauses) <= 0.15


async def test_reconnect_probes_of_a_long_outage_are_two_seconds_apart_with_jitter(server, watched):
    server.mode = "refused"
    await asyncio.sleep(3600)
    times = server.times(30.0)
    pauses = [b - a for a, b in itertools.pairwise(times)]
    assert 0.07 <= min(pauses) < 0.2
    assert 1.8 < max(pauses) <= 2.0
    assert 0.9 < sum(pauses) / len(pauses) < 1.2


async def test_failed_calls_cause_no_probes_while_it_is_down(server, watched):
    server.mode = "refused"
    await asyncio.sleep(60)
    probes = len(server.probes)
    for _ in range(1000):
        watched.failed(Cause.REFUSED, "", definite=True)
        await asyncio.sleep(0.001)
    assert len(server.probes) - probes <= 12


@pytest.mark.parametrize("outage", [0.3, 1.0, 5.0, 9.0])
@pytest.mark.parametrize("seed", range(5))
async def test_recovery_from_a_short_outage_is_noticed_within_250_ms(server, outage, seed):
    dependency = Dependency("redis", rng=random.Random(seed))
    dependency.start(server.probe, last_reply=lambda: -math.inf)
    await dependency.until_up()
    server.mode = "refused"
    dependency.failed(Cause.RESET, "")
    await asyncio.sleep(outage)
    assert dependency.state is DOWN
    server.mode = "ok"
    await dependency.until_up(0.25)
    await dependency.aclose()


@pytest.mark.parametrize("mode", ["auth", "bug", "cancels itself", "replica"])
async def test_result_of_the_probe_sets_state_and_cause(server, watched, mode):
    server.mode = mode
    await asyncio.sleep(1.5)
    expected = {
        "auth": (DOWN, Cause.AUTH, "WRONGPASS"),
        "bug": (DOWN, Cause.OTHER, "the probe raised ZeroDivisionError"),
        "cancels itself": (DOWN, Cause.OTHER, "the probe cancelled itself"),
        "replica": (DEGRADED, Cause.READ_ONLY, "role is replica"),
    }
    assert (watched.state, watched.cause, watched.detail) == expected[mode]
    server.mode = "ok"
    await asyncio.sleep(2.5)
    assert watched.state is UP


async def test_wrong_password_is_not_tried_ten_times_a_second(server, watched):
    server.mode = "auth"
    await asyncio.sleep(10)
    assert len(server.probes) < 20


async def test_bug_in_a_probe_is_logged_once(server, watched, caplog):
    server.mode = "bug"
    await asyncio.sleep(60)
    bugs = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(bugs) == 1
    assert "the probe raised" in bugs[0].getMessage()


async def test_flapping_server_is_damped_to_nine_changes(server, watched):
    """1 s on, 1 s off for 20 s: undamped there would be 20."""
    await watched.until_up()
    before = len(watched.history)
    for _ in range(10):
        server.mode = "refused"
        watched.failed(Cause.RESET, "")
        await asyncio.sleep(1)
        server.mode = "ok"
        await asyncio.sleep(1)
    assert len(watched.history) - before <= 9
    await watched.until_up(2.0)  # 16 good probes, 0.1 s apart


async def test_good_probes_after_flapping_are_a_tenth_of_a_second_apart(server, watched):
    await watched.until_up()
    for _ in range(4):
        server.mode = "refused"
        watched.failed(Cause.RESET, "")
        await asyncio.sleep(1)
        server.mode = "ok"
        back = now()
        await watched.until_up(5)
    probes = server.times(back)
    assert len(probes) == 8
    assert [b - a for a, b in itertools.pairwise(probes)] == pytest.approx([0.101] * 7)


async def test_stall_of_our_own_loop_does_not_count_as_a_timeout(server, watched):
    await watched.until_up()
    server.answer_in = 0.9
    loop = asyncio.get_running_loop()
    for _ in range(20):
        await asyncio.sleep(1.1)  # a probe is on its way
        loop.block(5.0)
    await asyncio.sleep(1)
    assert [change.state for change in watched.history] == [UP]
    assert watched.snapshot()["probes"]["failed"] == 0
    assert watched.snapshot()["loop_lag"]["worst"] > 4.8


async def test_silent_server_is_detected_although_our_loop_stalls(server, watched):
    await watched.until_up()
    server.mode = "mute"
    for _ in range(4):
        await asyncio.sleep(0.7)
        asyncio.get_running_loop().block(3.0)
    await asyncio.sleep(1)
    assert watched.state is DOWN


async def test_server_that_refuses_writes_is_probed_although_replies_arrive(server, watched):
    await watched.until_up()
    watched.refused(Cause.OUT_OF_MEMORY, "OOM")
    assert (watched.state, watched.refusing) == (DEGRADED, True)
    for _ in range(95):
        await asyncio.sleep(0.1)
        server.heard = now()
    assert watched.state is DEGRADED
    for _ in range(20):
        await asyncio.sleep(0.1)
        server.heard = now()
    assert (watched.state, watched.refusing) == (UP, False)


async def test_lost_part_waits_for_the_probe_of_the_whole(server, watched):
    await asyncio.sleep(0.5)
    watched.part_lost("connection 0", Cause.CONNECTION_LOST, "reset")
    assert watched.state is UP
    await asyncio.sleep(0.01)
    assert (watched.state, watched.detail) == (DEGRADED, "connection 0: reset")
    watched.part_back("connection 0")
    assert watched.state is UP


async def test_new_connection_makes_it_up_without_waiting_for_the_probe(server, watched):
    server.mode = "mute"
    await asyncio.sleep(0.1)
    watched.succeeded(0.003)
    assert (watched.state, watched.latency) == (UP, 0.003)


async def test_probe_inherits_no_deadline_from_the_call_that_started_it():
    word = contextvars.ContextVar("word", default="unset")
    seen = []

    async def probe(suspicious):
        seen.append((current_deadline(), word.get()))
        return 0.0

    dependency = Dependency("redis")
    word.set("of the request")
    with deadline(0.1):
        attachment = dependency.start(probe, last_reply=lambda: -math.inf)
    await asyncio.sleep(0.5)
    assert seen == [(None, "unset")]
    await attachment.detach()


async def test_probe_task_is_named_after_the_dependency(watched):
    names = [task.get_name() for task in asyncio.all_tasks()]
    assert "resilient-io probe redis" in names


async def test_detaching_ends_a_stuck_probe(server):
    server.mode = "mute"
    dependency = Dependency("redis")
    attachment = dependency.start(server.probe, last_reply=lambda: -math.inf)
    await asyncio.sleep(0.5)
    await attachment.detach()
    await attachment.detach()
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert dependency.lag is None
    assert now() == 0.5


async def test_next_client_takes_over_when_the_probing_one_detaches():
    first, second = Server("mute"), Server()
    dependency = Dependency("redis")
    a = dependency.start(first.probe, last_reply=lambda: -math.inf)
    b = dependency.start(second.probe, last_reply=lambda: -math.inf)
    await asyncio.sleep(0.5)
    assert not second.probes
    await a.detach()
    await dependency.until_up(0.1)
    await asyncio.sleep(5.1)
    assert len(second.probes) == 6
    probes = len(first.probes)
    c = dependency.start(first.probe, last_reply=lambda: -math.inf)
    await c.detach()  # not the probing one: nothing is interrupted
    assert len(first.probes) == probes
    assert dependency.state is UP
    await b.detach()
    assert (dependency.state, dependency.cause) == (UNKNOWN, Cause.CLOSED)


async def test_latest_reply_of_several_clients_counts():
    server, other = Server(), Server()
    dependency = Dependency("redis")
    dependency.start(server.probe, last_reply=lambda: server.heard)
    dependency.start(other.probe, last_reply=lambda: other.heard)
    for _ in range(20):
        await asyncio.sleep(0.5)
        other.heard = now()
    assert len(server.probes) == 1
    await dependency.aclose()


async def test_idle_clients_are_kept_alive_while_another_is_probed_or_busy():
    server, heard, kept = Server(), {}, {"first": [], "second": []}

    def attach(name):
        async def probe(suspicious):
            latency = await server.probe(suspicious)
            heard[name] = now()
            return latency

        def keep_alive():
            kept[name].append(now())
            heard[name] = now()

        heard[name] = now()
        dependency.start(probe, last_reply=lambda: heard[name], keep_alive=keep_alive)

    dependency = Dependency("redis")
    attach("first")
    attach("second")
    await asyncio.sleep(5.5)
    assert len(server.probes) == 6
    assert not kept["first"]  # it is probed
    assert [round(at) for at in kept["second"]] == [1, 2, 3, 4, 5]
    for _ in range(10):
        heard["second"] = now()
        await asyncio.sleep(0.5)
    assert len(server.probes) == 6  # the replies to the second suffice
    assert len(kept["second"]) == 5
    assert 4 <= len(kept["first"]) <= 5
    await dependency.aclose()


async def test_dependency_can_be_started_again_after_it_was_closed(server):
    dependency = Dependency("redis")
    for _ in range(3):
        dependency.start(server.probe, last_reply=lambda: -math.inf)
        await dependency.until_up(1)
        await dependency.aclose()
        await dependency.aclose()
        assert dependency.state is UNKNOWN
    assert len(server.probes) == 3
    with pytest.raises(DeadlineExceeded):
        server.mode = "refused"
        dependency.start(server.probe, last_reply=lambda: -math.inf)
        await dependency.until_up(1)
    await dependency.aclose()


async def test_settings_define_the_schedule(server):
    settings = HealthSettings(interval=10.0, timeout=3.0, fall=1)
    dependency = Dependency("redis", settings=settings)
    dependency.start(server.probe, last_reply=lambda: -math.inf)
    await dependency.until_up()
    server.mode = "mute"
    await asyncio.sleep(12.9)
    assert dependency.state is UP
    await asyncio.sleep(0.2)
    assert dependency.state is DOWN
    await dependency.aclose()
