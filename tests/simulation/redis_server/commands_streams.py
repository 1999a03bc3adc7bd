"""Commands on streams and their consumer groups."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .command import SYNTAX, Flag, Words, command, integer, wrong_arity
from .database import Group, Stream, StreamId
from .resp import NULL_ARRAY, OK, PENDING, Refused, Reply

if TYPE_CHECKING:
    from .database import Database
    from .node import Session

READ = Flag.READONLY
WRITE = Flag.WRITE
GROW = Flag.WRITE | Flag.DENYOOM
MEANINGLESS_ID = (
    "ERR The $ ID is meaningless in the context of XREADGROUP: you want to read the history of "
    "this consumer by specifying a proper ID, or use the > ID to get new messages. The $ ID would "
    "just return an empty result set."
)
STREAM_GONE = "UNBLOCKED the stream key no longer exists"
GROUP_GONE = "NOGROUP the consumer group this client was blocked on no longer exists"
BAD_ID = "ERR Invalid stream ID specified as stream command argument"
NEEDS_KEY = (
    "ERR The XGROUP subcommand requires the key to exist. Note that for CREATE you may want to "
    "use the MKSTREAM option to create an empty stream automatically."
)
LARGEST = (1 << 64) - 1


def _id_text(identifier: StreamId) -> bytes:
    return b"%d-%d" % identifier


def _id(word: bytes, sequence: int = 0) -> StreamId:
    """Return an ID; one without a sequence number gets this one."""
    first, dash, second = word.partition(b"-")
    try:
        return int(first), int(second) if dash else sequence
    except ValueError:
        raise Refused(BAD_ID) from None


def _entry(identifier: StreamId, fields: list[bytes] | None) -> Reply:
    return [_id_text(identifier), NULL_ARRAY if fields is None else list(fields)]


def _trim(stream: Stream, options: Words) -> tuple[int, Words]:
    """Apply MAXLEN or MINID; return the number of removed entries, and the other words."""
    kind = options[0].upper()
    at = 1
    if options[at : at + 1] in ((b"=",), (b"~",)):
        at += 1
    if len(options) <= at:
        raise Refused(SYNTAX)
    if kind == b"MAXLEN":
        longest = integer(options[at])
        if longest < 0:
            raise Refused("ERR The MAXLEN argument must be >= 0.")
        removed = list(stream.entries)[: max(0, len(stream.entries) - longest)]
    else:
        lowest = _id(options[at])
        removed = [one for one in stream.entries if one < lowest]
    at += 1
    if len(options) > at + 1 and options[at].upper() == b"LIMIT":
        at += 2
    for one in removed:
        del stream.entries[one]
    return len(removed), options[at:]


@command("XADD", -5, GROW)
def xadd(session: Session, words: Words) -> Reply:
    database = session.database
    key = words[1]
    at = 2
    create, trimming = True, ()
    while at < len(words):
        option = words[at].upper()
        if option == b"NOMKSTREAM":
            create = False
            at += 1
        elif option in (b"MAXLEN", b"MINID"):
            rest = _trim(Stream(), words[at:])[1]
            trimming = words[at:]
            at = len(words) - len(rest)
        else:
            break
    fields = list(words[at + 1 :])
    if not fields or len(fields) % 2:
        raise Refused(wrong_arity("xadd"))
    stream: Stream | None = database.find_kind(key, Stream)
    last = stream.last if stream is not None else (0, 0)
    identifier = _next_id(words[at], last, database.now())
    if stream is None:
        if not create:
            return None
        stream = database.make_kind(key, Stream)
    stream.entries[identifier] = fields
    stream.last = identifier
    if trimming:
        _trim(stream, trimming)
    database.touch(key)
    return _id_text(identifier)


def _next_id(word: bytes, last: StreamId, now: int) -> StreamId:
    if word == b"*":
        return (now, 0) if now > last[0] else (last[0], last[1] + 1)
    if word.endswith(b"-*"):
        first = _id(word[:-2])[0]
        identifier = (first, last[1] + 1 if first == last[0] else 0)
    else:
        identifier = _id(word)
        if identifier == (0, 0):
            raise Refused("ERR The ID specified in XADD must be greater than 0-0")
    if identifier <= last:
        raise Refused(
            "ERR The ID specified in XADD is equal or smaller than the target stream top item"
        )
    return identifier


def _stream(session: Session, key: bytes) -> Stream:
    return session.database.find_kind(key, Stream) or Stream()


@command("XLEN", 2, READ)
def xlen(session: Session, words: Words) -> Reply:
    return len(_stream(session, words[1]).entries)


def _bound(word: bytes, *, low: bool) -> StreamId:
    if word == b"-":
        return (0, 0)
    if word == b"+":
        return (LARGEST, LARGEST)
    exclusive = word[:1] == b"("
    first, second = _id(word[exclusive:], 0 if low else LARGEST)
    if exclusive:
        second += 1 if low else -1
    return first, second


def _range(session: Session, words: Words, low: bytes, high: bytes) -> list[Reply]:
    lowest, highest = _bound(low, low=True), _bound(high, low=False)
    count = None
    if len(words) == 6 and words[4].upper() == b"COUNT":
        count = integer(words[5])
    elif len(words) > 4:
        raise Refused(SYNTAX)
    entries = _stream(session, words[1]).entries
    found = [_entry(one, entries[one]) for one in entries if lowest <= one <= highest]
    if words[0] == b"XREVRANGE":
        found.reverse()
    return found if count is None or count < 0 else found[:count]


@command("XRANGE", -4, READ)
def xrange(session: Session, words: Words) -> Reply:
    return _range(session, words, words[2], words[3])


@command("XREVRANGE", -4, READ)
def xrevrange(session: Session, words: Words) -> Reply:
    return _range(session, words, words[3], words[2])


@command("XDEL", -3, WRITE)
def xdel(session: Session, words: Words) -> Reply:
    stream = session.database.find_kind(words[1], Stream)
    wanted = [_id(word) for word in words[2:]]
    if stream is None:
        return 0
    count = sum([stream.entries.pop(one, None) is not None for one in wanted])
    if count:
        session.database.touch(words[1])
    return count


@command("XTRIM", -4, WRITE)
def xtrim(session: Session, words: Words) -> Reply:
    if words[2].upper() not in (b"MAXLEN", b"MINID"):
        raise Refused(SYNTAX)
    stream = session.database.find_kind(words[1], Stream)
    removed, rest = _trim(Stream() if stream is None else stream, words[2:])
    if rest:
        raise Refused(SYNTAX)
    if removed:
        session.database.touch(words[1])
    return removed


class _ReadOptions:
    """The words of XREAD and XREADGROUP."""

    __slots__ = ("block", "consumer", "count", "group", "ids", "keys", "noack")

    def __init__(self, words: Words, *, valkey: bool) -> None:
        self.block: float | None = None
        self.count: int | None = None
        self.group = self.consumer = b""
        self.noack = False
        name = words[0].decode().lower()
        at = 1
        while at < len(words):
            option = words[at].upper()
            if option == b"STREAMS":
                break
            if option == b"BLOCK" and at + 1 < len(words):
                timeout = integer(words[at + 1], "ERR timeout is not an integer or out of range")
                if timeout < 0:
                    raise Refused("ERR timeout is negative")
                self.block = timeout / 1000
            elif option == b"COUNT" and at + 1 < len(words):
                count = integer(words[at + 1])
                self.count = count if count > 0 else None
            elif option == b"GROUP" and at + 2 < len(words):
                self.group, self.consumer = words[at + 1], words[at + 2]
                at += 1
            elif option == b"NOACK":
                self.noack = True
                at -= 1
            else:
                raise Refused(SYNTAX)
            at += 2
        rest = words[at + 1 :]
        if not rest:
            raise Refused(SYNTAX)
        if len(rest) % 2:
            mark = ">" if name == "xreadgroup" and valkey else "$"
            shown = f"'{name}'" if valkey else "XREAD"
            raise Refused(
                f"ERR Unbalanced {shown} list of streams: for each stream key an ID or "
                f"'{mark}' must be specified."
            )
        self.keys = rest[: len(rest) // 2]
        self.ids = rest[len(rest) // 2 :]


def _found(session: Session, found: list[tuple[bytes, list[Reply]]]) -> Reply:
    if session.protocol == 3:
        return dict(found)
    return [[key, entries] for key, entries in found]


@command("XREAD", -4, READ)
def xread(session: Session, words: Words) -> Reply:
    options = _ReadOptions(words, valkey=session.node.valkey)
    database = session.database
    after: list[StreamId] = []
    for key, word in zip(options.keys, options.ids, strict=True):
        stream = database.find_kind(key, Stream)
        if word == b"$":
            after.append(stream.last if stream is not None else (0, 0))
        else:
            after.append(_id(word))

    def attempt() -> Reply:
        found = []
        for key, start in zip(options.keys, after, strict=True):
            stream = database.find_kind(key, Stream)
            if stream is None:
                continue
            entries = [_entry(one, stream.entries[one]) for one in stream.entries if one > start]
            if entries:
                found.append((key, entries[: options.count]))
        return _found(session, found) if found else PENDING

    if options.block is None:
        reply = attempt()
        return NULL_ARRAY if reply is PENDING else reply
    return session.block(attempt, options.block, NULL_ARRAY, options.keys)


def _group(database: Database, key: bytes, name: bytes) -> tuple[Stream, Group] | None:
    stream = database.find_kind(key, Stream)
    if stream is None or name not in stream.groups:
        return None
    return stream, stream.groups[name]


def _no_group(key: bytes, group: bytes, command_name: str = "") -> Refused:
    where = f" in {command_name} with GROUP option" if command_name else ""
    return Refused(
        f"NOGROUP No such key '{key.decode(errors='replace')}' or consumer group "
        f"'{group.decode(errors='replace')}'{where}"
    )


@command("XREADGROUP", -7, WRITE)
def xreadgroup(session: Session, words: Words) -> Reply:
    options = _ReadOptions(words, valkey=session.node.valkey)
    if not options.group:
        raise Refused("ERR Missing GROUP option for XREADGROUP")
    if b"$" in options.ids:
        raise Refused(MEANINGLESS_ID)
    database = session.database

    def attempt() -> Reply:
        found = []
        for key, word in zip(options.keys, options.ids, strict=True):
            if session.waiting is not None and not session.node.valkey:
                if type(database.find(key)) is not Stream:
                    raise Refused(STREAM_GONE)
                if _group(database, key, options.group) is None:
                    raise Refused(GROUP_GONE)
            pair = _group(database, key, options.group)
            if pair is None:
                raise _no_group(key, options.group, "XREADGROUP")
            if word == b">":
                entries = _deliver(database, key, pair, options)
                if entries:
                    found.append((key, entries))
            else:
                found.append((key, _history(pair, options, _id(word))))
        return _found(session, found) if found else PENDING

    if options.block is None:
        reply = attempt()
        return NULL_ARRAY if reply is PENDING else reply
    return session.block(attempt, options.block, NULL_ARRAY, options.keys, strict=True)


def _deliver(
    database: Database, key: bytes, pair: tuple[Stream, Group], options: _ReadOptions
) -> list[Reply]:
    stream, group = pair
    new = [one for one in stream.entries if one > group.delivered][: options.count]
    if options.consumer not in group.consumers:
        group.consumers[options.consumer] = None
        database.touch(key, watched=False)
    for one in new:
        group.delivered = one
        if not options.noack:
            group.pending[one] = (options.consumer, database.now(), 1)
    if new:
        database.touch(key, watched=False)
    return [_entry(one, stream.entries[one]) for one in new]


def _history(pair: tuple[Stream, Group], options: _ReadOptions, start: StreamId) -> list[Reply]:
    stream, group = pair
    own = sorted(
        [
            one
            for one, (consumer, _, _) in group.pending.items()
            if consumer == options.consumer and one > start
        ]
    )
    return [_entry(one, stream.entries.get(one)) for one in own[: options.count]]


@command("XACK", -4, WRITE)
def xack(session: Session, words: Words) -> Reply:
    wanted = [_id(word) for word in words[3:]]
    pair = _group(session.database, words[1], words[2])
    if pair is None:
        return 0
    count = sum([pair[1].pending.pop(one, None) is not None for one in wanted])
    if count:
        session.database.touch(words[1], watched=False)
    return count


@command("XPENDING", -3, READ)
def xpending(session: Session, words: Words) -> Reply:
    pair = _group(session.database, words[1], words[2])
    if pair is None:
        raise _no_group(words[1], words[2])
    pending = pair[1].pending
    if len(words) > 3:
        return _pending_entries(session, words, pair[1])
    if not pending:
        return [0, None, None, NULL_ARRAY]
    counts: dict[bytes, int] = {}
    for consumer, _, _ in pending.values():
        counts[consumer] = counts.get(consumer, 0) + 1
    return [
        len(pending),
        _id_text(min(pending)),
        _id_text(max(pending)),
        [[consumer, b"%d" % count] for consumer, count in sorted(counts.items())],
    ]


def _pending_entries(session: Session, words: Words, group: Group) -> Reply:
    if len(words) not in (6, 7):
        raise Refused(SYNTAX)
    lowest, highest = _bound(words[3], low=True), _bound(words[4], low=False)
    now = session.database.now()
    found = [
        [_id_text(one), consumer, now - time, deliveries]
        for one, (consumer, time, deliveries) in sorted(group.pending.items())
        if lowest <= one <= highest and consumer in (words[6:] or (consumer,))
    ]
    return found[: integer(words[5])]


@command("XAUTOCLAIM", -6, WRITE)
def xautoclaim(session: Session, words: Words) -> Reply:
    database = session.database
    idle, start = integer(words[4]), _bound(words[5], low=True)
    count = integer(words[7]) if len(words) == 8 and words[6].upper() == b"COUNT" else 100
    pair = _group(database, words[1], words[2])
    if pair is None:
        raise _no_group(words[1], words[2])
    stream, group = pair
    group.consumers.setdefault(words[3])
    claimed, deleted = [], []
    cursor: StreamId = (0, 0)
    for one, (_, time, deliveries) in sorted(group.pending.items()):
        if one < start or database.now() - time < idle:
            continue
        if len(claimed) == count:
            cursor = one
            break
        if one in stream.entries:
            group.pending[one] = (words[3], database.now(), deliveries + 1)
            claimed.append(_entry(one, stream.entries[one]))
        else:
            del group.pending[one]
            deleted.append(_id_text(one))
    database.touch(words[1], watched=False)
    return [_id_text(cursor), claimed, deleted]


@command("XGROUP|CREATE", -5, GROW)
def xgroup_create(session: Session, words: Words) -> Reply:
    database = session.database
    key = words[2]
    make = any(word.upper() == b"MKSTREAM" for word in words[5:])
    stream = found = database.find_kind(key, Stream)
    if stream is None:
        if not make:
            raise Refused(NEEDS_KEY)
        stream = Stream()
    start = stream.last if words[4] == b"$" else _id(words[4])
    if words[3] in stream.groups:
        raise Refused("BUSYGROUP Consumer Group name already exists")
    stream.groups[words[3]] = Group(start)
    if found is None:
        database.put(key, stream)
    else:
        database.touch(key, watched=False)
    return OK


@command("XGROUP|DESTROY", 4, WRITE)
def xgroup_destroy(session: Session, words: Words) -> Reply:
    stream = session.database.find_kind(words[2], Stream)
    if stream is None:
        raise Refused(NEEDS_KEY)
    if stream.groups.pop(words[3], None) is None:
        return 0
    session.database.touch(words[2], watched=False)
    return 1


@command("XGROUP|CREATECONSUMER", 5, GROW)
def xgroup_createconsumer(session: Session, words: Words) -> Reply:
    pair = _group(session.database, words[2], words[3])
    if pair is None:
        raise _no_group(words[2], words[3])
    if words[4] in pair[1].consumers:
        return 0
    pair[1].consumers[words[4]] = None
    session.database.touch(words[2], watched=False)
    return 1
