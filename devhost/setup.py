"""What dev.py needs first: the virtual environment, and progress on the screen. Standard library only."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path


class Problem(Exception):
    """What went wrong, in one sentence for the user."""


class Screen:
    """Progress for people: one line a step, ticking on a terminal."""

    def __init__(self, log_folder: Path) -> None:
        self._log_folder = log_folder

    def run(self, title: str, command: list[str], environment: dict[str, str] | None = None) -> None:
        """Run a command quietly. Raises Problem with the last line it said when it fails."""
        self._log_folder.mkdir(parents=True, exist_ok=True)
        log_path = self._log_folder / f"{title.lower().replace(' ', '-').replace('.', '')}.log"
        started = time.monotonic()
        terminal = sys.stdout.isatty()
        print(f"{title} ...", end="" if terminal else "\n", flush=True)
        with log_path.open("wb") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
            )
            try:
                for tick in itertools.count():
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(1)
                        break
                    if terminal:
                        print(f"\r{title} ... {tick + 1} s", end="", flush=True)
            except BaseException:
                process.terminate()
                process.wait()
                raise
        took = f"{time.monotonic() - started:.0f} s"
        if process.returncode != 0:
            print("\r" if terminal else "", end="")
            said = _reason(log_path.read_text(errors="replace"))
            raise Problem(f"{title} failed ({said}); all of it is in {log_path}.")
        print(f"\r{title} ... done ({took})" if terminal else f"{title} ... done ({took})", flush=True)


def _reason(output: str) -> str:
    """The line of a failed pip or npm that says most."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower() and "complete log" not in line]
    return (errors or lines or ["it said nothing"])[-1]


class Environment:
    """The virtual environment in ``.venv``, made anew when Python or the requirements change."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.folder = root / ".venv"
        self._stamp = self.folder / "made-from"
        self.python = self.folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

    def ensure(self, screen: Screen) -> None:
        """Make it unless it is as it should be. Raises Problem."""
        key = self._key()
        with contextlib.suppress(OSError):
            if self._stamp.read_text() == key and self.python.exists():
                return
        screen.run(
            "Creating a virtual environment", [sys.executable, "-m", "venv", "--clear", str(self.folder)]
        )
        pip = [str(self.python), "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
        screen.run("Installing packages", [*pip, "-r", str(self._root / "requirements-dev.txt")])
        self._stamp.write_text(key)

    def _key(self) -> str:
        digest = hashlib.sha256(f"{sys.version} {platform.platform()} {self.folder}".encode())
        for path in sorted(
            [*self._root.glob("requirements*.txt"), *self._root.glob("adapters/*/requirements.txt")]
        ):
            digest.update(path.read_bytes())
        return digest.hexdigest()


def ensure_writable(folder: Path) -> None:
    """Make ``folder`` and check that files can be made in it. Raises Problem."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise Problem(f"The folder {folder} cannot be written to: {error.strerror}.") from error


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold ``folder`` against other runs, which would write the same files. Raises Problem."""
    with (folder / "lock").open("w") as lock:
        try:
            if os.name == "posix":
                import fcntl

                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Problem(f"The folder {folder} is in use by another run; choose one with --data.") from None
        yield
