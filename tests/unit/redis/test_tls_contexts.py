"""Connections with the same TLS settings share a context, until one of its files is replaced."""

import ssl

import pytest
from redis.asyncio.connection import RedisSSLContext, SSLConnection

from resilient_io.redis import tls
from resilient_io.redis.tls import TLSConfigurationError, load_files
from resilient_io.testing.servers import make_certificates


@pytest.fixture
def created(monkeypatch):
    """Return the list of the contexts that were created."""
    created = []
    create = ssl.create_default_context

    def count(*args, **options):
        created.append(create(*args, **options))
        return created[-1]

    monkeypatch.setattr(ssl, "create_default_context", count)
    monkeypatch.setattr(tls, "_contexts", {})
    return created


def load(**options):
    """Return the context of a new connection."""
    connection = SSLConnection(**options)
    load_files(connection)
    return connection.ssl_context.get()


def test_connections_with_equal_settings_share_a_context(created, tmp_path):
    files = make_certificates(tmp_path)
    options = {
        "ssl_ca_certs": str(files.authority),
        "ssl_certfile": str(files.certificate),
        "ssl_keyfile": str(files.key),
        "ssl_include_verify_flags": [ssl.VerifyFlags.VERIFY_X509_STRICT],
    }
    assert load(**options) is load(**options)
    assert len(created) == 1
    assert load(**options, ssl_check_hostname=False) is not load(**options)
    assert load(**options, ssl_min_version=ssl.TLSVersion.TLSv1_3) is not load(**options)
    assert len(created) == 3


@pytest.mark.parametrize("option", ["ssl_ca_certs", "ssl_certfile", "ssl_keyfile"])
def test_replaced_file_is_read(created, tmp_path, option):
    old, new = tmp_path / "old", tmp_path / "new"
    for folder in (old, new):
        folder.mkdir()
        make_certificates(folder)
    names = {"ssl_ca_certs": "authority.pem", "ssl_certfile": "server.pem"}
    names["ssl_keyfile"] = "server.key"
    options = {each: str(old / name) for each, name in names.items()}
    first = load(**options)
    (new / names[option]).replace(old / names[option])
    if option == "ssl_ca_certs":
        second = load(**options)
        assert second.get_ca_certs() != first.get_ca_certs()
    else:
        with pytest.raises(TLSConfigurationError, match="does not belong to"):
            load(**options)
    assert len(created) > 1


def test_failed_context_is_not_kept(created, tmp_path):
    missing = tmp_path / "authority.pem"
    for _ in range(2):
        with pytest.raises(TLSConfigurationError, match="no such file"):
            load(ssl_ca_certs=str(missing))
    assert len(created) == 2
    make_certificates(tmp_path)
    assert load(ssl_ca_certs=str(missing)).get_ca_certs()


def test_contexts_that_were_not_used_lately_are_dropped(created, monkeypatch):
    monkeypatch.setattr(tls, "_MOST_CONTEXTS", 2)
    ciphers = ["AES128-SHA256", "AES256-SHA256", "AES128-GCM-SHA256"]
    first = load(ssl_ciphers=ciphers[0])
    for each in ciphers[1:]:
        load(ssl_ciphers=each)
    assert len(tls._contexts) == 2
    assert load(ssl_ciphers=ciphers[0]) is not first
    assert len(created) == 4


def test_all_settings_of_the_driver_are_compared():
    """redis-py 8.1 `RedisSSLContext`."""
    assert set(tls._SETTINGS) == set(RedisSSLContext.__slots__) - {"context"}
