"""Check the connection to a Kafka cluster: up to the advertised listeners and a consumer group."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Mapping  # noqa: TC003 - dataclasses read annotations
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from aiokafka import AIOKafkaConsumer
from aiokafka.errors import (
    GroupAuthorizationFailedError,
    GroupCoordinatorNotAvailableError,
    GroupLoadInProgressError,
    KafkaError,
    NoError,
    NotCoordinatorForGroupError,
    for_code,
)
from aiokafka.protocol.admin import DescribeGroupsRequest
from aiokafka.protocol.metadata import MetadataRequest

from resilient_io.health import Cause
from resilient_io.kafka.connect import KafkaTarget
from resilient_io.kafka.driver import abort_connection, socket_of
from resilient_io.kafka.errors import connection_failure
from resilient_io.kafka.options import split_options
from resilient_io.kafka.probe import GROUP, find_coordinator, request_metadata
from resilient_io.link import read_link
from resilient_io.text import describe_error
from resilient_io.urls import read_kafka_url

from .link import REQUESTS, check_link
from .network import Endpoint, check_path
from .steps import (
    CheckResult,
    Checks,
    Status,
    merged,
    milder,
    ok,
    problem,
    together,
    unknown,
)
from .tls import CLIENT_CERTIFICATE, check_tls, no_tls, tls_needed, uses_tls
from .urls import WRONG_PASSWORD

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncGenerator, Sequence

    from resilient_io.kafka.driver import Connection
    from resilient_io.kafka.errors import ConnectionFailure

    from .steps import Step

_PLAIN_ANSWER: Final = 1.0
"""Seconds for a broker that closed a TLS handshake to answer without TLS."""

_WITHOUT_COORDINATOR: Final = 1.0
"""Seconds for which a missing group coordinator is asked for again: it may be moving."""

_PAUSE: Final = 0.1
_NONE: Final = -1

_CLASS: Final = re.compile(r"^(\[Error \d+\] )?\w+(Error|Failed): ")
"""How aiokafka's messages begin: "[Error 58] SaslAuthenticationFailed: "."""

_SASL: Final = {
    "IllegalSaslState": (
        " does not accept a login, but the URL has one",
        "Remove user and password from the URL, or use the port of a listener with SASL.",
    ),
    "UnsupportedSaslMechanism": (
        " does not support the SASL mechanism of the URL",
        "Use one of the broker's sasl.enabled.mechanisms: ?sasl_mechanism=SCRAM-SHA-512, say.",
    ),
}
"""What aiokafka's SASL errors mean, whose messages contain nothing but their names."""

_FROZEN: Final = (
    "Check whether the broker is frozen or overloaded (its log, its garbage collection), or the "
    "port uses TLS or another protocol."
)
_CLOSED: Final = (
    "Check whether its listener requires a login (use kafka://user:password@…), and whether the "
    "port is for clients, not for controllers."
)

_NO_COORDINATOR: Final = (
    GroupCoordinatorNotAvailableError,
    GroupLoadInProgressError,
    NotCoordinatorForGroupError,
)


@dataclass(frozen=True, slots=True)
class ClusterMetadata:
    """What a broker says about its cluster."""

    id: str | None
    controller: int | None  # node id of the broker that acts as the controller
    brokers: Mapping[int, Endpoint]  # where each broker says that it can be reached, by node id


def examine_kafka(url: str, *, timeout: float, group: str | None) -> AsyncGenerator[Step, None]:
    """Check the connection to a Kafka cluster; see `resilient_io.doctor.examine`."""
    options = read_kafka_url(url)
    servers = options.pop("bootstrap_servers")
    target = KafkaTarget(servers, split_options(options, of=AIOKafkaConsumer, owned={}).client)
    checks = Checks(timeout, [str(options.get("sasl_plain_password") or "")])
    return _examine(checks, target, options.get("ssl_context"), group)


