"""The health server, over real sockets."""

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
from resilient_io.serve import events, serve
from resilient_io.serve import server as module
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


async def test_connection_is_kept_for_many_requests_of_any_method(server, connect):
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


async def test_pipelined_requests_are_answered_in_order(server, connect):
    async with connect(server.port) as connection:
        for path in ("/livez", "/readyz", "/startupz"):
            connection.send(path)
        texts = [(await connection.reply()).text for _ in range(3)]
    assert texts == ["alive\n", "ready\n", "started\n"]


async def test_requests_for_another_protocol_are_answered_without_a_warning(server, ask, caplog):
    reply = await ask(server.port, "/readyz", upgrade="h2c", http2_settings="AAMAAABkAAQAAP__")
    assert reply.status == 200
    async with asyncio.timeout(10):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"\x16\x03\x01 this is not HTTP\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 400")
        writer.close()
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []


async def test_document_is_selected_by_the_accept_header(server, ask):
    reply = await ask(server.port, "/readyz", accept="application/health+json")
    assert reply.headers["content-type"] == "application/health+json"
    assert reply.json()["status"] == "pass"


async def test_server_continues_while_the_service_drains(server, monitor, ask, connect):
    async with connect(server.port) as page:
        page.send("/events")
        assert (await page.event())["draining"] is False
        monitor.drain()
        assert (await page.event())["draining"] is True
        assert (await ask(server.port, "/readyz")).status == 503
        assert (await ask(server.port, "/livez")).status == 200
        assert (await page.event())["draining"] is True


async def test_change_is_sent_to_every_reader_immediately(server, dependency, connect, slack):
    async with connect(server.port) as one, connect(server.port) as two:
        for page in (one, two):
            page.send("/events")
            assert (await page.event())["ready"] is True
        began = asyncio.get_running_loop().time()
        dependency.failed(Cause.REFUSED, definite=True)
        for page in (one, two):
            assert (await page.event())["ready"] is False
        assert asyncio.get_running_loop().time() - began < 0.2 + slack()


async def connect_a_reader_that_reads_nothing(port):
    """Request the events with a small receive buffer, and never read."""
    loop = asyncio.get_running_loop()
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    await loop.sock_connect(sock, ("127.0.0.1", port))
    await loop.sock_sendall(sock, b"GET /events HTTP/1.1\r\nhost: service\r\n\r\n")
    return sock


def unsent(server):
    return [each.unsent for each in server._server.connections]


async def test_reader_that_reads_nothing_costs_little_delays_no_other_and_is_disconnected(
    monitor, connect, monkeypatch, until
):
    monkeypatch.setattr(events, "INTERVAL", 0.005)
    monkeypatch.setattr(
        module, "STALL_TIMEOUT", 4.0
    )  # longer than the rest takes, also on a loaded machine
    name = "s" * 50_000
    async with serve(monitor, name=name, host="127.0.0.1", port=0) as server:
        with await connect_a_reader_that_reads_nothing(server.port):
            await until(lambda: unsent(server) > [65536])
            stalled = unsent(server)
            async with connect(server.port) as page:
                page.send("/events")
                for _ in range(20):
                    await page.event()
                assert unsent(server)[0] == stalled[0] < 200_000
            await until(lambda: not len(server._server.connections))


async def test_closing_ends_every_stream_immediately(monitor, connect, slack):
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
    monkeypatch.setattr(events, "INTERVAL", 0.005)
    loop = asyncio.get_running_loop()
    server = serve(monitor, name="s" * 50_000, host="127.0.0.1", port=0)
    await server.start()
    _, half = await asyncio.open_connection("127.0.0.1", server.port)
    half.write(b"GET /livez HTT")
    with await connect_a_reader_that_reads_nothing(server.port):
        await until(lambda: max(unsent(server), default=0) > 65536)
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
async def test_request_that_never_becomes_complete_is_disconnected(
    server, connect, monkeypatch, earlier, half
):
    monkeypatch.setattr(module, "REQUEST_TIMEOUT", 0.2)
    async with connect(server.port) as connection, asyncio.timeout(4):  # uvicorn's own are 5 s
        for _ in range(earlier):
            await connection.ask("/livez")
        connection.writer.write(half)
        with contextlib.suppress(ConnectionResetError):
            assert await connection.reader.read() == b""


async def test_connection_limit_closes_the_one_that_has_waited_longest(
    server, connect, ask, monkeypatch
):
    monkeypatch.setattr(module, "MAX_CONNECTIONS", 2)
    async with connect(server.port) as one, connect(server.port) as two:
        assert (await one.ask("/livez")).status == (await two.ask("/livez")).status == 200
        assert (await one.ask("/livez")).status == 200
        assert (await ask(server.port, "/livez")).status == 200
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await two.ask("/livez")
        assert (await one.ask("/livez")).status == 200
        assert len(server._server.connections) <= 2


