"""Settings: CPLANE_* variables, bounds, error messages, and the fallback to a running `cplane dev`."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest

from cplane.errors import InvalidSettings
from cplane.runtime.stack_file import running_stack
from cplane.settings import CplaneSettings, load_settings

DATABASE = "postgresql://user:hunter2@127.0.0.1/db"
REDIS = "redis://:hunter2@127.0.0.1:6379/0"


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder without a running stack, regardless of the folder that the tests are started in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(monkeypatch: pytest.MonkeyPatch, **variables: str) -> CplaneSettings:
    """Return the settings with these environment variables set."""
    for name, value in {"DATABASE_URL": DATABASE, "REDIS_URL": REDIS, **variables}.items():
        monkeypatch.setenv(f"CPLANE_{name}", value)
    return load_settings()


def test_every_variable_is_converted_to_its_type(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(
        monkeypatch,
        IMPORTS=" app.jobs, ,app.reports,",
        QUEUES="default:2, browser:1,",
        LEASE_S="1.5",
        DRAIN_S="0",
        ARTIFACTS_URL="s3://bucket/prefix",
        BROWSER_EXECUTABLE="/usr/bin/chromium",
        BROWSER_PAGES="7",
        BROWSER_SANDBOX="false",
        BROWSER_WAIT_S="0.5",
        BROWSER_COUNT="2",
        BROWSER_WARM="0",
        BROWSER_MAX_PAGES="9",
        BROWSER_MAX_AGE_S="60",
        BROWSER_MAX_MEMORY_MB="512",
        BROWSER_PAGE_MEMORY_MB="256",
        BROWSER_ENGINE="chromium",
        BROWSER_ARGS="--mute-audio '--disable-features=A,B'",
        BROWSER_CDP_URL="http://user:hunter2@127.0.0.1:9222",
        TRACE="off",
        EGRESS_ALLOW="loopback, *.example.com:8443",
        EGRESS_DENY="10.0.0.0/8",
        EGRESS_MAX_MB="100",
        API_KEYS="one, two",
        ALLOWED_HOSTS="api.example, *.example",
        BROWSER_ENV="HTTPS_PROXY, MY_FLAG",
        MAX_BODY_BYTES="2048",
        LOG_FORMAT="json",
        LOG_LEVEL="debug",
    )
    assert settings.database_url.get_secret_value() == DATABASE
    assert settings.redis_url.get_secret_value() == REDIS
    assert settings.imports == ("app.jobs", "app.reports")
    assert settings.queues == {"default": 2, "browser": 1}
    assert (settings.lease_s, settings.drain_s, settings.artifacts_url) == (1.5, 0, "s3://bucket/prefix")
    assert settings.browser_executable == Path("/usr/bin/chromium")
    assert (settings.browser_pages, settings.browser_sandbox, settings.browser_wait_s) == (7, False, 0.5)
    assert (settings.browser_count, settings.browser_warm, settings.browser_engine) == (2, 0, "chromium")
    assert (settings.browser_max_pages, settings.browser_max_age_s, settings.browser_max_memory_mb) == (9, 60, 512)
    assert settings.browser_page_memory_mb == 256
    assert settings.browser_args == ("--mute-audio", "--disable-features=A,B")
    assert settings.trace == "off"
    assert (settings.egress, settings.egress_allow) == ("public", ("loopback", "*.example.com:8443"))
    assert (settings.egress_deny, settings.egress_max_mb) == (("10.0.0.0/8",), 100)
    assert settings.browser_cdp_url is not None
    assert settings.browser_cdp_url.get_secret_value() == "http://user:hunter2@127.0.0.1:9222"
    assert [key.get_secret_value() for key in settings.api_keys] == ["one", "two"]
    assert settings.allowed_hosts == ("api.example", "*.example")
    assert settings.browser_env == ("HTTPS_PROXY", "MY_FLAG")
    assert (settings.max_body_bytes, settings.log_format, settings.log_level) == (2048, "json", "debug")


def test_an_empty_variable_counts_as_unset_and_an_unknown_one_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(monkeypatch, QUEUES="", BROWSER_PAGES="", BROWSER_SANDBOX="", TEST_DATABASE_URL="x", NEW="y")
    assert (settings.queues, settings.browser_pages) == ({"default": 10, "browser": 4}, 4)
    assert settings.browser_sandbox is None


@pytest.mark.parametrize(
    ("name", "minimum", "maximum"),
    [
        ("LEASE_S", 1, 3600),
        ("DRAIN_S", 0, 86_400),
        ("BROWSER_PAGES", 1, 100),
        ("BROWSER_WAIT_S", 0.01, 3600),
        ("BROWSER_WARM", 0, 100),
        ("CONNECTIONS_PER_ADDRESS", 1, 65536),
        ("MAX_BODY_BYTES", 1024, 1024**3),
        ("MAX_RESULT_BYTES", 1024, 16 * 1024**2),
        ("ARTIFACT_MAX_MB", 1, 1024**2),
        ("ARTIFACT_MAX_COUNT", 1, 100_000),
    ],
)
def test_numbers_have_bounds(monkeypatch: pytest.MonkeyPatch, name: str, minimum: float, maximum: float) -> None:
    for inside in (minimum, maximum):
        assert getattr(load(monkeypatch, **{name: str(inside)}), name.lower()) == inside
    for outside in (str(minimum - 1), str(maximum + 1), "-1", "many"):
        with pytest.raises(InvalidSettings, match=f"^CPLANE_{name}: ") as caught:
            load(monkeypatch, **{name: outside})
        assert ";" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("QUEUES", "default", "'default' is not NAME:CONCURRENCY; write for example default:10,browser:4"),
        ("QUEUES", "default:0", "'default:0' is not NAME:CONCURRENCY"),
        ("QUEUES", "default:-1", "is not NAME:CONCURRENCY"),
        ("QUEUES", "default:1:2", "is not NAME:CONCURRENCY"),
        ("QUEUES", ",", "at least one queue"),
        ("QUEUES", ":3", "is not a queue name"),
        ("LOG_LEVEL", "loud", "'debug', 'info', 'warning' or 'error'"),
        ("LOG_FORMAT", "xml", "'console' or 'json'"),
        ("BROWSER_SANDBOX", "perhaps", "'perhaps' is not a boolean: true or false"),
        ("LEASE_S", "nan", "'nan' is not a number, it must be at least 1 and at most 3600, for example 30"),
        ("LEASE_S", "0.5", "'0.5' is out of range, it must be at least 1 and at most 3600, for example 30"),
        ("PER_HOST_RATE", "nan", "'nan' is not a number, it must be at least 0 and at most 1000"),
        ("DRAIN_S", "inf", "'inf' is not a number, it must be at least 0 and at most 86400, for example 25"),
        ("BROWSER_WAIT_S", "0", "'0' is out of range, it must be more than 0 and at most 3600, for example 30"),
        ("BROWSER_PAGES", "1.5", "'1.5' is not a whole number, it must be at least 1 and at most 100, for example 4"),
        ("BROWSER_WARM", "some", "'some' is not a whole number, it must be at least 0 and at most 100"),
        ("EGRESS", "all", "'public' or 'off'"),
        ("EGRESS_ALLOW", "local host", "'local host' is not a host, *.domain, address, network, loopback or private"),
        ("EGRESS_DENY", "host:99999", "'host:99999' has no port between 1 and 65535"),
        ("BROWSER_ENGINE", "opera", "'chromium', 'firefox' or 'webkit'"),
        ("BROWSER_ARGS", "--mute-audio headless", "'headless' is not an argument; each begins with '-'"),
        ("BROWSER_ARGS", "--a='b", "No closing quotation"),
        ("BROWSER_ENV", "A=b", "'A=b' is not the name of a variable"),
        ("BROWSER_ENV", "CPLANE_SECRET_KEY", "'CPLANE_SECRET_KEY' is a setting of cplane, which browsers never get"),
        ("ALLOWED_HOSTS", "http://host", "'http://host' is not a name, *.domain or address; write it without scheme"),
        ("ALLOWED_HOSTS", "host:8000", "'host:8000' is not a name"),
        ("ALLOWED_HOSTS", "*", "'*' is not a name"),
        ("BROWSER_CDP_URL", "redis://:hunter2@host", "it must start with http:// or https:// or ws:// or wss://"),
        ("BROWSER_SERVER_URL", "http://:hunter2@host", "it must start with ws:// or wss://"),
        ("DATABASE_URL", "mysql://user:hunter2@host/db", "it must start with postgresql://"),
        ("DATABASE_URL", "hunter2", "it must start with postgresql://"),
        ("REDIS_URL", "http://:hunter2@host", "it must start with redis://, rediss:// or unix://"),
        ("REDIS_URL", "redis://:hunter2@host:port", "its port is not a number"),
        ("REDIS_URL", "redis://:hunter2/x@host:6379", "its port is not a number"),
    ],
)
def test_an_invalid_value_is_reported_in_one_sentence_with_the_variable_and_without_secrets(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, expected: str
) -> None:
    with pytest.raises(InvalidSettings) as caught:
        load(monkeypatch, **{name: value})
    message = str(caught.value)
    assert message.startswith(f"CPLANE_{name}: ")
    assert expected in message
    assert message.count(f"CPLANE_{name}") == 1
    assert "hunter2" not in message
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__, "pydantic's own error would show the value"


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"BROWSER_COUNT": "5"}, "CPLANE_BROWSER_COUNT is at most CPLANE_BROWSER_PAGES"),
        ({"BROWSER_CDP_URL": "http://h"}, "a browser on another machine cannot use the egress proxy of this one"),
        ({"BROWSER_CDP_URL": "http://h", "BROWSER_SERVER_URL": "ws://h"}, "give CPLANE_BROWSER_CDP_URL or"),
        (
            {"BROWSER_CDP_URL": "http://h", "BROWSER_ENGINE": "webkit"},
            "CPLANE_BROWSER_CDP_URL is for CPLANE_BROWSER_ENGINE",
        ),
    ],
)
def test_an_error_names_variables_that_exclude_each_other(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: str
) -> None:
    with pytest.raises(InvalidSettings) as caught:
        load(monkeypatch, **variables)
    assert str(caught.value).startswith(expected)


def test_an_error_names_missing_variables_and_what_to_do() -> None:
    with pytest.raises(InvalidSettings) as caught:
        load_settings()
    assert str(caught.value) == (
        "CPLANE_DATABASE_URL is not set; CPLANE_REDIS_URL is not set; set it, or run `cplane dev` in this folder"
    )


def test_an_error_names_every_invalid_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidSettings) as caught:
        load(monkeypatch, LEASE_S="0", LOG_LEVEL="loud", REDIS_URL="hunter2")
    assert {part.partition(":")[0] for part in str(caught.value).split("; ")} == {
        "CPLANE_LEASE_S",
        "CPLANE_LOG_LEVEL",
        "CPLANE_REDIS_URL",
    }


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+asyncpg"])
def test_every_common_postgres_url_scheme_is_accepted(monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    url = f"{scheme}://user:p%40ss%2Fword@[::1]:5432/db?sslmode=require"
    assert load(monkeypatch, DATABASE_URL=url).database_url.get_secret_value() == url


@pytest.mark.parametrize(
    "url", ["redis://host", "rediss://user:p%2Fw@host:6380/1", "unix:///run/redis.sock?db=0", "redis://[::1]:6379"]
)
def test_every_common_form_of_a_redis_url_is_accepted(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    assert load(monkeypatch, REDIS_URL=url).redis_url.get_secret_value() == url


def test_settings_are_frozen_and_secrets_are_masked_in_their_repr_and_json(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(monkeypatch, API_KEYS="hunter2,hunter3")
    for shown in (repr(settings), str(settings), settings.model_dump_json()):
        assert "hunter" not in shown
    with pytest.raises(ValueError, match="frozen"):
        cast("Any", settings).lease_s = 3


# keys for the HTTP API


@pytest.mark.parametrize("value", ["", " ", ",", " , "])
def test_keys_that_are_set_but_empty_are_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    with pytest.raises(InvalidSettings, match=r"^CPLANE_API_KEYS: it is set and has no key; write a key, or unset it"):
        load(monkeypatch, API_KEYS=value)


def test_keys_that_are_unset_leave_the_api_open(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(monkeypatch).api_keys == ()


def documented_keys() -> set[str]:
    """Return every value of CPLANE_API_KEYS that the documentation and deploy/ show."""
    root = Path(__file__).parents[1]
    pages = [root / "README.md", *(root / "docs").rglob("*.md"), *(root / "deploy").rglob("*.sample")]
    found = {value for page in pages for value in re.findall(r"CPLANE_API_KEYS=([^\s`\"']+)", page.read_text())}
    return {key for value in found for key in value.split(",")}


def test_a_sample_of_the_documentation_is_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {"CHANGE_ME", "KEY"} <= documented_keys()
    for key in documented_keys():
        with pytest.raises(InvalidSettings, match=r"^CPLANE_API_KEYS: a key is a sample of the documentation"):
            load(monkeypatch, API_KEYS=f"mine,{key}")


# a running `cplane dev`


def write_stack_file(folder: Path, **fields: Any) -> None:
    """Write the stack file that a `cplane dev` in `folder` writes."""
    file = folder / ".cplane" / "stack.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    addresses = {"pid": os.getpid(), "database_url": DATABASE, "redis_url": REDIS, "artifacts_url": "file:///kept"}
    file.write_text(json.dumps({**addresses, "api_url": None, **fields}))
    for path in (file, file.parent):
        path.chmod(0o700)


def test_addresses_come_from_a_running_stack_in_this_folder_or_a_parent(
    empty_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_stack_file(empty_folder)
    below = empty_folder / "a" / "b"
    below.mkdir(parents=True)
    for folder in (empty_folder, below):
        monkeypatch.chdir(folder)
        settings = load_settings()
        assert settings.database_url.get_secret_value() == DATABASE
        assert settings.redis_url.get_secret_value() == REDIS
        assert settings.artifacts_url == "file:///kept"
    assert "api_url" not in running_stack(below)


def test_the_nearest_running_stack_is_used_and_stopped_ones_are_ignored(
    empty_folder: Path, monkeypatch: pytest.MonkeyPatch, dead_pid: int
) -> None:
    below = empty_folder / "a"
    write_stack_file(empty_folder, artifacts_url="file:///above")
    write_stack_file(below, artifacts_url="file:///below")
    monkeypatch.chdir(below)
    assert load_settings().artifacts_url == "file:///below"
    write_stack_file(below, artifacts_url="file:///below", pid=dead_pid)
    assert load_settings().artifacts_url == "file:///above"


@pytest.mark.parametrize(("path", "mode"), [("stack.json", 0o660), ("stack.json", 0o602), (".", 0o770), (".", 0o707)])
def test_a_stack_file_that_others_can_write_is_ignored(empty_folder: Path, path: str, mode: int) -> None:
    write_stack_file(empty_folder)
    assert running_stack(empty_folder)
    (empty_folder / ".cplane" / path).chmod(mode)
    assert running_stack(empty_folder) == {}


def test_a_stack_file_of_another_user_is_ignored(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_stack_file(empty_folder)
    user = os.geteuid()
    monkeypatch.setattr("cplane.settings.os.geteuid", lambda: user + 1)
    assert running_stack(empty_folder) == {}


def test_a_stack_file_that_is_a_link_is_ignored(empty_folder: Path) -> None:
    write_stack_file(empty_folder)
    file = empty_folder / ".cplane" / "stack.json"
    file.symlink_to(file.rename(empty_folder / "elsewhere.json"))
    assert running_stack(empty_folder) == {}


def test_explicit_values_override_a_running_stack_one_by_one(
    empty_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_stack_file(empty_folder)
    monkeypatch.setenv("CPLANE_REDIS_URL", "redis://mine")
    settings = load_settings(artifacts_url="file:///argument")
    assert settings.database_url.get_secret_value() == DATABASE
    assert settings.redis_url.get_secret_value() == "redis://mine"
    assert settings.artifacts_url == "file:///argument"
    assert load_settings(redis_url="redis://argument").redis_url.get_secret_value() == "redis://argument"


@pytest.fixture
def dead_pid() -> int:
    """The pid of a process that has exited."""
    ended = subprocess.Popen([sys.executable, "-S", "-c", ""])
    ended.wait()
    return ended.pid


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "7",
        "null",
        "\udcff",
        "{}",
        '{"pid": null}',
        '{"pid": "one"}',
        '{"pid": 1e999}',
        '{"pid": 99999999999999999999}',
        '{"pid": [1]}',
    ],
)
def test_a_malformed_stack_file_is_ignored(empty_folder: Path, content: str) -> None:
    write_stack_file(empty_folder)
    (empty_folder / ".cplane" / "stack.json").write_bytes(content.encode(errors="surrogateescape"))
    assert running_stack(empty_folder) == {}
    with pytest.raises(InvalidSettings, match="CPLANE_DATABASE_URL is not set"):
        load_settings()


def test_a_stack_whose_process_has_exited_is_ignored(empty_folder: Path, dead_pid: int) -> None:
    write_stack_file(empty_folder, pid=dead_pid)
    assert running_stack(empty_folder) == {}