async def _examine(
    checks: Checks, target: KafkaTarget, context: ssl.SSLContext | None, group: str | None
) -> AsyncGenerator[Step, None]:
    """Yield the steps, until one finds that the next ones make no sense."""
    endpoints = [Endpoint(host, port) for host, port in target.bootstrap]
    opened: list[Connection] = []
    try:
        async with contextlib.aclosing(check_path(checks, endpoints)) as path:
            async for step in path:
                yield step
        reached = [each for each in endpoints if each.reached]
        if not reached:
            return
        if context is not None:
            step = await checks.run("TLS", lambda: _check_tls(reached, context), limit=checks.half)
            yield step
            if step.status is Status.PROBLEM:
                return
        limit = checks.half
        names = ", ".join(each.text for each in reached)
        yield await checks.run(
            "login",
            lambda: _check_login(target, reached, limit, opened),
            on_timeout=problem(f"{names} accepted the connection, but did not answer", _FROZEN),
        )
        if not opened:
            return
        clusters: list[ClusterMetadata] = []
        left = checks.left
        yield await checks.run(
            "reply", lambda: _check_reply(opened[0], left, clusters), limit=checks.half
        )
        if not clusters:
            return
        sock = socket_of(opened[0])
        if read_link(sock) is not None:
            yield await check_link(checks, sock, lambda: _send_many(opened[0], left))
        limit = checks.half
        yield await checks.run(
            "listeners", lambda: check_listeners(clusters[0], target, endpoints, limit)
        )
        if group is not None:
            limit = checks.left
            yield await checks.run("group", lambda: check_group(opened[0], target, group, limit))
    finally:
        for each in opened:
            abort_connection(each)


async def _check_login(
    target: KafkaTarget, reached: Sequence[Endpoint], timeout: float, opened: list[Connection]
) -> CheckResult:
    """Connect to every bootstrap server; the first connection is used from then on."""
    errors = await together("login", (_log_in(target, each, timeout, opened) for each in reached))
    results = []
    for endpoint, error in zip(reached, errors, strict=True):
        if error is not None:
            result = await judge_failure(endpoint, _failure(error, target), target)
            results.append(milder(result, others_work=bool(opened)))
    if opened:
        how = "with" if target.uses_sasl else "without"
        results.append(ok(f"accepted by {errors.count(None)} of {len(errors)}, {how} a login"))
    return merged(results)


async def _send_many(connection: Connection, timeout: float) -> None:
    """Send many requests at once, and wait for the responses."""
    await together("link", (request_metadata(connection, (), timeout) for _ in range(REQUESTS)))


async def _check_reply(
    connection: Connection, timeout: float, clusters: list[ClusterMetadata]
) -> CheckResult:
    try:
        cluster = await ask_cluster(connection, timeout)
    except KafkaError as error:
        return unknown(f"the connection was lost: {describe_error(error)}", "Try again.")
    clusters.append(cluster)
    return judge_cluster(cluster)


def _failure(error: KafkaError | OSError, target: KafkaTarget) -> ConnectionFailure:
    return connection_failure(error, tls=target.uses_tls, secrets=target.secrets())


async def _log_in(
    target: KafkaTarget, endpoint: Endpoint, timeout: float, opened: list[Connection]
) -> KafkaError | OSError | None:
    """Connect to a broker and send a request, at each of its addresses until one answers.

    The connection is added to `opened`, and the caller closes it. Returns the error of the last
    address; None if one answered.
    """
    # With TLS the name is needed for the certificate.
    hosts = [endpoint.host] if target.uses_tls else list(endpoint.reached)
    failure: KafkaError | OSError | None = None
    for host in hosts:
        connection: Connection | None = None
        try:
            connection = await target.connect(host, endpoint.port, timeout / len(hosts))
            # A listener with SASL closes a connection without a login only now.
            await ask_cluster(connection, timeout / len(hosts))
        except (KafkaError, OSError) as error:
            failure = error
        else:
            opened.append(connection)
            return None
        finally:
            if connection is not None and connection not in opened:
                abort_connection(connection)
    return failure