async def test_probes_are_answered_despite_300_half_sent_requests_from_one_client(
    server, connect, ask, until
):
    """A client that sends half a request on 300 connections must not keep the kubelet out."""
    async with contextlib.AsyncExitStack() as half_sent:
        for number in range(300):
            connection = await half_sent.enter_async_context(connect(server.port))
            connection.writer.write(b"GET /livez HTTP/1.1\r\nhost: service\r\n")
            if number % 3 == 2:
                assert (await ask(server.port, "/livez")).status == 200
        await until(lambda: len(server._server.connections) >= module.MAX_CONNECTIONS - 1)
        async with connect(server.port) as prometheus, asyncio.timeout(20):
            for _ in range(98):
                assert (await ask(server.port, "/livez")).status == 200
                assert (await prometheus.ask("/metrics", "HEAD")).status == 200
        assert len(server._server.connections) <= module.MAX_CONNECTIONS


async def test_keep_alive_responses_do_not_wait_for_delayed_acknowledgements(
    server, connect, slack
):
    loop = asyncio.get_running_loop()
    async with connect(server.port) as connection:
        await connection.ask("/readyz")
        began = loop.time()
        for _ in range(20):
            await connection.ask("/readyz")
        assert loop.time() - began < 20 * 0.02 + slack()  # without TCP_NODELAY each takes 0.044 s
        (accepted,) = server._server.connections
        sock = accepted._transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_status_page_can_be_bound_to_another_address(monitor, ask):
    async with (
        serve(monitor, host="127.0.0.1", port=0, status=False) as probes,
        serve(monitor, host="127.0.0.2", port=0) as page,
    ):
        for path in ("/status", "/events"):
            assert (await ask(probes.port, path)).status == 404
        assert (await ask(probes.port, "/readyz")).status == 200
        reader, writer = await asyncio.open_connection("127.0.0.2", page.port)
        writer.write(b"GET /status HTTP/1.0\r\naccept: text/html\r\n\r\n")
        response = await reader.read()
        writer.close()
    assert response.startswith(b"HTTP/1.1 200")
    assert b"script-src 'sha256-" in response


async def test_port_in_use_is_one_error_with_the_address(server, monitor):
    other = serve(monitor, host="127.0.0.1", port=server.port)
    with pytest.raises(
        OSError, match=rf"on 127\.0\.0\.1:{server.port}: Address already in use; use"
    ):
        async with other:
            pass
    await server.aclose()
    async with other:  # now it is free
        assert "listening" in repr(other)


async def test_address_of_another_host_is_one_error_with_the_address(monitor):
    with pytest.raises(OSError, match=r"on no-such-name\.invalid:8080: .+; use another host="):
        await serve(monitor, host="no-such-name.invalid").start()
    with pytest.raises(OSError, match=r"on 192\.0\.2\.1:8080: "):
        await serve(monitor, host="192.0.2.1").start()


@pytest.mark.parametrize("host", [None, "localhost", "0.0.0.0", ""])
async def test_server_listens_on_the_given_addresses(monitor, ask, host):
    async with serve(monitor, host=host, port=0) as server:
        assert (await ask(server.port, "/livez")).status == 200


async def test_address_of_a_host_name_that_cannot_be_used_is_skipped(monitor, ask, monkeypatch):
    async def resolve(*_):
        return [(socket.AF_INET, "192.0.2.1"), (socket.AF_INET, "127.0.0.1")]

    monkeypatch.setattr(module, "_resolve", resolve)
    async with serve(monitor, host="localhost", port=0) as server:
        assert (await ask(server.port, "/livez")).status == 200


async def test_server_closes_idempotently_and_can_be_started_again(monitor, ask, connect):
    server = serve(monitor, host="127.0.0.1", port=0)
    for _ in range(2):
        await server.start()
        with pytest.raises(RuntimeError, match="is listening already"):
            await server.start()
        assert (await ask(server.port, "/livez")).status == 200
        async with connect(server.port) as page:
            page.send("/events")
            assert (await page.event())["ready"] is True
        await server.aclose()
        await server.aclose()
        assert "closed" in repr(server)
    await serve(monitor).aclose()


async def test_server_leaves_the_signals_of_the_process_alone(monitor):
    def handlers():
        return signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)

    before = handlers()
    async with serve(monitor, host="127.0.0.1", port=0):
        assert handlers() == before


async def test_server_can_be_cancelled_everywhere(monitor):
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


async def test_start_can_be_cancelled_everywhere(monitor):
    async def start():
        server = serve(monitor, host="localhost", port=0)
        try:
            await server.start()
        finally:
            await server.aclose()

    report = await cancel_everywhere(start)
    report.assert_clean()


async def test_wrong_arguments_are_rejected(monitor):
    with pytest.raises(ConfigurationError, match="port must be at most 65535, not 70000"):
        serve(monitor, port=70_000)
    with pytest.raises(ConfigurationError, match="port="):
        serve(monitor, port="8080")
    with pytest.raises(TypeError, match="host must be"):
        serve(monitor, host=127)
    with pytest.raises(TypeError, match="HealthMonitor"):
        serve(None)
