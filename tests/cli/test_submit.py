import asyncio
import json
import signal
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

import pytest

if TYPE_CHECKING:
    from tests.cli.conftest import Cplane, Running, Start


@pytest.fixture
def addresses(addresses: dict[str, str], app: Path) -> dict[str, str]:
    """With the jobs of app.py."""
    return {**addresses, "CPLANE_IMPORTS": "app"}


async def test_a_display_that_loses_its_cancellation_does_not_block_the_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before Python 3.12 a cancellation can be lost while a driver connects."""
    from cplane.cli import submit

    class Plane:
        async def wait(self, record_id: UUID, timeout_s: float | None) -> str:
            await asyncio.sleep(0)
            return "the record"

    async def show(*_: object) -> None:
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        await asyncio.Event().wait()

    monkeypatch.setattr(submit, "_show", show)
    async with asyncio.timeout(10):
        assert await cast("Any", submit)._wait(Plane(), UUID(int=1), "add", None) == "the record"


async def test_the_result_is_printed_as_json(cplane: "Cplane", addresses: dict[str, str], worker: "Running") -> None:
    ended = await cplane("submit", "add", "x=1", "y=2", **addresses)
    assert (ended.code, ended.stdout) == (0, "3\n")


async def test_the_whole_record_is_printed_as_json(
    cplane: "Cplane", addresses: dict[str, str], worker: "Running"
) -> None:
    ended = await cplane("submit", "steps", "--args", '{"count": 2}', "--json", **addresses)
    record = json.loads(ended.stdout)
    assert (record["state"], record["result"], record["attempt"]) == ("succeeded", "all steps", 1)
    assert [artifact["name"] for artifact in record["artifacts"]] == ["notes.txt"]


async def test_artifacts_are_saved(
    cplane: "Cplane", addresses: dict[str, str], worker: "Running", tmp_path: Path
) -> None:
    ended = await cplane("submit", "steps", "count=1", "--save", str(tmp_path / "out"), **addresses)
    assert ended.code == 0
    assert (tmp_path / "out" / "notes.txt").read_bytes() == b"done"


async def test_artifacts_are_listed(cplane: "Cplane", addresses: dict[str, str], worker: "Running") -> None:
    ended = await cplane("submit", "steps", "count=1", **addresses)
    assert "notes.txt" in ended.stderr
    assert "--save" in ended.stderr


@pytest.mark.parametrize("as_json", [False, True])
async def test_a_failed_job_exits_1_with_its_traceback(
    cplane: "Cplane", addresses: dict[str, str], worker: "Running", *, as_json: bool
) -> None:
    ended = await cplane("submit", "broken", "why=[tired]", *(["--json"] if as_json else []), **addresses)
    assert ended.code == 1
    assert "error: job 'broken' failed with LookupError: [tired]" in ended.stderr
    assert "raise LookupError(why)" in ended.stderr
    assert (json.loads(ended.stdout)["state"] == "failed") if as_json else ended.stdout == ""


async def test_a_job_without_a_worker_is_still_queued_at_the_timeout(
    cplane: "Cplane", addresses: dict[str, str]
) -> None:
    ended = await cplane("submit", "add", "x=1", "y=2", "--timeout", "0.5", **addresses)
    assert ended.code == 1
    assert "is not final after 0.5 s; it goes on" in ended.stderr
    assert "cplane jobs show" in ended.stderr


async def test_ctrl_c_does_not_cancel_the_job_and_exits_130(
    start: "Start", cplane: "Cplane", addresses: dict[str, str]
) -> None:
    async with start("submit", "add", "x=1", "y=2", **addresses) as submit:
        await submit.until("still queued")
        ended = await submit.stop(signal.SIGINT)
    assert ended.code == 130
    assert "goes on" in ended.stderr
    assert "Traceback" not in ended.stderr
    listed = json.loads((await cplane("jobs", "list", "--json", **addresses)).stdout)
    assert [record["state"] for record in listed] == ["queued"]
