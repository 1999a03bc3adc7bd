"""The answer of each endpoint."""

import asyncio
import json
import re

import prometheus_client
import pytest

from resilient_io.errors import ConfigurationError
from resilient_io.health import Cause, Dependency, HealthMonitor, State
from resilient_io.serve import Heartbeat
from resilient_io.serve import endpoints as module
from resilient_io.serve.endpoints import PATHS, Endpoints

UP, DEGRADED, DOWN = State.UP, State.DEGRADED, State.DOWN
VERBOSE = "application/health+json"


@pytest.fixture
def endpoints(service):
    return Endpoints(service.monitor, name="shop")


def text_of(answer):
    assert dict(answer.headers)["content-type"] == "text/plain; charset=utf-8"
    return answer.status, answer.body.decode().rstrip("\n")


def document_of(answer):
    assert answer.content_type == VERBOSE
    return json.loads(answer.body)


async def test_healthy_service_passes_every_probe(endpoints):
    assert text_of(endpoints.answer("/livez", "GET")) == (200, "alive")
    assert text_of(endpoints.answer("/readyz", "GET")) == (200, "ready")
    assert text_of(endpoints.answer("/startupz", "GET")) == (200, "started")


async def test_critical_dependency_that_is_down_fails_readiness_and_nothing_else(
    endpoints, service
):
    service.put(service.redis, DOWN, "connection refused")
    assert text_of(endpoints.answer("/readyz", "GET")) == (
        503,
        "not ready: redis is down: connection refused",
    )
    assert endpoints.answer("/livez", "GET").status == 200
    assert endpoints.answer("/startupz", "GET").status == 200
    service.put(service.redis, UP)
    assert endpoints.answer("/readyz", "GET").status == 200


async def test_shared_dependency_that_is_down_is_reported_but_keeps_the_service_ready(
    endpoints, service
):
    service.put(service.orders, DOWN)
    service.put(service.cache, DEGRADED)
    assert text_of(endpoints.answer("/readyz", "GET")) == (
        200,
        "ready, although orders is down: refused; cache is degraded: read-only",
    )


async def test_draining_fails_readiness_and_leaves_liveness_alone(endpoints, service):
    service.monitor.drain()
    assert text_of(endpoints.answer("/readyz", "GET")) == (503, "not ready: draining")
    assert endpoints.answer("/livez", "GET").status == 200


async def test_liveness_fails_only_if_a_restart_helps(endpoints, check):
    check.why = "its supervisor died"
    assert text_of(endpoints.answer("/livez", "GET")) == (503, "not alive: its supervisor died")
    assert endpoints.answer("/readyz", "GET").status == 200


async def test_blocked_event_loop_fails_liveness_until_it_runs_again(
    endpoints,
):
    assert endpoints.answer("/livez", "GET").status == 200
    await asyncio.sleep(1)
    asyncio.get_running_loop().block(20)
    await asyncio.sleep(1)
    status, reason = text_of(endpoints.answer("/livez", "GET"))
    assert status == 503
    assert reason.startswith("not alive: the event loop was blocked for ")
    assert endpoints.answer("/readyz", "GET").status == 200
    await asyncio.sleep(30)
    assert endpoints.answer("/livez", "GET").status == 200


async def test_service_has_not_started_before_its_dependencies_are_known():
    redis = Dependency("redis")
    async with HealthMonitor(redis) as monitor:
        endpoints = Endpoints(monitor)
        assert text_of(endpoints.answer("/startupz", "GET")) == (
            503,
            "not started: redis is unknown",
        )
        redis.succeeded()
        assert endpoints.answer("/startupz", "GET").status == 200
        redis.failed(Cause.RESET, definite=True)
        assert endpoints.answer("/startupz", "GET").status == 200


@pytest.mark.parametrize(
    ("redis", "orders", "status", "code"),
    [
        (UP, UP, "pass", 200),
        (UP, DOWN, "warn", 200),
        (DEGRADED, UP, "warn", 200),
        (DOWN, UP, "fail", 503),
    ],
)
async def test_document_distinguishes_pass_warn_and_fail(
    endpoints, service, redis, orders, status, code
):
    service.put(service.redis, redis)
    service.put(service.orders, orders)
    answer = endpoints.answer("/readyz", "GET", accept=VERBOSE)
    assert (answer.status, document_of(answer)["status"]) == (code, status)


