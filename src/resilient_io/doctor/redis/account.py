"""Asking a server that let us in; what it says of itself, as text and numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from redis import exceptions as driver

from resilient_io.doctor.looking import Finding, blind, problem
from resilient_io.redis.connect import abort, query_over

if TYPE_CHECKING:
    from redis.asyncio.connection import AbstractConnection

__all__ = ["Account", "Unanswered", "number", "read_info", "span", "text_of"]


_SILENT: Final = (
    "It has just let us in, so it is busy with one command, or has been frozen since: look again, "
    "and at its processor and its slow log."
)
_LOST: Final = (
    "Look again; if it is so each time, look at the server's log and at what stands between (a "
    "proxy, a load balancer), and whether it restarts."
)


class Unanswered(Exception):
    """A question was not answered.

    Args:
        finding: What that means for the step that asked.
    """

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.found)
        self.finding = finding


def text_of(reply: Any) -> str:
    """Give a reply as text, whether or not the driver has decoded it."""
    return reply.decode(errors="replace") if isinstance(reply, bytes) else str(reply)


class Account:
    """One logged-in connection to a server, and what was heard over it so far.

    Args:
        connection: Ours to close.
        timeout: Longest wait for one answer, in seconds.
    """

    def __init__(self, connection: AbstractConnection, timeout: float) -> None:
        self._connection: AbstractConnection | None = connection
        self._ask = query_over(connection, timeout)
        self._info: dict[str, str] | None = None
        self._refused: Finding | None = None
        self._lost = "the connection was lost"

    def close(self) -> None:
        """Close the connection; more often does no harm."""
        connection, self._connection = self._connection, None
        if connection is not None:
            abort(connection)

    async def ask(self, *command: object) -> Any:
        """Ask one command.

        Raises:
            Unanswered: It may not be asked, the server does not know it, or no answer came.
        """
        if self._connection is None:
            raise Unanswered(blind(self._lost))
        name = " ".join(str(part) for part in command[:2] if str(part).isalpha())
        answered = False
        try:
            reply = await self._ask(*command)
            answered = True
        except driver.ResponseError as error:
            answered = True
            raise Unanswered(_refusal(name, str(error))) from error
        except TimeoutError as error:
            self._lost = f"the server did not answer {name} in time"
            raise Unanswered(problem(self._lost, _SILENT)) from error
        except (driver.RedisError, OSError) as error:
            self._lost = f"the connection was lost at {name}"
            raise Unanswered(problem(f"{self._lost}: {error}", _LOST)) from error
        finally:
            if not answered:
                self.close()  # an answer that comes late would be taken for the next one's
        return reply

    async def info(self) -> dict[str, str]:
        """Ask for INFO, once; later questions get the same.

        Raises:
            Unanswered: As for `ask`.
        """
        if self._refused is not None:
            raise Unanswered(self._refused)
        if self._info is None:
            try:
                self._info = read_info(text_of(await self.ask("INFO")))
            except Unanswered as refused:
                # Said once with its advice, and then only named.
                self._refused = blind(refused.finding.found)
                raise
        return self._info

    async def config(self, name: str) -> str | None:
        """Ask for one setting; None where that is not allowed, or there is none."""
        try:
            reply = await self.ask("CONFIG", "GET", name)
        except Unanswered:
            return None
        pairs = list(reply.items()) if isinstance(reply, dict) else [tuple(reply[:2])]
        return text_of(pairs[0][1]) if pairs and pairs[0] else None


def read_info(text: str) -> dict[str, str]:
    """Read what INFO says into names and values."""
    lines = (line.partition(":") for line in text.splitlines() if not line.startswith("#"))
    return {name: value.strip() for name, colon, value in lines if colon}


def number(info: dict[str, str], name: str, default: float = 0.0) -> float:
    """Give one number of INFO."""
    try:
        return float(info[name])
    except (KeyError, ValueError):
        return default


def span(seconds: int) -> str:
    """Write a time in the unit that suits it."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size * 2:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


def _refusal(name: str, said: str) -> Finding:
    command = name.lower().replace(" ", "|")
    lowered = said.lower()
    if "permission" in lowered or "noperm" in lowered:
        return blind(
            f"no permission for {name}", f"To see this, grant it: ACL SETUSER … +{command}"
        )
    if "unknown command" in lowered or "unknown subcommand" in lowered:
        return blind(
            f"the server does not know {name}",
            "Managed services forbid some commands: look at the provider's own metrics.",
        )
    return blind(f"{name} was refused: {said}")
