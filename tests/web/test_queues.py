"""Queues, dead letters and hosts over HTTP."""

from typing import TYPE_CHECKING

from cplane import ControlPlane, PerHost
from cplane.jobs.states import Priority
from cplane.redis.dead_letters import DeadLetterStream
from cplane.redis.limiter import LimitRequest
from cplane.redis.messages import EnqueueRequest, Id

if TYPE_CHECKING:
    from tests.web.conftest import Api


def counts(queue: dict[str, int]) -> tuple[int, int, int]:
    return queue["ready"], queue["scheduled"], queue["running"]


async def test_every_queue_has_its_stats(api: "Api", plane: ControlPlane) -> None:
    await api.submit(queue="busy", priority="high")
    await api.submit(queue="busy")
    await api.submit(queue="busy", delay=60)
    found = (await api.client.get("/api/v1/queues")).json()
    assert found["dead_letters"] == 0
    queues = {queue.pop("name"): queue for queue in found["queues"]}
    assert {"default", "browser", "busy"} <= set(queues)
    assert counts(queues["busy"]) == (2, 1, 0)
    assert 0 <= queues["busy"]["latency_s"] < 60
    assert queues["default"] == {"ready": 0, "scheduled": 0, "running": 0, "latency_s": 0}

    await plane.queue.claim("busy", 1, 30)
    queues = {queue.pop("name"): queue for queue in (await api.client.get("/api/v1/queues")).json()["queues"]}
    assert counts(queues["busy"]) == (1, 1, 1)


async def test_dead_letters_are_counted(api: "Api", plane: ControlPlane) -> None:
    await DeadLetterStream(plane.redis).add([(Id("default", Priority.HIGH, "malformed"), "its payload is a list", b"")])
    assert (await api.client.get("/api/v1/queues")).json()["dead_letters"] == 1


async def test_the_hosts_that_jobs_wait_for_are_listed(api: "Api", plane: ControlPlane) -> None:
    assert (await api.client.get("/api/v1/hosts")).json() == {"hosts": []}
    await plane.queue.enqueue([EnqueueRequest("default", id_, b"x") for id_ in ("a", "b")])
    leases = (await plane.queue.claim("default", 2, 30)).leases
    await plane.limiter.acquire(
        "default", [LimitRequest(lease, ("a.test",), PerHost(concurrency=1)) for lease in leases]
    )
    (host,) = (await api.client.get("/api/v1/hosts")).json()["hosts"]
    assert host == {
        "host": "a.test",
        "running": 1,
        "concurrency": 1,
        "rate": None,
        "waiting": 1,
        "next_start": 0,
        "cooldown": 0,
    }
