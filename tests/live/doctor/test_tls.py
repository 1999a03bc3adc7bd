"""The doctor and TLS: certificates that are valid, expired, for another name, or missing."""

import asyncio
import datetime as dt
import ssl

import pytest
import pytest_asyncio
import trustme

from resilient_io.doctor import Status
from resilient_io.testing import Certificates, RedisServer

NOW = dt.datetime.now(dt.UTC)
DAY = dt.timedelta(days=1)


@pytest_asyncio.fixture
async def tls_redis(tmp_path):
    """Start servers with given certificates, which one authority has signed."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    running = []

    async def start(*hosts, begins=None, ends=None, options=None, **more):
        server = RedisServer(tls=True, options=options, **more)
        issued = authority.issue_cert(*hosts, not_before=begins, not_after=ends)
        files = Certificates(
            tmp_path / "authority.pem", server.folder / "server.pem", server.folder / "server.key"
        )
        issued.private_key_pem.write_to_path(files.key)
        issued.cert_chain_pems[0].write_to_path(files.certificate)
        server.certificates = files
        running.append(server)
        await server.start()
        return server

    yield start
    for server in running:
        await server.aclose()


async def test_valid_certificate(examined, tls_redis):
    server = await tls_redis("127.0.0.1", ends=NOW + 90 * DAY)
    seen = await examined(server.tls_url)
    assert seen["TLS"].status is Status.OK, seen
    assert "TLSv1.3" in seen["TLS"].found
    assert f"valid until {NOW + 90 * DAY:%Y-%m-%d}" in seen["TLS"].found
    assert seen["login"].status is Status.OK


async def test_certificate_that_expires_soon(examined, tls_redis):
    server = await tls_redis("127.0.0.1", ends=NOW + 6.5 * DAY)
    seen = await examined(server.tls_url)
    assert seen["TLS"].status is Status.NOTE
    assert "expires in 6 days" in seen["TLS"].found
    assert seen["login"].status is Status.OK


async def test_expired_certificate(examined, tls_redis):
    server = await tls_redis("127.0.0.1", begins=NOW - 9 * DAY, ends=NOW - 2 * DAY)
    seen = await examined(server.tls_url)
    assert seen.last.name == "TLS"
    assert seen.last.status is Status.PROBLEM
    assert "certificate has expired" in seen.last.found
    assert f"to {NOW - 2 * DAY:%Y-%m-%d}" in seen.last.found
    assert "renew" in seen.last.advice


async def test_certificate_that_is_not_valid_yet(examined, tls_redis):
    server = await tls_redis("127.0.0.1", begins=NOW + 2 * DAY, ends=NOW + 9 * DAY)
    seen = await examined(server.tls_url)
    assert "certificate is not yet valid" in seen.last.found
    assert "clock" in seen.last.advice


async def test_certificate_for_another_name(examined, tls_redis):
    server = await tls_redis("cache.example.com", "other.example.com")
    seen = await examined(server.tls_url)
    assert seen.last.status is Status.PROBLEM
    assert "certificate is not valid for '127.0.0.1'" in seen.last.found
    assert "it is for cache.example.com, other.example.com, from " in seen.last.found
    assert "subjectAltName" in seen.last.advice
    by_name = await examined(server.tls_url.replace("127.0.0.1", "localhost"))
    assert "certificate is not valid for 'localhost'" in by_name.last.found


async def test_unknown_authority(examined, tls_redis):
    server = await tls_redis("127.0.0.1")
    seen = await examined(f"rediss://127.0.0.1:{server.tls_port}")
    assert seen.last.name == "TLS"
    assert "self-signed certificate in certificate chain" in seen.last.found
    assert "trustme" in seen.last.found
    assert "ssl_ca_certs=" in seen.last.advice


async def test_unverified_certificate(examined, tls_redis):
    server = await tls_redis("127.0.0.1")
    seen = await examined(f"rediss://127.0.0.1:{server.tls_port}?ssl_cert_reqs=none")
    assert seen["TLS"].status is Status.NOTE
    assert "not verified" in seen["TLS"].found
    assert seen["login"].status is Status.OK


async def test_certificate_is_checked_without_cryptography(examined, tls_redis, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "cryptography", None)
    server = await tls_redis("127.0.0.1", ends=NOW + 90 * DAY)
    assert (await examined(server.tls_url))["TLS"].found == "TLSv1.3"
    other = await tls_redis("other.example.com")
    found = (await examined(other.tls_url)).last.found
    assert "certificate is not valid for '127.0.0.1'" in found
    assert "it is for" not in found


async def test_server_that_requires_a_client_certificate(examined, tls_redis):
    server = await tls_redis("127.0.0.1", options={"tls-auth-clients": "yes"})
    seen = await examined(server.tls_url)
    assert seen.last.status is Status.PROBLEM, seen
    assert "client certificate" in " ".join(seen.last.advice.split())
    certificates = server.certificates
    seen = await examined(
        f"{server.tls_url}&ssl_certfile={certificates.certificate}&ssl_keyfile={certificates.key}"
    )
    assert seen["login"].status is Status.OK, seen


async def test_certificate_file_that_does_not_exist(examined, tls_redis):
    server = await tls_redis("127.0.0.1")
    seen = await examined(f"rediss://127.0.0.1:{server.tls_port}?ssl_ca_certs=/nowhere/ca.pem")
    assert seen.last.name == "TLS"
    assert "cannot be used" in seen.last.found
    assert "PEM" in seen.last.advice


async def test_tls_to_a_plain_redis_port(examined, redis_server):
    seen = await examined(f"rediss://127.0.0.1:{redis_server.port}")
    assert seen.last.name == "TLS"
    assert "answers, but not over TLS" in seen.last.found
    assert "redis://" in seen.last.advice


async def test_plain_connection_to_a_tls_port(examined, tls_redis):
    server = await tls_redis("127.0.0.1")
    seen = await examined(f"redis://127.0.0.1:{server.tls_port}")
    assert seen.last.name == "login"
    assert "uses TLS, but the URL does not" in seen.last.found
    assert "rediss://" in seen.last.advice


async def test_server_that_does_not_answer_in_the_handshake(examined, slack):
    async def listen(reader, writer):
        await reader.read()
        writer.close()

    async with await asyncio.start_server(listen, "127.0.0.1", 0) as silent:
        port = silent.sockets[0].getsockname()[1]
        began = asyncio.get_running_loop().time()
        seen = await examined(f"rediss://127.0.0.1:{port}", timeout=2.0)
        assert asyncio.get_running_loop().time() - began < 2.5 + slack()
    assert seen.last.name == "TLS"
    assert seen.last.status is Status.PROBLEM
    assert "does not answer in the TLS handshake" in seen.last.found


@pytest.mark.parametrize("scheme", ["kafkas", "rediss"])
async def test_server_that_closes_the_connection_in_the_handshake(examined, scheme):
    async def hang_up(reader, writer):
        await reader.read(1)
        writer.transport.abort()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as rude:
        seen = await examined(f"{scheme}://127.0.0.1:{rude.sockets[0].getsockname()[1]}")
    assert seen.last.name == "TLS"
    assert "closed the connection in the handshake" in seen.last.found


@pytest_asyncio.fixture
async def tls_to_kafka(shared_kafka, tmp_path):
    """Accept TLS in front of the shared broker, which has none; return the port and the CA."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)

    async def pass_on(reader, writer):
        try:
            while data := await reader.read(1 << 16):
                writer.write(data)
        except OSError:
            pass  # the doctor closes connections abruptly
        finally:
            writer.transport.abort()

    async def serve(reader, writer):
        there, back = await asyncio.open_connection("127.0.0.1", shared_kafka.port)
        async with asyncio.TaskGroup() as group:
            group.create_task(pass_on(reader, back))
            group.create_task(pass_on(there, writer))

    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context) as server:
        yield server.sockets[0].getsockname()[1], tmp_path / "authority.pem"


async def test_kafka_behind_tls_with_brokers_that_advertise_a_plain_port(examined, tls_to_kafka):
    port, trusted = tls_to_kafka
    seen = await examined(f"kafkas://127.0.0.1:{port}?ssl_cafile={trusted}", timeout=10.0)
    assert seen["TLS"].status is Status.OK, seen
    assert seen["login"].status is Status.OK
    assert seen["listeners"].status is Status.PROBLEM
    assert "connected, but" in seen["listeners"].found
    seen = await examined(f"kafkas://127.0.0.1:{port}", timeout=10.0)
    assert "unable to get local issuer certificate" in seen.last.found
    assert "ssl_cafile=" in seen.last.advice
    seen = await examined(f"kafka://127.0.0.1:{port}", timeout=10.0)
    assert seen.last.name == "login"
    assert "uses TLS, but the URL does not" in seen.last.found
    assert "kafkas://" in seen.last.advice
