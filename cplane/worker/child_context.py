"""The `Context` of a job in a forked process: what the job reports goes to the worker over the connection."""

import json
import socket
import threading
from collections.abc import Callable
from typing import Any, NoReturn

import structlog

from cplane.errors import UsageError
from cplane.jobs.context import Context, Progress
from cplane.worker import process_messages as messages


class Connection:
    """The connection to the worker. All threads of a job may send."""

    def __init__(self, opened: socket.socket) -> None:
        self._socket = opened
        self._sending = threading.Lock()

    def receive(self) -> messages.Request | None:
        """Return the next message; None at the end of the connection."""
        frame = messages.receive(self._socket)
        return None if frame is None else messages.requests.decode(frame)

    def send(self, message: messages.Reply | messages.Report) -> None:
        """Send a message; waits while the worker does not read."""
        frame = messages.encode(message)
        with self._sending:
            self._socket.sendall(frame)


def make_context(request: messages.RunJob, connection: Connection) -> Context:
    """Return the context of a job whose attempt is run by a worker on the other side of the connection."""

    def report_progress(progress: Progress) -> None:
        connection.send(messages.ProgressLine(float(progress.done), progress.total, str(progress.note)))

    return Context(
        id=request.id,
        key=request.key,
        job=request.job,
        attempt=request.attempt,
        log=structlog.wrap_logger(
            _Lines(connection),
            processors=[structlog.processors.format_exc_info, _to_json],
            wrapper_class=structlog.make_filtering_bound_logger(0),
        ),
        report_progress=report_progress,
        store_artifact=_refusal("ctx.artifact()"),
        read_artifact=_refusal("ctx.read_artifact()"),
        transaction=_refusal("ctx.transaction()"),
        cool_down=_refusal("ctx.cool_down()"),
    )


def _refusal(method: str) -> Callable[..., Any]:
    def refuse(*_: object) -> NoReturn:
        raise UsageError(f"{method} does not work in a process", hint="use it in an async job")

    return refuse


class _Lines:
    """The logger behind `ctx.log`: each line goes to the worker, which writes it with the fields of the attempt."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def __getattr__(self, level: str) -> Callable[[dict[str, Any]], None]:
        def write(fields: dict[str, Any]) -> None:
            self._connection.send(messages.LogLine(level, str(fields.pop("event", "")), fields))

        return write


def _to_json(
    _logger: object, _level: str, event: structlog.typing.EventDict
) -> tuple[tuple[dict[str, Any]], dict[str, Any]]:
    """As the last processor: return the arguments of the logger's method. What is not JSON is shown by its repr."""
    text = json.dumps(dict(event), default=repr, skipkeys=True, ensure_ascii=False)
    return (json.loads(text.encode(errors="replace")),), {}
