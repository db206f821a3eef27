"""`cplane sessions` and `cplane secret`; the state of a session is never printed."""

import json
import re
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from pydantic import SecretStr

from cplane import ControlPlane, CplaneSettings
from cplane.cli import doctor
from cplane.keyring import Keyring, new_key

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import Cplane

OLD, NEW = new_key(), new_key()
STATE: dict[str, Any] = {
    "cookies": [{"name": "sid", "value": "hunter2", "domain": "example.com", "path": "/"}],
    "origins": [{"origin": "https://example.com", "localStorage": [{"name": "unstorable", "value": "\0\ud800"}]}],
}


@pytest.fixture
def keyed(addresses: dict[str, str]) -> dict[str, str]:
    """The addresses, and a key."""
    return {**addresses, "CPLANE_SECRET_KEY": OLD}


@pytest_asyncio.fixture
async def plane(settings: CplaneSettings) -> AsyncIterator[ControlPlane]:
    async with ControlPlane(settings.model_copy(update={"secret_key": SecretStr(OLD)})) as plane:
        yield plane


async def start(plane: ControlPlane) -> Any:
    handle = await plane.create_job("links", {"url": "http://localhost"})
    (started,) = await plane.store.start("w", [handle.id], "t", 60)
    return started


async def test_a_secret_is_a_new_key_each_time_and_fits_the_setting(
    cplane: "Cplane", addresses: dict[str, str]
) -> None:
    first, second = await cplane("secret"), await cplane("secret")
    assert (first.code, first.stderr) == (0, "")
    assert first.stdout != second.stdout
    ended = await cplane("sessions", "list", CPLANE_SECRET_KEY=first.stdout.strip(), **addresses)
    assert (ended.code, ended.stdout, ended.stderr) == (0, "", "there are no sessions\n")


async def test_a_session_is_imported_listed_held_and_deleted(
    cplane: "Cplane", keyed: dict[str, str], folder: "Path", plane: ControlPlane
) -> None:
    (folder / "shop.json").write_text(json.dumps(STATE))
    assert (await cplane("sessions", "import", "shop.json", **keyed)).stderr == "session 'shop' is imported\n"
    assert (await cplane("sessions", "import", "shop.json", **keyed)).stderr == "session 'shop' is replaced\n"
    named = await cplane("sessions", "import", "shop.json", "--name", "shop:jane@example.com", **keyed)
    assert (named.code, named.stderr) == (0, "session 'shop:jane@example.com' is imported\n")

    started = await start(plane)
    held = await plane.sessions.acquire("shop", started.id, started.attempt)
    assert held is not None
    assert held.storage_state == STATE
    listed = await cplane("sessions", "list", "--json", **keyed)
    assert [(each["name"], each["version"], each["held_by"]) for each in json.loads(listed.stdout)] == [
        ("shop", 2, str(started.id)),
        ("shop:jane@example.com", 1, None),
    ]
    shown = await cplane("sessions", "list", COLUMNS="140", **keyed)
    assert re.search(rf"shop +\d+ B +.* ago +2 +.* ago +\w{{12}} +example.com +{started.id} attempt 1", shown.stdout)
    assert "hunter2" not in listed.stdout + shown.stdout

    refused = await cplane("sessions", "delete", "shop", **keyed)
    assert (refused.code, "a running job holds the session 'shop'" in refused.stderr) == (1, True)
    assert (await cplane("sessions", "delete", "shop:jane@example.com", **keyed)).stderr == "deleted\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "'shop.json' cannot be read: No such file or directory"),
        ("hunter2", "'shop.json' is not JSON"),
        ('["hunter2"]', "not a storage_state of Playwright"),
        (
            '{"cookies": [{"name": "sid", "value": "hunter2"}]}',
            "cookies/0: a cookie needs a domain and a path, or a url",
        ),
    ],
)
async def test_an_invalid_session_is_refused_without_its_content(
    cplane: "Cplane", keyed: dict[str, str], folder: "Path", content: str | None, message: str
) -> None:
    if content is not None:
        (folder / "shop.json").write_text(content)
    ended = await cplane("sessions", "import", "shop.json", **keyed)
    assert (ended.code, ended.stdout) == (1, "")
    assert message in ended.stderr
    assert "hunter2" not in ended.stderr
    assert "Traceback" not in ended.stderr


