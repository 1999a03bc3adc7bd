"""The text that is committed beside an offset."""

import random

import pytest

from resilient_io.kafka.consumer.commit_metadata import (
    CommitMetadata,
    decode_metadata,
    ranges_of,
)


def test_ranges_join_adjacent_offsets():
    assert ranges_of([]) == ()
    assert ranges_of([7]) == ((7, 8),)
    assert ranges_of({9, 3, 4, 5, 11, 10}) == ((3, 6), (9, 12))


@pytest.mark.parametrize("topic_id", [None, "NbbpM4nYTVirBU5JlA-U7w"])
@pytest.mark.parametrize("count", [0, 1, 100, 2000])
def test_metadata_is_read_back(topic_id, count):
    rng = random.Random(count)
    offset = 10**12
    handled = ranges_of(offset + 1 + rng.randrange(3 * count) for _ in range(count))
    metadata = CommitMetadata(topic_id, handled)
    assert decode_metadata(metadata.encode(offset), offset) == metadata


def test_ranges_that_do_not_fit_are_left_out():
    handled = tuple((n * 1000, n * 1000 + 500) for n in range(1, 5000))
    text = CommitMetadata("x" * 22, handled).encode(0)
    assert 3900 < len(text) <= 4000
    found = decode_metadata(text, 0).handled
    assert 500 < len(found) < 5000
    assert found == handled[: len(found)]


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "by another client",
        "resilient-io",
        "resilient-io handled=!!",
        "resilient-io new=1",
    ],
)
def test_metadata_of_another_format_says_nothing(text):
    assert decode_metadata(text, 5) == CommitMetadata()


def test_nothing_to_say_is_an_empty_text():
    assert CommitMetadata().encode(5) == ""
