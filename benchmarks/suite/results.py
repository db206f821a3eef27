"""The results: values of several rounds by scenario, case and system, saved as JSON."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.suite.systems import OURS
from benchmarks.suite.tally import Count, median

LESS_IS_BETTER = frozenset({"ms", "MB", "% CPU"})


@dataclass(slots=True)
class Row:
    """The values of one system in one case, over all rounds. If there are none, `note` has the reason."""

    scenario: str
    case: str
    system: str
    unit: str
    values: list[float] = field(default_factory=list[float])
    lost: int = 0
    doubled: int = 0
    note: str = ""

    @property
    def value(self) -> float:
        """The median of the rounds."""
        return median(self.values)


@dataclass(slots=True)
class Results:
    """All results of a run, and its conditions."""

    conditions: dict[str, str] = field(default_factory=dict[str, str])
    rows: list[Row] = field(default_factory=list[Row])

    def add(
        self,
        scenario: str,
        case: str,
        system: str,
        unit: str,
        value: float,
        *,
        count: Count | None = None,
        note: str = "",
    ) -> None:
        """Add the value of one round."""
        row = self._row(scenario, case, system, unit)
        row.values.append(value)
        row.note = note or row.note
        if count is not None:
            row.lost += count.lost
            row.doubled += count.doubled

    def skip(self, scenario: str, case: str, system: str, why: str) -> None:
        """Record that a system has no value in this case, and why."""
        self._row(scenario, case, system, "").note = why

    def find(self, scenario: str, case: str, system: str) -> Row | None:
        """Return the row of a system if it has values."""
        return next((row for row in self.of(scenario, case) if row.system == system), None)

    def of(self, scenario: str, case: str) -> list[Row]:
        """Return the rows of a case that have values."""
        return [row for row in self.rows if (row.scenario, row.case) == (scenario, case) and row.values]

    def best_peer(self, scenario: str, case: str, among: Iterable[str] | None = None) -> Row | None:
        """Return the row of the best peer, of all or of those in `among`."""
        peers = [row for row in self.of(scenario, case) if row.system not in OURS]
        if among is not None:
            peers = [row for row in peers if row.system in among]
        if not peers:
            return None
        pick = min if peers[0].unit in LESS_IS_BETTER else max
        return pick(peers, key=lambda row: row.value)

    def save(self, path: Path) -> None:
        """Write JSON."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")

    def _row(self, scenario: str, case: str, system: str, unit: str) -> Row:
        for row in self.rows:
            if (row.scenario, row.case, row.system) == (scenario, case, system):
                row.unit = row.unit or unit
                return row
        row = Row(scenario, case, system, unit)
        self.rows.append(row)
        return row


def load(path: Path) -> Results:
    """Read what `save` wrote."""
    saved: dict[str, Any] = json.loads(path.read_text())
    return Results(saved["conditions"], [Row(**row) for row in saved["rows"]])
