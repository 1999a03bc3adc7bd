"""`ResilientClusterPipeline`: redis-py's cluster pipeline, executed by resilient-io's executor.

Commands are sent to several nodes at the same time, those of one node in one write and in their
order. With `transaction=True`, they are sent to the one node that has their slot.
"""

from __future__ import annotations

import asyncio
import inspect
from functools import partial
from typing import TYPE_CHECKING, Any, Self, TypeVar

from redis.asyncio.cluster import ClusterPipeline
from redis.client import EMPTY_RESPONSE
from redis.cluster import PIPELINE_BLOCKED_COMMANDS
from redis.commands import AsyncRedisClusterCommands
from redis.exceptions import (
    RedisClusterException,
    RedisError,
    ResponseError,
    WatchError,
)
from redis.utils import safe_str, truncate_text

from resilient_io.errors import ResilientIOError

from ..attempt import apply_callback, callback_of
from ..batch import Batch
from ..commands import SPECS, Route, keys_of, lookup, no_keys
from ..errors import (
    REDIRECTED,
    RedisOutcomeUnknown,
    RedisUnavailable,
    RouteRefused,
    refusal_in_cluster,
)
from ..frequent import FrequentCommands
from ..pipeline import ResilientPipeline
from ..scripts import RUNS_BY_HASH
from .batch import NodeBatch, QueuedCommand
from .call import ClusterCall
from .keys import node_flag, replica_may_answer

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence

    from ..attempt import Call
    from ..commands import CommandSpec
    from .nodes import Member

Result = TypeVar("Result")

_truncate: Callable[[str], str] = truncate_text

_MOVED = (
    "the slot of the watched keys moved to another node, and nothing was applied: run the "
    "transaction again"
)

_NO_TRANSACTION = "is for transactions: use pipeline(transaction=True)"


