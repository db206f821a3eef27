"""Jobs: submit, list, get, cancel, retry."""

from collections.abc import Mapping
from datetime import UTC
from urllib.parse import urlencode
from uuid import UUID

from starlette.responses import Response

from cplane.jobs.states import State
from cplane.plane.transient import TransientJob
from cplane.postgres.models import JobRecord
from cplane.postgres.rows import RecordFilter
from cplane.web.body import read_body
from cplane.web.inputs import ListQuery, RetryBody, SubmitBody, WaitQuery, encode_cursor
from cplane.web.long_poll import wait_for_record
from cplane.web.request import ApiRequest, key_not_supported, wait_not_supported
from cplane.web.responses import LocatedJsonResponse, json_response
from cplane.web.views import JobList, Retried, job_summary, job_view, queued_json

JOBS = "/api/v1/jobs"


async def submit_job(request: ApiRequest) -> Response:
    """Record and schedule a job."""
    plane, wait_s = request.plane, request.query(WaitQuery).wait
    key = request.idempotency_key()
    body = await read_body(request, SubmitBody)
    if key is not None and not plane.options(body.job).record:
        raise key_not_supported(body.job)
    if wait_s and not (options := plane.options(body.job)).keeps_result:
        raise wait_not_supported(options.no_result_message)
    accepted = await plane.accept(
        body.job,
        body.args,
        key=key,
        delay=body.delay,
        at=None if body.at is None else body.at.astimezone(UTC),  # the same moment is the same request
        queue=body.queue,
        priority=body.priority,
        timeout=body.timeout,
    )
    submitted = accepted.submitted
    location = _url(request, submitted.id)
    if submitted.created and not wait_s:
        return LocatedJsonResponse(queued_json(accepted, location), 202, location)
    headers = {"location": location}
    if not submitted.created:
        headers["idempotency-replayed"] = "true"
    return await _response_to_post(request, await wait_for_record(request, submitted.id, wait_s), headers)


async def list_jobs(request: ApiRequest) -> Response:
    """Return a page of records."""
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


async def get_job(request: ApiRequest) -> Response:
    """Return one record, waiting for it to become final if `wait` says so."""
    record = await wait_for_record(request, request.record_id(), request.query(WaitQuery).wait)
    return await _response(request, record, 200)


async def cancel_job(request: ApiRequest) -> Response:
    """Cancel a job."""
    record_id = request.record_id()
    await request.plane.cancel(record_id)
    return await _response_to_post(request, await request.plane.job(record_id))


async def retry_job(request: ApiRequest) -> Response:
    """Requeue a failed or cancelled job."""
    record_id = request.record_id()
    await request.plane.retry(record_id)
    return await _response_to_post(request, await request.plane.record(record_id))


async def retry_jobs(request: ApiRequest) -> Response:
    """Requeue failed or cancelled jobs, up to the limit of one call."""
    body = await read_body(request, RetryBody)
    where = RecordFilter(State(body.state), body.job, body.queue)
    retried, last = 0, None
    async for ids in request.plane.retry_many(where, before=body.cursor, limit=body.limit):
        retried, last = retried + len(ids), ids[-1]
    more = last is not None and retried == body.limit
    return json_response(Retried(retried=retried, next=encode_cursor(last) if more and last is not None else None))


async def _response_to_post(
    request: ApiRequest, record: JobRecord | TransientJob, headers: Mapping[str, str] | None = None
) -> Response:
    """Return the response to a POST: 200 with a final record, 202 with one that will become final."""
    return await _response(request, record, 200 if record.state.final else 202, headers)


async def _response(
    request: ApiRequest, record: JobRecord | TransientJob, status: int, headers: Mapping[str, str] | None = None
) -> Response:
    started = isinstance(record, JobRecord) and record.attempt > 0
    attempts = await request.plane.attempts(record.id) if started else []
    artifacts = await request.plane.artifacts_of([record.id]) if started else []
    return json_response(job_view(record, attempts, artifacts, _url(request, record.id)), status, headers)


def _url(request: ApiRequest, record_id: UUID) -> str:
    return request.link(f"{JOBS}/{record_id}")
