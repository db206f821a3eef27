"""The SQL of the store: one statement per verb, with its reason next to it. docs/protocol.md lists the state changes.

Batches are passed as arrays. Rows that several transactions may want concurrently are locked in the order of their ids.
They are found by `id = ANY(…)`, which reads the primary key in its order, or one by one (LATERAL … OFFSET 0 FOR NO KEY
UPDATE) where each row of a batch has its own values. So batches cannot deadlock. And whatever the planner assumes about
a table that has just filled, it neither compares every row of a batch with every other one, nor reads a whole partial
index for each. A column that is omitted from a batch (an empty array) is NULL in every row.
"""

import re
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING

from cplane.jobs.names import QUARANTINE_SUFFIX
from cplane.jobs.states import ALONE_AFTER

if TYPE_CHECKING:
    from sqlalchemy import TextClause


class Statement:
    """One statement with named parameters (`:name`), in the forms of SQLAlchemy (`clause`) and asyncpg (`sql`)."""

    def __init__(self, sql: str) -> None:
        names: list[str] = []

        def number(match: re.Match[str]) -> str:
            if match[1] not in names:
                names.append(match[1])
            return f"${names.index(match[1]) + 1}"

        self._text = sql
        self.sql = re.sub(r"(?<![:\w]):(\w+)", number, sql)
        self.names = tuple(names)

    @cached_property
    def clause(self) -> "TextClause":
        """The statement for SQLAlchemy, which is imported here: the keeper has no use for it."""
        from sqlalchemy import text  # noqa: PLC0415

        return text(self._text)

    def arguments(self, values: Mapping[str, object]) -> list[object]:
        """Return the values in the order of the numbered parameters of `sql`."""
        return [values[name] for name in self.names]


WAITS_IN = f"""
    CASE WHEN crashes + suspicions >= {ALONE_AFTER} THEN queue || '{QUARANTINE_SUFFIX}' ELSE queue END AS queue
""".strip()
"""The queue in Redis of a record: that of its job, or its quarantine."""

DUE_IN_MS = "ceil(extract(epoch FROM run_at - clock_timestamp()) * 1000)::bigint AS due_in_ms"

_NEW = """
    coalesce(job, :job), coalesce(queue, :queue), coalesce(priority, :priority), 'queued', 'submit', args::jsonb,
    coalesce(run_at, clock_timestamp() + coalesce(delay_s, 0) * interval '1 second'), string_to_array(limit_keys, ' '),
    timeout_s
"""
_NEW_COLUMNS = """
    CAST(:ids AS uuid[]), CAST(:jobs AS text[]), CAST(:queues AS text[]), CAST(:priorities AS text[]), CAST(:args AS text[]),
    CAST(:delays AS float8[]), CAST(:run_ats AS timestamptz[]), CAST(:limit_keys AS text[]),
    CAST(:timeouts AS float8[])
"""

_SUBMIT = f"""
    INSERT INTO cplane.jobs (id, job, queue, priority, state, cause, args, run_at, limit_keys, timeout_s)
    SELECT id, {_NEW} FROM unnest({_NEW_COLUMNS}) AS new (id, job, queue, priority, args, delay_s, run_at, limit_keys, timeout_s)
"""
_SUBMITTED = f"RETURNING id, {DUE_IN_MS}, created_at, run_at"

SUBMIT = Statement(f"{_SUBMIT} {_SUBMITTED}")

# The same, visible before it is on disk: the caller must wait for FLUSH before it reports the submission. The setting
# ends with the transaction.
SUBMIT_EARLY = Statement(f"""
    WITH early AS MATERIALIZED (SELECT set_config('synchronous_commit', 'off', true))
    {_SUBMIT}, early {_SUBMITTED}
""")

# Earlier commits are on disk (and wherever `synchronous_commit` requires them) once a later synchronous commit is. That
# commit must have written something; this one writes to the log only.
FLUSH = Statement("SELECT pg_logical_emit_message(true, 'cplane', '')")

