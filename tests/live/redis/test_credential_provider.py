"""A credential provider that fails for a while: the client recovers when it succeeds."""

import asyncio

import pytest
from redis.credentials import CredentialProvider

from resilient_io import DeadlineExceeded, DependencyUnavailable, ResilientRedis, deadline


class Vault(CredentialProvider):
    """Raises an exception that no driver knows, until it is open."""

    def __init__(self):
        self.open = False
        self.asked = 0

    async def get_credentials_async(self):
        self.asked += 1
        if not self.open:
            raise LookupError("the vault is sealed: hvs.secret")
        return ("worker", "word")


async def test_a_failing_provider_is_called_again_until_it_succeeds(redis_server, caplog):
    await redis_server.query("ACL", "SETUSER", "worker", "on", ">word", "~*", "+@all")
    vault = Vault()
    async with ResilientRedis(
        host=redis_server.host, port=redis_server.port, credential_provider=vault
    ) as redis:
        with (
            pytest.raises((DependencyUnavailable, DeadlineExceeded)) as caught,
            deadline(0.5),
        ):
            await redis.get("a")
        assert "LookupError" in str(caught.value)
        assert "hvs.secret" not in f"{caught.value} {redis.health.detail} {caplog.text}"
        assert redis.liveness_failure() is None
        asked = vault.asked
        async with asyncio.timeout(10):
            while vault.asked < asked + 2:  # noqa: ASYNC110 - there is no event for it
                await asyncio.sleep(0.01)
            vault.open = True
            await redis.health.until_up()
            assert await redis.set("a", "b")
        assert redis.liveness_failure() is None
