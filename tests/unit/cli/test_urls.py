"""Where URLs and passwords come from: arguments, environment, files and a prompt."""

import io

import pytest

from resilient_io import ConfigurationError
from resilient_io.cli import app
from resilient_io.cli.app import read_urls


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def prompts(monkeypatch):
    """Answer prompts with a password of special characters; return the prompts."""
    shown = []

    def ask(prompt):
        shown.append(prompt)
        return "p@ss/w?rd"

    monkeypatch.setattr(app.getpass, "getpass", ask)
    monkeypatch.setattr("sys.stdin", Terminal())
    return shown


def test_urls_of_all_sources_are_read(monkeypatch, tmp_path):
    monkeypatch.setenv("CACHE_URL", " redis://:s3cret@cache \n")
    path = tmp_path / "urls"
    path.write_text("# servers\nkafka://one:9092\n\nredis://other/1\n")
    found = read_urls(["redis://first"], variables=["CACHE_URL"], files=[str(path)])
    assert found == {
        "redis first:6379/0": "redis://first",
        "redis cache:6379/0": "redis://:s3cret@cache",
        "kafka one:9092": "kafka://one:9092",
        "redis other:6379/1": "redis://other/1",
    }


def test_urls_are_read_from_standard_input(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"redis://cache\n")))
    assert [*read_urls([], files=["-"])] == ["redis cache:6379/0"]


@pytest.mark.parametrize(
    ("variables", "files", "message"),
    [
        (["NO_SUCH"], [], "--url-env NO_SUCH: this environment variable is not set"),
        ([], ["/no/such"], "--url-file /no/such: No such file"),
        ([], ["/dev/null"], "--url-file /dev/null: the file contains no URL"),
    ],
)
def test_missing_source_is_refused(variables, files, message):
    with pytest.raises(ConfigurationError, match=message):
        read_urls([], variables=variables, files=files)


def test_value_of_a_wrong_variable_is_not_quoted(monkeypatch):
    monkeypatch.setenv("PASSWORD", "hunter2")
    with pytest.raises(ConfigurationError) as refused:
        read_urls([], variables=["PASSWORD"])
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "complete", "prompt"),
    [
        ("redis://cache/1", "redis://:{}@cache/1", "redis://cache"),
        ("rediss://me@cache?a=b", "rediss://me:{}@cache?a=b", "rediss://me@cache"),
        ("unix:///run/redis.sock", "unix://:{}@/run/redis.sock", "unix:///run/redis.sock"),
        ("kafka://me@a,b:9092", "kafka://me:{}@a,b:9092", "kafka://me@a,b:9092"),
    ],
)
def test_password_is_asked_for_and_encoded(monkeypatch, prompts, url, complete, prompt):
    monkeypatch.setattr(app, "name_of", str)
    [found] = read_urls([url], ask_password=True).values()
    assert found == complete.format("p%40ss%2Fw%3Frd")
    assert prompts == [f"Password for {prompt}: "]


def test_password_of_the_url_is_not_asked_for(prompts):
    assert [*read_urls(["redis://me:pw@cache"], ask_password=True).values()] == [
        "redis://me:pw@cache"
    ]
    assert prompts == []


def test_password_cannot_be_asked_for_without_a_user_of_kafka_or_a_terminal(monkeypatch, prompts):
    with pytest.raises(ConfigurationError, match="kafka://user@host"):
        read_urls(["kafka://one"], ask_password=True)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    with pytest.raises(ConfigurationError, match="needs a terminal"):
        read_urls(["redis://one"], ask_password=True)
