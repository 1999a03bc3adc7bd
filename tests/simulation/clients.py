"""What an application passes to its clients: credentials, tracing, and its own connection class."""

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING, Any

import redis
import redis.asyncio
import redis.asyncio.client
from redis.credentials import CredentialProvider, StreamingCredentialProvider

from resilient_io.redis import ResilientRedis

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from .history import History
    from .plan import Plan

PASSWORD = "secret"


class RotatingCredentials(StreamingCredentialProvider):
    """A provider whose password a call rotates; the server accepts the same one again.

    Attributes:
        fails: Whether it cannot be reached at present.
    """

    def __init__(self) -> None:
        self.fails = False
        self._listeners: list[Callable[[Any], Any]] = []

    def get_credentials(self) -> tuple[str, str]:
        """Return the user and the password."""
        if self.fails:
            raise LookupError(f"the provider of {PASSWORD} is not available")
        return "default", PASSWORD

    def on_next(self, callback: Callable[[Any], Any]) -> None:
        """Call a function at each rotation. As in redis-entraid, the last listener counts."""
        self._listeners = [callback]

    def on_error(self, callback: Callable[[Exception], None]) -> None:
        """Ignore: it never fails."""

    def is_streaming(self) -> bool:
        """Return whether rotations are announced."""
        return True

    async def rotate(self) -> None:
        """Announce new credentials, and wait until they were sent."""
        for listener in self._listeners:
            await listener(_Token())


class _Token:
    def try_get(self, _name: str) -> str:
        return "default"

    def get_value(self) -> str:
        return PASSWORD


class FixedCredentials(CredentialProvider):
    """A provider that always returns a password without a user."""

    def get_credentials(self) -> tuple[str]:
        """Return the password."""
        return (PASSWORD,)


def login(form: str) -> dict[str, Any]:
    """Return the options with which a client logs in, in one of four forms."""
    if form == "password":
        return {"password": PASSWORD}
    if form == "user":
        return {"username": "default", "password": PASSWORD}
    if form == "provider":
        return {"credential_provider": FixedCredentials()}
    return {"credential_provider": RotatingCredentials()}


class Spans:
    """A tracing that counts the spans.

    Attributes:
        begun, open: The number of spans that were begun, and of those that have not ended.
        retries: The number of retries that were reported in them.
    """

    def __init__(self, history: History, label: str) -> None:
        self.begun = self.open = self.retries = 0
        self._history, self._label = history, label

    def current(self) -> object:
        """Return the current span: none, because nothing else traces."""
        return None

    @contextlib.contextmanager
    def command(self, operation: str, before: object) -> Iterator[None]:
        """Begin and end the span of one command."""
        assert before is None
        self.begun += 1
        self.open += 1
        try:
            yield
        finally:
            self.open -= 1

    def batch(
        self, operations: Sequence[str], before: object, *, transaction: bool
    ) -> contextlib.AbstractContextManager[None]:
        """Begin the span of a pipeline."""
        assert operations or transaction
        return self.command("PIPELINE", before)

    def retrying(self, attempt: int, backoff: float, cause: str) -> None:
        """Note a retry."""
        assert self.open > 0, "a retry outside a span"
        self.retries += 1
        self._history.event("client", "retrying", client=self._label, attempt=attempt, cause=cause)


class _Writer:
    """A stream writer whose transport cannot be taken over, as that of a fake server."""

    transport = object()

    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._writer, name)


class ReopeningRedis(ResilientRedis):
    """A client that tells when one of its calls finds it closed, and has opened it again."""

    _observer: Callable[[str], None] | None = None

    def observe(self, observer: Callable[[str], None]) -> None:
        """Call a function with "opening" and "opened"."""
        self._observer = observer

    async def _ensure_open(self, operation: object) -> float | None:
        observer = self._observer
        if observer is None or self._closed_for_good or not self._is_closed:
            return await super()._ensure_open(operation)
        observer("opening")
        began = await super()._ensure_open(operation)
        observer("opened")
        return began


class BareConnection(redis.asyncio.Connection):
    """A connection without a transport, as those of fakes such as fakeredis."""

    async def _connect(self) -> None:
        await super()._connect()  # type: ignore[no-untyped-call]
        self._writer: Any = _Writer(self._writer)


@contextlib.contextmanager
def patched(plan: Plan, history: History) -> Iterator[None]:
    """Patch redis-py as tracers do, if a client of the plan is to be `patched`."""
    if not any(setup.form.get("patched") for setup in plan.clients):
        yield
        return
    seen: dict[str, int] = {}
    with contextlib.ExitStack() as stack:
        for owner, name in (
            (redis.asyncio.client.Redis, "execute_command"),
            (redis.asyncio.client.Pipeline, "execute"),
            (redis.asyncio.client.Pipeline, "immediate_execute_command"),
        ):
            method = vars(owner)[name]
            stack.callback(setattr, owner, name, method)
            setattr(owner, name, _counting(method, seen))
        yield
    history.ending.spans = seen


def _counting(method: Any, seen: dict[str, int]) -> Any:
    @functools.wraps(method)
    async def counted(self: Any, *args: Any, **options: Any) -> Any:
        seen["begun"] = seen.get("begun", 0) + 1
        try:
            return await method(self, *args, **options)
        finally:
            seen["ended"] = seen.get("ended", 0) + 1

    return counted
