"""Large values among the replies: put together from parts, wherever the reads begin and end."""

import os
import random
import tracemalloc
from types import SimpleNamespace

import pytest
from redis._parsers import Encoder
from redis.exceptions import InvalidResponse, ResponseError

from resilient_io.redis.attempt import Packer
from resilient_io.redis.commands import SPECS
from resilient_io.redis.connection import PendingRequest
from resilient_io.redis.large_values import LargeReplies, LargeValueReader, PackedParts
from resilient_io.redis.response_queue import LARGE, ResponseQueue


class Waiter(PendingRequest):
    """A request that keeps its replies."""

    def __init__(self, count=1, raw=frozenset()):
        super().__init__(b"x", count=count, raw=raw)

    @property
    def reply(self):
        assert self.future.done()
        return self.future.result()


@pytest.fixture
def queue():
    return make_queue()


def make_queue(*, decode=False, pushes=False):
    encoder = Encoder("utf-8", "strict", decode)  # type: ignore[no-untyped-call]
    parser = SimpleNamespace(parse_error=ResponseError)
    return ResponseQueue(SimpleNamespace(encoder=encoder, _parser=parser), pushes=pushes)


def expect(queue, *requests):
    for request in requests:
        if request.special:
            queue.expect(request)
        queue.waiting.extend([request] * request.count)
    return requests


def bulk(value):
    return b"$%d\r\n%b\r\n" % (len(value), value)


def in_step(queue):
    """Answer all requests, so that the queue knows where the next reply begins."""
    (first,) = expect(queue, Waiter())
    queue.feed(b"+PONG\r\n")
    assert first.reply == b"PONG"
    assert queue.large_replies.in_step


@pytest.mark.parametrize("size", [7, 1400, 4096, 60_000, 65_536, 262_144, 10**7])
async def test_replies_are_the_same_however_they_are_read(queue, size):
    in_step(queue)
    rng = random.Random(size)
    values = [
        os.urandom(rng.choice([0, 1, 3000, LARGE - 1, LARGE, 200_000, 1_048_576]))
        for _ in range(20 if size > 7 else 3)
    ]
    stream, requests, wanted = b"", [], []
    for value in values:
        requests += expect(queue, Waiter(), Waiter(), Waiter())
        stream += bulk(value) + b"+OK\r\n:7\r\n"
        wanted += [value, b"OK", 7]
    for begin in range(0, len(stream), size):
        queue.feed(stream[begin : begin + size])
    assert [request.reply for request in requests] == wanted
    assert not queue.waiting
    assert queue.partial == 0


async def test_large_value_does_not_pass_through_the_parser(queue):
    in_step(queue)
    value = os.urandom(500_000)
    first, second, third = expect(queue, Waiter(), Waiter(), Waiter())
    parser, queue._reader = queue._reader, SimpleNamespace(has_data=lambda: False)
    stream = bulk(value)
    queue.feed(stream[:2000])
    assert queue.partial == len(stream[:2000]) - len(b"$500000\r\n")
    queue.feed(stream[2000:300_000])
    assert queue.busy
    queue._reader = parser
    queue.feed(stream[300_000:] + b"$2\r\nab")
    assert first.reply == value
    assert not second.done()
    assert not queue.busy
    queue.feed(b"\r\n" + bulk(value))
    assert (second.reply, third.reply) == (b"ab", value)
    assert not queue.waiting


async def test_value_within_an_array_is_left_to_the_parser(queue):
    in_step(queue)
    value = os.urandom(300_000)
    requests = expect(queue, Waiter(), Waiter(), Waiter(), Waiter())
    stream = b"*2\r\n" + bulk(value) * 3 + b"*1\r\n" + bulk(b"x") + b"+OK\r\n"
    for begin in range(0, len(stream), 100_000):
        queue.feed(stream[begin : begin + 100_000])
    assert [each.reply for each in requests] == [[value, value], value, [b"x"], b"OK"]
    assert queue.large_replies.in_step  # nothing is expected, so the next byte begins a reply


