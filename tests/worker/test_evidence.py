"""A failed browser job explains itself: picture, HTML, console, requests and trace are artifacts of the attempt, without secrets."""

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
AT_ONCE = RetryPolicy(retries=1, backoff_s=0, jitter=0)


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept of a failed page is all there, however busy the machine is."""
    monkeypatch.setattr("cplane.worker.evidence.BUDGET_S", 30.0)
    monkeypatch.setattr("cplane.browser.evidence.STEP_S", 30.0)


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
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
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        yield f"http://{host}:{port}/"


@pytest.fixture(autouse=True)
def fresh_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "gate", Gate())


@job(retries=AT_ONCE, timeout=20)
async def failures_shop(page: Page, ctx: Context, url: str) -> None:
    await page.goto(url)
    await page.wait_for_load_state("networkidle")
    await page.locator("input[type=password]").fill("hunter2")
    await page.locator("input").first.fill("hunter2")  # a field whose name says nothing
    raise LookupError("no price, session=s3cr3t-value")


@job
async def failures_once(page: Page, url: str) -> None:
    await page.goto(url)
    raise LookupError("no price")


@job(timeout=1)
async def failures_spins(page: Page) -> None:
    await page.set_content("<title>Busy</title>")
    await page.evaluate("() => { while (true); }")


@job(browser={"trace": "on"})
async def failures_traced(page: Page, url: str) -> str:
    await page.goto(url)
    return await page.title()


@job
async def failures_traces_itself(page: Page) -> None:
    await page.context.tracing.start(snapshots=True)
    await page.context.tracing.stop()


@job(browser={"trace": "off"})
async def failures_traces_itself_alone(page: Page) -> None:
    await page.context.tracing.start(snapshots=True)
    await page.context.tracing.stop()


@job
async def failures_fine(page: Page) -> int:
    return 1


@job
async def failures_early(page: Page) -> None:
    raise LookupError("before anything was opened")


async def files_of(plane: ControlPlane, record_id: UUID) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for artifact in await plane.artifacts_of([record_id]):
        async with plane.open_artifact(record_id, artifact.name) as (_, chunks):
            found[artifact.name] = b"".join([chunk async for chunk in chunks])
    return found


def events(trace: bytes) -> list[dict[str, object]]:
    """What Playwright recorded, a line each."""
    with zipfile.ZipFile(io.BytesIO(trace)) as archive:
        return [json.loads(line) for line in archive.read("trace.trace").splitlines()]


def calls(trace: bytes) -> set[object]:
    return {event.get("method") for event in events(trace) if event["type"] == "before"}


def snapshots(trace: bytes) -> bool:
    return any(event["type"] == "frame-snapshot" for event in events(trace))


def unpacked(files: dict[str, bytes]) -> dict[str, bytes]:
    """Every file, and what is in those that are archives."""
    found = dict(files)
    for name, data in files.items():
        if name.endswith(".zip"):
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                found |= {f"{name}/{entry}": archive.read(entry) for entry in archive.namelist()}
    return found


@pytest.mark.usefixtures("unhurried")
async def test_every_attempt_of_a_failed_job_leaves_its_evidence(
    settings: CplaneSettings, plane: ControlPlane, shop: str
) -> None:
    async with running(settings, pages=True):
        handle = await failures_shop.submit(url=shop)
        with pytest.raises(JobFailed, match="no price"):
            await handle.result(timeout=DEADLINE_S)
        files = await files_of(plane, handle.id)  # they are there when the result is
    assert set(files) == {
        *(f"failure-{number}.{kind}" for number in (1, 2) for kind in ("json", "png", "html")),
        *(f"trace-{number}.zip" for number in (1, 2)),
    }
    assert not snapshots(files["trace-1.zip"])  # they cost more: they are for runs that follow a failure
    assert snapshots(files["trace-2.zip"])
    assert {"goto", "fill"} <= calls(files["trace-1.zip"])
    told = json.loads(files["failure-1.json"])
    assert told["error"].startswith("LookupError: no price")
    assert (told["url"], told["title"]) == (shop, "Broken shop")
    assert any(line["type"] == "error" and "it went wrong" in line["text"] for line in told["console"])
    assert any("uncaught" in error for error in told["page_errors"])
    asked = {request["url"].removeprefix(shop): request for request in told["requests"]}
    assert asked[""]["status"] == 200
    assert "api?api_key=***&page=2" in asked
    assert files["failure-1.png"].startswith(b"\x89PNG")
    assert b"<h1>Sorry</h1>" in files["failure-1.html"]


@pytest.mark.usefixtures("unhurried")
async def test_no_secret_is_in_any_of_it(settings: CplaneSettings, plane: ControlPlane, shop: str) -> None:
    async with running(settings, pages=True):
        handle = await failures_shop.submit(url=shop)
        with pytest.raises(JobFailed):
            await handle.result(timeout=DEADLINE_S)
        files = unpacked(await files_of(plane, handle.id))
    assert any(name.endswith(".network") and data for name, data in files.items())
    shown = [(secret, name) for secret in SECRETS for name, data in files.items() if secret.encode() in data]
    assert shown == []


async def test_a_page_that_never_lets_go_costs_its_worker_no_more_than_the_budget(
    settings: CplaneSettings, plane: ControlPlane
) -> None:
    async with running(settings.model_copy(update={"browser_pages": 1}), pages=True):
        spinning = await failures_spins.submit()
        fine = await failures_fine.submit()
        with pytest.raises(JobFailed, match="ran longer than 1 s"):
            await spinning.result(timeout=DEADLINE_S)
        assert await fine.result(timeout=DEADLINE_S) == 1
        files = await files_of(plane, spinning.id)
    assert "failure-1.json" in files


async def test_the_next_job_has_page_and_room_while_evidence_is_kept(
    settings: CplaneSettings, plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = ArtifactStore.put

    async def slow(self: ArtifactStore, *args: object, **more: object) -> object:
        await gate.pass_through()
        return await put(self, *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(ArtifactStore, "put", slow)
    one = settings.model_copy(update={"browser_pages": 1, "queues": {"default": 1, "browser": 1}})
    async with running(one, pages=True):
        failing = await failures_early.submit()
        await asyncio.wait_for(gate.entered.wait(), DEADLINE_S)
        fine = await failures_fine.submit()
        assert await fine.result(timeout=DEADLINE_S) == 1
        gate.open.set()
        with pytest.raises(JobFailed):
            await failing.result(timeout=DEADLINE_S)
        assert "failure-1.png" in await files_of(plane, failing.id)


async def test_a_store_that_does_not_answer_holds_no_job_up(
    settings: CplaneSettings, plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(*_: object) -> object:
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(ArtifactStore, "put", never)
    monkeypatch.setattr("cplane.worker.evidence.BUDGET_S", 0.5)
    async with running(settings, pages=True):
        handle = await failures_early.submit()
        with pytest.raises(JobFailed, match="before anything was opened"):
            await handle.result(timeout=DEADLINE_S)
    assert await plane.artifacts_of([handle.id]) == []


async def test_traces_are_kept_when_they_are_wanted_always_or_never(
    settings: CplaneSettings, plane: ControlPlane, shop: str
) -> None:
    async with running(settings, pages=True):
        handle = await failures_traced.submit(url=shop)
        assert await handle.result(timeout=DEADLINE_S) == "Broken shop"
        assert set(await files_of(plane, handle.id)) == {"trace-1.zip"}
    async with running(settings.model_copy(update={"trace": "off"}), pages=True):
        failed = await failures_shop.submit(url=shop)
        with pytest.raises(JobFailed):
            await failed.result(timeout=DEADLINE_S)
        assert not [name for name in await files_of(plane, failed.id) if name.startswith("trace")]


@pytest.mark.usefixtures("unhurried")
async def test_the_next_job_of_a_name_that_failed_is_traced_with_snapshots(
    settings: CplaneSettings, plane: ControlPlane, shop: str
) -> None:
    async with running(settings, pages=True):
        for expected in (False, True):
            handle = await failures_once.submit(url=shop)
            with pytest.raises(JobFailed):
                await handle.result(timeout=DEADLINE_S)
            assert snapshots((await files_of(plane, handle.id))["trace-1.zip"]) is expected


async def test_a_job_that_succeeds_leaves_no_trace(settings: CplaneSettings, plane: ControlPlane) -> None:
    async with running(settings, pages=True):
        handle = await failures_fine.submit()
        assert await handle.result(timeout=DEADLINE_S) == 1
        assert await files_of(plane, handle.id) == {}


async def test_a_job_that_records_a_trace_of_its_own_is_told_how(settings: CplaneSettings, plane: ControlPlane) -> None:
    async with running(settings, pages=True):
        refused = await failures_traces_itself.submit()
        with pytest.raises(JobFailed, match="already started") as failed:
            await refused.result(timeout=DEADLINE_S)
        assert "hint: cplane records a trace of this page already" in failed.value.traceback
        allowed = await failures_traces_itself_alone.submit()
        await allowed.result(timeout=DEADLINE_S)
