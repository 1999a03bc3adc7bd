"""Where a cluster is, and the tokens to log in with."""

import asyncio

import pytest
from aiokafka.abc import AbstractTokenProvider
from aiokafka.errors import KafkaError

from resilient_io import ConfigurationError
from resilient_io.kafka.connect import Target, TokenFailed, guarded


@pytest.mark.parametrize(
    ("servers", "bootstrap", "name"),
    [
        ("localhost", [("localhost", 9092)], "kafka localhost:9092"),
        ("a:1, b:2", [("a", 1), ("b", 2)], "kafka a:1,b:2"),
        (["a:1", "a:1", "[::1]:3"], [("a", 1), ("::1", 3)], "kafka a:1,[::1]:3"),
        (
            ("a:1", "b:1", "c:1", "d:1"),
            [("a", 1), ("b", 1), ("c", 1), ("d", 1)],
            "kafka a:1,b:1,c:1,…",
        ),
    ],
)
def test_addresses_are_read_in_every_way_that_aiokafka_takes_them(servers, bootstrap, name):
    target = Target(servers)
    assert target.bootstrap == bootstrap
    assert target.name == name
    assert Target(target.client_options()["bootstrap_servers"]).bootstrap == bootstrap


@pytest.mark.parametrize(
    "servers",
    ["", [], "a:b", "a:0", "a:99999", ":9092", "kafka://a:1", "me:secret-word@a:1", None, [1]],
)
def test_what_is_no_address_is_refused_without_showing_a_secret(servers):
    with pytest.raises(ConfigurationError, match="kafka-1:9092") as caught:
        Target(servers)
    assert "secret-word" not in str(caught.value)


def test_brokers_seen_come_before_the_bootstrap_servers_and_are_not_forgotten_for_nothing():
    target = Target("boot:1")
    assert target.addresses() == [("boot", 1)]
    target.saw({1: ("a", 1), 2: ("boot", 1)})
    assert target.addresses() == [("a", 1), ("boot", 1)]
    target.saw({})
    assert target.brokers == {1: ("a", 1), 2: ("boot", 1)}


class Provider(AbstractTokenProvider):
    def __init__(self, answer):
        self.answer = answer

    async def token(self):
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


@pytest.mark.parametrize(
    "answer",
    [ValueError("secret-word"), OSError(), None, b"secret-word", "", asyncio.CancelledError()],
)
async def test_whatever_a_token_provider_does_only_errors_of_kafkas_escape(answer):
    options = {
        "security_protocol": "SASL_PLAINTEXT",
        "sasl_mechanism": "OAUTHBEARER",
        "sasl_oauth_token_provider": Provider(answer),
    }
    provider = Target("a:1", options).client_options()["sasl_oauth_token_provider"]
    with pytest.raises(TokenFailed) as caught:
        await provider.token()
    assert isinstance(caught.value, KafkaError)
    assert "secret-word" not in str(caught.value)


async def test_the_callers_own_cancel_passes_through_a_token_provider():
    class Slow(AbstractTokenProvider):
        async def token(self):
            await asyncio.sleep(60)

    waiting = asyncio.create_task(guarded(Slow()).token())
    await asyncio.sleep(1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_a_good_token_and_its_extensions_pass():
    class Extended(Provider):
        def extensions(self):
            return {"traceId": "1"}

    provider = guarded(Extended("good"))
    assert guarded(provider) is provider
    assert await provider.token() == "good"
    assert provider.extensions() == {"traceId": "1"}
    assert guarded(Provider("good")).extensions() == {}


def test_what_gives_no_tokens_is_refused():
    class Blocking:
        def token(self):
            return "x"

    for wrong in (object(), Blocking()):
        with pytest.raises(ConfigurationError, match="async def token"):
            guarded(wrong)
