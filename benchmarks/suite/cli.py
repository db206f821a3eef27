"""The command line of the benchmarks."""

import asyncio
import sys
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks.suite import environments, tables
from benchmarks.suite.bench import Effort
from benchmarks.suite.plan import Plan, run
from benchmarks.suite.plots import write_report
from benchmarks.suite.results import Results
from benchmarks.suite.scenarios import footprint, http, pickup, scale, sleeping, submitting, throughput
from benchmarks.suite.systems import ROOT, SYSTEMS, System

SCENARIOS: dict[str, Any] = {
    module.NAME: module for module in (throughput, sleeping, submitting, pickup, footprint, scale, http)
}
QUICK_RUN_S, DEFAULT_RUN_S = 1.0, 4.0
FILE_WIDTH = 180
"""Columns of the output if it is not a terminal."""

ENVIRONMENTS_HELP = """Each peer gets its own environment below .cache/benchmarks, with the versions in
benchmarks/peers/NAME/requirements.txt. All systems use the same Redis and Postgres, which are started and emptied here. How each is configured, and
why, is in benchmarks/peers/NAME/app.py."""
EPILOG = "\n\n".join(
    [
        f"[b]Scenarios[/]: {', '.join(SCENARIOS)}.",
        f"[b]Systems[/]: {', '.join(system.name for system in SYSTEMS)}. `cplane` means both systems of cplane.",
        "[cyan]$ python benchmarks/peers.py --quick[/]   everything, with small sizes, for rough figures",
        "[cyan]$ python benchmarks/peers.py --json results.json --plots[/]   what docs/explanation/benchmarks.md shows",
        "[cyan]$ python benchmarks/peers.py --only cplane,arq --scenario throughput,pickup --rounds 5[/]",
        "[cyan]$ python benchmarks/peers.py --only cplane --scenario scale --full[/]   up to five million records",
        ENVIRONMENTS_HELP,
        "A busy machine distorts all figures: compare the lowest and the highest of the rounds.",
    ]
)

Only = Annotated[str, typer.Option("--only", metavar="NAME,…", help="Only these systems.")]
Scenario = Annotated[str, typer.Option("--scenario", metavar="NAME,…", help="Only these scenarios.")]
Rounds = Annotated[int | None, typer.Option("--rounds", min=1, help="Number of rounds: 3 by default, 1 with --quick.")]
Quick = Annotated[bool, typer.Option("--quick", help="Small sizes and one round: minutes instead of an hour or two.")]
Full = Annotated[bool, typer.Option("--full", help="Scale up to 1,000,000 queued jobs and 5,000,000 records.")]
Durable = Annotated[
    bool, typer.Option("--durable/--fast", help="Whether the data of Postgres and Redis survives a crash.")
]
Json = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write all values as JSON.")]
Plots = Annotated[bool, typer.Option("--plots", help="Write docs/explanation/benchmarks.md and its plots.")]
Keep = Annotated[bool, typer.Option("--keep", help="Keep the logs of all processes, and print their folder.")]


def main(
    *,
    only: Only = "",
    scenario: Scenario = "",
    rounds: Rounds = None,
    quick: Quick = False,
    full: Full = False,
    durable: Durable = True,
    json: Json = None,
    plots: Plots = False,
    keep: Keep = False,
) -> None:
    """Measure cplane and seven other task frameworks on this machine, in one run, and print one table with ratios.

    No-op throughput with 1, 2 and 4 workers, jobs that sleep, submit rates, pickup latency, memory and idle CPU, how
    cplane scales, and HTTP submits compared with a plain FastAPI endpoint. Every job writes to shared memory, so lost
    and doubled jobs are counted in every run.
    """
    console = Console() if sys.stdout.isatty() else Console(width=FILE_WIDTH)
    systems = _systems(only)
    scenarios = _scenarios(scenario)
    effort = Effort(
        rounds=rounds or (1 if quick else 3), run_s=QUICK_RUN_S if quick else DEFAULT_RUN_S, quick=quick, full=full
    )
    plan = Plan(
        systems,
        scenarios,
        effort,
        durable=durable,
        keep=keep,
        arguments=_arguments(only, scenario, effort, durable=durable),
    )
    results = Results()
    try:
        asyncio.run(run(plan, console, results))
    except (KeyboardInterrupt, asyncio.CancelledError):
        console.print("stopped; all child processes have ended; the results so far:")
        raise typer.Exit(130) from None
    except environments.InstallError as error:
        console.print(f"[red]an environment could not be created:[/] {error}")
        raise typer.Exit(1) from None
    finally:  # an interrupted run keeps the values that it has measured
        _report(console, results, json)
    if plots:
        write_report(results, ROOT / "docs" / "explanation")


def _report(console: Console, results: Results, json: Path | None) -> None:
    if results.rows:
        tables.print_results(console, results)
        if json is not None:
            results.save(json)


def _arguments(only: str, scenario: str, effort: Effort, *, durable: bool) -> str:
    """Return the arguments that repeat this run."""
    given = {"--only": only, "--scenario": scenario, "--rounds": str(effort.rounds)}
    words = [word for name, value in given.items() if value for word in (name, value)]
    flags = {"--quick": effort.quick, "--full": effort.full, "--fast": not durable}
    return " ".join([*words, *(flag for flag, on in flags.items() if on), "--json results.json --plots"])


def app() -> None:
    """Run the command line."""
    command = typer.Typer(
        rich_markup_mode="rich", add_completion=False, context_settings={"help_option_names": ["-h", "--help"]}
    )
    command.command(epilog=EPILOG)(main)
    command()


def _systems(only: str) -> list[System]:
    wanted = [name.strip() for name in only.split(",") if name.strip()]
    known = [system.name for system in SYSTEMS]
    for name in wanted:
        if not any(_is(system, name) for system in known):
            raise typer.BadParameter(f"no system named '{name}'; known: {', '.join(known)}", param_hint="--only")
    return [system for system in SYSTEMS if not wanted or any(_is(system.name, name) for name in wanted)]


def _is(system: str, name: str) -> bool:
    return name in {system, system.partition(" ")[0]}


def _scenarios(chosen: str) -> list[ModuleType]:
    wanted = [name.strip() for name in chosen.split(",") if name.strip()]
    for name in wanted:
        if name not in SCENARIOS:
            raise typer.BadParameter(
                f"no scenario named '{name}'; known: {', '.join(SCENARIOS)}", param_hint="--scenario"
            )
    return [module for name, module in SCENARIOS.items() if not wanted or name in wanted]
