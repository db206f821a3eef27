"""Memory and CPU time of a process and its descendants, read from /proc."""

import os
from collections.abc import Iterator
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def tree(pid: int) -> list[int]:
    """Return the pids of a process and its living descendants."""
    found = [pid]
    for parent in found:
        found += _children(parent)
    return found


def memory_mb(pids: list[int]) -> tuple[float, float]:
    """Return the sums of the proportional and the resident set sizes of the processes, in MB of 10⁶ bytes."""
    totals = {"Pss:": 0, "Rss:": 0}
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue  # it has ended
        for line in lines:
            name, *values = line.split()
            if name in totals:
                totals[name] += int(values[0])
    return totals["Pss:"] * 1024 / 1e6, totals["Rss:"] * 1024 / 1e6


def cpu_s(pids: list[int]) -> float:
    """Return the CPU time in seconds that the processes have used so far."""
    ticks = 0
    for pid in pids:
        try:
            after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        ticks += int(after_name[11]) + int(after_name[12])
    return ticks / TICKS_PER_S


def _children(pid: int) -> Iterator[int]:
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            yield from map(int, (task / "children").read_text().split())
    except OSError:
        return
