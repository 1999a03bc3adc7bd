"""The signals that end a process: handled here first, then by the handlers that were there."""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import threading
from typing import TYPE_CHECKING, Any, NamedTuple

from .parts import log

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import FrameType

SAME_SIGNAL = 0.25
"""Seconds within which another signal counts as the same one. A terminal sends Ctrl-C to the whole
process group, and the program that started this process may forward it."""

# A shell adds this to a signal's number for the exit code of a process that the signal ended.
SHELL_EXIT = 128

_SIGUSR1 = getattr(signal, "SIGUSR1", None)  # not on Windows


class _Previous(NamedTuple):
    """The handler that a signal had before: that of `signal.signal`, or that of the event loop."""

    handler: Callable[[int, FrameType | None], Any] | int
    handle: asyncio.Handle | None


class SignalWatch:
    """Handles signals first, and calls the previous handlers when it is asked to.

    A handler of `signal.signal` runs between any two instructions, even while the event loop is
    blocked. Therefore it only counts and notifies the event loop, which calls `on_signal` with the
    number and the time. The third signal always goes to the previous handler. SIGUSR1, if it had no
    handler, calls `on_dump`.
    """

    def __init__(
        self,
        numbers: Sequence[int],
        on_signal: Callable[[int, float], object],
        on_dump: Callable[[], object],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._numbers = numbers
        self._on_signal = on_signal
        self._on_dump = on_dump
        self._previous: dict[int, _Previous] = {}
        self._handler = self._handle_signal  # one object: each access makes a new bound method
        self._dump_handler = self._handle_dump
        self._pid = os.getpid()
        self._active = False
        self._count = 0
        self._last = 0.0
        self._ending: int | None = None

    # --- our handlers

    def install(self) -> None:
        """Install the handlers. Outside the main thread, which allows none, log that."""
        if not self._numbers:
            return
        if threading.current_thread() is not threading.main_thread():
            log.info(
                "not in the main thread: signals are not handled, call stop() instead",
                extra={"event": "signals_not_heard"},
            )
            return
        self._active = True
        for number in self._numbers:
            self._take(number)
        # Without a handler, SIGUSR1 would end the process.
        if _SIGUSR1 is not None and signal.getsignal(_SIGUSR1) is signal.SIG_DFL:
            self._previous[_SIGUSR1] = _Previous(signal.SIG_DFL, None)
            signal.signal(_SIGUSR1, self._dump_handler)

    def _take(self, number: int) -> None:
        previous = signal.getsignal(number)
        if previous is None or (previous is signal.SIG_IGN and number == signal.SIGINT):
            # It was not set from Python, so that it could not be restored. Or it is ignored, as
            # shells do for background processes: Ctrl-C is not meant for this process.
            return
        # asyncio's loops (3.11 to 3.14, `unix_events._UnixSelectorEventLoop`) call what is in
        # `_signal_handlers` for each signal, whatever `signal.signal` says. So it is taken out.
        handle = self._loop_handles().pop(number, None)
        self._previous[number] = _Previous(previous, handle)
        signal.signal(number, self._handler)

    def restore(self) -> None:
        """Restore the previous handlers, except where the handler has been replaced since."""
        self._active = False
        for number, previous in self._previous.items():
            if signal.getsignal(number) not in (self._handler, self._dump_handler):
                continue
            signal.signal(number, previous.handler)
            if previous.handle is not None:
                self._loop_handles()[number] = previous.handle
                signal.siginterrupt(number, False)  # as `add_signal_handler` does

    def _loop_handles(self) -> dict[int, asyncio.Handle]:
        handles: dict[int, asyncio.Handle] = getattr(self._loop, "_signal_handlers", {})
        return handles

    def _handle_signal(self, number: int, frame: FrameType | None) -> None:
        if not self._active or os.getpid() != self._pid or self._loop.is_closed():
            self._call_previous(number, frame)
            return
        now = self._loop.time()
        if self._count and now - self._last < SAME_SIGNAL:
            return
        self._count += 1
        self._last = now
        if self._count > 2:  # noqa: PLR2004 -- the third one
            self._call_previous(number, frame)
        else:
            self._loop.call_soon_threadsafe(self._on_signal, number, now)

    def _handle_dump(self, _number: int, _frame: FrameType | None) -> None:
        if self._active and os.getpid() == self._pid and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._on_dump)

    # --- the previous handlers

    def chain(self, number: int) -> bool:
        """Call the previous handler of a signal; return whether it ends the program in its own way.

        A server does. A handler that would only end the program (no handler, that of
        `asyncio.Runner`, which cancels the main task, or Python's own, which raises
        KeyboardInterrupt) waits for `finish()`.
        """
        previous = self._previous.get(number)
        if previous is None:
            return False
        if previous.handle is not None:
            self._call_handle(previous.handle)
            return True
        handler = previous.handler
        if getattr(handler, "__self__", None) is self._loop:
            return True  # uvloop: its handler was called already, and cannot be taken out
        if not callable(handler) or only_ends_program(handler):
            self._ending = number
            return False
        self._loop.call_soon(handler, number, None)
        return True

    def finish(self) -> bool:
        """Call the handler that only ends the program; return whether there was one."""
        number, self._ending = self._ending, None
        if number is None or not callable(handler := self._previous[number].handler):
            return False
        handler(number, None)
        return True

    def _call_previous(self, number: int, frame: FrameType | None) -> None:
        previous = self._previous[number]
        if previous.handle is not None:
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._call_handle, previous.handle)
        elif callable(previous.handler):
            previous.handler(number, frame)
        elif previous.handler == signal.SIG_DFL:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
            # Still running: the kernel lets process 1 ignore signals that it has no handler for.
            os._exit(SHELL_EXIT + number)

    def _call_handle(self, handle: asyncio.Handle) -> None:
        # asyncio 3.11 to 3.14: what `Handle._run` calls, but through the loop, which then handles
        # its exceptions.
        made: Any = handle
        if not handle.cancelled():
            self._loop.call_soon(made._callback, *made._args, context=made._context)  # noqa: SLF001


def only_ends_program(handler: Callable[..., Any]) -> bool:
    """Return whether a handler only ends the program, as those of Python and asyncio do."""
    if handler is signal.default_int_handler:
        return True
    # asyncio 3.11 to 3.14: `functools.partial(runner._on_sigint, main_task=task)`.
    function = handler.func if isinstance(handler, functools.partial) else handler
    return isinstance(getattr(function, "__self__", None), asyncio.Runner)
