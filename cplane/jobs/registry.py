"""The jobs of this process by name: those it has imported, and the built-in ones."""

import importlib
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cplane.errors import InvalidJob, InvalidSettings, UnknownJob
from cplane.jobs.definition import AnyJob
from cplane.jobs.names import without_quarantine
from cplane.jobs.signature import location

BUILT_INS = "cplane.tasks"
"""Package of the built-in jobs."""


@dataclass(slots=True)
class Registry:
    """Jobs by name."""

    jobs: dict[str, AnyJob] = field(default_factory=dict[str, AnyJob])

    def add(self, job: AnyJob) -> None:
        """Register a job.

        The same function imported again replaces itself. A user's job takes precedence over a built-in one of its name.

        Raises:
            InvalidJob: another function is registered under this name.
        """
        known = self.jobs.get(job.name)
        if known is not None and _built_in(job) and not _built_in(known):
            return
        if known is not None and _source(known.fn) != _source(job.fn) and not _built_in(known):
            raise InvalidJob(
                f"two jobs are named '{job.name}': {location(known.fn)} and {location(job.fn)}",
                hint="give one of them another name: @job(name=…)",
            )
        self.jobs[job.name] = job

    def needs_pages(self, queue: str) -> bool:
        """Return whether any job of this queue, or of the queue of this quarantine, needs a page."""
        queue = without_quarantine(queue)
        return any(job.needs_page and job.options.queue == queue for job in self.jobs.values())

    def get(self, name: str) -> AnyJob:
        """Return the job of this name.

        Raises:
            UnknownJob: there is none; the message lists the known names.
        """
        job = self.jobs.get(name)
        if job is None:
            known = ", ".join(sorted(self.jobs)) or "none"
            raise UnknownJob(f"no job named '{name}'; known: {known}", hint="is its module in CPLANE_IMPORTS?")
        return job


def _built_in(job: AnyJob) -> bool:
    return str(getattr(job.fn, "__module__", "")).startswith(f"{BUILT_INS}.")


registry = Registry()
"""The jobs that this process has imported."""


def _source(fn: Callable[..., Any]) -> tuple[str, str]:
    return str(Path(fn.__code__.co_filename).resolve()), fn.__qualname__


def load_jobs(imports: Iterable[str], *, built_ins: bool = True) -> Registry:
    """Import the built-in jobs and the modules that define jobs.

    Args:
        imports: names of modules, as CPLANE_IMPORTS lists them.
        built_ins: whether to import the built-in jobs, and Playwright with them.

    Returns:
        All jobs of the process.

    Raises:
        InvalidSettings: a module does not exist; errors raised inside a module are passed on unchanged.
    """
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.append(folder)  # last, as in arq: a stray json.py there must not shadow the real one
    for name in (BUILT_INS, *imports) if built_ins else imports:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
                raise
            hint = "is CPLANE_IMPORTS right, and the folder on PYTHONPATH? write modules as a.b.c, separated by commas"
            raise InvalidSettings(
                f"CPLANE_IMPORTS names '{name}', which cannot be found from {folder}", hint=hint
            ) from None
    return registry
