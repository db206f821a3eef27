"""`cplane doctor`: what is there, what is missing, and what to do about it."""

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
PATIENCE_S = 60.0
"""For one check; each has shorter deadlines of its own."""


class Verdict(StrEnum):
    """What a check came to."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report; `hint` says what to do."""

    name: str
    verdict: Verdict
    detail: str
    hint: str | None = None


Check = Callable[["CplaneSettings"], Awaitable[Finding]]


def doctor(*, as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Check versions, settings, Postgres, Redis, tables and browser; exits 1 if one is missing.

    [cyan]$ cplane doctor[/]
    """
    findings = run(_examine(None if as_json else console()))
    healthy = all(finding.verdict is not Verdict.FAILED for finding in findings)
    if as_json:
        from cplane.cli.jobs import print_json

        print_json({"healthy": healthy, "versions": versions(), "checks": [asdict(finding) for finding in findings]})
    if not healthy:
        raise typer.Exit(1)


def versions() -> dict[str, str]:
    """Of Python, cplane and what it stands on."""
    from importlib.metadata import PackageNotFoundError, version

    from cplane import __version__

    found = {"python": platform.python_version(), "system": platform.platform(terse=True), "cplane": __version__}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "missing"
    return found


async def _examine(shown: "Console | None") -> list[Finding]:
    """Every finding, shown as it comes."""
    findings: list[Finding] = []
    if shown is not None:
        shown.print("[dim]" + "  ".join(f"{name} {version}" for name, version in versions().items()) + "[/]")
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
            async with asyncio.timeout(PATIENCE_S):
                yield await check(settings)
        except CplaneError as error:
            yield _failed(name, error)
        except TimeoutError:
            yield Finding(name, Verdict.FAILED, f"no answer within {PATIENCE_S:g} s")


def _failed(name: str, error: CplaneError) -> Finding:
    return Finding(name, Verdict.FAILED, error.message, error.hint)


def _shown_settings(settings: "CplaneSettings") -> str:
    """Those that were set, without secrets."""
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

    async with connect(settings.redis_url) as redis, translated("telling its version"):
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
        return Finding("redis", Verdict.WARNING, detail, "`cplane dead-letters` says why")
    return Finding("redis", Verdict.OK, server)


async def _sessions(settings: "CplaneSettings") -> Finding:
    """The key of browser sessions: that it is there, and that it fits what is stored."""
    from cplane.keyring import Keyring

    keyring = Keyring(settings.secret_key)
    stored = await _session_keys(settings)
    strange = sum(count for key_id, count in stored.items() if key_id not in keyring.ids)
    if strange:
        detail = (
            f"{strange} browser {'session is' if strange == 1 else 'sessions are'} encrypted with a key that is not set"
        )
        return Finding("sessions", Verdict.WARNING, detail, "add that key to CPLANE_SECRET_KEY, behind the first")
    if not keyring.ids:
        hint = "`cplane secret` prints a key for CPLANE_SECRET_KEY"
        return Finding("sessions", Verdict.OK, "no key: there are no named browser sessions", hint)
    detail = f"browser sessions are encrypted with the key {keyring.first}"
    older = sum(stored.get(key_id, 0) for key_id in keyring.ids[1:])
    if older:
        return Finding("sessions", Verdict.OK, f"{detail}, {older} with older ones", "run `cplane sessions rotate`")
    unneeded = "only the first key of CPLANE_SECRET_KEY is still needed" if len(keyring.ids) > 1 else None
    return Finding("sessions", Verdict.OK, detail, unneeded)


async def _session_keys(settings: "CplaneSettings") -> dict[str, int]:
    """The keys of what is stored; nothing where Postgres or its tables are not there, which other lines tell."""
    from cplane.errors import DatabaseUnavailable, SchemaMismatch
    from cplane.keyring import Keyring
    from cplane.postgres.database import Database
    from cplane.sessions.store import Sessions

    try:
        async with Database(settings.database_url, pool_size=1) as database:
            return await Sessions(database, Keyring(None)).keys()
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
        return Finding("artifacts", Verdict.FAILED, f"{parts.path} cannot be written", "see CPLANE_ARTIFACTS_URL")
    return Finding("artifacts", Verdict.OK, masked(settings.artifacts_url))


def _may_write(folder: Path) -> bool:
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)


def _without_servers() -> "CplaneSettings | None":
    """The settings when nothing but the servers' addresses is missing: the browser can be looked at all the same."""
    from cplane.settings import load_settings

    try:
        return load_settings(database_url="postgresql://localhost/cplane", redis_url="redis://localhost")
    except InvalidSettings:
        return None


async def _browser(settings: "CplaneSettings | None") -> Finding:
    """A real launch; without settings, of the browser that a worker would find."""
    from cplane.browser import BrowserSource, find_executable, probe
    from cplane.browser.engine.launch import sandboxed
    from cplane.worker.browser_pool import browser_source

    source = browser_source(settings) if settings else BrowserSource()
    try:
        place = (
            source.place if source.remote or source.engine != "chromium" else find_executable(source.executable).path
        )
        version = await probe(source)
    except CplaneError as error:
        return _failed("browser", error)
    if source.remote or source.engine != "chromium":
        return Finding("browser", Verdict.OK, f"{source.engine.capitalize()} {version}, {place}")
    walls = "sandbox on" if sandboxed(source.sandbox) else "sandbox off"
    detail = f"Chromium {version}, {walls}, {place}"
    if not sandboxed(source.sandbox):
        hint = "run as another user than root" if source.sandbox is None else "CPLANE_BROWSER_SANDBOX turns it off"
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
