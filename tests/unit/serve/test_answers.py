"""What is answered to which request."""

import asyncio
import json

import prometheus_client
import pytest

from resilient_io.errors import ConfigurationError
from resilient_io.health import Cause, Dependency, HealthMonitor, State
from resilient_io.serve import _metrics
from resilient_io.serve._answers import PATHS, Answers

UP, DEGRADED, DOWN = State.UP, State.DEGRADED, State.DOWN
VERBOSE = "application/health+json"


@pytest.fixture
def answers(service):
    return Answers(service.monitor, name="shop")


def words(answer):
    assert dict(answer.headers)["content-type"] == "text/plain; charset=utf-8"
    return answer.status, answer.body.decode().rstrip("\n")


def document(answer):
    assert answer.content_type == VERBOSE
    return json.loads(answer.body)


async def test_a_service_that_is_well_passes_every_probe_in_one_word(answers):
    assert words(answers.answer("/livez", "GET")) == (200, "alive")
    assert words(answers.answer("/readyz", "GET")) == (200, "ready")
    assert words(answers.answer("/startupz", "GET")) == (200, "started")


async def test_a_critical_dependency_that_is_down_fails_readiness_and_nothing_else(
    answers, service
):
    service.put(service.redis, DOWN, "nobody listens")
    assert words(answers.answer("/readyz", "GET")) == (
        503,
        "not ready: redis is down: nobody listens",
    )
    assert answers.answer("/livez", "GET").status == 200
    assert answers.answer("/startupz", "GET").status == 200
    service.put(service.redis, UP)
    assert answers.answer("/readyz", "GET").status == 200


async def test_a_shared_dependency_that_is_down_is_told_but_withdraws_nobody(answers, service):
    service.put(service.orders, DOWN)
    service.put(service.cache, DEGRADED)
    assert words(answers.answer("/readyz", "GET")) == (
        200,
        "ready, though orders is down: refused; cache is degraded: read-only",
    )


async def test_draining_fails_readiness_and_leaves_liveness_alone(answers, service):
    service.monitor.drain()
    assert words(answers.answer("/readyz", "GET")) == (503, "not ready: draining")
    assert answers.answer("/livez", "GET").status == 200


async def test_only_what_a_restart_heals_fails_liveness(answers, part):
    part.why = "its supervisor died"
    assert words(answers.answer("/livez", "GET")) == (503, "not alive: its supervisor died")
    assert answers.answer("/readyz", "GET").status == 200


async def test_an_event_loop_that_is_blocked_most_of_the_time_fails_liveness_until_it_is_not(
    answers,
):
    assert answers.answer("/livez", "GET").status == 200
    await asyncio.sleep(1)
    asyncio.get_running_loop().block(20)
    await asyncio.sleep(1)
    status, told = words(answers.answer("/livez", "GET"))
    assert status == 503
    assert told.startswith("not alive: the event loop was blocked for ")
    assert answers.answer("/readyz", "GET").status == 200
    await asyncio.sleep(30)
    assert answers.answer("/livez", "GET").status == 200


async def test_a_service_has_not_started_before_it_knows_its_dependencies():
    redis = Dependency("redis")
    async with HealthMonitor(redis) as monitor:
        answers = Answers(monitor)
        assert words(answers.answer("/startupz", "GET")) == (503, "not started: redis is unknown")
        redis.succeeded()
        assert answers.answer("/startupz", "GET").status == 200
        redis.failed(Cause.RESET, definite=True)
        assert answers.answer("/startupz", "GET").status == 200


@pytest.mark.parametrize(
    ("redis", "orders", "status", "code"),
    [
        (UP, UP, "pass", 200),
        (UP, DOWN, "warn", 200),
        (DEGRADED, UP, "warn", 200),
        (DOWN, UP, "fail", 503),
    ],
)
async def test_the_document_tells_passing_from_a_warning_and_from_failing(
    answers, service, redis, orders, status, code
):
    service.put(service.redis, redis)
    service.put(service.orders, orders)
    answer = answers.answer("/readyz", "GET", accept=VERBOSE)
    assert (answer.status, document(answer)["status"]) == (code, status)


async def test_the_document_judges_each_dependency_by_what_it_holds_up(answers, service):
    service.put(service.redis, DOWN, "nobody listens")
    service.put(service.orders, DOWN)
    told = document(answers.answer("/readyz", "GET", query="verbose"))
    assert told["serviceId"] == "shop"
    assert told["output"] == "redis is down: nobody listens"
    assert told["checks"]["redis:availability"] == [
        {
            "componentId": "redis",
            "componentType": "system",
            "observedValue": "down",
            "observedUnit": "state",
            "status": "fail",
            "role": "critical",
            "output": "down: nobody listens",
        }
    ]
    assert told["checks"]["orders:availability"][0]["status"] == "warn"
    assert told["checks"]["cache:availability"][0]["status"] == "pass"
    latency = told["checks"]["cache:responseTime"][0]
    assert (latency["observedValue"], latency["observedUnit"]) == (0.002, "s")
    assert "time" not in latency  # nobody noted the wall clock then


async def test_the_document_of_liveness_says_nothing_of_dependencies(answers, service, part):
    service.put(service.redis, DOWN)
    told = document(answers.answer("/livez", "GET", query="verbose"))
    assert told["status"] == "pass"
    assert not [name for name in told["checks"] if "redis" in name]
    part.why = "its supervisor died"
    told = document(answers.answer("/livez", "GET", query="verbose"))
    assert told["status"] == "fail"
    assert told["output"] == "its supervisor died"


