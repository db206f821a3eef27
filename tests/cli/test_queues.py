import json
import re
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from cplane import ControlPlane, CplaneSettings, State
from cplane.jobs.states import Priority
from cplane.redis.dead_letters import DeadLetterStream
from cplane.redis.envelope import record_envelope
from cplane.redis.messages import Id

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import Cplane, Start


@pytest_asyncio.fixture
async def plane(settings: CplaneSettings) -> AsyncIterator[ControlPlane]:
    async with ControlPlane(settings) as plane:
        yield plane


async def test_queues_are_listed_with_their_stats(
    cplane: "Cplane", addresses: dict[str, str], plane: ControlPlane
) -> None:
    await plane.create_job("links", {"url": "http://localhost"}, queue="busy")
    await plane.create_job("links", {"url": "http://localhost"}, queue="busy", delay=60, priority="high")
    ended = await cplane("queues", "--json", **addresses)
    shown = json.loads(ended.stdout)
    assert (ended.code, shown["dead_letters"]) == (0, 0)
    (busy,) = [queue for queue in shown["queues"] if queue["name"] == "busy"]
    assert (busy["ready"], busy["scheduled"], busy["running"]) == (1, 1, 0)
    table = await cplane("queues", **addresses)
    assert re.search(r"^ ?busy +1 +1 +0 +\d", table.stdout, re.MULTILINE)
    assert table.stderr == ""


async def test_dead_letters_are_listed_requeued_and_dropped(
    cplane: "Cplane", addresses: dict[str, str], plane: ControlPlane
) -> None:
    assert (await cplane("dead-letters", **addresses)).stderr == "there are no dead letters\n"
    payload = record_envelope("links")
    await plane.redis.xadd(
        "cplane:dead-letters",
        {"queue": "arq:queue:busy@high", "id": "malformed", "reason": "[it] is malformed", "payload": payload},
    )
    await DeadLetterStream(plane.redis).add([(Id("default", Priority.NORMAL, "gone"), "its payload is gone", b"")])

    listed = json.loads((await cplane("dead-letters", "list", "--json", **addresses)).stdout)
    assert [(each["id"], each["queue"], each["reason"]) for each in listed] == [
        ("gone", "arq:queue", "its payload is gone"),
        ("malformed", "arq:queue:busy@high", "[it] is malformed"),
    ]
    shown = await cplane("dead-letters", **addresses)
    assert re.search(r"arq:queue:busy@high +malformed +\[it\] is malformed", shown.stdout)
    assert "2 dead letters" in (await cplane("queues", **addresses)).stderr
    doctor = json.loads((await cplane("doctor", "--json", **addresses)).stdout)
    (redis,) = [check for check in doctor["checks"] if check["name"] == "redis"]
    assert (redis["verdict"], "2 dead letters" in redis["detail"]) == ("warning", True)

    assert (await cplane("dead-letters", "requeue", "malformed", **addresses)).stderr == "requeued\n"
    (lease,) = (await plane.queue.claim("busy", 5, 30)).leases
    assert (lease.id, lease.payload, lease.priority) == ("malformed", payload, Priority.HIGH)
    lost = await cplane("dead-letters", "requeue", "gone", **addresses)
    assert (lost.code, "nothing is left to run" in lost.stderr) == (1, True)
    assert (await cplane("dead-letters", "drop", "gone", **addresses)).stderr == "dropped\n"
    assert await plane.dead_letters.count() == 0
    for verb in ("drop", "requeue"):
        again = await cplane("dead-letters", verb, "gone", **addresses)
        assert (again.code, "there is no dead letter with the id 'gone'" in again.stderr) == (1, True)


@pytest.fixture
def with_app(addresses: dict[str, str], app: "Path") -> dict[str, str]:
    """The addresses, with the jobs of app.py."""
    return {**addresses, "CPLANE_IMPORTS": app.stem}


async def test_jobs_are_requeued_by_filter(cplane: "Cplane", with_app: dict[str, str], plane: ControlPlane) -> None:
    for name in ("links", "links", "content"):
        handle = await plane.create_job(name, {"url": "http://localhost"})
        await plane.cancel(handle.id)
    chosen = ("jobs", "retry", "--state", "cancelled", "--job", "links")

    counted = await cplane(*chosen, "--dry-run", **with_app)
    assert (counted.code, counted.stderr) == (0, "2 cancelled jobs would be requeued\n")
    refused = await cplane(*chosen, **with_app)
    assert (refused.code, "--yes" in refused.stderr) == (1, True)
    assert await plane.queue.depth("browser") == 3  # cancelled records leave the schedule when they are claimed

    ended = await cplane(*chosen, "--yes", **with_app)
    assert (ended.code, ended.stderr.splitlines()[-1].strip()) == (0, "2 requeued")
    assert sorted(record.state for record in await plane.records()) == [State.CANCELLED, State.QUEUED, State.QUEUED]
    assert "no such jobs" in (await cplane(*chosen, "--yes", **with_app)).stderr


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--job", "links"],
        ["--state", "queued"],
        ["01900000-0000-7000-8000-000000000000", "--state", "failed"],
        ["01900000-0000-7000-8000-000000000000", "--yes"],
    ],
    ids=" ".join,
)
async def test_a_retry_with_too_few_or_too_many_options_exits_2(cplane: "Cplane", arguments: list[str]) -> None:
    ended = await cplane("jobs", "retry", *arguments)
    assert ended.code == 2
    assert "Usage: cplane jobs retry" in ended.stderr
    assert "Traceback" not in ended.stderr