# A separate statement: the check for an existing key costs something for every row, also for those without a key
SUBMIT_KEYED = Statement(f"""
    INSERT INTO cplane.jobs (id, job, queue, priority, state, cause, args, run_at, limit_keys, timeout_s, key, request_hash)
    SELECT id, {_NEW}, key, request_hash
    FROM unnest({_NEW_COLUMNS}, CAST(:keys AS text[]), CAST(:hashes AS bytea[]))
         AS new (id, job, queue, priority, args, delay_s, run_at, limit_keys, timeout_s, key, request_hash)
    ORDER BY key
    ON CONFLICT (key) WHERE key IS NOT NULL DO NOTHING
    {_SUBMITTED}
""")

BY_KEY = Statement(f"""
    SELECT id, key, request_hash, state, created_at, run_at, {DUE_IN_MS}
    FROM cplane.jobs WHERE key = ANY(CAST(:keys AS text[]))
""")

CANCEL = Statement("""
    UPDATE cplane.jobs
    SET cancel_requested = true,
        state = CASE WHEN state = 'queued' THEN 'cancelled' ELSE state END,
        finished_at = CASE WHEN state = 'queued' THEN clock_timestamp() END
    WHERE id = :id AND state IN ('queued', 'running')
    RETURNING state
""")

_NEW_BUDGETS = """
    SET state = 'queued', cause = 'replay', failures = 0, crashes = 0, suspicions = 0, interruptions = 0,
        cancel_requested = false,
        run_at = clock_timestamp(), finished_at = NULL, result = NULL, error_type = NULL, error_message = NULL, error_traceback = NULL,
        progress_done = NULL, progress_total = NULL, progress_note = NULL
"""

REPLAY = Statement(f"""
    UPDATE cplane.jobs {_NEW_BUDGETS}
    WHERE id = :id AND state IN ('failed', 'cancelled')
    RETURNING id, state, job, queue, priority, limit_keys, {DUE_IN_MS}
""")

REPLAY_MANY = Statement(f"""
    WITH chosen AS (
        SELECT id FROM cplane.jobs
        WHERE state = ANY(CASE WHEN CAST(:state AS text) IS NULL THEN ARRAY['failed', 'cancelled'] ELSE ARRAY[CAST(:state AS text)] END)
              AND state IN ('failed', 'cancelled')
              AND (CAST(:job AS text) IS NULL OR job = :job) AND (CAST(:queue AS text) IS NULL OR queue = :queue)
              AND (CAST(:before AS uuid) IS NULL OR id < CAST(:before AS uuid))
        ORDER BY id DESC LIMIT :limit FOR UPDATE SKIP LOCKED
    )
    UPDATE cplane.jobs {_NEW_BUDGETS}
    FROM chosen WHERE jobs.id = chosen.id
    RETURNING jobs.id, state, job, queue, priority, limit_keys, {DUE_IN_MS}
""")

# one index lookup per queue, however many records are queued
QUEUES = Statement("""
    WITH RECURSIVE found AS (
        (SELECT queue FROM cplane.jobs WHERE state = 'queued' ORDER BY queue LIMIT 1)
        UNION ALL
        SELECT (SELECT jobs.queue FROM cplane.jobs WHERE state = 'queued' AND jobs.queue > found.queue ORDER BY jobs.queue LIMIT 1)
        FROM found WHERE found.queue IS NOT NULL
    )
    SELECT queue FROM found WHERE queue IS NOT NULL
""")

COUNT_REPLAYABLE = Statement("""
    SELECT count(*) AS number FROM cplane.jobs
    WHERE state IN ('failed', 'cancelled') AND (CAST(:state AS text) IS NULL OR state = :state)
          AND (CAST(:job AS text) IS NULL OR job = :job) AND (CAST(:queue AS text) IS NULL OR queue = :queue)
""")

