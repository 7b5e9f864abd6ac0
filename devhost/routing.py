"""Route templates of ASP.NET Core, as far as the Functions host understands them.

The host tries the routes in alphabetical order of function names and the first that fits the path and
the method wins; nothing fits: 404, also for a wrong method. Matching ignores case. Source: the "Route
templates" section of "Routing in ASP.NET Core" (learn.microsoft.com).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import unquote

T = TypeVar("T")
Check = Callable[[str], bool]


@dataclass(frozen=True)
class Template:
    """A compiled template: :meth:`match` gives the route values or None."""

    text: str
    pattern: re.Pattern[str]
    names: dict[str, str]
    checks: tuple[tuple[str, Check], ...]

    def match(self, path: str) -> dict[str, str] | None:
        """Route values of ``path`` (decoded, without slashes at its ends), or None."""
        found = self.pattern.fullmatch(path)
        if found is None:
            return None
        groups = found.groupdict()
        if not all(groups[group] is None or check(groups[group]) for group, check in self.checks):
            return None
        return {name: groups[group] for group, name in self.names.items() if groups[group] is not None}


def compile_template(text: str) -> Template:
    """Parse a template such as ``v2/studies/{study}/{rest:regex(^a+$)?}``. Raises ValueError."""
    names: dict[str, str] = {}
    checks: list[tuple[str, Check]] = []
    pattern = ""
    for number, segment in enumerate(_segments(text.strip("/"))):
        separator = "/" if number else ""
        body = ""
        optional = False
        for literal, parameter in _parts(segment):
            if parameter is None:
                body += re.escape(literal)
                continue
            name, *constraints = _split_constraints(parameter)
            catch_all = name.startswith("*")
            optional = name.endswith("?") or bool(constraints and constraints[-1].endswith("?"))
            if constraints:
                constraints[-1] = constraints[-1].removesuffix("?")
            group = f"p{len(names)}"
            names[group] = name.strip("*?")
            checks += [(group, _constraint(constraint)) for constraint in constraints]
            body += f"(?P<{group}>.*)" if catch_all else f"(?P<{group}>[^/]+?)"
            optional = optional or catch_all
        pattern += f"(?:{separator}{body})?" if optional else separator + body
    return Template(text, re.compile(pattern, re.IGNORECASE | re.DOTALL), names, tuple(checks))


def decode_path(raw_path: bytes) -> str:
    """The path as ASP.NET Core gives it: percent-decoded except for ``%2F``, no slashes at the ends."""
    path = raw_path.decode("latin-1").partition("?")[0].strip("/")
    kept = re.sub("%2f", "%252F", path, flags=re.IGNORECASE)
    return unquote(kept, errors="replace")


class Router:
    """Finds the function for a method and a path."""

    def __init__(self) -> None:
        self._routes: list[tuple[str, frozenset[str], Template]] = []

    def add(self, name: str, methods: Iterable[str], template: str) -> None:
        """Register a function; no methods means all of them."""
        self._routes.append((name, frozenset(m.upper() for m in methods), compile_template(template)))
        self._routes.sort(key=lambda route: route[0].lower())

    def match(self, method: str, path: str) -> tuple[str, dict[str, str]] | None:
        """Name and route values of the first function that fits, or None."""
        for name, methods, template in self._routes:
            if methods and method not in methods:
                continue
            values = template.match(path)
            if values is not None:
                return name, values
        return None


def _segments(text: str) -> list[str]:
    """Split at slashes that are not inside braces (a regex may hold some)."""
    segments, depth = [""], 0
    for character in text:
        depth += {"{": 1, "}": -1}.get(character, 0)
        if character == "/" and depth == 0:
            segments.append("")
        else:
            segments[-1] += character
    if depth:
        raise ValueError(f"The route template {text!r} has unbalanced braces.")
    return segments if segments != [""] else []


def _parts(segment: str) -> list[tuple[str, str | None]]:
    """Literals and parameters of a segment, in order: ``("text", None)`` or ``("", "name:int")``."""
    parts: list[tuple[str, str | None]] = []
    literal, parameter, depth = "", "", 0
    for character in segment:
        if character == "{":
            depth += 1
            if depth == 1:
                parts.append((literal, None))
                literal = ""
                continue
        elif character == "}":
            depth -= 1
            if depth == 0:
                parts.append(("", parameter))
                parameter = ""
                continue
        if depth:
            parameter += character
        else:
            literal += character
    parts.append((literal, None))
    return [part for part in parts if part != ("", None)]


def _split_constraints(parameter: str) -> list[str]:
    """``name:int:max(3)`` as ``["name", "int", "max(3)"]``; colons inside parentheses stay."""
    pieces, depth = [""], 0
    for character in parameter:
        depth += {"(": 1, ")": -1}.get(character, 0)
        if character == ":" and depth == 0:
            pieces.append("")
        else:
            pieces[-1] += character
    return pieces


_SIMPLE = {
    "alpha": r"[a-z]*",
    "bool": r"true|false",
    "guid": r"[0-9a-f]{8}-?(?:[0-9a-f]{4}-?){3}[0-9a-f]{12}",
    "int": r"-?\d{1,10}",
    "long": r"-?\d{1,19}",
    "required": r".+",
}


def _constraint(text: str) -> Check:
    name, _, argument = text.partition("(")
    argument = argument.removesuffix(")")
    if name in _SIMPLE:
        simple = re.compile(_SIMPLE[name], re.IGNORECASE)
        return lambda value: simple.fullmatch(value) is not None
    if name == "regex":  # braces are doubled in templates
        expression = re.compile(argument.replace("{{", "{").replace("}}", "}"), re.IGNORECASE)
        return lambda value: expression.search(value) is not None
    if name in ("length", "minlength", "maxlength"):
        low, high = _bounds(name.removesuffix("length"), argument)
        return lambda value: low <= len(value) <= high
    if name in ("min", "max", "range"):
        low, high = _bounds(name, argument)
        return lambda value: re.fullmatch(r"-?\d+", value) is not None and low <= int(value) <= high
    raise ValueError(f"The route constraint {text!r} is not known.")


def _bounds(name: str, argument: str) -> tuple[float, float]:
    numbers = [int(number) for number in argument.split(",")]
    if name == "min":
        return numbers[0], float("inf")
    if name == "max":
        return float("-inf"), numbers[0]
    return numbers[0], numbers[-1]
