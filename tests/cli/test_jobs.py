import json
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import Cplane, Start


async def test_a_job_from_submit_to_cancel_and_retry(cplane: "Cplane", addresses: dict[str, str], app: "Path") -> None:
    addresses["CPLANE_IMPORTS"] = "app"
    submitted = await cplane("submit", "add", "x=1", "y=2", "--no-wait", "--key", "once", **addresses)
    record_id = submitted.stdout.strip()
    assert submitted.code == 0
    assert (
        await cplane("submit", "add", "x=1", "y=2", "--no-wait", "--key", "once", **addresses)
    ).stdout == f"{record_id}\n"

    listed = json.loads(
        (await cplane("jobs", "list", "--state", "queued", "--job", "add", "--json", **addresses)).stdout
    )
    assert [(record["id"], record["state"], record["key"]) for record in listed] == [(record_id, "queued", "once")]
    assert (await cplane("jobs", "list", "--state", "failed", "--json", **addresses)).stdout == "[]\n"
    shown = await cplane("jobs", "list", **addresses)
    assert re.search(rf"{record_id} +add +queued +default", shown.stdout)

    cancelled = await cplane("jobs", "cancel", record_id, **addresses)
    assert (cancelled.code, cancelled.stderr) == (0, "cancelled\n")
    again = await cplane("jobs", "cancel", record_id, **addresses)
    assert again.code == 1
    assert "cancelled already" in again.stderr

    assert (await cplane("jobs", "retry", record_id, **addresses)).code == 0
    record = json.loads((await cplane("jobs", "show", record_id, "--json", **addresses)).stdout)
    assert (record["state"], record["args"]) == ("queued", {"x": 1, "y": 2})


async def test_show_prints_result_progress_artifacts_and_error(
    cplane: "Cplane", addresses: dict[str, str], app: "Path"
) -> None:
    addresses["CPLANE_IMPORTS"] = "app"
    good = (await cplane("submit", "steps", "count=2", "--no-wait", **addresses)).stdout.strip()
    bad = (await cplane("submit", "broken", "why=tired", "--no-wait", **addresses)).stdout.strip()
    assert (await cplane("worker", "--burst", **addresses)).code == 0

    shown = (await cplane("jobs", "show", good, **addresses)).stdout
    for words in (good, "succeeded", '"all steps"', "2/2 step 2", "notes.txt", "text/plain", "4 B"):
        assert words in shown
    shown = (await cplane("jobs", "show", bad, **addresses)).stdout
    for words in (bad, "failed", "LookupError: tired", "Traceback", "submit"):
        assert words in shown


async def test_a_worker_stops_gracefully(start: "Start", addresses: dict[str, str]) -> None:
    async with start("worker", "--queues", "default:3", **addresses) as worker:
        assert "{'default': 3}" in await worker.until_worker_started()
        ended = await worker.stop()
    assert ended.code == 0
    assert re.search(r"worker[ _]stopped", ended.stderr)


async def test_the_web_server_stops_gracefully(start: "Start", addresses: dict[str, str]) -> None:
    import httpx2

    async with start("web", "--port", "0", **addresses) as web:
        line = await web.until("listening on")
        match = re.search(r"http://[\d.:]+", line)
        assert match is not None
        async with httpx2.AsyncClient() as client:
            assert (await client.get(f"{match[0]}/readyz")).status_code == 200
        ended = await web.stop()
    assert ended.code == 0
