"""A failure while partitions are assigned or revoked is not left to aiokafka's log."""

import pytest

from resilient_io.kafka.consumer.group import RebalanceListener


class Broken:
    async def revoke(self, _instance):
        raise ValueError("revoke")

    async def assign(self, _instance, _partitions):
        raise ValueError("assign")


async def test_failure_of_a_rebalance_is_reported_and_raised():
    failures = []
    listener = RebalanceListener(Broken(), object(), failures.append)
    with pytest.raises(ValueError, match="revoke"):
        await listener.on_partitions_revoked([])
    with pytest.raises(ValueError, match="assign"):
        await listener.on_partitions_assigned([])
    assert [str(failure) for failure in failures] == ["revoke", "assign"]
