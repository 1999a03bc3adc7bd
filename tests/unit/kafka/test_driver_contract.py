"""The parts of aiokafka that we rely on: a test fails when a new version changes one."""

import asyncio
import inspect

import aiokafka
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition, conn, errors
from aiokafka.client import AIOKafkaClient, CoordinationType
from aiokafka.conn import AIOKafkaConnection, CloseReason
from aiokafka.consumer import group_coordinator
from aiokafka.consumer.fetcher import Fetcher
from aiokafka.consumer.group_coordinator import GroupCoordinator, NoGroupCoordinator
from aiokafka.consumer.subscription_state import SubscriptionState
from aiokafka.producer.message_accumulator import MessageAccumulator, MessageBatch
from aiokafka.producer.sender import BaseHandler, Sender
from aiokafka.producer.transaction_manager import TransactionManager

from resilient_io.kafka import connect, probe
from resilient_io.kafka.driver import (
    CONNECTION_OPTIONS,
    Connection,
    ConsumerDriver,
    DriverClient,
    DriverClosed,
    ProducerDriver,
    background_tasks,
    client_of,
    connection_options,
    connections_of,
    disable,
    ignore_sender_death,
    membership_of,
    parts_of,
    works_for,
)
from resilient_io.kafka.options import CLIENT_OPTIONS

OAUTH = connect._OAuthAuthenticator
NOWHERE = "127.0.0.1:1"


def _source(function):
    return inspect.getsource(function)


async def _disabled(*instances):
    for instance in instances:
        disable(instance, "the test is over")


def test_version_is_the_one_that_was_read():
    assert aiokafka.__version__.startswith("0.14.")


@pytest.mark.parametrize(
    ("protocol", "driver"),
    [
        (ProducerDriver, AIOKafkaProducer),
        (ConsumerDriver, AIOKafkaConsumer),
        (DriverClient, AIOKafkaClient),
        (Connection, AIOKafkaConnection),
    ],
)
def test_each_method_of_a_protocol_exists_and_takes_the_same_arguments(protocol, driver):
    methods = [
        (name, member)
        for name, member in vars(protocol).items()
        if inspect.isfunction(member) and not name.startswith("_")
    ]
    assert methods
    for name, ours in methods:
        theirs = getattr(driver, name)
        known = inspect.signature(theirs).parameters
        takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in known.values())
        for parameter in inspect.signature(ours).parameters.values():
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
                assert takes_any or parameter.name in known, (name, parameter.name)
        ours_count = sum(
            p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
            for p in inspect.signature(ours).parameters.values()
        )
        theirs_count = sum(
            p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD for p in known.values()
        )
        variable = any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in known.values())
        assert variable or theirs_count >= ours_count, name
        needs_await = inspect.iscoroutinefunction(ours)
        if needs_await:
            assert inspect.iscoroutinefunction(theirs), name


def test_every_client_option_belongs_to_both_classes_and_to_the_connection():
    for driver in (AIOKafkaProducer, AIOKafkaConsumer):
        known = inspect.signature(driver).parameters
        assert set(CLIENT_OPTIONS) <= set(known)
    assert set(CONNECTION_OPTIONS) <= set(inspect.signature(conn.create_conn).parameters)


async def test_producer_has_the_private_parts_that_we_use():
    producer = AIOKafkaProducer(
        bootstrap_servers=NOWHERE, transactional_id="t", enable_idempotence=True
    )
    client = client_of(producer)
    assert isinstance(client, AIOKafkaClient)
    assert connections_of(producer) == []
    assert background_tasks(producer) == []
    kinds = [type(part) for part in parts_of(producer)]
    assert kinds == [
        AIOKafkaClient,
        Sender,
        MessageAccumulator,
        TransactionManager,
    ]
    assert producer._sender._sender_task is None
    assert {"_sync_task", "_conns", "_md_update_fut", "_topics"} <= set(vars(client))
    manager = producer._txn_manager
    assert isinstance(manager._pid_waiter, asyncio.Future)
    assert manager._transaction_waiter is None
    assert not manager._pending_txn_offsets
    await _disabled(producer)


async def test_consumer_has_the_private_parts_that_we_use():
    consumer = AIOKafkaConsumer(bootstrap_servers=NOWHERE, group_id="g")
    assert isinstance(client_of(consumer), AIOKafkaClient)
    assert [type(part) for part in parts_of(consumer)] == [
        AIOKafkaClient,
        SubscriptionState,
    ]
    assert set(connection_options(consumer)) == set(CONNECTION_OPTIONS)
    assert membership_of(consumer) is None
    assert consumer._fetcher is None
    assert consumer._coordinator is None
    assert consumer._subscription._assignment_waiters == []
    await _disabled(consumer)


async def test_background_tasks_of_a_consumer_are_found_and_recognized():
    consumer = AIOKafkaConsumer(bootstrap_servers=NOWHERE, group_id="g")
    client = consumer._client
    consumer._fetcher = Fetcher(client, consumer._subscription)
    consumer._coordinator = GroupCoordinator(client, consumer._subscription, group_id="g")
    client._sync_task = asyncio.create_task(client._md_synchronizer())
    await asyncio.sleep(0)
    found = background_tasks(consumer)
    assert [what for what, _ in found] == ["metadata", "fetching", "coordination"]
    parts = parts_of(consumer)
    assert all(works_for(task, parts) for _, task in found)
    assert not works_for(asyncio.current_task(), parts)
    assert isinstance(consumer._coordinator._closing, asyncio.Future)
    assert consumer._coordinator.member_id == ""
    assert consumer._coordinator.coordinator_id is None
    assert consumer._coordinator._group_instance_id is None
    assert consumer._fetcher._fetch_waiters == set()
    disable(consumer, "the test is over")
    for _, task in found:
        task.cancel()
    await asyncio.wait([task for _, task in found])