async def test_array_between_two_reads_is_not_mistaken_for_its_elements(queue):
    in_step(queue)
    (request, last) = expect(queue, Waiter(), Waiter())
    queue.feed(b"*2\r\n")
    queue.feed(bulk(b"a" * 100_000))
    assert not request.done()
    queue.feed(bulk(b"b"))
    queue.feed(b"+OK\r\n")
    assert request.reply == [b"a" * 100_000, b"b"]
    assert last.reply == b"OK"


async def test_large_values_are_decoded_unless_they_are_raw():
    queue = make_queue(decode=True)
    (first,) = expect(queue, Waiter())
    queue.feed(b"+PONG\r\n")
    assert first.reply == "PONG"
    text = "é" * 100_000
    plain, broken, raw, batch = expect(
        queue, Waiter(), Waiter(), Waiter(raw=frozenset({0})), Waiter(2, frozenset({1}))
    )
    value = text.encode()
    stream = bulk(value) + bulk(b"\xff" * 100_000) + bulk(value) * 3
    for begin in range(0, len(stream), 50_000):
        queue.feed(stream[begin : begin + 50_000])
    assert plain.reply == text
    assert isinstance(broken.reply, UnicodeDecodeError)
    assert raw.reply == value
    assert batch.reply == [text, value]


async def test_reply_of_a_caller_that_no_longer_waits_is_dropped(queue):
    in_step(queue)
    gone, other = expect(queue, Waiter(), Waiter())
    stream = bulk(b"v" * 200_000) + b"+OK\r\n"
    queue.feed(stream[:100_000])
    gone.future.cancel()
    queue.feed(stream[100_000:])
    assert other.reply == b"OK"


@pytest.mark.parametrize("ending", [b"xx", b"\rx"])
@pytest.mark.parametrize("cut", [0, 1])
async def test_value_without_its_end_of_line_is_a_protocol_error(queue, ending, cut):
    in_step(queue)
    expect(queue, Waiter(), Waiter())
    stream = b"$100000\r\n" + b"v" * 100_000 + ending
    queue.feed(stream[:50_000])
    queue.feed(stream[50_000 : len(stream) - 1 - cut])
    with pytest.raises(InvalidResponse):
        queue.feed(stream[len(stream) - 1 - cut :])


@pytest.mark.parametrize("surplus", [b"$100000\r\n" + b"v" * 50_000, b"+OK", b"$5\r\nab"])
async def test_part_of_a_reply_without_a_request_is_a_protocol_error(queue, surplus):
    in_step(queue)
    (request,) = expect(queue, Waiter())
    with pytest.raises(InvalidResponse):
        queue.feed(bulk(b"v" * 2000) + surplus)
    assert request.reply == b"v" * 2000


async def test_lost_connection_frees_the_parts(queue):
    in_step(queue)
    (request,) = expect(queue, Waiter())
    queue.feed(b"$100000\r\n" + b"v" * 50_000)
    lost = ConnectionResetError()
    queue.fail_all(lost)
    assert request.reply is lost
    assert queue.large_replies.received == 0


async def test_push_messages_keep_it_from_looking_for_large_values():
    queue = make_queue(pushes=True)
    (first,) = expect(queue, Waiter())
    queue.feed(b"+PONG\r\n")
    assert first.reply == b"PONG"
    assert not queue.large_replies.in_step


def test_reads_of_any_size_yield_the_same_pieces():
    rng = random.Random(1)
    for _ in range(300):
        values = [b"$" * rng.choice([0, 5, 100, 200, 1000]) for _ in range(6)]
        replies = [rng.choice([bulk(value), b"+OK\r\n", b"$-1\r\n", b"_\r\n"]) for value in values]
        stream = b"".join(replies)
        large = LargeReplies(100)
        large.in_step = True
        small, found = b"", []
        position = 0
        while position < len(stream):
            size = rng.randint(1, 300)
            for piece, is_large in large.split(stream[position : position + size]):
                if is_large:
                    found.append(piece)
                    small += bulk(piece)
                else:
                    small += piece
            position += size
        assert small == stream
        assert large.in_step
        assert not large.pending
        assert all(len(each) >= 100 for each in found)


