"""What another user of this machine sees of a process: where it listens, and what he may open."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import psutil


def listening(pid: int) -> set[tuple[str, int]]:
    """Addresses and ports at which a process listens."""
    connections = psutil.Process(pid).net_connections("inet")
    return {(c.laddr.ip, c.laddr.port) for c in connections if c.status == psutil.CONN_LISTEN or c.type == 2}


def visible(path: Path) -> str:
    """What the permissions let another user, who is in none of the owner's groups, do with a file or folder."""
    for folder in path.parents:
        if folder.exists() and not folder.stat().st_mode & stat.S_IXOTH:
            return "a folder above is closed"
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):
        return "nothing"
    allowed = {"read": stat.S_IROTH, "write": stat.S_IWOTH}
    return " ".join(name for name, bit in allowed.items() if mode & bit and os.access(path.parent, os.X_OK)) or "nothing"
