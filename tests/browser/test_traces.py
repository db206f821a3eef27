"""Traces leave nothing behind: their files are removed with the page, and the driver stops recording."""

import asyncio
import io
import json
import tempfile
import zipfile
from pathlib import Path

import pytest

from cplane.browser import BrowserPool, PageOptions
from cplane.browser.evidence import collect_trace
from tests.browser.pools import running, settled, until


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


async def test_the_files_of_a_trace_are_removed_with_its_page(
    site: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    async with BrowserPool(4, warm=0) as pool:
        artifacts = (await running(pool)).artifacts
        before = files(artifacts)

        async def visit(*, kept: bool) -> None:
            lease = await pool.acquire_page()
            await lease.trace(snapshots=True)
            assert lease.traced
            await lease.page.goto(site)
            if kept:
                assert [file.name for file in await collect_trace(lease, 1)] == ["trace-1.zip"]
            lease.release()
            await lease.wait_closed()

        # the files of other traces are removed while this one is recorded, those they share with the last one
        held = await pool.acquire_page()
        await held.trace(snapshots=True)
        await held.page.goto(site)
        for _ in range(4):
            await asyncio.gather(visit(kept=True), visit(kept=False), visit(kept=False))
        assert {path.name[:32] for path in files(artifacts) if path.parent == artifacts} == {held.trace_name}
        held.release()
        await settled(pool)
        assert files(artifacts) == before
        await visit(kept=True)
        assert files(artifacts) == before
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [*tmp_path.glob("playwright-*")]


async def test_a_warm_page_is_traced_before_it_is_leased(site: str) -> None:
    async with BrowserPool(2, warm=1, trace="on-failure") as pool:
        await until(lambda: pool.stats().warm)
        lease = await pool.acquire_page()
        assert pool.stats().leased_warm == 1
        assert lease.traced
        await lease.page.goto(site)
        (file,) = await collect_trace(lease, 1)
        with zipfile.ZipFile(io.BytesIO(file.data)) as archive:
            recorded = [json.loads(line) for line in archive.read("trace.trace").splitlines()]
        assert [event["params"]["url"] for event in recorded if event.get("method") == "goto"] == [site]
        assert not any("snapshot" in event["type"] for event in recorded)
        lease.release()
        unrecorded = await pool.acquire_page(PageOptions(trace="off"))
        assert not unrecorded.traced
        unrecorded.release()
        await settled(pool)


async def test_files_that_traces_share_are_removed_while_warm_pages_are_traced(site: str) -> None:
    async with BrowserPool(2, warm=1, trace="on-failure") as pool:
        artifacts = (await running(pool)).artifacts
        await until(lambda: pool.stats().warm)
        lease = await pool.acquire_page(PageOptions(trace="on"))
        await lease.page.goto(site)
        assert await collect_trace(lease, 1)
        assert files(artifacts / "resources")
        lease.release()
        await lease.wait_closed()
        assert not files(artifacts / "resources")
        assert pool.stats().warm
