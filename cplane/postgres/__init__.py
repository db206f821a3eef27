"""The truth: records, attempts and artifacts in Postgres. The only place that knows SQLAlchemy."""
