"""Named points at which a test makes the process die or a dependency fail.

``DICOM_FAULT=name:kill`` ends the process with SIGKILL when it reaches the point ``name``;
``DICOM_FAULT=name:fail`` raises DependencyUnavailable there, once. Several are separated by commas.
``DICOM_FAULT_FILE`` names a file with such a list for a server that runs: it is read at every point and
emptied when one of them fires, so that the process that takes the dead one's place works.
Neither is set in production, where a point costs a dictionary look-up.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

from shared.errors import DependencyUnavailable


def _parse(text: str) -> dict[str, str]:
    return dict(entry.split(":", 1) for entry in text.strip().split(",") if ":" in entry)


_armed = _parse(os.environ.get("DICOM_FAULT", ""))
_file = os.environ.get("DICOM_FAULT_FILE", "")


def point(name: str) -> None:
    """Die or fail here when a test asked for it."""
    fault = _armed.pop(name, "") or (_from_file(name) if _file else "")
    if fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault:
        raise DependencyUnavailable("A dependency was made to fail by a test.")


def _from_file(name: str) -> str:
    path = Path(_file)
    fault = _parse(path.read_text()).get(name, "") if path.exists() else ""
    if fault:
        path.write_text("")
    return fault
