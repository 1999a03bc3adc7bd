"""One fault of the script."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One fault, with calm before and after it.

    Attributes:
        what: What goes wrong.
        before: Seconds of calm before it.
        lasts: Seconds that the fault lasts; for lost replies, that its effect is watched.
        after: Seconds of calm after it, for what it broke to mend.
        replies: How many replies to increments get lost, and as many to pushes.
    """

    what: Literal["lost replies", "away", "frozen"]
    before: float
    lasts: float
    after: float
    replies: int = 4

    @property
    def seconds(self) -> float:
        """How long the scene takes in all."""
        return self.before + self.lasts + self.after

    @property
    def title(self) -> str:
        """What happens, in a few words."""
        if self.what == "lost replies":
            return f"{2 * self.replies} replies to writes get lost"
        return {
            "away": f"the server is killed, and back after {self.lasts:g} s",
            "frozen": f"the server freezes for {self.lasts:g} s",
        }[self.what]

    @property
    def short(self) -> str:
        """The same in fewer words."""
        if self.what == "lost replies":
            return f"{2 * self.replies} replies lost"
        return f"server {'killed' if self.what == 'away' else 'frozen'}, {self.lasts:g} s"

    @property
    def sign(self) -> str:
        """One letter for it, under the curve of the calls."""
        return {"lost replies": "L", "away": "K", "frozen": "F"}[self.what]
