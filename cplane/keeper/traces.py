"""Tracebacks that a blocked worker process has written by `faulthandler`, which needs neither its loop nor its lock."""

import os
import re
import sysconfig
from pathlib import PurePath

MAX_BYTES = 64 * 1024
"""How much of the end of the file is read."""

FRAME = re.compile(r'  File "(?P<file>[^"]*)", line (?P<line>\d+) in (?P<name>.*)')
HEAD = re.compile(r"^(?:Current thread|Thread) 0x(?P<ident>[0-9a-f]+).*\n", re.MULTILINE)
LIBRARIES = "|".join(
    map(
        re.escape,
        (*map(sysconfig.get_path, ("stdlib", "platstdlib", "purelib", "platlib")), str(PurePath(__file__).parents[1])),
    )
)
NOT_THE_JOBS = re.compile(rf"^(?:{LIBRARIES}|<)")
"""Frames of Python's libraries, of installed packages and of cplane are not the job's own."""


def where_blocked(fd: int, *, in_thread: bool = False, ident: int = 0) -> str:
    """Return the innermost line of a job in the last traceback, such as `app.py:12 in blocker`; empty if there is none.

    Args:
        fd: the file that the process writes to.
        in_thread: whether the job runs in a thread of the executor, not on the main thread.
        ident: the id of that thread; 0: it is not known.
    """
    size = os.fstat(fd).st_size
    text = os.pread(fd, MAX_BYTES, max(0, size - MAX_BYTES)).decode(errors="replace")
    last = text[text.rfind("Timeout (") :] if "Timeout (" in text else text
    _, *parts = HEAD.split(last)
    found = {int(thread, 16): _frames(stack) for thread, stack in zip(parts[::2], parts[1::2], strict=True)}
    stacks = list(found.values())
    if ident in found:
        stacks = [found[ident]]
    elif in_thread:
        stacks = [frames for frames in stacks if frames and _runs_a_job(frames)]
    frames = stacks[-1] if stacks else []  # the main thread is the last
    chosen = next((f for f in frames if not NOT_THE_JOBS.search(f["file"])), frames[0] if frames else None)
    return "" if chosen is None else f"{PurePath(chosen['file']).name}:{chosen['line']} in {chosen['name']}"


def _frames(stack: str) -> list[re.Match[str]]:
    return [match for line in stack.splitlines() if (match := FRAME.fullmatch(line))]


def _runs_a_job(frames: list[re.Match[str]]) -> bool:
    """Whether a thread runs a job: `cplane/worker/threads.py` calls it there."""
    return any(frame["name"] == "_outcome" and frame["file"].endswith("threads.py") for frame in frames)