# One index (job, queue, id) finds the newest records of a job or of a queue, with one lookup for each existing pair of
# them. The number of records does not matter, and every change of a record writes one index less.
NEWEST = Statement("""
    WITH RECURSIVE kinds AS (
        (SELECT job, queue FROM cplane.jobs WHERE (job, queue) >= (coalesce(CAST(:job AS text), ''), '') ORDER BY job, queue LIMIT 1)
        UNION ALL
        SELECT next.job, next.queue
        FROM kinds CROSS JOIN LATERAL (
            SELECT job, queue FROM cplane.jobs WHERE (jobs.job, jobs.queue) > (kinds.job, kinds.queue) ORDER BY job, queue LIMIT 1
        ) AS next
        WHERE CAST(:job AS text) IS NULL OR next.job = :job
    ),
    chosen AS MATERIALIZED (
        SELECT job, queue FROM kinds
        WHERE (CAST(:job AS text) IS NULL OR job = :job) AND (CAST(:queue AS text) IS NULL OR queue = :queue)
    )
    SELECT newest.id FROM chosen CROSS JOIN LATERAL (
        SELECT id FROM cplane.jobs
        WHERE jobs.job = chosen.job AND jobs.queue = chosen.queue AND uuid_send(id) < uuid_send(CAST(:before AS uuid))
              AND (CAST(:state AS text) IS NULL OR state = :state)
        ORDER BY uuid_send(id) DESC LIMIT :limit
    ) AS newest
    ORDER BY id DESC LIMIT :limit
""")

# CASE hides the state from the planner, which would otherwise read a whole partial index, as it does for a table that
# has just filled. Rows are found, and therefore locked, in the order of the primary key.
_STARTED = "id, attempt, job, args::text AS args_json, failures, interruptions, timeout_s"

START = Statement(f"""
    UPDATE cplane.jobs
    SET state = 'running', attempt = attempt + 1, lease_token = :token, worker = :worker, started_at = clock_timestamp(),
        lease_until = clock_timestamp() + CAST(:lease_s AS float8) * interval '1 second',
        progress_done = NULL, progress_total = NULL, progress_note = NULL
    WHERE id = ANY(CAST(:ids AS uuid[]))
          AND CASE WHEN state = 'queued' THEN NOT cancel_requested AND run_at <= clock_timestamp() + interval '100 milliseconds'
                                              AND (crashes + suspicions < {ALONE_AFTER} OR :alone) END
    RETURNING {_STARTED}
""")

# Sent only if START did not return every record: a repeated start finds its own rows.
STARTED = Statement(f"""
    SELECT {_STARTED} FROM cplane.jobs
    WHERE id = ANY(CAST(:ids AS uuid[])) AND CASE WHEN state = 'running' THEN lease_token = :token END
""")

RENEW = Statement("""
    WITH mine AS (
        SELECT fence.*
        FROM (
            SELECT * FROM unnest(CAST(:ids AS uuid[]), CAST(:attempts AS int[]), CAST(:tokens AS text[]),
                                 CAST(:dones AS float8[]), CAST(:totals AS float8[]), CAST(:notes AS text[]))
            AS fence (id, attempt, token, done, total, note) ORDER BY id
        ) AS fence
        CROSS JOIN LATERAL (
            SELECT state, attempt, lease_token FROM cplane.jobs WHERE jobs.id = fence.id OFFSET 0 FOR NO KEY UPDATE
        ) AS held
        WHERE held.state = 'running' AND held.attempt = fence.attempt AND held.lease_token = fence.token
    )
    UPDATE cplane.jobs
    SET lease_until = clock_timestamp() + CAST(:lease_s AS float8) * interval '1 second',
        progress_done = CASE WHEN done IS NULL THEN progress_done ELSE done END,
        progress_total = CASE WHEN done IS NULL THEN progress_total ELSE total END,
        progress_note = CASE WHEN done IS NULL THEN progress_note ELSE note END
    FROM mine WHERE jobs.id = mine.id
    RETURNING jobs.id, jobs.attempt, cancel_requested
""")

