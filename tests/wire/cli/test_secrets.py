"""No secret of a URL is printed, wherever it is and however the command fails."""

import socket
import threading

import pytest

from resilient_io.cli.__main__ import main

CANARY = "c4n4ryS3cret"

URLS = [
    f"redis://:{CANARY}@127.0.0.1:1",
    f"redis://user:{CANARY}@127.0.0.1:1/0",
    f"redis://{CANARY}:{CANARY}@127.0.0.1:1/0",
    f"redis://user:{CANARY}%40%2F@127.0.0.1:1",
    f"redis://user:{CANARY}@127.0.0.1:port",
    f"redis://user:{CANARY}@127.0.0.1:99999",
    f"redis://user:{CANARY}@127.0.0.1:1/database",
    f"redis://user:a/{CANARY}@127.0.0.1:1",
    f"redis://user:a?{CANARY}@127.0.0.1:1",
    f"redis://user:a?{CANARY}=1@127.0.0.1:1",
    f"redis://user:a#{CANARY}@127.0.0.1:1",
    f"redis://user:a@{CANARY}@127.0.0.1:1",
    f"redis://user:a[{CANARY}]b@127.0.0.1:1",
    f"redis://user:{CANARY}\u2100@127.0.0.1:1",
    f"redis://user:{CANARY}",
    f"redis://127.0.0.1:1?password={CANARY}",
    f"redis://127.0.0.1:1?username=u&password={CANARY}&foo=bar",
    f"redis://127.0.0.1:1?password={CANARY}&db=x",
    f"redis://127.0.0.1:1?password={CANARY}&socket_timeout=x",
    f"redis://user:{CANARY}@no-such-host.invalid",
    f"rediss://user:{CANARY}@127.0.0.1:1",
    f"rediss://user:{CANARY}@127.0.0.1:1?ssl_ca_certs=/nowhere",
    f"rediss://127.0.0.1:1?ssl_password={CANARY}",
    f"unix://user:{CANARY}@/no/such/socket",
    f"unix:///no/such/socket?password={CANARY}",
    f"kafka://user:{CANARY}@127.0.0.1:1",
    f"kafka://:{CANARY}@127.0.0.1:1",
    f"kafka://user:a/{CANARY}@127.0.0.1:1",
    f"kafka://user:a?{CANARY}@127.0.0.1:1",
    f"kafka://user:a#{CANARY}@127.0.0.1:1",
    f"kafka://user:a[{CANARY}]b@127.0.0.1:1",
    f"kafka://user:{CANARY}\u2100@127.0.0.1:1",
    f"kafka://user:{CANARY}",
    f"kafka://user:{CANARY}@127.0.0.1:1?sasl_mechanism=OTHER",
    f"kafka://user:{CANARY}@127.0.0.1:1?foo=bar",
    f"kafkas://user:{CANARY}@127.0.0.1:1?ssl_cafile=/nowhere",
    f"http://user:{CANARY}@127.0.0.1:1",
    f"user:{CANARY}@127.0.0.1:1",
    f"127.0.0.1:{CANARY}",
    CANARY,
]


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize(
    "arguments",
    [
        ["doctor", "--no-host", "--timeout", "0.3"],
        ["doctor", "--no-host", "--timeout", "0.3", "--json"],
        ["watch", "--count", "1", "--timeout", "0.3", "--interval", "0.1"],
        ["watch", "--count", "1", "--timeout", "0.3", "--interval", "0.1", "--json"],
        ["probe", "--url"],
        ["probe"],
    ],
    ids=" ".join,
)
def test_secret_of_a_url_is_not_printed(capfd, caplog, arguments, url):
    code = main([*arguments, url])
    shown = capfd.readouterr()
    assert code in (1, 2)
    assert CANARY not in shown.out + shown.err + caplog.text
    assert "Traceback" not in shown.err


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize("command", ["doctor", "watch"])
def test_secret_of_the_environment_is_not_printed(capfd, monkeypatch, command, url):
    monkeypatch.setenv("SERVER_URL", url)
    options = ["--no-host"] if command == "doctor" else ["--count", "1", "--interval", "0.1"]
    assert main([command, "--url-env", "SERVER_URL", "--timeout", "0.3", *options]) in (1, 2)
    shown = capfd.readouterr()
    assert CANARY not in shown.out + shown.err


class QuotingServer(threading.Thread):
    """A server without HELLO or AUTH, whose errors quote the arguments and drive the terminal."""

    def __init__(self):
        super().__init__(daemon=True)
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]

    def run(self):
        with self.socket:
            while True:
                try:
                    connection, _ = self.socket.accept()
                except OSError:
                    return
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection):
        with connection:
            while data := connection.recv(65536):
                words = [word for word in data.split(b"\r\n") if word and word[:1] not in b"*$"]
                quoted = b" ".join(b"'%s'" % word for word in words[1:])
                connection.sendall(
                    b"-ERR unknown command '%s\x1b[31m', with args beginning with: %s\r\n"
                    % (words[0], quoted)
                )


@pytest.fixture
def quoting_server():
    server = QuotingServer()
    server.start()
    yield server
    server.socket.shutdown(socket.SHUT_RDWR)  # ends the wait for connections
    server.join(5)


@pytest.mark.parametrize("login", [f"user:{CANARY}", f":{CANARY}"])
@pytest.mark.parametrize("as_json", [[], ["--json"]])
@pytest.mark.parametrize("command", ["doctor", "watch"])
def test_secret_that_the_server_quotes_is_not_printed(
    capfd, quoting_server, command, as_json, login
):
    options = ["--no-host"] if command == "doctor" else ["--count", "1", "--interval", "0.1"]
    url = f"redis://{login}@127.0.0.1:{quoting_server.port}"
    assert main([command, url, "--timeout", "1", *options, *as_json]) == 1
    shown = capfd.readouterr()
    assert "unknown command" in shown.out
    assert CANARY not in shown.out + shown.err
    assert "\x1b" not in shown.out + shown.err