async def test_a_colon_in_a_name_does_not_break_the_names_of_the_checks(settle):
    redis = Dependency("redis cache:6379/0")
    async with HealthMonitor(redis) as monitor:
        redis.succeeded()
        checks = document(Answers(monitor).answer("/readyz", "GET", query="verbose"))["checks"]
    assert checks["redis cache-6379/0:availability"][0]["componentId"] == "redis cache:6379/0"


@pytest.mark.parametrize("query", ["verbose", "verbose=1", "a=b&verbose=true", "verbose="])
async def test_verbose_asks_for_the_document(answers, query):
    assert answers.answer("/readyz", "GET", query=query).content_type == VERBOSE


@pytest.mark.parametrize("query", ["", "verbose=0", "verbose=false", "x=verbose"])
async def test_what_does_not_ask_for_it_gets_words(answers, query):
    assert answers.answer("/readyz", "GET", query=query).content_type.startswith("text/plain")


async def test_who_takes_only_json_gets_the_document_as_json(answers):
    answer = answers.answer("/readyz", "GET", accept="application/json")
    assert answer.content_type == "application/json"
    assert json.loads(answer.body)["status"] == "pass"


@pytest.mark.parametrize("path", PATHS)
async def test_every_answer_is_fresh_and_takes_no_other_method(answers, path):
    good = dict(answers.answer(path, "GET").headers)
    assert good["cache-control"] == "no-store"
    refused = answers.answer(path, "POST")
    assert refused.status == 405
    assert dict(refused.headers)["allow"] == "GET, HEAD"


@pytest.mark.parametrize("path", ["", "/", "/livez/", "/readyz/x", "/health", "/LIVEZ"])
async def test_anything_else_is_not_found(answers, path):
    assert answers.answer(path, "GET").status == 404


async def test_the_page_may_do_nothing_but_ask_where_it_came_from(answers):
    answer = answers.answer("/status", "GET", accept="text/html,*/*;q=0.8")
    assert answer.content_type == "text/html; charset=utf-8"
    assert b"<html" in answer.body
    assert "default-src 'none'" in dict(answer.headers)["content-security-policy"]


@pytest.mark.parametrize(
    ("query", "accept"), [("format=json", "text/html"), ("", "application/json")]
)
async def test_what_the_page_shows_can_be_had_as_json(answers, query, accept):
    answer = answers.answer("/status", "GET", query=query, accept=accept)
    assert answer.content_type == "application/json"
    told = json.loads(answer.body)
    assert told["service"] == "shop"
    assert [each["name"] for each in told["dependencies"]] == ["redis", "orders", "cache"]


async def test_no_password_is_shown_wherever_an_address_stands():
    redis = Dependency("redis://user:hunter2@cache:6379")
    async with HealthMonitor(redis) as monitor:
        redis.failed(Cause.AUTH, "rediss://other:hunter2@cache:6380 refused", definite=True)
        answers = Answers(monitor)
        shown = [
            answers.answer("/readyz", "GET").body,
            answers.answer("/readyz", "GET", query="verbose").body,
            answers.answer("/startupz", "GET").body,
            answers.answer("/metrics", "GET").body,
            answers.answer("/status", "GET", query="format=json").body,
        ]
        with answers.events.open() as reader:
            shown.append(await anext(reader))
    for body in shown:
        assert b"hunter2" not in body
        assert b"cache:6379" in body


async def test_metrics_are_the_librarys_own_by_default(answers):
    answer = answers.answer("/metrics", "GET")
    assert answer.status == 200
    assert answer.content_type.startswith("text/plain; version=")
    assert b"resilient_io_" in answer.body
    assert answers.answer("/metrics", "GET").status == 200  # they are registered once


async def test_metrics_of_a_registry_are_what_is_in_it(service):
    registry = prometheus_client.CollectorRegistry()
    prometheus_client.Counter("orders", "Orders", registry=registry).inc()
    answers = Answers(service.monitor, metrics=registry)
    body = answers.answer("/metrics", "GET").body
    assert b"orders_total 1.0" in body
    assert b"resilient_io" not in body
    openmetrics = answers.answer("/metrics", "GET", accept="application/openmetrics-text")
    assert openmetrics.body.endswith(b"# EOF\n")


async def test_metrics_can_be_switched_off(service):
    answer = Answers(service.monitor, metrics=False).answer("/metrics", "GET")
    assert words(answer) == (404, "metrics are switched off")


async def test_without_the_extra_there_are_no_metrics_but_a_hint(answers, monkeypatch):
    monkeypatch.setattr(_metrics, "find_spec", lambda _: None)
    status, hint = words(answers.answer("/metrics", "GET"))
    assert status == 404
    assert "resilient-io[prometheus]" in hint


async def test_what_makes_no_sense_is_refused_with_what_to_write(service):
    with pytest.raises(TypeError, match=r"HealthMonitor\(redis\.health\)"):
        Answers(service.redis)
    with pytest.raises(ConfigurationError, match=r"metrics=prometheus_client\.REGISTRY"):
        Answers(service.monitor, metrics=True)
    with pytest.raises(ConfigurationError, match=r"clients=\[redis"):
        Answers(service.monitor, clients=[service.redis])
    with pytest.raises(ConfigurationError, match="name="):
        Answers(service.monitor, name="")


async def test_signs_that_no_text_can_hold_do_no_harm(answers, service):
    service.put(service.redis, DOWN, "said \udce9")
    assert words(answers.answer("/readyz", "GET")) == (
        503,
        "not ready: redis is down: said \ufffd",
    )