async def test_a_priority_is_given_with_a_submission(cplane: "Cplane", with_app: dict[str, str]) -> None:
    ended = await cplane("submit", "add", "x=1", "y=2", "--priority", "high", "--no-wait", "--json", **with_app)
    assert json.loads(ended.stdout)["priority"] == "high"
    wrong = await cplane("submit", "add", "x=1", "y=2", "--priority", "urgent", **with_app)
    assert wrong.code == 2
    assert "'urgent' is not one of 'high', 'normal', 'low'" in " ".join(wrong.stderr.replace("│", " ").split())


TRANSIENT_APP = """\
from cplane import job


@job(record=False)
async def transient(x: int) -> int:
    return x + 1


@job(record=False, result_ttl=0)
async def without_result() -> None:
    pass
"""


async def test_a_transient_job_is_submitted_shown_and_cancelled(
    cplane: "Cplane", addresses: dict[str, str], folder: "Path"
) -> None:
    (folder / "transient_app.py").write_text(TRANSIENT_APP)
    addresses["CPLANE_IMPORTS"] = "transient_app"
    keyed = await cplane("submit", "transient", "x=1", "--key", "k", "--no-wait", **addresses)
    assert (keyed.code, "keeps no record" in keyed.stderr) == (1, True)
    waits = await cplane("submit", "without_result", **addresses)
    assert (waits.code, "'without_result' keeps no result" in waits.stderr, "--no-wait" in waits.stderr) == (
        1,
        True,
        True,
    )

    first = (await cplane("submit", "transient", "x=1", "--no-wait", **addresses)).stdout.strip()
    second = (await cplane("submit", "transient", "x=2", "--no-wait", **addresses)).stdout.strip()
    assert (await cplane("jobs", "cancel", first, **addresses)).stderr == "cancelled\n"
    assert "no record" in (await cplane("jobs", "retry", first, **addresses)).stderr
    assert (await cplane("worker", "--burst", **addresses)).code == 0
    ended = await cplane("jobs", "show", second, "--json", **addresses)
    assert ended.code == 0, ended.stderr
    shown = json.loads(ended.stdout)
    assert (shown["state"], shown["result"], shown["recorded"]) == ("succeeded", 3, False)
    assert "cancelled" in (await cplane("jobs", "show", first, **addresses)).stdout


async def test_the_result_of_a_transient_job_is_printed(
    cplane: "Cplane", start: "Start", addresses: dict[str, str], folder: "Path"
) -> None:
    (folder / "transient_app.py").write_text(TRANSIENT_APP)
    addresses["CPLANE_IMPORTS"] = "transient_app"
    async with start("worker", **addresses) as worker:
        await worker.until_worker_started()
        ended = await cplane("submit", "transient", "x=41", **addresses)
        assert (ended.code, ended.stdout) == (0, "42\n")

        addresses["CPLANE_DATABASE_URL"] = f"postgresql://nobody@/nothing?host={folder}"
        ended = await cplane("submit", "transient", "x=1", "--json", **addresses)
        assert (ended.code, json.loads(ended.stdout)["result"]) == (0, 2), "it needs no Postgres"
        shown = await cplane("jobs", "show", json.loads(ended.stdout)["id"], "--json", **addresses)
        assert (shown.code, json.loads(shown.stdout)["result"]) == (0, 2)
        await worker.stop()


async def test_the_hosts_that_jobs_wait_for_are_listed(
    cplane: "Cplane", addresses: dict[str, str], plane: ControlPlane
) -> None:
    assert (await cplane("queues", "hosts", **addresses)).stderr == "no job waits for a host or a session\n"
    await plane.limiter.cool_down("busy.test:8080", 3000)
    (host,) = json.loads((await cplane("queues", "hosts", "--json", **addresses)).stdout)
    assert (host["host"], host["waiting"], host["concurrency"]) == ("busy.test:8080", 0, None)
    assert 2000 < host["cooldown"] <= 3000
    shown = await cplane("queues", "hosts", **addresses)
    assert re.search(r"^ ?busy\.test:8080 +0 +0 ", shown.stdout, re.MULTILINE)
