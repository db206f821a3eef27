"""With CPLANE_API_KEYS set, a client without a key learns nothing about jobs."""

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

KEYS = ("first-key", "zweiter-schlüssel")
CLOSED = [
    ("GET", "/api/v1/jobs"),
    ("POST", "/api/v1/jobs"),
    ("GET", "/api/v1/catalog"),
    ("GET", "/openapi.json"),
    ("GET", "/nothing"),
]


@pytest_asyncio.fixture
async def client(plane: ControlPlane) -> AsyncGenerator[httpx2.AsyncClient]:
    settings = plane.settings.model_copy(update={"api_keys": tuple(SecretStr(key) for key in KEYS)})
    async with (
        open_server(create_app(settings, plane=plane), "127.0.0.1", 0) as server,
        httpx2.AsyncClient(base_url=server.url, timeout=30) as client,
    ):
        yield client


async def test_a_request_without_a_key_returns_401(client: httpx2.AsyncClient, subtests: pytest.Subtests) -> None:
    for method, path in CLOSED:
        with subtests.test(method=method, path=path):
            response = await client.request(method, path)
            assert (response.status_code, response.json()["type"]) == (401, "/problems/unauthorized")
            assert response.headers["www-authenticate"] == 'Bearer realm="cplane"'


async def test_a_request_with_a_wrong_key_returns_401(client: httpx2.AsyncClient, subtests: pytest.Subtests) -> None:
    for header in [
        "Bearer wrong",
        "Bearer first-key2",
        "Bearer first-ke",
        "Basic first-key",
        "first-key",
        "Bearer",
        "",
    ]:
        with subtests.test(header=header):
            response = await client.get("/api/v1/jobs", headers={"authorization": header})
            assert response.status_code == 401
            assert response.headers["www-authenticate"].startswith("Bearer ")


async def test_each_key_is_accepted(client: httpx2.AsyncClient, subtests: pytest.Subtests) -> None:
    for header in ["Bearer first-key", "bearer first-key", "Bearer  first-key", f"Bearer {KEYS[1]}"]:
        with subtests.test(header=header):
            for path in ("/api/v1/jobs", "/openapi.json"):
                assert (await client.get(path, headers=[(b"authorization", header.encode())])).status_code == 200


async def test_a_path_in_disguise_needs_a_key_too(client: httpx2.AsyncClient) -> None:
    for path in (
        "/static/%2e%2e/api/v1/jobs",
        "//api/v1/jobs",
        "/API/v1/jobs",
        "/livez/../api/v1/jobs",
        "/api%2fv1/jobs",
    ):
        assert (await client.get(path)).status_code in {401, 404}


async def test_health_and_documentation_need_no_key(client: httpx2.AsyncClient, subtests: pytest.Subtests) -> None:
    for path in ["/livez", "/readyz", "/docs", "/static/docs.js", "/problems/unauthorized"]:
        with subtests.test(path=path):
            assert (await client.get(path)).status_code == 200


async def test_the_same_paths_are_open_behind_a_prefix(plane: ControlPlane, subtests: pytest.Subtests) -> None:
    settings = plane.settings.model_copy(update={"api_keys": (SecretStr("a-key"),)})
    app = create_app(settings, plane=plane)
    transport = httpx2.ASGITransport(app, root_path="/cplane")  # as uvicorn --root-path does, and a mount
    async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
        for path, status in {
            "/cplane/livez": 200,
            "/cplane/readyz": 200,
            "/cplane/docs": 200,
            "/cplane/api/v1/jobs": 401,
            "/cplane/openapi.json": 401,
            "/cplane/cplane/livez": 401,
            "/cplaneX/livez": 401,
        }.items():
            with subtests.test(path=path):
                assert (await client.get(path)).status_code == status


async def test_the_openapi_document_says_which_operations_need_a_key(client: httpx2.AsyncClient) -> None:
    spec = (await client.get("/openapi.json", headers={"authorization": "Bearer first-key"})).json()
    assert spec["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    assert spec["paths"]["/api/v1/jobs"]["post"]["security"] == [{"key": []}]
    assert "security" not in spec["paths"]["/livez"]["get"]


async def test_without_keys_the_api_is_open(api: "Api", plane: ControlPlane) -> None:
    app = create_app(plane=plane)
    async with open_server(app, "127.0.0.1", 0) as server, httpx2.AsyncClient(base_url=server.url) as client:
        assert (await client.get("/api/v1/jobs")).status_code == 200
