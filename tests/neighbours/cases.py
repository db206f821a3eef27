"""The offenders: how each is submitted, and how it ends."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cplane import State
from cplane.jobs.definition import AnyJob
from cplane.tasks import content, links, markdown, scrape
from tests.neighbours import offenders as by
from tests.neighbours.innocents import Call

ALL_DEATHS = 100
"""More than a job is allowed: it dies until it has failed for good."""


@dataclass(frozen=True, kw_only=True)
class Offender:
    """One case."""

    name: str
    job: AnyJob
    args: Mapping[str, Any] = field(default_factory=dict[str, Any])
    quick_args: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Instead of `args` of the same names, in a quick run."""
    path: str = ""
    """The page that it visits; empty: none."""
    quick_path: str = ""
    """Instead of `path`, in a quick run."""
    state: State = State.FAILED
    type: str = ""
    """A regular expression that the type of its last error matches."""
    message: str = ""
    """A regular expression that is found in the message of its last error, or in its result."""
    kills: bool = False
    """Whether its worker process ends by it."""
    blocks: bool = False
    """Whether it blocks its worker process while it runs."""
    is_bad_outcome: bool = False
    """Whether the harm is in what it returns or raises."""
    stays: bool = False
    """Whether it is aboard of a worker that is told to stop for the measurement of the time that takes."""
    memory_mb: int = 0
    """What must be free on the machine."""
    among_innocents: bool = True
    """Whether it is one of the offenders beside innocents."""

    def call(self, url: str, *, quick: bool) -> Call:
        """Return the call."""
        given = {**self.args, **(self.quick_args if quick else {})}
        path = self.quick_path if quick and self.quick_path else self.path
        return self.job, {**given, "url": f"{url}{path}"} if path else given


DIES: dict[str, Any] = {
    "args": {"deaths": ALL_DEATHS},
    "quick_args": {"deaths": 1},
    "kills": True,
    "type": "WorkerLost",
}

OFFENDERS = [
    Offender(name="sleep on the loop", job=by.block_the_loop, args={"seconds": 15}, quick_args={"seconds": 2.5},
             state=State.SUCCEEDED, message="awake", blocks=True),
    Offender(name="regex that holds the GIL", job=by.backtrack, kills=True, blocks=True, type="JobTimeout",
             message=r"'backtrack' held the interpreter for \d+ s at offenders\.py:\d+ in backtrack, past its timeout"),
    Offender(name="C extension that holds the GIL", job=by.hold_the_gil, args={"seconds": 15},
             quick_args={"seconds": 3}, state=State.SUCCEEDED, message="released", blocks=True),
    Offender(name="C extension that never returns", job=by.hold_the_gil_for_a_minute, kills=True, blocks=True,
             type="JobTimeout", message=r"'hold_the_gil_for_a_minute' held the interpreter for \d+ s"),
    Offender(name="os._exit", job=by.exit_without_clean_up, message="exited with code 3", **DIES),
    Offender(name="segfault", job=by.segfault, message="killed by SIGSEGV", **DIES),
    Offender(name="SIGKILL of itself", job=by.send_itself_sigkill, message="killed by SIGKILL", **DIES),
    Offender(name="sys.exit", job=by.call_sys_exit, type="RuntimeError", message="raised SystemExit.*enough"),
    Offender(name="KeyboardInterrupt", job=by.interrupt_from_the_keyboard, type="RuntimeError",
             message="raised KeyboardInterrupt"),
    Offender(name="4 GB allocation", job=by.allocate_4_gb, state=State.SUCCEEDED, message="4294967296",
             memory_mb=8192),
    Offender(name="4 GB in a process", job=by.allocate_4_gb_in_a_process, type="MemoryLimitExceeded",
             message="more than 512 MiB"),
    Offender(name="fork without exec", job=by.fork_without_exec, state=State.SUCCEEDED, message="True"),
    Offender(name="50,000 tasks left behind", job=by.leave_50_000_tasks, state=State.SUCCEEDED, message=r"\d+"),
    Offender(name="signal handler installed", job=by.take_the_signals, state=State.SUCCEEDED, message="taken",
             stays=True),
    Offender(name="asyncio.run in a thread", job=by.run_a_loop_in_a_thread, state=State.SUCCEEDED, message="turned"),
    Offender(name="result of 300 MB", job=by.return_300_mb, type="ResultTooLarge", is_bad_outcome=True,
             message=r"'return_300_mb' returned has at least 300,000,002 bytes, more than 1,048,576 .*return a ref"),
    Offender(name="result that is no JSON", job=by.return_an_object, type="ResultNotSerializable",
             message="'return_an_object'", is_bad_outcome=True),
    Offender(name="1 MB exception text", job=by.raise_1_mb, type="ValueError", message="^a long story .{10,20000}$",
             is_bad_outcome=True),
    Offender(name="page with 100,000 elements", job=scrape, path="/elements", type="TooLarge",
             args={"elements": [{"selector": "a"}], "limit": 10_000}, message="more than 786,432 bytes"),
    Offender(name="page with 50,000 links", job=links, path="/elements", type="TooLarge", message="the links of"),
    Offender(name="allocating page", job=content, path="/allocating", args={"wait_for_timeout": 30_000},
             type="PageTooLarge", message=r"/allocating used \d+ MiB of memory; a page may use"),
    Offender(name="spinning page", job=content, path="/spinning", args={"goto_options": {"timeout": 5000}},
             type="PageUnresponsive", message="/spinning stopped responding", stays=True),
    Offender(name="gzip bomb", job=content, path="/bomb", type="PageTooLarge",
             message=r"used \d+ MiB of memory; a page may use"),
    Offender(name="popup bomb", job=content, path="/popups", args={"wait_for_timeout": 30_000}, type="PageTooLarge",
             message=r"/popups opened more than \d+ windows"),
    Offender(name="hostile markdown", job=markdown, path="/hostile",
        quick_path="/hostile-soon", type="TooComplex", stays=True,
             message="/hostile.* could not be converted within"),
    Offender(name="loop blocked for a minute", job=by.block_the_loop, args={"seconds": 60}, stays=True, among_innocents=False, blocks=True),
    Offender(name="regex for a minute", job=by.backtrack_for_a_minute, stays=True, among_innocents=False, blocks=True),
    Offender(name="stuck thread", job=by.stay_in_a_thread, stays=True, among_innocents=False),
]  # fmt: skip

CASES = [offender for offender in OFFENDERS if offender.among_innocents]
PAGES = [offender for offender in CASES if offender.path]
"""Built-in jobs on hostile pages."""

STAYING = [offender for offender in OFFENDERS if offender.stays]