async def test_background_task_of_a_consumer_without_a_group_is_found():
    consumer = AIOKafkaConsumer(bootstrap_servers=NOWHERE)
    consumer._coordinator = NoGroupCoordinator(consumer._client, consumer._subscription)
    await asyncio.sleep(0)
    ((what, task),) = background_tasks(consumer)
    assert what == "coordination"
    disable(consumer, "the test is over")
    task.cancel()
    await asyncio.wait([task])


async def test_death_of_the_sender_task_is_ignored_by_aiokafka():
    producer = AIOKafkaProducer(bootstrap_servers=NOWHERE, enable_idempotence=True)
    sender = producer._sender

    async def die():
        raise errors.OutOfOrderSequenceNumber

    sender._sender_task = asyncio.create_task(die())
    sender._sender_task.add_done_callback(sender._fail_all)
    ignore_sender_death(producer)
    await asyncio.wait([sender._sender_task])
    await asyncio.sleep(0)
    # aiokafka's own callback would have failed on a producer without a transaction.
    assert producer._message_accumulator._exception is None
    assert isinstance(sender._sender_task.exception(), errors.OutOfOrderSequenceNumber)
    await _disabled(producer)


async def test_disabled_producer_distinguishes_sent_batches_from_unsent_ones():
    producer = AIOKafkaProducer(bootstrap_servers=NOWHERE, enable_idempotence=True)
    producer._txn_manager.set_pid_and_epoch(1, 0)
    accumulator = producer._message_accumulator
    futures = []
    for partition in (0, 1):
        batch = producer.create_batch()
        batch.append(timestamp=None, key=None, value=b"x")
        futures.append(await accumulator.add_batch(batch, TopicPartition("t", partition), 1))
    again = accumulator._pop_batch(TopicPartition("t", 0))
    accumulator.reenqueue(again)  # as after a lost connection; aiokafka's own stop would fail here
    disable(producer, "replaced", errors.UnknownProducerId())
    await asyncio.sleep(0)
    sent, unsent = [future.exception() for future in futures]
    assert isinstance(sent, DriverClosed)
    assert sent.sent
    assert not unsent.sent
    assert isinstance(sent.__cause__, errors.UnknownProducerId)
    with pytest.raises(DriverClosed):
        await producer.client._get_conn(1)
    with pytest.raises(errors.ProducerClosed):
        await accumulator.add_batch(producer.create_batch(), TopicPartition("t", 0), 1)


def test_private_names_exist():
    assert "_conns" in _source(AIOKafkaClient.__init__)
    assert "bootstrap_conn.send" in _source(AIOKafkaClient.bootstrap)
    assert "self._force_metadata_update" not in _source(AIOKafkaClient._get_conn)
    assert set(inspect.signature(AIOKafkaClient._get_conn).parameters) == {
        "self",
        "node_id",
        "group",
        "no_hint",
    }
    assert "await self._get_conn(" in _source(AIOKafkaClient.ready)
    assert "await self._get_conn(" in _source(AIOKafkaClient._metadata_update)
    synchronizer = _source(AIOKafkaClient._md_synchronizer)
    assert "await self._metadata_update(self.cluster, topics)" in synchronizer
    assert "self._retry_backoff = " in _source(AIOKafkaClient.__init__)
    assert "self.force_metadata_update()" in _source(AIOKafkaClient._get_conn)
    assert "self._requests.append" in _source(AIOKafkaConnection.send)
    assert "self._closed_fut" in _source(AIOKafkaConnection.close)
    assert "self._writer" in _source(AIOKafkaConnection.close)
    assert "self._sender = sender" in _source(BaseHandler.__init__)
    assert "_drain_waiter" in _source(MessageBatch.failure)
    assert "self._closing" in _source(GroupCoordinator.close)
    # Replaced where the loop has a task factory, because an eager task would fail.
    assert "= create_task(self._coordination_routine())" in _source(GroupCoordinator.__init__)
    assert inspect.isfunction(group_coordinator.create_task)
    assert "await self.ensure_coordinator_known()" in _source(GroupCoordinator.commit_offsets)
    assert "self._send_req" in _source(GroupCoordinator._do_commit_offsets)
    assert "asyncio.shield(self._do_commit_offsets(" in _source(GroupCoordinator.commit_offsets)
    assert "return OAuthAuthenticator(" in _source(AIOKafkaConnection.authenticator_oauth)
    assert "if self._token_sent:\n            return None" in _source(OAUTH.step)
    assert "await authenticator.step(auth_bytes)" in _source(AIOKafkaConnection._do_sasl_handshake)
    assert "on_close=self._on_connection_closed" in _source(AIOKafkaClient._get_conn)
    assert "self._on_close_cb(self, reason)" in _source(AIOKafkaConnection.close)
    assert CloseReason.CONNECTION_BROKEN == 0
    assert CloseReason.CONNECTION_TIMEOUT
    assert CloseReason.SHUTDOWN
    assert CoordinationType.GROUP == probe.GROUP
    assert CoordinationType.TRANSACTION == probe.TRANSACTION
