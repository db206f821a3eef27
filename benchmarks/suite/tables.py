"""The results as tables in the terminal."""

import itertools

from rich.console import Console
from rich.table import Table

from benchmarks.suite.requirements import figure, judge
from benchmarks.suite.results import LESS_IS_BETTER, Results, Row

GOOD, BAD = "[green]met[/]", "[red]not met[/]"


def print_results(console: Console, results: Results) -> None:
    """Every row with its ratio to the best peer, then the requirements with their figures."""
    console.print(results_table(results))
    console.print(requirements_table(results))


def results_table(results: Results) -> Table:
    """One table of everything; the rows of a case are together, the best first."""
    table = Table(title="Measured in this run, medians", title_justify="left")
    for heading in ("scenario", "case", "system"):
        table.add_column(heading, no_wrap=heading == "system")
    for heading in ("median", "lowest", "highest", "× best peer", "lost", "doubled"):
        table.add_column(heading, justify="right")
    table.add_column("", overflow="fold", style="dim")
    for (scenario, case), rows in itertools.groupby(ordered(results), key=lambda row: (row.scenario, row.case)):
        for number, row in enumerate(rows):
            first = number == 0
            table.add_row(scenario if first else "", case if first else "", *cells(results, row))
        table.add_section()
    return table


def ordered(results: Results) -> list[Row]:
    """The rows by scenario and case in the order of measuring, the best system first, those without values last."""
    cases = list(dict.fromkeys((row.scenario, row.case) for row in results.rows))
    scenarios = list(dict.fromkeys(row.scenario for row in results.rows))

    def place(row: Row) -> tuple[int, int, bool, float]:
        worth = 0.0 if not row.values else row.value if row.unit in LESS_IS_BETTER else -row.value
        return scenarios.index(row.scenario), cases.index((row.scenario, row.case)), not row.values, worth

    return sorted(results.rows, key=place)


def cells(results: Results, row: Row) -> tuple[str, ...]:
    """The cells of a row, from the system's name on."""
    if not row.values:
        return (row.system, "n/a", "", "", "", "", "", row.note)
    peer = results.best_peer(row.scenario, row.case)
    ratio = f"{row.value / peer.value:.2f}" if peer is not None and peer.value else ""
    spread = (figure(min(row.values)), figure(max(row.values)))
    return (row.system, f"{figure(row.value)} {row.unit}", *spread, ratio, str(row.lost), str(row.doubled), row.note)


def requirements_table(results: Results) -> Table:
    """The requirements, met or not."""
    table = Table(title="Requirements", title_justify="left")
    for heading in ("", "required", "measured", "verdict", ""):
        table.add_column(heading, justify="right" if heading in {"required", "measured"} else "left")
    verdicts = judge(results)
    for verdict in verdicts:
        if verdict.met is not None:
            table.add_row(
                verdict.says, verdict.required, verdict.measured, GOOD if verdict.met else BAD, verdict.against
            )
    missing = [f"{verdict.says} ({verdict.required})" for verdict in verdicts if verdict.met is None]
    table.caption = f"not measured in this run: {'; '.join(missing)}" if missing else None
    table.caption_justify = "left"
    return table
