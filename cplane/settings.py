"""The configuration: CPLANE_* variables, with a running `cplane dev` under this folder as the fallback."""

import json
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from cplane.egress.rules import Entry, literal
from cplane.errors import InvalidSettings
from cplane.jobs.names import QUEUE_NAME
from cplane.jobs.per_host import PerHost
from cplane.keyring import read_keys

STACK_FILE = Path(".cplane") / "stack.json"
"""Where `cplane dev` leaves its addresses, below the folder it runs in."""

CommaList = Annotated[tuple[str, ...], NoDecode]


class CplaneSettings(BaseSettings):
    """Everything that can be configured, with its bounds. An explicit CPLANE_* variable always wins over a running `cplane dev`."""

    model_config = SettingsConfigDict(env_prefix="CPLANE_", env_ignore_empty=True, frozen=True, extra="ignore")

    database_url: SecretStr = Field(description="Postgres: postgresql://user:password@host/database")
    redis_url: SecretStr = Field(description="Redis: redis://host:6379/0, rediss://… or unix:///path?db=0")
    imports: CommaList = Field(default=(), description="modules that define jobs: myapp.jobs,myapp.reports")
    queues: Annotated[Mapping[str, int], NoDecode] = Field(
        default={"default": 10, "browser": 4},
        description="queues a worker serves, with how many jobs at once: default:10,browser:4",
    )
    lease_s: float = Field(default=30.0, ge=1, le=3600, description="seconds a worker owns a job without renewing")
    drain_s: float = Field(
        default=25.0, ge=0, le=86400, description="seconds running jobs get to end when a worker is stopped"
    )
    artifacts_url: str = Field(
        default=(Path(".cplane") / "artifacts").absolute().as_uri(), description="file:///folder or s3://bucket/prefix"
    )
    browser_engine: Literal["chromium", "firefox", "webkit"] = Field(
        default="chromium",
        description="the kind of browser; firefox and webkit as `playwright install` has them, or a new Firefox of your own",
    )
    browser_executable: Path | None = Field(default=None, description="the browser's binary; default: looked up")
    browser_args: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="more arguments for the binary, as a shell would read them: --mute-audio --lang=de"
    )
    browser_cdp_url: SecretStr | None = Field(
        default=None, description="a Chromium that runs elsewhere: http://host:9222 or ws://host/devtools/browser/…"
    )
    browser_server_url: SecretStr | None = Field(
        default=None, description="a browser server of Playwright's that runs elsewhere: ws://host:port/…"
    )
    browser_pages: int = Field(default=4, ge=1, le=100, description="pages open at once in one worker")
    browser_count: int = Field(default=1, ge=1, le=16, description="browsers of a worker, which share its pages")
    browser_warm: int | None = Field(
        default=None, ge=0, le=100, description="pages kept ready beyond those in use; default: half of browser_pages"
    )
    browser_max_pages: int = Field(default=500, ge=1, description="pages opened in a browser until it is replaced")
    browser_max_age_s: float = Field(default=3600.0, gt=0, description="seconds until a browser is replaced")
    browser_max_memory_mb: int = Field(
        default=2048, ge=64, description="memory of a browser's processes, in MiB, at which it is replaced"
    )
    browser_sandbox: bool | None = Field(default=None, description="Chromium's sandbox; default: on unless root")
    browser_wait_s: float = Field(default=30.0, gt=0, le=3600, description="seconds a job waits for a free page")
    trace: Literal["off", "on-failure", "on"] = Field(
        default="on-failure",
        description="Playwright traces of browser jobs: kept of runs that fail (on-failure), of every run (on), of none (off)",
    )
    egress: Literal["public", "off"] = Field(
        default="public", description="public: pages reach public addresses only; off: whatever this machine reaches"
    )
    egress_allow: CommaList = Field(
        default=(),
        description="what pages may reach besides: hosts, *.domains, networks, loopback, private; with :port or without",
    )
    egress_deny: CommaList = Field(
        default=(), description="what they may not reach, whatever is allowed; as egress_allow"
    )
    egress_max_mb: int | None = Field(
        default=None, ge=1, description="MiB that the pages of one job may get; default: no limit"
    )
    per_host_concurrency: int = Field(
        default=0,
        ge=0,
        le=10_000,
        description="jobs with a `url` argument at once on one host, over all workers; 0: any",
    )
    per_host_rate: float = Field(
        default=0.0,
        ge=0,
        le=1000,
        allow_inf_nan=False,
        description="jobs with a `url` argument that start each second on one host, over all workers; 0: any",
    )
    respect_retry_after: bool = Field(
        default=True, description="whether built-in jobs leave a host alone that answers 429 or 503 with Retry-After"
    )
    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        default=(),
        description="keys that may use the HTTP API (Authorization: Bearer KEY); none: open to all who reach it",
    )
    secret_key: SecretStr | None = Field(
        default=None,
        description="keys for browser sessions, 32 bytes in base64 each: the first encrypts, all decrypt; `cplane secret` makes one",
    )
    max_body_bytes: int = Field(
        default=1024 * 1024, ge=1024, le=1024**3, description="largest HTTP body, and largest arguments of a job"
    )
    log_format: Literal["console", "json"] = Field(default="console", description="how log lines look")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="the least level that is logged"
    )

    @field_validator("imports", "api_keys", "egress_allow", "egress_deny", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("egress_allow", "egress_deny")
    @classmethod
    def _check_egress(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for entry in value:
            Entry.read(entry)
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
        """The limits of jobs that say nothing of their own; None: there are none."""
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
        """Arguments, then the environment, then a running `cplane dev`."""
        return init_settings, env_settings, StackSource(settings_cls)


class StackSource(PydanticBaseSettingsSource):
    """The addresses of a `cplane dev` that runs in this folder or one above."""

    def get_field_value(self, field: object, field_name: str) -> tuple[Any, str, bool]:
        """Not used: the file is read as a whole."""
        raise NotImplementedError

    def __call__(self) -> dict[str, Any]:
        stack = running_stack(Path.cwd())
        return {
            name: stack[name] for name in ("database_url", "redis_url", "artifacts_url", "imports") if stack.get(name)
        }


def running_stack(folder: Path) -> dict[str, str]:
    """What the `cplane dev` that runs in `folder` or above left there; empty when none runs."""
    for parent in (folder, *folder.parents):
        try:
            stack = cast("dict[str, Any]", json.loads((parent / STACK_FILE).read_text()))
            os.kill(int(stack["pid"]), 0)
        except (OSError, ValueError, KeyError, TypeError, OverflowError):
            continue
        return {name: str(value) for name, value in stack.items() if value is not None}
    return {}


def load_settings(**overrides: Any) -> CplaneSettings:
    """The settings of this process; `overrides` win over the environment.

    Raises:
        InvalidSettings: one sentence for each variable that is missing or wrong; values are never shown.
    """
    try:
        return CplaneSettings(**overrides)
    except ValidationError as error:
        raise InvalidSettings(*_explain(error)) from None


def _explain(error: ValidationError) -> tuple[str]:
    sentences: list[str] = []
    for detail in error.errors(include_url=False, include_input=False):
        message = detail["msg"].removeprefix("Value error, ")
        if not detail["loc"]:  # it is about several, and names them
            sentences.append(message)
            continue
        name = f"CPLANE_{str(detail['loc'][0]).upper()}"
        sentences.append(f"{name} is not set" if detail["type"] == "missing" else f"{name}: {message}")
    if any(sentence.endswith("is not set") for sentence in sentences):
        sentences.append("set it, or run `cplane dev` in this folder")
    return ("; ".join(sentences),)
