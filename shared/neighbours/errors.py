"""What can become of a delivery to a neighbour."""

from __future__ import annotations

from shared.errors import DependencyUnavailable


class NeighbourUnavailable(DependencyUnavailable):
    """The neighbour does not answer, is busy, or does not let the server in: wait, however long it takes."""


class NeighbourFailed(Exception):
    """The neighbour failed at this one thing, or somebody else changed it; worth some more tries."""


class NeighbourRefused(Exception):
    """The neighbour will not take this one thing, however often it is sent."""


_BUSY = frozenset({401, 403, 404, 405, 408, 410, 425, 429, 502, 503, 504})
"""Signs of an outage or of a wrong setting, not of a wrong message: 404 is a wrong address."""


def of_status(neighbour: str, status: int, retry_after: str = "") -> Exception:
    """What an HTTP status other than success means; ``retry_after`` is the header of that name."""
    sentence = f"{neighbour} answered with status {status}."
    if status in _BUSY:
        seconds = int(retry_after) if retry_after.isdecimal() else 0
        return NeighbourUnavailable(sentence, min(seconds, 3600))
    if 400 <= status < 500 and status not in (409, 412, 423):
        return NeighbourRefused(sentence)
    return NeighbourFailed(sentence)
