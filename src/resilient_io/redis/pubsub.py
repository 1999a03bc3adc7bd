"""`redis.pubsub()`: redis-py's object, on a connection that is replaced whenever it is lost."""

from __future__ import annotations

import asyncio
import inspect
import logging
import warnings
from functools import partial
from typing import TYPE_CHECKING, Any

import hiredis
import redis.asyncio.client as driver_client

from resilient_io.health import Cause

from .commands import lookup
from .connection import NotMultiplexable
from .errors import ConnectionFailure
from .messages import MOST_BYTES, MOST_MESSAGES, Gap, MessageQueue
from .subscription import SubscriptionCall
from .subscription_connection import SUBSCRIBING, UNSUBSCRIBING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from .messages import Item
    from .runtime import Runtime
    from .subscription import Subscription

_log = logging.getLogger("resilient_io.redis")

_READ_AT_ONCE = 64  # messages that are read without letting other tasks run

NOT_SET = (
    "pubsub connection not set: did you forget to call subscribe() or psubscribe()?"  # redis-py's
)


class ResilientPubSub(driver_client.PubSub):
    """A `redis.asyncio.client.PubSub` that survives outages of the server.

    Methods and messages are redis-py's. The connection is a part of the client: while it is idle,
    it is pinged; when it is lost, it is replaced, and everything is subscribed to again. Readers
    (`listen`, `get_message`, `run`) wait meanwhile and do not raise. Before the next message they
    receive one of type "gap", whose data is a `Gap`: messages may have been missed.

    `subscribe` and the like wait for the connection within the client's deadline, and raise as a
    command does if there is none. `unsubscribe` never waits. Cancelling a reader loses no message,
    except one whose handler is running.

    Args:
        client: The client, which this keeps from being collected.
        runtime: What the client runs on.
        on_gap: Called with the gap message, which is then not returned; may be a coroutine
            function. Without it, `ignore_subscribe_messages=True` also hides the gap messages, and
            they are logged.
        max_messages: Messages that wait to be read. Further ones are dropped, which is reported as
            a gap with the cause `SLOW_SUBSCRIBER`.
        max_message_bytes: Bytes of messages that wait to be read. The default is that of the server
            (`client-output-buffer-limit pubsub`).
        **options: Those of `redis.asyncio.client.PubSub`.

    Raises:
        ConfigurationError: A limit is not a positive integer.
    """

    encoder: Any  # redis-py's, whose constructor always assigns one

    def __init__(
        self,
        client: Any,
        runtime: Any,
        *,
        on_gap: Callable[[dict[str, Any]], object] | None = None,
        max_messages: int = MOST_MESSAGES,
        max_message_bytes: int = MOST_BYTES,
        **options: Any,
    ) -> None:
        self._client = client
        self._runtime: Runtime = runtime
        self._subscription: Subscription | None = None
        self._messages: MessageQueue | None = None
        self._limits = (max_messages, max_message_bytes)
        MessageQueue(*self._limits)  # checks them
        if on_gap is not None and not callable(on_gap):
            raise TypeError(f"on_gap must be a function, not {type(on_gap).__name__}")
        self._on_gap = on_gap
        self._read = 0
        self._plain = False  # whether redis-py reads: the connection of a fake has no transport
        self._plain_connection: Any = None
        # Not that of redis-py's cluster class, which may be a base, too.
        pool: Any = getattr(client, "connection_pool", None)  # a cluster client has none
        driver_client.PubSub.__init__(self, pool, **options)

    # -- redis-py's attributes -------------------------------------------------------------

    @property
    def connection(self) -> Any:
        """redis-py's connection, or None while there is none."""
        subscription = self._subscription
        if subscription is None:
            return self._plain_connection
        return None if subscription.connection is None else subscription.connection.connection

    @connection.setter
    def connection(self, connection: Any) -> None:
        self._plain_connection = connection

    def on_gap(self, callback: Callable[[dict[str, Any]], object] | None) -> None:
        """Call a function, or coroutine function, with each gap message instead of returning it."""
        self._on_gap = callback

    # -- commands --------------------------------------------------------------------------

    async def execute_command(self, *args: Any) -> Any:
        """Send a command, whose replies are read like messages, as with redis-py.

        Raises:
            ResilientIOError: No connection could be made; see `resilient_io.redis.errors`.
        """
        name = lookup(args).name
        names = [bytes(self.encoder.encode(each)) for each in args[1:]]
        if name in UNSUBSCRIBING and not self._plain and self._unsubscribe_offline(name, names):
            return
        subscription = await self._open(name)
        if subscription is not None:
            send: Callable[[], None]
            if name in SUBSCRIBING:
                send = partial(subscription.subscribe, name, names)
            elif name in UNSUBSCRIBING:
                send = partial(subscription.unsubscribe, name, names)
            else:
                send = partial(subscription.send, name, args)
            await self._run(subscription, name, send)
        if self._plain:
            with self._runtime.target.without_secrets():
                await super().execute_command(*args)

    async def connect(self) -> None:
        """Ensure that there is a connection. Does not wait if it is being replaced.

        Raises:
            ResilientIOError: No connection could be made; see `resilient_io.redis.errors`.
        """
        if not self._plain and self._subscription is None:
            subscription = await self._open("pubsub")
            if subscription is not None:
                await self._run(subscription, "pubsub", None)
        if self._plain:
            await super().connect()  # type: ignore[no-untyped-call]

    async def check_health(self) -> None:
        """Do nothing: an idle connection is pinged anyway."""
        if self._plain:
            await super().check_health()  # type: ignore[no-untyped-call]

    async def _open(self, operation: str) -> Subscription | None:
        """Return the subscription, a new one if necessary. None if redis-py has to do it."""
        await self._client._ensure_open(operation)
        runtime = self._runtime
        if self._plain or runtime.multiplexer.unsupported:
            self._plain = True
            return None
        subscription = self._subscription
        if subscription is None or subscription.ended or subscription.loop.is_closed():
            self._messages = MessageQueue(*self._limits)
            wanted = {
                "SUBSCRIBE": self._wanted(self.channels, self.pending_unsubscribe_channels),
                "PSUBSCRIBE": self._wanted(self.patterns, self.pending_unsubscribe_patterns),
                "SSUBSCRIBE": self._wanted(
                    self.shard_channels, self.pending_unsubscribe_shard_channels
                ),
            }
            missing = None if subscription is None else subscription.take_missing(_CLIENT_CLOSED)
            self._subscription = subscription = runtime.subscriptions.open(
                self._messages, wanted, missing=missing
            )
        return subscription

    def _wanted(self, known: Mapping[Any, Any], pending: Iterable[Any]) -> list[bytes]:
        encode = self.encoder.encode
        return [bytes(encode(each)) for each in known if each not in pending]

    async def _run(
        self, subscription: Subscription, operation: str, send: Callable[[], None] | None
    ) -> None:
        runtime = self._runtime
        call = SubscriptionCall(subscription, operation, send)
        started = runtime.multiplexer.time()
        result = await runtime.executor.run(call, self._client._policy, started=started)
        if isinstance(result, NotMultiplexable):
            self._plain, self._subscription = True, None
            await subscription.aclose()

    def _unsubscribe_offline(self, name: str, names: list[bytes]) -> bool:
        """Unsubscribe without a connection, which needs none. Return whether that was possible."""
        subscription = self._subscription
        if subscription is None or subscription.ended or subscription.loop.is_closed():
            self._forget_channels(name)
            return True
        if subscription.connection is not None:
            return False
        subscription.unsubscribe(name, names)
        return True

    def _forget_channels(self, name: str) -> None:
        """Forget the channels that should be unsubscribed: nothing is subscribed."""
        known, pending = {
            "UNSUBSCRIBE": (self.channels, self.pending_unsubscribe_channels),
            "PUNSUBSCRIBE": (self.patterns, self.pending_unsubscribe_patterns),
            "SUNSUBSCRIBE": (self.shard_channels, self.pending_unsubscribe_shard_channels),
        }[name]
        for each in list(pending):
            known.pop(each, None)
        pending.clear()

    def _forget_all_channels(self) -> None:
        self.channels, self.patterns, self.shard_channels = {}, {}, {}
        self.pending_unsubscribe_channels = set()
        self.pending_unsubscribe_patterns = set()
        self.pending_unsubscribe_shard_channels = set()

    # -- reading ---------------------------------------------------------------------------

    async def parse_response(self, block: bool = True, timeout: float | None = 0) -> Any:
        """Return the next reply or push message as redis-py does, or None if there is none in time.

        Args:
            block: Wait without a limit.
            timeout: Longest wait in seconds, without `block`.

        Raises:
            RedisClosed: This object, or its client, was closed.
            redis.exceptions.ResponseError: The server refused a command, for example `subscribe`.
            RedisUnavailable: The connection was lost, and with it what another command has set on
                it, such as CLIENT TRACKING.
            UnicodeDecodeError: With `decode_responses=True`, a message is not text.
        """
        if self._plain:
            with self._runtime.target.without_secrets():
                return await super().parse_response(block, timeout or 0)
        return await self._take(await self._reader(), block=block, timeout=timeout or 0.0)

    async def _take(self, messages: MessageQueue, *, block: bool, timeout: float) -> Any:
        """Return the next item of a queue as a response of redis-py."""
        item = await self._next(messages, block=block, timeout=timeout)
        if item is None:
            return None
        if isinstance(item, Exception):
            raise item
        if isinstance(item, Gap):
            return _GapResponse(["gap", None, item])
        response = self._decoded(item) if self.encoder.decode_responses else item
        if type(item) is hiredis.PushNotification and self.push_handler_func is not None:
            response = self.push_handler_func(response)
            return await response if inspect.isawaitable(response) else response
        if isinstance(response, str):  # the reply to PING with RESP3, which redis-py 8.1 misreads
            return ["pong", "" if response == "PONG" else response]
        return response

    async def _reader(self) -> MessageQueue:
        """Return the messages that can be read here.

        If the client was closed, this opens it again, as any call does, and subscribes again.
        """
        subscription = self._subscription
        if self._messages is None or subscription is None:
            raise RuntimeError(NOT_SET)
        elsewhere = subscription.loop is not asyncio.get_running_loop()
        if elsewhere and not subscription.loop.is_closed():
            raise RuntimeError("this subscriber is in use in another running event loop")
        if (elsewhere or subscription.ended) and self.subscribed:
            await self._open("pubsub")
        return self._messages

    async def _next(self, messages: MessageQueue, *, block: bool, timeout: float) -> Item | None:
        self._read += 1
        if self._read % _READ_AT_ONCE == 0:
            await asyncio.sleep(0)
        item = messages.take()
        if item is not None:
            return item
        if not block and timeout <= 0:
            # The first iteration of the loop reads the socket, the second one parses.
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            return messages.take()
        waiting = asyncio.timeout(None if block else timeout)
        try:
            async with waiting:
                while (item := messages.take()) is None:
                    await messages.wait()
                return item
        except TimeoutError:
            if not waiting.expired():
                raise
            return None

    def _decoded(self, item: Any) -> Any:
        if isinstance(item, bytes):
            return self.encoder.decode(item)
        if isinstance(item, list):
            return [self._decoded(each) for each in item]
        if isinstance(item, dict):
            return {self._decoded(key): self._decoded(value) for key, value in item.items()}
        return item

    async def handle_message(
        self, response: Any, ignore_subscribe_messages: bool = False
    ) -> dict[str, Any] | None:
        """Return a message for a response, or call its handler, as redis-py does."""
        if not isinstance(response, _GapResponse):
            handle: Any = super().handle_message
            handled: dict[str, Any] | None = await handle(response, ignore_subscribe_messages)
            return handled
        kind, channel, gap = response
        message = {"type": kind, "pattern": None, "channel": channel, "data": gap}
        if self._on_gap is not None:
            called = self._on_gap(message)
            if inspect.isawaitable(called):
                await called
            return None
        if ignore_subscribe_messages or self.ignore_subscribe_messages:
            # Such a reader expects messages of channels only.
            name = self._client.health.name
            _log.warning(
                "%s: %s; pass on_gap= to pubsub() to handle this",
                name,
                gap,
                extra={"event": "subscription_gap", "dependency": name, "cause": gap.cause.value},
            )
            return None
        return message

    # -- the end ---------------------------------------------------------------------------

    async def aclose(self) -> None:
        """Close the connection and forget all channels and handlers. Readers raise `RedisClosed`.

        Idempotent. Cancelling returns immediately; the closing continues in the background. The
        object can be used again.
        """
        if self._plain:
            await super().aclose()  # type: ignore[no-untyped-call]
            return
        subscription, self._subscription = self._subscription, None
        messages, self._messages = self._messages, None
        self._forget_all_channels()
        if subscription is None or messages is None:
            return
        messages.close(
            self._client._runtime.subscriptions.closed_error("the subscriber was closed")
        )
        if subscription.loop is asyncio.get_running_loop():
            await subscription.aclose()
        else:
            subscription.end_later()

    def __del__(self, _warnings: Any = warnings) -> None:
        """End the subscription in the background if this is collected unclosed."""
        if self.__dict__.get("_plain"):
            super().__del__()  # type: ignore[no-untyped-call]
        elif self._end_later():
            _warnings.warn(
                f"unclosed subscriber of {self._client!r}: use `async with`, or await aclose()",
                ResourceWarning,
                stacklevel=1,
                source=self,
            )

    def _end_later(self) -> bool:
        """End in the background. Return whether there was anything to end."""
        subscription = self.__dict__.get("_subscription")
        if subscription is None or subscription.ended:
            return False
        subscription.end_later()
        return True


_CLIENT_CLOSED = ConnectionFailure(Cause.CLOSED, "the client was closed, and is open again")


class _GapResponse(list[Any]):
    """A gap in the place of a response."""
