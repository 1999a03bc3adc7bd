"""Whether Redis lets us in, and what it means when it does not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from resilient_io.doctor.looking import Finding, problem
from resilient_io.health import Cause
from resilient_io.redis.errors import connection_failure

if TYPE_CHECKING:
    from resilient_io.redis.connect import RedisTarget

__all__ = ["judge_login"]

_ADVICE: Final[dict[Cause, str]] = {
    Cause.WRONG_DATABASE: "Write a database that exists: by default there are 0 to 15 (/0).",
    Cause.MAX_CLIENTS: (
        "Raise maxclients, or find who holds the connections: CLIENT LIST on the server, and "
        "pools that are made per request."
    ),
    Cause.LOADING: "It reads its data from disk: wait; INFO persistence tells how long.",
    Cause.TIMED_OUT: (
        "It takes connections but answers nothing: look whether it is frozen (SIGSTOP, paused "
        "container), swapping, or busy with a slow command; redis-cli on its host will hang too."
    ),
    Cause.RESET: (
        "It hung up without a word: look whether the port speaks TLS (then write rediss://…), or a "
        "proxy in front has lost its server; the server's log tells more."
    ),
    Cause.PROTOCOL: "What answers there is not Redis: look at the port, and what listens on it.",
    Cause.REFUSED: "Is the server running, and may we use its socket?",
}

_AFTER_TLS: Final = (
    "It hung up after the handshake: mostly it wants a certificate of ours (tls-auth-clients yes), "
    "so give one: ssl_certfile=…&ssl_keyfile=…; the server's log tells more."
)


def judge_login(error: BaseException, target: RedisTarget, *, gave_password: bool) -> Finding:
    """Say why a connection came to nothing after TCP (and TLS) did well.

    Args:
        error: What dialling raised.
        target: What was dialled.
        gave_password: Whether a password was given.
    """
    failure = connection_failure(error, tls=target.uses_tls)
    said = failure.detail
    data = {"cause": failure.cause.value}
    if failure.cause is Cause.AUTH:
        return _judge_refused(said, gave_password=gave_password)
    if "DENIED" in said and "protected mode" in said:
        return problem(
            "the server takes connections of its own machine only (protected mode)",
            "Give it a password (requirepass, or ACL users) and an address to bind to; only then "
            "turn protected-mode off.",
            **data,
        )
    if failure.cause is Cause.TIMED_OUT:
        return problem("connected, but no answer to the login", _ADVICE[failure.cause], **data)
    if target.uses_tls and failure.cause in (Cause.RESET, Cause.TLS):
        wants = "certificate required" in said.lower()
        found = "the server wants a certificate of ours" if wants else said
        return problem(found, _AFTER_TLS, **data)
    advice = _ADVICE.get(failure.cause, "Look at the server's log.")
    return problem(said, advice, **data)


def _judge_refused(said: str, *, gave_password: bool) -> Finding:
    data = {"cause": Cause.AUTH.value}
    if not gave_password:
        return problem(
            "the server wants a password, and the URL has none",
            "Write redis://user:password@host (redis://:password@host for the default user).",
            **data,
        )
    if "called without any password configured" in said:
        return problem(
            "the URL has a password, but the server has none for the default user",
            "Take the password out of the URL, or write the user it belongs to: redis://user:…@.",
            **data,
        )
    if "NOPERM" in said or "permissions" in said:
        return problem(
            f"the user may not log in as we do: {said}",
            "Let it: ACL SETUSER … +hello +auth +select +ping",
            **data,
        )
    return problem(
        "the server does not take this user and password",
        "Look whether the secret was rotated, or belongs to another server; a reserved sign in a "
        "password must be written with % in a URL (@ is %40, / is %2F).",
        **data,
    )
