"""`resilient-io probe` on a running service, by its heartbeat file and over HTTP."""

import asyncio
import contextlib
import json
import sys
import time

import pytest

from resilient_io import HealthMonitor, HealthSettings, ResilientRedis
from resilient_io.cli.probe import Address, fetch, parse_address
from resilient_io.health import Dependency
from resilient_io.serve import Heartbeat, serve

QUICK = HealthSettings(interval=0.1, timeout=0.5)


async def until_file_says(path, ready):
    async with asyncio.timeout(20):
        while True:
            if path.exists() and json.loads(path.read_text())["ready"] is ready:
                return
            await asyncio.sleep(0.02)


async def test_probe_follows_a_service_that_loses_its_redis(command, redis_server, tmp_path):
    path = tmp_path / "beat.json"
    health = Dependency("orders redis", settings=QUICK)
    url = f"redis://127.0.0.1:{redis_server.port}"
    async with (
        ResilientRedis.from_url(url, health=health),
        HealthMonitor(health) as monitor,
        Heartbeat(monitor, path),
        serve(monitor, host="127.0.0.1", port=0) as server,
    ):
        readyz = f"http://127.0.0.1:{server.port}/readyz"
        await until_file_says(path, True)
        code, out, err = await command("probe", "--file", str(path))
        assert (code, err) == (0, "")
        assert out.startswith("ready (up, ")
        assert await command("probe", "--url", readyz) == (0, "200: ready\n", "")
        assert (await command("probe", "--file", str(path), "--started"))[0] == 0

        redis_server.kill()
        await until_file_says(path, False)
        code, out, _ = await command("probe", "--file", str(path), "--ready")
        assert code == 1
        assert out.startswith("not ready: orders redis is down: connection refused")
        code, out, _ = await command("probe", "--url", readyz)
        assert code == 1
        assert out.startswith("503: not ready: orders redis is down: connection refused")
        # Its own process works and must not be restarted.
        assert (await command("probe", "--file", str(path), "--live"))[0] == 0
    assert await command("probe", "--file", str(path)) == (1, "not ready: it has stopped\n", "")


async def verdict_on(answer, *, timeout=5.0, pause=0.0, then_hang=False):
    """Probe a server that answers every request with these bytes."""
    ended = asyncio.Event()

    async def serve_one(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            for part in [bytes([byte]) for byte in answer] if pause else [answer]:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(pause)
            if then_hang:
                await reader.read()
        writer.close()
        ended.set()

    server = await asyncio.start_server(serve_one, "127.0.0.1", 0)
    async with server:
        address = parse_address(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/readyz")
        found = await asyncio.to_thread(fetch, address, timeout)
        await ended.wait()
        await asyncio.sleep(0.01)
    return found


@pytest.mark.parametrize(
    ("answer", "good", "said"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\nready\nmore", True, "200: ready"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", True, "204: No Content"),
        (b"HTTP/1.0 503 Service Unavailable\r\n\r\nnot ready: x", False, "503: not ready: x"),
        (b"HTTP/1.1 302 Found\r\nLocation: /\r\n\r\n", False, "302: Found"),
        (b"HTTP/1.1 404 Not Found\r\n\r\n<html>", False, "404: Not Found"),
        (b"HTTP/1.1 200 OK\r\n\r\n\x1b[31mred", True, "200: OK"),
        (b"HTTP/1.1 200 \x1b[31mOK\r\n\r\n", True, "200: "),
        (b"+PONG\r\n", None, "does not speak HTTP"),
        (b"", None, "does not speak HTTP"),
    ],
)
async def test_answer_is_summed_up_in_one_line(answer, good, said):
    found = await verdict_on(answer)
    assert found.good is good
    assert said in found.summary
    assert "\n" not in found.summary


@pytest.mark.parametrize("options", [{"then_hang": True}, {"pause": 0.05}])
async def test_answer_that_does_not_end_times_out(slack, options):
    began = time.monotonic()
    found = await verdict_on(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 100, timeout=0.5, **options)
    assert time.monotonic() - began < 1.0 + slack(0.5)
    assert found.good is False
    assert "did not answer within 0.5 s" in found.summary


async def test_silent_or_missing_server_is_a_no(silent_server):
    silent = await asyncio.to_thread(fetch, Address("127.0.0.1", silent_server, "/"), 0.2)
    assert (silent.good, silent.summary) == (
        False,
        f"127.0.0.1:{silent_server} did not answer within 0.2 s",
    )
    missing = await asyncio.to_thread(fetch, Address("127.0.0.1", 1, "/"), 1.0)
    assert (missing.good, missing.summary) == (
        False,
        "127.0.0.1:1 cannot be reached: Connection refused",
    )
    unknown = await asyncio.to_thread(fetch, Address("no-host.invalid", 80, "/"), 5.0)
    assert unknown.good is False
    assert "no-host.invalid" in unknown.summary


async def test_answer_is_escaped_for_an_ascii_terminal(command, tmp_path):
    path = tmp_path / "beat.json"
    beat = {"at": time.time(), "interval": 1.0, "ready": False, "alive": True, "started": True}
    path.write_text(json.dumps({**beat, "state": "down", "because": ["Bestellungen für Köln"]}))
    prefix = ["env", "PYTHONIOENCODING=ascii", sys.executable, "-m", "resilient_io.cli"]
    code, out, err = await command("probe", "--file", str(path), prefix=prefix)
    assert (code, err) == (1, "")
    assert out == "not ready: Bestellungen f\\xfcr K\\xf6ln\n"
