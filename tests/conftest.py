"""What all tests share: the fixtures of the public testing kit."""

import asyncio
import gc
import sys
import warnings
from collections.abc import Generator
from pathlib import Path

import pytest

_UNIT = Path(__file__).parent / "unit"
_FAILED = pytest.StashKey[bool]()


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module:
    """Let all unit tests run on virtual time: none of them really sleeps."""
    module: pytest.Module = pytest.Module.from_parent(parent, path=module_path)
    if _UNIT in module_path.parents:
        module.add_marker("virtual_time")
    return module


def pytest_collection_finish() -> None:
    """Spare the collector what lives to the end: many tests collect garbage, some at each step."""
    gc.collect()
    gc.freeze()


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
    """Let a failed test not spoil the next: asyncio would complain there of what this one left.

    Its traceback holds the tasks that it did not come to await, until the next test begins.
    """
    if not item.stash.get(_FAILED, False):
        return (yield)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of sockets and coroutines that it left open
        try:
            yield
        finally:
            _bury_what_was_left()


def _bury_what_was_left() -> None:
    for each in gc.get_objects():
        if isinstance(each, asyncio.Future) and each.done() and not each.cancelled():
            each.exception()  # asyncio logs those that nobody asked for
    for name in ("last_exc", "last_type", "last_value", "last_traceback"):
        if hasattr(sys, name):
            delattr(sys, name)
    gc.unfreeze()  # a circle of garbage may pass through what was there before
    gc.collect()
    gc.freeze()
