"""The commands, their options and their help; for `probe` only the help and completion."""

from __future__ import annotations

import getpass
import os
import sys
from collections.abc import Sequence  # noqa: TC003 - typer reads the annotations
from typing import TYPE_CHECKING, Annotated
from urllib.parse import quote

import typer

from resilient_io.doctor.urls import kind_of, name_of
from resilient_io.errors import ConfigurationError

from . import PROBLEMS, UNKNOWN, discard_output
from .doctor import plan, run_examinations
from .lint import lint as lint_files
from .lint import read_settings
from .terminal import Report, complain, quiet_loggers, read_text, run_loop, standard_output
from .watch import JsonDisplay, LineDisplay, TableDisplay, watch_targets
from .watch import watch as watch_servers

if TYPE_CHECKING:
    from resilient_io.kafka import DeadLetterFilter

_HELP = {"help_option_names": ["-h", "--help"]}

app = typer.Typer(
    name="resilient-io",
    help="Diagnose Redis and Kafka connections and check Kubernetes manifests.",
    no_args_is_help=True,
    context_settings=_HELP,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

_Json = Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")]
_Seconds = Annotated[
    float, typer.Option(metavar="SECONDS", help="Time limit of each check.", min=0.001)
]
_Urls = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="URL",
        help="redis://[user[:password]@]host:port/db, rediss:// (TLS), unix:///path, "
        "redis+sentinel://host:port,host:port/master/db, "
        "kafka://[user:password@]host:port,host:port or kafkas:// (TLS). Arguments are visible in "
        "the process list: for passwords use --url-env, --url-file or --ask-password.",
        show_default=False,
    ),
]
_UrlEnv = Annotated[
    list[str] | None,
    typer.Option(
        "--url-env",
        metavar="NAME",
        help="Read a URL from an environment variable; repeatable.",
        show_default=False,
    ),
]
_UrlFile = Annotated[
    list[str] | None,
    typer.Option(
        "--url-file",
        metavar="FILE",
        help="Read URLs from a file, one per line, or from standard input (-); repeatable.",
        show_default=False,
    ),
]
_AskPassword = Annotated[
    bool, typer.Option("--ask-password", help="Ask for the password of each URL without one.")
]


def run(arguments: Sequence[str]) -> int:
    """Run a command and return its exit code."""
    try:
        app(args=list(arguments), prog_name="resilient-io")
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else UNKNOWN
    except ConfigurationError as error:
        complain(arguments[0], error)
        return UNKNOWN
    except BrokenPipeError:
        discard_output()
        return PROBLEMS
    return 0