async def ask_cluster(connection: Connection, timeout: float) -> ClusterMetadata:
    """Ask a broker for its cluster within `timeout` seconds. Creates no topic."""
    async with asyncio.timeout(timeout):
        answer: Any = await connection.send(MetadataRequest([], allow_auto_topic_creation=False))
    controller = getattr(answer, "controller_id", _NONE)
    return ClusterMetadata(
        id=getattr(answer, "cluster_id", None),
        controller=None if controller == _NONE else controller,
        brokers={node: Endpoint(host, port) for node, host, port, *_ in answer.brokers},
    )


async def _check_tls(endpoints: Sequence[Endpoint], context: ssl.SSLContext) -> CheckResult:
    results = await together("TLS", (_try_tls(each, context) for each in endpoints))
    others_work = any(each.status is not Status.PROBLEM for each in results)
    distinct = {each.found: each for each in results}  # brokers often share a certificate
    return merged([milder(each, others_work=others_work) for each in distinct.values()])


async def _try_tls(endpoint: Endpoint, context: ssl.SSLContext) -> CheckResult:
    result = await check_tls(endpoint, context, trust_option="ssl_cafile", plain_scheme="kafka")
    if not result.data.get("hung_up"):
        return result
    try:
        connection = await KafkaTarget(endpoint.text).connect(
            endpoint.host, endpoint.port, _PLAIN_ANSWER
        )
    except (KafkaError, OSError):
        return result
    abort_connection(connection)
    return no_tls(endpoint, "kafka")


async def judge_failure(
    endpoint: Endpoint, failure: ConnectionFailure, target: KafkaTarget
) -> CheckResult:
    """Return why a broker that accepted the connection did not answer, and what to do."""
    detail = _CLASS.sub("", failure.detail) or failure.detail
    if failure.cause is Cause.AUTH:
        found, advice = next(
            (meaning for name, meaning in _SASL.items() if name in failure.detail),
            (f": authentication failed: {detail}", WRONG_PASSWORD),
        )
    elif failure.cause is Cause.TIMED_OUT:
        found, advice = " accepts connections, but does not answer", _FROZEN
    elif failure.cause in (Cause.RESET, Cause.PROTOCOL) and not target.uses_tls:
        if await uses_tls(endpoint):
            return tls_needed(endpoint, "kafkas", "ssl_cafile")
        found, advice = " closed the connection on the first request", _CLOSED
    elif failure.cause in (Cause.RESET, Cause.TLS):
        found, advice = " closed the connection after the TLS handshake", CLIENT_CERTIFICATE
    else:
        found, advice = f": {detail}", "Check the broker's log."
    return problem(f"{endpoint.text}{found}", advice, cause=failure.cause.value)


def judge_cluster(cluster: ClusterMetadata) -> CheckResult:
    """Return whether one of the cluster's brokers is its controller."""
    nodes = sorted(cluster.brokers)
    data = {"cluster_id": cluster.id, "brokers": nodes, "controller": cluster.controller}
    found = f"{len(nodes)} broker{'s' * (len(nodes) != 1)} ({', '.join(map(str, nodes))})"
    if cluster.controller not in nodes:
        return problem(
            f"{found}, but no controller",
            "Without a controller no leader is elected and no topic is created: check whether a "
            "majority of the controllers is up.",
            **data,
        )
    return ok(f"{found}, controller {cluster.controller}", **data)


async def check_listeners(
    cluster: ClusterMetadata, target: KafkaTarget, bootstrap: Sequence[Endpoint], timeout: float
) -> CheckResult:
    """Connect to every broker at its advertised address, and ask there for the cluster.

    A client asks a bootstrap server for the brokers, and from then on connects to what they
    advertise. In containers that is often another name than the bootstrap address.
    """
    nodes = sorted(cluster.brokers)
    failures = await together(
        "listener", (_try_listener(cluster, node, target, timeout) for node in nodes)
    )
    bad = {node: why for node, why in zip(nodes, failures, strict=True) if why is not None}
    if not bad:
        named = ", ".join(cluster.brokers[node].text for node in nodes)
        plural = "broker answers" if len(nodes) == 1 else "brokers answer"
        return ok(f"{len(nodes)} {plural} where advertised ({named})")
    known = next((each.host for each in bootstrap if each.reached), "the bootstrap address")
    if any("another cluster" in why for why in bad.values()):
        advice = "Two clusters are mixed up: check where that name leads from here."
    else:
        advice = (
            "Clients connect there, whatever the bootstrap address is: set advertised.listeners of "
            f"the brokers to a host and port that can be reached from here, such as {known} (with "
            "Docker: the name in the shared network, or the mapped port). localhost is the machine "
            "(or container) of the client, not of the broker. For clients in two networks, a "
            "broker needs one listener each."
        )
        if len(bad) < len(nodes):
            advice = f"Check whether these brokers have just died. Otherwise: {advice}"
    return merged(
        [
            problem(f"broker {node} advertises {cluster.brokers[node].text}: {why}", advice)
            for node, why in bad.items()
        ]
    )


