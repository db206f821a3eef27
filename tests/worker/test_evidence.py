"""Evidence of a failed browser job: screenshot, HTML, console, requests and trace become artifacts, without secrets."""

import asyncio
import io
import json
import zipfile
from collections.abc import AsyncGenerator
from uuid import UUID

import pytest
from playwright.async_api import Page

from cplane import Context, ControlPlane, CplaneSettings, JobFailed, RetryPolicy, job
from cplane.artifacts import ArtifactStore
from tests.workers import DEADLINE_S, Gate, running

SECRETS = ("hunter2", "s3cr3t-value", "tok3n-value", "c00kie-value", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abcdefghijk")
PAGE = """<!doctype html><title>Broken shop</title><h1>Sorry</h1>
<input type=password value="hunter2"><input type=hidden name=csrf_token value="tok3n-value">
<script>
  console.error('it went wrong with token=tok3n-value')
  console.log('Bearer s3cr3t-value-of-a-bearer')
  fetch('/api?api_key=s3cr3t-value&page=2', {headers: {Authorization: 'Bearer eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abcdefghijk'}})
  fetch('/form', {method: 'POST', body: JSON.stringify({password: 'hunter2', name: 'me'}), headers: {'content-type': 'application/json'}})
  setTimeout(() => { throw new Error('uncaught') })
</script>"""
gate = Gate()
RETRY_IMMEDIATELY = RetryPolicy(retries=1, backoff_s=0, jitter=0)


@pytest.fixture
def generous_evidence_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time limits that let all evidence be collected, however busy the machine is."""
    monkeypatch.setattr("cplane.worker.evidence.BUDGET_S", 30.0)
    monkeypatch.setattr("cplane.browser.evidence.STEP_S", 30.0)


async def handle_request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        body = PAGE if head.startswith(b"GET / ") else '{"session_token": "tok3n-value", "ok": true}'
        kind = "text/html" if body is PAGE else "application/json"
        lines = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nSet-Cookie: sid=c00kie-value\r\nConnection: close\r\n"
        writer.write(f"{lines}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


@pytest.fixture
async def shop() -> AsyncGenerator[str]:
    async with await asyncio.start_server(handle_request, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        yield f"http://{host}:{port}/"


@pytest.fixture(autouse=True)
def fresh_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "gate", Gate())


@job(retries=RETRY_IMMEDIATELY, timeout=20)
async def evidence_shop(page: Page, ctx: Context, url: str) -> None:
    await page.goto(url)
    await page.wait_for_load_state("networkidle")
    await page.locator("input[type=password]").fill("hunter2")
    await page.locator("input").first.fill("hunter2")  # a field whose name does not show that it holds a secret
    raise LookupError("no price, session=s3cr3t-value")


@job
async def evidence_fails_without_retry(page: Page, url: str) -> None:
    await page.goto(url)
    raise LookupError("no price")


@job(timeout=1)
async def evidence_page_busy(page: Page) -> None:
    await page.set_content("<title>Busy</title>")
    await page.evaluate("() => { while (true); }")


@job(browser={"trace": "on"})
async def evidence_always_traced(page: Page, url: str) -> str:
    await page.goto(url)
    return await page.title()


@job
async def evidence_starts_own_trace(page: Page) -> None:
    await page.context.tracing.start(snapshots=True)
    await page.context.tracing.stop()


@job(browser={"trace": "off"})
async def evidence_starts_own_trace_only(page: Page) -> None:
    await page.context.tracing.start(snapshots=True)
    await page.context.tracing.stop()


@job
async def evidence_succeeds(page: Page) -> int:
    return 1


@job
async def evidence_fails_before_navigation(page: Page) -> None:
    raise LookupError("before any navigation")


async def files_of(plane: ControlPlane, record_id: UUID) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for artifact in await plane.artifacts_of([record_id]):
        async with plane.open_artifact(record_id, artifact.name) as (_, chunks):
            found[artifact.name] = b"".join([chunk async for chunk in chunks])
    return found


def events(trace: bytes) -> list[dict[str, object]]:
    """Return the events that Playwright recorded, one per line of the file."""
    with zipfile.ZipFile(io.BytesIO(trace)) as archive:
        return [json.loads(line) for line in archive.read("trace.trace").splitlines()]


def api_methods(trace: bytes) -> set[object]:
    return {event.get("method") for event in events(trace) if event["type"] == "before"}


def has_snapshots(trace: bytes) -> bool:
    return any(event["type"] == "frame-snapshot" for event in events(trace))


def unpacked(files: dict[str, bytes]) -> dict[str, bytes]:
    """Return every file, and every entry of those that are archives."""
    found = dict(files)
    for name, data in files.items():
        if name.endswith(".zip"):
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                found |= {f"{name}/{entry}": archive.read(entry) for entry in archive.namelist()}
    return found


@pytest.mark.usefixtures("generous_evidence_limits")
async def test_every_attempt_of_a_failed_job_keeps_evidence(
    settings: CplaneSettings, plane: ControlPlane, shop: str
) -> None:
    async with running(settings, pages=True):
        handle = await evidence_shop.submit(url=shop)
        with pytest.raises(JobFailed, match="no price"):
            await handle.result(timeout=DEADLINE_S)
        files = await files_of(plane, handle.id)  # evidence is stored before the result is published
    assert set(files) == {
        *(f"failure-{number}.{kind}" for number in (1, 2) for kind in ("json", "png", "html")),
        *(f"trace-{number}.zip" for number in (1, 2)),
    }
    assert not has_snapshots(files["trace-1.zip"])  # snapshots cost more, so only attempts after a failure record them
    assert has_snapshots(files["trace-2.zip"])
    assert {"goto", "fill"} <= api_methods(files["trace-1.zip"])
    report = json.loads(files["failure-1.json"])
    assert report["error"].startswith("LookupError: no price")
    assert (report["url"], report["title"]) == (shop, "Broken shop")
    assert any(line["type"] == "error" and "it went wrong" in line["text"] for line in report["console"])
    assert any("uncaught" in error for error in report["page_errors"])
    requests = {request["url"].removeprefix(shop): request for request in report["requests"]}
    assert requests[""]["status"] == 200
    assert "api?api_key=***&page=2" in requests
    assert files["failure-1.png"].startswith(b"\x89PNG")
    assert b"<h1>Sorry</h1>" in files["failure-1.html"]


@pytest.mark.usefixtures("generous_evidence_limits")
async def test_evidence_contains_no_secrets(settings: CplaneSettings, plane: ControlPlane, shop: str) -> None:
    async with running(settings, pages=True):
        handle = await evidence_shop.submit(url=shop)
        with pytest.raises(JobFailed):
            await handle.result(timeout=DEADLINE_S)
        files = unpacked(await files_of(plane, handle.id))
    assert any(name.endswith(".network") and data for name, data in files.items())
    leaks = [(secret, name) for secret in SECRETS for name, data in files.items() if secret.encode() in data]
    assert leaks == []


async def test_collecting_evidence_of_a_busy_page_takes_no_longer_than_the_budget(
    settings: CplaneSettings, plane: ControlPlane
) -> None:
    async with running(settings.model_copy(update={"browser_pages": 1}), pages=True):
        spinning = await evidence_page_busy.submit()
        fine = await evidence_succeeds.submit()
        with pytest.raises(JobFailed, match="ran longer than 1 s"):
            await spinning.result(timeout=DEADLINE_S)
        assert await fine.result(timeout=DEADLINE_S) == 1
        files = await files_of(plane, spinning.id)
    assert "failure-1.json" in files


async def test_page_and_slot_are_released_while_evidence_is_stored(
    settings: CplaneSettings, plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = ArtifactStore.put

    async def slow(self: ArtifactStore, *args: object, **options: object) -> object:
        await gate.pass_through()
        return await put(self, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(ArtifactStore, "put", slow)
    one_slot = settings.model_copy(update={"browser_pages": 1, "queues": {"default": 1, "browser": 1}})
    async with running(one_slot, pages=True):
        failing = await evidence_fails_before_navigation.submit()
        await asyncio.wait_for(gate.entered.wait(), DEADLINE_S)
        fine = await evidence_succeeds.submit()
        assert await fine.result(timeout=DEADLINE_S) == 1
        gate.open.set()
        with pytest.raises(JobFailed):
            await failing.result(timeout=DEADLINE_S)
        assert "failure-1.png" in await files_of(plane, failing.id)


async def test_an_unresponsive_artifact_store_does_not_block_a_job(
    settings: CplaneSettings, plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(*_: object) -> object:
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(ArtifactStore, "put", never)
    monkeypatch.setattr("cplane.worker.evidence.BUDGET_S", 0.5)
    async with running(settings, pages=True):
        handle = await evidence_fails_before_navigation.submit()
        with pytest.raises(JobFailed, match="before any navigation"):
            await handle.result(timeout=DEADLINE_S)
    assert await plane.artifacts_of([handle.id]) == []


async def test_traces_are_kept_always_with_trace_on_and_never_with_trace_off(
    settings: CplaneSettings, plane: ControlPlane, shop: str
) -> None:
    async with running(settings, pages=True):
        handle = await evidence_always_traced.submit(url=shop)
        assert await handle.result(timeout=DEADLINE_S) == "Broken shop"
        assert set(await files_of(plane, handle.id)) == {"trace-1.zip"}
    async with running(settings.model_copy(update={"trace": "off"}), pages=True):
        failed = await evidence_shop.submit(url=shop)
        with pytest.raises(JobFailed):
            await failed.result(timeout=DEADLINE_S)
        assert not [name for name in await files_of(plane, failed.id) if name.startswith("trace")]


@pytest.mark.usefixtures("generous_evidence_limits")
async def test_the_job_after_a_failure_of_the_same_name_is_traced_with_snapshots(
    settings: CplaneSettings, plane: ControlPlane, shop: str
) -> None:
    async with running(settings, pages=True):
        for expected in (False, True):
            handle = await evidence_fails_without_retry.submit(url=shop)
            with pytest.raises(JobFailed):
                await handle.result(timeout=DEADLINE_S)
            assert has_snapshots((await files_of(plane, handle.id))["trace-1.zip"]) is expected


async def test_a_successful_job_keeps_no_evidence(settings: CplaneSettings, plane: ControlPlane) -> None:
    async with running(settings, pages=True):
        handle = await evidence_succeeds.submit()
        assert await handle.result(timeout=DEADLINE_S) == 1
        assert await files_of(plane, handle.id) == {}


async def test_a_job_that_starts_its_own_trace_fails_with_a_hint_unless_trace_is_off(
    settings: CplaneSettings, plane: ControlPlane
) -> None:
    async with running(settings, pages=True):
        refused = await evidence_starts_own_trace.submit()
        with pytest.raises(JobFailed, match="already started") as failed:
            await refused.result(timeout=DEADLINE_S)
        assert "hint: cplane records a trace of this page already" in failed.value.traceback
        allowed = await evidence_starts_own_trace_only.submit()
        await allowed.result(timeout=DEADLINE_S)
