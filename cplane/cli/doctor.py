"""`cplane doctor`: checks settings, servers, tables, jobs and the browser, and says how to fix what is wrong."""

import asyncio
import os
import platform
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import unquote, urlsplit

import typer

from cplane.cli.console import console
from cplane.cli.event_loop import run
from cplane.cli.masking import masked
from cplane.errors import CplaneError, InvalidSettings

if TYPE_CHECKING:
    from rich.console import Console

    from cplane.settings import CplaneSettings

PACKAGES = (
    "arq",
    "redis",
    "sqlalchemy",
    "sqlmodel",
    "asyncpg",
    "alembic",
    "starlette",
    "uvicorn",
    "pydantic",
    "playwright",
)
CHECK_TIMEOUT_S = 60.0
"""Upper bound for one check; each has its own shorter deadlines."""


class Verdict(StrEnum):
    """Result of a check."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. `hint` says what to do."""

    name: str
    verdict: Verdict
    detail: str
    hint: str | None = None


Check = Callable[["CplaneSettings"], Awaitable[Finding]]


def doctor(*, as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Check versions, settings, Postgres, tables, Redis, sessions, jobs, artifacts and browser.

    [cyan]$ cplane doctor[/]

    Exits with status 1 if a check failed.
    """
    findings = run(_run_checks(None if as_json else console()))
    healthy = all(finding.verdict is not Verdict.FAILED for finding in findings)
    if as_json:
        from cplane.cli.jobs import print_json

        print_json({"healthy": healthy, "versions": versions(), "checks": [asdict(finding) for finding in findings]})
    if not healthy:
        raise typer.Exit(1)


def versions() -> dict[str, str]:
    """Return the versions of Python, cplane and its main dependencies."""
    from importlib.metadata import PackageNotFoundError, version

    from cplane import __version__

    found = {"python": platform.python_version(), "system": platform.platform(terse=True), "cplane": __version__}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "missing"
    return found


async def _run_checks(shown: "Console | None") -> list[Finding]:
    """Return every finding; print each as soon as it is known."""
    findings: list[Finding] = []
    if shown is not None:
        shown.print("  ".join(f"{name} {version}" for name, version in versions().items()), style="dim")
    async for finding in _findings():
        findings.append(finding)
        if shown is not None:
            _print(shown, finding)
    return findings


async def _findings() -> AsyncIterator[Finding]:
    from cplane.settings import load_settings

    try:
        settings = load_settings()
    except InvalidSettings as error:
        yield _failed("settings", error)
        yield await _browser(_without_servers())
        return
    yield Finding("settings", Verdict.OK, _shown_settings(settings))
    checks: dict[str, Check] = {
        "postgres": _postgres,
        "tables": _tables,
        "redis": _redis,
        "sessions": _sessions,
        "jobs": _jobs,
        "artifacts": _artifacts,
        "browser": _browser,
    }
    for name, check in checks.items():
        try:
            async with asyncio.timeout(CHECK_TIMEOUT_S):
                yield await check(settings)
        except CplaneError as error:
            yield _failed(name, error)
        except TimeoutError:
            yield Finding(name, Verdict.FAILED, f"no reply within {CHECK_TIMEOUT_S:g} s")


def _failed(name: str, error: CplaneError) -> Finding:
    return Finding(name, Verdict.FAILED, error.message, error.hint)


def _shown_settings(settings: "CplaneSettings") -> str:
    """Return the settings that were set, with secrets masked."""
    from cplane.keyring import Keyring

    urls = {
        "database_url": masked(settings.database_url.get_secret_value()),
        "redis_url": masked(settings.redis_url.get_secret_value()),
        "artifacts_url": masked(settings.artifacts_url),
        "api_keys": f"{len(settings.api_keys)} keys",
        "secret_key": f"{len(Keyring(settings.secret_key).ids)} keys",
    }
    given = settings.model_fields_set
    return ", ".join(
        f"{name}={urls.get(name, getattr(settings, name))}" for name in type(settings).model_fields if name in given
    )


async def _postgres(settings: "CplaneSettings") -> Finding:
    from cplane.postgres.database import Database

    async with Database(settings.database_url, pool_size=1) as database:
        return Finding("postgres", Verdict.OK, await database.server_version())


async def _tables(settings: "CplaneSettings") -> Finding:
    from cplane.postgres import migrations
    from cplane.postgres.database import Database

    async with Database(settings.database_url, pool_size=1) as database:
        await migrations.check(database)
    return Finding("tables", Verdict.OK, f"revision {migrations.head()}")


async def _redis(settings: "CplaneSettings") -> Finding:
    from cplane.redis.connection import connect, translated
    from cplane.redis.dead_letters import DeadLetterStream

    async with connect(settings.redis_url) as redis, translated("reading its version"):
        info: dict[str, object] = await redis.info()  # pyright: ignore[reportUnknownMemberType]  its keywords are untyped
    server = (
        f"Valkey {info['valkey_version']}" if "valkey_version" in info else f"Redis {info.get('redis_version', '?')}"
    )
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        hint = "CONFIG SET maxmemory-policy noeviction: an evicted key is a lost schedule"
        return Finding("redis", Verdict.WARNING, f"{server} evicts keys when it is full ({policy})", hint)
    async with connect(settings.redis_url) as redis:
        dead_letters = await DeadLetterStream(redis).count()
    if dead_letters:
        detail = f"{server}; {dead_letters} dead letter{'' if dead_letters == 1 else 's'}"
        return Finding("redis", Verdict.WARNING, detail, "`cplane dead-letters` shows the reasons")
    return Finding("redis", Verdict.OK, server)


async def _sessions(settings: "CplaneSettings") -> Finding:
    """Check that there is a key for browser sessions, and that it decrypts those that are stored."""
    from cplane.keyring import Keyring

    keyring = Keyring(settings.secret_key)
    stored = await _session_keys(settings)
    unreadable = sum(count for key_id, count in stored.items() if key_id not in keyring.ids)
    if unreadable:
        subject = "1 browser session is" if unreadable == 1 else f"{unreadable} browser sessions are"
        detail = f"{subject} encrypted with a key that is not set"
        return Finding("sessions", Verdict.WARNING, detail, "add that key to CPLANE_SECRET_KEY, after the first")
    if not keyring.ids:
        hint = "`cplane secret` prints a key for CPLANE_SECRET_KEY"
        return Finding("sessions", Verdict.OK, "no key, and no browser sessions", hint)
    detail = f"browser sessions are encrypted with the key {keyring.first}"
    older = sum(stored.get(key_id, 0) for key_id in keyring.ids[1:])
    if older:
        return Finding("sessions", Verdict.OK, f"{detail}, {older} with older ones", "run `cplane sessions rotate`")
    remaining = "only the first key of CPLANE_SECRET_KEY is still needed" if len(keyring.ids) > 1 else None
    return Finding("sessions", Verdict.OK, detail, remaining)


async def _session_keys(settings: "CplaneSettings") -> dict[str, int]:
    """Return key id → number of sessions; empty if Postgres or its tables are missing, which other checks report."""
    from cplane.errors import DatabaseUnavailable, SchemaMismatch
    from cplane.keyring import Keyring
    from cplane.postgres.database import Database
    from cplane.sessions.store import SessionStore

    try:
        async with Database(settings.database_url, pool_size=1) as database:
            return await SessionStore(database, Keyring(None)).keys()
    except (DatabaseUnavailable, SchemaMismatch):
        return {}


async def _jobs(settings: "CplaneSettings") -> Finding:
    from cplane.cli.imports import import_jobs

    registry = await asyncio.to_thread(import_jobs, settings.imports)
    return Finding("jobs", Verdict.OK, f"{len(registry.jobs)}: {', '.join(sorted(registry.jobs))}")


async def _artifacts(settings: "CplaneSettings") -> Finding:
    from cplane.artifacts import open_artifacts

    await asyncio.to_thread(open_artifacts, settings.artifacts_url)
    parts = urlsplit(settings.artifacts_url)
    if parts.scheme == "file" and not await asyncio.to_thread(_may_write, Path(unquote(parts.path))):
        return Finding("artifacts", Verdict.FAILED, f"{parts.path} is not writable", "see CPLANE_ARTIFACTS_URL")
    return Finding("artifacts", Verdict.OK, masked(settings.artifacts_url))


def _may_write(folder: Path) -> bool:
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)


def _without_servers() -> "CplaneSettings | None":
    """Return the settings if only the servers' addresses are missing, so that the browser can still be checked."""
    from cplane.settings import load_settings

    try:
        return load_settings(database_url="postgresql://localhost/cplane", redis_url="redis://localhost")
    except InvalidSettings:
        return None


async def _browser(settings: "CplaneSettings | None") -> Finding:
    """Launch the browser; without settings, the one that a worker would find."""
    from cplane.browser import BrowserSource, find_executable, probe
    from cplane.browser.engine.launch import sandboxed
    from cplane.worker.browser_pool import browser_source

    source = browser_source(settings) if settings else BrowserSource()
    try:
        location = (
            source.place if source.remote or source.engine != "chromium" else find_executable(source.executable).path
        )
        version = await probe(source)
    except CplaneError as error:
        return _failed("browser", error)
    if source.remote or source.engine != "chromium":
        return Finding("browser", Verdict.OK, f"{source.engine.capitalize()} {version}, {location}")
    sandbox = "sandbox on" if sandboxed(source.sandbox) else "sandbox off"
    detail = f"Chromium {version}, {sandbox}, {location}"
    if not sandboxed(source.sandbox):
        hint = "run as a user other than root" if source.sandbox is None else "CPLANE_BROWSER_SANDBOX turns it off"
        return Finding("browser", Verdict.WARNING, detail, hint)
    return Finding("browser", Verdict.OK, detail)


def _print(shown: "Console", finding: Finding) -> None:
    from rich.text import Text

    mark, style = {Verdict.OK: ("✓", "green"), Verdict.WARNING: ("!", "yellow"), Verdict.FAILED: ("✗", "red")}[
        finding.verdict
    ]
    shown.print(Text.assemble((mark, style), f" {finding.name:<10} ", finding.detail), soft_wrap=True)
    if finding.hint:
        shown.print(Text(f"  {'':<10} {finding.hint}", "dim"), soft_wrap=True)
