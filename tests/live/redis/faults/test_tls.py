"""TLS settings that cannot work: one permanent error, which names the file or the option."""

import asyncio
import ssl
from pathlib import Path

import pytest
import trustme

from resilient_io import DeadlineExceeded, DependencyUnavailable, State
from resilient_io.health import Cause
from resilient_io.redis import ResilientRedis


@pytest.fixture
def fail(tls_server, connect, patient):
    """Return a function that returns the error of the first call with the given options."""

    async def run(**options):
        options = {"ssl_ca_certs": str(tls_server.certificates.authority)} | options
        redis = await connect(
            f"rediss://127.0.0.1:{tls_server.tls_port}/0", up=False, policy=patient, **options
        )
        with pytest.raises(DependencyUnavailable) as caught:
            await redis.get("key")
        async with asyncio.timeout(5):
            async for change in redis.health.watch():
                if change.state is State.DOWN:
                    break
        assert redis.health.cause is Cause.TLS
        assert redis.stats().retries == 0
        return str(caught.value)

    return run


async def test_missing_client_certificate_is_named(tls_server, fail):
    await tls_server.query("CONFIG", "SET", "tls-auth-clients", "yes")
    said = await fail()
    assert "certificate required: pass ssl_certfile and ssl_keyfile" in said


async def test_client_certificate_of_another_authority_is_named(tls_server, fail, tmp_path):
    await tls_server.query("CONFIG", "SET", "tls-auth-clients", "yes")
    pair = tmp_path / "client.pem"
    trustme.CA().issue_cert("client").private_key_and_cert_chain_pem.write_to_path(pair)
    said = await fail(ssl_certfile=str(pair), ssl_keyfile=str(pair))
    assert "the server does not accept the client certificate" in said


@pytest.mark.parametrize("option", ["ssl_ca_certs", "ssl_certfile", "ssl_keyfile"])
async def test_missing_file_is_named(tls_server, fail, option):
    server = tls_server.certificates
    pair = {"ssl_certfile": str(server.certificate), "ssl_keyfile": str(server.key)}
    said = await fail(**pair | {option: "/nowhere/missing.pem"})
    assert f"{option} '/nowhere/missing.pem' cannot be read: no such file" in said


async def test_key_of_another_certificate_is_named(tls_server, fail, tmp_path):
    key = tmp_path / "other.key"
    trustme.CA().issue_cert("client").private_key_pem.write_to_path(key)
    certificate = str(tls_server.certificates.certificate)
    said = await fail(ssl_certfile=certificate, ssl_keyfile=str(key))
    assert f"ssl_keyfile {str(key)!r} does not belong to ssl_certfile {certificate!r}" in said


async def test_file_that_is_no_certificate_is_named(fail):
    said = await fail(ssl_ca_certs=__file__)
    assert f"ssl_ca_certs {__file__!r} cannot be used" in said


async def test_encrypted_key_without_a_password_does_not_ask_on_the_terminal(
    tls_server, fail, tmp_path
):
    key = tmp_path / "encrypted.key"
    Path(key).write_text(
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIIB\n-----END ENCRYPTED PRIVATE KEY-----\n"
    )
    certificate = str(tls_server.certificates.certificate)
    said = await fail(ssl_certfile=certificate, ssl_keyfile=str(key))
    assert f"ssl_keyfile {str(key)!r} is encrypted: pass ssl_password" in said


async def test_tls_server_that_closes_connections_is_not_a_configuration_error(tls_server, quick):
    """A load balancer without a server behind it completes TLS and then closes the connection."""
    certificates = tls_server.certificates
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificates.certificate, certificates.key)

    async def close(_reader, writer):
        writer.close()

    async with await asyncio.start_server(close, "127.0.0.1", 0, ssl=context) as balancer:
        port = balancer.sockets[0].getsockname()[1]
        url = f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={certificates.authority}"
        async with ResilientRedis.from_url(url, policy=quick) as redis:
            with pytest.raises(DeadlineExceeded):
                await redis.health.until_up(1.0)
            assert redis.health.cause is Cause.RESET
