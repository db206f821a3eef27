"""`cplane db`: the tables in Postgres."""

import typer

from cplane.cli.console import notes, styled
from cplane.cli.event_loop import run

app = typer.Typer(no_args_is_help=True)


@app.callback()
def db() -> None:
    """The tables in Postgres.

    [cyan]$ cplane db upgrade[/]
    """


@app.command()
def upgrade() -> None:
    """Upgrade the tables to this version. Run it once per release, before web and workers.

    [cyan]$ cplane db upgrade[/]

    Concurrent runs wait for each other. Running it again changes nothing.
    """
    from cplane.postgres.migrations import upgrade as upgrade_tables
    from cplane.settings import load_settings

    before, after = run(upgrade_tables(load_settings().database_url))
    if before == after:
        notes().print(f"the tables are at revision {after} already")
    else:
        notes().print(styled("[green]upgraded[/] the tables from {} to revision {}", before or "nothing", after))
