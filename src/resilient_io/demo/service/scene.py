"""One fault of the script: what is done to whom."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

What = Literal["killed", "frozen", "cut off"]
Whom = Literal["redis", "kafka"]

LEGEND: Final = "small: Redis, capital: Kafka   K: killed   F: frozen   C: cut off"

_SIGNS: Final = {
    ("redis", "killed"): "k",
    ("redis", "frozen"): "f",
    ("redis", "cut off"): "c",
    ("kafka", "killed"): "K",
    ("kafka", "frozen"): "F",
    ("kafka", "cut off"): "C",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One fault, with calm before and after it.

    Attributes:
        whom: Who is taken from the service.
        what: How: its process is killed or frozen; or the network between is cut, so that nothing
            gets through and what was on its way is gone.
        before: Seconds of calm before it.
        lasts: Seconds that it lasts; a killed server is started after them, which takes a while.
        after: Seconds of calm after it.
    """

    whom: Whom
    what: What
    before: float
    lasts: float
    after: float

    @property
    def seconds(self) -> float:
        """How long the scene takes in all, but for the start of a killed server."""
        return self.before + self.lasts + self.after

    @property
    def title(self) -> str:
        """What happens, in a few words."""
        return f"{self.whom} is {self.what}, for {self.lasts:g} s"

    @property
    def short(self) -> str:
        """The same in fewer words."""
        return f"{self.whom} {self.what}, {self.lasts:g} s"

    @property
    def over(self) -> str:
        """What is said when it has ended."""
        return f"{self.whom} is back"

    @property
    def sign(self) -> str:
        """One letter for it, under the curves."""
        return _SIGNS[self.whom, self.what]
