"""How the queues stand, over HTTP."""

from typing import TYPE_CHECKING

from cplane import ControlPlane, PerHost
from cplane.jobs.states import Priority
from cplane.redis.limiter import Ask
from cplane.redis.messages import Id, Push

if TYPE_CHECKING:
    from tests.web.conftest import Api


async def test_every_queue_has_its_numbers(api: "Api", plane: ControlPlane) -> None:
    await api.submit(queue="busy", priority="high")
    await api.submit(queue="busy")
    await api.submit(queue="busy", delay=60)
    found = (await api.client.get("/api/v1/queues")).json()
    assert found["aside"] == 0
    queues = {queue.pop("name"): queue for queue in found["queues"]}
    assert {"default", "browser", "busy"} <= set(queues)
    assert (queues["busy"]["due"], queues["busy"]["later"]) == (2, 1)
    assert 0 <= queues["busy"]["lag"] < 60
    assert queues["default"] == {"due": 0, "later": 0, "lag": 0}

    await plane.queue.claim("busy", 1, 30)
    queues = {queue.pop("name"): queue for queue in (await api.client.get("/api/v1/queues")).json()["queues"]}
    assert (queues["busy"]["due"], queues["busy"]["later"]) == (1, 2)


async def test_what_was_set_aside_is_counted(api: "Api", plane: ControlPlane) -> None:
    await plane.queue.set_aside([(Id("default", Priority.HIGH, "odd"), "its payload is a list", b"")])
    assert (await api.client.get("/api/v1/queues")).json()["aside"] == 1


async def test_the_hosts_that_jobs_wait_for_are_listed(api: "Api", plane: ControlPlane) -> None:
    assert (await api.client.get("/api/v1/hosts")).json() == {"hosts": []}
    await plane.queue.enqueue([Push("default", id_, b"x") for id_ in ("a", "b")])
    grants = (await plane.queue.claim("default", 2, 30)).grants
    await plane.hosts.ask("default", [Ask(grant, "a.test", PerHost(concurrency=1)) for grant in grants])
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
