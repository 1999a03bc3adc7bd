"""Rules about locks: `holdings` has the periods in which callers held them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from tests.simulation.history import Outcome

from .holdings import Expiry, acquired, holdings, removals, removed_between, takings
from .index import Broken, once

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.simulation.history import Operation

    from .holdings import Holding, Taking
    from .index import Index

_MARGIN = 0.05  # seconds before its timeout during which a lock may already be gone
_CALM = 3.0  # seconds without a fault before something is expected to happen in time
_LEARNS_WITHIN = 1.6  # seconds: where the server does not report changes, it is asked every second
_TRIP = 0.15  # seconds that a request takes at most while nothing fails
_LATE_TIMER = 0.3  # seconds
_IDLE = 0.7  # seconds that a free lock may be left to callers that wait for it


def two_callers_never_hold_one_lock(index: Index) -> Iterator[Broken]:
    """No one takes a lock between an acquisition that returned and its release.

    Except after its timeout by the server's clock, after its key was deleted, or after the server
    lost its data.
    """
    if index.data_lost:
        return
    all_takings, gone = takings(index), removals(index)
    for holding in holdings(index):
        mine = _taking_of(all_takings, holding)
        if mine is None:
            continue
        expiry = Expiry(index, holding, mine)
        for other in all_takings[holding.name]:
            if (
                other.token != holding.token
                and holding.began_at < other.at < holding.ended_at
                and other.time < expiry.at(other.at) - _MARGIN
                and not removed_between(gone.get(holding.name, []), mine.at, other.at)
            ):
                yield Broken(
                    f"{holding.name.decode()} was taken with another token while call "
                    f"{holding.operation.number} held it",
                    (holding.operation.number,),
                    other.at,
                )
                break


def an_acquired_lock_was_taken_on_the_server(index: Index) -> Iterator[Broken]:
    """An acquisition that returned True set the key of the lock to its own token."""
    all_takings = takings(index)
    for holder in acquired(index):
        token = holder.facts["token"].encode()
        taken = all_takings.get(holder.facts["lock"].encode(), ())
        if not any(each.token == token for each in taken):
            yield Broken(
                f"{holder.facts['lock']} was acquired, but the server did not set its token",
                (holder.number,),
                holder.ended_at,
            )


def the_numbers_of_holders_increase(index: Index) -> Iterator[Broken]:
    """Each holder with fencing has the number that the server counted, the greatest so far."""
    if index.data_lost:
        return
    numbers: dict[bytes, list[Taking]] = {}
    for name, taken in takings(index).items():
        latest = 0
        for each in taken:
            if each.number is None:
                continue
            numbers.setdefault(each.token, []).append(each)
            if each.number <= latest:
                yield Broken(
                    f"{name.decode()} was taken with number {each.number} after {latest}",
                    (),
                    each.at,
                )
            latest = each.number
    for holder in acquired(index):
        number, token = holder.facts.get("number"), holder.facts["token"].encode()
        # A copy of the request that arrives later, where the client may not end its dead
        # connections, takes the free lock again.
        counted = [
            each.number
            for each in numbers.get(token, ())
            if holder.ended_at is None or each.at < holder.ended_at
        ]
        if holder.facts.get("fencing") and counted[-1:] != [number]:
            yield Broken(
                f"the holder of {holder.facts['lock']} has number {number}; the server counted "
                f"{counted}",
                (holder.number,),
                holder.ended_at,
            )


def a_lock_that_is_still_held_can_be_released(index: Index) -> Iterator[Broken]:
    """A release is not refused as "not owned" before the lock's timeout."""
    if index.data_lost:
        return
    all_takings, gone = takings(index), removals(index)
    holders = {each.token.decode(): each for each in holdings(index)}
    for operation in _releases(index).values():
        holding = holders.get(operation.facts["token"])
        if (
            holding is None
            or operation.repeat == "any"
            or operation.outcome is not Outcome.REFUSED
            or "no longer owned" not in operation.error
            or (operation.ended_at or 0) > index.unfenced
        ):
            continue
        mine = _taking_of(all_takings, holding)
        ended = operation.ended if operation.ended is not None else operation.started
        if mine is None or removed_between(
            _but_own(index, gone.get(holding.name, []), holding), mine.at, operation.ended_at or 0
        ):
            continue
        expires = Expiry(index, holding, mine).at(operation.ended_at or math.inf)
        if ended < expires - _MARGIN:
            yield Broken(
                f"{operation.facts['lock']} was held, but its release raised: {operation.error}",
                (holding.operation.number, operation.number),
                operation.ended_at,
            )


