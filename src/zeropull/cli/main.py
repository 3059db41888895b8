"""The `zeropull` command.

A command imports what it needs by itself. The parts of a node take a second to import, and
`zeropull status` needs none of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console

from zeropull import __version__
from zeropull.admin.client import AdminClient, supervisor_pid
from zeropull.admin.messages import Status, Timeline
from zeropull.cli.config import load_settings
from zeropull.cli.connection import connection_lines
from zeropull.cli.logs import follow_logs
from zeropull.cli.status import show_explanation, show_status
from zeropull.cli.timeline import draw_timeline
from zeropull.cli.timeline_page import render_page
from zeropull.errors import Unavailable, ZeropullError
from zeropull.resources.settings import Settings
from zeropull.telemetry import configure_logging

ADMIN_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 180.0

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,  # they hold secrets
    help="Serve models behind the SageMaker inference API on machines of your own.",
)
Config = Annotated[Path | None, typer.Option(help="TOML file; default /etc/zeropull/zeropull.toml")]
# Whether it can be read is not for Typer to say: without root it cannot, and that is told first.
StateDir = Annotated[Path | None, typer.Option(help="state directory", readable=False)]
Account = Annotated[str | None, typer.Option(help="account id; default: the configured one")]
Name = Annotated[str, typer.Argument(metavar="ENDPOINT")]
BackupFile = Annotated[Path, typer.Argument(metavar="FILE")]
Json = Annotated[bool, typer.Option("--json", help="print data instead")]


@app.command()
def serve(
    config: Config = None,
    state_dir: StateDir = None,
    host: Annotated[str | None, typer.Option(help="address of the client port")] = None,
    port: Annotated[int | None, typer.Option(help="client port, 0 = any free one")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error")] = None,
    fresh_state: Annotated[
        bool, typer.Option("--fresh-state", help="begin anew though the state is missing")
    ] = False,
) -> None:
    """Start everything. Ctrl-C tears it down; SIGTERM detaches, the next start adopts."""
    from zeropull.cli.fitness import refuse_unfit_machine
    from zeropull.daemons.supervisor import Supervisor

    flags = {"serve.host": host, "serve.port": port, "serve.log_level": log_level}
    settings = _settings(config, state_dir, **flags)
    _require_root("serve")
    refuse_unfit_machine(settings)
    configure_logging("supervisor", level=settings.serve.log_level)

    def announce(address: str) -> None:
        with contextlib.suppress(OSError):  # nobody reads it, as behind `| head`
            lines = connection_lines(settings, address, is_private=sys.stdout.isatty())
            print("\n".join(lines), flush=True)

    asyncio.run(Supervisor(replace(settings, fresh_state=fresh_state), announce).run())


@app.command()
def stop(config: Config = None, state_dir: StateDir = None) -> None:
    """End everything that `serve` started, also what a crash has left. Endpoints are kept."""
    settings = _settings(config, state_dir)
    _require_root("stop")
    pid = supervisor_pid(settings.run_dir)
    if pid is not None:
        os.kill(pid, signal.SIGINT)
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while supervisor_pid(settings.run_dir) == pid:
            if time.monotonic() > deadline:
                raise Unavailable(f"process {pid} has not stopped within {STOP_TIMEOUT_S:.0f} s")
            time.sleep(0.05)
        return
    if not settings.database.exists():
        return
    from zeropull.daemons.supervisor import tear_down_without_supervisor

    tear_down_without_supervisor(settings)


@app.command()
def status(config: Config = None, state_dir: StateDir = None, as_json: Json = False) -> None:
    """Endpoints, instances, copies and image caches."""
    found = _admin(_settings(config, state_dir)).status()
    if as_json:
        _print_json(found)
    else:
        show_status(found, _console())


@app.command()
def explain(endpoint: Name, config: Config = None, state_dir: StateDir = None) -> None:
    """Why the endpoint is in its state, and why each instance was wanted."""
    show_explanation(_admin(_settings(config, state_dir)).status(), endpoint, _console())


@app.command()
def timeline(
    endpoint: Name,
    config: Config = None,
    state_dir: StateDir = None,
    account: Account = None,
    as_json: Json = False,
    html: Annotated[Path | None, typer.Option(help="write one self-contained page")] = None,
) -> None:
    """Every launch of the endpoint, stage by stage."""
    data = _admin(_settings(config, state_dir)).timeline(endpoint, account)
    if as_json:
        _print_json(data)
    elif html is not None:
        html.write_text(render_page(data, time.time()), encoding="utf-8")
    else:
        draw_timeline(data, _console(), time.time())


@app.command()
def logs(
    endpoint: Name,
    config: Config = None,
    state_dir: StateDir = None,
    account: Account = None,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="go on as lines come")] = False,
) -> None:
    """What the endpoint's containers wrote to stdout and stderr."""
    admin = _admin(_settings(config, state_dir))
    with contextlib.suppress(KeyboardInterrupt):
        follow_logs(lambda: admin.log_folders(endpoint, account).copies, sys.stdout, follow=follow)


