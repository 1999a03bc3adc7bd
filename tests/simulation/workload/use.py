"""One call of the plan, and what the functions of the workload share."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.simulation.history import Operation

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from resilient_io import RetryPolicy
    from resilient_io.redis import ResilientRedis
    from tests.simulation.plan import Call, Caller
    from tests.simulation.world import Client, World

SPACING = 20
"""Calls are numbered in steps, so that a call of several operations has numbers for all."""


@dataclass(slots=True)
class Use:
    """One call of a caller, with all that it needs."""

    world: World
    caller: Caller
    call: Call

    @property
    def client(self) -> Client:
        """The client, with its setup."""
        return self.world.clients[self.caller.client]

    @property
    def redis(self) -> ResilientRedis:
        """The client or the view to call."""
        client = self.client.redis
        view = self.call.view
        return client if view is None else client.with_policy(**view)

    @property
    def policy(self) -> RetryPolicy:
        """The policy in force."""
        policy, view = self.client.policy, self.call.view
        return policy if view is None else _viewed(policy, tuple(view.items()))

    def argument(self, name: str, default: Any = None) -> Any:
        """Return an argument of the call."""
        return self.call.arguments.get(name, default)

    def token(self, index: int = 0, offset: int = 0) -> str:
        """Return the token of a command of this call."""
        return f"t{self.call.number + offset}.{index}"

    def operation(
        self, *commands: tuple[str, ...], kind: str | None = None, offset: int = 0, **facts: Any
    ) -> Operation:
        """Return a new operation with these commands."""
        call, policy = self.call, self.policy
        facts.setdefault("limit", policy.deadline)
        facts["attempts"] = policy.attempts
        facts["while_down"] = policy.while_down
        return Operation(
            number=call.number + offset,
            kind=kind or call.kind,
            client=self.caller.client,
            caller=self.caller.number,
            commands=tuple(commands),
            repeat=policy.repeat,
            facts=facts,
        )

    async def send(self, *words: str, **options: Any) -> None:
        """Make a call of one command and record it."""
        operation = self.operation(words)
        client = self.redis
        await self.perform(operation, lambda: client.execute_command(*words, **options))

    async def perform(self, operation: Operation, work: Callable[[], Awaitable[Any]]) -> None:
        """Run an operation and record it."""
        await self.world.perform(operation, self.call, work)


def register_of(use: Use) -> str:
    """Return the register of a call, which only overwrites change."""
    return f"r{use.argument('key', 0)}"


def list_of(use: Use) -> str:
    """Return the list of a call."""
    return f"l{use.argument('key', 0)}"


def limit_reaching(operation: Operation, timeout: float) -> None:
    """Note the limits of a blocking call: reaching the server is limited by the deadline."""
    limit = operation.facts["limit"]
    operation.facts["reach_deadline"] = limit
    operation.facts["block"] = timeout or float("inf")
    operation.facts["limit"] = None


def sender(client: ResilientRedis, words: tuple[str, ...]) -> Callable[[], Awaitable[Any]]:
    """Return a function that sends one command."""
    return lambda: client.execute_command(*words)


@functools.lru_cache(maxsize=1000)
def _viewed(policy: RetryPolicy, changes: tuple[tuple[str, Any], ...]) -> RetryPolicy:
    return policy.replace(**dict(changes))
