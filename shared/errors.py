"""Every error the server raises on purpose.

::

    DicomServerError
    ├── InvalidRequest           the request is wrong                      400
    │   └── InvalidInstance      a Part 10 file is wrong             per instance
    ├── Unauthenticated          the caller is not known                   401
    ├── Forbidden                the caller may not do this                403
    ├── NotFound                 no such resource                          404
    ├── NotAcceptable            no representation fits Accept             406
    ├── Conflict                 the state does not allow it               409
    ├── PayloadTooLarge          more bytes than allowed                   413
    ├── UnsupportedMediaType     a body in a form not understood           415
    ├── RangeNotSatisfiable      a range outside of the representation     416
    └── DependencyUnavailable    storage or SQL failed; try again          503

The message of each is one sentence for the client; it never holds patient data. Which HTTP status a
class has is known to ``functions/http.py`` alone; any other exception is a bug and becomes 500.
"""

from __future__ import annotations

import traceback


class DicomServerError(Exception):
    """Base of all errors raised on purpose; ``str(error)`` is the sentence shown to the client.

    ``warning`` is a sentence of the standard for a Warning header, where it wants one.
    """

    warning = ""


class InvalidRequest(DicomServerError):
    """The request breaks the protocol or names something malformed."""


class InvalidInstance(InvalidRequest):
    """A DICOM Part 10 file cannot be stored; ``failure_reason`` is its (0008,1197) value."""

    def __init__(self, message: str, failure_reason: int) -> None:
        super().__init__(message)
        self.failure_reason = failure_reason


class Unauthenticated(DicomServerError):
    """The request carries no access token, or one that is not valid."""


class Forbidden(DicomServerError):
    """The caller may not do this."""


class NotFound(DicomServerError):
    """The addressed resource does not exist."""


class NotAcceptable(DicomServerError):
    """No representation of the resource satisfies the Accept header."""


class Conflict(DicomServerError):
    """The resource's state does not allow the request."""


class PayloadTooLarge(DicomServerError):
    """The request's body is larger than the server takes."""


class UnsupportedMediaType(DicomServerError):
    """The request's body has a media type the transaction does not take."""


class RangeNotSatisfiable(DicomServerError):
    """No byte of the range asked for exists; ``length`` is the number of bytes there are."""

    def __init__(self, message: str, length: int) -> None:
        super().__init__(message)
        self.length = length


class DependencyUnavailable(DicomServerError):
    """Blob Storage, SQL or another dependency failed; nothing acknowledged was lost.

    ``retry_after`` is the number of seconds after which the client should try again.
    """

    def __init__(self, message: str, retry_after: int = 5) -> None:
        super().__init__(message)
        self.retry_after = retry_after


def without_message(error: BaseException) -> str:
    """Kind and place of an unexpected failure, for the log: its message may quote patient data."""
    return f"{type(error).__name__}\n{''.join(traceback.format_tb(error.__traceback__))}"
