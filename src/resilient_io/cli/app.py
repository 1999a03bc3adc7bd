"""The commands, their options and their help; for `probe` only the help and completion."""

from __future__ import annotations

from collections.abc import Sequence  # noqa: TC003 - typer reads the annotations
from typing import Annotated

import typer

from resilient_io.errors import ConfigurationError

from .terminal import (
    PROBLEMS,
    UNKNOWN,
    complain,
    discard_output,
    quiet_loggers,
    standard_output,
)

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
    """Run a command and return its exit code.

    Args:
        arguments: Those of the command line.
    """
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
    from .running import run as run_loop  # noqa: PLC0415 - import only what the command needs
    from .servers import read_urls  # noqa: PLC0415 - as above
    from .watch import (  # noqa: PLC0415 - as above
        JsonDisplay,
        LineDisplay,
        TableDisplay,
        watch_targets,
    )
    from .watch import watch as watch_servers  # noqa: PLC0415 - as above

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
    from .doctor import (  # noqa: PLC0415 - import only what the command needs
        JsonReport,
        LineReport,
        TableReport,
        plan,
        run_examinations,
    )
    from .running import run as run_loop  # noqa: PLC0415 - as above
    from .servers import read_urls  # noqa: PLC0415 - as above

    servers = read_urls(
        urls or [], variables=url_env or [], files=url_file or [], ask_password=ask_password
    )
    examinations = plan(servers, timeout=timeout, group=group, with_host=with_host)
    console = standard_output()
    quiet_loggers()
    for_people = TableReport(console) if console.is_terminal else LineReport()
    report = JsonReport() if as_json else for_people
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
    from .lint import lint as lint_files  # noqa: PLC0415 - import only what the command needs
    from .lint import read_files, read_settings  # noqa: PLC0415 - as above

    console = standard_output()
    raise typer.Exit(
        lint_files(
            read_files(files), read_settings(settings or []), console=console, as_json=as_json
        )
    )
