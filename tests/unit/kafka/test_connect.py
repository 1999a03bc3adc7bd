"""Addresses and credentials of a cluster."""

import asyncio

import pytest
from aiokafka import conn
from aiokafka.abc import AbstractTokenProvider
from aiokafka.errors import KafkaError

from resilient_io import ConfigurationError
from resilient_io.kafka.connect import KafkaTarget, TokenFailed, guard_token_provider


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
def test_target_accepts_addresses_in_every_form_that_aiokafka_accepts(servers, bootstrap, name):
    target = KafkaTarget(servers)
    assert target.bootstrap == bootstrap
    assert target.name == name
    assert KafkaTarget(target.client_options()["bootstrap_servers"]).bootstrap == bootstrap


@pytest.mark.parametrize(
    "servers",
    [
        *("", [], "a:b", "a:0", "a:99999", "a:1:2", ":9092", None, [1]),
        *("kafka://a:1", "me:secret-word@a:1", "kafka://me:secret-word"),
    ],
)
def test_target_refuses_invalid_addresses_without_showing_a_secret(servers):
    with pytest.raises(ConfigurationError, match="kafka-1:9092") as caught:
        KafkaTarget(servers)
    assert "secret-word" not in str(caught.value)


def test_a_url_instead_of_addresses_is_quoted_with_what_to_use():
    with pytest.raises(ConfigurationError) as caught:
        KafkaTarget("kafka://me:secret-word@a:1")
    assert "such as 'kafka://…@a:1': pass a URL with kafka:// to from_url()" in str(caught.value)


def test_brokers_seen_precede_the_bootstrap_servers_and_survive_empty_metadata():
    target = KafkaTarget("boot:1")
    assert target.addresses() == [("boot", 1)]
    target.update_brokers({1: ("a", 1), 2: ("boot", 1)})
    assert target.addresses() == [("a", 1), ("boot", 1)]
    target.update_brokers({})
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
async def test_token_provider_raises_only_kafka_errors(answer):
    options = {
        "security_protocol": "SASL_PLAINTEXT",
        "sasl_mechanism": "OAUTHBEARER",
        "sasl_oauth_token_provider": Provider(answer),
    }
    provider = KafkaTarget("a:1", options).client_options()["sasl_oauth_token_provider"]
    with pytest.raises(TokenFailed) as caught:
        await provider.token()
    assert isinstance(caught.value, KafkaError)
    assert "secret-word" not in str(caught.value)


