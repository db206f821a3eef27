import socket
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

if TYPE_CHECKING:
    from tests.cli.conftest import Cplane, Ended, Start

NEED_SETTINGS = [
    ["jobs", "list"],
    ["jobs", "show", "01900000-0000-7000-8000-000000000000"],
    ["submit", "links", "url=http://127.0.0.1"],
    ["db", "upgrade"],
    ["worker"],
    ["web"],
]


def assert_one_sentence(ended: "Ended", *words: str) -> None:
    assert ended.code == 1, ended.stderr
    assert ended.stdout == ""
    assert ended.stderr.startswith("error: ")
    assert len(ended.stderr.splitlines()) <= 2, "a sentence and a hint"
    for word in words:
        assert word in ended.stderr


@pytest.mark.parametrize("command", NEED_SETTINGS, ids=" ".join)
async def test_missing_settings(cplane: "Cplane", command: list[str]) -> None:
    assert_one_sentence(await cplane(*command), "CPLANE_DATABASE_URL is not set", "CPLANE_REDIS_URL", "cplane dev")


async def test_an_invalid_setting_is_named_without_its_value(cplane: "Cplane", addresses: dict[str, str]) -> None:
    addresses["CPLANE_DATABASE_URL"] = "mysql://u:secret@h/d"
    ended = await cplane("jobs", "list", **addresses)
    assert_one_sentence(ended, "CPLANE_DATABASE_URL", "postgresql://")
    assert "secret" not in ended.stderr


@pytest.mark.parametrize("command", [["web"], ["dev"]], ids=" ".join)
async def test_an_api_without_keys_is_not_opened_to_other_machines(
    cplane: "Cplane", start: "Start", addresses: dict[str, str], command: list[str]
) -> None:
    command = [*command, "--host", "0.0.0.0", "--port", "0"]
    assert_one_sentence(await cplane(*command, **addresses), "no keys", "CPLANE_API_KEYS", "--insecure")
    async with start(*command, "--insecure", **addresses) as running:
        await running.until(r"/docs")
        assert (await running.stop()).code == 0


@pytest.mark.parametrize("keys", ["", "CHANGE_ME"], ids=["empty", "sample"])
async def test_a_program_does_not_start_without_real_keys(
    cplane: "Cplane", addresses: dict[str, str], keys: str
) -> None:
    ended = await cplane("web", "--port", "0", CPLANE_API_KEYS=keys, **addresses)
    assert_one_sentence(ended, "CPLANE_API_KEYS")


async def test_postgres_is_unavailable(cplane: "Cplane", addresses: dict[str, str], tmp_path: Path) -> None:
    addresses["CPLANE_DATABASE_URL"] = f"postgresql://u:secret@/d?host={tmp_path}"
    ended = await cplane("jobs", "list", **addresses)
    assert_one_sentence(ended, "Postgres", "CPLANE_DATABASE_URL")
    assert "secret" not in ended.stderr


async def test_an_unknown_job_lists_the_known_ones(cplane: "Cplane", addresses: dict[str, str]) -> None:
    ended = await cplane("submit", "shot", "url=http://127.0.0.1", **addresses)
    assert_one_sentence(ended, "no job named 'shot'", "screenshot", "CPLANE_IMPORTS")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["url=nonsense"], "url"),
        (["link=http://127.0.0.1"], "link"),
        (["url"], "'url' is not an argument"),
        (["--args", "[1]"], "not a JSON object"),
        (["--args", "{"], "not JSON"),
        (["url=http://127.0.0.1", "--delay", "-1"], "delay"),
        (["url=http://127.0.0.1", "--job-timeout", "nan"], "at most the job's own"),
    ],
    ids=["wrong", "unknown", "no value", "no object", "no JSON", "negative delay", "timeout"],
)
async def test_invalid_arguments_submit_nothing(
    cplane: "Cplane", addresses: dict[str, str], arguments: list[str], message: str
) -> None:
    assert_one_sentence(await cplane("submit", "links", *arguments, **addresses), message)
    assert (await cplane("jobs", "list", "--json", **addresses)).stdout == "[]\n"


