"""URLs of servers: how they are read, and that no error quotes a secret."""

import ssl

import pytest

from resilient_io import ConfigurationError, ResilientKafkaConsumer, ResilientKafkaProducer
from resilient_io.doctor import examine, read_kafka_url
from resilient_io.doctor.urls import name_of

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
def test_kafka_url_may_list_several_servers(url, servers):
    assert read_kafka_url(url) == {
        "bootstrap_servers": servers,
        "security_protocol": "PLAINTEXT",
    }


def test_kafka_url_may_have_credentials():
    options = read_kafka_url("kafka://me%40home:p%2Fw@one:1?sasl_mechanism=scram-sha-256")
    assert options == {
        "bootstrap_servers": ["one:1"],
        "security_protocol": "SASL_PLAINTEXT",
        "sasl_mechanism": "SCRAM-SHA-256",
        "sasl_plain_username": "me@home",
        "sasl_plain_password": "p/w",
    }


def test_kafka_url_may_use_tls():
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
    ("url", "message"),
    [
        ("kafka://", "it has no server"),
        ("kafka://one:1/topic", "unexpected path"),
        (f"kafka://me:{SECRET}/x@one:1", "unexpected path"),
        ("kafka://one:0", "'kafka://one:0': the port is not a number"),
        ("kafka://one:99999", "'kafka://one:99999': the port is not a number"),
        (f"kafka://me:{SECRET}", "'kafka://me:…': the port is not a number"),
        ("kafka://:9092", "'kafka://:…': the port is not a number"),
        ("kafka://me@one", "both a user and a password"),
        (f"kafka://:{SECRET}@one", "both a user and a password"),
        ("kafka://one?sasl_mechanism=PLAIN", "needs a user"),
        (f"kafka://me:{SECRET}@one?sasl_mechanism=GSSAPI", "one of PLAIN"),
        ("kafka://one?ssl_cafile=x.pem", "no effect without TLS"),
        ("kafkas://one?ssl_cafile=/nowhere/x.pem", "cannot be used"),
        ("kafka://one?acks=all", "unknown option 'acks'"),
        ("kafka://one?foo=bar", "unknown option 'foo'"),
        (f"kafka://me:a?{SECRET}@one", r"%40"),
        ("kafka://[::1", "invalid Kafka URL 'kafka://…': a host cannot"),
        (f"kafka://me:{SECRET}\u2100@one", "invalid Kafka URL"),
        ("redis://one", "does not name a Kafka cluster"),
        ("http://one", "unsupported scheme of the URL 'http://one'"),
        (f"{SECRET}://one", "unsupported scheme of the URL '…://one': use"),
        ("one:6379", r"no scheme\. Did you mean redis://one:6379\?"),
        ("one:9092", r"no scheme\. Did you mean kafka://one:9092\?"),
        (f":{SECRET}@one:6379", "no scheme; use redis://"),
        (SECRET, "no scheme; use redis://"),
        ("", "must be a non-empty string"),
        (f"redis://:{SECRET}@one:port", "invalid Redis URL 'redis://…@one:…'"),
        (f"redis://u:a[{SECRET}]b@one", "invalid Redis URL"),
        (f"redis://u:{SECRET}\u2100@one", "invalid Redis URL"),
        (f"redis://u:a/{SECRET}@one", "invalid Redis URL 'redis://…@one'"),
        (f"redis://:{SECRET}@one:6379/0?no_such_option=1", "unknown option 'no_such_option'"),
        ("redis://one?foo=bar", "unknown option 'foo'"),
        ("redis://one?socket_timeot=1", "did you mean 'socket_timeout'"),
    ],
)
def test_wrong_url_is_refused_immediately_and_without_its_secret(url, message):
    with pytest.raises(ConfigurationError, match=message) as caught:
        (read_kafka_url if "name a Kafka" in message else examine)(url)
    error = caught.value
    while error is not None:
        assert SECRET not in str(error)
        error = error.__cause__ or error.__context__


@pytest.mark.parametrize(
    ("url", "name"),
    [
        (f"redis://user:{SECRET}@cache:6380/2", "redis cache:6380/2"),
        ("rediss://cache", "redis cache:6379/0"),
        ("unix:///run/redis.sock?db=1", "redis unix:///run/redis.sock"),
        (f"kafka://user:{SECRET}@a:9092,b:9093", "kafka a:9092,b:9093"),
    ],
)
def test_name_of_a_server_is_its_address_without_credentials(url, name):
    assert name_of(url) == name


@pytest.mark.parametrize(
    "arguments",
    [{"timeout": 0}, {"timeout": "5"}, {"group": ""}, {"group": "g"}],
)
def test_wrong_arguments_are_refused_immediately(arguments):
    with pytest.raises(ConfigurationError):
        examine("redis://localhost", **arguments)


def test_kafka_clients_are_created_from_a_url():
    url = "kafka://me:p%40w@one:1,two:2?client_id=shop"
    producer = ResilientKafkaProducer.from_url(url, name="orders", acks=1)
    assert producer.name == "orders"
    assert producer._target.bootstrap == [("one", 1), ("two", 2)]
    assert producer._target.secrets() == ("p@w",)
    consumer = ResilientKafkaConsumer.from_url(url, "orders", group_id="billing", client_id="other")
    assert consumer.group_id == "billing"
    assert consumer._target.client_options()["client_id"] == "other"
    with pytest.raises(ConfigurationError, match="does not name a Kafka cluster: use kafka://"):
        ResilientKafkaProducer.from_url("redis://one:1")
