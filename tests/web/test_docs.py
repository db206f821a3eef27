"""The API's own documentation: the catalog, the OpenAPI document, Swagger UI, health."""

import re
from typing import TYPE_CHECKING, Annotated, Any

from openapi_spec_validator import validate
from pydantic import PlainValidator

from cplane import job
from cplane.jobs.registry import registry
from cplane.web.operations import OPERATIONS

if TYPE_CHECKING:
    from tests.web.conftest import Api


class Undescribable:
    """A type that pydantic can check and JSON Schema cannot describe."""


async def test_the_catalog_has_every_job_with_its_schemas(api: "Api") -> None:
    jobs = {entry["name"]: entry for entry in (await api.client.get("/api/v1/catalog")).json()["jobs"]}
    assert list(jobs) == sorted(jobs)

    assert jobs["web_add"]["description"] == "Add two numbers.\n\nThe second one is 0 unless given."
    assert jobs["web_add"]["args"]["required"] == ["x"]
    assert jobs["web_add"]["args"]["properties"]["y"]["default"] == 0
    assert jobs["web_add"]["result"] == {"type": "integer"}

    visit = jobs["web_visit"]
    assert (visit["queue"], visit["timeout"], visit["retries"]) == ("browser", 60, 3)
    assert set(visit["args"]["properties"]) == {"url", "size", "tags"}
    assert visit["result"]["title"] == "Size"


async def test_the_openapi_document_is_valid_and_has_every_operation(api: "Api") -> None:
    spec = (await api.client.get("/openapi.json")).json()
    validate(spec)
    assert spec["openapi"].startswith("3.1")
    described = {(method.upper(), path) for path, methods in spec["paths"].items() for method in methods}
    assert described == {(operation.method, operation.path) for operation in OPERATIONS}


async def test_the_openapi_document_has_a_schema_for_each_job(api: "Api") -> None:
    spec = (await api.client.get("/openapi.json")).json()
    schemas = spec["components"]["schemas"]
    mapping = schemas["Submission"]["discriminator"]["mapping"]
    assert {"web_add", "web_visit", "web:any.thing", "web_same", "web_broken"} <= set(mapping)

    add = resolve(spec, mapping["web_add"])
    assert add["properties"]["job"] == {"type": "string", "enum": ["web_add"]}
    assert (add["required"], add["additionalProperties"]) == (["job", "args"], False)
    assert resolve(spec, add["properties"]["args"]["$ref"])["required"] == ["x"]
    assert resolve(spec, mapping["web:any.thing"])["required"] == ["job"]


async def test_every_reference_can_be_resolved(api: "Api") -> None:
    response = await api.client.get("/openapi.json")
    references: set[str] = set(re.findall(r'"(#/[^"]+)"', response.text))
    assert references
    for reference in references:
        resolve(response.json(), reference)


async def test_a_job_without_a_json_schema_is_still_listed(api: "Api") -> None:
    @job(name="web_undescribable")
    async def undescribable(value: Annotated[Undescribable, PlainValidator(lambda _: Undescribable())]) -> None: ...

    try:
        entries = {entry["name"]: entry for entry in (await api.client.get("/api/v1/catalog")).json()["jobs"]}
        assert "web_undescribable" in entries
        validate((await api.client.get("/openapi.json")).json())
    finally:
        del registry.jobs["web_undescribable"]


async def test_swagger_ui_loads_bundled_files_only(api: "Api") -> None:
    page = await api.client.get("/docs")
    policy = page.headers["content-security-policy"]
    assert "script-src 'self';" in policy
    assert "unsafe" not in policy
    assert not re.search(r"<script(?![^>]*src=)|https?://|\son\w+=|style=", page.text)
    files: list[str] = re.findall(r'(?:src|href)="(static/[^"]+)"', page.text)
    assert len(files) == 3
    for file in files:
        assert (await api.client.get(f"/{file}")).status_code == 200


async def test_the_root_redirects_to_the_documentation(api: "Api") -> None:
    response = await api.client.get("/", follow_redirects=True)
    assert (response.status_code, response.url.path) == (200, "/docs")


async def test_the_process_is_alive_and_ready(api: "Api") -> None:
    assert (await api.client.get("/livez")).json() == {"alive": True}
    response = await api.client.get("/readyz")
    assert (response.status_code, response.json()) == (
        200,
        {"ready": True, "checks": {"database": "ok", "redis": "ok"}},
    )


def resolve(spec: Any, reference: str) -> Any:
    for name in reference.removeprefix("#/").split("/"):
        spec = spec[name]
    return spec