def a_released_lock_is_no_longer_held(index: Index) -> Iterator[Broken]:
    """A release that returned removed the key of the lock, unless it had expired.

    It also returns if its request or its reply was lost and another client had deleted the key:
    then it finds the key gone, and cannot tell which of them removed it. A release after one that
    was cancelled cannot tell, either.
    """
    if index.data_lost:
        return
    all_takings, gone = takings(index), removals(index)
    holders = {each.token.decode(): each for each in holdings(index)}
    releases = _releases(index)
    again = [each for each in index.history.operations if each.kind == "release again"]
    for operation in (*releases.values(), *again):
        holding = holders.get(operation.facts["token"])
        if holding is None or operation.outcome is not Outcome.OK or operation.ended is None:
            continue
        if operation.kind == "release again" and _closing(index, holding, operation.ended):
            continue  # the release in the background was given up
        mine = _taking_of(all_takings, holding)
        if mine is None:
            continue
        expires = Expiry(index, holding, mine).at(operation.ended_at or math.inf)
        if operation.ended > expires - _MARGIN:
            continue
        ended_at = operation.ended_at or operation.started_at
        replies = [
            execution.reply
            for execution in index.executions_between(
                releases[operation.facts["token"]].started_at, ended_at
            )
            if execution.applied
            and holding.name in execution.words
            and holding.token in execution.words
        ]
        unclear = (
            not replies
            or operation.kind == "release again"
            or index.disturbed(operation.started, operation.ended)
        )
        if unclear and removed_between(gone.get(holding.name, []), mine.at, ended_at):
            continue
        if 1 not in replies:
            yield Broken(
                f"{operation.facts['lock']} was released, but the server still held it",
                (holding.operation.number, operation.number),
                operation.ended_at,
            )


def an_acquisition_that_failed_has_not_taken_the_lock(index: Index) -> Iterator[Broken]:
    """When `acquire` returns False, the server has not set its token, or no longer has it.

    Not if the client may not end its dead connections, which may still carry the request.
    """
    tokens = {operation.facts["token"].encode() for operation in acquired(index)}
    acquisitions = [
        each for each in index.history.operations if each.kind in ("acquire", "lock block")
    ]
    last = index.history.executions[-1].at + 1 if index.history.executions else 0
    gone = removals(index)
    for name, taken in takings(index).items():
        for each in taken:
            if each.token in tokens:
                continue
            callers = _callers_of(index, acquisitions, name, each)
            if not callers or any(
                caller.outcome is not Outcome.OK
                or caller.reply
                or (caller.ended_at or last) > index.unfenced
                or (caller.ended or 0.0) > each.time + (caller.facts.get("timeout") or 1e9)
                for caller in callers
            ):
                continue  # or it had expired until the reply
            if any(
                each.token in other.words and other.words[0] != b"SET"
                for other in index.executions_between(each.at, last)
            ):
                continue  # released
            if removed_between(
                gone.get(name, []), each.at, max(caller.ended_at or last for caller in callers)
            ):
                continue  # it found the key gone: another client had deleted it
            yield Broken(
                f"{name.decode()} was taken, but no caller heard that it holds it",
                tuple(caller.number for caller in callers),
                each.at,
            )


def _callers_of(
    index: Index, acquisitions: list[Operation], name: bytes, taken: Taking
) -> list[Operation]:
    """Return the acquisitions that may have sent the request."""
    written = next((w.at for w in index.history.written if taken.token in w.data), taken.at)
    return [
        each
        for each in acquisitions
        if each.facts["lock"].encode() == name
        and each.started_at < written
        and (each.ended_at is None or written < each.ended_at)
    ]


