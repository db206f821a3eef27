"""Browser sessions: named logins, encrypted in Postgres, held by one attempt at a time."""