class ResilientClusterPipeline(FrequentCommands, ClusterPipeline):  # type: ignore[misc] # in redis-py
    """Queues commands as redis-py's cluster pipeline does; `execute` sends them.

    With `transaction=True`, all keys must be in one slot, and `watch` uses an exclusive connection
    to its node until the pipeline is executed or reset.
    """

    def __init__(self, client: Any, transaction: bool | None = None) -> None:
        super().__init__(client, transaction)
        self._client: Any = client
        self._queue: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self._explicit = False  # between `multi` and `execute`
        self._watched: ResilientPipeline | None = None
        """The pipeline of the node whose keys are watched."""
        self._member: Member | None = None  # that node
        self._slot: int | None = None  # of the watched keys
        self._keys: Sequence[Any] = ()  # one of them

    def __len__(self) -> int:
        """Return the number of queued commands."""
        return len(self._queue)

    def __repr__(self) -> str:
        """Return the kind and the number of queued commands."""
        kind = "transaction" if self._transaction else "pipeline"
        return f"<{type(self).__name__} {kind} of {len(self)} commands>"

    @property
    def _event_dispatcher(self) -> Any:  # type: ignore[override]
        """The client's, as redis-py's protocol for typed commands requires."""
        return self._client._event_dispatcher

    async def initialize(self) -> Self:
        """Open the client, without waiting for its nodes."""
        await self._client._ensure_open("PIPELINE")
        return self

    if not TYPE_CHECKING:  # type checkers see redis-py's own signatures

        def execute_command(self, *args: Any, **options: Any) -> Any:
            """Queue a command, as redis-py does, or send it now between WATCH and MULTI."""
            options.pop("keys", None)
            if self._transaction and not self._explicit and (self._watching or args[0] == "WATCH"):
                return self._execute_now(args, options)
            self._queue.append((args, options))
            return self

        def mset_nonatomic(self, mapping: Mapping[Any, Any]) -> Self:
            """Queue one MSET for each slot of the keys."""
            if self._transaction:
                raise RedisClusterException("mset_nonatomic() is not atomic: use mset()")
            for pairs in self._client._partition_pairs_by_slot(mapping).values():
                self.execute_command("MSET", *pairs)
            return self

        def unlink(self, *names: Any) -> Any:
            """Queue UNLINK for the keys of each slot."""
            return self._split_command_across_slots("UNLINK", *names)

    def _split_command_across_slots(self, command: str, *keys: Any) -> Self:  # type: ignore[override]
        if self._transaction:
            return self.execute_command(command, *keys)  # type: ignore[return-value]
        for group in self._client._partition_keys_by_slot(keys).values():
            self.execute_command(command, *group)
        return self

    async def execute(
        self, raise_on_error: bool = True, allow_redirections: bool = True
    ) -> list[Any]:
        """Send the queued commands and return their replies, in order.

        Each command has its own outcome. If the connection to one node is lost, the commands for
        the other nodes are not affected. Afterwards the pipeline is empty, whatever happened.
        Cancelling returns immediately.

        Args:
            raise_on_error: Raise the first error, or `RedisOutcomeUnknown` if any command may have
                been applied. Otherwise the errors are among the replies.
            allow_redirections: Send commands that are redirected (MOVED, ASK) to the other node.

        Raises:
            CrossSlotKeys: A command, or a transaction, has keys of several slots. Nothing was sent.
            RedisOutcomeUnknown: Replies are missing and repeating is not safe. `answered` contains
                the replies before the first that is missing, `unanswered` the positions of all
                commands that may have been applied.
            WatchError: A watched key changed, or its slot moved: run the whole transaction again.
            redis.exceptions.RedisError: An error reply.
        """
        try:
            if not self._queue and not self._watching:
                return []
            if self._watched is not None:
                return await self._execute_watched(self._watched, raise_on_error)
            await self._client._ensure_open("MULTI" if self._transaction else "PIPELINE")
            specs = [SPECS.get(args[0]) or lookup(args) for args, _ in self._queue]
            for spec, (args, _) in zip(specs, self._queue, strict=True):
                self._client._note_script(spec, args)
            if self._transaction:
                replies = await self._execute_transaction(specs)
            else:
                replies = await self._execute_batches(specs, allow_redirections)
            if raise_on_error:
                self._raise_first(replies)
            return replies
        finally:
            await self.reset()

    async def reset(self) -> None:  # type: ignore[override]
        """Empty the pipeline and release its connection, which is closed if it still watches."""
        self._queue = []
        self._explicit = False
        watched, self._watched, self._member, self._slot = self._watched, None, None, None
        if watched is not None:
            await watched.reset()

    def _raise_first(self, replies: Sequence[Any]) -> None:
        """Raise the first error among the replies, with what is known about the others.

        If any command may have been applied, that counts: another error would permit a repetition.
        """
        errors = {at: each for at, each in enumerate(replies) if isinstance(each, Exception)}
        unknown = [at for at, each in errors.items() if isinstance(each, RedisOutcomeUnknown)]
        if not errors:
            return
        position = next(iter(unknown or errors))
        error = errors[position]
        if isinstance(error, RedisOutcomeUnknown):
            missing = (at for at, each in errors.items() if isinstance(each, ResilientIOError))
            error.answered = tuple(replies[: next(missing)])
            error.unanswered = unknown
        elif isinstance(error, ResponseError):
            shown = _truncate(" ".join(map(safe_str, self._queue[position][0])))
            why = f"Command # {position + 1} ({shown}) of pipeline caused error: {error}"
            error.args = (why, *error.args[1:])
        raise error

    # -- commands for several nodes ------------------------------------------------------------

    async def _execute_batches(
        self, specs: Sequence[CommandSpec], allow_redirections: bool
    ) -> list[Any]:
        client = self._client
        started = asyncio.get_running_loop().time()
        client._runtime.check_available("PIPELINE", client._policy)
        packed = client._packer.pack_all(specs, [args for args, _ in self._queue])
        commands = [
            self._place(position, spec, args, options, data)
            for position, (spec, (args, options), data) in enumerate(
                zip(specs, self._queue, packed, strict=True)
            )
        ]
        # A read after a write must not be answered by a replica that lacks the write.
        reads = client._reads
        if reads is not None and not all(map(replica_may_answer, specs)):
            reads = None
        batches = [
            NodeBatch(
                client._router, group, client._policy, redirections=allow_redirections, reads=reads
            )
            for group in self._by_node(commands)
        ]
        outcomes = await _all_of([self._run(batch, started) for batch in batches])
        answers: dict[int, Any] = {}
        for batch, outcome in zip(batches, outcomes, strict=True):
            answers |= batch.replies
            if outcome is not None:
                answers |= {position: outcome.of(position) for position in batch.open}
        return await self._read_all(commands, answers)

    async def _run(self, batch: NodeBatch, started: float) -> _Failure | None:
        """Execute a batch. Return how it failed, if it did."""
        client = self._client
        executor = client._runtime.executor
        try:
            await executor.run(
                batch, client._policy, started=started, deliberate=client._deliberate
            )
        except (RedisError, OSError) as error:
            return _Failure(error, batch.unsure)
        executor.report_refusals(batch, batch.replies.values())
        return None

    def _place(
        self,
        position: int,
        spec: CommandSpec,
        args: tuple[Any, ...],
        options: Mapping[str, Any],
        data: bytes,
    ) -> QueuedCommand:
        """Return a command with the slot or the node that it goes to.

        Raises:
            CrossSlotKeys: Its keys belong to several slots.
            RedisClusterException: It goes to several nodes.
            RouteRefused: It cannot share a connection.
        """
        client = self._client
        at = spec.key_at
        if spec.simple and not options and 0 < at < len(args):  # most commands
            slot = client._slots.of_key(args[at])
            return QueuedCommand(position, spec, args, options, data, slot)
        if spec.route in (Route.BOUND, Route.REFUSED) and spec.block is None:
            raise RouteRefused(f"{spec.name} cannot share a connection. {spec.advice}")
        targets = options.get("target_nodes")
        if targets:
            options = {name: value for name, value in options.items() if name != "target_nodes"}
            if not client._is_node_flag(targets):
                member = self._only(spec, client._parse_target_nodes(targets))
                return QueuedCommand(position, spec, args, options, data, None, member)
        slot = None if targets else client._slots.of_call(spec, args)
        flag: str | int = targets or ""
        if slot is None and not targets:
            flag = node_flag(spec, args, client.command_flags)
            slot = flag if isinstance(flag, int) else None
        only: Member | None = None
        if slot is None and flag not in (client.RANDOM, client.DEFAULT_NODE):
            only = self._only(spec, client._flagged(flag))
        return QueuedCommand(position, spec, args, options, data, slot, only)

    def _only(self, spec: CommandSpec, nodes: Sequence[Any]) -> Member:
        if len(nodes) != 1:
            raise RedisClusterException(
                f"{spec.name} goes to {len(nodes)} nodes, and a command of a pipeline to one: send "
                f"it without a pipeline, or pass target_nodes= with one node"
            )
        member: Member = self._client._router.members.get(
            self._client._driver_nodes.address_of(nodes[0])
        )
        return member

    def _by_node(self, commands: Sequence[QueuedCommand]) -> list[list[QueuedCommand]]:
        """Return the commands of each node, in their order. Those for any node join the first."""
        known_owner = self._client._router.known_owner
        groups: dict[Member | None, list[QueuedCommand]] = {}
        anywhere = []
        for command in commands:
            owner = command.member if command.slot is None else known_owner(command.slot)
            if owner is None and command.slot is None:
                anywhere.append(command)
            else:
                groups.setdefault(owner, []).append(command)
        first = next(iter(groups), None)
        if anywhere:
            joined = [*groups.get(first, ()), *anywhere]
            groups[first] = sorted(joined, key=lambda command: command.position)
        return list(groups.values())

    async def _read_all(
        self, commands: Sequence[QueuedCommand], answers: Mapping[int, Any]
    ) -> list[Any]:
        """Return what redis-py would for all replies, in the order of the commands."""
        table = self._client.callback_table
        callbacks: dict[object, Any] = {}
        results = []
        for command in commands:
            reply, name = answers[command.position], command.args[0]
            if name not in callbacks:
                callbacks[name] = callback_of(table, name)
            if command.options or callbacks[name] is not None or isinstance(reply, Exception):
                reply = await self._read(command, reply)
            results.append(reply)
        return results

    async def _read(self, command: QueuedCommand, reply: Any) -> Any:
        """Return what redis-py would for a reply."""
        if isinstance(reply, Exception):
            return command.options.get(EMPTY_RESPONSE, reply)
        try:
            table = self._client.callback_table
            value = apply_callback(table, command.args[0], reply, command.options)
            return await value if inspect.isawaitable(value) else value
        except ResponseError as error:
            return error

    # -- transactions --------------------------------------------------------------------------

    @property
    def _watching(self) -> bool:
        return self._watched is not None and self._watched.watching

    async def _execute_transaction(self, specs: Sequence[CommandSpec]) -> list[Any]:
        client = self._client
        started = asyncio.get_running_loop().time()
        client._runtime.check_available("MULTI", client._policy)
        slot = self._slot_of_transaction(specs)
        make = partial(self._transaction_on, list(self._queue), list(specs), slot)
        call = ClusterCall(client._router, make, "MULTI", slot=slot)
        executor = client._runtime.executor
        replies: list[Any] = await executor.run(
            call, client._policy, started=started, deliberate=client._deliberate
        )
        executor.report_refusals(call, replies)
        return replies

    def _slot_of_transaction(self, specs: Sequence[CommandSpec]) -> int:
        """Return the only slot of all queued commands and watched keys.

        Raises:
            CrossSlotKeys: There are several.
            RedisClusterException: There is none.
        """
        keys: list[Any] = []
        slots = self._client._slots
        for spec, (args, _) in zip(specs, self._queue, strict=True):
            if slots.of_call(spec, args) is not None:
                keys.append(keys_of(spec, args)[0])
        if not keys:
            if self._slot is not None:
                return self._slot
            raise RedisClusterException(
                "the transaction has no key, which would say which node is meant: use a command "
                "with a key, or no transaction"
            )
        found = slots.of_key(keys[0])
        if any(slots.of_key(key) != found for key in keys):
            raise slots.cross_slot("the transaction", keys, None)
        return int(found)

    def _on(self, member: Member) -> ResilientPipeline:
        """Return a pipeline of one node."""
        client = self._client
        return ResilientPipeline(
            client,
            member.runtime,
            True,
            None,
            packer=client._packer,
            policy=client._policy,
            deliberate=client._deliberate,
            tracing=None,
            instrumented=False,
        )

    def _transaction_on(
        self,
        commands: list[Any],
        specs: list[CommandSpec],
        slot: int,
        member: Member,
        asking: bool,
    ) -> Call:
        pipeline = self._on(member)
        pipeline.hashes += [
            args[1]
            for spec, (args, _) in zip(specs, commands, strict=True)
            if spec.name in RUNS_BY_HASH and len(args) > 1
        ]
        return pipeline.call_for(Batch(commands), asking=asking, slot=None if asking else slot)

    # -- WATCH -----------------------------------------------------------------------------------

    async def _execute_now(self, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """Send one command now, on the exclusive connection to the node of its slot."""
        client = self._client
        await client._ensure_open(args[0])
        spec = SPECS.get(args[0]) or lookup(args)
        slot = client._slots.of_call(spec, args)
        if slot is not None and self._watching and slot != self._slot:
            key = keys_of(spec, args)[0]
            raise client._slots.cross_slot("the transaction", [*self._keys, key], None)
        if self._watched is None or not self._watching:
            if slot is None:
                raise RedisClusterException(f"{spec.name} has no key that says which node is meant")
            self._slot, self._keys = slot, keys_of(spec, args)[:1]
            make = partial(self._watch_on, args, options)
            call = ClusterCall(client._router, make, spec.name, slot=slot)
            started = asyncio.get_running_loop().time()
            return await client._runtime.executor.run(call, client._policy, started=started)
        self._check_owner()
        with _RefusedWhileWatched():
            return await self._watched.immediate_execute_command(*args, **options)

    def _watch_on(
        self,
        args: tuple[Any, ...],
        options: dict[str, Any],
        member: Member,
        asking: bool,
    ) -> Call:
        if asking:
            raise WatchError(_MOVED)
        self._release()
        self._member, self._watched = member, self._on(member)
        return self._watched.immediate_call(args, options)

    def _release(self) -> None:
        """Close the connection of an earlier attempt, which another node has refused."""
        watched = self._watched
        if watched is not None and watched.connection is not None:
            watched.drop(watched.connection)

    async def _execute_watched(self, watched: ResilientPipeline, raise_on_error: bool) -> list[Any]:
        if self._queue:
            specs = [SPECS.get(args[0]) or lookup(args) for args, _ in self._queue]
            slot = self._slot_of_transaction(specs)
            if slot != self._slot:
                first = next(
                    keys[0]
                    for spec, (args, _) in zip(specs, self._queue, strict=True)
                    if (keys := keys_of(spec, args))
                )
                raise self._client._slots.cross_slot("the transaction", [*self._keys, first], None)
        self._check_owner()
        watched.explicit_transaction = True
        watched.command_stack = list(self._queue)
        with _RefusedWhileWatched():
            return await watched.execute(raise_on_error)

    def _check_owner(self) -> None:
        """Raise if another node has the slot of the watched keys by now."""
        slot, member = self._slot, self._member
        if slot is not None and member is not None:
            router = self._client._router
            if router.known_owner(slot) is not None and router.has_taken_over(slot, member):
                raise WatchError(_MOVED)

    def multi(self) -> None:
        """Begin to queue commands again, after WATCH."""
        self._check_transaction("multi()")
        if self._explicit:
            raise RedisError("Cannot issue nested calls to MULTI")
        if self._queue:
            raise RedisError("Commands without an initial WATCH have already been issued")
        self._explicit = True

    async def watch(self, *names: Any) -> Any:  # type: ignore[override]
        """Watch keys of one slot, on an exclusive connection to their node."""
        self._check_transaction("watch()")
        if self._explicit:
            raise RedisError("Cannot issue a WATCH after a MULTI")
        return await self.execute_command("WATCH", *names)

    async def unwatch(self) -> Any:  # type: ignore[override]
        """Watch no keys any more."""
        self._check_transaction("unwatch()")
        return await self.execute_command("UNWATCH") if self._watching else True

    async def discard(self) -> None:
        """Empty the pipeline, as `reset` does."""
        self._check_transaction("discard()")
        await self.reset()

    def _check_transaction(self, method: str) -> None:
        if not self._transaction:
            raise RedisClusterException(f"{method} {_NO_TRANSACTION}")


if not TYPE_CHECKING:
    # redis-py blocks these because it does not find out whether their keys are in one slot.
    for _command in PIPELINE_BLOCKED_COMMANDS:
        _routed = lookup((_command,)).keys is not no_keys or _command == "PUBLISH"
        if " " not in _command and _routed:
            _name = _command.lower()
            setattr(ResilientClusterPipeline, _name, getattr(AsyncRedisClusterCommands, _name))


class _Failure:
    """How a batch failed, as the outcome of each of its commands without a reply."""

    def __init__(self, error: Exception, unsure: Collection[int]) -> None:
        self._error = error
        self._unsure = frozenset(unsure)
        self._other = error
        if isinstance(error, RedisOutcomeUnknown):
            self._other = RedisUnavailable(
                error.failure,
                dependency=error.dependency,
                operation=error.operation,
                attempts=error.attempts,
                elapsed=error.elapsed,
            )

    def of(self, position: int) -> Exception:
        """Return the error of a command: whether it may be applied is known for each."""
        return self._error if position in self._unsure else self._other


class _RefusedWhileWatched:
    """Turns the refusal of a watched transaction into WatchError: its node lacks the slot."""

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        """Replace the error."""
        refused = None if error is None else refusal_in_cluster(error)
        if refused is REDIRECTED:
            raise WatchError(_MOVED) from None
        if refused is not None:
            raise WatchError(
                f"the node of the watched keys does not serve them now ({error}), and nothing "
                f"was applied: run the transaction again"
            ) from None


async def _all_of(calls: Sequence[Coroutine[Any, Any, Result]]) -> list[Result]:
    """Return the results of calls that run at the same time. Cancelling cancels all of them."""
    if len(calls) == 1:
        return [await calls[0]]
    tasks = [asyncio.get_running_loop().create_task(call) for call in calls]
    await asyncio.gather(*tasks, return_exceptions=True)
    return [task.result() for task in tasks]