async def test_cancellation_of_the_caller_propagates_through_the_token_provider():
    provider = guard_token_provider(Slow(60))
    waiting = asyncio.create_task(provider.token())
    await asyncio.sleep(1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await provider.aclose()


class Slow(AbstractTokenProvider):
    """Numbers its tokens, each of which takes some seconds."""

    def __init__(self, *seconds):
        self.seconds = list(seconds)
        self.asked = 0

    async def token(self):
        self.asked += 1
        number = self.asked
        await asyncio.sleep(self.seconds.pop(0))
        return f"token {number}"


async def in_time(provider, seconds=1.0):
    """Return the token, or None if the attempt to connect times out."""
    try:
        async with asyncio.timeout(seconds):
            return await provider.token()
    except TimeoutError:
        return None


async def test_a_token_that_takes_longer_than_an_attempt_to_connect_is_for_the_next_one():
    slow = Slow(2.5, 0.1)
    provider = guard_token_provider(slow)
    assert [await in_time(provider) for _ in range(3)] == [None, None, "token 1"]
    assert await in_time(provider) == "token 2", "a token is used for one attempt"


async def test_attempts_at_the_same_time_share_a_request_for_a_token():
    slow = Slow(0.5)
    provider = guard_token_provider(slow)
    tokens = await asyncio.gather(*[in_time(provider) for _ in range(5)])
    assert (tokens, slow.asked) == (["token 1"] * 5, 1)


async def test_a_token_that_came_too_late_is_not_kept_for_long():
    slow = Slow(2.0, 0.1)
    provider = guard_token_provider(slow)
    assert await in_time(provider) is None
    await asyncio.sleep(15)
    assert await in_time(provider) == "token 2"


async def test_a_request_for_a_token_that_hangs_is_replaced():
    slow = Slow(1e6, 0.1)
    provider = guard_token_provider(slow)
    assert await in_time(provider, 29) is None
    assert await in_time(provider, 2) is None
    assert await in_time(provider, 2) == "token 2"


async def test_a_late_error_of_the_provider_is_raised_by_the_next_attempt():
    class Failing(AbstractTokenProvider):
        async def token(self):
            await asyncio.sleep(2)
            raise ValueError

    provider = guard_token_provider(Failing())
    assert await in_time(provider) is None
    with pytest.raises(TokenFailed, match="raised ValueError"):
        await in_time(provider, 2)


async def test_closing_ends_a_request_for_a_token():
    target = KafkaTarget("a:1", {"sasl_oauth_token_provider": Slow(1e6)})
    provider = target.client_options()["sasl_oauth_token_provider"]
    assert await in_time(provider) is None
    await target.aclose()
    await target.aclose()
    assert len(asyncio.all_tasks()) == 1


async def test_good_token_and_its_extensions_are_passed_on():
    class Extended(Provider):
        def extensions(self):
            return {"traceId": "1"}

    provider = guard_token_provider(Extended("good"))
    assert guard_token_provider(provider) is provider
    assert await provider.token() == "good"
    assert provider.extensions() == {"traceId": "1"}
    assert guard_token_provider(Provider("good")).extensions() == {}


async def steps(provider, answers):
    """Return what a connection with this provider sends, given a broker's answers."""
    options = {"security_protocol": "SASL_PLAINTEXT", "sasl_mechanism": "OAUTHBEARER"}
    connection = conn.AIOKafkaConnection("a", 1, sasl_oauth_token_provider=provider, **options)
    authenticator = connection.authenticator_oauth()
    return [await authenticator.step(answer) for answer in (None, *answers)]


async def test_login_that_the_broker_objects_to_is_carried_on_to_its_verdict():
    token = b"n,,\1auth=Bearer good\1\1", True
    guarded = guard_token_provider(Provider("good"))
    assert await steps(guarded, [b""]) == [token, None]
    reason = b'{"status":"invalid_token"}'
    assert await steps(guarded, [reason, b"more"]) == [token, (b"\1", True), None]
    # A client of aiokafka's own is left alone.
    assert await steps(Provider("good"), [reason]) == [token, None]


def test_object_without_an_async_token_method_is_refused():
    class Blocking:
        def token(self):
            return "x"

    for wrong in (object(), Blocking()):
        with pytest.raises(ConfigurationError, match="async def token"):
            guard_token_provider(wrong)


async def test_secrets_are_the_password_and_the_latest_tokens():
    assert KafkaTarget("a:1").secrets() == ()
    options = {"security_protocol": "SASL_PLAINTEXT", "sasl_plain_password": "secret-word"}
    assert KafkaTarget("a:1", options).secrets() == ("secret-word",)
    provider = Provider("token-0")
    options = {
        "security_protocol": "SASL_PLAINTEXT",
        "sasl_mechanism": "OAUTHBEARER",
        "sasl_oauth_token_provider": provider,
    }
    target = KafkaTarget("a:1", options)
    guarded = target.client_options()["sasl_oauth_token_provider"]
    assert target.secrets() == ()
    for number in range(10):
        provider.answer = f"token-{number}"
        await guarded.token()
        await guarded.token()
    assert target.secrets() == ("token-6", "token-7", "token-8", "token-9")


def test_target_shows_no_secret():
    options = {"security_protocol": "SASL_PLAINTEXT", "sasl_plain_password": "secret-word"}
    target = KafkaTarget("a:1", options)
    assert "secret-word" not in repr(target) + target.name
