"""CLIENT TRACKING with OPTIN: the server reports the next change of a key that was read.

`Journal.tracked` has the sessions that read a key after CLIENT CACHING YES. A change removes the
key there, and `invalidate` sends the report. As Redis does, the report of a session's own change
follows the reply. Other modes (BCAST, REDIRECT, OPTOUT, NOLOOP) are not simulated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .command import SYNTAX, Flag, Words, command
from .resp import OK, Push, Refused, Reply

if TYPE_CHECKING:
    from .node import Node, Session

CLIENT = Flag.NOSCRIPT | Flag.LOADING | Flag.STALE
NOT_OPT_IN = (
    "ERR CLIENT CACHING can be called only when the client is in tracking mode with OPTIN or "
    "OPTOUT mode enabled"
)
NOT_OPT_OUT = "ERR CLIENT CACHING NO is only valid when tracking is enabled in OPTOUT mode."
_LATEST = 0.1  # seconds after its expiry within which a key is deleted

_KEYS = {"GET": slice(1, 2), "MGET": slice(1, None), "PTTL": slice(1, 2), "TTL": slice(1, 2)}
"""Where the keys are in the commands that are simulated after CLIENT CACHING YES."""


@command("CLIENT|TRACKING", -3, CLIENT)
def client_tracking(session: Session, words: Words) -> Reply:
    on, options = words[2].upper(), [word.upper() for word in words[3:]]
    if on not in (b"ON", b"OFF") or any(option != b"OPTIN" for option in options):
        raise Refused(SYNTAX)
    session.tracking, session.opt_in = on == b"ON", bool(options)
    return OK


@command("CLIENT|CACHING", 3, CLIENT | Flag.VALKEY_BUSY)
def client_caching(session: Session, words: Words) -> Reply:
    if not (session.tracking and session.opt_in):
        raise Refused(NOT_OPT_IN)
    if words[2].upper() != b"YES":
        raise Refused(NOT_OPT_OUT)
    session.caching = True
    return OK


@command("CLIENT|GETREDIR", 2, CLIENT | Flag.VALKEY_BUSY)
def client_getredir(session: Session, words: Words) -> Reply:
    return 0 if session.tracking else -1


def remember(session: Session, name: str, words: Words) -> None:
    """Remember which keys a session has read after CLIENT CACHING YES."""
    if name.startswith("CLIENT|"):
        return  # the switch is for the next other command
    session.caching = False
    keys = _KEYS.get(name)
    node, database = session.node, session.database
    for key in words[keys] if keys is not None else ():
        node.journal.tracked.setdefault(key, {})[session.id] = session
        due = database.expires.get(key)
        if due is not None:
            when = due / 1000 - node.epoch + node.random.random() * _LATEST
            node.later(when, database.find, key)


def invalidate(node: Node) -> None:
    """Report the changes of keys to the sessions that have read them."""
    journal = node.journal
    while journal.invalidated:
        key = journal.invalidated.pop(0)
        for number, session in journal.tracked.pop(key, {}).items():
            if session.id == number and session.protocol == 3 and not session.closing:
                session.reply(Push([b"invalidate", [key]]))