@app.callback()
def _root(
    *,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    del version  # handled before this module is imported


@app.command(short_help="Check whether a service is ready or alive, for exec probes.")
def probe(
    *,
    file: Annotated[
        str | None, typer.Option(metavar="FILE", help="Heartbeat file that the service writes.")
    ] = None,
    url: Annotated[
        str | None, typer.Option(metavar="URL", help="http:// address that answers 2xx for yes.")
    ] = None,
    ready: Annotated[bool, typer.Option("--ready", help="Ask whether it is ready.")] = False,
    live: Annotated[bool, typer.Option("--live", help="Ask whether it is alive.")] = False,
    started: Annotated[bool, typer.Option("--started", help="Ask whether it has started.")] = False,
    max_age: Annotated[float | None, typer.Option(help="Longest age of the heartbeat.")] = None,
    timeout: Annotated[float, typer.Option(help="Time limit for --url.")] = 1.0,
    as_json: _Json = False,
) -> None:
    """Check whether a service is ready or alive, for exec probes.

    This function gives the shell completion; `resilient_io.cli.probe` runs the command.
    """
    del file, url, ready, live, started, max_age, timeout, as_json


@app.command(short_help="Probe servers repeatedly, like ping, and sum up.")
def watch(
    urls: _Urls = None,
    *,
    url_env: _UrlEnv = None,
    url_file: _UrlFile = None,
    ask_password: _AskPassword = False,
    count: Annotated[
        int | None,
        typer.Option(
            "--count",
            "-c",
            metavar="N",
            min=1,
            help="End after N lines per server, counted from the first known states on.",
            show_default=False,
        ),
    ] = None,
    interval: Annotated[
        float,
        typer.Option("--interval", "-i", metavar="SECONDS", min=0.05, help="Time between lines."),
    ] = 1.0,
    timeout: _Seconds = 1.0,
    as_json: _Json = False,
) -> None:
    """Probe servers repeatedly, like ping, until Ctrl-C; then sum up.

    Exit code: 0 no server was down, 1 one was down or never answered, 2 wrong command line.
    """
    servers = read_urls(
        urls or [], variables=url_env or [], files=url_file or [], ask_password=ask_password
    )
    if not servers:
        raise ConfigurationError("nothing to watch: pass a URL, --url-env NAME or --url-file FILE")
    targets = watch_targets(servers, interval=interval, timeout=timeout)
    console = standard_output()
    quiet_loggers()
    for_people = TableDisplay(console) if console.is_terminal else LineDisplay()
    display = JsonDisplay() if as_json else for_people
    raise typer.Exit(
        run_loop(
            lambda interruption: watch_servers(
                targets, display, interruption, interval=interval, count=count
            )
        )
    )


@app.command(short_help="Diagnose Redis and Kafka servers and the local environment.")
def doctor(
    urls: _Urls = None,
    *,
    url_env: _UrlEnv = None,
    url_file: _UrlFile = None,
    ask_password: _AskPassword = False,
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", help="Time limit per URL.", min=0.001)
    ] = 5.0,
    group: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Kafka consumer group to check.", show_default=False),
    ] = None,
    with_host: Annotated[
        bool, typer.Option("--host/--no-host", help="Check CPU, memory and kernel of this host.")
    ] = True,
    as_json: _Json = False,
) -> None:
    """Diagnose servers and this host step by step. Without a URL, only this host.

    Exit code: 0 no problem, 1 problems, 2 something could not be checked, or wrong command line.
    """
    servers = read_urls(
        urls or [], variables=url_env or [], files=url_file or [], ask_password=ask_password
    )
    examinations = plan(servers, timeout=timeout, group=group, with_host=with_host)
    report = Report(standard_output(), as_json=as_json)
    quiet_loggers()
    raise typer.Exit(
        run_loop(lambda interruption: run_examinations(examinations, report, interruption))
    )


@app.command(short_help="Check Kubernetes manifests against the service's timeouts.")
def lint(
    files: Annotated[
        list[str], typer.Argument(metavar="FILE", help="Manifests; - for standard input.")
    ],
    *,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=SECONDS",
            help="Timeout of the service, such as grace-period=25; repeatable.",
            show_default=False,
        ),
    ] = None,
    as_json: _Json = False,
) -> None:
    """Check Kubernetes manifests against the service's timeouts.

    The timeouts come from annotations of the workload or its pods, such as
    resilient-io/grace-period: "25", from variables such as RESILIENT_IO_GRACE_PERIOD, or from
    --set: grace-period, drain-delay, deadline, health-interval, health-timeout, liveness-window,
    drain-timeout, handler-timeout, max-poll-interval. Otherwise the library's defaults are used.

    Exit code: 0 no findings, 1 findings, 2 a file is not a manifest, or wrong command line.
    """
    texts = {}
    for path in files:
        name = "standard input" if path == "-" else path
        texts[name] = read_text(path, f"cannot read {name}")
    report = Report(standard_output(), as_json=as_json)
    raise typer.Exit(lint_files(texts, read_settings(settings or []), report))


dead_letters = typer.Typer(
    help="List, show and replay dead letters of Kafka.",
    short_help="List, show and replay dead letters of Kafka.",
    no_args_is_help=True,
    context_settings=_HELP,
)
app.add_typer(dead_letters, name="dlq")

