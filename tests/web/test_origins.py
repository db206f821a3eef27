"""An API without keys serves its own names, and changes nothing for pages of other origins."""

import asyncio
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

import httpx2
import pytest
import pytest_asyncio
from pydantic import SecretStr

from cplane import ControlPlane
from cplane.web import create_app, open_server

if TYPE_CHECKING:
    from tests.web.conftest import Api

JOBS = "/api/v1/jobs"
BODY = {"job": "web_add", "args": {"x": 1}}


@pytest_asyncio.fixture
async def named(plane: ControlPlane) -> AsyncGenerator[httpx2.AsyncClient]:
    """A client of an API that has names of its own."""
    hosts = ("api.example", "*.internal.example", "10.0.0.5")
    settings = plane.settings.model_copy(update={"allowed_hosts": hosts})
    async with (
        open_server(create_app(settings, plane=plane), "127.0.0.1", 0) as server,
        httpx2.AsyncClient(base_url=server.url, timeout=30) as client,
    ):
        yield client


async def test_a_name_that_points_at_this_machine_is_refused(api: "Api", subtests: pytest.Subtests) -> None:
    for host in ("rebind.example", "rebind.example:8000", "localhost.example", "127.0.0.1.example", "", "10.0.0.5"):
        for method, path in (("GET", JOBS), ("POST", JOBS), ("GET", "/openapi.json"), ("GET", "/nothing")):
            with subtests.test(host=host, method=method, path=path):
                response = await api.client.request(method, path, headers={"host": host}, json=BODY)
                assert (response.status_code, response.json()["type"]) == (403, "/problems/host-not-allowed")
                assert "CPLANE_ALLOWED_HOSTS" in response.json()["hint"]
    assert await api.count_records() == 0


async def test_loopback_is_served_under_each_of_its_names(api: "Api", subtests: pytest.Subtests) -> None:
    for host in ("localhost", "LOCALHOST:8000", "127.0.0.1:1", "127.1.2.3", "[::1]:8000", "[::1]"):
        with subtests.test(host=host):
            assert (await api.client.get(JOBS, headers={"host": host})).status_code == 200


async def test_names_that_are_allowed_are_served(named: httpx2.AsyncClient, subtests: pytest.Subtests) -> None:
    for host, status in {
        "api.example": 200,
        "API.example:443": 200,
        "a.internal.example": 200,
        "a.b.internal.example": 200,
        "internal.example": 403,
        "evilinternal.example": 403,
        "x.api.example": 403,
        "10.0.0.5:8000": 200,
        "10.0.0.6": 403,
    }.items():
        with subtests.test(host=host):
            assert (await named.get(JOBS, headers={"host": host})).status_code == status


async def test_one_of_two_hosts_is_not_enough(api: "Api") -> None:
    url = api.client.base_url
    reader, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(f"GET {JOBS} HTTP/1.1\r\nHost: localhost\r\nHost: rebind.example\r\n\r\n".encode())
    assert (await reader.readline()).startswith((b"HTTP/1.1 403", b"HTTP/1.1 400"))
    writer.close()


async def test_health_is_served_under_every_name(api: "Api") -> None:
    for path in ("/livez", "/readyz"):
        assert (await api.client.get(path, headers={"host": "10.1.2.3:8000"})).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://localhost:1"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": "cross-site", "origin": "http://127.0.0.1"},
    ],
    ids=str,
)
async def test_a_page_of_another_origin_changes_nothing(api: "Api", headers: dict[str, str]) -> None:
    record = await api.submit()
    for method, path in (
        ("POST", JOBS),
        ("POST", f"{record['url']}/cancel"),
        ("POST", f"{record['url']}/retry"),
        ("POST", f"{JOBS}/retry"),
        ("PUT", "/api/v1/sessions/mine"),
        ("DELETE", "/api/v1/sessions/mine"),
    ):
        response = await api.client.request(method, path, headers=headers, json=BODY)
        assert (response.status_code, response.json()["type"]) == (403, "/problems/cross-origin"), path
    assert await api.count_records() == 1
    assert (await api.client.get(record["url"])).json()["state"] == "queued"


async def test_pages_of_this_server_and_other_clients_may_submit(api: "Api") -> None:
    own = str(api.client.base_url).rstrip("/")
    for headers in (
        {},
        {"origin": own},
        {"origin": own, "sec-fetch-site": "same-origin"},
        {"sec-fetch-site": "none"},
        {"host": "localhost:8000", "origin": "http://LOCALHOST:8000"},
    ):
        assert (await api.client.post(JOBS, headers=headers, json=BODY)).status_code == 202, headers


async def test_a_proxy_may_change_the_host(named: httpx2.AsyncClient) -> None:
    headers = {"origin": "https://api.example"}
    assert (await named.post(JOBS, headers=headers, json=BODY)).status_code == 202


async def test_pages_of_other_origins_may_read_what_they_cannot_see(api: "Api") -> None:
    response = await api.client.get(JOBS, headers={"sec-fetch-site": "cross-site", "origin": "https://evil.example"})
    assert response.status_code == 200
    assert "access-control-allow-origin" not in response.headers


async def test_with_keys_every_host_and_origin_is_served(plane: ControlPlane) -> None:
    settings = plane.settings.model_copy(update={"api_keys": (SecretStr("a-key"),)})
    headers = {"authorization": "Bearer a-key", "host": "any.example", "origin": "https://other.example"}
    async with (
        open_server(create_app(settings, plane=plane), "127.0.0.1", 0) as server,
        httpx2.AsyncClient(base_url=server.url) as client,
    ):
        assert (await client.post(JOBS, headers=headers, json=BODY)).status_code == 202
