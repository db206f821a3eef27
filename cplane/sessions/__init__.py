"""Browser sessions: named logins, stored encrypted in Postgres and held by one attempt at a time."""
