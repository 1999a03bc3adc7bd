"""Commands about connections: HELLO, AUTH, SELECT, CLIENT, PING, RESET, QUIT."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from .command import SYNTAX, Flag, Words, command, integer, wrong_arity
from .commands_keys import database_at
from .resp import OK, PONG, Refused, Reply, Status, Text

if TYPE_CHECKING:
    from .node import Session

ANY_TIME = Flag.LOADING | Flag.STALE
ALWAYS = Flag.NOSCRIPT | ANY_TIME | Flag.NO_AUTH | Flag.ALLOW_BUSY
CLIENT = Flag.NOSCRIPT | ANY_TIME
NOT_AUTHENTICATED = (
    "NOAUTH HELLO must be called with the client already authenticated, otherwise the HELLO "
    "{protocol}AUTH <user> <pass> option can be used to authenticate the client and select the "
    "RESP protocol version at the same time"
)
NO_PASSWORD = (
    "ERR AUTH <password> called without any password configured for the default user. "
    "Are you sure your configuration is correct?"
)
LUA = {b"name": b"lua", b"ver": 1, b"path": b"lua", b"args": []}
_NOT_IN_A_NAME = re.compile(rb"[^!-~]")
BAD_NAME = "ERR Client names cannot contain spaces, newlines or special characters."


def _log_in(session: Session, user: str, password: str) -> None:
    if not session.node.accepts(user, password):
        raise Refused("WRONGPASS invalid username-password pair or user is disabled.")
    session.user = user
    session.authenticated = True


def _checked_name(name: bytes) -> str:
    if _NOT_IN_A_NAME.search(name):
        raise Refused(BAD_NAME)
    return name.decode()


@command("HELLO", -1, ALWAYS)
def hello(session: Session, words: Words) -> Reply:
    node = session.node
    protocol = session.protocol
    at = 2
    if len(words) > 1:
        protocol = integer(words[1], "ERR Protocol version is not an integer or out of range")
        if protocol not in (2, 3):
            raise Refused("NOPROTO unsupported protocol version")
    name = user = password = None
    while at < len(words):
        option = words[at].upper()
        if option == b"AUTH" and at + 2 < len(words):
            user, password = words[at + 1].decode(), words[at + 2].decode()
            at += 3
        elif option == b"SETNAME" and at + 1 < len(words):
            name = _checked_name(words[at + 1])
            at += 2
        else:
            raise Refused(f"ERR Syntax error in HELLO option '{words[at].decode()}'")
    if user is not None:
        _log_in(session, user, password)
    elif not session.authenticated:
        raise Refused(NOT_AUTHENTICATED.format(protocol="<proto> " if node.valkey else ""))
    if name is not None:
        session.name = name
    session.protocol = protocol
    return {
        b"server": b"valkey" if node.valkey else b"redis",
        b"version": node.version.encode(),
        b"proto": protocol,
        b"id": session.id,
        b"mode": node.mode.encode(),
        b"role": b"master" if node.master is None else b"replica",
        b"modules": [dict(LUA)] if node.valkey else [],
    }


@command("AUTH", -2, ALWAYS)
def auth(session: Session, words: Words) -> Reply:
    if len(words) > 3:
        raise Refused(SYNTAX)
    if len(words) == 2:
        if not session.node.password_required:
            raise Refused(NO_PASSWORD)
        _log_in(session, "default", words[1].decode())
    else:
        _log_in(session, words[1].decode(), words[2].decode())
    return OK


@command("SELECT", 2, ANY_TIME | Flag.VALKEY_BUSY)
def select(session: Session, words: Words) -> Reply:
    session.database = database_at(session, words[1])
    return OK


@command("PING", -1, Flag.NONE)
def ping(session: Session, words: Words) -> Reply:
    if len(words) > 2:
        raise Refused(wrong_arity("ping"))
    if session.protocol == 2 and session.subscriptions:
        return [b"pong", words[1] if len(words) == 2 else b""]
    return words[1] if len(words) == 2 else PONG


@command("ECHO", 2, ANY_TIME)
def echo(session: Session, words: Words) -> Reply:
    return words[1]


@command("QUIT", -1, ALWAYS)
def quit_(session: Session, words: Words) -> Reply:
    session.end()
    return OK


@command("RESET", 1, ALWAYS)
def reset(session: Session, words: Words) -> Reply:
    node = session.node
    node.unsubscribe_all(session)
    session.queued = None
    session.aborted = False
    session.watched = {}
    session.database = node.databases[0]
    session.protocol = 2
    session.name = ""
    session.tracking = session.opt_in = session.caching = False
    session.user = "default"
    session.authenticated = not node.password_required
    return Status(b"RESET")


@command("CLIENT|ID", 2, CLIENT | Flag.VALKEY_BUSY)
def client_id(session: Session, words: Words) -> Reply:
    return session.id


@command("CLIENT|SETNAME", 3, CLIENT | Flag.VALKEY_BUSY)
def client_setname(session: Session, words: Words) -> Reply:
    session.name = _checked_name(words[2])
    return OK


@command("CLIENT|GETNAME", 2, CLIENT | Flag.VALKEY_BUSY)
def client_getname(session: Session, words: Words) -> Reply:
    return session.name.encode() or None


def _since_7_2(session: Session, words: Words) -> None:
    if session.node.release < (7, 2):
        raise Refused(f"ERR unknown subcommand '{words[1].decode()}'. Try CLIENT HELP.")


@command("CLIENT|SETINFO", 4, CLIENT | Flag.VALKEY_BUSY)
def client_setinfo(session: Session, words: Words) -> Reply:
    _since_7_2(session, words)
    name, version = session.library
    option, value = words[2].upper(), words[3].decode(errors="replace")
    shown = words[2].decode(errors="replace")
    if any(byte < 33 or byte > 126 for byte in words[3]):
        raise Refused(f"ERR {shown} cannot contain spaces, newlines or special characters.")
    if option == b"LIB-NAME":
        session.library = (value, version)
    elif option == b"LIB-VER":
        session.library = (name, value)
    else:
        raise Refused(f"ERR Unrecognized option '{shown}'")
    return OK


def describe(session: Session) -> str:
    """Return the line of a connection in CLIENT LIST."""
    node = session.node
    now = node.timers.time()
    flags = "N"
    if session.queued is not None:
        flags = "x"
    elif session.waiting is not None:
        flags = "b"
    elif session.subscriptions:
        flags = "P"
    multi = -1 if session.queued is None else len(session.queued)
    command = session.command.name.lower() if session.command is not None else "NULL"
    version = ""
    if node.valkey:
        version = f" lib-name={session.library[0]} lib-ver={session.library[1]}"
    return (
        f"id={session.id} addr={session.peer.address} laddr={node.address} fd={session.id + 7} "
        f"name={session.name} age={int(now - session.created)} idle={int(now - session.last)} "
        f"flags={flags} db={session.database.index} sub={len(session.channels)} "
        f"psub={len(session.patterns)} ssub=0 multi={multi} watch={len(session.watched)} qbuf=0 "
        f"qbuf-free=0 argv-mem=10 multi-mem=0 rbs=1024 rbp=0 obl=0 oll=0 omem=0 tot-mem=1642 "
        f"events=r cmd={command} user={session.user} redir=-1 resp={session.protocol}{version}\n"
    )


@command("CLIENT|INFO", 2, CLIENT)
def client_info(session: Session, words: Words) -> Reply:
    return Text(describe(session).encode())


@command("CLIENT|LIST", -2, CLIENT)
def client_list(session: Session, words: Words) -> Reply:
    shown = list(session.node.sessions.values())
    if len(words) > 3 and words[2].upper() == b"ID":
        bad = SYNTAX if session.node.valkey else "ERR Invalid client ID"
        wanted = [integer(word, bad) for word in words[3:]]
        shown = [session.node.sessions[one] for one in wanted if one in session.node.sessions]
    elif len(words) == 4 and words[2].upper() == b"TYPE":
        kind = words[3].lower()
        if kind not in (b"normal", b"pubsub", b"master", b"replica"):
            raise Refused(f"ERR Unknown client type '{kind.decode(errors='replace')}'")
        shown = [one for one in shown if kind == (b"pubsub" if one.subscriptions else b"normal")]
    elif len(words) > 2:
        raise Refused(SYNTAX)
    return Text("".join([describe(one) for one in shown]).encode())


@command("CLIENT|KILL", -3, CLIENT)
def client_kill(session: Session, words: Words) -> Reply:
    node = session.node
    sessions = list(node.sessions.values())
    if len(words) == 3:
        address = words[2].decode(errors="replace")
        chosen = [one for one in sessions if one.peer.address == address]
        if not chosen:
            raise Refused("ERR No such client")
        skip_me, old_form = False, True
    else:
        chosen, skip_me = _kill_filter(sessions, words[2:], valkey=node.valkey)
        old_form = False
    count = 0
    for one in chosen:
        if one is session and skip_me:
            continue
        count += 1
        if one is session:
            session.end()
        else:
            node.disconnect(one)
    return OK if old_form else count


def _kill_filter(
    sessions: list[Session], options: Words, *, valkey: bool
) -> tuple[list[Session], bool]:
    skip_me = True
    if len(options) % 2:
        raise Refused(SYNTAX)
    for at in range(0, len(options), 2):
        name, value = options[at].upper(), options[at + 1]
        text = value.decode(errors="replace")
        if name == b"ID":
            wrong = SYNTAX if valkey else "ERR client-id should be greater than 0"
            wanted = integer(value, wrong)
            if wanted < 1:
                raise Refused("ERR client-id should be greater than 0")
            sessions = [one for one in sessions if one.id == wanted]
        elif name == b"ADDR":
            sessions = [one for one in sessions if one.peer.address == text]
        elif name == b"LADDR":
            sessions = [one for one in sessions if one.node.address == text]
        elif name == b"USER":
            sessions = [one for one in sessions if one.user == text]
        elif name == b"TYPE":
            if text.lower() not in ("normal", "pubsub", "master", "slave", "replica"):
                raise Refused(f"ERR Unknown client type '{text}'")
            pubsub = text.lower() == "pubsub"
            normal = text.lower() == "normal"
            sessions = [one for one in sessions if (pubsub if one.subscriptions else normal)]
        elif name == b"SKIPME" and text.lower() in ("yes", "no"):
            skip_me = text.lower() == "yes"
        else:
            raise Refused(SYNTAX)
    return sessions, skip_me


@command("CLIENT|UNBLOCK", -3, CLIENT)
def client_unblock(session: Session, words: Words) -> Reply:
    error = False
    if len(words) == 4:
        reason = words[3].upper()
        if reason not in (b"TIMEOUT", b"ERROR"):
            raise Refused("ERR CLIENT UNBLOCK reason should be TIMEOUT or ERROR")
        error = reason == b"ERROR"
    elif len(words) > 4:
        raise Refused(SYNTAX)
    target = session.node.sessions.get(integer(words[2]))
    return int(target is not None and session.node.unblock_session(target, error=error))


@command("CLIENT|PAUSE", -3, CLIENT)
def client_pause(session: Session, words: Words) -> Reply:
    mode = words[3].upper() if len(words) > 3 else b"ALL"
    if mode not in (b"ALL", b"WRITE"):
        raise Refused("ERR CLIENT PAUSE mode must be WRITE or ALL")
    milliseconds = integer(words[2], "ERR timeout is not an integer or out of range")
    if milliseconds < 0:
        raise Refused("ERR timeout is negative")
    session.node.pause(milliseconds / 1000, mode.decode())
    return OK


@command("CLIENT|UNPAUSE", 2, CLIENT)
def client_unpause(session: Session, words: Words) -> Reply:
    session.node.unpause()
    return OK


@command("CLIENT|NO-EVICT", 3, CLIENT | Flag.VALKEY_BUSY)
@command("CLIENT|NO-TOUCH", 3, CLIENT | Flag.VALKEY_BUSY)
def client_switch(session: Session, words: Words) -> Reply:
    if words[1] == b"NO-TOUCH":
        _since_7_2(session, words)
    if words[2].upper() not in (b"ON", b"OFF"):
        raise Refused(SYNTAX)
    return OK


@command("CLIENT|REPLY", 3, CLIENT | Flag.VALKEY_BUSY)
def client_reply(session: Session, words: Words) -> Reply:
    if words[2].upper() == b"ON":
        return OK
    if words[2].upper() in (b"OFF", b"SKIP"):
        raise Refused("ERR CLIENT REPLY OFF and SKIP are not simulated")
    raise Refused(SYNTAX)
