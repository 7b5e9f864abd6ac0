"""OHIF, the open-source web viewer: fetched as its makers ship it, and served beside the functions.

The package ``@ohif/app`` of npm holds a built viewer whose pages name their files from the root of the
server. So the page is at ``/viewer`` and below, and the viewer's files are wherever no function's route
is. Its one configuration is ``app-config.js`` beside this module.
"""

from __future__ import annotations

import os
import re
import shutil
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

from devhost.setup import Problem, Screen

if TYPE_CHECKING:
    from starlette.responses import Response
    from starlette.types import Scope

    from devhost.azurite import Installation

VERSION = "3.13.2"
PAGE = "viewer"
_CONFIG = Path(__file__).with_name("app-config.js")
_MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".jsonc": "application/json",
    ".mjs": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".wasm": "application/wasm",
    ".woff2": "font/woff2",
}
# Decoders on several threads need a page isolated from other origins (OHIF's deployment guide).
_HEADERS = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "X-Content-Type-Options": "nosniff",
}


class Package:
    """The viewer under ``folder``; ``files`` is where its page lies."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "viewer"
        self.files = self._folder / f"ohif-{VERSION}"

    def ensure(self, screen: Screen, installation: Installation, python: str) -> None:
        """Fetch it unless it is there. Raises Problem."""
        if (self.files / "index.html").is_file():
            return
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        command, environment = installation.npm(screen.run, python)
        arguments = ["pack", f"@ohif/app@{VERSION}", "--pack-destination", str(self._folder)]
        screen.run("Fetching the viewer", [*command, *arguments, "--loglevel=error"], environment)
        try:
            (archive,) = self._folder.glob("*.tgz")
            self._unpack(archive)
        except (ValueError, OSError, tarfile.TarError) as error:
            raise Problem(f"The viewer that npm fetched cannot be unpacked: {error}.") from error

    def _unpack(self, archive: Path) -> None:
        """Keep what is served; the folder gets its name last, so that half of one never counts."""
        with tarfile.open(archive) as package:
            members = [
                member
                for member in package.getmembers()
                if member.name.startswith("package/dist/") and not member.name.endswith(".map")
            ]
            package.extractall(self._folder, members=members, filter="data")
        archive.unlink()
        (self._folder / "package" / "dist").rename(self.files)
        (self._folder / "package").rmdir()


class Viewer:
    """Answers requests for the page and the files of the viewer in ``folder``."""

    def __init__(self, folder: Path) -> None:
        from starlette.staticfiles import StaticFiles

        self._files = StaticFiles(directory=folder)

    def answer(self, path: str, scope: Scope) -> Response | None:
        """The response for a decoded path without outer slashes; None when it is not the viewer's."""
        if scope["method"] not in ("GET", "HEAD") or "\0" in path:
            return None
        first, _, rest = path.partition("/")
        page = first == PAGE
        name = (rest if page else path) or "index.html"
        if name == _CONFIG.name:
            return self._send(_CONFIG, scope)
        if not page and name == "index.html":
            return None
        found, _ = self._files.lookup_path(os.path.normpath(name))
        if not Path(found).is_file():
            if not page or Path(name).suffix in _MEDIA_TYPES:
                return None
            found, _ = self._files.lookup_path("index.html")
        return self._send(Path(found), scope)

    def _send(self, file: Path, scope: Scope) -> Response:
        response = self._files.file_response(file, os.stat(file), scope)
        if file.suffix in _MEDIA_TYPES:
            response.headers["Content-Type"] = _MEDIA_TYPES[file.suffix]
        named_by_content = re.search(r"\b[0-9a-f]{16}\.", file.name) is not None
        response.headers["Cache-Control"] = (
            "public, max-age=31536000, immutable" if named_by_content else "no-cache"
        )
        response.headers.update(_HEADERS)
        return response
