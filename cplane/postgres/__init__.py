"""The truth: records, attempts and artifacts in Postgres. The only package that imports SQLAlchemy."""
