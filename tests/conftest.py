"""Settings that all tests share; the fixtures are those of the plugin of resilient-io."""

import asyncio
import gc
import logging
import signal
import sys
import warnings
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

_UNIT = Path(__file__).parent / "unit"
_FAILED = pytest.StashKey[bool]()


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module:
    """Run all unit tests on virtual time: none of them really sleeps."""
    module: pytest.Module = pytest.Module.from_parent(parent, path=module_path)
    if _UNIT in module_path.parents:
        module.add_marker("virtual_time")
    return module


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the longest tests first, so that none runs alone at the end."""
    items.sort(key=_seconds, reverse=True)


def _seconds(item: pytest.Item) -> float:
    return max((mark.kwargs.get("seconds", 10) for mark in item.iter_markers("soak")), default=0)


def pytest_collection_finish() -> None:
    """Exclude long-lived objects from collections: many tests collect garbage, some repeatedly."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _default_signal_handlers() -> Iterator[None]:
    """Set the handlers of an interactive shell, for this process and those that it starts.

    A process started in the background (`nohup make test &`, some CI runners) inherits an ignored
    SIGINT. Python then installs no handler, and asyncio.Runner does not either.
    """
    handlers = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    yield
    for number, handler in previous.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def _restored_loggers() -> Iterator[None]:
    """Undo what the commands do in a test that runs them in this process: they silence loggers."""
    loggers = [logging.getLogger(name) for name in ("resilient_io", "aiokafka")]
    before = [(logger, logger.propagate, logger.handlers[:]) for logger in loggers]
    yield
    for logger, propagate, handlers in before:
        logger.propagate = propagate
        logger.handlers[:] = handlers


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Remember whether the test has failed."""
    report = yield
    item.stash[_FAILED] = report.failed or item.stash.get(_FAILED, False)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None]:
    """Prevent that the leftovers of a failed test fail the next one.

    The traceback of the test holds the tasks that it did not await, until the next test begins.
    """
    if not item.stash.get(_FAILED, False):
        return (yield)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of open sockets and coroutines
        try:
            yield
        finally:
            _discard_leftovers()


def _discard_leftovers() -> None:
    for each in gc.get_objects():
        # A proxy of weakref may be dead, which `isinstance` notices.
        if issubclass(type(each), asyncio.Future) and each.done() and not each.cancelled():
            each.exception()  # asyncio logs exceptions that were not retrieved
    for name in ("last_exc", "last_type", "last_value", "last_traceback"):
        if hasattr(sys, name):
            delattr(sys, name)
    gc.unfreeze()  # a cycle of garbage may include older objects
    gc.collect()
    gc.freeze()
