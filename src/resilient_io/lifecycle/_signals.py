"""The signals that end a process: heard first by us, then by whoever heard them before."""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ._report import log

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import FrameType

__all__ = ["TOGETHER", "SignalWatch"]

TOGETHER = 0.25
"""Seconds within which a further signal counts as the same: a terminal sends Ctrl-C to the whole
group, and the program that started us may send it on."""

_SHELL = 128
"""What a shell adds to a signal's number for the exit code of who died of it."""


@dataclass(frozen=True, slots=True)
class _Before:
    """Who heard a signal before us.

    Attributes:
        handler: What `signal.getsignal` gave.
        handle: What `loop.add_signal_handler` had made, taken out of the loop.
    """

    handler: Callable[[int, FrameType | None], Any] | int
    handle: asyncio.Handle | None


class SignalWatch:
    """Hears signals first; the handlers that were there are called when we say so.

    A handler of `signal.signal` runs between any two instructions, also while the loop is blocked:
    so here it only counts and tells the loop, but the third signal gets through in any case.

    Args:
        numbers: The signals that end the process.
        tell: Called in the loop with the first and with the second signal, and when it came.
        dump: Called in the loop on SIGUSR1, if nobody heard that before.
    """

    def __init__(
        self,
        numbers: Sequence[int],
        tell: Callable[[int, float], object],
        dump: Callable[[], object],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._numbers = numbers
        self._tell = tell
        self._dump = dump
        self._before: dict[int, _Before] = {}
        self._heard = self._hear  # one object: a bound method is another one each time
        self._dump_heard = self._hear_dump
        self._pid = os.getpid()
        self._active = False
        self._count = 0
        self._last = 0.0
        self._ending: int | None = None

    # --- ours

    def install(self) -> None:
        """Begin to hear; outside the main thread, where nobody can, say so and do without."""
        if not self._numbers:
            return
        if threading.current_thread() is not threading.main_thread():
            log.info(
                "not in the main thread: no signal is heard, call stop() instead",
                extra={"event": "signals_not_heard"},
            )
            return
        self._active = True
        for number in self._numbers:
            self._take(number)
        if signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL:  # which would end the process
            self._before[signal.SIGUSR1] = _Before(signal.SIG_DFL, None)
            signal.signal(signal.SIGUSR1, self._dump_heard)

    def _take(self, number: int) -> None:
        before = signal.getsignal(number)
        if before is None or (before is signal.SIG_IGN and number == signal.SIGINT):
            # Not set from Python, so it could not be put back. Or it is ignored, as shells do for
            # what runs in the background: Ctrl-C is not meant for us.
            return
        # asyncio's loops (3.11 to 3.14, `unix_events._UnixSelectorEventLoop`) call what is in
        # `_signal_handlers` for each signal, whatever `signal.signal` says. So it is taken out.
        handle = self._handles().pop(number, None)
        self._before[number] = _Before(before, handle)
        signal.signal(number, self._heard)

    def restore(self) -> None:
        """Give the signals back to whoever heard them before, unless somebody took them since."""
        self._active = False
        for number, before in self._before.items():
            if signal.getsignal(number) not in (self._heard, self._dump_heard):
                continue
            signal.signal(number, before.handler)
            if before.handle is not None:
                self._handles()[number] = before.handle
                signal.siginterrupt(number, False)  # as `add_signal_handler` has it

    def _handles(self) -> dict[int, asyncio.Handle]:
        handles: dict[int, asyncio.Handle] = getattr(self._loop, "_signal_handlers", {})
        return handles

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if not self._active or os.getpid() != self._pid or self._loop.is_closed():
            self._hand_on(number, frame)
            return
        now = self._loop.time()
        if self._count and now - self._last < TOGETHER:
            return
        self._count += 1
        self._last = now
        if self._count > 2:  # noqa: PLR2004 -- the third one
            self._hand_on(number, frame)
        else:
            self._loop.call_soon_threadsafe(self._tell, number, now)

    def _hear_dump(self, _number: int, _frame: FrameType | None) -> None:
        if self._active and os.getpid() == self._pid and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._dump)

    # --- theirs

    def chain(self, number: int) -> bool:
        """Let the handler that was there hear the signal now.

        What would only end the program here (no handler, or that of `asyncio.Runner`, which cancels
        the main task, or Python's own, which raises KeyboardInterrupt) waits for `finish()`.

        Returns:
            Whether somebody else now brings the program to its end, a server for example.
        """
        before = self._before.get(number)
        if before is None:
            return False
        if before.handle is not None:
            self._call_handle(before.handle)
            return True
        handler = before.handler
        if getattr(handler, "__self__", None) is self._loop:
            return True  # uvloop: its handler heard it at once, and cannot be taken out
        if not callable(handler) or _only_ends(handler):
            self._ending = number
            return False
        self._loop.call_soon(handler, number, None)
        return True

    def finish(self) -> bool:
        """Let who only ends the program do so, now that everything is closed; say whether it did.

        Raises:
            KeyboardInterrupt: That is how Python's own handler does it.
        """
        number, self._ending = self._ending, None
        if number is None or not callable(handler := self._before[number].handler):
            return False
        handler(number, None)
        return True

    def _hand_on(self, number: int, frame: FrameType | None) -> None:
        """Let the handler that was there act at once."""
        before = self._before[number]
        if before.handle is not None:
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._call_handle, before.handle)
        elif callable(before.handler):
            before.handler(number, frame)
        elif before.handler == signal.SIG_DFL:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
            # Still here: the kernel lets process 1 ignore what it has no handler for.
            os._exit(_SHELL + number)

    def _call_handle(self, handle: asyncio.Handle) -> None:
        # asyncio 3.11 to 3.14: what `Handle._run` calls, but through the loop, which then deals
        # with what it raises.
        made: Any = handle
        if not handle.cancelled():
            self._loop.call_soon(made._callback, *made._args, context=made._context)  # noqa: SLF001


def _only_ends(handler: Callable[..., Any]) -> bool:
    """Tell what only ends the program from a handler that does something for it."""
    if handler is signal.default_int_handler:
        return True
    # asyncio 3.11 to 3.14: `functools.partial(runner._on_sigint, main_task=task)`.
    function = handler.func if isinstance(handler, functools.partial) else handler
    return isinstance(getattr(function, "__self__", None), asyncio.Runner)
