"""The commands that may take their time to start: their options, and their help."""

from __future__ import annotations

from collections.abc import Sequence  # noqa: TC003 (typer reads the annotations)
from typing import Annotated

import typer

from resilient_io.cli.exits import COULD_NOT_LOOK, PROBLEMS, let_go_of_output
from resilient_io.cli.terminal import complain, quiet_loggers, standard_output
from resilient_io.errors import ConfigurationError

__all__ = ["run"]

_PASSED_ON = {"ignore_unknown_options": True, "allow_extra_args": True}

app = typer.Typer(
    name="resilient-io",
    help="See what a service sees of its Redis and Kafka, and check what Kubernetes makes of it.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

_Json = Annotated[bool, typer.Option("--json", help="Lines of JSON.")]
_Timeout = Annotated[float, typer.Option(metavar="S", help="Seconds.", min=0.001)]
_URL = typer.Argument(
    metavar="URL",
    help="redis://[user:password@]host:port/db, rediss:// (TLS), unix:///path, "
    "kafka://[user:password@]host:port,host:port or kafkas:// (TLS)",
)
_Urls = Annotated[list[str], _URL]
_AnyUrls = Annotated[list[str] | None, _URL]


def run(arguments: Sequence[str]) -> int:
    """Run a command of this module.

    Args:
        arguments: Of the command line.

    Returns:
        The exit code.
    """
    try:
        app(args=list(arguments), prog_name="resilient-io")
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else COULD_NOT_LOOK
    except ConfigurationError as error:
        complain(arguments[0], error)
        return COULD_NOT_LOOK
    except BrokenPipeError:
        let_go_of_output()
        return PROBLEMS
    return 0


@app.callback()
def _root(
    *,
    version: Annotated[bool, typer.Option("--version", help="The version.")] = False,
) -> None:
    del version  # answered before this module is imported


@app.command(context_settings=_PASSED_ON, add_help_option=False)
def probe() -> None:
    """Ask a service how it is, for exec probes: --file FILE or --url URL."""


@app.command(context_settings=_PASSED_ON, add_help_option=False)
def demo() -> None:
    """Take Redis and Kafka away from plain clients and from ours, and count."""


@app.command()
def watch(
    urls: _Urls,
    *,
    count: Annotated[
        int | None, typer.Option("--count", "-c", metavar="N", min=1, help="End after N looks.")
    ] = None,
    interval: Annotated[
        float,
        typer.Option("--interval", "-i", metavar="S", min=0.05, help="Seconds between looks."),
    ] = 1.0,
    timeout: _Timeout = 1.0,
    as_json: _Json = False,
) -> None:
    """Watch dependencies, like ping, until Ctrl-C; then sum up.

    Exit code: 0 nothing was down, 1 something was, 2 could not look.
    """
    from resilient_io.cli.running import run as run_loop  # noqa: PLC0415 (no loop, no cost)
    from resilient_io.cli.vantage import vantages  # noqa: PLC0415
    from resilient_io.cli.watch import JsonShow, LineShow, watched  # noqa: PLC0415
    from resilient_io.cli.watch_table import TableShow  # noqa: PLC0415

    places = vantages(urls, interval=interval, timeout=timeout)
    console = standard_output()
    quiet_loggers()
    show = JsonShow() if as_json else TableShow(console) if console.is_terminal else LineShow()
    raise typer.Exit(
        run_loop(lambda stop: watched(places, show, stop, interval=interval, count=count))
    )


@app.command()
def doctor(
    urls: _AnyUrls = None,
    *,
    timeout: _Timeout = 5.0,
    group: Annotated[
        str | None, typer.Option(metavar="NAME", help="Consumer group of Kafka to look at.")
    ] = None,
    topic: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Topic to look at; repeatable.")
    ] = None,
    with_ground: Annotated[
        bool, typer.Option("--ground/--no-ground", help="CPU, memory, files, kernel here.")
    ] = True,
    as_json: _Json = False,
) -> None:
    """Examine servers, and what this process stands on, step by step. Without a URL: the latter.

    Exit code: 0 all is well, 1 problems, 2 something could not be looked at.
    """
    from resilient_io.cli.doctor import (  # noqa: PLC0415 (only what is needed)
        JsonReport,
        LineReport,
        TableReport,
        examined,
        plan,
    )
    from resilient_io.cli.running import run as run_loop  # noqa: PLC0415
    from resilient_io.cli.vantage import name_of  # noqa: PLC0415

    given = urls or []
    if not given and not with_ground:
        raise ConfigurationError("--no-ground without a URL leaves nothing to look at")
    examinations = plan(
        given,
        [name_of(url) for url in given],
        timeout=timeout,
        group=group,
        topics=topic or [],
        with_ground=with_ground,
    )
    console = standard_output()
    quiet_loggers()
    terminal = TableReport(console) if console.is_terminal else LineReport()
    report = JsonReport() if as_json else terminal
    raise typer.Exit(run_loop(lambda stop: examined(examinations, report, stop)))


@app.command()
def lint(
    files: Annotated[list[str], typer.Argument(metavar="FILE", help="Manifests; - for stdin.")],
    *,
    told: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=S",
            help="A time of the service in seconds, such as grace=25; repeatable.",
        ),
    ] = None,
    as_json: _Json = False,
) -> None:
    """Hold manifests of Kubernetes against the times of the service.

    Its times are told by annotations such as resilient-io/grace: "25" (of the workload or its
    pods), by variables such as RESILIENT_IO_GRACE, or by --set: grace, notice, start, deadline,
    health-interval, health-timeout, liveness-window, drain-timeout, handler-timeout,
    max-poll-interval. The library's defaults stand for the others.

    Exit code: 0 nothing but notes, 1 errors or warnings, 2 a file is no manifest.
    """
    from resilient_io.cli.lint import lint as check  # noqa: PLC0415 (only what is needed)
    from resilient_io.cli.lint import read, settings  # noqa: PLC0415

    console = standard_output()
    raise typer.Exit(check(read(files), settings(told or []), console=console, as_json=as_json))
