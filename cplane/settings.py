"""Configuration from CPLANE_* variables, with the addresses of a running `cplane dev` in this folder as the fallback."""

import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from cplane.egress.rules import Entry, literal
from cplane.errors import InvalidSettings
from cplane.jobs.names import QUEUE_NAME
from cplane.jobs.per_host import PerHost
from cplane.keyring import read_keys
from cplane.runtime.stack_file import running_stack
from cplane.runtime.wrong_values import wrong_setting

HOST_NAME = re.compile(r"(?:\*\.)?[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*")
"""A name, all names below a domain, or an address (of IPv6 without brackets)."""

VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

CommaList = Annotated[tuple[str, ...], NoDecode]

SAMPLE_API_KEYS = frozenset({"CHANGE_ME", "KEY", "OTHER_KEY", "$KEY"})
"""What the documentation and `deploy/` write in place of a key."""


class CplaneSettings(BaseSettings):
    """Configuration of web, workers and clients, read from CPLANE_* variables.

    An explicit variable always wins over the addresses of a running `cplane dev`. `docs/reference/settings.md` is generated
    from the fields below; run `python docs/generate_settings.py` after a change.
    """

    model_config = SettingsConfigDict(env_prefix="CPLANE_", env_ignore_empty=True, frozen=True, extra="ignore")

    database_url: SecretStr = Field(description="Postgres: `postgresql://user:password@host/database`.")
    redis_url: SecretStr = Field(
        description="Redis: `redis://host:6379/0`, `rediss://…` or `unix:///path?db=0`. "
        "Its `maxmemory-policy` must be `noeviction`."
    )
    artifacts_url: str = Field(
        default=(Path(".cplane") / "artifacts").absolute().as_uri(),
        description="Where jobs keep files: a folder that web and workers share (`file:///folder`), or a bucket "
        "(`s3://bucket/prefix`, `gs://…`, `az://…`).",
    )
    imports: CommaList = Field(
        default=(),
        description="Modules that define jobs, separated by commas: `myapp.jobs,myapp.reports`. "
        "The built-in jobs are always there.",
    )
    queues: Annotated[Mapping[str, int], NoDecode] = Field(
        default={"default": 10, "browser": 4},
        description="Queues a worker serves, each with the number of jobs it runs at once: `default:10,browser:4`.",
    )
    lease_s: float = Field(
        default=30.0,
        ge=1,
        le=3600,
        description="Seconds a worker owns a job without renewing its lease. "
        "After a machine dies, its jobs start again this much later; after a worker process dies, at once.",
    )
    keeper: bool = Field(
        default=True,
        description="Run `cplane worker` and `arq cplane.worker.Settings` under a keeper: a small process that renews "
        "leases while a job blocks its worker, requeues what a dead worker had, and starts another.",
    )
    drain_s: float = Field(
        default=25.0,
        ge=0,
        le=86400,
        description="Seconds that running jobs get to finish when a worker is stopped. "
        "`TimeoutStopSec` and `stop_grace_period` must be longer.",
    )
    max_body_bytes: int = Field(
        default=1024 * 1024,
        ge=1024,
        le=1024**3,
        description="Largest HTTP body, and largest arguments of a job, in bytes.",
    )
    max_result_bytes: int = Field(
        default=1024 * 1024,
        ge=1024,
        le=16 * 1024 * 1024,  # Postgres must take it in within the deadline of one statement, on a busy machine too
        description="Largest result of a job, in bytes of JSON. A larger one fails the job as `ResultTooLarge`.",
    )
    artifact_max_mb: int = Field(
        default=256,
        ge=1,
        le=1024 * 1024,
        description="Largest file that a job may store, in MiB. A larger one fails the job as `ArtifactTooLarge`.",
    )
    artifact_max_count: int = Field(
        default=1000,
        ge=1,
        le=100_000,
        description="Files that one job may store, each name counted once. One more fails the job as `TooManyArtifacts`.",
    )
    browser_pages: int = Field(
        default=4, ge=1, le=100, description="Pages open at once in one worker. One to three per core is a good start."
    )
    browser_wait_s: float = Field(
        default=30.0,
        gt=0,
        le=3600,
        description="Seconds a job waits for a free page. Then the attempt ends as `PoolTimeout`, and the job is requeued.",
    )
    browser_executable: Path | None = Field(
        default=None,
        description="Path of the browser's binary. Unset: Playwright's own, then `chromium-headless-shell`, `chromium` "
        "or `chrome` on `PATH`.",
    )
    browser_engine: Literal["chromium", "firefox", "webkit"] = Field(
        default="chromium",
        description="Kind of browser. `firefox` and `webkit` as `playwright install` provides them, or a recent Firefox "
        "named by `CPLANE_BROWSER_EXECUTABLE`.",
    )
    browser_args: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="More arguments for the binary, in shell syntax: `--mute-audio --lang=de`."
    )
    browser_env: CommaList = Field(
        default=(),
        description="Names of variables that browsers and their driver get besides the few that they need "
        "(`PATH`, `HOME`, locale, time zone, certificates), separated by commas: `HTTPS_PROXY`.",
    )
    browser_sandbox: bool | None = Field(
        default=None, description="Chromium's sandbox. Unset: on, unless the worker runs as root."
    )
    browser_count: int = Field(
        default=1,
        ge=1,
        le=16,
        description="Browsers of one worker, which share its pages. At most `CPLANE_BROWSER_PAGES`.",
    )
    browser_warm: int | None = Field(
        default=None,
        ge=0,
        le=100,
        description="Pages kept ready beyond those in use. Unset: half of `CPLANE_BROWSER_PAGES`.",
    )
    browser_max_pages: int = Field(
        default=500, ge=1, description="Pages opened in a browser before it is replaced by a new one."
    )
    browser_max_age_s: float = Field(
        default=3600.0, gt=0, description="Seconds a browser runs before it is replaced by a new one."
    )
    browser_max_memory_mb: int = Field(
        default=2048, ge=64, description="Memory of a browser's processes, in MiB, above which it is replaced."
    )
    browser_page_memory_mb: int = Field(
        default=1024,
        ge=64,
        description="Memory of one page, in MiB, above which it is killed and its job fails with `PageTooLarge`. "
        "For a Chromium that the worker launches.",
    )
    browser_cdp_url: SecretStr | None = Field(
        default=None,
        description="Chromium that runs elsewhere, by its DevTools address: `http://host:9222` or "
        "`ws://host/devtools/browser/…`. On another machine only with `CPLANE_EGRESS=off`.",
    )
    browser_server_url: SecretStr | None = Field(
        default=None,
        description="Playwright browser server that runs elsewhere: `ws://host:port/…`. "
        "On another machine only with `CPLANE_EGRESS=off`; not together with `CPLANE_BROWSER_CDP_URL`.",
    )
    trace: Literal["off", "on-failure", "on"] = Field(
        default="on-failure",
        description="Which Playwright traces of browser jobs are kept: those of failed runs, of all runs, or none.",
    )
    egress: Literal["public", "off"] = Field(
        default="public",
        description="What pages may reach. `public`: public addresses at ports 80 and 443. "
        "`off`: whatever the worker's machine reaches.",
    )
    egress_allow: CommaList = Field(
        default=(),
        description="What pages may reach besides, separated by commas: hosts, `*.domains`, addresses, networks, "
        "`loopback`, `private`, each with or without `:port`.",
    )
    egress_deny: CommaList = Field(
        default=(), description="What pages may not reach, even if allowed. Same syntax as `CPLANE_EGRESS_ALLOW`."
    )
    egress_max_mb: int | None = Field(
        default=None, ge=1, description="MiB that the pages of one job may receive. Unset: no limit."
    )
    per_host_concurrency: int = Field(
        default=0,
        ge=0,
        le=10_000,
        description="Jobs with a `url` argument that may run at once on one host, over all workers. 0: no limit. "
        "Set it for web and workers alike.",
    )
    per_host_rate: float = Field(
        default=0.0,
        ge=0,
        le=1000,
        allow_inf_nan=False,
        description="Jobs with a `url` argument that may start per second on one host, over all workers. 0: no limit; "
        "the least rate is 1/86400, one a day. Set it for web and workers alike.",
    )
    respect_retry_after: bool = Field(
        default=True,
        description="Whether built-in jobs cool down a host whose response is 429 or 503 with `Retry-After`.",
    )
    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        default=(),
        description="Keys for the HTTP API (`Authorization: Bearer KEY`), separated by commas. Unset: the API is open, "
        "and listens on loopback only, unless `--insecure` is given. Empty, or a sample of this documentation: an error.",
    )
    allowed_hosts: CommaList = Field(
        default=(),
        description="Names by which the HTTP API without keys may be requested, besides those of loopback, separated by "
        "commas: `api.example`, `*.example`. With keys every name is served.",
    )
    connections_per_address: int = Field(
        default=512,
        ge=1,
        le=65536,
        description="Connections that one client address may have with the HTTP API; more are cut at once. A proxy in front "
        "of it is one address.",
    )
    secret_key: SecretStr | None = Field(
        default=None,
        description="Keys that encrypt browser sessions: 32 bytes in base64 each, separated by commas. The first one "
        "encrypts, all of them decrypt. `cplane secret` prints one. Unset: there are no named sessions.",
    )
    log_format: Literal["console", "json"] = Field(
        default="console", description="Format of log lines: `console` for people, `json` for machines."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Lowest level that is logged."
    )

    @field_validator(
        "imports", "api_keys", "allowed_hosts", "browser_env", "egress_allow", "egress_deny", mode="before"
    )
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("allowed_hosts")
    @classmethod
    def _check_hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if strange := [host for host in value if not HOST_NAME.fullmatch(host)]:
            raise ValueError(f"'{strange[0]}' is not a name, *.domain or address; write it without scheme and port")
        return value

    @field_validator("api_keys", mode="before")
    @classmethod
    def _refuse_no_keys(cls, value: object) -> object:
        if isinstance(value, str) and not value.replace(",", "").strip():
            raise ValueError("it is set and has no key; write a key, or unset it to leave the API open")
        return value

    @field_validator("api_keys")
    @classmethod
    def _refuse_samples(cls, value: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        if any(key.get_secret_value() in SAMPLE_API_KEYS for key in value):
            raise ValueError("a key is a sample of the documentation; make one, for example by: openssl rand -hex 24")
        return value

    @field_validator("egress_allow", "egress_deny")
    @classmethod
    def _check_egress(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for entry in value:
            Entry.read(entry)
        return value

    @field_validator("browser_env")
    @classmethod
    def _check_variables(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if not VARIABLE_NAME.fullmatch(name):
                raise ValueError(f"'{name}' is not the name of a variable")
            if name.upper().startswith("CPLANE_"):
                raise ValueError(f"'{name}' is a setting of cplane, which browsers never get")
        return value

    @field_validator("browser_args", mode="before")
    @classmethod
    def _split_args(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        args = shlex.split(value)  # its error is one sentence: No closing quotation
        if strange := [arg for arg in args if not arg.startswith("-")]:
            raise ValueError(f"'{strange[0]}' is not an argument; each begins with '-'")
        return tuple(args)

    @field_validator("browser_cdp_url", "browser_server_url")
    @classmethod
    def _check_browser_url(cls, value: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        schemes = ("http", "https", "ws", "wss") if info.field_name == "browser_cdp_url" else ("ws", "wss")
        if value is not None and value.get_secret_value().partition("://")[0] not in schemes:
            raise ValueError(f"it must start with {' or '.join(f'{scheme}://' for scheme in schemes)}")
        return value

    @model_validator(mode="after")
    def _check_browser(self) -> Self:
        if self.browser_count > self.browser_pages:
            raise ValueError("CPLANE_BROWSER_COUNT is at most CPLANE_BROWSER_PAGES: every browser needs a page")
        if self.browser_cdp_url is not None and self.browser_server_url is not None:
            raise ValueError("give CPLANE_BROWSER_CDP_URL or CPLANE_BROWSER_SERVER_URL, not both")
        if self.browser_cdp_url is not None and self.browser_engine != "chromium":
            raise ValueError("CPLANE_BROWSER_CDP_URL is for CPLANE_BROWSER_ENGINE=chromium only")
        self._check_remote()
        return self

    def _check_remote(self) -> None:
        url = self.browser_cdp_url or self.browser_server_url
        host = (urlsplit(url.get_secret_value()).hostname or "") if url is not None else "localhost"
        address = literal(host)
        if self.egress != "off" and host != "localhost" and (address is None or not address.is_loopback):
            message = "a browser on another machine cannot use the egress proxy of this one"
            raise ValueError(f"{message}: set CPLANE_EGRESS=off when that machine's own network holds pages back")

    @field_validator("queues", mode="before")
    @classmethod
    def _read_queues(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        queues: dict[str, int] = {}
        for part in filter(None, (part.strip() for part in value.split(","))):
            name, _, concurrency = part.partition(":")
            if not concurrency.isdigit() or int(concurrency) < 1:
                raise ValueError(f"'{part}' is not NAME:CONCURRENCY; write for example default:10,browser:4")
            if not QUEUE_NAME.fullmatch(name):
                raise ValueError(f"'{name}' is not a queue name; use letters, digits, '_', '.', '-', at most 100")
            queues[name] = int(concurrency)
        return queues

    @field_validator("database_url")
    @classmethod
    def _check_database(cls, value: SecretStr) -> SecretStr:
        if value.get_secret_value().partition("://")[0] not in {"postgresql", "postgres", "postgresql+asyncpg"}:
            raise ValueError("it must start with postgresql://")
        return value

    @field_validator("redis_url")
    @classmethod
    def _check_redis(cls, value: SecretStr) -> SecretStr:
        if value.get_secret_value().partition("://")[0] not in {"redis", "rediss", "unix"}:
            raise ValueError("it must start with redis://, rediss:// or unix://")
        try:
            _ = urlsplit(value.get_secret_value()).port
        except ValueError:  # its text would show a part of the password
            raise ValueError("its port is not a number; percent-encode '/', '#' and '?' in a password") from None
        return value

    @field_validator("secret_key")
    @classmethod
    def _check_secret_key(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            read_keys(value)
        return value

    @field_validator("per_host_rate")
    @classmethod
    def _check_rate(cls, value: float) -> float:
        PerHost(rate=value)
        return value

    @property
    def per_host(self) -> PerHost | None:
        """Default limits for jobs that declare none; None if there are no limits."""
        if not self.per_host_concurrency and not self.per_host_rate:
            return None
        return PerHost(concurrency=self.per_host_concurrency, rate=self.per_host_rate)

    @field_validator("queues")
    @classmethod
    def _check_queues(cls, value: Mapping[str, int]) -> Mapping[str, int]:
        if not value or any(not name or count < 1 for name, count in value.items()):
            raise ValueError("it must name at least one queue with a concurrency of 1 or more")
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003  pydantic-settings calls it with all of them
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return the sources by precedence: arguments, the environment, a running `cplane dev`."""
        return init_settings, env_settings, EmptyKeysSource(settings_cls), StackSource(settings_cls)


class EmptyKeysSource(PydanticBaseSettingsSource):
    """CPLANE_API_KEYS if it is set and empty, which must not open the API as an unset one does."""

    def get_field_value(self, field: object, field_name: str) -> tuple[Any, str, bool]:
        """Not used: `__call__` reads the variable."""
        raise NotImplementedError

    def __call__(self) -> dict[str, Any]:
        return {"api_keys": ""} if os.environ.get("CPLANE_API_KEYS") == "" else {}


class StackSource(PydanticBaseSettingsSource):
    """Addresses of a `cplane dev` that runs in this folder or a parent."""

    def get_field_value(self, field: object, field_name: str) -> tuple[Any, str, bool]:
        """Not used: `__call__` reads the whole file."""
        raise NotImplementedError

    def __call__(self) -> dict[str, Any]:
        stack = running_stack(Path.cwd())
        return {
            name: stack[name] for name in ("database_url", "redis_url", "artifacts_url", "imports") if stack.get(name)
        }


def load_settings(**overrides: Any) -> CplaneSettings:
    """Load the settings of this process.

    Args:
        overrides: fields by name, which win over the environment.

    Returns:
        The validated, frozen settings.

    Raises:
        InvalidSettings: one sentence for each variable that is missing or wrong; values are never shown.
    """
    try:
        return CplaneSettings(**overrides)
    except ValidationError as error:
        raise InvalidSettings(*_explain(error)) from None


def _explain(error: ValidationError) -> tuple[str]:
    sentences: list[str] = []
    for detail in error.errors(include_url=False):
        if not detail["loc"]:  # it is about several, and names them
            sentences.append(detail["msg"].removeprefix("Value error, "))
            continue
        name, field = f"CPLANE_{str(detail['loc'][0]).upper()}", CplaneSettings.model_fields.get(str(detail["loc"][0]))
        message = wrong_setting(detail, field)
        sentences.append(f"{name} is not set" if detail["type"] == "missing" else f"{name}: {message}")
    if any(sentence.endswith("is not set") for sentence in sentences):
        sentences.append("set it, or run `cplane dev` in this folder")
    return ("; ".join(sentences),)
