"""Transactions over a fake aiokafka producer: its calls, and what its end means for each."""

from types import SimpleNamespace

import pytest
from aiokafka.producer.transaction_manager import TransactionState as DriverState

from resilient_io import RetryPolicy
from resilient_io.kafka.driver import DriverClosed
from resilient_io.kafka.errors import KafkaOutcomeUnknown, KafkaUnavailable
from resilient_io.kafka.producer.transactions import Transaction, TransactionManager


class FakeTransactions:
    """The calls of a fake aiokafka producer for transactions; that in `ends` closes it."""

    def __init__(self, producer):
        self.calls = []
        self.ends = None
        driver = producer.driver
        driver._txn_manager = SimpleNamespace(state=DriverState.IN_TRANSACTION)
        driver.begin_transaction = lambda: self._call("begin")
        driver.commit_transaction = lambda: self._call("commit")
        driver.abort_transaction = lambda: self._call("abort")
        driver.send_offsets_to_transaction = lambda _offsets, _group: self._call("offsets")
        producer.supervisor.resume = lambda: None
        producer.transaction.transactional = True
        producer.transaction.close()
        manager = TransactionManager(producer.accumulator, producer.supervisor, RetryPolicy())
        self.transaction = lambda: Transaction(lambda: manager)
        self.aclose = manager.aclose

    async def _call(self, name):
        if name == self.ends:
            raise DriverClosed("it was closed", sent=True)
        self.calls.append(name)


async def test_transaction_commits_with_its_offsets_and_aborts_after_an_exception(components):
    async with components() as producer:
        fake = FakeTransactions(producer)
        async with fake.transaction() as transaction:
            await transaction.send_offsets({}, "group")
        with pytest.raises(LookupError):
            async with fake.transaction():
                raise LookupError
        assert fake.calls == ["begin", "offsets", "commit", "begin", "abort"]
        assert not producer.transaction.sendable


@pytest.mark.parametrize("ends", ["begin", "offsets"])
async def test_transaction_applies_nothing_if_its_driver_ends_before_the_commit(components, ends):
    async with components() as producer:
        fake = FakeTransactions(producer)
        fake.ends = ends
        with pytest.raises(KafkaUnavailable) as raised:
            async with fake.transaction() as transaction:
                await transaction.send_offsets({}, "group")
        await fake.aclose()
        assert raised.value.progress == "not sent"
        assert isinstance(raised.value.__cause__, DriverClosed)
        assert "commit" not in fake.calls
        assert producer.transaction.current is None


async def test_commit_without_an_answer_is_unknown_and_replaces_the_driver(components):
    async with components() as producer:
        fake = FakeTransactions(producer)
        fake.ends = "commit"
        with pytest.raises(KafkaOutcomeUnknown):
            async with fake.transaction():
                pass
        assert [type(error) for error in producer.supervisor.errors] == [DriverClosed]
        assert producer.transaction.current is None
