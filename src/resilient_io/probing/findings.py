"""What the linter says."""

from __future__ import annotations

import dataclasses
import enum
from dataclasses import dataclass
from typing import Any

__all__ = ["Finding", "Severity"]


class Severity(enum.StrEnum):
    """How much a finding matters."""

    ERROR = "error"
    """Pods are killed, or work is lost, for nothing."""

    WARNING = "warning"
    """It works until the first bad day."""

    NOTE = "note"
    """Worth knowing; nothing has to be done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is not as it should be.

    Attributes:
        code: Its name, for ignoring it: "liveness-depends".
        severity: How much it matters.
        where: The field that it is about: "livenessProbe.httpGet.path".
        found: What is wrong, in one sentence.
        advice: What to write instead.
        of: The object in a manifest: "Deployment/orders"; "" outside of one.
        file: The manifest; "" outside of one.
        line: The line of the field, or of what should have it; 0 outside of a manifest.
    """

    code: str
    severity: Severity
    where: str
    found: str
    advice: str
    of: str = ""
    file: str = ""
    line: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Give it as JSON would hold it."""
        return {**dataclasses.asdict(self), "severity": str(self.severity)}
