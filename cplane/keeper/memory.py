"""How much memory a process uses."""

import os
from pathlib import Path


def resident_mb(pid: int) -> int:
    """Return how much memory a process uses, in MiB; 0 where that cannot be read."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE") // 2**20