# The outcome of most attempts: a success with a result and nothing else (`results` holds the results that are not null,
# by id). It returns the attempts that it did not finish: the record was not running, or not this attempt. FINISH
# decides what that means.
FINISH_PLAIN = Statement("""
    WITH finished AS (
        UPDATE cplane.jobs
        SET state = 'succeeded', result = coalesce(CAST(:results AS jsonb) -> id::text, 'null'),
            error_type = NULL, error_message = NULL, error_traceback = NULL, finished_at = clock_timestamp(), lease_until = NULL,
            progress_done = NULL, progress_total = NULL, progress_note = NULL
        WHERE id = ANY(CAST(:ids AS uuid[])) AND CASE WHEN state = 'running' THEN (id, attempt, lease_token) IN
              (SELECT * FROM unnest(CAST(:ids AS uuid[]), CAST(:attempts AS int[]), CAST(:tokens AS text[]))) END
        RETURNING id, attempt, worker, cause, started_at, finished_at
    ),
    recorded AS (
        INSERT INTO cplane.attempts (job_id, attempt, worker, cause, state, started_at, finished_at)
        SELECT id, attempt, worker, cause, 'succeeded', started_at, finished_at FROM finished
    )
    SELECT id, attempt FROM unnest(CAST(:ids AS uuid[]), CAST(:attempts AS int[])) AS outcome (id, attempt)
    WHERE (SELECT count(*) FROM finished) < cardinality(CAST(:ids AS uuid[])) AND (id, attempt) NOT IN (SELECT id, attempt FROM finished)
""")

# The row of the attempt is written once, when it has ended. Only exceptions are returned: a state other than the
# requested one, or NULL for an attempt that no longer owned its record. A repeated finish finds its own row (same
# attempt, same token, the requested state) and is not an exception.
FINISH = Statement("""
    WITH outcome AS MATERIALIZED (
        SELECT * FROM unnest(
            CAST(:ids AS uuid[]), CAST(:attempts AS int[]), CAST(:tokens AS text[]), CAST(:states AS text[]), CAST(:attempt_states AS text[]),
            CAST(:results AS text[]), CAST(:error_types AS text[]), CAST(:error_messages AS text[]), CAST(:error_tracebacks AS text[]),
            CAST(:delays AS float8[]), CAST(:causes AS text[]), CAST(:failures AS int[]), CAST(:interruptions AS int[]),
            CAST(:dones AS float8[]), CAST(:totals AS float8[]), CAST(:notes AS text[]))
        AS outcome (id, attempt, token, state, attempt_state, result, error_type, error_message, error_traceback,
                    delay_s, next_cause, failures, interruptions, done, total, note)
        ORDER BY id
    ),
    mine AS MATERIALIZED (
        SELECT outcome.*, held.worker, held.cause, held.started_at,
               CASE WHEN outcome.state = 'queued' AND held.cancel_requested THEN 'cancelled' ELSE outcome.state END AS new_state
        FROM outcome CROSS JOIN LATERAL (
            SELECT state, attempt, lease_token, worker, cause, started_at, cancel_requested FROM cplane.jobs
            WHERE jobs.id = outcome.id OFFSET 0 FOR NO KEY UPDATE
        ) AS held
        WHERE held.state = 'running' AND held.attempt = outcome.attempt AND held.lease_token = outcome.token
    ),
    finished AS (
        UPDATE cplane.jobs
        SET state = new_state, cause = CASE WHEN mine.state = 'queued' THEN next_cause ELSE jobs.cause END, result = mine.result::jsonb,
            error_type = mine.error_type, error_message = mine.error_message, error_traceback = mine.error_traceback,
            failures = jobs.failures + mine.failures, interruptions = jobs.interruptions + mine.interruptions,
            run_at = CASE WHEN mine.state = 'queued' THEN clock_timestamp() + delay_s * interval '1 second' ELSE run_at END,
            finished_at = CASE WHEN new_state = 'queued' THEN NULL ELSE clock_timestamp() END,
            lease_until = NULL, progress_done = done, progress_total = total, progress_note = note
        FROM mine WHERE jobs.id = mine.id
        RETURNING jobs.id, jobs.attempt, jobs.state, jobs.state = mine.state AS as_wanted
    ),
    recorded AS (
        INSERT INTO cplane.attempts (job_id, attempt, worker, cause, state, started_at, finished_at, error_type, error_message, error_traceback)
        SELECT id, attempt, worker, cause, attempt_state, started_at, clock_timestamp(), error_type, error_message, error_traceback FROM mine
    )
    SELECT id, attempt, actual FROM (
        SELECT id, attempt, outcome.state AS wanted, coalesce(
            (SELECT finished.state FROM finished WHERE finished.id = outcome.id AND finished.attempt = outcome.attempt),
            (SELECT jobs.state FROM cplane.jobs
             WHERE jobs.id = outcome.id AND jobs.attempt = outcome.attempt AND lease_token = outcome.token
                   AND (jobs.state = outcome.state OR outcome.state = 'queued' AND jobs.state = 'cancelled' AND lease_until IS NULL)
                   AND jobs.state <> 'running')
        ) AS actual
        FROM outcome WHERE (id, attempt) NOT IN (SELECT id, attempt FROM finished WHERE as_wanted)
    ) AS exceptions
    WHERE actual IS DISTINCT FROM wanted
""")

