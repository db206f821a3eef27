"""What this worker can run, by name: jobs of the registry and arq's functions, each as a `Runnable`."""

from collections.abc import Mapping

from cplane.jobs.definition import AnyJob
from cplane.jobs.registry import Registry
from cplane.worker.arq_functions import ArqFunction
from cplane.worker.process_pool import ProcessPool
from cplane.worker.runnable import RecordedJob, Runnable, TransientJob
from cplane.worker.threads import JobThreads


class Catalog:
    """The runnables of a worker.

    Args:
        registry: the jobs of the process.
        functions: arq's functions and cron jobs, by name.
        threads: where plain `def` jobs run.
        processes: where those with `runs_in="process"` run.
        max_result_bytes: size of the largest result, bytes.
    """

    def __init__(
        self,
        registry: Registry,
        functions: Mapping[str, ArqFunction],
        threads: JobThreads,
        processes: ProcessPool,
        max_result_bytes: int,
    ) -> None:
        self._registry = registry
        self._functions = functions
        self._threads = threads
        self._processes = processes
        self._max_result_bytes = max_result_bytes
        self._recorded: dict[AnyJob, RecordedJob] = {}
        self._transient: dict[AnyJob, TransientJob] = {}

    def needs_pages(self, queue: str) -> bool:
        """Whether jobs of this queue ask for pages."""
        return self._registry.needs_pages(queue)

    def recorded(self, name: str) -> Runnable:
        """Return the job of a record. Raises UnknownJob."""
        job = self._registry.get(name)
        found = self._recorded.get(job)
        if found is None:
            found = self._recorded[job] = RecordedJob(job, self._threads, self._processes, self._max_result_bytes)
        return found

    def knows(self, name: str) -> bool:
        """Whether there is a job of that name."""
        return name in self._registry.jobs

    def unrecorded(self, name: str) -> Runnable:
        """Return what runs without a record: arq's function of that name, or the job as a transient one. Raises UnknownJob."""
        function = self._functions.get(name)
        if function is not None:
            return function
        job = self._registry.get(name)
        found = self._transient.get(job)
        if found is None:
            found = self._transient[job] = TransientJob(job, self._threads, self._processes, self._max_result_bytes)
        return found
