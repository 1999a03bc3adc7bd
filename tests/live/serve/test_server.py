"""The server of our own, over real sockets."""

import asyncio
import contextlib
import logging
import re
import signal
import socket

import pytest

from resilient_io import Dependency, HealthMonitor
from resilient_io.errors import ConfigurationError
from resilient_io.health import Cause
from resilient_io.serve import events, _protocol, _server, serve
from resilient_io.testing import cancel_everywhere


@pytest.fixture
def dependency():
    return Dependency("redis")


@pytest.fixture
async def monitor(dependency):
    async with HealthMonitor(dependency) as made:
        dependency.succeeded(0.001)
        yield made


@pytest.fixture
async def server(monitor):
    async with serve(monitor, host="127.0.0.1", port=0) as made:
        yield made


async def test_many_requests_go_over_one_connection_whatever_their_method(server, connect):
    async with connect(server.port) as connection:
        for _ in range(3):
            reply = await connection.ask("/readyz")
            assert (reply.status, reply.text) == (200, "ready\n")
            head = await connection.ask("/readyz", "HEAD")
            assert (head.status, head.body) == (200, b"")
            assert head.headers["content-length"] == "6"
            assert (await connection.ask("/readyz", "DELETE")).status == 405
            assert (await connection.ask("/nothing")).status == 404
        assert re.fullmatch(r"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT", reply.headers["date"])
        assert "server" not in reply.headers


async def test_requests_that_are_sent_without_waiting_are_answered_in_order(server, connect):
    async with connect(server.port) as connection:
        for path in ("/livez", "/readyz", "/startupz"):
            connection.send(path)
        words = [(await connection.reply()).text for _ in range(3)]
    assert words == ["alive\n", "ready\n", "started\n"]


async def test_a_client_that_asks_for_another_protocol_gets_this_one_without_a_log_record(
    server, ask, caplog
):
    reply = await ask(server.port, "/readyz", upgrade="h2c", http2_settings="AAMAAABkAAQAAP__")
    assert reply.status == 200
    async with asyncio.timeout(10):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"\x16\x03\x01 this is no HTTP\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 400")
        writer.close()
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []


async def test_the_document_comes_by_accept(server, ask):
    reply = await ask(server.port, "/readyz", accept="application/health+json")
    assert reply.headers["content-type"] == "application/health+json"
    assert reply.json()["status"] == "pass"


async def test_it_goes_on_while_the_service_drains(server, monitor, ask, connect):
    async with connect(server.port) as page:
        page.send("/events")
        assert (await page.event())["draining"] is False
        monitor.drain()
        assert (await page.event())["draining"] is True
        assert (await ask(server.port, "/readyz")).status == 503
        assert (await ask(server.port, "/livez")).status == 200
        assert (await page.event())["draining"] is True


async def test_a_change_is_told_to_every_reader_at_once(server, dependency, connect, slack):
    async with connect(server.port) as one, connect(server.port) as two:
        for page in (one, two):
            page.send("/events")
            assert (await page.event())["ready"] is True
        began = asyncio.get_running_loop().time()
        dependency.failed(Cause.REFUSED, definite=True)
        for page in (one, two):
            assert (await page.event())["ready"] is False
        assert asyncio.get_running_loop().time() - began < 0.2 + slack()


async def a_reader_that_takes_nothing(port):
    """Ask for the events with a small receive buffer, and never read."""
    loop = asyncio.get_running_loop()
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    await loop.sock_connect(sock, ("127.0.0.1", port))
    await loop.sock_sendall(sock, b"GET /events HTTP/1.1\r\nhost: service\r\n\r\n")
    return sock


def waiting_to_be_sent(server):
    return [each.transport.get_write_buffer_size() for each in server._connections._open]


async def test_a_reader_that_takes_nothing_costs_little_holds_back_nobody_and_is_cut_off(
    monitor, connect, monkeypatch, until
):
    monkeypatch.setattr(_events, "INTERVAL", 0.005)
    monkeypatch.setattr(_protocol, "STALLED", 4.0)  # longer than the rest takes, also when loaded
    name = "s" * 50_000
    async with serve(monitor, name=name, host="127.0.0.1", port=0) as server:
        with await a_reader_that_takes_nothing(server.port):
            await until(lambda: waiting_to_be_sent(server) > [65536])
            stalled = waiting_to_be_sent(server)
            async with connect(server.port) as page:
                page.send("/events")
                for _ in range(20):
                    await page.event()
                assert waiting_to_be_sent(server)[0] == stalled[0] < 200_000
            await until(lambda: not server._connections._open)


async def test_closing_ends_every_stream_at_once(monitor, connect, slack):
    loop = asyncio.get_running_loop()
    server = serve(monitor, host="127.0.0.1", port=0)
    await server.start()
    async with connect(server.port) as page, connect(server.port) as idle:
        page.send("/events")
        await page.event()
        await idle.ask("/livez")
        began = loop.time()
        await server.aclose()
        assert loop.time() - began < 0.2 + slack()
        with pytest.raises(EOFError):
            await page.event()
        assert await idle.reader.read() == b""
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", server.port)
    await server.aclose()