@app.command()
def doctor(config: Config = None, state_dir: StateDir = None, as_json: Json = False) -> None:
    """Check this machine: what is short, what it costs and how to mend it."""
    from zeropull.cli.doctor import run_doctor

    settings = _settings(config, state_dir)
    raise typer.Exit(run_doctor(settings, as_json=as_json))


@app.command()
def backup(file: BackupFile, config: Config = None, state_dir: StateDir = None) -> None:
    """Write the state to a new FILE, also while it is in use.

    Held: every document, such as keys, models, endpoints, scaling. Not held: readings of metrics,
    files of image caches, the configuration file.
    """
    from zeropull.cli.state import backup_lines

    settings = _settings(config, state_dir)
    _require_root("backup")
    print("\n".join(backup_lines(settings, file)))


@app.command()
def restore(file: BackupFile, config: Config = None, state_dir: StateDir = None) -> None:
    """Bring the state back from FILE, which is checked first. The server must not run."""
    from zeropull.cli.state import restore_lines

    settings = _settings(config, state_dir)
    _require_root("restore")
    print("\n".join(restore_lines(settings, file)))


@app.command()
def version() -> None:
    """Print the version."""
    print(__version__)


def main() -> None:
    """Run the command; an error of ours is one sentence and exit code 1."""
    with _errors_as_sentences():
        app()


def _console() -> Console:
    """As wide as the terminal; wide enough for whole rows when it is none."""
    return Console() if sys.stdout.isatty() else Console(width=160)


def _settings(config: Path | None, state_dir: Path | None, **flags: Any) -> Settings:
    return load_settings(
        config=config,
        environment=os.environ,
        flags={"serve.state_dir": str(state_dir) if state_dir else None, **flags},
    )


def _require_root(command: str) -> None:
    if not sys.platform.startswith("linux"):
        raise Unavailable(
            f"`zeropull {command}` needs Linux: containers and EROFS mounts are the kernel's"
        )
    if os.geteuid() != 0:
        raise Unavailable(
            f"`zeropull {command}` needs root, for network namespaces, mounts and containerd: "
            "run it with sudo"
        )


def _admin(settings: Settings) -> AdminClient:
    _require_root("status")
    return AdminClient(settings, timeout_s=ADMIN_TIMEOUT_S)


def _print_json(document: Status | Timeline) -> None:
    print(msgspec.json.format(msgspec.json.encode(document), indent=2).decode())


@contextlib.contextmanager
def _errors_as_sentences() -> Iterator[None]:
    try:
        yield
    except ZeropullError as error:
        print(f"zeropull: {error.reason}", file=sys.stderr)
        raise SystemExit(1) from error
    except BaseExceptionGroup as group:
        ours = _first_of_ours(group)
        if ours is None:
            raise
        print(f"zeropull: {ours.reason}", file=sys.stderr)
        raise SystemExit(1) from group


def _first_of_ours(group: BaseExceptionGroup[BaseException]) -> ZeropullError | None:
    matching = group.subgroup(ZeropullError)
    error: BaseException | None = matching
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error if isinstance(error, ZeropullError) else None


if __name__ == "__main__":
    main()
