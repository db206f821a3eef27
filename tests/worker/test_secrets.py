"""Values that are known to be secrets appear in nothing that an attempt leaves: errors, log lines, evidence."""

import asyncio
import html
import io
import json
import zipfile
from typing import Any
from urllib.parse import quote

import pytest
from playwright.async_api import Page
from pydantic import SecretStr
from structlog.testing import capture_logs

from cplane import Context, ControlPlane, CplaneSettings, JobFailed, job
from cplane.keyring import Keyring, new_key
from tests.chaos.arena import query
from tests.pages import Response, serve
from tests.workers import DEADLINE_S, running

TYPED = "typed-hunter2"  # in no argument
API_KEY = 'k"ey <1> & välue'
TOKEN = "tok-98765"
BEARER = "s3cr3t-bearer"
GIVEN_COOKIE = "given-c00kie"
SITE_COOKIE = "site-c00kie-1"
SESSION_COOKIE = "session-c00kie-2"
SECRETS = [API_KEY, TOKEN, BEARER, GIVEN_COOKIE, SITE_COOKIE, SESSION_COOKIE]
WRITTEN = [
    form
    for secret in SECRETS
    for form in (secret, html.escape(secret), quote(secret, safe=""), json.dumps(secret)[1:-1])
]

ERRORS = "SELECT error_type FROM cplane.jobs WHERE state = 'failed'"


def options(arguments: Any) -> dict[str, object]:
    return {
        "extra_http_headers": arguments["headers"],
        "trace": "on",
        "session": "shop",
    }


@job(browser=options)
async def secrets_echo(
    page: Page, ctx: Context, url: str, *, api_key: str, headers: dict[str, str], cookies: list[dict[str, str]]
) -> None:
    await page.context.add_cookies([{"name": each["name"], "value": each["value"], "url": url} for each in cookies])
    await page.goto(url)
    await page.locator("#echo").fill(f"typed {api_key}")
    await page.evaluate(
        "text => console.log(text)", f"{api_key} {cookies[0]['value']} {await page.evaluate('document.cookie')}"
    )
    ctx.progress(1, 2, note=f"with {api_key}")
    ctx.log.info("visited", url=page.url, value=f"<{api_key}>")
    try:
        raise LookupError(f"{api_key} at {page.url}")
    except LookupError as error:
        ctx.log.exception("failed")
        raise RuntimeError(f"no price with {headers} and {cookies}") from error


@job
def secrets_in_thread(password: str) -> None:
    raise ValueError(f"{password} is wrong")


@job(record=False)
async def secrets_transient(password: str) -> None:
    raise ValueError(f"{password} is wrong")


@job(runs_in="process")
def secrets_in_process(password: str) -> None:
    raise ValueError(f"{password} is wrong")


@job(browser={"trace": "off"})
async def secrets_in_a_call_log(page: Page, ctx: Context, url: str, *, types: bool) -> None:
    try:
        if types:
            await page.set_content("<input id=q disabled>")
            await page.fill("#q", TYPED, timeout=200)
        else:
            await page.request.get(url, headers={"Authorization": f"Bearer {TYPED}"}, timeout=2000)
    except Exception as error:
        ctx.log.exception("failed")
        raise LookupError("no price") from error


@pytest.fixture
def settings(settings: CplaneSettings, monkeypatch: pytest.MonkeyPatch) -> CplaneSettings:
    """Settings with a key, and time for all evidence, however busy the machine is."""
    monkeypatch.setattr("cplane.worker.evidence.BUDGET_S", 40.0)
    monkeypatch.setattr("cplane.browser.evidence.STEP_S", 40.0)
    return settings.model_copy(update={"secret_key": SecretStr(new_key())})


def echo(padding: int) -> Response:
    """Return a page with all secrets, as pages write them."""
    written = "".join(
        f"<p>{html.escape(form)}</p><a href='/?q={quote(form)}'>{html.escape(form)}</a>" for form in WRITTEN
    )
    state = json.dumps({"all": SECRETS, "inner": json.dumps(SECRETS)}).replace("<", "\\u003c")
    body = f"<!doctype html><title>{html.escape(API_KEY)}</title><script>const state = {state}</script>{written}"
    body += f"<textarea id=echo></textarea><p>{'nothing ' * (padding // 8)}</p>"
    return Response(body.encode(), headers={"Set-Cookie": f"sid={SITE_COOKIE}"})


