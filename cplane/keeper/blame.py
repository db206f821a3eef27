"""Who is to blame for a crash or a blocked event loop, and what that costs each attempt that was aboard."""

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from cplane.keeper.manifest import Entry

OWN_FAULTS = frozenset({signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL})
"""Signals by which a process dies of what its own code did. Any other may have come from outside: SIGKILL is also how the
kernel ends a process when memory is short."""


class Verdict(StrEnum):
    """What an attempt pays for the end of its process."""

    CRASH = "crash"
    """It caused it, or was alone."""
    TIMED_OUT = "timed_out"
    """It held its process past its own timeout, for which the process was killed: a retry, if it has one left."""
    GAVE_UP = "gave_up"
    """The same, and it has none left."""
    INNOCENT = "innocent"
    """Another attempt caused it: nothing."""
    UNKNOWN = "unknown"
    """Nobody knows who caused it: an interruption."""
    RELEASED = "released"
    """The process was to stop anyway: nothing."""


@dataclass(frozen=True, slots=True)
class Death:
    """How a worker process ended."""

    code: int
    """Its exit code; below 0, the signal that killed it."""
    step: int
    """The attempt whose code ran on the event loop when it died; 0: none."""
    blamed: int = 0
    """The attempt for which the keeper killed it; 0: the keeper did not, or does not know."""
    killed_for: str = ""
    """Why the keeper killed it; empty: it did not."""
    timed_out: bool = False
    """Whether the keeper killed it because an attempt held it past its own timeout."""
    stopping: bool = False
    """Whether it was to stop anyway."""

    @property
    def described(self) -> str:
        """What happened to the process, as the end of a sentence."""
        if self.killed_for:
            return f"was killed: {self.killed_for}"
        if self.code < 0:
            return f"was killed by {_signal_name(-self.code)}"
        return f"exited with code {self.code}"

    @property
    def by_own_code(self) -> bool:
        """Whether code that ran in the process must have ended it: an exit without a clean-up, or a fault."""
        return self.code >= 0 or -self.code in OWN_FAULTS


def culprit(entries: Sequence[Entry], death: Death) -> int:
    """Return the number of the attempt that ended the process; 0 if nobody knows."""
    if death.blamed:
        return death.blamed
    return suspect(entries, death.step) if death.by_own_code and not death.killed_for else 0


def suspect(entries: Sequence[Entry], step: int) -> int:
    """Return the only attempt whose code was running; 0 if there was none, or several.

    Args:
        entries: what is aboard.
        step: the attempt whose code runs on the event loop; 0: none.
    """
    running = {entry.seq for entry in entries if entry.in_thread or entry.seq == step}
    return running.pop() if len(running) == 1 else 0


def judge(entries: Sequence[Entry], death: Death) -> dict[int, Verdict]:
    """Return the verdict on each attempt that was aboard."""
    guilty = culprit(entries, death)
    if not any(entry.seq == guilty for entry in entries):
        guilty = 0
    if death.stopping and not guilty:
        return {entry.seq: Verdict.RELEASED for entry in entries}
    if not guilty and len(entries) == 1:
        guilty = entries[0].seq
    if not guilty:
        return {entry.seq: Verdict.UNKNOWN for entry in entries}
    return {entry.seq: _of_guilty(entry, death) if entry.seq == guilty else Verdict.INNOCENT for entry in entries}


def _of_guilty(entry: Entry, death: Death) -> Verdict:
    if not death.timed_out or not entry.recorded:
        return Verdict.CRASH
    return Verdict.TIMED_OUT if entry.retries_left else Verdict.GAVE_UP


def explain(entry: Entry, verdict: Verdict, death: Death, guilty_job: str) -> tuple[str, str]:
    """Return the type and message of the error on the record of an attempt.

    Args:
        entry: the attempt.
        verdict: what it pays.
        death: how its process ended.
        guilty_job: the name of the job that caused it; empty: unknown.
    """
    if verdict in {Verdict.TIMED_OUT, Verdict.GAVE_UP}:
        return "JobTimeout", death.killed_for
    if verdict is Verdict.CRASH:
        return "WorkerLost", f"its worker process {death.described}, while '{entry.job}' was running"
    if verdict is Verdict.RELEASED:
        return "WorkerLost", f"its worker process {death.described}, while it was stopping"
    if verdict is Verdict.INNOCENT:
        return "WorkerLost", f"its worker process {death.described}, because of '{guilty_job}' beside it"
    return "WorkerLost", f"its worker process {death.described}; which job caused it is not known"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