SCHEDULE_ROWS = Statement(f"""
    SELECT id, state, job, {WAITS_IN}, priority, limit_keys,
           ceil(extract(epoch FROM CASE WHEN state = 'running' THEN lease_until ELSE run_at END - clock_timestamp()) * 1000)::bigint AS due_in_ms
    FROM cplane.jobs WHERE id = ANY(CAST(:ids AS uuid[]))
""")

# Whoever was aboard of a dead worker is suspected. A job that ran alone (`alone` is 1) is to blame.
REAP = Statement(f"""
    WITH dead AS (
        SELECT id, worker, cause, started_at, (crashes + suspicions >= {ALONE_AFTER})::int AS alone
        FROM cplane.jobs WHERE state = 'running' AND lease_until < clock_timestamp()
        ORDER BY lease_until LIMIT :limit FOR UPDATE SKIP LOCKED
    ),
    reaped AS (
        UPDATE cplane.jobs
        SET crashes = crashes + alone, suspicions = suspicions + 1 - alone, cause = 'lost', lease_until = NULL, run_at = clock_timestamp(),
            state = CASE WHEN cancel_requested THEN 'cancelled' WHEN crashes + alone >= CAST(:max_crashes AS int) THEN 'failed' ELSE 'queued' END,
            error_type = 'WorkerLost',
            error_message = 'its worker ' || jobs.worker || ' died or lost its lease' || CASE
                WHEN alone = 1 THEN ' while it ran alone (' || crashes + 1 || ' of ' || CAST(:max_crashes AS int) || ')'
                WHEN crashes + suspicions + 1 >= {ALONE_AFTER} THEN '; it runs alone from now on' ELSE '' END,
            error_traceback = '',
            finished_at = CASE WHEN cancel_requested OR crashes + alone >= CAST(:max_crashes AS int) THEN clock_timestamp() END
        FROM dead WHERE jobs.id = dead.id
        RETURNING jobs.id, state, job, {WAITS_IN}, priority, limit_keys, attempt, error_message, run_at, dead.worker,
            dead.cause AS old_cause, dead.started_at
    ),
    recorded AS (
        INSERT INTO cplane.attempts (job_id, attempt, worker, cause, state, started_at, finished_at, error_type, error_message)
        SELECT id, attempt, worker, old_cause, 'lost', started_at, clock_timestamp(), 'WorkerLost', error_message FROM reaped
    )
    SELECT id, state, job, queue, priority, limit_keys, {DUE_IN_MS} FROM reaped
""")