async def test_document_rates_each_dependency_by_its_role(endpoints, service):
    service.put(service.redis, DOWN, "connection refused")
    service.put(service.orders, DOWN)
    found = document_of(endpoints.answer("/readyz", "GET", query="verbose"))
    assert found["serviceId"] == "shop"
    assert found["output"] == "redis is down: connection refused"
    assert found["checks"]["redis:availability"] == [
        {
            "componentId": "redis",
            "componentType": "system",
            "observedValue": "down",
            "observedUnit": "state",
            "status": "fail",
            "role": "critical",
            "output": "down: connection refused",
        }
    ]
    assert found["checks"]["orders:availability"][0]["status"] == "warn"
    assert found["checks"]["cache:availability"][0]["status"] == "pass"
    latency = found["checks"]["cache:responseTime"][0]
    assert (latency["observedValue"], latency["observedUnit"]) == (0.002, "s")
    assert "time" not in latency  # the wall clock is not read when it is measured


async def test_liveness_document_contains_no_dependency(endpoints, service, check):
    service.put(service.redis, DOWN)
    found = document_of(endpoints.answer("/livez", "GET", query="verbose"))
    assert found["status"] == "pass"
    assert not [name for name in found["checks"] if "redis" in name]
    check.why = "its supervisor died"
    found = document_of(endpoints.answer("/livez", "GET", query="verbose"))
    assert found["status"] == "fail"
    assert found["output"] == "its supervisor died"


async def test_colon_in_a_name_does_not_break_the_names_of_the_checks(run_loop):
    redis = Dependency("redis cache:6379/0")
    async with HealthMonitor(redis) as monitor:
        redis.succeeded()
        checks = document_of(Endpoints(monitor).answer("/readyz", "GET", query="verbose"))["checks"]
    assert checks["redis cache-6379/0:availability"][0]["componentId"] == "redis cache:6379/0"


@pytest.mark.parametrize("query", ["verbose", "verbose=1", "a=b&verbose=true", "verbose="])
async def test_verbose_selects_the_document(endpoints, query):
    assert endpoints.answer("/readyz", "GET", query=query).content_type == VERBOSE


@pytest.mark.parametrize("query", ["", "verbose=0", "verbose=false", "x=verbose"])
async def test_plain_text_is_the_default(endpoints, query):
    assert endpoints.answer("/readyz", "GET", query=query).content_type.startswith("text/plain")


async def test_document_is_sent_as_json_to_clients_that_accept_only_json(endpoints):
    answer = endpoints.answer("/readyz", "GET", accept="application/json")
    assert answer.content_type == "application/json"
    assert json.loads(answer.body)["status"] == "pass"


@pytest.mark.parametrize("path", PATHS)
async def test_answers_are_not_cached_and_other_methods_are_not_allowed(endpoints, path):
    good = dict(endpoints.answer(path, "GET").headers)
    assert good["cache-control"] == "no-store"
    refused = endpoints.answer(path, "POST")
    assert refused.status == 405
    assert dict(refused.headers)["allow"] == "GET, HEAD"


@pytest.mark.parametrize("path", ["", "/", "/livez/", "/readyz/x", "/health", "/LIVEZ"])
async def test_other_paths_are_not_found(endpoints, path):
    assert endpoints.answer(path, "GET").status == 404


async def test_page_comes_with_a_strict_content_security_policy(endpoints):
    answer = endpoints.answer("/status", "GET", accept="text/html,*/*;q=0.8")
    assert answer.content_type == "text/html; charset=utf-8"
    assert b"<html" in answer.body
    assert "default-src 'none'" in dict(answer.headers)["content-security-policy"]


@pytest.mark.parametrize(
    ("query", "accept"), [("format=json", "text/html"), ("", "application/json")]
)
async def test_status_is_available_as_json(endpoints, query, accept):
    answer = endpoints.answer("/status", "GET", query=query, accept=accept)
    assert answer.content_type == "application/json"
    found = json.loads(answer.body)
    assert found["service"] == "shop"
    assert [each["name"] for each in found["dependencies"]] == ["redis", "orders", "cache"]


async def test_password_in_an_address_is_shown_nowhere():
    redis = Dependency("redis://user:hunter2@cache:6379")
    async with HealthMonitor(redis) as monitor:
        redis.failed(Cause.AUTH, "rediss://other:hunter2@cache:6380 refused", definite=True)
        endpoints = Endpoints(monitor)
        shown = [
            endpoints.answer("/readyz", "GET").body,
            endpoints.answer("/readyz", "GET", query="verbose").body,
            endpoints.answer("/startupz", "GET").body,
            endpoints.answer("/metrics", "GET").body,
            endpoints.answer("/status", "GET", query="format=json").body,
        ]
        with endpoints.events.open() as reader:
            shown.append(await anext(reader))
    for body in shown:
        assert b"hunter2" not in body
        assert b"cache:6379" in body


async def test_metrics_are_those_of_the_library_by_default(endpoints):
    answer = endpoints.answer("/metrics", "GET")
    assert answer.status == 200
    assert answer.content_type.startswith("text/plain; version=")
    assert b"resilient_io_" in answer.body
    assert endpoints.answer("/metrics", "GET").status == 200  # they are registered once


