"""The SQL of browser sessions: one guarded statement per verb, each in its own transaction.

A hold is live while its record runs with that attempt and a valid lease, at the latest until `held_until`. It needs no
renewal.

A statement reads the rows of `jobs` as of its snapshot, but a session can change hands until the statement locks its
row. So a hold is judged as of now(), the start of the transaction, which is before the snapshot. A hold that started
later counts as live, because the snapshot may not contain the start of its record yet. A hold that started earlier
belongs to a record whose start is in the snapshot, because a start is committed before the attempt acquires a session.
"""

from cplane.postgres.statements import Statement

_LIVE = """
    (sessions.held_by IS NOT NULL AND sessions.held_until > now() AND (sessions.held_since >= now() OR EXISTS (
        SELECT FROM cplane.jobs
        WHERE jobs.id = sessions.held_by AND jobs.state = 'running' AND jobs.attempt = sessions.held_attempt AND lease_until > now()
    )))
"""

_HELD_BY_CALLER = "name = :name AND held_by = :record_id AND held_attempt = CAST(:attempt AS int)"

_NO_HOLDER = "held_by = NULL, held_attempt = NULL, held_since = NULL, held_until = NULL"

_METADATA = f"""
    name, key_id, size, version, created_at, updated_at, used_at, hosts, allowed_hosts, allowed_options,
    CASE WHEN {_LIVE} THEN held_by END AS held_by, CASE WHEN {_LIVE} THEN held_attempt END AS held_attempt
"""

# Creates a missing session, empty. The holder may acquire again: it gets the same hold.
ACQUIRE = Statement(f"""
    INSERT INTO cplane.sessions (name, held_by, held_attempt, held_since, held_until, used_at)
    SELECT :name, id, attempt, clock_timestamp(), clock_timestamp() + CAST(:hold_s AS float8) * interval '1 second', clock_timestamp()
    FROM cplane.jobs
    WHERE id = :record_id AND state = 'running' AND attempt = CAST(:attempt AS int) AND lease_until > now()
    ON CONFLICT (name) DO UPDATE
    SET held_by = excluded.held_by, held_attempt = excluded.held_attempt, held_since = excluded.held_since,
        held_until = excluded.held_until, used_at = excluded.used_at
    WHERE NOT {_LIVE} OR sessions.held_by = excluded.held_by AND sessions.held_attempt <= excluded.held_attempt
    RETURNING ciphertext, key_id, version, hosts, allowed_hosts, allowed_options
""")

# Like a finish, it checks that the attempt is still the current one of its record, not that the lease is valid. The hosts
# of its first save stay.
SAVE = Statement(f"""
    UPDATE cplane.sessions
    SET ciphertext = :ciphertext, key_id = :key_id, size = CAST(:size AS int), version = version + 1, updated_at = clock_timestamp(),
        hosts = COALESCE(hosts, CAST(:hosts AS text[]))
    WHERE {_HELD_BY_CALLER} AND EXISTS (
        SELECT FROM cplane.jobs WHERE id = :record_id AND state = 'running' AND jobs.attempt = CAST(:attempt AS int)
    )
    RETURNING version
""")

RELEASE = Statement(f"UPDATE cplane.sessions SET {_NO_HOLDER} WHERE {_HELD_BY_CALLER}")

LIST = Statement(f"""
    SELECT {_METADATA} FROM cplane.sessions
    WHERE name COLLATE "C" > CAST(:after AS text) ORDER BY name COLLATE "C" LIMIT CAST(:limit AS int)
""")

GET = Statement(f"SELECT {_METADATA} FROM cplane.sessions WHERE name = :name")

DELETE = Statement(f"DELETE FROM cplane.sessions WHERE name = :name AND NOT {_LIVE} RETURNING name")

PUT = Statement(f"""
    INSERT INTO cplane.sessions (name, ciphertext, key_id, size, version, hosts)
    VALUES (:name, :ciphertext, :key_id, CAST(:size AS int), 1, CAST(:hosts AS text[]))
    ON CONFLICT (name) DO UPDATE
    SET ciphertext = excluded.ciphertext, key_id = excluded.key_id, size = excluded.size, version = sessions.version + 1,
        hosts = excluded.hosts, updated_at = clock_timestamp(), {_NO_HOLDER}
    WHERE NOT {_LIVE}
    RETURNING {_METADATA}, xmax = 0 AS created
""")

# Creates a missing session, empty. A held session takes it, too: it holds for the next attempt.
ALLOW = Statement(f"""
    INSERT INTO cplane.sessions (name, allowed_hosts, allowed_options)
    VALUES (:name, CAST(:hosts AS text[]), CAST(:options AS text[]))
    ON CONFLICT (name) DO UPDATE SET allowed_hosts = excluded.allowed_hosts, allowed_options = excluded.allowed_options
    RETURNING {_METADATA}
""")

KEYS = Statement(
    "SELECT key_id, count(*) AS count FROM cplane.sessions WHERE key_id IS NOT NULL GROUP BY key_id ORDER BY key_id"
)

# One session at a time. REKEY changes it only if it was not saved, deleted or created again since STALE read it.
STALE = Statement("""
    SELECT name, ciphertext, key_id, version, created_at FROM cplane.sessions
    WHERE key_id <> :first AND name COLLATE "C" > CAST(:after AS text) ORDER BY name COLLATE "C" LIMIT 1
""")

REKEY = Statement("""
    UPDATE cplane.sessions SET ciphertext = :ciphertext, key_id = :key_id
    WHERE name = :name AND key_id = :old_key_id AND version = :version AND created_at = :created_at
    RETURNING name
""")
