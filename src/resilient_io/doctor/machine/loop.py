"""Whether our own event loop comes to run when it is due."""

from __future__ import annotations

import asyncio
from typing import Final

from resilient_io.doctor.looking import Finding, note, ok, problem
from resilient_io.health.loop_lag import LoopLag

__all__ = ["look_at_loop"]

_NAPS: Final = 20
_NAP: Final = 0.02
_LATE: Final = 0.05
"""Seconds that a nap may be too long on a machine that has some work to do."""

_VERY_LATE: Final = 0.5


async def look_at_loop() -> Finding:
    """Take some naps and see how much too long they are.

    In a process of its own that tells of the machine; called in a service, of its loop too: what
    a client's watch of this loop has seen before counts.
    """
    loop = asyncio.get_running_loop()
    watch = LoopLag.acquire()
    try:
        late = []
        for _ in range(_NAPS):
            due = loop.time() + _NAP
            await asyncio.sleep(_NAP)
            late.append(max(loop.time() - due, 0.0))
        before = watch.worst
    finally:
        watch.release()
    worst = max(*late, before)
    now = max(late)
    data = {
        "worst": round(worst, 6),
        "worst_now": round(now, 6),
        "median": round(sorted(late)[_NAPS // 2], 6),
    }
    if worst <= _LATE:
        return ok(f"wakes up in time (at most {worst * 1e3:.0f} ms late)", **data)
    found = f"woke up {worst * 1e3:.0f} ms late"
    if now <= _LATE:  # long ago, perhaps: who looks now should not look for it now
        found = f"wakes up in time now, but {found} once since it was first watched"
    advice = (
        "What runs here does not get the processor when it is due: look at the CPU step, at other "
        "work on the machine, and for blocking calls in the service (PYTHONASYNCIODEBUG=1 names "
        "them)."
    )
    return (problem if worst > _VERY_LATE else note)(found, advice, **data)
