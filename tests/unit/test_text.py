"""Text from outside is bounded, and contains no credentials and no control characters."""

import errno
import json
import os
import socket
import ssl
import time

import pytest

from resilient_io.text import (
    clean_text,
    describe_error,
    format_address,
    quote_url,
    redact_credentials,
)

SECRET = "s3cr3t-canary"


@pytest.mark.parametrize("password", ["word", "it's", "a<b>c", "p@ss", "back\\slash", "a/b:c?d#e"])
def test_credentials_of_a_url_are_redacted_whatever_the_password_contains(password):
    address = f"redis://user:{password}@host:6379/0"
    assert redact_credentials(f"{address} is down") == "redis://…@host:6379/0 is down"
    shown = json.loads(redact_credentials(json.dumps({"name": address, "other": "a@b"})))
    assert shown == {"name": "redis://…@host:6379/0", "other": "a@b"}


def test_a_quotation_mark_in_a_password_does_not_end_it_in_json():
    shown = redact_credentials(json.dumps(['redis://user:wo"rd@host', "a@b"]))
    assert json.loads(shown) == ["redis://…@host", "a@b"]


def test_text_without_credentials_is_unchanged():
    for text in ("redis://host:6379/0", 'client="redis://host",mail="a@b"', "no address, a@b"):
        assert redact_credentials(text) == text


@pytest.mark.parametrize(
    "reply",
    [
        f"ERR unknown command 'HELLO', with args beginning with: '3' 'AUTH' 'user' '{SECRET}' ",
        f"ERR unknown command `HELLO`, with args beginning with: `3`, `AUTH`, `u`, `{SECRET}`, ",
        f"ERR unknown command 'AUTH' '{SECRET}'",
        f'ERR bad request "AUTH" "user" "{SECRET}"',
    ],
)
def test_arguments_that_a_server_quotes_are_cut(reply):
    shown = clean_text(reply)
    assert SECRET not in shown
    assert shown.startswith("ERR ")


@pytest.mark.parametrize(
    "text",
    ["NOAUTH Authentication required.", "ERR Client sent AUTH, but no password is set"],
)
def test_an_error_that_only_mentions_auth_is_unchanged(text):
    assert clean_text(text) == text


def test_known_secrets_are_replaced_in_every_form():
    secret = "p@ss word's"
    text = f"{secret} p%40ss%20word%27s {secret!r}"
    assert clean_text(text, secrets=[secret]) == "… … '…'" or "ss" not in clean_text(
        text, secrets=[secret]
    )


def test_a_short_secret_is_replaced_only_as_a_whole_word():
    assert clean_text("a cat: a", secrets=["a"]) == "… cat: …"


@pytest.mark.parametrize("lead", range(1180, 1230))
def test_a_secret_that_the_bound_cuts_in_two_is_replaced(lead):
    text = "x" * lead + SECRET + "y" * 5000
    assert SECRET[:4] not in clean_text(text, limit=2000, secrets=[SECRET])


def test_a_url_that_the_bound_cuts_before_its_host_is_redacted():
    text = "x " * 100 + "redis://user:" + "secret" * 1000 + "@host"
    assert "secret" not in clean_text(text)


def test_the_result_has_at_most_the_limit_and_says_that_it_was_cut():
    assert clean_text("x" * 10_000) == "x" * 299 + "…"
    assert clean_text("x" * 300) == "x" * 300
    assert clean_text("x" * 10_000, limit=10) == "x" * 9 + "…"


@pytest.mark.parametrize(
    "text", ["redis://" * 30_000, "://a" * 60_000, "@" * 240_000, "\\" * 240_000]
)
def test_a_hostile_text_takes_linear_time(text):
    started = time.perf_counter()
    clean_text(text)
    redact_credentials(text)
    assert time.perf_counter() - started < 1.0


