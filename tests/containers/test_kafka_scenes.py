"""Kafka goes away, and comes back; and both come later than the service."""

import time

import pytest
from container_stage.account import Account
from container_stage.place import KAFKA_RUNS

pytestmark = pytest.mark.containers


def unready(place, *, because):
    """Wait until readiness says no, and why."""
    began = time.time()
    place.until(
        f"our service is not ready because of {because}",
        lambda readings: (
            readings.is_ready("ours") is False
            and any(because in each for each in readings.reasons("ours", since=began))
        ),
        25,
    )


def ready_again(place):
    place.until("our service is ready", lambda readings: readings.is_ready("ours"), 60)


def test_the_service_starts_first_then_redis_then_kafka(place_of_its_own, keep):
    place = place_of_its_own
    began = time.time()
    place.start_services()
    account = Account(place, began)
    unready(place, because="redis")
    time.sleep(max(0.0, began + 20 - time.time()))  # that they come late is the scene
    place.start_redis()
    time.sleep(max(0.0, began + 40 - time.time()))  # as above
    place.readings.read()
    assert place.readings.is_ready("ours") is False
    assert place.ours.health != "unhealthy", place.ours.state()["Health"]
    place.start_kafka()
    place.kafka.wait_for(KAFKA_RUNS)
    account.heal(time.time())
    ready_again(place)
    place.tell("send", rate=40)
    place.until(
        "our service books orders, and the other had time to",
        lambda readings: readings.acked("ours") > 500 and readings.booked("ours") > 50,
    )
    account.settle()
    outcome = account.outcome()
    keep(outcome)
    account.check(outcome)


def test_the_network_of_kafka_is_cut_and_healed(place, keep):
    place.open()
    account = Account(place, place.cut(place.kafka))
    unready(place, because="kafka")
    time.sleep(8)  # nothing can be waited for: the outage itself takes this long
    account.heal(place.heal(place.kafka))
    ready_again(place)
    account.settle()
    outcome = account.outcome()
    keep(outcome)
    account.check(outcome)


def test_kafka_is_killed_and_starts_again(place_of_its_own, keep):
    place = place_of_its_own
    place.open()
    place.kafka.docker.kill()
    account = Account(place, time.time())
    unready(place, because="kafka")
    time.sleep(3)  # as above
    place.kafka.docker.start()
    place.kafka.wait_for(KAFKA_RUNS, times=2)
    account.heal(time.time())
    ready_again(place)
    account.settle()
    outcome = account.outcome()
    keep(outcome)
    account.check(outcome)