async def test_closing_is_bounded_whatever_a_client_does(monitor, slack, monkeypatch, until):
    monkeypatch.setattr(_events, "INTERVAL", 0.005)
    loop = asyncio.get_running_loop()
    server = serve(monitor, name="s" * 50_000, host="127.0.0.1", port=0)
    await server.start()
    _, half = await asyncio.open_connection("127.0.0.1", server.port)
    half.write(b"GET /livez HTT")
    with await a_reader_that_takes_nothing(server.port):
        await until(lambda: max(waiting_to_be_sent(server), default=0) > 65536)
        began = loop.time()
        await server.aclose(timeout=0.3)
        assert loop.time() - began < 0.5 + slack()
    half.close()


@pytest.mark.parametrize(
    ("earlier", "half"),
    [
        (0, b""),
        (0, b"GET /livez HTT"),
        (1, b"GET /livez HTT"),
        (1, b"GET /livez HTTP/1.1\r\nhost: service\r\n"),
    ],
)
async def test_a_request_that_never_becomes_complete_is_cut_off(
    server, connect, monkeypatch, earlier, half
):
    monkeypatch.setattr(_protocol, "PATIENCE", 0.2)
    async with connect(server.port) as connection, asyncio.timeout(4):  # uvicorn's own are 5 s
        for _ in range(earlier):
            await connection.ask("/livez")
        connection.writer.write(half)
        with contextlib.suppress(ConnectionResetError):
            assert await connection.reader.read() == b""


async def test_there_are_only_so_many_connections(server, connect, ask, monkeypatch, until):
    monkeypatch.setattr(_protocol, "CONNECTIONS", 2)
    async with connect(server.port) as one, connect(server.port) as two:
        assert (await one.ask("/livez")).status == (await two.ask("/livez")).status == 200
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await ask(server.port, "/livez")
    await until(lambda: not server._connections._open)
    assert (await ask(server.port, "/livez")).status == 200


async def test_a_port_in_use_is_one_error_that_names_the_address(server, monitor):
    other = serve(monitor, host="127.0.0.1", port=server.port)
    with pytest.raises(
        OSError, match=rf"on 127\.0\.0\.1:{server.port}: Address already in use; write"
    ):
        async with other:
            pass
    await server.aclose()
    async with other:  # now it is free
        assert "listening" in repr(other)


async def test_an_address_that_is_nobodys_is_one_error_that_names_it(monitor):
    with pytest.raises(OSError, match=r"on no-such-name\.invalid:8080: .+; write another host="):
        await serve(monitor, host="no-such-name.invalid").start()
    with pytest.raises(OSError, match=r"on 192\.0\.2\.1:8080: "):
        await serve(monitor, host="192.0.2.1").start()


@pytest.mark.parametrize("host", [None, "localhost", "0.0.0.0", ""])
async def test_it_listens_on_the_addresses_that_it_was_given(monitor, ask, host):
    async with serve(monitor, host=host, port=0) as server:
        assert (await ask(server.port, "/livez")).status == 200


async def test_an_address_of_a_name_that_is_not_ours_is_passed_over(monitor, ask, monkeypatch):
    async def resolve(*_):
        return [(socket.AF_INET, "192.0.2.1"), (socket.AF_INET, "127.0.0.1")]

    monkeypatch.setattr(_server, "_resolve", resolve)
    async with serve(monitor, host="localhost", port=0) as server:
        assert (await ask(server.port, "/livez")).status == 200


async def test_it_starts_once_and_closes_as_often_as_one_likes(monitor):
    server = serve(monitor, host="127.0.0.1", port=0)
    await server.start()
    with pytest.raises(RuntimeError, match="starts once"):
        await server.start()
    await server.aclose()
    await server.aclose()
    assert "closed" in repr(server)
    await serve(monitor).aclose()


async def test_the_signals_of_the_process_are_left_alone(monitor):
    def handlers():
        return signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)

    before = handlers()
    async with serve(monitor, host="127.0.0.1", port=0):
        assert handlers() == before


async def test_it_can_be_cancelled_everywhere(monitor):
    async def live():
        async with serve(monitor, host="127.0.0.1", port=0) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            try:
                writer.write(b"GET /events HTTP/1.1\r\nhost: service\r\n\r\n")
                await reader.readuntil(b"data: ")
            finally:
                writer.transport.abort()

    report = await cancel_everywhere(live)
    report.assert_clean()


async def test_its_start_can_be_cancelled_everywhere(monitor):
    async def start():
        server = serve(monitor, host="localhost", port=0)
        try:
            await server.start()
        finally:
            await server.aclose()

    report = await cancel_everywhere(start)
    report.assert_clean()


async def test_what_makes_no_sense_is_refused(monitor):
    with pytest.raises(ConfigurationError, match="port=70000"):
        serve(monitor, port=70_000)
    with pytest.raises(ConfigurationError, match="port="):
        serve(monitor, port="8080")
    with pytest.raises(ConfigurationError, match="host="):
        serve(monitor, host=127)
    with pytest.raises(TypeError, match="HealthMonitor"):
        serve(None)
