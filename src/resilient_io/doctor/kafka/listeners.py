"""Whether the addresses that brokers give to their clients are good from here.

A client asks a bootstrap server who the brokers are, and from then on connects to what they
advertise. In containers that often is another name than the one that was reached.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from aiokafka.errors import KafkaError

from resilient_io.doctor.looking import Finding, merged, ok, problem, together
from resilient_io.doctor.network import Place, addresses_of, knock
from resilient_io.kafka.driver import abort_connection
from resilient_io.kafka.errors import connection_failure

from .questions import ask_cluster

if TYPE_CHECKING:
    from collections.abc import Sequence

    from resilient_io.kafka.connect import KafkaTarget

    from .questions import Cluster

__all__ = ["look_at_listeners"]

_LOOPBACK: Final = ("localhost", "127.", "::1")


async def look_at_listeners(
    cluster: Cluster, target: KafkaTarget, bootstrap: Sequence[Place], timeout: float
) -> Finding:
    """Connect to every broker where it says that it is, and ask there for the cluster.

    Args:
        cluster: What the bootstrap server said.
        target: How to log in.
        bootstrap: Where we were reached from the URL.
        timeout: Seconds until a broker counts as silent.
    """
    nodes = sorted(cluster.brokers)
    failures = await together(
        "listener",
        (_try(*cluster.brokers[node], cluster.id, target, timeout) for node in nodes),
    )
    data: dict[str, Any] = {
        str(node): {"advertised": _written(cluster, node), "failure": failure}
        for node, failure in zip(nodes, failures, strict=True)
    }
    bad = [(node, why) for node, why in zip(nodes, failures, strict=True) if why is not None]
    if not bad:
        count = "the broker answers" if len(nodes) == 1 else f"{len(nodes)} brokers answer"
        named = ", ".join(_written(cluster, node) for node in nodes)
        return ok(f"{count} where advertised ({named})", brokers=data)
    findings = [
        problem(f"broker {node} says it is at {_written(cluster, node)}: {why}", "")
        for node, why in bad
    ]
    told = merged(findings, brokers=data)
    return problem(told.found, _advice(cluster, bad, bootstrap, len(nodes)), **told.data)


def _advice(
    cluster: Cluster, bad: Sequence[tuple[int, str]], bootstrap: Sequence[Place], count: int
) -> str:
    hosts = [cluster.brokers[node][0] for node, _ in bad]
    reached = next((place.host for place in bootstrap if place.reached), None)
    if any("another cluster" in why for _, why in bad):
        return (
            "Two clusters are mixed up: look where that name leads from here, and what listens "
            "there."
        )
    here = all(host.startswith(_LOOPBACK) for host in hosts)
    if here and not any(place.is_loopback for place in bootstrap):
        return (
            "That is this machine (or container) itself, not the broker's: set its "
            f"advertised.listeners to an address that is known here, such as {reached}; for "
            "clients inside and outside of the containers' network it needs one listener each."
        )
    if len(bad) < count:
        return (
            "Look whether these brokers have just died (they are dropped from the list some "
            "seconds later); else their advertised.listeners, or the way to them, is wrong."
        )
    return (
        "Clients connect there, whatever the bootstrap address is: set advertised.listeners of the "
        "brokers to host and port that can be reached from here (with Docker: the name in the "
        "shared network, or the mapped port), or open the way to what they advertise."
    )


async def _try(
    host: str, port: int, cluster_id: str | None, target: KafkaTarget, timeout: float
) -> str | None:
    """Say why a broker cannot be used at an address; None when it can."""
    try:
        async with asyncio.timeout(timeout):
            place = Place(host, port)
            error = await addresses_of(place)
            if error is not None:
                return "there is no such name here"
            failures = [await knock(address, port, timeout) for address in place.addresses]
            if all(failures):
                return failures[0]
            return await _ask(host, port, cluster_id, target, timeout)
    except TimeoutError:
        return "no answer"


async def _ask(
    host: str, port: int, cluster_id: str | None, target: KafkaTarget, timeout: float
) -> str | None:
    try:
        connection = await target.connect(host, port, timeout)
    except (KafkaError, OSError) as error:
        failure = connection_failure(error, tls=target.uses_tls, secrets=target.secrets())
        return f"connected, but {failure.detail}"
    try:
        said = await ask_cluster(connection, (), timeout)
    except KafkaError as error:
        failure = connection_failure(error, tls=target.uses_tls, secrets=target.secrets())
        return f"connected, but {failure.detail}"
    finally:
        abort_connection(connection)
    if cluster_id is not None and said.id is not None and said.id != cluster_id:
        return f"a broker of another cluster answers there ({said.id}, not {cluster_id})"
    return None


def _written(cluster: Cluster, node: int) -> str:
    host, port = cluster.brokers[node]
    return Place(host, port).written
