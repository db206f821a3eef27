"""Checks of deploy/ that need no container engine."""

import json
import re
import shutil
import subprocess
import tomllib
from collections.abc import Awaitable, Callable
from configparser import ConfigParser
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg
import pytest
import yaml
from packaging.requirements import Requirement
from pydantic import SecretStr

from cplane.postgres.migrations import upgrade
from cplane.settings import CplaneSettings, load_settings

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
SETTINGS = {f"CPLANE_{name.upper()}" for name in CplaneSettings.model_fields}
STOP_MARGIN_S = 10
"""Time after the drain, to release running jobs and to close the browser."""


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    return loaded


@pytest.fixture(scope="module")
def dockerfile() -> list[tuple[str, str]]:
    """Instructions of the Dockerfile, with continuation lines joined."""
    text = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(word, " ".join(rest.split())) for word, _, rest in (line.partition(" ") for line in lines)]


# settings


def settings_in(path: Path) -> set[str]:
    return set(re.findall(r"CPLANE_[A-Z_]+", path.read_text()))


@pytest.mark.parametrize(
    "path", sorted(path for path in DEPLOY.rglob("*") if path.is_file()), ids=lambda path: path.name
)
def test_every_mentioned_setting_exists(path: Path) -> None:
    assert settings_in(path) <= SETTINGS


def test_the_sample_lists_every_setting_commented_out() -> None:
    lines = (DEPLOY / "cplane.env.sample").read_text().splitlines()
    shown = [line.partition("=")[0].removeprefix("#") for line in lines if re.match(r"#?CPLANE_", line)]
    assert sorted(shown) == sorted(SETTINGS)
    assert all(not line or line.startswith("#") for line in lines)


def test_the_sample_is_valid_when_uncommented(monkeypatch: pytest.MonkeyPatch) -> None:
    for line in (DEPLOY / "cplane.env.sample").read_text().splitlines():
        if line.startswith("#CPLANE_"):
            name, _, value = line.removeprefix("#").partition("=")
            if value:
                monkeypatch.setenv(name, "a-key" if name == "CPLANE_API_KEYS" else value)
    shown = load_settings()
    monkeypatch.undo()
    defaults = CplaneSettings.model_fields
    for name in ("queues", "lease_s", "drain_s", "browser_pages", "browser_wait_s", "max_body_bytes", "log_level"):
        assert getattr(shown, name) == defaults[name].default, name


@pytest.mark.parametrize("sample", ["cplane.env.sample", "compose.env.sample"])
def test_samples_contain_no_secret(sample: str) -> None:
    for line in (DEPLOY / sample).read_text().splitlines():
        if re.search(r"PASSWORD=|API_KEYS=|CPLANE_DATABASE_URL=", line):
            assert "CHANGE_ME" in line


# the image


def test_the_image_does_not_run_as_root(dockerfile: list[tuple[str, str]]) -> None:
    users = [rest for word, rest in dockerfile if word == "USER"]
    assert users
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", users[-1]), "numeric, so that Kubernetes can check it"
    after = dockerfile[max(number for number, (word, _) in enumerate(dockerfile) if word == "USER") :]
    assert not {"RUN", "COPY", "ADD"} & {word for word, _ in after}


def test_copied_files_exist_and_are_in_the_build_context(dockerfile: list[tuple[str, str]]) -> None:
    context = {line.removeprefix("!") for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()}
    copied = [rest.split()[:-1] for word, rest in dockerfile if word == "COPY" and "--from=" not in rest]
    sources = [source for sources in copied for source in sources]
    assert sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert source in context, source


def test_the_image_has_an_init_and_a_health_check(dockerfile: list[tuple[str, str]]) -> None:
    words = dict(dockerfile)
    assert json.loads(words["ENTRYPOINT"])[0] == "tini"
    assert json.loads(words["CMD"])[:2] == ["cplane", "web"]
    assert "/livez" in words["HEALTHCHECK"]
    assert "chromium-headless-shell" in " ".join(rest for word, rest in dockerfile if word == "RUN")


def test_the_image_contains_no_secret_and_pins_its_sources(dockerfile: list[tuple[str, str]]) -> None:
    assert not {"ARG", "ADD"} & {word for word, _ in dockerfile}
    for word, rest in dockerfile:
        if word == "FROM":
            assert re.match(r"python:3\.\d+-slim-bookworm", rest)
        if word == "ENV":
            assert not re.search(r"PASSWORD|SECRET|KEY|DATABASE_URL|REDIS_URL", rest)
        if word == "RUN" and "pip install" in rest:
            assert "--require-hashes" in rest or "--no-deps --no-index" in rest


