"""Where a coroutine waits."""

from __future__ import annotations


def place_of(awaited: object) -> str:
    """Say where the innermost coroutine that this one awaits is suspended."""
    place = repr(awaited)
    while awaited is not None:
        frame = getattr(awaited, "cr_frame", None)
        if frame is None:
            break
        code = frame.f_code
        place = f"{code.co_qualname} ({code.co_filename}:{frame.f_lineno})"
        awaited = getattr(awaited, "cr_await", None)
    return place
