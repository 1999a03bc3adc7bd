"""The filter for aiokafka's log records: ours are counted and cleaned, others are untouched."""

import asyncio
import contextvars
import importlib
import logging
import pkgutil

import aiokafka
import pytest
from aiokafka.protocol.admin import SaslAuthenticateRequest, SaslAuthenticateResponse_v1

from resilient_io import deadline
from resilient_io.deadlines import current_deadline
from resilient_io.kafka.log_filter import DriverLog

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

CANARY = "canary-pa55'word\"\\ä"


def write(name, level=logging.ERROR):
    logging.getLogger(name).log(level, "Unable connect to %s", "node")


@pytest.mark.parametrize("name", LOGGERS)
async def test_our_records_are_counted_and_those_of_other_clients_are_kept(name, caplog):
    caplog.set_level(logging.INFO)
    log = DriverLog()

    async def work():
        write(name)
        await asyncio.sleep(1)
        asyncio.get_running_loop().call_soon(write, name, logging.INFO)
        await asyncio.create_task(asyncio.sleep(1))

    await asyncio.create_task(work(), context=log.context())
    assert caplog.records == []
    assert log.log_records_dropped == 2
    assert log.last_message == "Unable connect to node"
    write(name)
    assert len(caplog.records) == 1
    assert log.log_records_dropped == 2


async def test_filtering_ends_with_its_block(caplog):
    log = DriverLog()
    with log.filtering():
        write("aiokafka.conn")
    write("aiokafka.conn")
    assert log.log_records_dropped == 1
    assert len(caplog.records) == 1


async def test_all_records_are_kept_as_debug_records_if_the_level_is_debug(caplog):
    caplog.set_level(logging.DEBUG, logger="aiokafka")
    log = DriverLog()
    with log.filtering():
        write("aiokafka.conn")
    assert [record.levelno for record in caplog.records] == [logging.DEBUG]
    assert log.log_records_dropped == 1


@pytest.mark.parametrize(
    "message",
    [
        SaslAuthenticateRequest(b"\0me\0" + CANARY.encode()).prepare({36: (0, 0)}),
        SaslAuthenticateRequest(b"\0me\0" + CANARY.encode()).prepare({36: (0, 1)}),
        SaslAuthenticateRequest(b"n,,\1auth=Bearer " + CANARY.encode()).prepare({36: (0, 1)}),
        SaslAuthenticateResponse_v1(0, "", CANARY.encode(), 0),
    ],
    ids=lambda message: type(message).__name__,
)
async def test_debug_records_of_sasl_messages_are_dropped(message, caplog):
    caplog.set_level(logging.DEBUG, logger="aiokafka")
    assert "canary" in repr(message)
    with DriverLog().filtering():  # even if the secret is not known: a Kerberos token, for example
        logging.getLogger("aiokafka.conn").debug("Request to %s:%d %d: %s", "a", 1, 2, message)
    assert caplog.records == []


@pytest.mark.parametrize("level", [logging.DEBUG, logging.INFO, logging.ERROR])
async def test_kept_records_contain_no_secret(level, caplog):
    caplog.set_level(logging.DEBUG, logger="aiokafka")
    log = DriverLog(lambda: [CANARY])
    with log.filtering():
        logging.getLogger("aiokafka").log(
            level,
            "Failed with %s\x1b[2J: 100%% of %r",
            CANARY,
            CANARY,
            exc_info=ValueError(f"bad password {CANARY}"),
        )
    (record,) = caplog.records
    assert record.levelno == logging.DEBUG
    assert "canary" not in caplog.text + log.last_message
    assert "\x1b" not in caplog.text + log.last_message
    assert "100% of" in record.getMessage()
    assert "ValueError: bad password …" in record.getMessage()


async def test_records_of_other_clients_are_not_changed(caplog):
    caplog.set_level(logging.DEBUG, logger="aiokafka")
    DriverLog(lambda: ["node"]).context()  # installs the filter
    write("aiokafka.conn", logging.INFO)
    (record,) = caplog.records
    assert (record.levelno, record.getMessage()) == (logging.INFO, "Unable connect to node")


async def test_last_message_is_bounded():
    log = DriverLog()
    with log.filtering():
        logging.getLogger("aiokafka").error("x" * 1_000_000)
    assert len(log.last_message) <= 300


async def test_context_of_a_driver_inherits_no_deadline_and_no_trace_of_the_caller():
    trace = contextvars.ContextVar("trace", default=None)
    trace.set("of the first caller")
    with deadline(1.0):
        context = DriverLog().context()
    assert context.run(current_deadline) is None
    assert context.run(trace.get) is None


def test_filter_covers_every_logger_of_aiokafka():
    for module in pkgutil.walk_packages(aiokafka.__path__, "aiokafka."):
        if ".record._crecords" not in module.name:
            importlib.import_module(module.name)
    found = [
        name
        for name, logger in logging.root.manager.loggerDict.items()
        if (name == "aiokafka" or name.startswith("aiokafka."))
        and isinstance(logger, logging.Logger)
    ]
    log = DriverLog()
    with log.filtering():
        for name in found:
            write(name)
    assert set(LOGGERS) <= set(found)
    assert log.log_records_dropped == len(found)
