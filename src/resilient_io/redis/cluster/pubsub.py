"""`redis.pubsub()` of a cluster client: shard channels arrive from the nodes of their slots."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any

import redis.asyncio.client as driver_client
from redis.asyncio.cluster import ClusterPubSub

from resilient_io.health import Cause

from ..commands import lookup
from ..errors import RedisClosed
from ..messages import MOST_BYTES, MOST_MESSAGES, Gap, MessageQueue
from ..pubsub import NOT_SET, ResilientPubSub
from ..subscription_connection import SUBSCRIBING, UNSUBSCRIBING
from .subscriber import ClusterSubscriber, ClusterSubscriptionCall, slots_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis.asyncio.cluster import ClusterNode

    from ..subscription import Subscription
    from .runtime import ClusterRuntime

_SHARDED = ("SSUBSCRIBE", "SUNSUBSCRIBE")


class ResilientClusterPubSub(ResilientPubSub, ClusterPubSub):
    """A `redis.asyncio.cluster.ClusterPubSub` that survives outages, failovers and migrations.

    As with redis-py, `get_message` and `listen` return messages of channels and patterns, which
    arrive from any one node, and `get_sharded_message` those of shard channels, each of which
    arrives from the node that has its slot. Without a subscription to channels and patterns,
    `get_message` and `listen` return messages of shard channels, too.

    When a node is lost, or a slot moves, subscriptions continue on another node. Otherwise, this
    behaves as `ResilientPubSub`; the limits of waiting messages apply to both kinds separately.

    Args:
        client: The client, which this keeps from being collected.
        runtime: What the client runs on.
        node: The node for channels and patterns, which then stay there; None for any.
        host: Its host, instead of `node`.
        port: Its port.
        on_gap: As for `ResilientPubSub`.
        max_messages: As for `ResilientPubSub`.
        max_message_bytes: As for `ResilientPubSub`.
        **options: Those of `redis.asyncio.cluster.ClusterPubSub`.

    Raises:
        ConfigurationError: A limit is not a positive integer.
        redis.exceptions.RedisClusterException: The cluster does not have the node.
    """

    def __init__(
        self,
        client: Any,
        runtime: ClusterRuntime,
        *,
        node: ClusterNode | None = None,
        host: str | None = None,
        port: int | None = None,
        on_gap: Callable[[dict[str, Any]], object] | None = None,
        max_messages: int = MOST_MESSAGES,
        max_message_bytes: int = MOST_BYTES,
        **options: Any,
    ) -> None:
        self._cluster_runtime = runtime
        self._subscriber: ClusterSubscriber | None = None
        self.cluster = client
        self.node_pubsub_mapping = {}
        self.set_pubsub_node(client, node, host, port)
        chosen: Any = self.node
        self._fixed = None if chosen is None else (chosen.host, int(chosen.port))
        options.setdefault("encoder", client.encoder)
        super().__init__(
            client,
            None,
            on_gap=on_gap,
            max_messages=max_messages,
            max_message_bytes=max_message_bytes,
            **options,
        )

    # -- redis-py's attributes -------------------------------------------------------------

    @property
    def connection(self) -> Any:
        """redis-py's connection for channels and patterns, or None while there is none."""
        subscriber = self._subscriber
        plain = None if subscriber is None else subscriber.plain
        if plain is None or plain.connection is None:
            return None
        return plain.connection.connection

    @connection.setter
    def connection(self, connection: Any) -> None:
        """Ignore what redis-py's constructor assigns."""

    # redis-py's cluster class opens a connection for each node instead.
    ssubscribe = driver_client.PubSub.ssubscribe
    sunsubscribe = driver_client.PubSub.sunsubscribe  # type: ignore[assignment]

    async def on_slots_changed(self) -> None:
        """Do nothing: subscriptions follow the slot table by themselves."""

    async def reinitialize_shard_subscriptions(self) -> None:
        """Do nothing: subscriptions follow the slot table by themselves."""

    # -- commands --------------------------------------------------------------------------

    async def execute_command(self, *args: Any, **_: Any) -> Any:
        """Send a command to any node, or to the nodes of its shard channels.

        Raises:
            ResilientIOError: No connection could be made; see `resilient_io.redis.errors`.
        """
        name = lookup(args).name
        names = [bytes(self.encoder.encode(each)) for each in args[1:]]
        if name in UNSUBSCRIBING:
            self._unsubscribe(name, names)
            return
        if name in _SHARDED:
            for slot, channels in slots_of(names).items():
                for each in channels:
                    await self._send_to(name, partial(_subscribe, name, [each]), slot=slot)
        elif name in SUBSCRIBING:
            await self._send_to(name, partial(_subscribe, name, names))
        else:
            await self._send_to(name, partial(_send, name, args))

    async def connect(self) -> None:
        """Ensure that there is a connection for channels. Does not wait if it is being replaced."""
        if self._subscriber is None:
            await self._send_to("pubsub", None)

    async def _send_to(
        self,
        name: str,
        send: Callable[[Subscription], None] | None,
        *,
        slot: int | None = None,
    ) -> None:
        await self._client._ensure_open(name)
        runtime = self._cluster_runtime
        subscriber = self._open_subscriber()
        call = ClusterSubscriptionCall(subscriber, runtime.router, name, send, slot=slot)
        started = asyncio.get_running_loop().time()
        await runtime.executor.run(call, self._client._policy, started=started)
        address = subscriber.plain_address
        if address is not None:
            node: Any = self.cluster.get_node(*address)
            self.node = node

    def _open_subscriber(self) -> ClusterSubscriber:
        subscriber = self._subscriber
        if subscriber is None or subscriber.ended or subscriber.loop.is_closed():
            runtime = self._cluster_runtime
            self._subscriber = subscriber = ClusterSubscriber(
                runtime.router,
                MessageQueue(*self._limits),
                MessageQueue(*self._limits),
                node=self._fixed,
                rng=runtime.rng,
            )
            runtime.subscribers.append(subscriber)
        return subscriber

    def _unsubscribe(self, name: str, names: list[bytes]) -> None:
        """Unsubscribe. Without a connection, it is confirmed immediately."""
        subscriber = self._subscriber
        if subscriber is None or subscriber.ended:
            self._forget_channels(name)
        elif name in _SHARDED:
            for each in names or subscriber.shard_channels:
                found = subscriber.holding(each)
                if found is None:  # as the server does for a channel without a subscription
                    subscriber.sharded_messages.put([b"sunsubscribe", each, 0])
                else:
                    found.unsubscribe(name, [each])
        elif subscriber.plain is not None:
            subscriber.plain.unsubscribe(name, names)
        else:
            self._forget_channels(name)

    # -- reading ---------------------------------------------------------------------------

    async def get_sharded_message(
        self,
        ignore_subscribe_messages: bool = False,
        timeout: float | None = 0.0,
        target_node: ClusterNode | None = None,  # noqa: ARG002 (redis-py's signature)
    ) -> dict[str, Any] | None:
        """Return the next message of a shard channel, or None if there is none in time.

        Args:
            ignore_subscribe_messages: Whether to hide confirmations and gaps.
            timeout: Longest wait in seconds; None for no limit.
            target_node: Without effect: messages of all nodes arrive in one queue.
        """
        messages = await self._reader(sharded=True)
        response = await self._take(messages, block=timeout is None, timeout=timeout or 0.0)
        if not response:
            return None
        return await self.handle_message(response, ignore_subscribe_messages)

    async def _reader(self, *, sharded: bool | None = None) -> MessageQueue:
        """Return the messages of shard channels, or the others, that can be read here."""
        subscriber = self._subscriber
        if subscriber is None:
            raise RuntimeError(NOT_SET)
        elsewhere = subscriber.loop is not asyncio.get_running_loop()
        if elsewhere and not subscriber.loop.is_closed():
            raise RuntimeError("this subscriber is in use in another running event loop")
        if (elsewhere or subscriber.ended) and self.subscribed:
            subscriber = await self._subscribe_again(subscriber)
        if sharded is None:
            sharded = subscriber.plain is None and subscriber.sharded
        return subscriber.sharded_messages if sharded else subscriber.messages

    async def _subscribe_again(self, before: ClusterSubscriber) -> ClusterSubscriber:
        """Subscribe to everything again: the client was closed meanwhile."""
        await self._client._ensure_open("pubsub")
        subscriber = self._open_subscriber()
        gap = Gap(Cause.CLOSED, subscriber.loop.time() - before.ended_at, "the client was closed")
        for channels, messages in (
            ([*self.channels, *self.patterns], subscriber.messages),
            (list(self.shard_channels), subscriber.sharded_messages),
        ):
            if channels:
                messages.put(gap)
        for name, names in (
            ("SUBSCRIBE", self._wanted(self.channels, self.pending_unsubscribe_channels)),
            ("PSUBSCRIBE", self._wanted(self.patterns, self.pending_unsubscribe_patterns)),
            (
                "SSUBSCRIBE",
                self._wanted(self.shard_channels, self.pending_unsubscribe_shard_channels),
            ),
        ):
            if names:
                await self.execute_command(name, *names)
        return subscriber

    # -- the end ---------------------------------------------------------------------------

    async def aclose(self) -> None:
        """Close the connections and forget all channels. Readers raise `RedisClosed`. Idempotent.

        Cancelling returns immediately; the closing continues in the background.
        """
        subscriber, self._subscriber = self._subscriber, None
        self._forget_all_channels()
        if subscriber is None:
            return
        runtime = self._cluster_runtime
        if subscriber in runtime.subscribers:
            runtime.subscribers.remove(subscriber)
        if subscriber.loop is not asyncio.get_running_loop():
            subscriber.end_later()
            return
        name = self._client.health.name
        subscriber.close(
            RedisClosed("the subscriber was closed", dependency=name, operation="pubsub")
        )
        await subscriber.aclose()

    def _end_later(self) -> bool:
        """End in the background. Return whether there was anything to end."""
        subscriber = self.__dict__.get("_subscriber")
        if subscriber is None or subscriber.ended:
            return False
        runtime = self._cluster_runtime
        if subscriber in runtime.subscribers:
            runtime.subscribers.remove(subscriber)
        subscriber.end_later()
        return True


def _subscribe(name: str, names: list[bytes], subscription: Subscription) -> None:
    subscription.subscribe(name, names)


def _send(name: str, args: tuple[Any, ...], subscription: Subscription) -> None:
    subscription.send(name, args)
