"""What can be submitted: every job with the schemas of its arguments and its result."""

import inspect
from collections.abc import Callable
from typing import Any

from pydantic.errors import PydanticUserError
from starlette.responses import Response

from cplane.jobs.definition import AnyJob
from cplane.web.request import ApiRequest
from cplane.web.responses import json_response
from cplane.web.views import Catalog, CatalogEntry


async def catalog(request: ApiRequest) -> Response:
    """Every job, by name."""
    jobs = request.plane.catalog.jobs
    return json_response(Catalog(jobs=[entry(jobs[name]) for name in sorted(jobs)]))


def entry(job: AnyJob) -> CatalogEntry:
    """What there is to know of a job before it is submitted."""
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
    """The docstring of the job's function."""
    return inspect.getdoc(job.fn) or ""


def schema_or_any(schema: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A schema; one that allows anything for a type that JSON Schema cannot describe."""
    try:
        return schema()
    except PydanticUserError:
        return {"description": "JSON Schema cannot describe it"}