async def test_metrics_of_a_registry_are_its_contents(service):
    registry = prometheus_client.CollectorRegistry()
    prometheus_client.Counter("orders", "Orders", registry=registry).inc()
    endpoints = Endpoints(service.monitor, metrics=registry)
    body = endpoints.answer("/metrics", "GET").body
    assert b"orders_total 1.0" in body
    assert b"resilient_io" not in body
    openmetrics = endpoints.answer("/metrics", "GET", accept="application/openmetrics-text")
    assert openmetrics.body.endswith(b"# EOF\n")


async def test_metrics_can_be_switched_off(service):
    answer = Endpoints(service.monitor, metrics=False).answer("/metrics", "GET")
    assert text_of(answer) == (404, "metrics are switched off")


async def test_metrics_without_the_extra_are_a_hint_to_install_it(endpoints, monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda _: None)
    status, hint = text_of(endpoints.answer("/metrics", "GET"))
    assert status == 404
    assert "resilient-io[prometheus]" in hint


async def test_wrong_arguments_are_rejected_with_advice(service):
    with pytest.raises(TypeError, match=r"HealthMonitor\(redis\.health\)"):
        Endpoints(service.redis)
    with pytest.raises(TypeError, match=r"metrics=prometheus_client\.REGISTRY"):
        Endpoints(service.monitor, metrics=True)
    with pytest.raises(TypeError, match=r"clients=\[redis"):
        Endpoints(service.monitor, clients=[service.redis])
    with pytest.raises(ConfigurationError, match="name="):
        Endpoints(service.monitor, name="")


async def test_characters_that_utf_8_cannot_encode_are_replaced(endpoints, service):
    service.put(service.redis, DOWN, "said \udce9")
    assert text_of(endpoints.answer("/readyz", "GET")) == (
        503,
        "not ready: redis is down: said \N{REPLACEMENT CHARACTER}",
    )


async def test_metrics_are_reused_for_a_second(service, monkeypatch):
    registry = prometheus_client.CollectorRegistry()
    counter = prometheus_client.Counter("orders", "Orders", registry=registry)
    collections = []
    collect = registry.collect
    monkeypatch.setattr(registry, "collect", lambda: collections.append(None) or collect())
    endpoints = Endpoints(service.monitor, metrics=registry)

    def scrape(accept=""):
        counter.inc()
        return endpoints.answer("/metrics", "GET", accept=accept).body

    for _ in range(100):
        assert b"orders_total 1.0" in scrape()
    assert len(collections) == 1
    # Another format is computed once as well, also if a client alternates between them.
    for _ in range(10):
        assert scrape("application/openmetrics-text").endswith(b"# EOF\n")
        assert b"orders_total 1.0" in scrape()
    assert len(collections) == 2
    await asyncio.sleep(0.99)
    assert b"orders_total 1.0" in scrape()
    await asyncio.sleep(0.01)
    assert b"orders_total 122.0" in scrape()
    assert len(collections) == 3


async def test_status_and_events_can_be_switched_off(service):
    endpoints = Endpoints(service.monitor, status=False)
    for path in ("/status", "/events"):
        answer = endpoints.answer(path, "GET")
        assert text_of(answer) == (404, "the status page is switched off")
    for path in ("/livez", "/readyz", "/startupz", "/metrics"):
        assert endpoints.answer(path, "GET").status == 200
    with pytest.raises(TypeError, match="status must be True or False"):
        Endpoints(service.monitor, status="no")


HOSTILE = "\x1b]0;title\x07 redis://user:hunter2@cache \r\nX-Header: 1 \u202e " + "x" * 50_000


async def test_text_from_outside_is_bounded_redacted_and_free_of_control_characters(tmp_path):
    redis = Dependency("redis")
    async with HealthMonitor(redis) as monitor:
        redis.failed(Cause.RESET, HOSTILE, definite=True)
        redis.note("connection lost", error=HOSTILE)
        endpoints = Endpoints(monitor)
        shown = [
            endpoints.answer("/readyz", "GET").body,
            endpoints.answer("/readyz", "GET", query="verbose").body,
            endpoints.answer("/startupz", "GET").body,
            endpoints.answer("/metrics", "GET").body,
            endpoints.answer("/status", "GET", query="format=json").body,
        ]
        with endpoints.events.open() as reader:
            shown.append(await anext(reader))
        async with Heartbeat(monitor, tmp_path / "heartbeat.json"):
            await asyncio.sleep(0.1)
            shown.append((tmp_path / "heartbeat.json").read_bytes())
    for body in shown:
        text = body.decode()
        assert "hunter2" not in text
        assert "x" * 301 not in text
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", text)
        assert not re.search(r"\\u00[01][0-9a-f]|\\u009|\\u202e|\\[rnt]", text)
        assert "\nX-Header" not in text
