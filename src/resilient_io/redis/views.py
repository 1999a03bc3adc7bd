"""Views of a client: the same connections with other options for the calls.

Also how these options change a call: where a read is sent, and what a write waits for.
"""

from __future__ import annotations

import copy
import functools
from asyncio import CancelledError
from typing import TYPE_CHECKING, Any, Self

from redis.client import NEVER_DECODE

from resilient_io.deadlines import current_deadline
from resilient_io.errors import ConfigurationError

from .attempt import Command, MultiplexedCall, apply_callback
from .durability import Acknowledgements, DurableCall, DurableGroups
from .instrumentation import rebind
from .options import Durability, check_types
from .replicas import DEFAULT_MAX_LAG, ReadFrom, ReplicaRead, ReplicaSet, is_replica_read
from .response_queue import LARGE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from resilient_io.retry import RetryPolicy

    from .attempt import Packer
    from .commands import CommandSpec
    from .large_values import Packed
    from .options import ReadFromName
    from .runtime import Runtime


class ClientViews:
    """The options that views of a client may have differently, and the methods that make views."""

    _runtime: Runtime
    _packer: Packer
    _policy: RetryPolicy
    _durability: Durability | None
    _read_from: ReadFrom
    _deliberate: bool  # whether the policy was chosen for the call
    _hot: bool  # whether commands may take the hot path
    _instrumented: bool
    _is_view: bool = False
    _uninstrumented: Any
    callback_table: Any

    def own_callbacks(self) -> object:
        """Make sure that the callbacks of a view are those of its client."""
        raise NotImplementedError

    @property
    def _may_be_hot(self) -> bool:
        """Whether commands may take the hot path if no tracer wants to see them."""
        plain = self._durability is None and self._read_from.mode == "master"
        return plain and self._packer.direct and not self._deliberate

    def _multiplexed_call(
        self,
        command: Command,
        data: Packed,
        first: Exception | None = None,
        *,
        kind: Callable[..., MultiplexedCall] = MultiplexedCall,
        runtime: Runtime | None = None,
    ) -> MultiplexedCall:
        raise NotImplementedError

    def with_policy(self, policy: RetryPolicy | None = None, **changes: Any) -> Self:
        """Return a view of this client with another policy on the same connections.

        The policy counts as chosen for each call: with `repeat="any"` it also covers FLUSHALL and
        other dangerous commands. A shorter `deadline` shortens the timeouts within it. Closing the
        view does nothing. Connections keep their connect timeout.

        Args:
            policy: The other policy; None for this client's own.
            **changes: Fields of the policy to change, for example `repeat="any"`.

        Raises:
            ConfigurationError: The policy contradicts itself.
        """
        check_types(policy, None, None)
        view = self._view()
        view._policy = (policy if policy is not None else self._policy).replace(**changes)
        view._deliberate, view._hot = True, False
        return view

    def with_read_from(
        self, read_from: ReadFromName, *, max_lag: float | None = DEFAULT_MAX_LAG
    ) -> Self:
        """Return a view of this client whose reads another server may answer.

        This applies to commands that only read keys, alone or in a pipeline without MULTI that has
        no others. Everything else goes to the master: writes, pipelines with writes, transactions,
        SCAN and commands about the server. The replicas are those that the master lists (INFO
        replication). A read goes to the master while no replica is connected or known to qualify,
        also at first, and after a failed attempt on the replica.

        The lag of a replica is the time since the latest moment whose writes it surely has. It is
        measured every quarter of `max_lag` (at most 1 s), by asking the master and then the replica
        for their replication offsets; so also a replica in sync has a lag of up to that interval.
        Writes of this client are not necessarily visible to its reads within that time.
        Closing the view does nothing.

        Args:
            read_from: As in the constructor.
            max_lag: As in the constructor; at least 0.1. While the master does not answer, replicas
                qualify until they exceed it, so use None to read from them in an outage.

        Raises:
            ConfigurationError: A value is invalid, or the client has a single connection.
        """
        wanted = ReadFrom.of(read_from, max_lag)
        if wanted.mode != "master" and self._runtime.bound:
            raise ConfigurationError(
                "with_read_from() needs a client with shared connections: omit "
                "single_connection_client=True"
            )
        view = self._view()
        view._read_from = wanted
        view._hot = view._may_be_hot and not view._instrumented
        return view

    def with_durability(self, durability: Durability | int | None) -> Self:
        """Return a view of this client whose writes return when enough replicas have them.

        Each write, pipeline and transaction is followed by WAIT, in the same write to the socket,
        on an exclusive connection, so that other calls are not delayed. If fewer replicas have it
        after `Durability.timeout` (1 s), or at the deadline, the call raises `RedisNotReplicated`:
        it was applied, and must not be repeated. Reads, blocking pops and locks do not wait.
        Closing the view does nothing.

        WAIT makes the loss of a write in a failover unlikely, not impossible: the replica that is
        promoted may be another one than those that acknowledged the write.

        Args:
            durability: The number of replicas, or a `Durability`; None or 0 for plain writes.

        Raises:
            ConfigurationError: It is neither, or the client has a single connection.
        """
        wanted = Durability.of(durability)
        if wanted is not None and self._runtime.bound:
            raise ConfigurationError(
                "with_durability() needs a client with shared connections: call WAIT yourself, "
                "which refers to the writes of this connection"
            )
        view = self._view()
        view._durability = wanted
        view._hot = view._may_be_hot and not view._instrumented
        return view

    def _view(self) -> Self:
        self.own_callbacks()
        view = copy.copy(self)
        view._uninstrumented = None
        rebind(view)
        view._is_view = True
        return view

    def _plain_view(self) -> Self:
        """Return this client, or a view that does not involve replicas: for locks."""
        plain = self._durability is None and self._read_from.mode == "master"
        return self if plain else self.with_durability(None).with_read_from("master")

    # -- calls -----------------------------------------------------------------------------

    def _choose_replica(self, spec: CommandSpec, args: tuple[Any, ...]) -> Runtime | None:
        """Return the runtime of the replica for a read, or None for the master."""
        if self._read_from.mode == "master" or not is_replica_read(spec, args):
            return None
        return ReplicaSet.of(self._runtime).choose(self._read_from)

    def _choose_replica_for(
        self, specs: Sequence[CommandSpec], commands: Sequence[Sequence[Any]]
    ) -> Runtime | None:
        """Return the runtime of the replica for a pipeline, or None unless all commands read."""
        if not all(map(is_replica_read, specs, commands)):
            return None
        return ReplicaSet.of(self._runtime).choose(self._read_from)

    async def _read_from_replica(self, replica: Runtime, command: Command) -> Any:
        """Send a read to a replica, and to the master if that fails."""
        runtime, multiplexer = self._runtime, replica.multiplexer
        data = self._packer.pack(command.spec.words, command.args)
        started = multiplexer.time()
        first: Any = None
        connection = multiplexer.fast
        if connection is not None and self._is_plain(command, data):
            # As on the hot path: without a call of its own unless something goes wrong.
            future = multiplexer.create_future()
            connection.send(future, bytes(data))
            try:
                first = await future
            except CancelledError:
                multiplexer.abandon_future(future)
                raise
            if not isinstance(first, Exception):
                reply = apply_callback(self.callback_table, command.args[0], first, command.options)
                return await reply if hasattr(reply, "__await__") else reply
        call = ReplicaRead(
            self._multiplexed_call(command, data, first, runtime=replica),
            functools.partial(self._multiplexed_call, command, data),
        )
        return await runtime.executor.run(
            call, self._policy, started=started, deliberate=self._deliberate
        )

    def _is_plain(self, command: Command, data: Packed) -> bool:
        """Return whether a call needs no timer of its own, and no special connection."""
        limit = current_deadline()
        late = limit is not None and (
            limit < self._runtime.multiplexer.time() + 1.5 * self._policy.response_timeout
        )
        return not (
            late or self._deliberate or len(data) > LARGE or NEVER_DECODE in command.options
        )

    async def _execute_durably(
        self, durability: Durability, command: Command, started: float
    ) -> Any:
        """Send a write, and wait until enough replicas have it."""
        executor = self._runtime.executor
        acknowledgements = Acknowledgements(durability, DurableGroups.of(self._runtime, durability))
        data = self._packer.pack(command.spec.words, command.args)
        make = functools.partial(DurableCall, acknowledgements=acknowledgements)
        call = self._multiplexed_call(command, data, kind=make)
        reply = await executor.run(call, self._policy, started=started, deliberate=self._deliberate)
        acknowledgements.check(executor, call.operation, reply, started)
        return reply
