"""Formats the results of the demo for a terminal."""

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from cplane.demo.tour import VisitResult

STYLES = {"succeeded": "green", "failed": "red", "cancelled": "magenta"}


def results_table(results: Sequence[VisitResult]) -> Table:
    """Return a table with one row per visit."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="dim")
    for column in ("job", "page", "state"):
        table.add_column(column, no_wrap=True)
    for column in ("took", "size"):
        table.add_column(column, no_wrap=True, justify="right")
    table.add_column("result", no_wrap=True, overflow="ellipsis", ratio=1)
    for result in results:
        state = str(result.record["state"])
        table.add_row(
            result.visit.job,
            result.visit.page,
            Text(state, STYLES.get(state, "")),
            f"{result.took_s:.2f} s",
            size(result.size) if result.file is not None else "",
            Text(result.excerpt, "" if result.succeeded else "red"),
        )
    return table


def size(count: int) -> str:
    """Format a number of bytes for people, for example "12 kB"."""
    if count < 1000:
        return f"{count} B"
    return f"{count / 1000:.0f} kB" if count < 1_000_000 else f"{count / 1_000_000:.1f} MB"
