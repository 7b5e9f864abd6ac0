"""How much memory the processes of a server take, as Linux counts it."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import Server

needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")


@dataclass
class Memory:
    """The memory of a server's processes since it was looked at first."""

    pids: list[int]
    start: dict[int, int]

    @classmethod
    def of(cls, server: Server) -> Memory:
        """Begin to watch."""
        pids = _descendants(server._process.pid)
        for pid in pids:
            Path(f"/proc/{pid}/clear_refs").write_text("5")  # the peak counts from here on
        return cls(pids, {pid: _status(pid, "VmRSS") for pid in pids})

    @property
    def growth(self) -> int:
        """By how many bytes the process that grew most was larger at its peak than at the start."""
        return max(_status(pid, "VmHWM") - self.start[pid] for pid in self.pids)


def _descendants(root: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue  # it has just ended
        children.setdefault(parent, []).append(int(stat.parent.name))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def _status(pid: int, name: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
