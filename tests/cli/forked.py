"""Forks `cplane` commands from a process that has imported them: a command starts in 10 ms instead of a second.

The process ends when its stdin is closed. It is started with `python -P`, so that it runs the installed cplane.
"""

import json
import os
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.forks import ForkingProcess

MODULES = (
    "cplane.cli.doctor",
    "cplane.cli.jobs",
    "cplane.cli.queues",
    "cplane.cli.report",
    "cplane.cli.sessions",
    "cplane.cli.submit",
    "cplane.plane.control_plane",
    "cplane.tasks",
    "uvloop",
)

ROOT = Path(__file__).parents[2]
BEGIN = "import sys; sys.path.append(sys.argv[1]); from tests.cli.forked import main; main()"
"""The installed cplane comes before the one in this folder."""


class CommandServer(ForkingProcess):
    """Runs commands: `with CommandServer() as server: server.start(…)`."""

    def __init__(self) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("CPLANE_")}
        super().__init__([sys.executable, "-P", "-W", "error", "-c", BEGIN, str(ROOT)], environment)

    def start(self, arguments: list[str], variables: dict[str, str], folder: Path, output: Path) -> int:
        """Start a command.

        Args:
            arguments: the arguments of `cplane`.
            variables: its whole environment.
            folder: where it runs.
            output: a folder with a FIFO `code`, which gets its exit code; it gets `stdout` and `stderr`.

        Returns:
            Its process id; it is the leader of its process group.
        """
        return self.request(
            {"arguments": arguments, "variables": variables, "folder": str(folder), "output": str(output)}
        )


def main() -> None:
    """Fork a command for each line of stdin, and print its process id."""
    import importlib

    from cplane.cli import main as command

    for module in MODULES:
        importlib.import_module(module)
    print(0, flush=True)  # noqa: T201  the protocol
    for line in sys.stdin:
        request: dict[str, Any] = json.loads(line)
        ours, theirs = os.pipe()
        if os.fork() == 0:
            os.close(ours)
            _wait_for(request, command, theirs)
        os.close(theirs)
        pid = os.read(ours, 20)
        os.close(ours)
        print(pid.decode(), flush=True)  # noqa: T201
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def _wait_for(request: dict[str, Any], command: Any, pipe: int) -> None:
    """Run the command in a child, tell its id and write down its exit code. Never returns."""
    pid = os.fork()
    if pid == 0:
        os.close(pipe)
        _become(request, command)
    os.write(pipe, str(pid).encode())
    os.close(pipe)
    _, status = os.waitpid(pid, 0)
    Path(request["output"], "code").write_text(str(os.waitstatus_to_exitcode(status)))
    os._exit(0)


def _become(request: dict[str, Any], command: Any) -> None:
    """Turn this process into the command. Never returns."""
    import random

    os.setsid()
    random.seed()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(request["variables"])
    os.chdir(request["folder"])
    files = [Path(os.devnull), Path(request["output"], "stdout"), Path(request["output"], "stderr")]
    for number, file in enumerate(files):
        opened = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(opened, number)
        os.close(opened)
    sys.argv = ["cplane", *request["arguments"]]
    code: object = 0
    try:
        command()
    except SystemExit as error:
        code = error.code
    except BaseException as error:
        code = 1
        sys.excepthook(type(error), error, error.__traceback__)
    if not isinstance(code, int):
        print(code, file=sys.stderr) if code is not None else None  # noqa: T201
        code = 0 if code is None else 1
    _end()
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _end() -> None:
    """Do what the interpreter does at its end: wait for threads, call what is registered."""
    import atexit

    untyped: Any = (threading, atexit)
    untyped[0]._shutdown()
    untyped[1]._run_exitfuncs()