def a_lock_is_reported_lost_only_if_it_is(index: Index) -> Iterator[Broken]:
    """A holder is notified when its key is gone, or when its timeout may have passed, not before.

    It is also notified when its client is closed, which then cannot know whether the key is there.
    While nothing fails, a lock that is renewed is lost only if its key is gone. The client counts
    the rest of a timeout that the server tells from the time of its request.
    """
    if index.data_lost:
        return
    all_takings, gone = takings(index), removals(index)
    for holding in holdings(index):
        if holding.lost is None or holding.lost_at is None:
            continue
        mine = _taking_of(all_takings, holding)
        if mine is None or removed_between(gone.get(holding.name, []), mine.at, holding.lost_at):
            continue
        if _closing(index, holding, holding.lost):
            continue
        started, timeout = holding.operation.started, holding.timeout
        if timeout is not None:
            stalled = index.stalled(started, holding.lost)
            disturbed = index.disturbed(started - _CALM, holding.lost)
            if disturbed or _bound(index, holding):
                continue  # it has not heard of a renewal, or counts from a request that came late
            early = holding.lost < started + timeout - _TRIP - stalled
            if not early and (not holding.renews or stalled > timeout / 10):
                continue
        yield Broken(
            f"{holding.name.decode()} was reported as lost, but the server still held it",
            (holding.operation.number,),
            holding.lost_at,
        )


def a_holder_learns_of_the_loss_of_its_lock(index: Index) -> Iterator[Broken]:
    """While nothing else fails, a holder is notified soon after its key was deleted.

    Not over connections without a transport, which are not shared: nothing is asked over them.
    """
    if index.data_lost:
        return
    all_takings, gone = takings(index), removals(index)
    for holding in holdings(index):
        mine = _taking_of(all_takings, holding)
        if mine is None or holding.watched is None:
            continue
        for at, time in gone.get(holding.name, []):
            if at < mine.at or time > holding.ended:
                continue
            known_since = max(time, holding.watched)
            limit = known_since + _LEARNS_WITHIN + index.stalled(time, holding.watched_until)
            if (
                holding.watched_until > limit
                and not index.disturbed(mine.time - _CALM, limit)
                and not _closing(index, holding, limit)
                and not _bound(index, holding)
                and not index.bare(holding.operation.client)
            ):
                yield Broken(
                    f"the key of {holding.name.decode()} was gone for "
                    f"{holding.watched_until - known_since:.3f} s, but its holder did not hear it",
                    (holding.operation.number,),
                    at,
                )
            break


def a_holder_does_not_outlast_the_timeout_of_its_lock(index: Index) -> Iterator[Broken]:
    """A watched lock is reported lost when its timeout has passed, whatever fails.

    Not if its client was closed meanwhile, also if it was opened again: it does not watch the lock
    any more. Nor if acquiring took longer than the timeout: the server is asked when the key
    expires, which takes as long again.
    """
    if index.data_lost:
        return
    all_takings = takings(index)
    for holding in holdings(index):
        mine = _taking_of(all_takings, holding)
        if mine is None or holding.watched is None or holding.timeout is None:
            continue
        if holding.watched - holding.operation.started > holding.timeout:
            continue
        expires = Expiry(index, holding, mine).at(holding.ended_at)
        limit = max(expires, holding.watched) + _LATE_TIMER
        until = min(holding.watched_until, holding.ended)
        late = until < math.inf and until > limit + index.stalled(expires, until)
        if late and not _closing(index, holding, limit):
            yield Broken(
                f"{holding.name.decode()} had expired {until - expires:.3f} s before its holder "
                f"stopped",
                (holding.operation.number,),
                holding.operation.ended_at,
            )


def a_holder_is_notified_when_its_client_is_closed(index: Index) -> Iterator[Broken]:
    """A holder that watches its lock stops when its client is closed, which ends the watch."""
    pooled = (
        [] if index.plan is None else [s.label for s in index.plan.clients if "pooled" in s.form]
    )
    for holding in holdings(index):
        client = holding.operation.client
        if holding.watched is None or client in pooled:
            continue  # the connections of a pool are closed later
        for _, time, kind in index.lifecycle.get(client, ()):
            until = min(holding.watched_until, holding.ended)
            limit = time + _LATE_TIMER + index.stalled(time, min(until, time + 10.0))
            if kind == "closing" and holding.watched < time and limit < until < math.inf:
                yield Broken(
                    f"the client of the holder of {holding.name.decode()} was closed "
                    f"{until - time:.3f} s before the holder stopped",
                    (holding.operation.number,),
                    holding.operation.ended_at,
                )
                break