async def test_errors_of_sessions_have_a_hint(
    cplane: "Cplane", addresses: dict[str, str], keyed: dict[str, str], folder: "Path"
) -> None:
    (folder / "shop.json").write_text(json.dumps(STATE))
    keyless = await cplane("sessions", "import", "shop.json", **addresses)
    assert (keyless.code, "CPLANE_SECRET_KEY" in keyless.stderr, "cplane secret" in keyless.stderr) == (1, True, True)
    wrong = await cplane("sessions", "list", **{**addresses, "CPLANE_SECRET_KEY": "hunter2"})
    assert (wrong.code, "key 1 is not 32 bytes in base64" in wrong.stderr) == (1, True)
    assert "hunter2" not in wrong.stderr
    name = await cplane("sessions", "import", "shop.json", "--name", "a/b", **keyed)
    assert (name.code, "not a valid session name" in name.stderr) == (1, True)
    nameless = await cplane("sessions", "import", "-", **keyed)
    assert (nameless.code, "needs a --name" in nameless.stderr) == (2, True)


async def test_a_rotation_encrypts_with_the_first_key(
    cplane: "Cplane", keyed: dict[str, str], plane: ControlPlane
) -> None:
    for name in ("a", "b", "c"):
        await plane.sessions.put(name, STATE)
    keyed["CPLANE_SECRET_KEY"] = NEW
    failed = await cplane("sessions", "rotate", **keyed)
    assert (failed.code, failed.stderr.count("unchanged: 'a' is encrypted with the key")) == (1, 1)
    keyed["CPLANE_SECRET_KEY"] = f"{NEW},{OLD}"
    ended = await cplane("sessions", "rotate", **keyed)
    assert (ended.code, ended.stderr.splitlines()[-1].strip()) == (0, "3 encrypted again")
    assert "encrypted with the first key already" in (await cplane("sessions", "rotate", **keyed)).stderr


async def test_the_doctor_reports_which_keys_are_needed(settings: CplaneSettings, plane: ControlPlane) -> None:
    async def check(*keys: str) -> tuple[str, str, str]:
        secret = SecretStr(",".join(keys)) if keys else None
        finding = await doctor._sessions(settings.model_copy(update={"secret_key": secret}))  # pyright: ignore[reportPrivateUsage]  without a browser
        return finding.verdict, finding.detail, finding.hint or ""

    old, new = (f"browser sessions are encrypted with the key {Keyring(SecretStr(key)).first}" for key in (OLD, NEW))
    assert (await check())[:2] == ("ok", "no key, and no browser sessions")
    await plane.sessions.put("a", STATE)
    assert await check(OLD) == ("ok", old, "")
    assert await check(NEW, OLD) == ("ok", f"{new}, 1 with older ones", "run `cplane sessions rotate`")
    assert await check(OLD, NEW) == ("ok", old, "only the first key of CPLANE_SECRET_KEY is still needed")
    for keys in ((), (NEW,)):
        assert (await check(*keys))[:2] == ("warning", "1 browser session is encrypted with a key that is not set")


async def test_what_a_session_allows_is_set_and_shown(
    cplane: "Cplane", keyed: dict[str, str], plane: ControlPlane
) -> None:
    await plane.sessions.put("shop", STATE)
    allowing = ("sessions", "allow", "shop", "--host", "idp.example", "--option", "proxy")
    assert (await cplane(*allowing, **keyed)).stderr == "session 'shop' allows idp.example, proxy\n"
    listed = json.loads((await cplane("sessions", "list", "--json", **keyed)).stdout)[0]
    assert (listed["hosts"], listed["allowed_hosts"]) == (["example.com"], ["idp.example"])
    shown = (await cplane("sessions", "list", COLUMNS="200", **keyed)).stdout
    assert "example.com + idp.example, proxy" in shown
    assert (await cplane("sessions", "allow", "shop", **keyed)).stderr == "session 'shop' allows nothing more\n"

    ended = await cplane("sessions", "allow", "shop", "--option", "cookies", **keyed)
    assert (ended.code, ended.stdout) == (1, "")
    assert "'cookies' is not an option that sessions guard" in ended.stderr
    ended = await cplane("sessions", "allow", "shop", "--host", "https://idp.example", **keyed)
    assert ended.code == 1
    assert "without scheme and port" in ended.stderr