@pytest.mark.parametrize("lock", ["requirements.lock", "build.lock"])
def test_locked_dependencies_have_hashes_and_no_url(lock: str) -> None:
    text = (DEPLOY / lock).read_text()
    assert "://" not in text
    for package in re.split(r"\n(?=\S)", text.strip()):
        assert "==" in package
        assert "--hash=sha256:" in package


def test_the_lock_satisfies_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    locked = dict(re.findall(r"^([a-z0-9-]+)==([^\s;]+)", (DEPLOY / "requirements.lock").read_text(), re.MULTILINE))
    for requirement in map(Requirement, project["dependencies"]):
        name = requirement.name.lower().replace("_", "-")
        assert name in locked, f"{name} is not locked; docs/how-to/deploy.md says how"
        assert requirement.specifier.contains(locked[name]), name


# compose


def test_redis_never_evicts_and_persists_its_data(compose: dict[str, Any]) -> None:
    command = " ".join(compose["services"]["redis"]["command"])
    assert "--maxmemory-policy noeviction" in command
    assert "--appendonly yes" in command
    assert "--requirepass" in command


def test_the_worker_has_what_chromium_needs(compose: dict[str, Any]) -> None:
    worker = compose["services"]["worker"]
    assert worker["init"] is True
    assert worker["shm_size"] == "1gb"
    assert "seccomp=chromium.seccomp.json" in worker["security_opt"]
    assert (DEPLOY / "chromium.seccomp.json").is_file()


def test_the_worker_has_time_to_drain(compose: dict[str, Any]) -> None:
    worker = compose["services"]["worker"]
    grace_s = float(worker["stop_grace_period"].removesuffix("s"))
    assert grace_s >= float(worker["environment"]["CPLANE_DRAIN_S"]) + STOP_MARGIN_S


def test_tables_are_upgraded_once_before_web_and_workers(compose: dict[str, Any]) -> None:
    services = compose["services"]
    assert services["migrate"]["command"] == ["cplane", "db", "upgrade"]
    assert services["migrate"]["restart"] == "no"
    assert services["migrate"]["depends_on"]["postgres"]["condition"] == "service_healthy"
    for name in ("web", "worker"):
        assert services[name]["depends_on"]["migrate"]["condition"] == "service_completed_successfully"
        assert services[name]["depends_on"]["redis"]["condition"] == "service_healthy"


