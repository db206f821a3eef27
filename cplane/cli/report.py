"""Tables and texts that show records, queues, hosts and sessions on a terminal."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rich import box
from rich.console import Group, RenderableType
from rich.json import JSON
from rich.table import Table
from rich.text import Text

from cplane.demo.report import size
from cplane.jobs.states import AttemptState, State

if TYPE_CHECKING:
    from cplane.plane.transient import TransientJob
    from cplane.postgres.models import ArtifactRecord, AttemptRecord, JobRecord
    from cplane.postgres.rows import RecordSummary
    from cplane.redis.dead_letters import DeadLetter
    from cplane.redis.limiter import LimiterStats
    from cplane.redis.messages import QueueStats
    from cplane.sessions.store import SessionInfo

MAX_HOSTS = 3
"""Hosts of a session that a row shows."""

STYLES = {
    State.QUEUED: "yellow",
    State.RUNNING: "cyan",
    State.SUCCEEDED: "green",
    State.FAILED: "red",
    State.CANCELLED: "magenta",
}


def state_text(state: State | AttemptState) -> Text:
    """Return the name of a state in its colour."""
    style = STYLES.get(State(state), "") if state in set(State) else "red"
    return Text(state.value, style)


def records_table(records: "Sequence[RecordSummary]", now: datetime) -> Table:
    """Return a table with one row a record, in the given order."""
    table = plain_table("id", "job", "state", "queue", "created", "took", "attempt")
    for record in records:
        table.add_row(
            str(record.id),
            record.job,
            state_text(record.state),
            record.queue,
            f"{duration(now, record.created_at)} ago",
            duration(record.finished_at, record.started_at),
            str(record.attempt),
        )
    return table


def record_view(
    record: "JobRecord | TransientJob", attempts: "Sequence[AttemptRecord]", artifacts: "Sequence[ArtifactRecord]"
) -> RenderableType:
    """Return the details of a record, with its attempts and its artifacts."""
    facts = Table.grid(padding=(0, 2))
    facts.add_row("job", Text(record.job, "bold"))
    facts.add_row("id", str(record.id))
    facts.add_row("state", state_text(record.state))
    facts.add_row(
        "queue", record.queue if record.priority == "normal" else f"{record.queue}, priority {record.priority}"
    )
    if record.timeout_s is not None:
        facts.add_row("timeout", f"{record.timeout_s:g} s")
    facts.add_row("created", clock(record.created_at))
    if record.state is State.QUEUED and record.run_at > datetime.now(UTC):
        facts.add_row("starts at", clock(record.run_at))
    if record.progress_done is not None:
        facts.add_row("progress", progress_text(record.progress_done, record.progress_total, record.progress_note))
    facts.add_row("arguments", JSON.from_data(record.args))
    if record.state is State.SUCCEEDED:
        facts.add_row("result", JSON.from_data(record.result))
    if record.error_type is not None:
        facts.add_row("error", Text(f"{record.error_type}: {record.error_message}", "red"))
    parts: list[RenderableType] = [facts]
    if record.error_traceback:
        parts += ["", Text(record.error_traceback.rstrip(), "dim")]
    if attempts:
        parts += ["", _attempts_table(attempts)]
    if artifacts:
        parts += ["", artifacts_table(artifacts)]
    return Group(*parts)


def queues_table(stats: "Sequence[QueueStats]") -> Table:
    """Return a table with one row a queue."""
    table = plain_table("queue", "ready", "scheduled", "running", "latency")
    for queue in stats:
        latency = seconds_text(queue.latency_s) if queue.ready else ""
        table.add_row(queue.queue, str(queue.ready), str(queue.scheduled), str(queue.running), latency)
    return table


def hosts_table(stats: "Sequence[LimiterStats]") -> Table:
    """Return a table with one row a host."""
    table = plain_table("host", "running", "waiting", "rate", "next start in", "cooldown")
    for each in stats:
        table.add_row(
            Text(each.host),
            f"{each.in_use} of {each.concurrency}" if each.concurrency else str(each.in_use),
            str(each.waiting),
            f"{each.rate:g}/s" if each.rate else "",
            seconds_text(each.next_start_s) if each.next_start_s else "",
            seconds_text(each.cooldown_s) if each.cooldown_s else "",
        )
    return table


def dead_letters_table(letters: "Sequence[DeadLetter]") -> Table:
    """Return a table with one row a dead letter."""
    table = plain_table("at", "queue", "id", "reason")
    for each in letters:
        table.add_row(clock(datetime.fromtimestamp(each.at_ms / 1000, UTC)), each.queue, each.id, Text(each.reason))
    return table


def sessions_table(sessions: "Sequence[SessionInfo]", now: datetime) -> Table:
    """Return a table with one row a session."""
    table = plain_table("name", "size", "saved", "times", "used", "key", "hosts", "held by")
    for session in sessions:
        table.add_row(
            session.name,
            size(session.size) if session.version else "empty",
            f"{duration(now, session.updated_at)} ago" if session.version else "",
            str(session.version),
            f"{duration(now, session.used_at)} ago" if session.used_at else "",
            session.key_id or "",
            Text(_binding(session)),
            "" if session.held_by is None else f"{session.held_by} attempt {session.held_attempt}",
        )
    return table


def _binding(session: "SessionInfo") -> str:
    """Return the hosts of a session, and what it allows by name."""
    hosts, allowed = session.hosts or [], [*session.allowed_hosts, *session.allowed_options]
    more = f" and {len(hosts) - MAX_HOSTS} more" if len(hosts) > MAX_HOSTS else ""
    return ", ".join(hosts[:MAX_HOSTS]) + more + (f" + {', '.join(allowed)}" if allowed else "")


def artifacts_table(artifacts: "Sequence[ArtifactRecord]") -> Table:
    """Return a table with one row an artifact."""
    table = plain_table("file", "type", "size", "sha256")
    for artifact in artifacts:
        table.add_row(artifact.name, artifact.media_type, size(artifact.size), artifact.sha256[:12])
    return table


def plain_table(*columns: str) -> Table:
    """Return an empty table without frames. Ids and states are never wrapped."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="dim")
    for column in columns:
        table.add_column(column, no_wrap=column in {"id", "state"}, overflow="fold")
    return table


def progress_text(done: float, total: float | None, note: str | None) -> str:
    """Return a text such as `3/10 loaded`."""
    counted = f"{done:g}" if total is None else f"{done:g}/{total:g}"
    return f"{counted} {note}" if note else counted


def clock(when: datetime) -> str:
    """Return a time in the local time zone."""
    return when.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def duration(end: datetime | None, start: datetime | None) -> str:
    """Return the time between two moments as `0.42 s`, `3 min`, `2 h`, `5 d`; empty if one is missing."""
    if end is None or start is None:
        return ""
    seconds = max(0.0, (end - start).total_seconds())
    return seconds_text(seconds)


def seconds_text(seconds: float) -> str:
    """Return a duration with its largest fitting unit."""
    if seconds < 10:
        return f"{seconds:.2f} s"
    for limit, unit_s, unit in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit_s:.0f} {unit}"
    return f"{seconds / 86_400:.0f} d"


def _attempts_table(attempts: "Sequence[AttemptRecord]") -> Table:
    table = plain_table("attempt", "state", "cause", "started", "took", "worker", "error")
    for attempt in attempts:
        table.add_row(
            str(attempt.attempt),
            state_text(attempt.state),
            attempt.cause.value,
            clock(attempt.started_at),
            duration(attempt.finished_at, attempt.started_at),
            attempt.worker,
            "" if attempt.error_type is None else f"{attempt.error_type}: {attempt.error_message}",
        )
    return table
