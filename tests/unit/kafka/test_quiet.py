"""The driver's records: ours are counted, other people's are left alone."""

import asyncio
import logging

import pytest

from resilient_io import deadline
from resilient_io.deadlines import current_deadline
from resilient_io.kafka.log_filter import Tally, context_of_driver, quietly

LOGGERS = [
    "aiokafka",
    "aiokafka.conn",
    "aiokafka.cluster",
    "aiokafka.producer.producer",
    "aiokafka.producer.sender",
    "aiokafka.consumer.consumer",
    "aiokafka.consumer.fetcher",
    "aiokafka.consumer.group_coordinator",
]


@pytest.fixture(autouse=True)
def _imported():
    import aiokafka  # noqa: F401 - its loggers exist once it is imported


def _write(name, level=logging.ERROR):
    logging.getLogger(name).log(level, "Unable connect to %s", "node")


@pytest.mark.parametrize("name", LOGGERS)
async def test_our_records_are_counted_and_those_of_others_are_kept(name, caplog):
    caplog.set_level(logging.INFO)
    tally = Tally()

    async def work():
        _write(name)
        await asyncio.sleep(1)
        asyncio.get_running_loop().call_soon(_write, name, logging.INFO)
        await asyncio.create_task(asyncio.sleep(1))

    await asyncio.create_task(work(), context=context_of_driver(tally))
    assert caplog.records == []
    assert tally.dropped == 2
    assert tally.newest == "Unable connect to node"
    _write(name)
    assert len(caplog.records) == 1
    assert tally.dropped == 2


async def test_a_block_is_quiet_and_what_follows_it_is_not(caplog):
    tally = Tally()
    with quietly(tally):
        _write("aiokafka.conn")
    _write("aiokafka.conn")
    assert tally.dropped == 1
    assert len(caplog.records) == 1


async def test_whoever_debugs_gets_all_of_it_as_debug_records(caplog):
    caplog.set_level(logging.DEBUG, logger="aiokafka")
    tally = Tally()
    with quietly(tally):
        _write("aiokafka.conn")
    assert [record.levelno for record in caplog.records] == [logging.DEBUG]
    assert tally.dropped == 1


async def test_no_deadline_of_a_caller_reaches_what_the_driver_does():
    with deadline(1.0):
        context = context_of_driver(Tally())
    assert context.run(current_deadline) is None


def test_every_logger_of_aiokafka_is_known():
    import importlib
    import pkgutil

    import aiokafka

    for module in pkgutil.walk_packages(aiokafka.__path__, "aiokafka."):
        if ".record._crecords" not in module.name:
            importlib.import_module(module.name)
    tally = Tally()
    found = [
        name
        for name, logger in logging.root.manager.loggerDict.items()
        if (name == "aiokafka" or name.startswith("aiokafka."))
        and isinstance(logger, logging.Logger)
    ]
    with quietly(tally):
        for name in found:
            _write(name)
    assert set(LOGGERS) <= set(found)
    assert tally.dropped == len(found)
