"""OHIF, the open-source web viewer: fetched as its makers ship it, and served beside the functions.

The package ``@ohif/app`` of npm holds a built viewer whose pages name their files from the root of the
server. So the page is at ``/viewer`` and below, and the viewer's files are wherever no function's route
is. Its one configuration is ``app-config.js`` beside this module.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from devhost.setup import Problem, Screen

if TYPE_CHECKING:
    from starlette.responses import Response
    from starlette.types import Scope

    from devhost.azurite import Installation

VERSION = "3.13.2"
PAGE = "viewer"
_CONFIG = Path(__file__).with_name("app-config.js")
# Of other hosts; and a page that loads scripts from one. Tokens are renewed without it, by a refresh token.
_LEFT_OUT = ("_headers", "_redirects", "serve.json", "google.js", "silent-refresh.html")
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


@dataclass(frozen=True, slots=True)
class SignIn:
    """How users of the viewer get access tokens: OpenID Connect, authorization code with PKCE."""

    authority: str
    client_id: str
    scope: str


def configuration(server: str, sign_in: SignIn | None) -> str:
    """The viewer's configuration for a page at the root of another origin than the ``server``'s.

    Raises Problem where ``server`` is no URL.
    """
    address = urlsplit(server)
    if address.scheme not in ("http", "https") or not address.hostname or address.query or address.fragment:
        raise Problem(f"{server} is not the URL of a server.")
    base = server.rstrip("/").removesuffix("/v2")
    text = _replaced(_CONFIG.read_text(), "const root = `${window.location.origin}/v2`;", _constant(base))
    text = _replaced(text, 'routerBasename: "/viewer",', 'routerBasename: "/",')
    return text + (_sign_in(sign_in) if sign_in else "")


def _constant(base: str) -> str:
    return f"const root = {json.dumps(f'{base}/v2')};"


def _sign_in(sign_in: SignIn) -> str:
    settings = {
        "authority": sign_in.authority,
        "client_id": sign_in.client_id,
        "scope": sign_in.scope,
        "response_type": "code",
        "redirect_uri": "/callback",
        "post_logout_redirect_uri": "/",
        "automaticSilentRenew": True,
    }
    return f"\nwindow.config.oidc = [{json.dumps(settings, indent=2)}];\n"


def _replaced(text: str, old: str, new: str) -> str:
    if text.count(old) != 1:
        raise Problem(f"{_CONFIG.name} no longer has the line: {old}")
    return text.replace(old, new)


def write_site(files: Path, output: Path, server: str, sign_in: SignIn | None = None) -> None:
    """Write the viewer for ``server`` into ``output`` as a static website for the root of an origin.

    What is no file answers with the page itself (404.html), which shows what the address says. An earlier
    site is replaced. Raises Problem for a folder that holds anything else.
    """
    config = configuration(server, sign_in)
    if output.exists():
        if any(output.iterdir()) and not (output / _CONFIG.name).is_file():
            raise Problem(f"The folder {output} holds something else than an earlier viewer.")
        shutil.rmtree(output)
    shutil.copytree(files, output)
    for name in _LEFT_OUT:
        (output / name).unlink(missing_ok=True)
    (output / _CONFIG.name).write_text(config)
    shutil.copyfile(output / "index.html", output / "404.html")


class Viewer:
    """Answers requests for the page and the files of the viewer in ``folder``."""

    def __init__(self, folder: Path, sign_in: SignIn | None = None) -> None:
        from starlette.staticfiles import StaticFiles

        self._files = StaticFiles(directory=folder)
        self._sign_in = _sign_in(sign_in) if sign_in else ""

    def answer(self, path: str, scope: Scope) -> Response | None:
        """The response for a decoded path without outer slashes; None when it is not the viewer's."""
        if scope["method"] not in ("GET", "HEAD") or "\0" in path:
            return None
        first, _, rest = path.partition("/")
        page = first == PAGE
        name = (rest if page else path) or "index.html"
        if name == _CONFIG.name:
            return self._configuration()
        if name in _LEFT_OUT or (not page and name == "index.html"):
            return None
        found, _ = self._files.lookup_path(os.path.normpath(name))
        if not Path(found).is_file():
            if not page or Path(name).suffix in _MEDIA_TYPES:
                return None
            found, _ = self._files.lookup_path("index.html")
        return self._send(Path(found), scope)

    def _configuration(self) -> Response:
        from starlette.responses import Response

        headers = {"Cache-Control": "no-cache", **_HEADERS}
        return Response(_CONFIG.read_text() + self._sign_in, headers=headers, media_type=_MEDIA_TYPES[".js"])

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
