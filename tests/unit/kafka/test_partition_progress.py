"""Only contiguous offsets may be committed."""

import random

import pytest

from resilient_io.kafka.record import PartitionProgress


def progress_of(*offsets: int) -> PartitionProgress:
    progress = PartitionProgress()
    for offset in offsets:
        progress.delivered(offset)
    return progress


def test_nothing_is_committable_before_the_first_record_is_done():
    progress = progress_of(5, 6)
    assert progress.committable is None
    assert progress.outstanding == 2
    assert progress.first_outstanding == 5


def test_a_record_done_out_of_order_waits_for_earlier_ones():
    progress = progress_of(5, 6, 7)
    progress.done(7)
    progress.done(6)
    assert progress.committable is None
    assert progress.outstanding == 1
    progress.done(5)
    assert progress.committable == 8
    assert progress.outstanding == 0
    assert progress.first_outstanding is None


def test_gaps_in_the_offsets_are_skipped():
    progress = progress_of(5, 9, 20)
    progress.done(5)
    assert progress.committable == 6
    progress.done(9)
    progress.done(20)
    assert progress.committable == 21


def test_done_twice_counts_once():
    progress = progress_of(5, 6, 7)
    progress.done(6)
    progress.done(6)
    assert progress.outstanding == 2
    progress.done(5)
    progress.done(5)
    assert progress.committable == 7
    assert progress.outstanding == 1


def test_a_record_that_was_never_delivered_is_never_done():
    progress = progress_of(5)
    progress.done(9)
    progress.done(3)
    progress.done(5)
    assert progress.committable == 6
    assert progress.outstanding == 0


def test_a_record_delivered_twice_counts_once():
    progress = progress_of(5, 6, 5, 6)
    assert progress.outstanding == 2


def test_reaching_an_offset_finishes_every_earlier_record():
    progress = progress_of(5, 6, 7, 8)
    progress.done(7)
    progress.reached(7)
    assert progress.committable == 8, "7 was done already"
    assert progress.outstanding == 1
    progress.reached(6)
    assert progress.committable == 8, "it never decreases"


def test_reaching_needs_no_delivered_records():
    progress = PartitionProgress()
    progress.reached(40)
    assert progress.committable == 40
    progress.delivered(39)
    assert progress.outstanding == 0, "it was passed already"
    progress.delivered(40)
    assert progress.first_outstanding == 40


@pytest.mark.parametrize("seed", range(20))
def test_any_order_matches_a_count_from_the_start(seed):
    rng = random.Random(seed)
    offsets = sorted(rng.sample(range(1000), 200))
    progress = PartitionProgress()
    done: set[int] = set()
    delivered = 0
    while len(done) < len(offsets):
        if delivered < len(offsets) and rng.random() < 0.5:
            progress.delivered(offsets[delivered])
            delivered += 1
        elif open_ones := [offset for offset in offsets[:delivered] if offset not in done]:
            choice = rng.choice(open_ones)
            done.add(choice)
            progress.done(choice)
        expected = None
        for offset in offsets[:delivered]:
            if offset not in done:
                break
            expected = offset + 1
        assert progress.committable == expected
        assert progress.outstanding == delivered - len(done)
