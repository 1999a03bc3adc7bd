"""Kernels known to be bad for what runs in containers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from resilient_io.doctor.looking import Finding, blind, merged, note, ok, problem

__all__ = ["judge_kernel"]

Version = tuple[int, int, int]

_RELEASE: Final = re.compile(r"(\d+)\.(\d+)(?:\.(\d+))?")
_PATCHED: Final = re.compile(r"\.el\d|\.amzn\d|-generic|-default|\.fc\d|-azure|-aws|-gke|-cloud")
"""Marks of kernels whose makers bring repairs back into old versions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Flaw:
    """A flaw of some kernels.

    Attributes:
        before: The first version of the main line without it.
        since: The first version with it.
        repaired: Versions of older lines that have the repair, by their line.
        what: What happens.
        advice: What to do.
        serious: Whether it takes the network away, rather than time.
    """

    before: Version
    since: Version = (0, 0, 0)
    repaired: tuple[Version, ...] = ()
    what: str
    advice: str
    serious: bool = False

    def has(self, version: Version) -> bool:
        if not self.since <= version < self.before:
            return False
        return not any(version[:2] == good[:2] and version >= good for good in self.repaired)


_FLAWS: Final = (
    _Flaw(
        before=(4, 4, 0),
        what=(
            'containers may lose their network for good ("unregister_netdevice: waiting for lo to '
            'become free" in the log of the kernel)'
        ),
        advice="Update the node's kernel to 4.4 or later; until then only a reboot of it helps.",
        serious=True,
    ),
    _Flaw(
        before=(5, 4, 0),
        repaired=((4, 14, 154), (4, 19, 84), (5, 3, 9)),
        what="containers with a CPU limit are throttled long before it is reached",
        advice="Update the node's kernel to 4.14.154, 4.19.84 or 5.4, or set no CPU limit.",
    ),
    _Flaw(
        before=(5, 0, 0),
        what="names that are looked up through NAT may take 5 s more (packets of A and AAAA race)",
        advice="Update the node's kernel to 5.0 or later, or run a DNS cache on the node.",
    ),
)


def judge_kernel(release: str) -> Finding:
    """Say what is known of a kernel.

    Args:
        release: As `uname -r` gives it.
    """
    read = _RELEASE.match(release)
    if read is None:
        return blind(f"the version of the kernel cannot be read from {release!r}")
    version = (int(read[1]), int(read[2]), int(read[3] or 0))
    flaws = [flaw for flaw in _FLAWS if flaw.has(version)]
    if not flaws:
        return ok(f"{release}, nothing bad is known of it", release=release)
    # A number alone does not tell what a distribution has brought back into it.
    patched = _PATCHED.search(release) is not None
    doubt = " Your distribution may have repaired it: look into its changelog." if patched else ""
    findings = [
        (problem if flaw.serious and not patched else note)(flaw.what, flaw.advice)
        for flaw in flaws
    ]
    told = merged(findings, release=release)
    return Finding(told.status, f"{release}: {told.found}", told.advice + doubt, told.data)
