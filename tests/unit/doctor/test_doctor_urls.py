"""URLs: what can be examined, what is refused in words, and that no secret is quoted."""

import ssl

import pytest

from resilient_io import ConfigurationError
from resilient_io.doctor import examine, ground, read_kafka_url

SECRET = "hunter2"


@pytest.mark.parametrize(
    ("url", "servers"),
    [
        ("kafka://one", ["one:9092"]),
        ("kafka://one:19092/", ["one:19092"]),
        ("kafka://one:1,two,three:3", ["one:1", "two:9092", "three:3"]),
        ("kafka://[::1]:19092,[fe80::1]", ["[::1]:19092", "[fe80::1]:9092"]),
    ],
)
def test_the_servers_of_a_kafka_url(url, servers):
    assert read_kafka_url(url) == {
        "bootstrap_servers": servers,
        "security_protocol": "PLAINTEXT",
    }


def test_a_login_in_a_kafka_url():
    options = read_kafka_url("kafka://me%40home:p%2Fw@one:1?sasl_mechanism=scram-sha-256")
    assert options == {
        "bootstrap_servers": ["one:1"],
        "security_protocol": "SASL_PLAINTEXT",
        "sasl_mechanism": "SCRAM-SHA-256",
        "sasl_plain_username": "me@home",
        "sasl_plain_password": "p/w",
    }


def test_tls_in_a_kafka_url():
    options = read_kafka_url("kafkas://me:pw@one:1?client_id=doctor")
    assert options["security_protocol"] == "SASL_SSL"
    assert options["client_id"] == "doctor"
    assert options["ssl_context"].verify_mode is ssl.CERT_REQUIRED
    assert options["ssl_context"].check_hostname
    options = read_kafka_url("kafkas://one:1?ssl_check_hostname=no")
    assert options["security_protocol"] == "SSL"
    assert not options["ssl_context"].check_hostname
    assert options["ssl_context"].verify_mode is ssl.CERT_REQUIRED
    options = read_kafka_url("kafkas://one:1?ssl_verify=no")
    assert options["ssl_context"].verify_mode is ssl.CERT_NONE


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("kafka://", "names no server"),
        ("kafka://one:1/topic", "more than servers"),
        (f"kafka://me:{SECRET}/x@one:1", "more than servers"),
        ("kafka://one:0", "no port"),
        ("kafka://one:99999", "no port"),
        (f"kafka://me:{SECRET}", "no port"),
        ("kafka://:9092", "no port"),
        ("kafka://me@one", "half a login"),
        (f"kafka://:{SECRET}@one", "half a login"),
        ("kafka://one?sasl_mechanism=PLAIN", "needs a user"),
        (f"kafka://me:{SECRET}@one?sasl_mechanism=GSSAPI", "one of PLAIN"),
        ("kafka://one?ssl_cafile=x.pem", "no effect without TLS"),
        ("kafkas://one?ssl_cafile=/nowhere/x.pem", "cannot be used"),
        ("kafka://one?acks=all", "no option"),
        ("kafka://[::1", "cannot be understood"),
        ("redis://one", "no URL of Kafka"),
        ("http://one", "no server that can be examined"),
        ("one:6379", "no server that can be examined"),
        ("", "must be a string"),
        (f"redis://:{SECRET}@one:port", "cannot be understood"),
        (f"redis://:{SECRET}@one:6379/0?no_such_option=1", "cannot work"),
    ],
)
def test_a_url_that_makes_no_sense_is_refused_at_once_without_its_secret(url, said):
    with pytest.raises(ConfigurationError, match=said) as caught:
        (read_kafka_url if "URL of Kafka" in said else examine)(url)
    error = caught.value
    while error is not None:
        assert SECRET not in str(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


@pytest.mark.parametrize(
    "arguments",
    [{"timeout": 0}, {"timeout": "5"}, {"group": ""}, {"topics": [""]}, {"group": "g"}],
)
def test_arguments_that_make_no_sense_are_refused_at_once(arguments):
    with pytest.raises(ConfigurationError):
        examine("redis://localhost", **arguments)


def test_one_topic_is_not_taken_for_a_list_of_letters():
    with pytest.raises(ConfigurationError, match=r"write topics=\['orders'\]"):
        examine("kafka://localhost:9092", topics="orders")


def test_the_ground_refuses_a_time_that_makes_no_sense():
    with pytest.raises(ConfigurationError):
        ground(timeout=-1)
