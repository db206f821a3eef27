"""The handlers of records: submit, list, show, cancel, retry, and the files."""

from collections.abc import Mapping
from datetime import UTC
from urllib.parse import urlencode
from uuid import UUID

from starlette.responses import Response

from cplane.errors import ArtifactNotFound, RecordNotFound
from cplane.records import JobRecord
from cplane.store import RecordFilter
from cplane.web.artifact import FILE_NAME, ArtifactResponse
from cplane.web.body import read_body
from cplane.web.inputs import ListQuery, SubmitBody, WaitQuery, encode_cursor
from cplane.web.request import ApiRequest
from cplane.web.responses import json_response
from cplane.web.views import JobList, job_summary, job_view
from cplane.web.waiting import record_after

JOBS = "/api/v1/jobs"


async def submit(request: ApiRequest) -> Response:
    """Record and schedule a job."""
    wait_s = request.query(WaitQuery).wait
    key = request.idempotency_key()
    body = await read_body(request, SubmitBody)
    handle = await request.plane.create_job(
        body.job,
        body.args,
        key=key,
        delay=body.delay,
        at=None if body.at is None else body.at.astimezone(UTC),  # the same moment is the same request
        queue=body.queue,
    )
    record = await record_after(request, handle.id, wait_s)
    headers = {"location": _url(request, record.id)}
    if not handle.created:
        headers["idempotency-replayed"] = "true"
    return await _moved(request, record, headers)


async def list_jobs(request: ApiRequest) -> Response:
    """A page of records."""
    query = request.query(ListQuery)
    where = RecordFilter(query.state, query.job, query.queue)
    records = await request.plane.records(where, before=query.cursor, limit=query.limit + 1)
    page = records[: query.limit]
    cursor = encode_cursor(page[-1].id) if len(records) > len(page) else None
    headers: dict[str, str] = {}
    if cursor is not None:
        parameters = query.model_dump(mode="json", exclude_unset=True, exclude_none=True) | {"cursor": cursor}
        headers["link"] = f'<{request.link(JOBS)}?{urlencode(parameters)}>; rel="next"'
    return json_response(
        JobList(jobs=[job_summary(record, _url(request, record.id)) for record in page], next=cursor), headers=headers
    )


async def show(request: ApiRequest) -> Response:
    """One record."""
    record = await record_after(request, _record_id(request), request.query(WaitQuery).wait)
    return await _shown(request, record, 200)


async def cancel(request: ApiRequest) -> Response:
    """Cancel a job."""
    record_id = _record_id(request)
    await request.plane.cancel(record_id)
    return await _moved(request, await request.plane.record(record_id))


async def retry(request: ApiRequest) -> Response:
    """Run a failed or cancelled job again."""
    record_id = _record_id(request)
    await request.plane.retry(record_id)
    return await _moved(request, await request.plane.record(record_id))


async def artifact(request: ApiRequest) -> Response:
    """One file, streamed."""
    record_id, name = _record_id(request), str(request.path_params["name"])
    if not FILE_NAME.fullmatch(name):
        raise ArtifactNotFound(f"job {record_id} has no artifact named '{name}'")
    return await ArtifactResponse.open(
        request.plane.open_artifact(record_id, name), if_none_match=request.headers.get("if-none-match")
    )


async def _moved(request: ApiRequest, record: JobRecord, headers: Mapping[str, str] | None = None) -> Response:
    """The answer to a POST: 200 shows a final record, 202 one that will become final."""
    return await _shown(request, record, 200 if record.state.final else 202, headers)


async def _shown(
    request: ApiRequest, record: JobRecord, status: int, headers: Mapping[str, str] | None = None
) -> Response:
    started = record.attempt > 0
    attempts = await request.plane.attempts(record.id) if started else []
    artifacts = await request.plane.artifacts_of([record.id]) if started else []
    return json_response(job_view(record, attempts, artifacts, _url(request, record.id)), status, headers)


def _record_id(request: ApiRequest) -> UUID:
    given: str = request.path_params["id"]
    try:
        record_id = UUID(given)
    except ValueError:
        record_id = None
    if record_id is None or str(record_id) != given.lower():
        raise RecordNotFound(f"there is no job with the id '{given}'", hint="ids are UUIDs")
    return record_id


def _url(request: ApiRequest, record_id: UUID) -> str:
    return request.link(f"{JOBS}/{record_id}")