def test_every_permanent_service_has_a_health_check(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert "healthcheck" in service, name
        assert service["healthcheck"].get("disable", False) is (name == "migrate")


def test_only_web_is_published_and_only_on_loopback(compose: dict[str, Any]) -> None:
    services = compose["services"]
    assert {name for name, service in services.items() if "ports" in service} == {"web"}
    assert all(port.startswith("127.0.0.1:") for port in services["web"]["ports"])
    assert compose["networks"]["data"]["internal"] is True
    for name in ("postgres", "redis"):
        assert services[name]["networks"] == ["data"]


def test_every_secret_comes_from_the_environment(compose: dict[str, Any]) -> None:
    text = (DEPLOY / "compose.yaml").read_text()
    used = set(re.findall(r"\$\{([A-Z_]+)", text))
    documented = set(re.findall(r"^#?([A-Z_]+)=", (DEPLOY / "compose.env.sample").read_text(), re.MULTILINE))
    assert used == documented
    assert not re.search(r"PASSWORD: (?!\$\{)", text)
    for service in compose["services"].values():
        assert "privileged" not in service


def test_the_role_of_the_database_is_no_superuser(compose: dict[str, Any]) -> None:
    postgres, environment = compose["services"]["postgres"], compose["x-cplane"]["environment"]
    assert "POSTGRES_USER" not in postgres["environment"], "the image makes it a superuser"
    assert "ADMIN" in postgres["environment"]["POSTGRES_PASSWORD"]
    assert "./postgres-init.sh:/docker-entrypoint-initdb.d/10-cplane.sh:ro" in postgres["volumes"]
    assert "://app:${POSTGRES_PASSWORD" in environment["CPLANE_DATABASE_URL"]
    assert "ADMIN" not in str(environment)


async def test_the_role_that_the_script_creates_can_upgrade_and_no_more(database_url: str) -> None:
    script = (DEPLOY / "postgres-init.sh").read_text()
    statements = re.findall(r"<<'SQL'\n(.*)^SQL$", script, re.DOTALL | re.MULTILINE)[0]
    name = f"role_{uuid4().hex}"
    statements = re.sub(r"\b(app|cplane)\b", name, statements).replace(":'password'", "'p'")
    connect = cast("Callable[[str], Awaitable[Any]]", asyncpg.connect)  # pyright: ignore[reportUnknownMemberType]  untyped
    admin = await connect(database_url)
    try:
        for statement in filter(None, map(str.strip, statements.split(";"))):
            await admin.execute(statement)
        parts = urlsplit(database_url)
        own = parts._replace(netloc=f"{name}:p@{parts.netloc.rpartition('@')[2]}", path=f"/{name}").geturl()
        await upgrade(SecretStr(own))
        role = await connect(own)
        try:
            assert (
                await role.fetchval(
                    "SELECT rolsuper OR rolcreatedb OR rolcreaterole FROM pg_roles WHERE rolname = user"
                )
                is False
            )
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await role.fetchval("SELECT pg_read_file('/etc/passwd')")
        finally:
            await role.close()
    finally:
        await admin.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        await admin.execute(f"DROP ROLE IF EXISTS {name}")
        await admin.close()


def test_the_seccomp_profile_is_an_allow_list_with_the_sandbox_of_chromium() -> None:
    profile = json.loads((DEPLOY / "chromium.seccomp.json").read_text())
    assert (profile["defaultAction"], profile["defaultErrnoRet"]) == ("SCMP_ACT_ERRNO", 1)
    rules = profile["syscalls"]
    allowed = {name for rule in rules if rule["action"] == "SCMP_ACT_ALLOW" for name in rule["names"]}
    assert {"clone", "unshare", "chroot", "capset", "seccomp", "prctl", "execve", "mmap", "memfd_create"} <= allowed
    for group in (
        {"mount", "umount2", "pivot_root", "move_mount", "open_tree", "fsopen", "setns", "sethostname"},
        {"ptrace", "process_vm_readv", "process_vm_writev", "kcmp", "pidfd_getfd", "perf_event_open"},
        {"bpf", "init_module", "finit_module", "kexec_load", "reboot", "swapon", "acct", "syslog", "iopl"},
        {"keyctl", "add_key", "request_key", "io_uring_setup", "userfaultfd", "open_by_handle_at"},
    ):
        assert not allowed & group
    names = [
        name for rule in rules if rule["action"] == "SCMP_ACT_ALLOW" and "args" not in rule for name in rule["names"]
    ]
    assert len(names) == len(set(names))


def test_the_seccomp_profile_allows_the_namespaces_of_the_sandbox_only() -> None:
    rules = json.loads((DEPLOY / "chromium.seccomp.json").read_text())["syscalls"]
    (namespaces,) = [rule for rule in rules if "unshare" in rule["names"]]
    assert namespaces["names"] == ["clone", "unshare"]
    ((flags,),) = [namespaces["args"]]
    assert (flags["index"], flags["op"], flags["valueTwo"]) == (0, "SCMP_CMP_MASKED_EQ", 0)
    user, pid, network = 0x10000000, 0x20000000, 0x40000000
    mounts, cgroups, names, ipc = 0x20000, 0x2000000, 0x4000000, 0x8000000
    assert flags["value"] == mounts | cgroups | names | ipc
    assert not flags["value"] & (user | pid | network)
    (clone3,) = [rule for rule in rules if "clone3" in rule["names"]]
    assert (clone3["action"], clone3["errnoRet"]) == ("SCMP_ACT_ERRNO", 38), "the C library falls back to clone"
    sockets = {rule["args"][0]["value"] for rule in rules if rule["names"] == ["socket"]}
    assert sockets == {1, 2, 10, 16}


# systemd


def unit(path: Path) -> ConfigParser:
    parser = ConfigParser(strict=False, interpolation=None, delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # option names of systemd are case-sensitive
    parser.read(path)
    return parser


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_units_do_not_run_as_root_and_gain_no_privileges(path: Path) -> None:
    service = unit(path)["Service"]
    assert service["User"] == "cplane"
    assert service["NoNewPrivileges"] == "yes"
    assert service["CapabilityBoundingSet"] == ""
    assert service["ProtectSystem"] == "strict"
    assert service["KillMode"] == "mixed"


def test_the_unit_of_the_worker_allows_draining_and_chromium() -> None:
    service = unit(DEPLOY / "systemd" / "cplane-worker@.service")["Service"]
    assert float(service["TimeoutStopSec"]) >= float(CplaneSettings.model_fields["drain_s"].default) + STOP_MARGIN_S
    for incompatible in ("MemoryDenyWriteExecute", "RestrictNamespaces", "PrivateUsers", "ProcSubset"):
        assert incompatible not in service
    assert "chroot" in service["SystemCallFilter"].split()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_systemd_accepts_the_units(path: Path, tmp_path: Path) -> None:
    program = tmp_path / "cplane"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    copy = tmp_path / path.name
    copy.write_text(path.read_text().replace("/opt/cplane/bin/cplane", str(program)))
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(copy)], capture_output=True, text=True, check=False, timeout=60
    )
    assert (verified.returncode, verified.stderr) == (0, "")
