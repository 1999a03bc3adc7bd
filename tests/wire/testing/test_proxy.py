"""The faults of the proxy, with a real server and a client of plain bytes."""

import asyncio
import contextlib
import socket

import pytest

from resilient_io.testing import FaultProxy, free_port
from resilient_io.testing.resp import encode


class Client:
    """A plain socket, without a client library."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer

    def send(self, *arguments):
        self.writer.write(encode(*arguments))

    async def read(self, size):
        async with asyncio.timeout(5):
            return await self.reader.readexactly(size)

    async def ask(self, *arguments, size):
        self.send(*arguments)
        return await self.read(size)

    async def hears_nothing(self, seconds=0.05):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.reader.read(1)
        return True


@pytest.fixture
async def connect(fault_proxy):
    async with contextlib.AsyncExitStack() as stack:

        async def connect(proxy=fault_proxy):
            reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
            stack.push_async_callback(closed, writer)
            return Client(reader, writer)

        yield connect


async def closed(writer):
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def eventually(condition):
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - without an event
            await asyncio.sleep(0.002)


pytestmark = pytest.mark.usefixtures("no_leaks")


async def test_dropped_reply_belongs_to_an_executed_command_and_the_connection_stays_open(
    redis_server, fault_proxy, connect
):
    client = await connect()
    fault = fault_proxy.drop_reply("incr")
    assert await client.ask("SET", "k", 1, size=5) == b"+OK\r\n"
    client.send("INCR", "n")
    await fault.happened()
    client.send("GET", "k")
    client.send("INCR", "n")
    assert await client.hears_nothing()
    assert await redis_server.query("GET", "n") == b"2"
    assert fault_proxy.requests == {"SET": 1, "INCR": 2, "GET": 1}
    assert [request.arguments for request in fault.struck] == [(b"INCR", b"n")]
    other = await connect()
    assert await other.ask("GET", "n", size=7) == b"$1\r\n2\r\n"


async def test_replies_before_the_dropped_one_arrive_even_if_sent_in_one_piece(
    fault_proxy, connect
):
    client = await connect()
    fault_proxy.drop_reply("INCR", nth=2)
    pieces = [encode("INCR", "n"), encode("ECHO", "x\r\ny"), encode("INCR", "n"), b"PING\r\n"]
    client.writer.write(b"".join(pieces))
    assert await client.read(14) == b":1\r\n$4\r\nx\r\ny\r\n"
    assert await client.hears_nothing()
    assert fault_proxy.requests == {"INCR": 2, "ECHO": 1, "PING": 1}


async def test_muted_connection_stays_open_when_the_server_is_killed(
    redis_server, fault_proxy, connect
):
    client = await connect()
    fault = fault_proxy.drop_reply()
    client.send("PING")
    await fault.happened()
    redis_server.kill()
    assert await client.hears_nothing()


@pytest.mark.parametrize(
    ("keep", "then", "delivered"), [(None, "close", b"$10\r\n012"), (2, "reset", b"$1")]
)
async def test_half_reply_then_end_of_connection(fault_proxy, connect, keep, then, delivered):
    client = await connect()
    await client.ask("SET", "k", "0123456789", size=5)
    fault_proxy.half_reply("GET", keep=keep, then=then)
    client.send("GET", "k")
    client.send("PING")
    assert await client.read(len(delivered)) == delivered
    if then == "reset":
        with pytest.raises(ConnectionResetError):
            await client.reader.read(1)
    else:
        assert await client.reader.read(1) == b""


async def test_half_reply_then_silence(fault_proxy, connect):
    client = await connect()
    fault_proxy.half_reply("PING", then="silence")
    client.send("PING")
    assert await client.read(3) == b"+PO"
    assert await client.hears_nothing()


async def test_released_request_reaches_the_server_after_its_client_has_gone(
    redis_server, fault_proxy, connect
):
    client = await connect()
    fault = fault_proxy.hold(lambda request: request.arguments[1:2] == (b"held",))
    client.send("SET", "k", "before")
    client.send("SET", "held", "old")
    client.send("SET", "k", "after")
    await fault.happened()
    assert await client.read(5) == b"+OK\r\n"
    assert await redis_server.query("GET", "k") == b"before"
    client.writer.transport.abort()
    await redis_server.query("SET", "held", "newer")
    assert len(fault_proxy.connections) == 1
    assert fault.release() == 1
    await eventually(lambda: not fault_proxy.connections)
    assert await redis_server.query("MGET", "held", "k") == [b"old", b"after"]


async def test_held_request_survives_a_reset_of_the_client(redis_server, fault_proxy, connect):
    client = await connect()
    fault = fault_proxy.hold("SET")
    client.send("SET", "k", "held")
    await fault.happened()
    fault_proxy.reset()
    with pytest.raises(ConnectionResetError):
        await client.read(1)
    assert await redis_server.query("GET", "k") is None
    assert fault.release() == 1
    await eventually(lambda: not fault_proxy.connections)
    assert await redis_server.query("GET", "k") == b"held"


async def test_two_holds_are_released_one_after_the_other(redis_server, fault_proxy, connect):
    client = await connect()
    fault = fault_proxy.hold("INCR", times=2)
    for _ in range(3):
        client.send("INCR", "n")
    await fault.happened()
    for expected in (b"1", b"3"):
        assert fault.release() == 1
        await client.read(4 if expected == b"1" else 8)
        assert await redis_server.query("GET", "n") == expected
    assert fault.spent
    assert fault.release() == 0


async def test_removed_fault_hits_no_further_request(fault_proxy, connect):
    client = await connect()
    fault = fault_proxy.answer("PING", b"+NO\r\n", times=None)
    assert await client.ask("PING", size=5) == b"+NO\r\n"
    assert await client.ask("PING", size=5) == b"+NO\r\n"
    fault.remove()
    assert await client.ask("PING", size=7) == b"+PONG\r\n"
    assert len(fault.struck) == 2


async def test_fault_hits_a_complete_reply_that_arrives_in_pieces(fault_proxy, connect):
    client = await connect()
    value = b"0123456789" * 100_000
    await client.ask("SET", "k", value, size=5)
    fault_proxy.answer("GET", b"+instead\r\n", forward=True)
    client.send("GET", "k")
    client.send("PING")
    assert await client.read(17) == b"+instead\r\n+PONG\r\n"


@contextlib.asynccontextmanager
async def proxied_stub(*pieces):
    """A server that answers the first request with these pieces, and no other."""

    async def answer(reader, writer):
        await reader.read(100)
        for piece in pieces:
            writer.write(piece)
            await asyncio.sleep(0.01)
        await reader.read()
        await closed(writer)
        finished.set()

    finished = asyncio.Event()
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with FaultProxy(server.sockets[0].getsockname()[1]) as proxy:
        yield proxy
        for connection in proxy.connections:
            connection.close()
        await finished.wait()
    server.close()
    await server.wait_closed()


async def test_invalid_bytes_from_the_server_are_forwarded(connect):
    async with proxied_stub(b"+OK\r\n?wh", b"at\r\n") as proxy:
        client = await connect(proxy)
        proxy.drop_reply(nth=2)
        client.writer.write(b"PING\r\nPING\r\n")
        assert await client.read(12) == b"+OK\r\n?what\r\n"


async def test_push_before_the_dropped_reply_is_forwarded(connect):
    async with proxied_stub(b">1\r\n+pu", b"sh\r\n>1\r\n+two\r\n:1\r\n>0\r\n") as proxy:
        client = await connect(proxy)
        fault = proxy.answer("INCR", b":7\r\n", forward=True)
        client.send("INCR", "n")
        expected = b">1\r\n+push\r\n>1\r\n+two\r\n:7\r\n>0\r\n"
        assert await client.read(len(expected)) == expected
        await fault.happened()


async def test_refusing_port_cannot_be_taken_by_another_socket(fault_proxy):
    fault_proxy.refuse()
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind((fault_proxy.host, fault_proxy.port))


async def test_stall_of_replies_applies_to_new_connections(fault_proxy, connect):
    fault_proxy.stall("replies", existing=False)
    client = await connect()
    client.send("PING")
    assert await client.hears_nothing()
    assert fault_proxy.requests == {"PING": 1}
    fault_proxy.restore()
    assert await client.read(7) == b"+PONG\r\n"


async def test_release_returns_how_many_connections_the_server_kept(
    redis_server, fault_proxy, connect
):
    client = await connect()
    client_id = int((await client.ask("CLIENT", "ID", size=4))[1:-2])
    fault = fault_proxy.hold("SET")
    client.send("SET", "k", "v")
    await fault.happened()
    assert await redis_server.query("CLIENT", "KILL", "ID", client_id) == 1
    assert await client.reader.read() == b""
    assert fault.release() == 0
    assert await redis_server.query("GET", "k") is None


async def test_answer_in_place_of_the_server_keeps_the_order(redis_server, fault_proxy, connect):
    client = await connect()
    fault_proxy.answer("SET", b"-LOADING wait\r\n")
    fault_proxy.answer("INCR", b"!garbage", forward=True)
    for arguments in [("PING",), ("SET", "k", 1), ("PING",), ("INCR", "n"), ("PING",)]:
        client.send(*arguments)
    assert await client.read(44) == b"+PONG\r\n-LOADING wait\r\n+PONG\r\n!garbage+PONG\r\n"
    assert await redis_server.query("MGET", "k", "n") == [None, b"1"]


@pytest.mark.parametrize("forward", [False, True])
async def test_reset_before_or_after_the_request_is_forwarded(
    redis_server, fault_proxy, connect, forward
):
    client = await connect()
    fault_proxy.reset_on("INCR", forward=forward)
    client.send("INCR", "n")
    with pytest.raises(ConnectionResetError):
        await client.read(1)
    await eventually(lambda: not fault_proxy.connections)
    assert await redis_server.query("GET", "n") == (b"1" if forward else None)


async def test_stall_of_replies_forwards_requests_and_loses_nothing(
    redis_server, fault_proxy, connect
):
    client = await connect()
    await client.ask("PING", size=7)
    fault_proxy.stall("replies", new=False)
    client.send("INCR", "n")
    assert await client.hears_nothing()
    assert await redis_server.query("GET", "n") == b"1"
    other = await connect()
    assert await other.ask("PING", size=7) == b"+PONG\r\n"
    fault_proxy.resume()
    assert await client.read(4) == b":1\r\n"


async def test_stall_of_requests_applies_to_new_connections_only_if_requested(
    redis_server, fault_proxy, connect
):
    client = await connect()
    await client.ask("PING", size=7)
    fault_proxy.stall("requests", existing=False)
    other = await connect()
    other.send("INCR", "n")
    assert await other.hears_nothing()
    assert await client.ask("GET", "n", size=5) == b"$-1\r\n"
    other.writer.close()
    fault_proxy.resume("requests")
    await eventually(lambda: len(fault_proxy.connections) == 1)
    assert await redis_server.query("GET", "n") == b"1"


async def test_faults_of_one_connection_do_not_affect_others(redis_server, fault_proxy, connect):
    first, second = await connect(), await connect()
    await first.ask("CLIENT", "SETNAME", "first", size=5)
    await second.ask("PING", size=7)
    one, two = fault_proxy.connections
    assert one.client_address == first.writer.get_extra_info("sockname")
    clients = (await redis_server.query("CLIENT", "LIST")).decode()
    host, port = one.server_side_address
    assert any(
        f"addr={host}:{port} " in line and "name=first" in line for line in clients.splitlines()
    )
    two.stall()
    one.reset()
    with pytest.raises(ConnectionResetError):
        await first.read(1)
    second.send("PING")
    assert await second.hears_nothing()
    two.resume()
    assert await second.read(7) == b"+PONG\r\n"
    two.close()
    assert await second.reader.read() == b""


async def test_reset_after_n_bytes_delivers_exactly_n_bytes(fault_proxy, connect):
    client = await connect()
    await client.ask("SET", "k", "x" * 100, size=5)
    fault_proxy.reset_after(8, "replies")
    client.send("GET", "k")
    assert await client.read(8) == b"$100\r\nxx"
    with pytest.raises(ConnectionResetError):
        await client.reader.read(1)
    fault_proxy.restore()
    assert await (await connect()).ask("PING", size=7) == b"+PONG\r\n"


async def test_request_cut_after_n_bytes_is_not_executed(redis_server, fault_proxy, connect):
    fault_proxy.reset_after(len(encode("INCR", "n")) - 1, "requests")
    client = await connect()
    client.send("INCR", "n")
    with pytest.raises(ConnectionResetError):
        await client.read(1)
    await eventually(lambda: not fault_proxy.connections)
    assert await redis_server.query("GET", "n") is None


async def test_proxy_refuses_and_accepts_again_on_the_same_port(fault_proxy, connect):
    client = await connect()
    await client.ask("PING", size=7)
    port = fault_proxy.port
    fault_proxy.refuse()
    with pytest.raises(ConnectionRefusedError):
        await connect()
    assert await client.ask("PING", size=7) == b"+PONG\r\n"
    fault_proxy.accept()
    assert fault_proxy.port == port
    assert await (await connect()).ask("PING", size=7) == b"+PONG\r\n"
    assert fault_proxy.accepted == 2


async def test_proxy_accepts_silently(fault_proxy, connect):
    fault_proxy.accept_silently()
    client = await connect()
    client.send("PING")
    assert await client.hears_nothing()
    assert not fault_proxy.requests
    fault_proxy.accept()
    assert await (await connect()).ask("PING", size=7) == b"+PONG\r\n"


async def test_latency_is_added_in_each_direction(fault_proxy, connect):
    client = await connect()
    await client.ask("PING", size=7)
    loop = asyncio.get_running_loop()
    fault_proxy.latency(requests=0.03, replies=0.05)
    start = loop.time()
    assert await client.ask("PING", size=7) == b"+PONG\r\n"
    assert 0.08 <= loop.time() - start < 1


async def test_bandwidth_is_limited_and_nothing_is_lost(fault_proxy, connect):
    client = await connect()
    value = bytes(range(256)) * 200
    await client.ask("SET", "k", value, size=5)
    loop = asyncio.get_running_loop()
    fault_proxy.bandwidth(replies=256_000)
    start = loop.time()
    assert await client.ask("GET", "k", size=len(value) + 10) == b"$51200\r\n" + value + b"\r\n"
    assert 0.17 <= loop.time() - start < 2
    fault_proxy.bandwidth()


async def test_client_that_does_not_read_causes_backpressure_to_the_server(fault_proxy, connect):
    client = await connect()
    value = b"x" * (8 << 20)
    assert await client.ask("SET", "k", value, size=5) == b"+OK\r\n"
    fault_proxy.stall("replies")
    client.send("GET", "k")
    assert await client.hears_nothing(0.1)
    (connection,) = fault_proxy.connections
    assert connection.links("replies")[0]._waiting < 2 << 20
    fault_proxy.resume()
    assert (await client.read(len(value) + 12)).endswith(b"xx\r\n")


async def test_injected_bytes_reach_the_client(fault_proxy, connect):
    client = await connect()
    await client.ask("PING", size=7)
    fault_proxy.inject(b"?garbage")
    assert await client.read(8) == b"?garbage"


async def test_resp3_pushes_do_not_count_as_replies(redis_server, fault_proxy, connect):
    client = await connect()
    client.send("HELLO", 3)
    client.send("CLIENT", "TRACKING", "ON", "BCAST")
    client.send("PING")
    async with asyncio.timeout(5):
        await client.reader.readuntil(b"+PONG\r\n")
    fault = fault_proxy.drop_reply("INCR")
    await redis_server.query("SET", "k", 1)
    push = b">2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\nk\r\n"
    assert await client.read(len(push)) == push
    assert await client.ask("PING", size=7) == b"+PONG\r\n"
    client.send("INCR", "n")
    await fault.happened()
    assert await client.hears_nothing()


async def test_after_subscribe_everything_is_forwarded_and_faults_apply_immediately(
    redis_server, fault_proxy, connect
):
    client = await connect()
    fault = fault_proxy.drop_reply("UNSUBSCRIBE")
    client.send("SUBSCRIBE", "a", "b")
    async with asyncio.timeout(5):
        await client.reader.readuntil(b":2\r\n")
    message = b"*3\r\n$7\r\nmessage\r\n$1\r\nb\r\n$2\r\nhi\r\n"
    await redis_server.query("PUBLISH", "b", "hi")
    assert await client.read(len(message)) == message
    client.send("UNSUBSCRIBE")
    await fault.happened()
    await redis_server.query("PUBLISH", "b", "hi")
    assert await client.hears_nothing()


async def test_client_is_reset_while_the_server_is_down(redis_server, fault_proxy, connect):
    redis_server.kill()
    client = await connect()
    with pytest.raises(ConnectionResetError):
        await client.read(1)


async def test_killed_server_ends_the_connection(redis_server, fault_proxy, connect):
    client = await connect()
    await client.ask("PING", size=7)
    redis_server.kill()
    with contextlib.suppress(ConnectionResetError):
        assert await client.reader.read() == b""
    await eventually(lambda: not fault_proxy.connections)


async def test_opaque_bytes_are_forwarded_both_ways(connect):
    async def shout(reader, writer):
        while data := await reader.read(100):
            writer.write(data.upper())
        writer.close()

    server = await asyncio.start_server(shout, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with FaultProxy(port, protocol=None) as proxy:
        client = await connect(proxy)
        client.writer.write(b"*nothing of redis\n")
        assert await client.read(18) == b"*NOTHING OF REDIS\n"
        assert not proxy.requests
        await closed(client.writer)
    server.close()
    await server.wait_closed()


async def test_bytes_that_are_not_a_redis_request_are_forwarded(fault_proxy, connect):
    client = await connect()
    client.writer.write(b"*x\r\n")
    assert await client.read(11) == b"-ERR Protoc"


async def test_proxy_listens_on_a_given_port_and_closes_twice(redis_server):
    port = free_port()
    proxy = FaultProxy(redis_server.port, port=port)
    await proxy.start()
    await proxy.start()
    assert proxy.url == f"redis://127.0.0.1:{port}/0"
    reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
    await proxy.aclose()
    await proxy.aclose()
    with pytest.raises(ConnectionResetError):
        await reader.readexactly(1)
    await closed(writer)
    assert proxy.connections == []


async def test_request_split_into_single_bytes_is_one_request(fault_proxy, connect):
    client = await connect()
    for byte in encode("SET", "k", "a\r\n*b"):
        client.writer.write(bytes([byte]))
        await asyncio.sleep(0)
    assert await client.read(5) == b"+OK\r\n"
    assert fault_proxy.requests == {"SET": 1}


def test_faults_count_from_one():
    with pytest.raises(ValueError, match="must be at least 1"):
        FaultProxy(1).drop_reply("GET", nth=0)
    with pytest.raises(ValueError, match="use reset"):
        FaultProxy(1).reset_after(0, "replies")
