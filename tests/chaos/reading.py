"""Reads a journal: converts its lines to the values of a history."""

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from typing import Any

from tests.chaos.history import Accepted, Command, Fault, FaultKind, Run, Start, Submit

Line = dict[str, Any]


def submits(lines: Iterable[Line]) -> Iterator[Submit]:
    for line in of_event(lines, "submit"):
        yield Submit(
            tag=line["tag"],
            job=line["job"],
            at=line["submitted_at"],
            record=line["record"],
            key=line["key"],
            delay_s=line["delay_s"],
        )


def runs(lines: Iterable[Line], kind: str = "") -> Iterator[Run]:
    """Yield the runs: begin and end are matched by record, attempt and process."""
    all_lines = list(lines)
    ends: dict[tuple[str, int, int], deque[float]] = defaultdict(deque)
    for line in of_event(all_lines, f"{kind}end"):
        ends[line["record"], line["attempt"], line["pid"]].append(line["at"])
    for line in of_event(all_lines, f"{kind}begin"):
        run_ends = ends[line["record"], line["attempt"], line["pid"]]
        yield Run(
            record=line["record"],
            attempt=line["attempt"],
            pid=line["pid"],
            began=line["at"],
            ended=run_ends.popleft() if run_ends else None,
        )


def faults(lines: Iterable[Line]) -> Iterator[Fault]:
    for line in of_event(lines, "fault"):
        kind = FaultKind(line["kind"])
        yield Fault(kind=kind, began=line["began"], ended=line["ended"], pid=line["pid"], note=line.get("note", ""))


def starts(lines: Iterable[Line]) -> Iterator[Start]:
    for line in of_event(lines, "started"):
        yield Start(pid=line["pid"], at=line["at"])


def accepted(lines: Iterable[Line]) -> Iterator[Accepted]:
    for line in of_event(lines, "accepted"):
        yield Accepted(record=line["record"], attempt=line["attempt"], state=line["state"])


def commands(lines: Iterable[Line]) -> Iterator[Command]:
    for line in of_event(lines, "command"):
        yield Command(record=line["record"], verb=line["verb"], at=line["at"], state=line["state"])


def of_event(lines: Iterable[Line], event: str) -> Iterator[Line]:
    return (line for line in lines if line["event"] == event)