async def test_bytes_written_into_the_room_are_not_copied_again(queue):
    in_step(queue)
    value = os.urandom(400_000)
    (request,) = expect(queue, Waiter())
    stream = memoryview(bulk(value))
    tracemalloc.start()
    queue.feed(bytes(stream[:100_000]))
    large = queue.large_replies
    taken = SimpleNamespace(transport=SimpleNamespace(protocol=None))
    taken.transport.set_protocol = lambda protocol: setattr(taken.transport, "protocol", protocol)
    reader = LargeValueReader(taken, large, queue.fill)
    position = 100_000
    while large.room is not None:
        buffer = reader.get_buffer(-1)
        part = stream[position : position + min(len(buffer), 70_000)]
        buffer[: len(part)] = part
        position += len(part)
        assert taken.transport.protocol is None
        reader.buffer_updated(len(part))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000 + 1.1 * len(value)
    assert taken.transport.protocol is taken  # reads again itself
    assert position == len(stream)
    assert request.reply == value
    assert not large.pending
    assert queue.partial == 0


async def test_value_is_complete_although_its_memory_is_still_in_use(queue):
    in_step(queue)
    value = b"v" * 100_000
    (request,) = expect(queue, Waiter())
    queue.feed(bulk(value)[:50_000])
    held = queue.large_replies._value.getbuffer()
    queue.feed(bulk(value)[50_000:])
    assert request.reply == value
    held.release()


@pytest.mark.parametrize("size", [b"9" * 15, b"9" * 25])
async def test_value_that_no_memory_could_hold_is_a_protocol_error(queue, size):
    in_step(queue)
    expect(queue, Waiter())
    with pytest.raises(InvalidResponse, match="too long"):
        queue.feed(b"$" + size + b"\r\n" + b"v" * 2000)


def test_large_values_are_sent_as_they_are():
    small, large, wide = b"s" * 1000, b"l" * 100_000, "é" * 100_000
    packer = Packer(Encoder("utf-8", "strict", False))  # type: ignore[no-untyped-call]
    args = ("MSET", "a", small, "b", large, "c", wide, "d", 7)
    packed = packer.pack((b"MSET",), args)
    assert isinstance(packed, PackedParts)
    assert any(part is large for part in packed.parts)
    assert len(packed.parts) == 5
    wanted = [b"MSET", b"a", small, b"b", large, b"c", wide.encode(), b"d", b"7"]
    assert bytes(packed) == b"*9\r\n" + b"".join(map(bulk, wanted))
    assert len(packed) == len(bytes(packed))
    assert bytes(b"before" + packed + b"after") == b"before" + bytes(packed) + b"after"
    assert packer.pack_all([SPECS["MSET"]], [args]) == [bytes(packed)]


async def test_push_messages_and_errors_among_the_replies_to_a_batch():
    queue = make_queue(decode=True)
    pushed: list[object] = []
    queue.listen(pushed.append)
    batch, other = expect(queue, Waiter(5), Waiter())
    stream = b"+1\r\n>1\r\n+first\r\n$1\r\n\xff\r\n-ERR no\r\n+4\r\n>1\r\n+second\r\n:5\r\n+OK\r\n"
    for begin in range(0, len(stream), 30):
        queue.feed(stream[begin : begin + 30])
    assert [type(reply) for reply in batch.reply] == [
        str, UnicodeDecodeError, ResponseError, str, int,
    ]  # fmt: skip
    assert pushed == [["first"], ["second"]]
    assert other.reply == "OK"


async def test_replies_to_a_batch_before_garbage_are_kept(queue):
    (batch,) = expect(queue, Waiter(4))
    with pytest.raises(InvalidResponse):
        queue.feed(b"+1\r\n>1\r\n+pushed\r\n+2\r\nrubbish\r\n")
    assert batch.replies == [b"1", b"2"]
    assert len(queue.waiting) == 2
