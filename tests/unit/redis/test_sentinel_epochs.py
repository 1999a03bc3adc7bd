"""Which master counts when Sentinels differ: stale, false, and the first to know."""

import pytest
from redis.asyncio.sentinel import MasterNotFoundError
from redis.exceptions import ConnectionError as ConnectionLostError

from resilient_io.redis.sentinel import KnownMaster, SentinelAddress

A, B, C, FOREIGN = (("10.0.0.1", 6379), ("10.0.0.2", 6379), ("10.0.0.3", 6379), ("10.9.9.9", 1))


class Sentinels:
    """Three Sentinels, whose answers can be changed, and the roles of the servers."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.roles = {A: "master", B: "slave", C: "slave", FOREIGN: "master"}
        self.changes = []
        self.address = SentinelAddress(
            "m", [self._asker(index) for index in range(3)], role_of=self._role_of
        )
        self.address.on_change(lambda before, after: self.changes.append((before, after)))

    def _asker(self, index):
        async def ask(*_commands):
            if self.answers[index] is None:
                raise ConnectionLostError("refused")
            address, epoch = self.answers[index]
            facts = {"flags": "master", "config-epoch": str(epoch)}
            replicas = [
                {"ip": host, "port": str(port), "flags": "slave"}
                for host, port in (A, B, C)
                if (host, port) != address
            ]
            return [list(map(str, address)), facts, replicas]

        return ask

    async def _role_of(self, address):
        role = self.roles[address]
        if role is None:
            raise ConnectionLostError("refused")
        return role

    async def find(self, *answers):
        """Return the master, after a change of the answers."""
        self.answers = list(answers) or self.answers
        (found,) = await self.address.find()
        return found


async def test_first_sentinel_to_know_of_a_failover_counts_if_the_server_is_a_master():
    sentinels = Sentinels((A, 3), (A, 3), (A, 3))
    assert await sentinels.find() == A
    assert await sentinels.find((B, 4), (A, 3), (A, 3)) == A  # not promoted yet
    sentinels.roles[B] = "master"
    assert await sentinels.find() == B
    assert sentinels.changes == [
        (None, KnownMaster(A, 3)),
        (KnownMaster(A, 3), KnownMaster(B, 4)),
    ]


async def test_stale_majority_does_not_count_after_a_failover_or_at_the_start():
    for known in (True, False):
        sentinels = Sentinels((B, 4), (B, 4), (B, 4))
        sentinels.roles[B] = "master"
        if known:
            assert await sentinels.find() == B
        assert await sentinels.find((A, 3), (B, 4), (A, 3)) == B
        if known:
            assert await sentinels.find((A, 3), None, (A, 3)) == B


async def test_latest_master_that_does_not_answer_is_not_replaced_by_the_former_one():
    sentinels = Sentinels((A, 3), (B, 4), (A, 3))
    sentinels.roles[B] = None
    with pytest.raises(MasterNotFoundError, match="the latest, does not answer: refused"):
        await sentinels.find()


@pytest.mark.parametrize("epoch", [0, 3, 99])
@pytest.mark.parametrize("address", [FOREIGN, B])
async def test_false_answer_does_not_count_at_any_epoch(address, epoch):
    sentinels = Sentinels((address, epoch), (A, 3), (A, 3))
    assert await sentinels.find() == A
    assert await sentinels.find((address, epoch), None, None) == A
    assert await sentinels.find((address, epoch), (A, 3), (A, 3)) == A


async def test_false_answer_at_the_start_is_forgotten_when_a_majority_answers():
    sentinels = Sentinels((FOREIGN, 99), None, None)
    assert await sentinels.find() == FOREIGN
    assert await sentinels.find((FOREIGN, 99), (A, 3), (A, 3)) == A


async def test_false_epoch_of_the_right_master_does_not_hide_the_next_failover():
    sentinels = Sentinels((A, 99), (A, 3), (A, 3))
    assert await sentinels.find() == A
    sentinels.roles[B] = "master"
    assert await sentinels.find((A, 99), (B, 4), (B, 4)) == B


async def test_known_master_counts_while_no_sentinel_answers():
    sentinels = Sentinels((A, 3), (A, 3), (A, 3))
    assert await sentinels.find() == A
    assert await sentinels.find(None, None, None) == A


async def test_sentinels_that_were_set_up_again_count_if_all_agree():
    sentinels = Sentinels((B, 4), (B, 4), (B, 4))
    assert await sentinels.find() == B
    assert await sentinels.find((A, 0), (A, 0), None) == B
    assert await sentinels.find((A, 0), (A, 0), (A, 0)) == A