def a_renewed_lock_does_not_expire(index: Index) -> Iterator[Broken]:
    """While nothing fails, a lock with `renew=True` stays until it is released."""
    expired = index.events.get("expired", ())
    if not expired:
        return
    all_takings, gone = takings(index), removals(index)
    for holding in holdings(index):
        mine = _taking_of(all_takings, holding)
        if mine is None or not holding.renews or holding.timeout is None:
            continue
        if _bound(index, holding):
            continue  # a blocking command keeps the only connection busy
        for event in expired:
            if (
                event.facts["key"].encode() == holding.name
                and mine.at < event.at < holding.ended_at
                and not removed_between(gone.get(holding.name, []), mine.at, event.at)
                and not index.disturbed(mine.time - _CALM, event.time)
                and index.stalled(mine.time, event.time) < holding.timeout / 4
                and not _closing(index, holding, event.time)
            ):
                yield Broken(
                    f"{holding.name.decode()} expired although it was renewed",
                    (holding.operation.number,),
                    event.at,
                )


def a_waiting_caller_gets_a_free_lock(index: Index) -> Iterator[Broken]:
    """While nothing fails, `acquire` does not give up on a lock that is free for a while."""
    if index.data_lost:
        return
    all_takings, gone = takings(index), removals(index)
    for operation in index.history.operations:
        if (
            operation.kind != "acquire"
            or operation.outcome is not Outcome.OK
            or operation.reply
            or operation.ended is None
            or index.disturbed(operation.started - _CALM, operation.ended)
        ):
            continue
        name = operation.facts["lock"].encode()
        taken = all_takings.get(name, ())
        for at, time in gone.get(name, []):
            if at < operation.started_at:
                continue
            again = next((each.time for each in taken if each.at > at), math.inf)
            until = min(again, operation.ended)
            if until - time > _IDLE + index.stalled(time, until):
                yield Broken(
                    f"{name.decode()} was free for {until - time:.3f} s, but a caller that waited "
                    f"for it did not get it",
                    (operation.number,),
                    at,
                )
                break


def a_block_raises_what_its_body_raises(index: Index) -> Iterator[Broken]:
    """`async with lock` neither hides the exception of its body nor invents one."""
    for operation in index.history.operations:
        if operation.kind != "lock block" or operation.outcome is not Outcome.OK:
            continue
        raises = bool(index.argument(operation.number, "raises"))
        if operation.reply != ("raised" if raises else "ended"):
            yield Broken(
                f"the body of call {operation.number} {'raised' if raises else 'ended'}, but the "
                f"block did not",
                (operation.number,),
                operation.ended_at,
            )


@once
def _releases(index: Index) -> dict[str, Operation]:
    return {
        operation.facts["token"]: operation
        for operation in index.history.operations
        if operation.kind == "release" and "token" in operation.facts
    }


def _taking_of(all_takings: dict[bytes, list[Taking]], holding: Holding) -> Taking | None:
    """Return the first execution that took a lock for a holding."""
    taken = all_takings.get(holding.name, ())
    return next((each for each in taken if each.token == holding.token), None)


def _but_own(
    index: Index, times: list[tuple[int, float]], holding: Holding
) -> list[tuple[int, float]]:
    """Return the removals without those by the holder itself."""
    own = {
        execution.at
        for execution in index.history.executions
        if len(execution.words) == 5 and holding.token in execution.words
    }
    return [each for each in times if each[0] not in own]


def _closing(index: Index, holding: Holding, until: float) -> bool:
    """Return whether the client of a holding was closed meanwhile: it watches nothing then."""
    began = holding.operation.started
    return any(
        began <= time <= until + 1.0
        for _, time, _ in index.lifecycle.get(holding.operation.client, ())
    )


def _bound(index: Index, holding: Holding) -> bool:
    """Return whether the client has one connection for everything, which a command may block."""
    setups = () if index.plan is None else index.plan.clients
    return any(setup.label == holding.operation.client and setup.single for setup in setups)