_Topic = Annotated[str, typer.Argument(metavar="TOPIC", help="The topic of the dead letters.")]
_Url = Annotated[
    str | None,
    typer.Option(
        "--url",
        metavar="URL",
        help="kafka://[user:password@]host:port,host:port or kafkas:// (TLS).",
        show_default=False,
    ),
]
_Original = Annotated[
    str | None,
    typer.Option("--topic", metavar="NAME", help="Only from this topic.", show_default=False),
]
_Since = Annotated[
    str | None,
    typer.Option(metavar="TIME", help="Only written since (ISO 8601).", show_default=False),
]
_Until = Annotated[
    str | None,
    typer.Option(metavar="TIME", help="Only written before (ISO 8601).", show_default=False),
]
_Key = Annotated[
    str | None, typer.Option(metavar="KEY", help="Only with this key.", show_default=False)
]
_Error = Annotated[
    str | None,
    typer.Option(metavar="TEXT", help="Only whose error contains this.", show_default=False),
]


@dead_letters.command("list", short_help="Count dead letters by topic and error.")
def list_dead_letters(
    topic: _Topic,
    *,
    url: _Url = None,
    url_env: _UrlEnv = None,
    url_file: _UrlFile = None,
    ask_password: _AskPassword = False,
    original: _Original = None,
    since: _Since = None,
    until: _Until = None,
    key: _Key = None,
    error: _Error = None,
    as_json: _Json = False,
) -> None:
    """Count the dead letters of a topic by original topic and error.

    Exit code: 0, 1 Kafka did not answer, 2 wrong command line.
    """
    cluster = _kafka_url(url, url_env, url_file, ask_password=ask_password)
    select = _dead_letter_filter(original, since, until, key, error)
    from .dlq import list_letters  # noqa: PLC0415 - only this command needs the driver

    quiet_loggers()
    raise typer.Exit(
        run_loop(
            lambda interruption: list_letters(cluster, topic, select, interruption, as_json=as_json)
        )
    )


@dead_letters.command("show", short_help="Show single dead letters with their contents.")
def show_dead_letters(
    topic: _Topic,
    *,
    url: _Url = None,
    url_env: _UrlEnv = None,
    url_file: _UrlFile = None,
    ask_password: _AskPassword = False,
    original: _Original = None,
    since: _Since = None,
    until: _Until = None,
    key: _Key = None,
    error: _Error = None,
    limit: Annotated[int, typer.Option(metavar="N", min=1, help="Show at most N.")] = 10,
    as_json: _Json = False,
) -> None:
    """Show single dead letters with their error, headers, key and value.

    Exit code: 0, 1 Kafka did not answer, 2 wrong command line.
    """
    cluster = _kafka_url(url, url_env, url_file, ask_password=ask_password)
    select = _dead_letter_filter(original, since, until, key, error)
    from .dlq import show_letters  # noqa: PLC0415 - as above

    quiet_loggers()
    raise typer.Exit(
        run_loop(
            lambda interruption: show_letters(
                cluster, topic, select, interruption, limit=limit, as_json=as_json
            )
        )
    )