def unpacked(name: str, data: bytes) -> dict[str, bytes]:
    if not name.endswith(".zip"):
        return {name: data}
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {f"{name}/{entry}": archive.read(entry) for entry in archive.namelist()}


@pytest.mark.parametrize("padding", [0, 300_000], ids=["masked in a thread", "masked in a process"])
async def test_known_secrets_are_in_no_error_log_line_or_evidence(
    settings: CplaneSettings, plane: ControlPlane, padding: int
) -> None:
    cookie = {"name": "k", "value": SESSION_COOKIE, "domain": "127.0.0.1", "path": "/"}
    plane.sessions.keyring = Keyring(settings.secret_key)
    await plane.sessions.put("shop", {"cookies": [cookie], "origins": []})
    async with serve(lambda _: echo(padding)) as site, running(settings, pages=True):
        with capture_logs() as logs:
            handle = await secrets_echo.submit(
                url=f"{site}/?token={TOKEN}&page=2",
                api_key=API_KEY,
                headers={"Authorization": f"Bearer {BEARER}"},
                cookies=[{"name": "c", "value": GIVEN_COOKIE}],
            )
            with pytest.raises(JobFailed) as failure:
                await handle.result(timeout=DEADLINE_S)
        files: dict[str, bytes] = {}
        for artifact in await plane.artifacts_of([handle.id]):
            async with plane.open_artifact(handle.id, artifact.name) as (_, chunks):
                files |= unpacked(artifact.name, b"".join([chunk async for chunk in chunks]))
    kinds = {name.partition("/")[0] for name in files}
    assert kinds == {"failure-1.json", "failure-1.html", "failure-1.png", "trace-1.zip"}
    assert {"visited", "failed"} <= {line["event"] for line in logs}
    files |= {"log": repr(logs).encode(), "error": failure.value.error_message.encode()}
    assert (await plane.record(handle.id)).progress_note == "with ***"
    files |= {"traceback": failure.value.traceback.encode()}
    assert [(form, name) for name, data in files.items() for form in WRITTEN if form.encode() in data] == []
    assert b"***" in files["failure-1.html"]
    assert "page=2" in failure.value.traceback, "what is no secret stays"


@pytest.mark.parametrize("types", [True, False], ids=["typed text", "header"])
async def test_secrets_that_playwright_logs_of_a_call_are_not_recorded(
    settings: CplaneSettings, plane: ControlPlane, *, types: bool
) -> None:
    async with running(settings, pages=True):
        with capture_logs() as logs:
            handle = await secrets_in_a_call_log.submit("http://127.0.0.1:9/", types=types)
            with pytest.raises(JobFailed) as failure:
                await handle.result(timeout=DEADLINE_S)
    assert "Call log:" in failure.value.traceback
    assert "Call log:" in repr(logs)
    assert TYPED not in failure.value.error_message + failure.value.traceback + repr(logs)


async def test_errors_of_all_kinds_of_jobs_are_recorded_without_known_secrets(
    settings: CplaneSettings, plane: ControlPlane
) -> None:
    async with running(settings):
        for each in (secrets_in_thread, secrets_transient, secrets_in_process):
            handle = await each.submit(password="hunter22")
            with pytest.raises(JobFailed) as failure:
                await handle.result(timeout=DEADLINE_S)
            assert failure.value.error_message == "*** is wrong", each.name
            assert "hunter22" not in failure.value.traceback


async def test_a_job_whose_arguments_cannot_be_read_fails_with_that_error(
    settings: CplaneSettings, plane: ControlPlane
) -> None:
    handle = await secrets_in_thread.submit(password="hunter22")
    deep = "[" * 3000 + "]" * 3000
    url = settings.database_url.get_secret_value()
    await query(
        url,
        f"UPDATE cplane.jobs SET args = '{{\"password\": {deep}}}' WHERE id = '{handle.id}'",
    )
    async with running(settings), asyncio.timeout(DEADLINE_S):
        while not (rows := await query(url, ERRORS)):
            await asyncio.sleep(0.05)
    assert [row["error_type"] for row in rows] == ["InvalidArguments"]
