"""MULTI, EXEC, WATCH, and pub/sub."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.simulation.history import ErrorReply

from .command import Flag, Words, command, glob
from .resp import NULL_ARRAY, OK, Push, Refused, Reply, Several

if TYPE_CHECKING:
    from .node import Session

ANY_TIME = Flag.NOSCRIPT | Flag.LOADING | Flag.STALE
DENIED_SINCE = (
    "NOPERM ACLs rules changed between the moment the transaction was accumulated and the EXEC "
    "call. This command is no longer allowed for the following reason: no permission to execute "
    "the command or subcommand"
)
EXEC_ABORT = "EXECABORT Transaction discarded because of previous errors."


@command("MULTI", 1, ANY_TIME | Flag.ALLOW_BUSY)
def multi(session: Session, words: Words) -> Reply:
    if session.queued is not None:
        if not session.node.valkey:
            raise Refused("ERR MULTI calls can not be nested")
        session.abort()
        raise Refused("ERR Command 'multi' not allowed inside a transaction")
    session.queued = []
    session.aborted = False
    return OK


def discard_transaction(session: Session) -> None:
    """Forget the queued commands and the watched keys."""
    session.queued = None
    session.aborted = False
    session.watched = {}


@command("DISCARD", 1, ANY_TIME | Flag.ALLOW_BUSY)
def discard(session: Session, words: Words) -> Reply:
    if session.queued is None:
        raise Refused("ERR DISCARD without MULTI")
    discard_transaction(session)
    return OK


@command("WATCH", -2, ANY_TIME | Flag.ALLOW_BUSY)
def watch(session: Session, words: Words) -> Reply:
    if session.queued is not None:
        if not session.node.valkey:
            raise Refused("ERR WATCH inside MULTI is not allowed")
        session.abort()
        raise Refused("ERR Command 'watch' not allowed inside a transaction")
    database = session.database
    for key in words[1:]:
        database.find(key)
        session.watched.setdefault((database.index, key), database.versions.get(key, 0))
    return OK


@command("UNWATCH", 1, ANY_TIME | Flag.ALLOW_BUSY)
def unwatch(session: Session, words: Words) -> Reply:
    session.watched = {}
    return OK


def watch_failed(session: Session) -> bool:
    """Return whether a watched key has changed."""
    for (index, key), version in session.watched.items():
        database = session.node.databases[index]
        database.find(key)
        if database.versions.get(key, 0) != version:
            return True
    return False


@command("EXEC", 1, ANY_TIME | Flag.OWN_LOG)
def exec_(session: Session, words: Words) -> Reply:
    node = session.node
    queued = session.queued
    if queued is None or session.aborted:
        text = "ERR EXEC without MULTI" if queued is None else EXEC_ABORT
        if queued is not None:
            discard_transaction(session)
        error = ErrorReply(text)
        node.log(session, words, error, applied=False)
        return error
    if session.watched and watch_failed(session):
        discard_transaction(session)
        node.log(session, words, None, applied=False)
        return NULL_ARRAY
    discard_transaction(session)
    transaction = node.history.next()
    replies: list[Reply] = []
    session.executing = True
    for entry, arguments in queued:
        session.command, session.words = entry, arguments
        if node.denies(session.user, entry):
            error = ErrorReply(DENIED_SINCE)
            node.log(session, arguments, error, applied=False, transaction=transaction)
            replies.append(error)
            continue
        replies.append(node.call(session, entry, arguments, transaction))
    session.executing = False
    node.log(session, words, replies, applied=True, transaction=transaction)
    return replies


# Pub/sub.


def _confirm(session: Session, kind: bytes, name: bytes | None) -> Push:
    return Push([kind, name, session.subscriptions])


@command("SUBSCRIBE", -2, ANY_TIME)
def subscribe(session: Session, words: Words) -> Reply:
    return _subscribe(session, words, session.channels, session.node.channels)


@command("PSUBSCRIBE", -2, ANY_TIME)
def psubscribe(session: Session, words: Words) -> Reply:
    return _subscribe(session, words, session.patterns, session.node.patterns)


Table = dict[bytes, dict[int, "Session"]]


def _subscribe(session: Session, words: Words, own: dict[bytes, None], table: Table) -> Reply:
    replies = Several()
    for name in words[1:]:
        own[name] = None
        table.setdefault(name, {})[session.id] = session
        replies.append(_confirm(session, words[0].lower(), name))
    return replies


@command("UNSUBSCRIBE", -1, ANY_TIME)
def unsubscribe(session: Session, words: Words) -> Reply:
    return _unsubscribe(session, words, session.channels, session.node.channels)


@command("PUNSUBSCRIBE", -1, ANY_TIME)
def punsubscribe(session: Session, words: Words) -> Reply:
    return _unsubscribe(session, words, session.patterns, session.node.patterns)


def _unsubscribe(session: Session, words: Words, own: dict[bytes, None], table: Table) -> Reply:
    replies = Several()
    names: tuple[bytes | None, ...] = words[1:] or tuple(own) or (None,)
    for name in names:
        if name in own:
            del own[name]
            del table[name][session.id]
            if not table[name]:
                del table[name]
        replies.append(_confirm(session, words[0].lower(), name))
    return replies


@command("PUBLISH", 3, Flag.LOADING | Flag.STALE | Flag.MAY_REPLICATE)
def publish(session: Session, words: Words) -> Reply:
    channel = words[1]
    own: list[Reply] = []
    count = session.node.publish(
        channel,
        words[2],
        lambda pattern: glob(pattern).fullmatch(channel) is not None,
        # Valkey sends the publisher its own messages after the reply.
        None if not session.node.valkey or session.executing else (session, own),
    )
    return Several([count, *own]) if own else count


@command("PUBSUB|CHANNELS", -2, Flag.LOADING | Flag.STALE)
def pubsub_channels(session: Session, words: Words) -> Reply:
    matches = glob(words[2] if len(words) > 2 else b"*").fullmatch
    return [name for name in session.node.channels if matches(name)]


@command("PUBSUB|NUMSUB", -2, Flag.LOADING | Flag.STALE)
def pubsub_numsub(session: Session, words: Words) -> Reply:
    channels = session.node.channels
    return [part for name in words[2:] for part in (name, len(channels.get(name, ())))]


@command("PUBSUB|NUMPAT", 2, Flag.LOADING | Flag.STALE)
def pubsub_numpat(session: Session, words: Words) -> Reply:
    return len(session.node.patterns)