def test_control_and_formatting_characters_are_replaced():
    text = "a\x1b[31mred\x07\nnext\u202eline\ud800"
    shown = clean_text(text)
    assert shown == "a�[31mred� next�line�"
    shown.encode()


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://cache:6379/0", "redis://cache:6379/0"),
        ("http://[::1]:80/a", "http://[::1]:80/a"),
        ("unix:///run/redis.sock", "unix:///run/redis.sock"),
        ("kafka://one:9092,two/", "kafka://one:9092,two/"),
        ("redis://me:s3cret@cache/0", "redis://…@cache/0"),
        ("redis://:s3/cr@et@cache", "redis://…@cache"),
        ("redis://me:s3#cret@cache", "redis://…@cache"),
        ("redis://me:s3?cret@cache", "redis://…?…"),
        ("redis://cache?password=s3@cret", "redis://…?…"),
        ("redis://cache?password=s3cret", "redis://cache?…"),
        ("redis://me:s3cret", "redis://me:…"),
        ("redis://me:s3cret/0", "redis://me:…"),
        ("redis://:123456", "redis://:…"),
        ("s3cret://cache", "…://cache"),
        ("me:s3cret@cache:6379", "…@cache:6379"),
        ("cache:6379,password=s3cret", "cache:6379,password…"),
        ("redis://cache s3cret", "redis://cache…"),
        ("redis://cache#s3cret", "redis://cache…"),
        ("redis://@", "redis://…@"),
        ("", ""),
    ],
)
def test_a_quoted_url_contains_nothing_that_may_belong_to_a_password(url, shown):
    assert quote_url(url) == repr(shown)


def test_a_reset_without_a_message_is_described_in_words():
    assert describe_error(ConnectionResetError()) == "connection reset by peer"


def test_an_error_of_the_operating_system_is_described_once_in_words():
    refused = ConnectionRefusedError(errno.ECONNREFUSED, "Connect call failed ('127.0.0.1', 1)")
    assert describe_error(refused) == "connection refused"
    wrapped = RuntimeError("Error 111 connecting to 127.0.0.1:1. Connect call failed")
    wrapped.__cause__ = refused
    assert describe_error(wrapped) == "connection refused"
    several = OSError(
        "Multiple exceptions: [Errno 111] Connect call failed ('::1', 1, 0, 0), "
        "[Errno 111] Connect call failed ('127.0.0.1', 1)"
    )
    assert describe_error(several) == os.strerror(111).lower()


def test_a_failed_name_lookup_is_described_in_words():
    error = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    assert describe_error(error) == "name or service not known"


def test_a_timeout_without_a_message_is_described():
    assert describe_error(TimeoutError()) == "timed out"
    assert describe_error(TimeoutError()) == "timed out"


def test_an_error_of_tls_is_described_without_the_source_line():
    error = ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] wrong version number (_ssl.c:1006)")
    assert describe_error(error) == "wrong version number"


def test_an_error_without_a_message_is_described_by_its_type():
    assert describe_error(KeyError()) == "KeyError"


def test_an_error_is_described_without_secrets():
    assert describe_error(ValueError(f"bad {SECRET}"), secrets=[SECRET]) == "bad …"


def test_an_address_of_ipv6_has_brackets():
    assert format_address("::1", 6379) == "[::1]:6379"
    assert format_address("cache", 6379) == "cache:6379"


def test_a_suppressed_context_is_not_a_cause():
    def fail():
        raise RuntimeError("the credential provider failed") from None

    def handle():
        try:
            os.read(-1, 1)
        except OSError:
            fail()

    with pytest.raises(RuntimeError) as raised:
        handle()
    assert isinstance(raised.value.__context__, OSError)
    assert describe_error(raised.value) == "the credential provider failed"


@pytest.mark.parametrize("text", ["'auth'", "unknown field 'auth' in order 42", "no 'AUTH' header"])
def test_a_text_that_quotes_auth_without_arguments_is_unchanged(text):
    assert clean_text(text) == text
