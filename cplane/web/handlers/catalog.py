"""The catalog: every job that can be submitted, with the schemas of its arguments and its result."""

import inspect
from collections.abc import Callable
from typing import Any

from pydantic.errors import PydanticUserError
from starlette.responses import Response

from cplane.jobs.definition import AnyJob
from cplane.web.request import ApiRequest
from cplane.web.responses import json_response
from cplane.web.views import Catalog, CatalogEntry


async def get_catalog(request: ApiRequest) -> Response:
    """Return every job, by name."""
    jobs = request.plane.catalog.jobs
    return json_response(Catalog(jobs=[entry(jobs[name]) for name in sorted(jobs)]))


def entry(job: AnyJob) -> CatalogEntry:
    """Return the catalog entry of a job."""
    return CatalogEntry(
        name=job.name,
        description=describe(job),
        queue=job.options.queue,
        priority=job.options.priority,
        timeout=job.options.timeout_s,
        retries=job.options.retry.retries,
        args=schema_or_any(job.schema),
        result=schema_or_any(job.result_schema),
    )


def describe(job: AnyJob) -> str:
    """Return the docstring of the job's function, empty if it has none."""
    return inspect.getdoc(job.fn) or ""


def schema_or_any(schema: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return a schema; for a type that JSON Schema cannot describe, one that allows anything."""
    try:
        return schema()
    except PydanticUserError:
        return {"description": "JSON Schema cannot describe it"}
