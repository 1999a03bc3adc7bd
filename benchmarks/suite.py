"""What the command line needs of a suite."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

Rounds: TypeAlias = "dict[str, list[dict[str, float]]]"
"""What each client achieved, round by round."""

Results: TypeAlias = "dict[str, Rounds]"
"""What was measured on one kind of loop, by the name of the work."""

Say: TypeAlias = "Callable[[str], object]"
"""Reports the current step to the user."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How much is measured.

    Attributes:
        wanted: Names of works; all of them for the whole.
        rounds: How often each client does each work.
        seconds: How long one round is.
    """

    wanted: Sequence[str]
    rounds: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """Works on one kind of server.

    Attributes:
        name: What it is called on the command line, and between the document's markers.
        names: The works that can be asked for.
        loops: The kinds of event loop it runs on by default.
        packages: Those whose versions belong to a result.
        seconds: Default duration of a round, in seconds.
        server: Says which server is measured on.
        measure: Measures on one kind of loop.
        tables: Renders the results, as lines of Markdown; the README shows the first table.
        tune: Compares settings of the peers, and prints them.
    """

    name: str
    names: tuple[str, ...]
    loops: tuple[str, ...]
    packages: tuple[str, ...]
    seconds: float
    server: Callable[[], str]
    measure: Callable[[str, Effort, Say], Coroutine[Any, Any, Results]]
    tables: Callable[[Results], list[str]]
    tune: Callable[[Say], Coroutine[Any, Any, None]]
