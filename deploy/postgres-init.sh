#!/bin/sh
# Runs once, in an empty volume: cplane's own role, which owns its database and is no superuser. A superuser could read
# files of the server and run programs there, and with it whoever gets at the password in a worker.
set -eu
psql --no-psqlrc --set ON_ERROR_STOP=1 --set password="$APP_PASSWORD" --username "$POSTGRES_USER" --dbname postgres <<'SQL'
CREATE ROLE app LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE PASSWORD :'password';
CREATE DATABASE cplane OWNER app;
REVOKE ALL ON DATABASE cplane FROM PUBLIC;
SQL
