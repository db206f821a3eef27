"""Judges the innocents by the records: who failed, who ran twice, and who could have started earlier."""

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from cplane.jobs.states import ALONE_AFTER
from tests.chaos.arena import query
from tests.neighbours.cluster import Cluster, Process

ATTEMPTS = """
SELECT a.job_id, a.attempt, a.worker, a.state, a.error_type, a.error_message, j.job, j.queue, j.crashes, j.failures,
       extract(epoch FROM j.created_at)::float8 AS created, extract(epoch FROM a.started_at)::float8 AS started,
       extract(epoch FROM a.finished_at)::float8 AS finished
FROM cplane.attempts a JOIN cplane.jobs j ON j.id = a.job_id WHERE extract(epoch FROM a.finished_at) > $1
ORDER BY a.job_id, a.attempt
"""


@dataclass(frozen=True)
class Attempt:
    """An attempt that has ended. Times are seconds of the system's clock."""

    job_id: UUID
    attempt: int
    worker: str
    state: str
    error_type: str | None
    error_message: str | None
    job: str
    queue: str
    crashes: int
    failures: int
    created: float
    started: float
    finished: float


async def read_attempts(cluster: Cluster, since: float) -> dict[UUID, list[Attempt]]:
    """Return the attempts of all jobs that have ended since a time, in their order."""
    found: dict[UUID, list[Attempt]] = {}
    for row in await query(cluster.settings.database_url.get_secret_value(), ATTEMPTS, since):
        found.setdefault(row["job_id"], []).append(Attempt(**row))
    return found


@dataclass
class Waiting:
    """A job that waits for an attempt to start."""

    job_id: UUID
    queue: str
    since: float
    """When it was submitted, or its previous attempt ended."""
    until: float
    """When the attempt started."""
    could_s: float = 0.0
    """For how long it could have started, and did not."""


class Slots:
    """The slots of the workers over time, and the jobs that waited for them.

    A process has free slots of a queue while it claims jobs, no offender blocks it, and it runs fewer jobs of the queue
    than it may. Jobs start in the order in which they began to wait. So a job could have started at a time if more
    slots of its queue were free than jobs waited that had come before it.

    Args:
        attempts: those of each job, offenders included: they take slots, too.
        processes: the processes that have run.
        blockers: jobs that block their process while they run; it claims nothing in that time.
        limits: concurrency of each queue in one process.
    """

    def __init__(
        self,
        attempts: Mapping[UUID, Sequence[Attempt]],
        processes: Sequence[Process],
        blockers: Iterable[UUID],
        limits: Mapping[str, int],
    ) -> None:
        self._attempts = [attempt for own in attempts.values() for attempt in own]
        self._processes = processes
        self._blockers = set(blockers)
        self._limits = limits
        self._waits = [wait for own in attempts.values() for wait in waits(own)]

    def late(self) -> dict[UUID, float]:
        """Return for how many seconds each job could have started and did not, at most of its attempts."""
        for queue in self._limits:
            self._sweep(queue, [wait for wait in self._waits if wait.queue == queue])
        longest: dict[UUID, float] = {}
        for wait in self._waits:
            longest[wait.job_id] = max(longest.get(wait.job_id, 0.0), wait.could_s)
        return longest

    def held_up_s(self, attempt: Attempt, began: float) -> float:
        """Return for how many seconds an attempt had a slot and its code did not run, although its process was not blocked."""
        blocks = [each for each in self._attempts if each.job_id in self._blockers and each.worker == attempt.worker]
        blocked_s = sum(max(0.0, min(each.finished, began) - max(each.started, attempt.started)) for each in blocks)
        return max(0.0, began - attempt.started - blocked_s)

    def _sweep(self, queue: str, waiting: list[Waiting]) -> None:
        """Go through the time in which jobs waited for a queue; between two changes nothing changes."""
        changes = sorted(
            {
                at
                for times in (
                    *((wait.since, wait.until) for wait in waiting),
                    *((attempt.started, attempt.finished) for attempt in self._attempts),
                    *((process.since, process.until) for process in self._processes),
                )
                for at in times
            }
        )
        waiting.sort(key=lambda wait: wait.since)
        for begin, end in itertools.pairwise(changes):
            inside = (begin + end) / 2
            heads = [wait for wait in waiting if wait.since < inside < wait.until]
            for wait in heads[: self._free(queue, inside)] if heads else []:
                wait.could_s += end - begin

    def _free(self, queue: str, at: float) -> int:
        """Return how many slots of a queue are free at a time."""
        running = [attempt for attempt in self._attempts if attempt.started < at < attempt.finished]
        blocked = {attempt.worker for attempt in running if attempt.job_id in self._blockers}
        taken = Counter(attempt.worker for attempt in running if attempt.queue == queue)
        serving = [
            process.name
            for process in self._processes
            if process.since < at < process.until and not process.is_quarantine
        ]
        return sum(max(0, self._limits[queue] - taken[name]) for name in serving if name not in blocked)


def waits(attempts: Sequence[Attempt]) -> list[Waiting]:
    """Return when a job waited in its queue. One that was aboard two crashes of unknown cause waits in the quarantine."""
    before = [attempts[0].created, *(attempt.finished for attempt in attempts)]
    lost = [n for n, attempt in enumerate(attempts) if attempt.state == "lost"]
    if len(lost) >= ALONE_AFTER:
        before = before[: lost[ALONE_AFTER - 1] + 1]
    return [
        Waiting(attempt.job_id, attempt.queue, since, max(since, attempt.started))
        for since, attempt in zip(before, attempts, strict=False)
    ]


def ran_twice(attempts: Sequence[Attempt], dead: set[str]) -> str:
    """Return why a job ran again although its process had not died; empty if it did not."""
    for attempt in attempts[:-1]:
        if attempt.worker not in dead:
            return f"attempt {attempt.attempt} on {attempt.worker}: {attempt.state}, {attempt.error_message}"
        if attempt.state not in {"lost", "interrupted", "released"}:
            return f"attempt {attempt.attempt} was {attempt.state}, not interrupted"
    return ""
