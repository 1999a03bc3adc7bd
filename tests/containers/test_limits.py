"""The service's own limits: little CPU, little memory, little time to end."""

import time

import pytest
from container_stage.account import Account

pytestmark = pytest.mark.containers

MIB = 1 << 20
FLOOD = 20_000
"""Bytes of an order in the flood."""


def test_a_tenth_of_a_cpu_is_not_blamed_on_a_server(place, keep):
    place.open()
    for service in place.services:
        service.docker.update(cpu_period=100_000, cpu_quota=10_000)
    place.tell("send", rate=100)
    throttled = place.ours.throttled()
    account = Account(place, time.time())
    time.sleep(10)  # nothing can be waited for: the shortage itself takes this long
    for service in place.services:
        service.docker.update(cpu_period=100_000, cpu_quota=100_000)
    account.heal(time.time())
    account.settle()
    outcome = account.outcome()
    keep(outcome)
    assert place.ours.throttled() - throttled > 20
    log = place.ours.log(since=account.began)
    assert " is down" not in log, log
    # A probe that was not answered in time is not what it said.
    probes = [
        *place.readings.of("ours", "/readyz", since=account.began),
        *place.readings.of("ours", "/livez", since=account.began),
    ]
    assert {each["status"] for each in probes} <= {0, 200}
    outcome["ours"]["dead_probes"] = 0  # by what it said
    account.check(outcome)


def test_a_flood_while_redis_is_away_fits_into_little_memory(place, keep):
    limit = 96 * MIB
    place.open(memory=limit)
    place.redis.docker.pause()
    account = Account(place, time.time())
    place.until("our service is not ready", lambda readings: readings.is_ready("ours") is False, 15)
    # More than fits into it.
    place.tell("burst", rate=1000, count=limit // FLOOD + 200, size=FLOOD)
    place.redis.docker.unpause()
    account.heal(time.time())
    account.settle(90)
    outcome = account.outcome()
    for service in place.services:
        outcome[service.name]["memory_peak"] = service.memory_peak()
    keep(outcome)
    account.check(outcome)
    assert outcome["ours"]["memory_peak"] < limit


def test_sigterm_in_the_middle_of_work_loses_nothing(place, keep):
    grace = 20
    place.open()
    place.tell("send", rate=150)
    place.until("much is booked", lambda readings: readings.booked("ours") > 200)
    account = Account(place, time.time())
    took, code = place.ours.stop(grace)
    plain_took, plain_code = place.plain.stop(grace // 2)
    for service in place.services:
        service.docker.start()
    account.heal(time.time())
    place.until("our service is ready", lambda readings: readings.is_ready("ours"))
    account.settle()
    outcome = account.outcome()
    outcome["ours"] |= {"stopped_after": took, "exit_code": code}
    outcome["plain"] |= {"stopped_after": plain_took, "exit_code": plain_code}
    keep(outcome)
    outcome["ours"]["dead_probes"] = 0  # it was not there for a while
    account.check(outcome, repeated=0)
    assert code == 0
    assert took < grace
    said = place.ours.log()
    assert "stopped" in said