async def _try_listener(
    cluster: ClusterMetadata, node: int, target: KafkaTarget, timeout: float
) -> str | None:
    """Return why a broker cannot be used at its advertised address, or None."""
    endpoint = cluster.brokers[node]
    opened: list[Connection] = []
    try:
        async with asyncio.timeout(timeout):
            if await endpoint.look_up() is not None:
                return "this name does not exist here"
            await endpoint.connect(timeout)
            if not endpoint.reached:
                return next(iter(endpoint.failed.values()))
            error = await _log_in(target, endpoint, timeout, opened)
            if error is not None:
                raise error
            there = await ask_cluster(opened[0], timeout)
    except TimeoutError:
        return f"no answer within {timeout:.1f} s"
    except (KafkaError, OSError) as error:
        return f"connected, but {_CLASS.sub('', _failure(error, target).detail)}"
    finally:
        for connection in opened:
            abort_connection(connection)
    if None not in (cluster.id, there.id) and there.id != cluster.id:
        return f"a broker of another cluster answers there ({there.id}, not {cluster.id})"
    return None


async def check_group(
    connection: Connection, target: KafkaTarget, group: str, timeout: float
) -> CheckResult:
    """Check whether a group exists, and whether its coordinator can be reached."""
    loop = asyncio.get_running_loop()
    until = loop.time() + min(_WITHOUT_COORDINATOR, timeout / 2)
    while True:
        try:
            return await _check_group(connection, target, group, timeout)
        except _NO_COORDINATOR as error:
            if loop.time() >= until:
                return problem(
                    f"the group {group} has no coordinator now ({type(error).__name__})",
                    "Check whether the partitions of __consumer_offsets have a leader, and whether "
                    "enough brokers are up to create it (offsets.topic.replication.factor).",
                )
        except GroupAuthorizationFailedError:
            return unknown(
                f"no permission for the group {group}",
                "Allow the user to Describe it: kafka-acls.sh --add --operation Describe --group …",
            )
        except KafkaError as error:
            return unknown(f"the group could not be described: {describe_error(error)}")
        await asyncio.sleep(_PAUSE)


async def _check_group(
    connection: Connection, target: KafkaTarget, group: str, timeout: float
) -> CheckResult:
    host, port = await find_coordinator(connection, GROUP, group, timeout)
    where = Endpoint(host, port).text
    try:
        coordinator = await target.connect(host, port, timeout)
    except (KafkaError, OSError) as error:
        return problem(
            f"the coordinator at {where} cannot be reached: {_failure(error, target).detail}",
            "No consumer can join this group from here: see the step `listeners`.",
        )
    try:
        async with asyncio.timeout(timeout):
            answer: Any = await coordinator.send(DescribeGroupsRequest([group]))
    finally:
        abort_connection(coordinator)
    code, _, state = answer.groups[0][:3]
    refusal = for_code(code)
    if refusal is not NoError:
        raise refusal(group)
    return judge_group(group, state, where)


def judge_group(group: str, state: str, coordinator: str) -> CheckResult:
    """Return whether a group exists."""
    if state == "Dead":
        return problem(
            f"the group {group} does not exist",
            "Check its spelling (group_id=), and whether its consumer has ever started. A group "
            "that was empty for offsets.retention.minutes is removed, too.",
        )
    return ok(f"the group {group} is {state.lower()}, coordinator {coordinator}", state=state)