# A worker died, or was killed, with these attempts aboard. The verdict on each says what it costs. `crash`: it caused that,
# or was alone. `timed_out`, `gave_up`: the worker was killed because it held the loop past its timeout, and it has retries
# left, or none. `innocent`: another caused it. `unknown`: nobody knows who, and all are suspected. `released`: the worker
# was to stop anyway, or its code had not begun.
RESCUE = Statement(f"""
    WITH aboard AS (
        SELECT fence.verdict, fence.error_type, fence.error_message, held.*
        FROM (
            SELECT * FROM unnest(CAST(:ids AS uuid[]), CAST(:attempts AS int[]), CAST(:tokens AS text[]),
                                 CAST(:verdicts AS text[]), CAST(:error_types AS text[]), CAST(:error_messages AS text[]))
            AS fence (id, attempt, token, verdict, error_type, error_message) ORDER BY id
        ) AS fence
        CROSS JOIN LATERAL (
            SELECT id, state, attempt, lease_token, worker, cause, started_at FROM cplane.jobs
            WHERE jobs.id = fence.id OFFSET 0 FOR NO KEY UPDATE
        ) AS held
        WHERE held.state = 'running' AND held.attempt = fence.attempt AND held.lease_token = fence.token
    ),
    rescued AS (
        UPDATE cplane.jobs
        SET crashes = crashes + (verdict = 'crash')::int, suspicions = suspicions + (verdict = 'unknown')::int,
            failures = failures + (verdict IN ('timed_out', 'gave_up'))::int,
            cause = CASE verdict WHEN 'crash' THEN 'lost' WHEN 'unknown' THEN 'lost' WHEN 'released' THEN 'release' WHEN 'timed_out' THEN 'retry'
                                 ELSE 'infrastructure' END,
            state = CASE WHEN cancel_requested THEN 'cancelled' WHEN verdict = 'gave_up' THEN 'failed'
                         WHEN verdict = 'crash' AND crashes + 1 >= CAST(:max_crashes AS int) THEN 'failed'
                         ELSE 'queued' END,
            error_type = aboard.error_type, error_message = aboard.error_message, error_traceback = '',
            run_at = clock_timestamp(), lease_until = NULL,
            finished_at = CASE WHEN cancel_requested OR verdict = 'gave_up' OR verdict = 'crash' AND crashes + 1 >= CAST(:max_crashes AS int)
                               THEN clock_timestamp() END
        FROM aboard WHERE jobs.id = aboard.id
        RETURNING jobs.id, jobs.state, {WAITS_IN}, jobs.attempt, aboard.worker, aboard.cause AS old_cause, aboard.started_at,
            aboard.verdict, aboard.error_type, aboard.error_message
    ),
    recorded AS (
        INSERT INTO cplane.attempts (job_id, attempt, worker, cause, state, started_at, finished_at, error_type, error_message)
        SELECT id, attempt, worker, old_cause,
               CASE verdict WHEN 'crash' THEN 'lost' WHEN 'unknown' THEN 'lost' WHEN 'released' THEN 'released' WHEN 'timed_out' THEN 'timed_out'
                            WHEN 'gave_up' THEN 'timed_out' ELSE 'interrupted' END,
               started_at, clock_timestamp(), error_type, error_message
        FROM rescued
    )
    SELECT id, attempt, state, queue FROM rescued
""")

# What a dead worker had started, but not yet begun to run.
STARTED_BY = Statement("""
    SELECT id, attempt, lease_token FROM cplane.jobs
    WHERE state = 'running' AND worker = :worker AND NOT id = ANY(CAST(:ids AS uuid[])) LIMIT 10000
""")

OVERDUE = Statement(f"""
    SELECT head.* FROM (VALUES ('high'), ('normal'), ('low')) AS lane (priority)
    CROSS JOIN LATERAL (
        SELECT id, state, job, {WAITS_IN}, priority, limit_keys, {DUE_IN_MS} FROM cplane.jobs
        WHERE state = 'queued' AND queue = :queue AND jobs.priority = lane.priority AND run_at < clock_timestamp() - interval '1 second'
        ORDER BY run_at LIMIT :limit
    ) AS head
""")

QUEUED = Statement(f"""
    SELECT id, state, job, {WAITS_IN}, priority, limit_keys, {DUE_IN_MS} FROM cplane.jobs
    WHERE state = 'queued' AND id > CAST(:after AS uuid) ORDER BY id LIMIT :limit
""")

EPOCH = Statement("SELECT number FROM cplane.epoch")

RECORD_EPOCH = Statement(
    "UPDATE cplane.epoch SET number = greatest(number, CAST(:number AS bigint)), restored_by = NULL, restored_until = NULL"
)

CLAIM_RESTORE = Statement("""
    UPDATE cplane.epoch SET restored_by = :worker, restored_until = clock_timestamp() + CAST(:for_s AS float8) * interval '1 second'
    WHERE restored_by IS NULL OR restored_by = :worker OR restored_until < clock_timestamp()
    RETURNING number
""")

ADD_ARTIFACT = Statement("""
    INSERT INTO cplane.artifacts (job_id, attempt, name, media_type, size, sha256, path)
    VALUES (:job_id, :attempt, :name, :media_type, :size, :sha256, :path)
    ON CONFLICT (job_id, attempt, name)
    DO UPDATE SET media_type = excluded.media_type, size = excluded.size, sha256 = excluded.sha256, path = excluded.path
""")
