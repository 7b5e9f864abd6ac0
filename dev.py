#!/usr/bin/env python3
"""Runs, tests and checks the server on this machine; needs nothing but Python 3.11 or later.

``python3 dev.py --help`` lists the commands, ``docs/develop.md`` explains them. What they need is made on
first use and kept in ignored folders: ``.venv`` (packages), ``.dev`` (Azurite), ``.data`` (state).
"""

from __future__ import annotations

import sys

if sys.version_info < (3, 11):  # noqa: UP036 - a newcomer's Python may well be older
    sys.exit(f"dev.py needs Python 3.11 or later; this is Python {sys.version.split()[0]}.")

import argparse
import contextlib
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from devhost.azurite import PORTS, Azurite, Installation, free_ports, is_free
from devhost.settings import local_values
from devhost.setup import Environment, Problem, Screen, ensure_writable, exclusive
from devhost.viewer import Package, SignIn, configuration, write_site

ROOT = Path(__file__).resolve().parent
START_SECONDS = 90
_PASSED_ON = ("test", "bench", "load", "import", "export", "migrate", "reindex", "dimse", "dimse-migrate")


def main() -> int:
    """The command line; the exit code."""
    options, rest = _parser().parse_known_args()
    if rest and options.command not in _PASSED_ON:
        _parser().error(f"unrecognized arguments: {' '.join(rest)}")
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return int(options.action(options, rest))
    except (Problem, ValueError) as problem:  # ValueError: a settings file that is not what it should be
        print(problem, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dev.py", description="Run, test and check the server locally.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    command = commands.add_parser("run", help="run the server with storage and database")
    command.add_argument("--port", type=int, default=7071, help="HTTP port (default %(default)s)")
    command.add_argument(
        "--data", type=Path, default=ROOT / ".data", help="folder of the state (default .data)"
    )
    command.add_argument("--workers", type=int, default=2, help="worker processes (default %(default)s)")
    command.add_argument("--demo", action="store_true", help="upload sample studies")
    command.add_argument(
        "--no-viewer", dest="viewer", action="store_false", help="without the OHIF viewer at /viewer"
    )
    command.set_defaults(action=run)

    command = commands.add_parser(
        "test", help="run the tests; further arguments go to pytest", add_help=False
    )
    command.set_defaults(action=test)

    command = commands.add_parser("load", help="upload files and folders by STOW-RS", add_help=False)
    command.set_defaults(action=load)

    command = commands.add_parser("import", help="import a folder or a container", add_help=False)
    command.set_defaults(action=import_files)

    command = commands.add_parser(
        "export", help="export instances to a container of Blob Storage", add_help=False
    )
    command.set_defaults(action=export)

    command = commands.add_parser("migrate", help="move what another DICOMweb server has", add_help=False)
    command.set_defaults(action=migrate)

    command = commands.add_parser("check", help="formatter, linter and type checker")
    command.set_defaults(action=check)

    command = commands.add_parser("bench", help="the benchmarks", add_help=False)
    command.set_defaults(action=bench)

    command = commands.add_parser("dimse", help="run the DIMSE adapter", add_help=False)
    command.set_defaults(action=dimse)

    command = commands.add_parser(
        "dimse-migrate", help="move the studies of an archive through the DIMSE adapter", add_help=False
    )
    command.set_defaults(action=dimse_migrate)

    command = commands.add_parser("viewer", help="write the OHIF viewer as a static website for a server")
    command.add_argument("--output", type=Path, required=True, help="folder to write")
    command.add_argument("--url", required=True, help="URL of the DICOM server")
    command.add_argument("--authority", help="OpenID Connect issuer whose access tokens the server takes")
    command.add_argument("--client-id", help="client id of the viewer there")
    command.add_argument("--scope", default="openid profile", help="scopes (default '%(default)s')")
    command.set_defaults(action=viewer)

    command = commands.add_parser(
        "reindex", help="rebuild the SQL database from the blobs of a stopped server"
    )
    command.add_argument(
        "--data", type=Path, default=ROOT / ".data", help="folder of the state (default .data)"
    )
    command.set_defaults(action=reindex)
    return parser


# --- commands --------------------------------------------------------------------------------------


def run(options: argparse.Namespace, _rest: list[str]) -> int:
    """Set-up, Azurite, the server; until Ctrl-C."""
    if not is_free(options.port):
        raise Problem(f"Port {options.port} is in use; choose another one with --port.")
    ensure_writable(options.data.resolve())
    python = _set_up(azurite=True)
    served = _viewer(python) if options.viewer else {}
    print("Starting storage and server ...", flush=True)
    with (
        _storage(options.data.resolve()) as environment,
        _server(python, options, {**environment, **served}) as server,
    ):
        url = f"http://127.0.0.1:{options.port}"
        _wait_until_healthy(server, url)
        print(f"\nDICOMweb   {url}/v2\nHealth     {url}/health/check\nOpenAPI    {url}/v2/openapi.json")
        if served:
            print(f"Viewer     {url}/viewer")
        print(f"State      {options.data}\nCtrl-C stops the server.", flush=True)
        try:
            if options.demo:
                subprocess.run([python, "-m", "devhost.load", "--demo", "--url", url], cwd=ROOT, check=False)
            server.wait()
        except KeyboardInterrupt:
            print("\nStopping ...", flush=True)
            return 0
        raise Problem("The server ended unexpectedly; see its messages above.")


def test(_options: argparse.Namespace, rest: list[str]) -> int:
    """Set-up, then pytest."""
    return _run(_set_up(azurite=True), "-m", "pytest", *rest)


def load(_options: argparse.Namespace, rest: list[str]) -> int:
    """Upload files to a running server."""
    return _run(_set_up(azurite=False), "-m", "devhost.load", *rest)


def export(_options: argparse.Namespace, rest: list[str]) -> int:
    """Export instances of a running server."""
    return _run(_set_up(azurite=False), "-m", "devhost.export", *rest)


def import_files(_options: argparse.Namespace, rest: list[str]) -> int:
    """Have a running server import a folder or a container."""
    return _run(_set_up(azurite=False), "-m", "devhost.importer", *rest)


def migrate(_options: argparse.Namespace, rest: list[str]) -> int:
    """Move all instances of another DICOMweb server to a running one."""
    return _run(_set_up(azurite=False), "-m", "devhost.migrate", *rest)


def check(_options: argparse.Namespace, _rest: list[str]) -> int:
    """Formatter, linter, type checker: all of them, even when one finds something."""
    python = _set_up(azurite=False)
    commands = (("ruff", "format", "--check"), ("ruff", "check"), ("mypy",))
    return max([abs(_run(python, "-m", *command)) for command in commands])


def bench(_options: argparse.Namespace, rest: list[str]) -> int:
    """The benchmarks."""
    return _run(_set_up(azurite=True), "-m", "benchmarks", *rest)


def dimse(_options: argparse.Namespace, rest: list[str]) -> int:
    """The DIMSE adapter, by default against the local server."""
    return _run(_set_up(azurite=False), "-m", "adapters.dimse", "serve", *rest)


def dimse_migrate(_options: argparse.Namespace, rest: list[str]) -> int:
    """Move an archive through the running DIMSE adapter."""
    return _run(_set_up(azurite=False), "-m", "adapters.dimse", "migrate", *rest)


def viewer(options: argparse.Namespace, _rest: list[str]) -> int:
    """Write the viewer as a static website."""
    if bool(options.authority) != bool(options.client_id):
        raise Problem("--authority and --client-id belong together.")
    sign_in = SignIn(options.authority, options.client_id, options.scope) if options.authority else None
    configuration(options.url, sign_in)  # before anything is fetched
    python = _set_up(azurite=False)
    package = Package(ROOT / ".dev")
    package.ensure(Screen(ROOT / ".dev" / "logs"), Installation(ROOT / ".dev"), python)
    write_site(package.files, options.output.resolve(), options.url, sign_in)
    print(f"The viewer for {options.url} is in {options.output}: put it at the root of a web server.")
    return 0


def reindex(options: argparse.Namespace, rest: list[str]) -> int:
    """Rebuild the database of ``--data`` from its blobs."""
    python = _set_up(azurite=True)
    with _storage(options.data.resolve()) as environment:
        return _run(python, "-m", "shared.services.reindex", *rest, environment=environment)


# --- steps -----------------------------------------------------------------------------------------


def _set_up(*, azurite: bool) -> str:
    """Make the virtual environment and, if asked, install Azurite; the environment's Python."""
    ensure_writable(ROOT / ".dev")
    screen = Screen(ROOT / ".dev" / "logs")
    environment = Environment(ROOT)
    environment.ensure(screen)
    if azurite:
        Installation(ROOT / ".dev").ensure(screen.run, str(environment.python))
    return str(environment.python)


def _viewer(python: str) -> dict[str, str]:
    """Fetch the viewer on first use; the environment that makes the host serve it, empty when it cannot."""
    package = Package(ROOT / ".dev")
    try:
        package.ensure(Screen(ROOT / ".dev" / "logs"), Installation(ROOT / ".dev"), python)
    except Problem as problem:
        print(f"The server runs without its viewer: {problem}", file=sys.stderr)
        return {}
    return {"DEVHOST_VIEWER": str(package.files)}


@contextlib.contextmanager
def _storage(data: Path) -> Iterator[dict[str, str]]:
    """Azurite on ``data`` with the app's containers; the environment for what uses it."""
    ensure_writable(data)
    with exclusive(data):
        ports = PORTS if all(is_free(port) for port in PORTS) else free_ports()
        with contextlib.closing(Azurite(Installation(ROOT / ".dev"), data / "azurite", ports)) as azurite:
            environment = {
                **local_values(ROOT),
                **os.environ,
                "AzureWebJobsStorage": azurite.connection_string,
                "DICOM_SQL_URL": os.environ.get("DICOM_SQL_URL") or f"sqlite:///{data / 'dicom.db'}",
                "DICOM_SECRETS_FOLDER": os.environ.get("DICOM_SECRETS_FOLDER") or str(data / "secrets"),
            }
            if _run(str(Environment(ROOT).python), "-m", "devhost.prepare", environment=environment):
                raise Problem("The storage containers could not be created; see the message above.")
            yield environment


@contextlib.contextmanager
def _server(
    python: str, options: argparse.Namespace, environment: dict[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """The development host in a session of its own, so that Ctrl-C reaches it through this process only."""
    command = [python, "-m", "devhost", "--follow-stdin", "--port", str(options.port)]
    process = subprocess.Popen(
        [*command, "--workers", str(options.workers)],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with _no_interrupt():
            process.terminate()
            process.wait()


def _wait_until_healthy(server: subprocess.Popen[bytes], url: str) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + START_SECONDS
    while True:
        if server.poll() is not None:
            raise Problem("The server could not be started; see its messages above.")
        try:
            with opener.open(f"{url}/health/check", timeout=10):
                return
        except urllib.error.HTTPError as error:
            said = error.read().decode(errors="replace")
        except OSError as error:
            said = str(error)
        if time.monotonic() > deadline:
            raise Problem(f"The server is not healthy after {START_SECONDS} s: {said}")
        time.sleep(0.1)


def _run(python: str, *arguments: str, environment: dict[str, str] | None = None) -> int:
    """Run Python of the virtual environment in the foreground; Ctrl-C and SIGTERM are its to handle."""
    process = subprocess.Popen([python, *arguments], cwd=ROOT, env=environment)
    before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    try:
        while True:
            with contextlib.suppress(KeyboardInterrupt):
                return process.wait()
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


@contextlib.contextmanager
def _no_interrupt() -> Iterator[None]:
    """Stopping is not to be interrupted by an impatient second Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


if __name__ == "__main__":
    sys.exit(main())