@dead_letters.command("replay", short_help="Send dead letters to their topics again.")
def replay(
    topic: _Topic,
    *,
    url: _Url = None,
    url_env: _UrlEnv = None,
    url_file: _UrlFile = None,
    ask_password: _AskPassword = False,
    original: _Original = None,
    since: _Since = None,
    until: _Until = None,
    key: _Key = None,
    error: _Error = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count.")] = False,
    rate: Annotated[
        float, typer.Option(metavar="N", min=0.001, help="Most records per second.")
    ] = 100.0,
    max_replays: Annotated[
        int, typer.Option(metavar="N", min=1, help="Leave what was replayed N times before.")
    ] = 3,
    as_json: _Json = False,
) -> None:
    """Send dead letters to their original topics again, once each, also after an interruption.

    Exit code: 0, 1 Kafka did not answer, 2 wrong command line, 130 interrupted.
    """
    cluster = _kafka_url(url, url_env, url_file, ask_password=ask_password)
    select = _dead_letter_filter(original, since, until, key, error)
    from .dlq import replay_letters  # noqa: PLC0415 - as above

    quiet_loggers()
    raise typer.Exit(
        run_loop(
            lambda interruption: replay_letters(
                cluster,
                topic,
                select,
                interruption,
                dry_run=dry_run,
                rate=rate,
                max_replays=max_replays,
                as_json=as_json,
            )
        )
    )


def _kafka_url(
    url: str | None,
    variables: list[str] | None,
    files: list[str] | None,
    *,
    ask_password: bool,
) -> str:
    given = read_urls(
        [] if url is None else [url],
        variables=variables or [],
        files=files or [],
        ask_password=ask_password,
    )
    found = list(given.values())
    if len(found) != 1 or kind_of(found[0]) != "kafka":
        raise ConfigurationError(
            "dlq needs one cluster: use --url kafka://host:9092, or --url-env NAME"
        )
    return found[0]


def _dead_letter_filter(
    topic: str | None, since: str | None, until: str | None, key: str | None, error: str | None
) -> DeadLetterFilter:
    from resilient_io.kafka import DeadLetterFilter  # noqa: PLC0415 - only this needs the driver

    from .dlq import read_time  # noqa: PLC0415 - as above

    return DeadLetterFilter(
        topic=topic,
        since=read_time("--since", since),
        until=read_time("--until", until),
        key=key,
        error=error,
    )


def read_urls(
    urls: Sequence[str],
    *,
    variables: Sequence[str] = (),
    files: Sequence[str] = (),
    ask_password: bool = False,
) -> dict[str, str]:
    """Return the URLs of all sources by the names of their servers, such as "redis cache:6379/0".

    A file has one URL per line; "-" is the standard input. No error message contains a password.
    """
    found = [
        *urls,
        *map(_from_environment, variables),
        *(url for path in files for url in _from_file(path)),
    ]
    servers: dict[str, str] = {}
    for url in found:
        complete = _with_password(url) if ask_password else url
        name = name_of(complete)
        if name in servers:
            raise ConfigurationError(f"{name} is given twice: remove one of the URLs")
        servers[name] = complete
    return servers


def _from_environment(variable: str) -> str:
    url = os.environ.get(variable, "").strip()
    if not url:
        raise ConfigurationError(f"--url-env {variable}: this environment variable is not set")
    return url


def _from_file(path: str) -> list[str]:
    lines = map(str.strip, read_text(path, f"--url-file {path}").splitlines())
    urls = [line for line in lines if line and not line.startswith("#")]
    if not urls:
        raise ConfigurationError(f"--url-file {path}: the file contains no URL")
    return urls


def _with_password(url: str) -> str:
    """Return the URL with a password that is asked for, unless it has one."""
    kind = kind_of(url)
    scheme, _, rest = url.partition("://")
    end = min((rest.find(sign) for sign in "/?#" if sign in rest), default=len(rest))
    user, separator, host = rest[:end].rpartition("@")
    if ":" in user:
        return url
    if kind == "kafka" and not user:
        raise ConfigurationError(
            "--ask-password needs a user in the URL: use kafka://user@host:9092"
        )
    if sys.stdin is None or not sys.stdin.isatty():
        raise ConfigurationError(
            "--ask-password needs a terminal: use --url-env NAME or --url-file FILE"
        )
    where = f"{user}{separator}{host}" or rest
    password = getpass.getpass(f"Password for {scheme}://{where}: ")
    return f"{scheme}://{user}:{quote(password, safe='')}@{host}{rest[end:]}"
