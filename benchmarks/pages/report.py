"""The requirements and the figures of a run, as tables and as JSON."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.pages.systems import CRAWLEE, FRESH, RAW_BROWSER, RAW_CONTEXT, RAW_REUSE, SHARED
from benchmarks.suite.requirements import figure
from benchmarks.suite.tally import median

RATE, VISIT, ACQUIRE = "visits/s", "idle visit p50, ms", "idle acquire p50, ms"
JOB, JOB_RATE, DEATH, MEMORY = (
    "idle job p50, ms",
    "jobs/s",
    "after a browser's death, worst ms",
    "memory, last ÷ first half",
)
JOBS = "cplane, whole job"


@dataclass
class Report:
    """Values of several rounds by figure and way."""

    values: dict[tuple[str, str], list[float]] = field(default_factory=dict[tuple[str, str], list[float]])

    def add(self, figure_name: str, way: str, value: float) -> None:
        """Add the value of one round."""
        self.values.setdefault((figure_name, way), []).append(value)

    def get(self, figure_name: str, way: str) -> float | None:
        """Return the median of the rounds."""
        values = self.values.get((figure_name, way))
        return median(values) if values else None

    def ratio(self, figure_name: str, way: str, to: str) -> float | None:
        """Return the median of the ratios per round: within a round, both were measured within a minute."""
        ours, theirs = (self.values.get((figure_name, name), []) for name in (way, to))
        ratios = [one / other for one, other in zip(ours, theirs, strict=False) if other]
        return median(ratios) if ratios else None

    def save(self, path: Path) -> None:
        """Write JSON."""
        rows = [{"figure": name, "way": way, "values": values} for (name, way), values in self.values.items()]
        path.write_text(json.dumps(rows, indent=1) + "\n")


@dataclass(frozen=True, slots=True)
class Requirement:
    """A bound, and how it is measured."""

    says: str
    measure: Callable[[Report], float | None]
    at_least: float | None = None
    at_most: float | None = None


REQUIREMENTS = (
    Requirement("fresh contexts at saturation, ÷ plain Playwright", lambda r: r.ratio(RATE, FRESH.name, RAW_CONTEXT.name), 0.95),
    Requirement("fresh contexts at saturation, ÷ a browser a visit", lambda r: r.ratio(RATE, FRESH.name, RAW_BROWSER.name), 2.3),
    Requirement("fresh contexts at saturation, ÷ crawlee", lambda r: r.ratio(RATE, FRESH.name, CRAWLEE.name), 1.0),
    Requirement("shared pages at saturation, ÷ plain Playwright with a reused page", lambda r: r.ratio(RATE, SHARED.name, RAW_REUSE.name), 0.95),
    Requirement("idle visit p50, ÷ plain Playwright with a context", lambda r: r.ratio(VISIT, FRESH.name, RAW_CONTEXT.name), None, 0.45),
    Requirement("acquire p50 with a ready page, ms", lambda r: r.get(ACQUIRE, FRESH.name), None, 5.0),
    Requirement("after a browser's death, worst ms", lambda r: r.get(DEATH, JOBS), None, 2000.0),
    Requirement("memory over all pages, last half ÷ first", lambda r: r.get(MEMORY, FRESH.name), None, 1.05),
)  # fmt: skip


def show(console: Console, report: Report) -> None:
    """Print every figure, then the requirements."""
    table = Table(title="Measured in this run, medians of the rounds", title_justify="left")
    for heading in ("figure", "way"):
        table.add_column(heading, no_wrap=True)
    for heading in ("median", "lowest", "highest"):
        table.add_column(heading, justify="right")
    last = ""
    for (name, way), values in sorted(report.values.items(), key=lambda item: item[0][0]):
        table.add_row(
            "" if name == last else name, way, figure(median(values)), figure(min(values)), figure(max(values))
        )
        last = name
    console.print(table)
    required = Table(title="Requirements", title_justify="left")
    for heading in ("", "required", "measured", "verdict"):
        required.add_column(heading, justify="right" if heading in {"required", "measured"} else "left")
    for line in REQUIREMENTS:
        value = line.measure(report)
        bound = f"≥ {line.at_least:g}" if line.at_least is not None else f"≤ {line.at_most:g}"
        if value is None:
            required.add_row(line.says, bound, "", "[dim]not measured[/]")
            continue
        met = (line.at_least is None or value >= line.at_least) and (line.at_most is None or value <= line.at_most)
        required.add_row(line.says, bound, f"{value:.2f}", "[green]met[/]" if met else "[red]not met[/]")
    console.print(required)