@pytest.mark.parametrize("verb", ["show", "cancel", "retry"])
async def test_unknown_id(cplane: "Cplane", addresses: dict[str, str], verb: str) -> None:
    unknown = str(uuid4())
    assert_one_sentence(await cplane("jobs", verb, unknown, **addresses), unknown)


@pytest.mark.parametrize("verb", ["show", "cancel", "retry"])
async def test_an_invalid_id(cplane: "Cplane", addresses: dict[str, str], verb: str) -> None:
    ended = await cplane("jobs", verb, "yesterday", **addresses)
    assert_one_sentence(ended, "'yesterday' is not the id of a job", "cplane jobs list")


@pytest.mark.parametrize("command", ["web", "dev"])
async def test_a_port_in_use(cplane: "Cplane", addresses: dict[str, str], command: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        ended = await cplane(command, "--port", port, **addresses, CPLANE_LOG_LEVEL="error")
    assert_one_sentence(ended, f"port {port} is taken", "--port")


async def test_old_tables(cplane: "Cplane", addresses: dict[str, str], redis_url: str) -> None:
    from pydantic import SecretStr
    from sqlalchemy import text

    from cplane.postgres.database import Database

    async with Database(SecretStr(addresses["CPLANE_DATABASE_URL"])) as database, database.session() as session:
        await (await session.connection()).execute(text("DROP SCHEMA cplane CASCADE"))
    assert_one_sentence(await cplane("jobs", "list", **addresses), "no cplane tables", "cplane db upgrade")

    first = await cplane("db", "upgrade", **addresses)
    again = await cplane("db", "upgrade", **addresses)
    assert (first.code, again.code) == (0, 0)
    assert "upgraded the tables from nothing" in first.stderr
    assert "already" in again.stderr
    assert (await cplane("jobs", "list", **addresses)).code == 0


TWICE = """\
from cplane import job


@job
async def one() -> None: ...


@job(name="one")
async def other() -> None: ...
"""


@pytest.mark.parametrize(
    ("target", "source", "message"),
    [
        ("missing.py", None, "there is no file missing.py"),
        ("json.py", "", "hides Python's own module"),
        ("my-app.py", "", "my-app.py cannot be imported"),
        ("nowhere", None, "'nowhere', which cannot be found"),
        ("raises.py", "1 / 0", "ZeroDivisionError"),
        ("typo.py", "def", "typo.py, line 1"),
        ("twice.py", TWICE, "two jobs are named 'one'"),
    ],
)
async def test_a_file_that_cannot_be_imported(
    cplane: "Cplane", addresses: dict[str, str], folder: Path, *, target: str, source: str | None, message: str
) -> None:
    if source is not None:
        (folder / target).write_text(source)
    assert_one_sentence(await cplane("dev", target, "--port", "0", **addresses), message)


@pytest.mark.parametrize(
    "command", [["nonsense"], ["submit"], ["jobs", "list", "--state", "done"], ["web", "--port", "99999"]], ids=" ".join
)
async def test_wrong_usage_exits_2(cplane: "Cplane", command: list[str]) -> None:
    ended = await cplane(*command)
    assert ended.code == 2
    assert "Usage: cplane" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (
            ["submit", "links", "--priority", "urgent"],
            "'--priority' / '-p': 'urgent' is not one of 'high', 'normal', 'low'.",
        ),
        (["jobs", "list", "--state", "done"], "'--state' / '-s': 'done' is not one of 'queued', 'running', "),
        (["jobs", "retry", "--state", "queued"], "'--state' / '-s': 'queued' is not one of 'failed', 'cancelled'."),
    ],
    ids=["priority", "state", "state to retry"],
)
async def test_an_invalid_choice_is_named_with_the_valid_ones(
    cplane: "Cplane", command: list[str], message: str
) -> None:
    ended = await cplane(*command)
    assert ended.code == 2
    output = " ".join(ended.stderr.replace("│", " ").split())
    assert f"Invalid value for {message}" in output
    assert "Try 'cplane" in output
    assert "Value error" not in output
