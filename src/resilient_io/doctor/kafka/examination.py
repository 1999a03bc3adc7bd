"""The order in which a Kafka cluster is looked at."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Final

from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaError

from resilient_io.doctor.looking import Finding, Looking, blind, merged, ok, together
from resilient_io.doctor.network import (
    Place,
    look_at_names,
    look_at_ports,
    milder,
    silent_names,
)
from resilient_io.doctor.step import Status
from resilient_io.doctor.tls import look_at_tls, no_tls
from resilient_io.doctor.urls import read_kafka_url
from resilient_io.kafka.connect import KafkaTarget
from resilient_io.kafka.driver import abort_connection
from resilient_io.kafka.options import split_options

from .entrance import look_at_login, silent_login
from .group import look_at_group
from .listeners import look_at_listeners
from .partitions import look_at_brokers, look_at_partitions
from .questions import ask_cluster

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

    from resilient_io.doctor.step import Step
    from resilient_io.kafka.protocols import Connection

    from .questions import Cluster

__all__ = ["examine_kafka"]

_SHARE: Final = 0.5
"""How much of the time that is left one step may use: others come after it."""


_PLAIN_ANSWER: Final = 1.0
"""Seconds for the answer of a broker that hung up on TLS to a question in the clear."""


def examine_kafka(
    url: str, *, timeout: float, group: str | None, topics: Sequence[str]
) -> AsyncGenerator[Step, None]:
    """Look at a Kafka cluster; see `resilient_io.doctor.examine`.

    Raises:
        ConfigurationError: The URL or an option in it cannot be used.
    """
    options = read_kafka_url(url)
    servers = options.pop("bootstrap_servers")
    target = KafkaTarget(servers, split_options(options, of=AIOKafkaConsumer, owned={}).client)
    look = _Look(target, options.get("ssl_context"), Looking(timeout), group, list(topics))
    return _examine(look)


async def _examine(look: _Look) -> AsyncGenerator[Step, None]:
    try:
        for take in look.steps():
            step = await take()
            yield step
            if look.ended(step):
                return
    finally:
        look.close()


class _Look:
    """One look at one cluster, step by step."""

    def __init__(
        self,
        target: KafkaTarget,
        context: ssl.SSLContext | None,
        looking: Looking,
        group: str | None,
        topics: list[str],
    ) -> None:
        self._target = target
        self._context = context
        self._looking = looking
        self._group = group
        self._topics = topics
        self._places = [Place(host, port) for host, port in target.bootstrap]
        self._connection: Connection | None = None
        self._cluster: Cluster | None = None

    def close(self) -> None:
        """Close what is open."""
        connection, self._connection = self._connection, None
        if connection is not None:
            abort_connection(connection)

    def steps(self) -> list[Callable[[], Awaitable[Step]]]:
        """Give the steps in their order."""
        steps: list[Callable[[], Awaitable[Step]]] = [self._take_names, self._take_ports]
        if self._context is not None:
            steps.append(functools.partial(self._take_tls, self._context))
        steps += [self._take_login, self._take_brokers, self._take_listeners]
        steps.append(self._take_partitions)
        if self._group is not None:
            steps.append(functools.partial(self._take_group, self._group))
        return steps

    def ended(self, step: Step) -> bool:
        """Tell whether nothing can be seen beyond a step."""
        if self._connection is None:
            return step.status is Status.PROBLEM or step.name == "login"
        return self._cluster is None and step.name == "brokers"

    async def _take_names(self) -> Step:
        return await self._looking.take(
            "name",
            functools.partial(look_at_names, self._places),
            share=_SHARE,
            silence=silent_names(self._places),
        )

    async def _take_ports(self) -> Step:
        wait = self._looking.left * _SHARE
        return await self._looking.take("TCP", lambda: look_at_ports(self._places, wait))

    @property
    def _reached(self) -> list[Place]:
        return [place for place in self._places if place.reached]

    async def _take_tls(self, context: ssl.SSLContext) -> Step:
        async def look() -> Finding:
            found = await together("TLS", (_try_tls(place, context) for place in self._reached))
            some_work = any(each.status is not Status.PROBLEM for each in found)
            return merged([milder(each, some_work=some_work) for each in _distinct(found)])

        return await self._looking.take("TLS", look, share=_SHARE)

    async def _take_login(self) -> Step:
        def keep(connection: Connection) -> None:
            self._connection = connection

        look = functools.partial(
            look_at_login, self._reached, self._target, self._looking.left * _SHARE, keep
        )
        return await self._looking.take("login", look, silence=silent_login(self._reached))

    async def _take_brokers(self) -> Step:
        async def look() -> Finding:
            if self._connection is None:
                return blind("no broker answered")
            try:
                # All topics: the copies of partitions tell which brokers should be there.
                cluster = await ask_cluster(self._connection, None, self._looking.left)
            except KafkaError as error:
                return blind(f"the connection was lost: {error}")
            self._cluster = cluster
            return look_at_brokers(cluster)

        return await self._looking.take("brokers", look, share=_SHARE)

    async def _take_listeners(self) -> Step:
        async def look() -> Finding:
            if self._cluster is None:
                return blind("no broker has named the others")
            return await look_at_listeners(self._cluster, self._target, self._places, wait)

        wait = self._looking.left * _SHARE
        return await self._looking.take("listeners", look)

    async def _take_partitions(self) -> Step:
        async def look() -> Finding:
            if self._cluster is None or self._connection is None:
                return blind("no broker has named the partitions")
            shown = self._cluster
            if self._topics:
                try:
                    shown = await ask_cluster(self._connection, self._topics, self._looking.left)
                except KafkaError as error:
                    return blind(f"the connection was lost: {error}")
            return look_at_partitions(shown)

        return await self._looking.take("partitions", look)

    async def _take_group(self, group: str) -> Step:
        async def look() -> Finding:
            if self._cluster is None or self._connection is None:
                return blind("no broker answered")
            return await look_at_group(
                self._connection, self._cluster, self._target, group, self._looking.left
            )

        return await self._looking.take("group", look)


async def _try_tls(place: Place, context: ssl.SSLContext) -> Finding:
    found = await look_at_tls(place, context, trust_option="ssl_cafile", plain_scheme="kafka")
    if not found.data.get("hung_up"):
        return found
    try:
        connection = await KafkaTarget(place.written).connect(place.host, place.port, _PLAIN_ANSWER)
    except (KafkaError, OSError):
        return found
    abort_connection(connection)
    return no_tls(place, "kafka")


def _distinct(findings: list[Finding]) -> list[Finding]:
    """Leave out what was found before: brokers mostly have the same certificate."""
    kept: dict[str, Finding] = {}
    for each in findings:
        kept.setdefault(each.found, each)
    return list(kept.values()) or [ok("no broker was reached")]
